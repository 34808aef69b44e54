"""A checkpoint's own generation settings: what its family needs is kept, and nothing else is used.

A summarizer that was published with `min_length: 56` and four beams would otherwise write, in every run, by
settings that nobody asked for. The config's section `generation` says how summaries are written.
"""

import logging
from typing import Any

import torch
from transformers import GenerationConfig as TransformersConfig

from lora_hf.adapters.embeddings import embedding_rows
from lora_hf.config import GenerationConfig
from lora_hf.errors import UserError, first_line
from lora_hf.families import family_of
from lora_hf.models.exported import ExportedModel

NEEDED = (
    "decoder_start_token_id",
    "bos_token_id",
    "eos_token_id",
    "pad_token_id",
    "forced_bos_token_id",  # the language that a multilingual model writes
    "bad_words_ids",  # Marian's padding, which it starts from and has not learned not to write
)
"""Fields without which a family of models does not work."""
IMMATERIAL = ("transformers_version", "use_cache", "output_attentions", "output_hidden_states")
"""Fields that change no token; their removal is not reported."""
logger = logging.getLogger(__name__)


def generation_config(
    model: Any, settings: GenerationConfig | None = None, max_new_tokens: int | None = None
) -> TransformersConfig:
    """Return what the model's family needs, with a run's settings.

    Args:
        model: any model that generates.
        settings: the section `generation`; None leaves Transformers' defaults.
        max_new_tokens: the largest length of a summary; None leaves it out.

    Raises:
        UserError: as `check_tokens`.
    """
    if settings:
        check_tokens(model, settings)
    own = {name: getattr(model.generation_config, name, None) for name in NEEDED}
    if own["bad_words_ids"] != [[own["pad_token_id"]]]:
        own["bad_words_ids"] = None
    options = settings.options() if settings else {}
    length = {} if max_new_tokens is None else {"max_new_tokens": max_new_tokens}
    return TransformersConfig(**{k: v for k, v in own.items() if v is not None} | options | length)


def complete_tokens(model: Any, name: str) -> None:
    """Complete and check the ids of the tokens with which a model starts, ends and pads what it writes.

    Training reads them from config.json, generation from generation_config.json. Where one of the two lacks
    an id, it gets the other's: without it, the first step fails, or summaries never end.

    Args:
        model: as loaded; on any device, also the meta device.
        name: the model as errors name it.

    Raises:
        UserError: an id is missing in both, or is not in the vocabulary.
    """
    places = {"config.json": model.config, "generation_config.json": model.generation_config}
    head = model.get_output_embeddings()
    size = max(embedding_rows(model) or 0, getattr(head, "out_features", 0))
    for field in ("decoder_start_token_id", "eos_token_id", "pad_token_id"):
        found = {place: getattr(holder, field, None) for place, holder in places.items()}
        for place, value in found.items():
            ids = value if isinstance(value, list) and field == "eos_token_id" else [value]
            if value is not None and not all(type(n) is int and 0 <= n < size for n in ids):
                raise UserError(
                    f"{name}: {field}={value!r} in its {place} must be the number of a token, from 0 to "
                    f"{size - 1}: correct it, or download the model again"
                )
        for place, holder in places.items():
            if found[place] is None and (known := [value for value in found.values() if value is not None]):
                setattr(holder, field, known[0])
    generation = model.generation_config
    missing = [field for field in ("eos_token_id", "pad_token_id") if getattr(generation, field) is None]
    if generation.decoder_start_token_id is None and generation.bos_token_id is None:
        missing.append("decoder_start_token_id")
    reason = f"it has no {' and no '.join(missing)}" if missing else _why_labels_do_not_shift(model)
    if reason:
        raise UserError(
            f"{name}: the model cannot train and write, because {reason}: add it to its config.json, with "
            "the number that its tokenizer or the published models of its family have (T5 starts with its "
            "pad token, 0)"
        )


def _why_labels_do_not_shift(model: Any) -> str:
    """Return why the decoder's inputs cannot be made from labels, as training does; empty if they can."""
    shift = getattr(model, "prepare_decoder_input_ids_from_labels", None)
    pads = {getattr(holder, "pad_token_id", None) for holder in (model.config, model.generation_config)}
    text = min({0, 1, 2} - pads)  # FSMT looks for the last token beside padding
    try:
        if shift:
            shift(labels=torch.full((1, 2), text))
    except Exception as error:  # each family has its own, where an id is missing
        return first_line(error).rstrip(".")
    return ""


def check_tokens(model: Any, settings: GenerationConfig) -> None:
    """Check that a model knows the tokens that it has to write.

    Raises:
        UserError: an id is not in its vocabulary.
    """
    is_exported = isinstance(model, ExportedModel)
    size = (None if is_exported else embedding_rows(model)) or model.config.vocab_size
    for name in ("forced_bos_token_id", "forced_eos_token_id"):
        if (token := getattr(settings, name)) is not None and token >= size:
            raise UserError(
                f"generation.{name}={token} must be below {size}, the size of the model's vocabulary"
            )


def keep_needed(model: Any, name: str) -> TransformersConfig:
    """Reduce a model's generation settings to what its family needs, and return those of its checkpoint.

    Args:
        model: as loaded.
        name: the model as the user wrote it; the log says which of its settings are not used. An empty name
            logs nothing.
    """
    brought: TransformersConfig = model.generation_config
    model.generation_config = generation_config(model)
    found = {k: v for k, v in brought.to_diff_dict().items() if not k.startswith("_")}
    kept = model.generation_config.to_dict()
    unused = {k: v for k, v in found.items() if k not in IMMATERIAL and v is not None and v != kept.get(k)}
    if unused and name:
        listed = ", ".join(f"{key}={value!r}" for key, value in sorted(unused.items()))
        logger.info("%s brings generation settings that are not used: %s", name, listed)
    first = model.generation_config.forced_bos_token_id
    if name and first is not None and all(row[0] == "text" for row in family_of(model).labels):
        logger.info(
            "%s brings forced_bos_token_id=%d: every text that is written begins with this token, which no "
            "row of labels does; generation.forced_bos_token_id replaces it",
            *(name, first),
        )
    return brought
