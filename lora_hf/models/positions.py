"""The lengths of a config against the positions that a model has embeddings for."""

from functools import reduce
from typing import Any

from lora_hf.config import DataConfig, GenerationConfig
from lora_hf.errors import UserError
from lora_hf.families import family_of


def positions_of(settings: Any) -> tuple[int | None, int | None]:
    """Return the largest numbers of tokens of encoder and decoder; None where any length is possible.

    Args:
        settings: the model's Transformers configuration.
    """
    if not (paths := family_of(settings).positions):
        return None, None
    encoder, decoder = (
        reduce(lambda part, name: getattr(part, name, None), p.split("."), settings) for p in paths
    )
    return (encoder if type(encoder) is int else None), (decoder if type(decoder) is int else None)


def check_positions(settings: Any, data: DataConfig, generation: GenerationConfig, model: str) -> None:
    """Check that sources and summaries are no longer than a model can take; it fails on longer ones.

    Args:
        settings: the model's Transformers configuration.
        data: its `max_source_length` and `max_target_length` are checked.
        generation: its `max_new_tokens` is checked.
        model: the model as errors name it.

    Raises:
        UserError: it names all fields that are too large, with the largest values that they may have.
    """
    encoder, decoder = positions_of(settings)
    lengths = (
        ("data.max_source_length", data.max_source_length, encoder),
        ("data.max_target_length", data.max_target_length, decoder),
        ("generation.max_new_tokens", generation.max_new_tokens, decoder),
    )
    over = [(field, n, most) for field, n, most in lengths if n and most is not None and n > most]
    if over:
        given = " and ".join(f"{field}={n} (at most {most})" for field, n, most in over)
        raise UserError(f"{given}: {model} has no embeddings for further positions; lower the length")
