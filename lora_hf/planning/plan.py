"""What a run will take: weights, gradients, optimizer, activations, disk, time; and what it fits."""

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from lora_hf.config import RunConfig
from lora_hf.config.training import asks_to_compile
from lora_hf.data.streaming import StreamedDialogues, load_train
from lora_hf.data.tokenize import TokenizedDialogues
from lora_hf.errors import UserError
from lora_hf.models.flan_t5 import SHAPES
from lora_hf.models.load import EMBEDDED, load_tokenizer
from lora_hf.models.storage import STORAGE_FORMATS
from lora_hf.planning.activations import Batch, activation_bytes, flan_t5_bytes
from lora_hf.planning.fake_model import Counts, count_parts, flan_t5, outline, settings_of
from lora_hf.system import DTYPES, pick_device, resolve_dtype

FLOAT = 4
MOMENTS = 2
"""AdamW's numbers a weight, in float32."""
CARDS = (8, 16, 24, 40, 80)
"""GB of GPU memory."""
RESERVED = 2**30
"""Bytes of a GPU that its driver, its libraries and the allocator's gaps may take; not measured."""
STORAGE_SHOWN = ("float32", "bfloat16", "nf4")
Plan = dict[str, Any]
Rows = TokenizedDialogues | StreamedDialogues


def plan(config: RunConfig) -> Plan:
    """The record of one run, and the same run's memory on every FLAN-T5; as `plan_step`."""
    own = plan_step(config)
    batch = Batch(*(own["batch"][field] for field in Batch._fields))
    names = STORAGE_SHOWN[:2] if config.method == "full" else STORAGE_SHOWN
    held = {dtype: flan_t5_bytes(config, dtype, batch) for dtype in {_computed(name) for name in names}}

    def needs(size: str) -> Plan:
        counted = _count(config, flan_t5(size))
        of_shape = {dtype: bytes_of(SHAPES[size]) for dtype, bytes_of in held.items()}
        return {name: _fit(_memory(config, counted, name, of_shape[_computed(name)])) for name in names}

    return own | {"sizes": {size: needs(size) for size in SHAPES}}


def plan_step(config: RunConfig, rows: Rows | None = None, read: bool = True) -> Plan:
    """The record of one run: its batch, its steps, the bytes of a step by kind, its disk.

    Nothing is downloaded but, for a model on the Hub that is no FLAN-T5, its config.json.

    Args:
        config: of the run.
        rows: its training split as token ids, where the caller has it.
        read: without `rows`, read the training split if it is on this machine; else plan for the longest rows
            that the config admits.

    Raises:
        UserError: the model's settings cannot be read, the targets do not fit it, or data that is at hand is
            not as it should be.
    """
    if config.method == "base":
        raise UserError("method='base' trains nothing, and there is nothing to plan: use lora or full")
    settings, device = settings_of(config.model), pick_device()
    batch, steps, said = _work(config, rows_at_hand(config) if rows is None and read else rows)
    dtype = str(trained_dtype(config, device)).removeprefix("torch.")
    storage = config.model.storage if config.model.is_quantized else dtype
    # on other devices, and compiled, the reference path: an upper bound
    fast = config.fast_paths and device.type == "cpu" and not asks_to_compile(config.training)
    own = memory(
        config, settings, storage, activation_bytes(config, settings, _computed(storage), batch, fast)
    )
    return {
        "model": config.model.model_name_or_path,
        "method": config.method,
        "device": device.type,
        "store": storage,
        "batch": batch._asdict() | {"lengths": said},
        "steps": steps,
        **own,
        "disk": _disk(own),
    }


def _computed(storage: str) -> torch.dtype:
    """The dtype of the activations over a base stored so."""
    return DTYPES.get(storage, DTYPES["bfloat16"])


def memory(config: RunConfig, settings: Any, storage: str, activations: int) -> Plan:
    """Weights by part, and the bytes of a step: weights, gradients, optimizer and activations."""
    return _memory(config, _count(config, settings), storage, activations)


def _count(config: RunConfig, settings: Any) -> Counts:
    with outline(config, settings, torch.float32, is_run=False) as model:
        return count_parts(model, config.method != "full")


def _memory(config: RunConfig, counted: Counts, storage: str, activations: int) -> Plan:
    dtype = _computed(storage)
    is_full = config.method == "full"
    parts, trainable, linear = counted
    width = FLOAT if is_full else dtype.itemsize  # a full fine-tuning keeps its weights in float32
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
    # The gradients grow while the activations go: a step never holds all of both.
    step = max(held["activations"], held["gradients"])
    total = sum(weights.values()) + trainable * FLOAT * MOMENTS + step
    return {"parameters": parts, "trainable": trainable, "bytes": held, "peak_bytes": total}


def _packed(config: RunConfig, storage: str, weights: int, linear: Mapping[str, int], width: int) -> int:
    """Bytes of a stack: its linear layers in few bits, `wo` only where it is asked for."""
    per_weight = STORAGE_FORMATS[storage].bytes_per_weight(config.model) or width
    packed = sum(n for name, n in linear.items() if name != "wo" or config.model.quantize_wo)
    return round(packed * per_weight) + (weights - packed) * width


def _fit(record: Plan) -> Plan:
    needed = record["peak_bytes"] + RESERVED
    return {
        "peak_bytes": record["peak_bytes"],
        "fits_gb": next((card for card in CARDS if needed <= card * 2**30), None),
    }


def trained_dtype(config: RunConfig, device: torch.device) -> torch.dtype:
    """Of the base's weights while it trains; a full fine-tuning keeps float32."""
    return torch.float32 if config.method == "full" else resolve_dtype(config.model.dtype, device)


def _disk(own: Plan) -> Plan:
    """Bytes of the base as FLAN-T5's checkpoints are, float32, of what is saved, and of a checkpoint."""
    saved = own["trainable"] * FLOAT
    base = sum(n for part, n in own["parameters"].items() if part != "added") * FLOAT
    return {"base": base, "saved": saved, "a_checkpoint": saved * (1 + MOMENTS)}


def _work(config: RunConfig, rows: Rows | None) -> tuple[Batch, int | None, str]:
    """The largest batch, the number of steps where it can be known, and where the lengths are from."""
    size = int(config.training.get("per_device_train_batch_size", 8))
    passes = int(config.training.get("gradient_accumulation_steps", 1))
    given = int(config.training.get("max_steps", -1))
    if rows is None:
        bounds = Batch(size, config.data.max_source_length, config.data.max_target_length)
        return bounds, given if given > 0 else None, "the config's bounds: data or tokenizer are not at hand"
    longest = max(len(row["input_ids"]) for row in rows.rows), max(len(row["labels"]) for row in rows.rows)
    epochs = float(config.training.get("num_train_epochs", 3.0))
    steps = given if given > 0 else math.ceil(epochs * math.ceil(len(rows) / (size * passes)))
    return Batch(size, *longest), steps, f"the longest of {len(rows):,} training rows; {rows.truncation}"


def rows_at_hand(config: RunConfig) -> Rows | None:
    """The training split as token ids, or None where reading it would need the Hub."""
    data, model = config.data.dataset_name, config.model.model_name_or_path
    here = [name == EMBEDDED or Path(name).expanduser().exists() for name in (data, model)]
    if not all(here):
        return None
    return load_train(config.data, load_tokenizer(config.model))[0]
