"""Check a base model's checkpoint: whole files, and every tensor of the architecture in its place.

Transformers fills missing tensors with random numbers, drops those that it does not know, and only logs both;
and it takes integers for weights: a run on such a base ends without an error, with a score of 0.
`check_checkpoint` loads names and shapes alone, onto the meta device, which takes a fraction of a second.
"""

import os
import re
from collections.abc import Collection, Iterable, Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from transformers import AutoModelForSeq2SeqLM, PretrainedConfig
from transformers.integrations.deepspeed import is_deepspeed_zero3_enabled

from lora_hf.adapters.checkpoint_io import DAMAGED, list_differences, read_dtypes, read_shapes
from lora_hf.errors import UserError
from lora_hf.files import file_state, read_object
from lora_hf.hub.download import INDEX, SINGLE, no_weights
from lora_hf.models.base_files import AGAIN
from lora_hf.models.generation import complete_tokens
from lora_hf.models.special_tokens import complete_model

QUANTIZED = (".SCB", ".absmax", ".quant_map", ".quant_state")
"""Parts of the names of tensors that bitsandbytes saves beside a quantized weight."""
FORM = {
    "return_dict": True,
    "is_encoder_decoder": True,
    "output_attentions": False,
    "output_hidden_states": False,
}
"""Fields that are read as these, whatever config.json says: otherwise a step, a summary or saving fails."""
UNQUANTIZED = (
    "give the checkpoint before quantization "
    "(model.load_in_4bit or model.load_in_8bit quantizes it while it is loaded)"
)
COMPUTED = (".version", "._float_tensor")
"""Ends of the names of tensors that fairseq writes for itself; converted checkpoints can still have them."""
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
    index = read_object(folder / INDEX)
    shards = index.get("weight_map")
    if (
        not isinstance(shards, dict)
        or not shards
        or not all(isinstance(name, str) for name in shards.values())
    ):
        raise UserError(f"{folder / INDEX} has no weight_map from tensors to files: {AGAIN}")
    if not isinstance(index.get("metadata"), dict):
        raise UserError(f'{folder / INDEX} has no object "metadata": add "metadata": {{}} to it, or {AGAIN}')
    files = [folder / shard for shard in sorted(set(shards.values()))]
    if missing := [file.name for file in files if not file.is_file()]:
        raise UserError(f"{folder} lacks {', '.join(missing)}, which {INDEX} names: {AGAIN}")
    return files


def check_checkpoint(folder: str, model: str) -> int | None:
    """Check that a checkpoint has all tensors of its architecture, in the right shapes, and no others.

    Weights have to be floating-point numbers, unless config.json says how they are quantized. A folder that
    this process has checked is not checked again while its files stay the same: it takes as long as loading
    a small model.

    Args:
        folder: the files of the model.
        model: the model as errors name it.

    Returns:
        The number of bits if the weights are stored quantized by bitsandbytes, or None for dense weights.

    Raises:
        UserError: a Git LFS pointer, an incomplete file, weights in a format that cannot be loaded; missing,
            unexpected or mis-shaped tensors; integers in the place of a weight.
    """
    files = checkpoint_files(Path(folder))
    if not files:
        raise UserError(f"{model}: the folder has {no_weights(os.listdir(folder))}")
    beside = sorted(path for path in Path(folder).iterdir() if path.is_file())
    # Neither packed weights nor DeepSpeed's parts have the model's shapes: loading checks their names.
    return _checked(folder, model, tuple(map(file_state, [*files, *beside])), is_deepspeed_zero3_enabled())


@lru_cache
def _checked(folder: str, model: str, state: tuple[Any, ...], is_in_parts: bool) -> int | None:
    files = checkpoint_files(Path(folder))
    dtypes = {key: x for file in files for key, x in read_dtypes(file).items()}
    settings, _ = PretrainedConfig.get_config_dict(folder)
    bits = stored_bits(settings, model)
    if bits and dtypes and not any(part in key for key in dtypes for part in QUANTIZED):
        raise UserError(
            f"{model}: quantization_config in its config.json says that the weights have {bits} bits, but "
            f"they are dense: remove that entry, and set model.load_in_{bits}bit: true"
        )
    if not bits and not is_in_parts:
        empty = load_checkpoint(folder, model, device_map="meta", ignore_mismatched_sizes=True)
        if settings.get("tie_word_embeddings") is False:
            _check_untied(empty, dtypes.keys(), model)
        _check_dtypes(empty, dtypes, model)
    return bits


def _resized(mismatched: Iterable[tuple[str, Sequence[int], Sequence[int]]]) -> str:
    """Return what to do where the embeddings alone differ, as `resize_token_embeddings` leaves them.

    T5Gemma's configuration has its vocabulary's size in three places, of which Transformers changes one.

    Args:
        mismatched: name, shape in the weights and shape by config.json of each tensor.
    """
    sizes = {(found[0], expected[0]) for _, found, expected in mismatched if found[1:] == expected[1:]}
    if len(sizes) != 1 or not all(re.search("embed|shared|lm_head", name) for name, _, _ in mismatched):
        return ""
    ((found, expected),) = sizes
    return f"; if its vocabulary was resized, set each vocab_size of {expected} in config.json to {found}"


def load_checkpoint(folder: str, model: str, **options: Any) -> Any:
    """Call `from_pretrained`, and require that no tensor is missing and every one of the checkpoint is used.

    The head of another task, which a checkpoint may have beside this model's parts, is ignored.

    Args:
        folder: the files of the model.
        model: the model as errors name it.
        options: keyword arguments of `from_pretrained`.

    Raises:
        UserError: missing, unexpected or mis-shaped tensors; as `complete_tokens`.
    """
    options = {"use_safetensors": True, "trust_remote_code": False} | FORM | options
    try:
        loaded, info = AutoModelForSeq2SeqLM.from_pretrained(folder, output_loading_info=True, **options)
    except SafetensorError as error:
        raise UserError(f"{model}: a file of its weights {DAMAGED}: {error}") from error
    parts = {name for module in (loaded, loaded.base_model) for name in [*module._modules, *module._buffers]}
    _check_wrapped(info["missing_keys"], info["unexpected_keys"], model)
    differences = list_differences(
        missing=info["missing_keys"],
        unexpected=[
            key
            for key in info["unexpected_keys"]
            if key.split(".")[0] in parts and not _is_computed(loaded, key)
        ],
        reshaped=[
            f"{key} is {tuple(found)} in the weights and {tuple(expected)} by config.json"
            for key, found, expected in info["mismatched_keys"]
        ],
    )
    if differences:
        raise UserError(
            f"{model}: {MISFIT} {differences}. The folder was saved or downloaded incompletely, or "
            f"config.json belongs to another model: {AGAIN}{_resized(info['mismatched_keys'])}"
        )
    complete_model(loaded, Path(folder), model)
    complete_tokens(loaded, model)
    return loaded


def _is_computed(model: Any, key: str) -> bool:
    """Return whether a tensor of a file is one that the model makes itself, such as M2M100's positions."""
    saved = model.state_dict().keys()
    prefix = f"{model.base_model_prefix}."
    own = {name.removeprefix(prefix) for name, _ in model.named_buffers() if name not in saved}
    return key.endswith(COMPUTED) or key.removeprefix(prefix) in own


def _check_wrapped(missing: Collection[str], unexpected: Collection[str], model: str) -> None:
    """Refuse tensors that are all there under the names of a wrapper, or of a model with adapters in it."""
    pairs = ((name, key) for name in unexpected for key in missing if name.endswith(f".{key}"))
    name, key = max(pairs, key=lambda pair: len(pair[1]), default=("", ""))
    prefix = name.removesuffix(key)
    if prefix and all(name.startswith(prefix) for name in unexpected):
        raise UserError(
            f"{model}: {MISFIT} its tensors' names begin with {prefix!r}, as a wrapper's state_dict has them "
            "(DataParallel, torch.compile, Lightning). Save the model inside the wrapper by "
            f"`save_pretrained`, or write its file with `name.removeprefix({prefix!r})` for each name"
        )
    if inside := [name for name in unexpected if ".base_layer." in name or ".lora_A" in name]:
        raise UserError(
            f"{model}: {MISFIT} it was saved with adapters in it, as {min(inside)!r} shows. Load it where it "
            "was saved, merge the adapters (`merge_and_unload`) and save it again"
        )


def packed_weights(files: Iterable[Path]) -> set[str]:
    """Return the weights of safetensors files that bitsandbytes quantized, by the tensors beside them.

    4 bits are bytes in any dtype, such as bfloat16 (`bnb_4bit_quant_storage`, for FSDP).

    Raises:
        UserError: a file cannot be read.
    """
    names = {name for file in files for name in read_shapes(file)}
    return {
        name for name in names if f"{name}.quant_map" in names or f"{name.removesuffix('weight')}SCB" in names
    }


def stored_bits(settings: dict[str, Any], model: str) -> int | None:
    """Return the bits in which weights are stored according to config.json; None if they are dense.

    Raises:
        UserError: they are quantized by another library than bitsandbytes.
    """
    stored = settings.get("quantization_config")
    if stored is None:
        return None
    if not isinstance(stored, dict):
        raise UserError(
            f"{model}: quantization_config={stored!r} in its config.json must be an object: if the weights "
            f"are dense, remove that entry; otherwise {UNQUANTIZED}"
        )
    method = stored.get("quant_method", "bitsandbytes")
    if method != "bitsandbytes":
        raise UserError(
            f"{model}: quantization_config in its config.json names quant_method {method!r}, but only "
            f"weights quantized by bitsandbytes can be loaded; {UNQUANTIZED}"
        )
    bits = next((n for n in (4, 8) if stored.get(f"load_in_{n}bit")), None)
    if bits is None:
        raise UserError(
            f"{model}: quantization_config in its config.json sets neither load_in_4bit nor load_in_8bit: "
            f"if the weights are dense, remove that entry; otherwise {UNQUANTIZED}"
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


def _check_untied(empty: Any, names: Collection[str], model: str) -> None:
    """Require head and embeddings of a model whose config.json says that they are untied.

    T5's classes would fill the one that is missing with the other.
    """
    head, embeddings = empty.get_output_embeddings(), empty.get_input_embeddings()
    prefix = f"{empty.base_model_prefix}."
    names = {name.removeprefix(prefix) for name in names}  # T5's is `transformer`
    tied = empty._tied_weights_keys or {}
    places: dict[str, list[str]] = {"embeddings": [], "head": []}
    for name, module in empty.named_modules(remove_duplicate=False):
        if module is head:
            places["head"].append(f"{name}.weight")
        elif module is embeddings or f"{name}.weight" in tied:  # older files have them once for each stack
            places["embeddings"].append(f"{name}.weight")
    if not {*places["head"]}.intersection(tied):
        return
    ends = {name.split(".")[-2] for name in names if name.endswith(".weight")}
    for what, other in (("head", "embeddings"), ("embeddings", "head")):
        keys = places[what]
        is_missing = names.isdisjoint(key.removeprefix(prefix) for key in keys)
        if what == "embeddings":  # T5Gemma2's are written with another path before their name
            is_missing = ends.isdisjoint(key.split(".")[-2] for key in keys)
        if keys and is_missing:
            raise UserError(
                f"{model}: {MISFIT} 1 missing: {keys[0]}, although it is not tied to the {other} "
                f"(tie_word_embeddings: false): {AGAIN}"
            )
