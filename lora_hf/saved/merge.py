"""Merge a saved adapter into its base, as a plain Transformers folder, and measure the error of merging."""

import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any, cast

import torch

from lora_hf.adapters import merge_and_unload, merge_errors
from lora_hf.adapters.merge import CHOICES
from lora_hf.adapters.saved_adapter import SavedAdapter
from lora_hf.config import DataConfig
from lora_hf.config.model import Dtype
from lora_hf.data.collate import collator
from lora_hf.data.splits import load_split
from lora_hf.data.tokenize import TokenizedDialogues
from lora_hf.errors import UserError, did_you_mean
from lora_hf.files import check_new, whole_output
from lora_hf.memory import out_of_memory_reported
from lora_hf.models.languages import set_language
from lora_hf.models.load import stored_dtype
from lora_hf.models.plain_folder import public_name, save_model
from lora_hf.models.positions import positions_of, within_positions
from lora_hf.models.storage import STORAGE_FORMATS
from lora_hf.saved.find_adapter import (
    base_config,
    find_adapter,
    load_with_base,
    settings_on_base,
    settings_on_sample,
)
from lora_hf.system import DTYPES
from lora_hf.training.registry import saved_method

SMALLER_MERGE = (
    "--dtype bfloat16 takes half the memory of float32, and CUDA_VISIBLE_DEVICES= before the command merges "
    "in the machine's own memory"
)
COMPARED_DIALOGUES = 8
"""Dialogues of the package's test split on which merged and unmerged logits are compared."""


def merge(
    adapter: str,
    output: Path,
    base: str | None,
    onto: str | None,
    generation: Mapping[str, Any] | None = None,
    check: bool = False,
    dtype: str | None = None,
) -> dict[str, float]:
    """Write the merged model as a plain Transformers folder, with its tokenizer.

    Args:
        adapter: a folder, or USER/NAME[@REVISION] on the Hub.
        output: a new folder.
        base: the base model, or None for the one the adapter names.
        onto: for a quantized base, which weights to merge into: `checkpoint`, `dequantized` or
            `requantized`.
        generation: fields of `generation` that replace the adapter's.
        check: read the written model again and compare its logits, however large it is.
        dtype: data type of the written weights; None takes that of the base's checkpoint, on any machine.

    Returns:
        For each choice of `onto` (or `merged`) the relative error of the logits on a sample.

    Raises:
        UserError: `output` exists and is not an empty folder; not a LoRA adapter; or a quantized base without
            a choice: the message lists the error of each; or lengths beyond the base's positions.
        WrittenModelDiffers: the folder gives other logits than the model in memory.
    """
    check_new(output)
    saved = find_adapter(adapter)
    if (method := saved_method(saved)) != "lora":
        raise UserError(
            f"--adapter {adapter!r} holds a {method}, which does not change weights and cannot be merged; "
            "use it unmerged with `lora-hf predict`"
        )
    if onto not in (None, *CHOICES):
        raise UserError(f"--onto {onto!r} must be one of {list(CHOICES)}.{did_you_mean(onto, CHOICES)}")
    if dtype is not None and dtype not in DTYPES:
        raise UserError(f"--dtype {dtype!r} must be one of {list(DTYPES)}.{did_you_mean(dtype, DTYPES)}")
    settings = settings_on_base(saved, base_config(saved, base), "generation", generation or {})
    # The dtype that the base was frozen in while training, bfloat16 on a GPU, would round the merged weights.
    written = cast(Dtype, dtype) if dtype else stored_dtype(base_config(saved, base))
    model, tokenizer = load_with_base(saved, base, written)
    set_language(model, tokenizer, settings.data)
    with out_of_memory_reported(lambda: f"merging {adapter}", SMALLER_MERGE):
        errors = merge_errors(model, sample_batch(model, tokenizer, saved))
    stored = base_config(saved, base)
    if (
        stored.quantize_wo or not STORAGE_FORMATS[stored.storage].is_plain
    ):  # Transformers keeps T5's `wo` dense
        errors.pop("requantized", None)
    check_choice(adapter, onto, errors)
    with out_of_memory_reported(lambda: f"merging {adapter}", SMALLER_MERGE):
        merge_and_unload(model, onto)
    with whole_output(output) as folder:
        origin = f"{public_name(str(model.name_or_path))} with a trained adapter merged into its weights."
        save_model(model, tokenizer, folder, settings, origin, check)
    return errors


def check_choice(adapter: str, onto: str | None, errors: dict[str, float]) -> None:
    """Require a choice for a quantized base, and none for a dense one.

    Raises:
        UserError: otherwise; the message lists the error of each choice.
    """
    if "merged" in errors:
        if onto is not None:
            raise UserError(
                f"--onto {onto!r} is for a quantized base, and that of {adapter} is dense: leave out --onto"
            )
        return
    if onto not in errors:
        each = ", ".join(f"{name} {error:.1e}" for name, error in errors.items())
        refused = "--onto is missing" if onto is None else f"--onto {onto!r} is not possible for this adapter"
        raise UserError(
            f"{refused}: the base of {adapter} is quantized, so choose the weights to merge into: "
            f"--onto {' or '.join(errors)} (relative error of the logits: {each})"
        )


def sample_batch(model: Any, tokenizer: Any, saved: SavedAdapter) -> dict[str, torch.Tensor]:
    """Return a batch of dialogues from the embedded sample, in the adapter's prompt, with labels."""
    longest = min(DataConfig().max_target_length, positions_of(model.config)[1] or sys.maxsize)
    settings = settings_on_sample(saved, max_test_samples=COMPARED_DIALOGUES, max_target_length=longest)
    config = within_positions(settings, model.config, str(model.name_or_path)).data
    rows = TokenizedDialogues(load_split(config, "test"), tokenizer, config, "test").rows
    batch: dict[str, torch.Tensor] = collator(tokenizer, model)(rows)
    return {key: value.to(model.device) for key, value in batch.items()}
