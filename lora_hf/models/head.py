"""Weights that are tied, such as the output head and the embeddings: kept as the checkpoint has them.

The classes of Transformers list which weights *may* be tied, and `tie_weights()` ties all of them, which
resizing, dispatching and wrapping may call. FLAN-T5's checkpoints have a head of their own, but T5's config
always says that it is tied. What is tied in fact can be read from the tensors.
"""

from typing import Any

from torch import nn

from lora_hf.errors import UserError


def untie_head(model: Any) -> Any:
    """Give the output head its own copy of the weights that it shares, in place, and return the model.

    The outputs stay the same: T5 scales the decoder's output by d_model**-0.5 before a tied head, and still
    does so afterwards. Editing `tie_word_embeddings` instead switches this scaling off, or leaves the head
    random.

    Args:
        model: a Transformers model; one with an untied head is left unchanged.

    Raises:
        UserError: the model has no output head.
    """
    head = model.get_output_embeddings()
    if head is None:
        raise UserError(f"untie_head: a {type(model).__name__} has no output head")
    named = model.named_parameters(remove_duplicate=False)
    if sum(parameter is head.weight for _, parameter in named) == 1:
        return model
    head.weight = nn.Parameter(head.weight.detach().clone(), head.weight.requires_grad)
    guard_ties(model)
    return model


def guard_ties(model: Any) -> None:
    """Keep apart, in memory and on disk, what the class may tie but the model has apart; ties stay.

    The config is left as Transformers reads it, because UMT5 scales its output by `tie_word_embeddings`. T5
    and LongT5 keep the scale in `scale_decoder_outputs`; there, versions of Transformers before 5 read from
    `tie_word_embeddings` whether a saved model is tied and scaled, so false is kept.

    Args:
        model: a Transformers model.
    """
    for prefix, part in _parts(model):
        tensors = dict(part.named_parameters(remove_duplicate=False))
        ties = part.get_expanded_tied_weights_keys()
        present = {k: s for k, s in ties.items() if k in tensors and s in tensors}
        apart = {k for k, source in present.items() if tensors[k] is not tensors[source]}
        if not apart:
            continue
        part._tied_weights_keys = {k: source for k, source in ties.items() if k not in apart}
        known = getattr(model, "all_tied_weights_keys", {})
        names = {f"{prefix}{k}" for k in apart}
        model.all_tied_weights_keys = {k: source for k, source in known.items() if k not in names}
        if getattr(part.config, "scale_decoder_outputs", None) is False:
            part.config.tie_word_embeddings = False


def _parts(model: Any) -> list[tuple[str, Any]]:
    """Return the model and the models inside it that may tie weights, with the prefixes of their names."""
    named = model.named_modules(remove_duplicate=False)
    parts = [(f"{name}." if name else "", part) for name, part in named]
    return [(prefix, part) for prefix, part in parts if getattr(part, "_tied_weights_keys", None)]
