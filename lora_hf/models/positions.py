"""The lengths of a config against the positions that a model has embeddings for."""

import logging
from dataclasses import replace
from functools import lru_cache, partial, reduce
from typing import Any

import torch
from torch import nn
from transformers import AutoConfig, AutoModel

from lora_hf.config import DataConfig, GenerationConfig
from lora_hf.config.prediction import PredictionSettings
from lora_hf.errors import UserError
from lora_hf.families import family_of

logger = logging.getLogger(__name__)


def positions_of(settings: Any) -> tuple[int | None, int | None]:
    """Return the largest numbers of tokens of encoder and decoder; None where any length is possible.

    Args:
        settings: the model's Transformers configuration.
    """
    family = family_of(settings)
    if not family.positions:
        return None, None
    encoder, decoder = (_positions(settings, path) for path in family.positions)
    if decoder is not None and family.reads_ahead:
        decoder -= settings.pad_token_id + 2
    if encoder is not None:
        encoder -= encoder % _multiple(settings)
    return encoder, decoder


def _positions(settings: Any, path: str) -> int | None:
    """Return the number of tokens that have positions, by a field of config.json or of a part's."""
    *parts, field = path.split(".")
    part = reduce(lambda part, name: getattr(part, name, None), parts, settings)
    number = getattr(part, field, None)
    if type(number) is not int:
        return None
    return number - (_first_position(part.model_type, part.pad_token_id) if parts else 0)


@lru_cache
def _first_position(model_type: str, pad: int | None) -> int:
    """Return the position of the first token: RoBERTa and its descendants begin after that of padding.

    They are known by the padding that their embeddings of positions have.
    """
    with torch.device("meta"):
        model = AutoModel.from_config(AutoConfig.for_model(model_type, pad_token_id=pad))
    for name, module in model.named_modules():
        if name.endswith("position_embeddings") and isinstance(module, nn.Embedding):
            return 0 if module.padding_idx is None else module.padding_idx + 1
    return 0


def keep_position_tables(model: nn.Module) -> None:
    """Save tables of positions with the size that config.json says, and load them into it.

    FSMT's tables are parameters that a longer text enlarges; Transformers cannot read them again.
    """
    for table in model.modules():
        if isinstance(table, nn.Embedding) and hasattr(table, "make_weight"):
            table.register_state_dict_post_hook(partial(_shortened, size=table.num_embeddings))
            table.register_load_state_dict_pre_hook(_shorten)


def _shortened(table: Any, state: dict[str, Any], prefix: str, _: Any, size: int) -> None:
    state[f"{prefix}weight"] = state[f"{prefix}weight"][:size]


def _shorten(table: Any, state: dict[str, Any], prefix: str, *_: Any) -> None:
    table.make_weight(table.num_embeddings, table.embedding_dim, table.padding_idx)


def _multiple(settings: Any) -> int:
    """Return the number to whose multiples the model pads its sources; LED's are its windows of attention."""
    window = getattr(settings, "attention_window", None) or 1
    return window if isinstance(window, int) else max(window)


def check_positions(
    settings: Any,
    data: DataConfig,
    generation: GenerationConfig,
    model: str,
    virtual_tokens: int = 0,
    has_labels: bool = True,
) -> None:
    """Check that sources and summaries are no longer than a model can take; it fails on longer ones.

    Args:
        settings: the model's Transformers configuration.
        data: its `max_source_length` is checked, and with labels its `max_target_length`.
        generation: its `max_new_tokens` is checked.
        model: the model as errors name it.
        virtual_tokens: number of positions before each source that prompt tuning takes.
        has_labels: whether target texts are tokenized.

    Raises:
        UserError: it names all fields that are too large, with the largest values that they may have.
    """
    encoder, decoder = positions_of(settings)
    sources = None if encoder is None else max(0, encoder - virtual_tokens)
    lengths = (
        ("data.max_source_length", data.max_source_length, sources),
        ("data.max_target_length", data.max_target_length if has_labels else None, decoder),
        ("generation.max_new_tokens", generation.max_new_tokens, decoder),
    )
    over = [(field, n, most) for field, n, most in lengths if n and most is not None and n > most]
    if not over:
        return
    given = " and ".join(f"{field}={n} (at most {most})" for field, n, most in over)
    reasons, remedy = [f"{model} has no embeddings for further positions"], "lower the length"
    if over[0][2] is sources and over[0][0] == "data.max_source_length":
        if virtual_tokens:
            reasons.append(f"{virtual_tokens} of its {encoder} positions are for virtual tokens")
            remedy = "lower the length, or prompt_tuning.num_virtual_tokens"
        if (multiple := _multiple(settings)) > 1:
            reasons.append(f"it pads sources to a multiple of {multiple} (attention_window={multiple})")
    raise UserError(f"{given}: {', and '.join(reasons)}; {remedy}")


def within_positions(
    settings: PredictionSettings, model: Any, name: str, virtual_tokens: int = 0, report: bool = True
) -> PredictionSettings:
    """Return settings whose lengths, where nobody set them, are at most what the model can take.

    An adapter that PEFT wrote, and a model by itself, record no lengths.

    Args:
        settings: prompt, lengths and generation settings.
        model: the model's Transformers configuration.
        name: the model as the log names it.
        virtual_tokens: number of positions before each source that prompt tuning takes.
        report: log once what was lowered.
    """
    encoder, decoder = positions_of(model)
    lowered = []
    if encoder and virtual_tokens:
        encoder = max(1, encoder - virtual_tokens)
    if encoder and encoder < settings.data.max_source_length:
        if "max_source_length" not in settings.data.model_fields_set:
            settings = replace(settings, data=settings.data.model_copy(update={"max_source_length": encoder}))
            lowered.append(f"sources are cut to {encoder} tokens")
    if decoder and decoder < settings.max_new_tokens and settings.generation.max_new_tokens is None:
        settings = replace(settings, max_new_tokens=decoder)
        lowered.append(f"at most {decoder} tokens are written")
    if lowered and report:
        _report(name, " and ".join(lowered))
    return settings


@lru_cache
def _report(name: str, lowered: str) -> None:
    logger.info("%s has no embeddings for further positions: %s", name, lowered)
