"""A checkpoint's own generation settings: what its family needs is kept, and nothing else is used.

A summarizer that was published with `min_length: 56` and four beams would otherwise write, in every run, by
settings that nobody asked for. The config's section `generation` says how summaries are written.
"""

import logging
from typing import Any

from transformers import GenerationConfig as TransformersConfig

from lora_hf.config import GenerationConfig
from lora_hf.errors import UserError

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
    options = settings.options() if settings else {}
    length = {} if max_new_tokens is None else {"max_new_tokens": max_new_tokens}
    return TransformersConfig(**{k: v for k, v in own.items() if v is not None} | options | length)


def check_tokens(model: Any, settings: GenerationConfig) -> None:
    """Check that a model knows the tokens that it has to write.

    Raises:
        UserError: an id is not in its vocabulary.
    """
    size = model.get_input_embeddings().num_embeddings
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
    unused = {k: v for k, v in found.items() if k not in (*NEEDED, *IMMATERIAL) and v is not None}
    if unused and name:
        listed = ", ".join(f"{key}={value!r}" for key, value in sorted(unused.items()))
        logger.info("%s brings generation settings that are not used: %s", name, listed)
    return brought
