"""Weights that are tied, such as the output head and the embeddings: kept as the checkpoint has them.

The classes of Transformers list which weights *may* be tied, and `tie_weights()` ties all of them, which
resizing, dispatching and wrapping may call. FLAN-T5's checkpoints have a head of their own, but T5's config
always says that it is tied. What is tied in fact can be read from the tensors.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from torch import nn

from lora_hf.adapters.model_state import update_state
from lora_hf.errors import UserError
from lora_hf.families import has_own_head
from lora_hf.files import read_object
from lora_hf.hub.download import SETTINGS
from lora_hf.models.checkpoint import checkpoint_files

HEAD, EMBEDDINGS = "lm_head.weight", "shared.weight"
PREFIX = "transformer."
"""First part of T5's names in some checkpoints, which Transformers leaves out when it loads them."""
KEEPS_HEAD = "use the published checkpoint, and save it with lora_hf, which keeps the head"
"""The remedy of a head that was lost."""


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
        update_state(model, keeps_apart=True)
        if getattr(part.config, "scale_decoder_outputs", None) is False:
            part.config.tie_word_embeddings = False


def _parts(model: Any) -> list[tuple[str, Any]]:
    """Return the model and the models inside it that may tie weights, with the prefixes of their names."""
    named = model.named_modules(remove_duplicate=False)
    parts = [(f"{name}." if name else "", part) for name, part in named]
    return [(prefix, part) for prefix, part in parts if getattr(part, "_tied_weights_keys", None)]


def lost_head(folder: Path) -> str | None:
    """Return what is wrong with the output head of a checkpoint, as `head_fault`; None if it is right.

    Args:
        folder: the files of the model.
    """
    rows = _rows_of(folder, (HEAD, EMBEDDINGS))
    return head_fault(read_object(folder / SETTINGS), rows.get(HEAD), rows.get(EMBEDDINGS))


def head_fault(
    settings: Mapping[str, Any], head: torch.Tensor | None, embeddings: torch.Tensor | None
) -> str | None:
    """Return what is wrong with an untied output head, or None.

    T5 1.1, FLAN-T5 and mT5 have an untied head, and Transformers loads a checkpoint without one as a tied
    model. A checkpoint that was saved after the head was tied by accident has no head, or the embeddings in
    its place. In other families the head may have another name, and a missing tensor is an error of
    `check_checkpoint`; what Transformers itself has tied says so in `tie_word_embeddings`.

    Args:
        settings: the contents of config.json.
        head: the first rows of the head; None if the checkpoint has none under T5's name.
        embeddings: the same rows of the embeddings.
    """
    says_untied = settings.get("tie_word_embeddings") is False
    if head is None:
        if has_own_head(settings):
            why = "this kind of model has an untied head, but the checkpoint has no lm_head.weight"
            return f"{why}: the embeddings take its place"
    elif (has_own_head(settings) or says_untied) and embeddings is not None and torch.equal(head, embeddings):
        return "lm_head.weight holds the embeddings: the head was tied before it was saved"
    return None


def _rows_of(folder: Path, names: tuple[str, ...], most: int = 64) -> dict[str, torch.Tensor]:
    """Return the first rows of the given tensors, as far as the checkpoint has them."""
    rows = {}
    for file in checkpoint_files(folder):
        with safe_open(file, framework="pt") as tensors:
            for key in tensors.keys():
                if (name := key.removeprefix(PREFIX)) in names:
                    rows[name] = tensors.get_slice(key)[:most]
    return rows
