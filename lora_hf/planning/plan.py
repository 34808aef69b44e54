"""Estimate the memory and disk of a run, and the GPUs that it fits."""

import math
from collections.abc import Iterable, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

import torch

from lora_hf.config import RunConfig
from lora_hf.config.task import SUMMARIZATION
from lora_hf.config.training import asks_to_compile
from lora_hf.data.sources import is_remote
from lora_hf.data.splits import load_split
from lora_hf.data.streaming import StreamedDialogues, load_train
from lora_hf.data.tokenize import TokenizedDialogues
from lora_hf.errors import UserError, counted
from lora_hf.memory import free_memory
from lora_hf.models.flan_t5 import SIZES
from lora_hf.models.load import EMBEDDED, load_tokenizer
from lora_hf.models.positions import positions_of
from lora_hf.models.storage import STORAGE_FORMATS
from lora_hf.planning.activations import (
    Batch,
    Computation,
    NotCounted,
    activation_bytes,
    flan_t5_bytes,
    writing,
)
from lora_hf.planning.fake_model import (
    CHECKPOINTING,
    KEPT,
    Counts,
    check_fit,
    count_weights,
    flan_t5,
    is_flan_t5,
    is_published,
    outline,
    settings_of,
    targets_of,
)
from lora_hf.system import DTYPES, pick_device, resolve_dtype
from lora_hf.training.arguments import check_dtype
from lora_hf.training.compiling import (
    CAPABILITY,
    DECIDING,
    LEAST_STEPS,
    SOURCES,
    TARGETS,
    padded_length,
    why_uncompiled,
)
from lora_hf.training.stored_base import check_stored_base

FLOAT = 4
MOMENTS = 2
"""float32 numbers that AdamW keeps per trainable weight."""
CARDS = (8, 16, 24, 40, 80)
"""Memory sizes of GPUs in GB of 10^9 bytes: a T4 of 16 GB has 15.8, of which a process gets 15.6."""
RESERVED = 2**30
"""Bytes reserved for a GPU's driver, libraries and the allocator's gaps; an assumption, not a measurement."""
FEWER = (4, 3, 2)
"""Factors by which the batch may be smaller in the plan that needs less memory."""
PATHS = ("cpu", "cuda")
"""Types of devices whose fast paths can be counted."""
ASKED, BY_DEFAULT = "asked", "by default"
"""Why a run is compiled: its config says so, or it is long enough for the GPU."""
COMPILED_WHOLE = (*CHECKPOINTING, "fsdp", "deepspeed")
"""Fields of `training` with which the whole model is compiled, if anything is, in place of its blocks."""
STORAGE_SHOWN = ("float32", "bfloat16", "nf4")
Plan = dict[str, Any]
Rows = TokenizedDialogues | StreamedDialogues


def plan(config: RunConfig) -> Plan:
    """Return the record of `plan_step`, with the run on GPUs, and what would make it fit a smaller one.

    Its further fields:

    - `free_bytes`: memory that is free on this machine's device, or None if that is unknown.
    - `ways`: the run on a GPU as it is configured, and if that needs more than the smallest of `CARDS`, with
      changes that need less memory. Each has its `overrides`, `compiled`, `peak_bytes`, `scoring_bytes` and
      `fits_gb`.
    - `sizes`: for a published FLAN-T5, the memory of the run on each size, without those whose layers the
      targets do not fit; compiled only if the config asks for it. Empty for other models.
    """
    own, device = plan_step(config), pick_device()
    settings, batch = settings_of(config.model), _batch(own)
    is_gpu = device.type == "cuda"
    dtype = resolve_dtype(config.model.dtype, device) if is_gpu else _on_a_gpu(config)
    own |= {"free_bytes": free_memory(device), "ways": []}
    if own["peak_bytes"] is not None:
        own["ways"] = _ways(_Planned(config, settings, own, "cuda", dtype), config)
    if not (is_flan_t5(settings) and is_published(settings)):
        return own | {"sizes": {}}
    return own | {"sizes": _sizes(config, batch)}


def needs_less(config: RunConfig, record: Plan, free: int) -> list[Plan]:
    """Return the changes with which a run that does not fit this machine's device fits it, each planned.

    Args:
        config: the run.
        record: its record of `plan_step`, whose activations were counted.
        free: bytes of free memory.

    Returns:
        Entries as those of `plan`'s `ways`; none if no change is enough.
    """
    device = pick_device()
    dtype = resolve_dtype(config.model.dtype, device)
    planned = _Planned(config, settings_of(config.model), record, device.type, dtype)
    return [way for way in _ways(planned, config) if way["overrides"] and _largest(way) <= free]


class _Planned:
    """Plans of one run with changes, on one type of device."""

    def __init__(
        self, config: RunConfig, settings: Any, record: Plan, device: str, dtype: torch.dtype
    ) -> None:
        self.settings, self.device, self.dtype = settings, device, dtype
        self.batch, self.steps = _batch(record), record["steps"]
        self.counted = _count(config, settings)
        self.held: dict[tuple[int, bool, bool], int] = {}
        self.writing = scoring_bytes(config, settings, self.batch, device, dtype)

    def way(self, config: RunConfig, *overrides: str) -> Plan:
        """Return the entry of `ways` of a run whose config differs by these overrides."""
        training, compiles = config.training, compiles_by_rule(config, self.steps, self.device)
        how = computation(config, self.device, self.dtype, compiles)
        batch = _padded(self.batch._replace(dialogues=_dialogues(config)), self.settings, how)
        key = batch.dialogues, any(training.get(field) for field in CHECKPOINTING), how.compiled
        if key not in self.held:  # 4 bits do not change it
            self.held[key] = activation_bytes(config, self.settings, batch, how)
        storage = _storage(config, torch.float32 if config.method == "full" else self.dtype)
        record = _memory(config, self.counted, storage, self.dtype, self.held[key], self.writing)
        return {
            "store": storage,
            "compiled": _compiled(config, compiles),
            "overrides": list(overrides),
            **_fit(record),
        }


def _ways(planned: _Planned, config: RunConfig) -> list[Plan]:
    """Return the run as it is configured, and with changes that need less memory."""
    ways = [planned.way(config)]
    if ways[0]["fits_gb"] == CARDS[0] and planned.device == "cuda":
        return ways
    size, changes = _dialogues(config), list[tuple[list[str], Plan, Plan]]()
    if factor := next((factor for factor in (*FEWER, size) if size > 1 and size % factor == 0), None):
        passes = factor * int(config.training.get("gradient_accumulation_steps", 1))
        fields = {
            "per_device_train_batch_size": size // factor,
            "gradient_accumulation_steps": passes,
        }
        changes.append(([f"training.{field}={value}" for field, value in fields.items()], fields, {}))
    if not any(config.training.get(field) for field in CHECKPOINTING):
        changes.append((["training.gradient_checkpointing=true"], {"gradient_checkpointing": True}, {}))
    if config.method != "full" and not config.model.is_quantized:
        changes.append((["model.load_in_4bit=true"], {}, {"load_in_4bit": True}))
    if len(changes) > 1:
        all_words = [word for words, _, _ in changes for word in words]
        joined = _joined(fields for _, fields, _ in changes), _joined(fields for _, _, fields in changes)
        changes.append((all_words, *joined))
    if ways[0]["compiled"] == BY_DEFAULT:
        changes.insert(0, (["training.torch_compile=false"], {"torch_compile": False}, {}))
    for overrides, training, model in changes:
        changed = {"training": config.training | training, "model": config.model.model_copy(update=model)}
        with suppress(UserError, NotCounted):  # a model without checkpointing
            ways.append(planned.way(config.model_copy(update=changed), *overrides))
    return ways


def _joined(parts: Iterable[Plan]) -> Plan:
    return {field: value for part in parts for field, value in part.items()}


def _sizes(config: RunConfig, batch: Batch) -> Plan:
    """Return the run's memory on a GPU by size of FLAN-T5 and by `STORAGE_SHOWN`."""
    names = STORAGE_SHOWN[:2] if config.method == "full" else STORAGE_SHOWN
    bytes_of = {}
    for dtype in {_computed(name) for name in names}:
        how = computation(config, "cuda", dtype)
        wrote = _written(config, batch), _in_evaluation(how, config), writing
        bytes_of[dtype] = flan_t5_bytes(config, batch, how), flan_t5_bytes(config, *wrote)
    sizes: Plan = {}
    for size, shape in SIZES.items():
        with suppress(UserError):  # targets by whole names, which another size does not have
            counted = _count(config, flan_t5(size))
            held = {dtype: [of(shape) for of in both] for dtype, both in bytes_of.items()}
            sizes[size] = {
                name: _fit(_memory(config, counted, name, _computed(name), *held[_computed(name)]))
                for name in names
            }
    return sizes


def plan_step(config: RunConfig, rows: Rows | None = None, read: bool = True) -> Plan:
    """Return the batch, the number of steps, the bytes of a step by kind, and the disk space of a run.

    For a model on the Hub other than FLAN-T5, config.json is downloaded; nothing else is.

    Args:
        config: the run.
        rows: its training split as token ids, if the caller has read it.
        read: without `rows`, read the training split if it is on this machine. Otherwise the longest rows
            that the config admits are assumed.

    Returns:
        A record. `peak_bytes` is what a training step holds, an upper bound where it is compiled.
        `compiled` is `ASKED`, `BY_DEFAULT` or None; with an unknown number of steps it is that of a long run.
        `scoring_bytes` is what writing summaries holds on a GPU
        (None on other devices). `targets` are the names that get adapters, `warnings` what is
        doubtful about them. Where the steps of a family cannot be traced, `activations` and `peak_bytes` are
        None, and `not_counted` says why.

    Raises:
        UserError: the run trains nothing, the model's config.json cannot be read, the data on this machine is
            invalid; or as a run before its first step: a base in float16 or stored in bits that the method
            cannot use, or targets, an initialization or a storage format that do not fit the model.
    """
    if config.method == "base":
        raise UserError("method='base' trains nothing, so there is nothing to plan: use lora or full")
    settings, device = settings_of(config.model), pick_device()
    dtype = resolve_dtype(config.model.dtype, device)
    check_dtype(dtype)
    check_stored_base(config, settings.to_dict())
    batch, steps, said = _work(config, local_rows(config) if rows is None and read else rows, read)
    with outline(config, settings, torch.float32, is_run=False) as model:
        check_fit(config, model)
        counted, targets = count_weights(model, config.method != "full"), targets_of(model)
    held, wrote, reason = None, None, {}
    compiles = compiles_by_rule(config, steps, device.type)
    how = computation(config, device.type, dtype, compiles)
    try:
        held = activation_bytes(config, settings, _padded(batch, settings, how), how)
        wrote = scoring_bytes(config, settings, batch, device.type, dtype)
    except NotCounted as error:
        reason = {"not_counted": str(error)}
    storage = _storage(config, trained_dtype(config, device))
    own = _memory(config, counted, storage, dtype, held, wrote)
    return {
        "model": config.model.model_name_or_path,
        "method": config.method,
        **({} if config.task == SUMMARIZATION else {"task": config.task.written()}),
        "device": device.type,
        "store": storage,
        "compiled": _compiled(config, compiles),
        "batch": batch._asdict() | {"lengths": said},
        "steps": steps,
        **targets._asdict(),
        **own,
        **reason,
        "disk": _disk(own),
    }


def compiles_by_rule(config: RunConfig, steps: int | None, device: str) -> bool:
    """Return whether blocks are compiled although the config does not say so, on a type of device.

    Args:
        config: the run's.
        steps: their number; None if the data is elsewhere, which is taken for a run that is long enough.
        device: `cuda` is this machine's GPU, or one of compute capability 8.0 with Triton.
    """
    if device != "cuda" or any(name in config.training for name in DECIDING):
        return False
    here = pick_device()
    capability = torch.cuda.get_device_capability(here) if here.type == "cuda" else CAPABILITY
    if steps is None and not config.data.streaming:
        steps = LEAST_STEPS
    return why_uncompiled(config, steps, capability) is None


def computation(
    config: RunConfig, device: str, dtype: torch.dtype, compiles_by_rule: bool = False
) -> Computation:
    """Return how a step of the run is computed on a type of device where `model.dtype` is this dtype."""
    # on other devices and for compiled models, the reference path is an upper bound
    compiles = compiles_by_rule or asks_to_compile(config.training)
    in_blocks = config.fast_paths and not any(config.training.get(field) for field in COMPILED_WHOLE)
    return Computation(
        torch.float32 if config.method == "full" else dtype,
        _autocast(config, dtype),
        config.fast_paths and device in PATHS and not compiles,
        device if device in PATHS else "cpu",
        compiles and in_blocks,
        float(config.training.get("label_smoothing_factor", 0)),
    )


def _compiled(config: RunConfig, by_rule: bool) -> str | None:
    return ASKED if asks_to_compile(config.training) else BY_DEFAULT if by_rule else None


def _padded(batch: Batch, settings: Any, how: Computation) -> Batch:
    """Return the batch as compiled blocks see it on a GPU."""
    if not (how.compiled and how.device == "cuda"):
        return batch
    encoder, decoder = positions_of(settings)
    return batch._replace(
        source=padded_length(batch.source, SOURCES, encoder),
        target=padded_length(batch.target, TARGETS, decoder),
    )


def _in_evaluation(how: Computation, config: RunConfig) -> Computation:
    """Return how summaries are written on a GPU by a model that is trained in this way."""
    return how._replace(autocast=None, fast=config.fast_paths, compiled=False)


def _autocast(config: RunConfig, dtype: torch.dtype) -> torch.dtype | None:
    if config.training.get("fp16"):
        return torch.float16
    return torch.bfloat16 if config.training.get("bf16", dtype == torch.bfloat16) else None


def scoring_bytes(
    config: RunConfig, settings: Any, batch: Batch, device: str, dtype: torch.dtype
) -> int | None:
    """Return the bytes that writing a batch of summaries takes on a GPU, beside the weights.

    Merged weights are not among them: adapters are merged where half of the free memory is enough for it.
    On a CPU, where a batch is encoded in parts, and for families that cannot be traced it is None.
    """
    if device != "cuda":
        return None
    how = _in_evaluation(computation(config, device, dtype), config)
    with suppress(NotCounted):
        return activation_bytes(config, settings, _written(config, batch), how, writing)
    return None


def _written(config: RunConfig, batch: Batch) -> Batch:
    """Return the largest batch of dialogues whose summaries are written together; beams as more tokens."""
    beams, tokens = config.generation.num_beams, config.generation.batch_tokens
    rows = max(1, min(config.generation.batch_size, tokens // (batch.source * beams)))
    return Batch(rows, batch.source, batch.target * beams)


def _computed(storage: str) -> torch.dtype:
    """Return the dtype of the activations of a base in this dtype, or stored in this format on a GPU."""
    return DTYPES.get(storage, DTYPES["bfloat16"])


def _on_a_gpu(config: RunConfig) -> torch.dtype:
    """Return the dtype that `model.dtype` is on a GPU of compute capability 8.0 or later."""
    if config.model.dtype != "auto":
        return DTYPES[config.model.dtype]
    return torch.float32 if config.training.get("fp16") else torch.bfloat16  # float16 is for older ones


def _storage(config: RunConfig, dtype: torch.dtype) -> str:
    return config.model.storage if config.model.is_quantized else str(dtype).removeprefix("torch.")


def _dialogues(config: RunConfig) -> int:
    return int(config.training.get("per_device_train_batch_size", 8))


def _batch(record: Plan) -> Batch:
    return Batch(*(record["batch"][field] for field in Batch._fields))


def memory(config: RunConfig, settings: Any, storage: str, activations: int | None) -> Plan:
    """Return the weights by part, and the bytes of weights, gradients, optimizer and activations."""
    return _memory(config, _count(config, settings), storage, _computed(storage), activations)


def _count(config: RunConfig, settings: Any) -> Counts:
    with outline(config, settings, torch.float32, is_run=False) as model:
        return count_weights(model, config.method != "full")


def _memory(
    config: RunConfig,
    counted: Counts,
    storage: str,
    dtype: torch.dtype,
    activations: int | None,
    scoring: int | None = None,
) -> Plan:
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
    total, frozen = None, sum(weights.values())
    if activations is not None:
        # The backward pass frees activations while it creates gradients: the first of a step never holds all
        # of both. Further ones, whose gradients are added to those of the first, do.
        is_first = int(config.training.get("gradient_accumulation_steps", 1)) == 1
        step = max(activations, held["gradients"]) if is_first else activations + held["gradients"]
        total = frozen + held["optimizer"] + step
    if scoring is not None:
        # after training the optimizer's states are given back
        is_between = config.training.get("eval_strategy", "no") != "no"
        scoring += frozen + (held["optimizer"] if is_between else 0)
    return {
        "parameters": parts,
        "trainable": trainable,
        "bytes": held,
        "peak_bytes": total,
        "scoring_bytes": scoring,
    }


def _packed(config: RunConfig, storage: str, weights: int, linear: Mapping[str, int], width: int) -> int:
    """Return the bytes of a stack with quantized linear layers; some families' `wo` only on request."""
    per_weight = STORAGE_FORMATS[storage].bytes_per_weight(config.model) or width
    packed = sum(n for name, n in linear.items() if name != KEPT or config.model.quantize_wo)
    return round(packed * per_weight) + (weights - packed) * width


def _largest(record: Plan) -> int:
    """Return the bytes of the step or of scoring, whichever needs more."""
    return max(record["peak_bytes"], record["scoring_bytes"] or 0)


def _fit(record: Plan) -> Plan:
    needed = _largest(record) + RESERVED
    return {
        "peak_bytes": record["peak_bytes"],
        "scoring_bytes": record["scoring_bytes"],
        "fits_gb": next((card for card in CARDS if needed <= card * 10**9), None),
    }


def trained_dtype(config: RunConfig, device: torch.device) -> torch.dtype:
    """Return the dtype of the base's weights during training: float32 for full fine-tuning."""
    return torch.float32 if config.method == "full" else resolve_dtype(config.model.dtype, device)


def _disk(own: Plan) -> Plan:
    """Return the bytes of the base (in float32), of the saved weights and of a checkpoint."""
    saved = own["trainable"] * FLOAT
    base = sum(n for part, n in own["parameters"].items() if part != "added") * FLOAT
    return {"base": base, "saved": saved, "a_checkpoint": saved * (1 + MOMENTS)}


def _work(config: RunConfig, rows: Rows | None, read: bool) -> tuple[Batch, int | None, str]:
    """Return the largest batch, the number of steps if known, and the source of the lengths in words.

    Args:
        config: of the run.
        rows: of the training split, if data and tokenizer are at hand.
        read: without `rows`, count those of a split on this machine.
    """
    size = _dialogues(config)
    passes = int(config.training.get("gradient_accumulation_steps", 1))
    given = int(config.training.get("max_steps", -1))
    epochs = float(config.training.get("num_train_epochs", 3.0))

    def steps_of(n: int) -> int:
        return given if given > 0 else math.ceil(epochs * math.ceil(n / (size * passes)))

    if rows is None:
        bounds = Batch(size, config.data.max_source_length, config.data.max_target_length)
        steps, missing = given if given > 0 else None, "the data are"
        if not is_remote(config.data):
            missing = "the model's tokenizer is"
            if read and steps is None and not config.data.streaming:
                steps = steps_of(sum(len(row.references) for row in load_split(config.data, "train")))
        return bounds, steps, f"limits of the config, because {missing} not on this machine"
    longest = max(len(row["input_ids"]) for row in rows.rows), max(len(row["labels"]) for row in rows.rows)
    said = f"longest of {counted(len(rows), 'row')}; {rows.truncation}"
    return Batch(size, *longest), steps_of(len(rows)), said


def local_rows(config: RunConfig) -> Rows | None:
    """Return the training split as token ids, or None if reading it would need the Hub."""
    model = config.model.model_name_or_path
    if is_remote(config.data) or not (model == EMBEDDED or Path(model).expanduser().exists()):
        return None
    return load_train(config.data, load_tokenizer(config.model))[0]
