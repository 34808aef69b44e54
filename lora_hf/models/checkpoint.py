"""Check a base model's checkpoint: whole files, every tensor in its place, values that a model can have.

Transformers fills missing tensors with random numbers, drops those that it does not know, and only logs both;
it takes integers for weights, and NaN or zeros as they come: a run on such a base ends without an error, with
a score of 0. `check_checkpoint` loads names and shapes alone, onto the meta device, which takes a fraction of
a second; `check_values` reads every value.
"""

from collections.abc import Collection, Iterable, Iterator
from math import isfinite
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor
from transformers import AutoModelForSeq2SeqLM, PretrainedConfig
from transformers.integrations.deepspeed import is_deepspeed_zero3_enabled

from lora_hf.adapters.checkpoint_io import DAMAGED, list_differences, read_dtypes
from lora_hf.errors import UserError
from lora_hf.files import read_object, refuse_git_lfs_pointer
from lora_hf.hub.download import INDEX, SINGLE

LOADED = ("*.safetensors", "*.json", "*.model", "*.txt")
"""Files of a folder that loading a model and its tokenizer may read."""
QUANTIZED = (".SCB", ".absmax", ".quant_map", ".quant_state")
"""Parts of the names of tensors that bitsandbytes saves beside a quantized weight."""
AGAIN = "download the model again"
UNQUANTIZED = (
    "give the checkpoint before quantization "
    "(model.load_in_4bit or model.load_in_8bit quantizes it while it is loaded)"
)
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

    Weights have to be floating-point numbers, unless config.json says how they are quantized.

    Args:
        folder: the files of the model.
        model: the model as errors name it.

    Returns:
        The number of bits if the weights are stored quantized by bitsandbytes, or None for dense weights.

    Raises:
        UserError: a Git LFS pointer, an incomplete file, weights in a format that cannot be loaded; missing,
            unexpected or mis-shaped tensors; integers in the place of a weight.
    """
    refuse_pointers(Path(folder))
    dtypes = {key: x for file in checkpoint_files(Path(folder)) for key, x in read_dtypes(file).items()}
    settings, _ = PretrainedConfig.get_config_dict(folder)
    bits = stored_bits(settings, model)
    if bits and dtypes and not any(part in key for key in dtypes for part in QUANTIZED):
        raise UserError(
            f"{model}: quantization_config in its config.json says that the weights have {bits} bits, but "
            f"they are dense: remove that entry, and set model.load_in_{bits}bit: true"
        )
    # Neither packed weights nor DeepSpeed's parts have the model's shapes: loading checks their names.
    if not bits and not is_deepspeed_zero3_enabled():
        empty = load_checkpoint(folder, model, device_map="meta", ignore_mismatched_sizes=True)
        if settings.get("tie_word_embeddings") is False:
            _check_head(empty, dtypes.keys(), model)
        _check_dtypes(empty, dtypes, model)
    return bits


def file_tensors(files: Iterable[Path]) -> Iterator[tuple[str, Tensor]]:
    """Yield the names and tensors of safetensors files one at a time, on the CPU.

    Raises:
        UserError: a file cannot be read.
    """
    for file in files:
        try:
            with safe_open(file, framework="pt") as tensors:
                for name in sorted(tensors.keys()):
                    yield name, tensors.get_tensor(name)
        except (OSError, SafetensorError) as error:
            raise UserError(f"{file} {DAMAGED}: {error}") from error


def check_values(tensors: Iterable[tuple[str, Tensor]], model: str) -> None:
    """Check that all values are finite and that no matrix is zero as a whole.

    One pass over the floating-point tensors, on their device. Skipped are integers, tensors on the meta
    device, and those without values on this process (DeepSpeed ZeRO-3). Zeros in one row are allowed, because
    embeddings of padding have them, and BART stores its `final_logits_bias` as a matrix of one row.

    Args:
        tensors: names and tensors of any shape, as a loaded model or the files of a checkpoint have them.
        model: the model as errors name it.

    Raises:
        UserError: a tensor has NaN or infinite values, or a matrix is all zeros.
    """
    for name, tensor in tensors:
        if tensor.is_meta or not tensor.is_floating_point() or not tensor.numel():
            continue
        values = tensor.detach()
        if values.element_size() < 2:  # PyTorch finds no minimum of 8-bit floats
            values = values.to(torch.bfloat16)
        low, high = (value.item() for value in values.aminmax())  # NaN if any value is
        if not isfinite(low) or not isfinite(high):
            overflow = (
                "; or, if the file holds values beyond ±65,504, which float16 cannot represent, set "
                "model.dtype: float32"
            )
            raise UserError(
                f"{model}: {name} has values that are not finite (NaN or infinity), so its file is damaged: "
                f"{AGAIN}{overflow if tensor.dtype == torch.float16 else ''}"
            )
        if low == high == 0 and tensor.ndim > 1 and len(tensor) > 1:
            raise UserError(
                f"{model}: {name} {tuple(tensor.shape)} is all zeros, as after an incomplete download or "
                f"copy: {AGAIN}"
            )


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
            f"weights quantized by bitsandbytes can be loaded; {UNQUANTIZED}"
        )
    return bits


def _check_dtypes(empty: Any, dtypes: dict[str, str], model: str) -> None:
    """Refuse integers in the place of a parameter: without their scales they are another model's weights."""
    prefix = f"{empty.base_model_prefix}."  # which a checkpoint may omit or add, such as BART's `model`
    parameters = {name.removeprefix(prefix) for name, _ in empty.named_parameters()}
    for key, dtype in sorted(dtypes.items()):
        if dtype.startswith(("I", "U", "BOOL")) and key.removeprefix(prefix) in parameters:
            raise UserError(
                f"{model}: {key} is stored as integers ({dtype}), but config.json has no quantization_config "
                f"that says how to convert them to weights: {UNQUANTIZED}"
            )


def _check_head(empty: Any, names: Collection[str], model: str) -> None:
    """Require the head of a model whose config.json says that it is untied: T5's classes would tie it."""
    head = empty.get_output_embeddings()
    keys = [f"{name}.weight" for name, module in empty.named_modules() if module is head]
    if missing := [key for key in keys if key in (empty._tied_weights_keys or {}) and key not in names]:
        raise UserError(
            f"{model}: {MISFIT} 1 missing: {missing[0]}, although it is not tied to the embeddings "
            f"(tie_word_embeddings: false): {AGAIN}"
        )
