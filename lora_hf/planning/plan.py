"""Estimate the memory and disk of a run, and the GPUs that it fits."""

import math
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

import torch

from lora_hf.config import RunConfig
from lora_hf.config.task import SUMMARIZATION
from lora_hf.config.training import asks_to_compile
from lora_hf.data.sources import is_remote
from lora_hf.data.streaming import StreamedDialogues, load_train
from lora_hf.data.tokenize import TokenizedDialogues
from lora_hf.errors import UserError
from lora_hf.memory import free_memory
from lora_hf.models.flan_t5 import SIZES
from lora_hf.models.load import EMBEDDED, load_tokenizer
from lora_hf.models.storage import STORAGE_FORMATS
from lora_hf.planning.activations import Batch, NotCounted, activation_bytes, flan_t5_bytes
from lora_hf.planning.fake_model import (
    KEPT,
    Counts,
    count_weights,
    flan_t5,
    is_flan_t5,
    is_published,
    outline,
    settings_of,
    targets_of,
)
from lora_hf.system import DTYPES, pick_device, resolve_dtype

FLOAT = 4
MOMENTS = 2
"""float32 numbers that AdamW keeps per trainable weight."""
CARDS = (8, 16, 24, 40, 80)
"""Memory sizes of GPUs in GB."""
RESERVED = 2**30
"""Bytes reserved for a GPU's driver, libraries and the allocator's gaps; an assumption, not a measurement."""
FEWER = 4
"""Factor by which the batch is smaller in the plan that needs less memory."""
STORAGE_SHOWN = ("float32", "bfloat16", "nf4")
Plan = dict[str, Any]
Rows = TokenizedDialogues | StreamedDialogues


def plan(config: RunConfig) -> Plan:
    """Return the record of `plan_step`, with the run on GPUs, and what would make it fit a smaller one.

    Its further fields:

    - `free_bytes`: memory that is free on this machine's device, or None if that is unknown.
    - `ways`: the run on a GPU as it is configured, and if that needs more than the smallest of `CARDS`, with
      changes that need less memory. Each has its `overrides`, `peak_bytes` and `fits_gb`.
    - `sizes`: for a published FLAN-T5, the memory of the run on each size, without those whose layers the
      targets do not fit. Empty for other models.
    """
    own = plan_step(config)
    settings = settings_of(config.model)
    batch = Batch(*(own["batch"][field] for field in Batch._fields))
    own |= {"free_bytes": free_memory(pick_device()), "ways": _ways(config, own, settings, batch)}
    if not (is_flan_t5(settings) and is_published(settings)):
        return own | {"sizes": {}}
    names = STORAGE_SHOWN[:2] if config.method == "full" else STORAGE_SHOWN
    held = {dtype: flan_t5_bytes(config, dtype, batch) for dtype in {_computed(name) for name in names}}
    sizes: Plan = {}
    for size, shape in SIZES.items():
        with suppress(UserError):  # targets by whole names, which another size does not have
            counted = _count(config, flan_t5(size))
            of_shape = {dtype: bytes_of(shape) for dtype, bytes_of in held.items()}
            sizes[size] = {
                name: _fit(_memory(config, counted, name, of_shape[_computed(name)])) for name in names
            }
    return own | {"sizes": sizes}


def _ways(config: RunConfig, own: Plan, settings: Any, batch: Batch) -> list[Plan]:
    """Return the run on a GPU, as it is configured and with changes that need less memory."""
    if own["peak_bytes"] is None:
        return []
    dtype = "bfloat16" if config.model.dtype == "auto" or config.method == "full" else config.model.dtype
    storage = config.model.storage if config.model.is_quantized else dtype
    counted = _count(config, settings)

    def held(**training: Any) -> int:
        changed = config.model_copy(update={"training": config.training | training})
        return activation_bytes(changed, settings, _computed(storage), batch, fast=False)

    def way(storage: str, activations: int, *overrides: str) -> Plan:
        return {
            "store": storage,
            "overrides": list(overrides),
            **_fit(_memory(config, counted, storage, activations)),
        }

    plain = held()
    ways = [way(storage, plain)]
    if ways[0]["fits_gb"] == CARDS[0]:
        return ways
    smaller, quarter = plain, list[str]()
    if batch.dialogues >= FEWER:
        passes = FEWER * int(config.training.get("gradient_accumulation_steps", 1))
        quarter = [
            f"training.per_device_train_batch_size={batch.dialogues // FEWER}",
            f"training.gradient_accumulation_steps={passes}",
        ]
        smaller = plain * (batch.dialogues // FEWER) // batch.dialogues  # they grow with the batch
        ways.append(way(storage, smaller, *quarter))
    few, all_of = smaller, [*quarter]
    if not config.training.get("gradient_checkpointing"):
        few, again = held(gradient_checkpointing=True), "training.gradient_checkpointing=true"
        ways.append(way(storage, few, again))
        few, all_of = few * smaller // plain, [*all_of, again]
    if config.method != "full" and not config.model.is_quantized:
        ways.append(way("nf4", plain, "model.load_in_4bit=true"))
        storage, all_of = "nf4", [*all_of, "model.load_in_4bit=true"]
    return [*ways, way(storage, few, *all_of)] if len(ways) > 2 else ways


def plan_step(config: RunConfig, rows: Rows | None = None, read: bool = True) -> Plan:
    """Return the batch, the number of steps, the bytes of a step by kind, and the disk space of a run.

    For a model on the Hub other than FLAN-T5, config.json is downloaded; nothing else is.

    Args:
        config: the run.
        rows: its training split as token ids, if the caller has read it.
        read: without `rows`, read the training split if it is on this machine. Otherwise the longest rows
            that the config admits are assumed.

    Returns:
        A record. `targets` are the names that get adapters, `warnings` what is doubtful about them. Where
        the steps of a family cannot be traced, `activations` and `peak_bytes` are None, and `not_counted`
        says why.

    Raises:
        UserError: the run trains nothing, the model's config.json cannot be read, the targets do not fit the
            model, or the data on this machine is invalid.
    """
    if config.method == "base":
        raise UserError("method='base' trains nothing, so there is nothing to plan: use lora or full")
    settings, device = settings_of(config.model), pick_device()
    batch, steps, said = _work(config, local_rows(config) if rows is None and read else rows)
    dtype = str(trained_dtype(config, device)).removeprefix("torch.")
    storage = config.model.storage if config.model.is_quantized else dtype
    # on other devices and for compiled models, the reference path is an upper bound
    fast = config.fast_paths and device.type == "cpu" and not asks_to_compile(config.training)
    with outline(config, settings, torch.float32, is_run=False) as model:
        counted, targets = count_weights(model, config.method != "full"), targets_of(model)
    held, reason = None, {}
    try:
        held = activation_bytes(config, settings, _computed(storage), batch, fast)
    except NotCounted as error:
        reason = {"not_counted": str(error)}
    own = _memory(config, counted, storage, held)
    return {
        "model": config.model.model_name_or_path,
        "method": config.method,
        **({} if config.task == SUMMARIZATION else {"task": config.task.written()}),
        "device": device.type,
        "store": storage,
        "batch": batch._asdict() | {"lengths": said},
        "steps": steps,
        **targets._asdict(),
        **own,
        **reason,
        "disk": _disk(own),
    }


def _computed(storage: str) -> torch.dtype:
    """Return the dtype of the activations of a base in this storage format or dtype."""
    return DTYPES.get(storage, DTYPES["bfloat16"])


def memory(config: RunConfig, settings: Any, storage: str, activations: int | None) -> Plan:
    """Return the weights by part, and the bytes of weights, gradients, optimizer and activations."""
    return _memory(config, _count(config, settings), storage, activations)


def _count(config: RunConfig, settings: Any) -> Counts:
    with outline(config, settings, torch.float32, is_run=False) as model:
        return count_weights(model, config.method != "full")


def _memory(config: RunConfig, counted: Counts, storage: str, activations: int | None) -> Plan:
    dtype = _computed(storage)
    is_full = config.method == "full"
    parts, trainable, linear = counted
    width = FLOAT if is_full else dtype.itemsize  # full fine-tuning keeps its weights in float32
    weights = {part: n * (FLOAT if part == "added" else width) for part, n in parts.items()}
    if storage not in DTYPES:
        for part in ("encoder", "decoder"):
            weights[part] = _packed(config, storage, parts[part], linear[part], width)
    held: Plan = {
        "weights": weights,
        "gradients": trainable * FLOAT,
        "optimizer": trainable * FLOAT * MOMENTS,
        "activations": activations,
    }
    total = None
    if activations is not None:
        # The backward pass frees activations while it creates gradients: a step never holds all of both.
        step = max(activations, held["gradients"])
        total = sum(weights.values()) + trainable * FLOAT * MOMENTS + step
    return {"parameters": parts, "trainable": trainable, "bytes": held, "peak_bytes": total}


def _packed(config: RunConfig, storage: str, weights: int, linear: Mapping[str, int], width: int) -> int:
    """Return the bytes of a stack with quantized linear layers; some families' `wo` only on request."""
    per_weight = STORAGE_FORMATS[storage].bytes_per_weight(config.model) or width
    packed = sum(n for name, n in linear.items() if name != KEPT or config.model.quantize_wo)
    return round(packed * per_weight) + (weights - packed) * width


def _fit(record: Plan) -> Plan:
    needed = record["peak_bytes"] + RESERVED
    return {
        "peak_bytes": record["peak_bytes"],
        "fits_gb": next((card for card in CARDS if needed <= card * 2**30), None),
    }


def trained_dtype(config: RunConfig, device: torch.device) -> torch.dtype:
    """Return the dtype of the base's weights during training: float32 for full fine-tuning."""
    return torch.float32 if config.method == "full" else resolve_dtype(config.model.dtype, device)


def _disk(own: Plan) -> Plan:
    """Return the bytes of the base (in float32), of the saved weights and of a checkpoint."""
    saved = own["trainable"] * FLOAT
    base = sum(n for part, n in own["parameters"].items() if part != "added") * FLOAT
    return {"base": base, "saved": saved, "a_checkpoint": saved * (1 + MOMENTS)}


def _work(config: RunConfig, rows: Rows | None) -> tuple[Batch, int | None, str]:
    """Return the largest batch, the number of steps if known, and the source of the lengths in words."""
    size = int(config.training.get("per_device_train_batch_size", 8))
    passes = int(config.training.get("gradient_accumulation_steps", 1))
    given = int(config.training.get("max_steps", -1))
    if rows is None:
        bounds = Batch(size, config.data.max_source_length, config.data.max_target_length)
        return (
            bounds,
            given if given > 0 else None,
            "the limits in the config, because data or tokenizer are not on this machine",
        )
    longest = max(len(row["input_ids"]) for row in rows.rows), max(len(row["labels"]) for row in rows.rows)
    epochs = float(config.training.get("num_train_epochs", 3.0))
    steps = given if given > 0 else math.ceil(epochs * math.ceil(len(rows) / (size * passes)))
    return Batch(size, *longest), steps, f"the longest of {len(rows):,} training rows; {rows.truncation}"


def local_rows(config: RunConfig) -> Rows | None:
    """Return the training split as token ids, or None if reading it would need the Hub."""
    model = config.model.model_name_or_path
    if is_remote(config.data) or not (model == EMBEDDED or Path(model).expanduser().exists()):
        return None
    return load_train(config.data, load_tokenizer(config.model))[0]
