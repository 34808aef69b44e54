"""Check a base model's checkpoint before its weights are loaded: whole files, and every tensor in its place.

Transformers fills missing tensors with random numbers, drops those that it does not know, and only logs both:
a run on such a base ends without an error, with a score of 0. `check_checkpoint` loads names and shapes
alone, onto the meta device, which takes a fraction of a second.
"""

from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from transformers import AutoModelForSeq2SeqLM, PretrainedConfig
from transformers.integrations.deepspeed import is_deepspeed_zero3_enabled

from lora_hf.adapters.checkpoint_io import DAMAGED, list_differences, read_shapes
from lora_hf.errors import UserError
from lora_hf.files import read_object, refuse_git_lfs_pointer
from lora_hf.hub.download import INDEX, SINGLE

LOADED = ("*.safetensors", "*.json", "*.model", "*.txt")
"""Files of a folder that loading a model and its tokenizer may read."""
QUANTIZED = (".SCB", ".absmax", ".quant_map", ".quant_state")
"""Parts of the names of tensors that bitsandbytes saves beside a quantized weight."""
AGAIN = "download the model again"
MISFIT = "its weights do not fit its config.json:"


def checkpoint_files(folder: Path) -> list[Path]:
    """Return the safetensors files of a model: one file, or the shards that the index names.

    Raises:
        UserError: the index cannot be read, or names a file that is not there.
    """
    if (folder / SINGLE).is_file():
        return [folder / SINGLE]
    if not (folder / INDEX).is_file():
        return []
    shards = read_object(folder / INDEX).get("weight_map")
    if not isinstance(shards, dict) or not all(isinstance(shard, str) for shard in shards.values()):
        raise UserError(f"{folder / INDEX} has no weight_map from tensors to files: {AGAIN}")
    files = [folder / shard for shard in sorted(set(shards.values()))]
    if missing := [file.name for file in files if not file.is_file()]:
        raise UserError(f"{folder} lacks {', '.join(missing)}, which {INDEX} names: {AGAIN}")
    return files


def refuse_pointers(folder: Path) -> None:
    """Raise a UserError if Git LFS has left a pointer in the place of a file that loading may read."""
    for file in sorted(file for pattern in LOADED for file in folder.glob(pattern)):
        refuse_git_lfs_pointer(file)


def check_checkpoint(folder: str, model: str) -> int | None:
    """Check that a checkpoint has all tensors of its architecture, in the right shapes, and no others.

    Args:
        folder: the files of the model.
        model: the model as errors name it.

    Returns:
        The number of bits if the weights are stored quantized by bitsandbytes, or None for dense weights.

    Raises:
        UserError: a Git LFS pointer, an incomplete file, weights in a format that cannot be loaded; missing,
            unexpected or mis-shaped tensors.
    """
    refuse_pointers(Path(folder))
    names = {key for file in checkpoint_files(Path(folder)) for key in read_shapes(file)}
    settings, _ = PretrainedConfig.get_config_dict(folder)
    bits = stored_bits(settings, model)
    if bits and names and not any(part in key for key in names for part in QUANTIZED):
        raise UserError(
            f"{model}: quantization_config in its config.json says that the weights have {bits} bits, but "
            f"they are dense: remove that entry, and set model.load_in_{bits}bit: true"
        )
    # Neither packed weights nor DeepSpeed's parts have the model's shapes: loading checks their names.
    if not bits and not is_deepspeed_zero3_enabled():
        empty = load_checkpoint(folder, model, device_map="meta", ignore_mismatched_sizes=True)
        if settings.get("tie_word_embeddings") is False:
            _check_head(empty, names, model)
    return bits


def load_checkpoint(folder: str, model: str, **options: Any) -> Any:
    """Call `from_pretrained`, and require that no tensor is missing and every one of the checkpoint is used.

    The head of another task, which a checkpoint may have beside this model's parts, is ignored.

    Args:
        folder: the files of the model.
        model: the model as errors name it.
        options: keyword arguments of `from_pretrained`.

    Raises:
        UserError: missing, unexpected or mis-shaped tensors.
    """
    options = {"use_safetensors": True, "trust_remote_code": False} | options
    try:
        loaded, info = AutoModelForSeq2SeqLM.from_pretrained(folder, output_loading_info=True, **options)
    except SafetensorError as error:
        raise UserError(f"{model}: a file of its weights {DAMAGED}: {error}") from error
    parts = {name for module in (loaded, loaded.base_model) for name in [*module._modules, *module._buffers]}
    differences = list_differences(
        missing=info["missing_keys"],
        unexpected=[key for key in info["unexpected_keys"] if key.split(".")[0] in parts],
        reshaped=[
            f"{key} is {tuple(found)} in the weights and {tuple(expected)} by config.json"
            for key, found, expected in info["mismatched_keys"]
        ],
    )
    if differences:
        raise UserError(
            f"{model}: {MISFIT} {differences}. The folder was saved or downloaded incompletely, or "
            f"config.json belongs to another model: {AGAIN}"
        )
    return loaded


def stored_bits(settings: dict[str, Any], model: str) -> int | None:
    """Return the bits in which weights are stored according to config.json; None if they are dense.

    Raises:
        UserError: they are quantized by another library than bitsandbytes.
    """
    stored = settings.get("quantization_config")
    if stored is None:
        return None
    fields = stored if isinstance(stored, dict) else {}
    method = fields.get("quant_method", "bitsandbytes")
    bits = next((n for n in (4, 8) if fields.get(f"load_in_{n}bit")), None)
    if bits is None or method != "bitsandbytes":
        raise UserError(
            f"{model}: quantization_config in its config.json names quant_method {method!r}, but only "
            "weights quantized by bitsandbytes can be loaded; give the checkpoint before quantization "
            "(model.load_in_4bit or model.load_in_8bit quantizes it while it is loaded)"
        )
    return bits


def _check_head(empty: Any, names: set[str], model: str) -> None:
    """Require the head of a model whose config.json says that it is untied: T5's classes would tie it."""
    head = empty.get_output_embeddings()
    keys = [f"{name}.weight" for name, module in empty.named_modules() if module is head]
    if missing := [key for key in keys if key in (empty._tied_weights_keys or {}) and key not in names]:
        raise UserError(
            f"{model}: {MISFIT} 1 missing: {missing[0]}, although it is not tied to the embeddings "
            f"(tie_word_embeddings: false): {AGAIN}"
        )
