"""The output head: kept untied where a checkpoint has its own, and untied from the embeddings on request."""

from collections.abc import Mapping
from typing import Any

from torch import nn

from lora_hf.errors import UserError


def untie_head(model: Any) -> Any:
    """Give the output head its own copy of the embeddings, in place, and return the model.

    The outputs stay the same: T5 scales the decoder's output by d_model**-0.5 before a tied head, and still
    does so afterwards. Editing `tie_word_embeddings` instead switches this scaling off, or leaves the head
    random.

    Args:
        model: a Transformers model; one with an untied head is left unchanged.

    Raises:
        UserError: the model has no output head.
    """
    head, embeddings = model.get_output_embeddings(), model.get_input_embeddings()
    if head is None:
        raise UserError(f"untie_head: a {type(model).__name__} has no output head")
    if head.weight is embeddings.weight:
        head.weight = nn.Parameter(head.weight.detach().clone(), head.weight.requires_grad)
    _keep_untied(model, head)
    return model


def guard_head(model: Any, settings: Mapping[str, Any] | None = None) -> None:
    """Keep an untied head untied, in memory and on disk.

    FLAN-T5's checkpoints have an untied `lm_head`, but T5's config always says that it is tied. Any later
    `tie_weights()`, which resizing, dispatching and wrapping may call, would replace it by `shared`.

    Args:
        model: a Transformers model.
        settings: the checkpoint's config.json; None if there is none. UMT5 scales its output by
            `tie_word_embeddings`, so a checkpoint that has a head of its own and true there keeps it.
    """
    head, embeddings = model.get_output_embeddings(), model.get_input_embeddings()
    if head is None or head.weight is embeddings.weight:
        return
    _keep_untied(model, head)
    is_unscaled = getattr(model.config, "scale_decoder_outputs", None) is False
    if settings is None or is_unscaled or settings.get("tie_word_embeddings") is False:
        model.config.tie_word_embeddings = False


def _keep_untied(model: Any, head: nn.Module) -> None:
    """Take the head out of the tensors that this model's `tie_weights` ties."""
    names = [name for name, module in model.named_modules() if module is head]
    own = {f"{name}.{part}" for name in names for part in ("weight", "bias")}
    for field in ("_tied_weights_keys", "all_tied_weights_keys"):
        tied = getattr(model, field, None)
        if isinstance(tied, dict):
            setattr(model, field, {key: source for key, source in tied.items() if key not in own})
