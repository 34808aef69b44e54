"""Models of fake or meta tensors, which take no memory, and the number of weights in their parts."""

import logging
import re
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from copy import deepcopy
from typing import Any, NamedTuple

import torch
from torch import nn
from torch._subclasses.fake_tensor import FakeTensorMode
from transformers import AutoModelForSeq2SeqLM, T5Config

from lora_hf import terminal
from lora_hf.adapters import inject
from lora_hf.adapters.backends import Backend, is_linear, is_transposed
from lora_hf.adapters.default_targets import doubts, stacks
from lora_hf.adapters.inits import SHAPE_ONLY, init_for
from lora_hf.adapters.methods.qalora import group_size_of
from lora_hf.adapters.model_state import adapter_configs, lora_layers
from lora_hf.adapters.wrappers import named_modules
from lora_hf.config import ModelConfig, RunConfig
from lora_hf.errors import UserError
from lora_hf.families import family_of, has_own_head
from lora_hf.models.base_files import read_config
from lora_hf.models.flan_t5 import COMMON, SIZES
from lora_hf.models.head import untie_head
from lora_hf.models.load import find_base
from lora_hf.models.storage import STORAGE_FORMATS
from lora_hf.models.storage.base import LayerwiseFormat, check_quantize_wo, quantized_layers
from lora_hf.planning.memory_tracker import NoValues
from lora_hf.training.optimizer import check_optimizer_layers
from lora_hf.training.registry import ADDED_WEIGHTS

FEWER = {"layers_to_transform": None, "layer_replication": None}
"""Fields of `lora` that name blocks, which a model with fewer blocks may not have."""
KEPT = "kept"
"""Name of the linear layers that a storage format keeps dense unless `quantize_wo` is set: T5's `wo`."""
CHECKPOINTING = ("gradient_checkpointing", "activation_checkpointing")
"""Names of the field of `training` that computes activations again instead of keeping them."""
PARTS = ("embeddings", "encoder", "decoder", "head", "added")
Counts = tuple[dict[str, int], int, dict[str, Counter[str]]]


def settings_of(config: ModelConfig) -> Any:
    """Return the model's Transformers config: built here for a FLAN-T5, read from config.json for others.

    Raises:
        UserError: config.json cannot be read.
    """
    named = re.fullmatch(r"google/flan-t5-(\w+)", config.model_name_or_path)
    if named and named[1] in SIZES:
        return flan_t5(named[1])
    folder, _ = find_base(config, "config")
    return read_config(folder, config.as_written)


def flan_t5(size: str) -> T5Config:
    """Return the config of a FLAN-T5; `size` is a key of `SIZES`."""
    return T5Config(**COMMON, **SIZES[size])


def is_published(settings: Any) -> bool:
    """Return whether a FLAN-T5 has the shape of one of the published sizes."""
    return any(all(getattr(settings, k, None) == v for k, v in shape.items()) for shape in SIZES.values())


def is_flan_t5(settings: Any) -> bool:
    """Return whether a model is a FLAN-T5 of any size, by its config: gated, with T5's 32,128 tokens."""
    shape = {
        name: getattr(settings, name, None) for name in ("model_type", "feed_forward_proj", "vocab_size")
    }
    flan = flan_t5("small")
    return all(value == getattr(flan, name) for name, value in shape.items())


class SharedFakeMode(FakeTensorMode):
    """A mode that copies of its tensors share.

    `copy.deepcopy` of a fake tensor copies its attributes and with them its mode. In PyTorch 2.13 tensors of
    two modes cannot be used together, and a copied mode releases the same weak references to storages a
    second time: a segmentation fault at some later garbage collection.
    """

    def __deepcopy__(self, memo: dict[int, Any]) -> "SharedFakeMode":
        return self


@contextmanager
def outline(
    config: RunConfig,
    settings: Any,
    dtype: torch.dtype,
    layers: int | None = None,
    is_run: bool = True,
) -> Iterator[Any]:
    """Yield the model that the run would train, dense, with tensors that take no memory.

    Args:
        config: the run; its method adds weights or trains all of them.
        settings: configuration of the architecture.
        dtype: dtype of the base's weights.
        layers: number of blocks in each stack; None takes that of `settings`.
        is_run: whether the model will be called, which needs fake tensors. Meta tensors, which are enough for
            counting weights, are created faster.

    Raises:
        UserError: the method does not fit the model, the model has no activation checkpointing, or nothing
            that `model.quantize_wo` is for.
    """
    settings = deepcopy(settings)
    if layers is not None:
        for field in family_of(settings).stacks:
            setattr(settings, field, layers)
    mode, values = (SharedFakeMode(), NoValues()) if is_run else (torch.device("meta"), nullcontext())
    # PyTorch logs the traceback of an operation that fails on fake tensors, and raises the error too.
    with terminal.logged_from("torch._subclasses.fake_tensor", logging.CRITICAL), mode, values:
        model: Any = AutoModelForSeq2SeqLM.from_config(settings, dtype=dtype)
        model.name_or_path = config.model.model_name_or_path
        check_quantize_wo(model, config.model)
        if has_own_head(settings):
            model.lm_head.weight = nn.Parameter(torch.empty_like(model.lm_head.weight))
        if config.model.untie_head:
            untie_head(model)
        if config.method in ADDED_WEIGHTS:
            with _without_warnings():
                ADDED_WEIGHTS[config.method].add(with_plain_init(config, **(FEWER if layers else {})), model)
        for field in filter(config.training.get, CHECKPOINTING):
            _checkpoint(model, field)
        yield model.train().requires_grad_(True) if config.method == "full" else model.train()


def _checkpoint(model: Any, field: str) -> None:
    try:
        newer = getattr(model, "activation_checkpointing_enable", None)  # older versions lack it
        (newer or model.gradient_checkpointing_enable)({"use_reentrant": False})
    except ValueError as error:
        raise UserError(
            f"training.{field}=true: Transformers' {type(model).__name__} cannot compute activations again "
            "instead of keeping them. Leave it out; a smaller training.per_device_train_batch_size with more "
            "training.gradient_accumulation_steps saves memory too"
        ) from error


@contextmanager
def _without_warnings() -> Iterator[None]:
    """Suppress the warnings of injecting, which would come once per outline; the doctor reports them."""
    logger = logging.getLogger(inject.__name__)
    logger.addFilter(_is_no_warning)
    try:
        yield
    finally:
        logger.removeFilter(_is_no_warning)


def _is_no_warning(record: logging.LogRecord) -> bool:
    return record.levelno < logging.WARNING


def with_plain_init(config: RunConfig, **fields: Any) -> RunConfig:
    """Return the config with LoRA's default initialization, which reads no weights, and other fields.

    An outline is dense, so the group size that QA-LoRA takes from the storage format is set explicitly.
    """
    plain: dict[str, Any] = {"init_lora_weights": True}
    stored = STORAGE_FORMATS[config.model.storage].group_size(config.model)
    if config.lora.use_qalora and stored:
        plain["qalora_group_size"] = config.lora.qalora_group_size or stored
    lora = config.lora.model_copy(update=plain | fields)
    return config.model_copy(update={"lora": lora})


def check_fit(run: RunConfig, model: Any) -> None:
    """Check on an outline of a run's model what the run would refuse once the weights are loaded.

    Raises:
        UserError: a layer does not fit the storage format or the initialization, or the optimizer is for
            layers that do not train.
    """
    STORAGE_FORMATS[run.model.storage].check_model(model, run.model)
    check_optimizer_layers(run.training.get("optim_target_modules"), model)
    stored = {id(layer) for layer in quantized_layers(model, run.model).values()}
    for path, layer in lora_layers(model).items():
        # Transformers, which stores the formats of bitsandbytes, takes GPT-2's Conv1D too.
        is_stored = id(layer.base.layer) in stored or (
            is_transposed(layer.base.layer)
            and not isinstance(STORAGE_FORMATS[run.model.storage], LayerwiseFormat)
        )
        _check_layer(run, path, layer.base, run.model.is_quantized and is_stored)


def _check_layer(run: RunConfig, layer: str, base: Backend, is_quantized: bool) -> None:
    """Check a layer's adapter by the shape of its weight, and by whether the storage format quantizes it.

    Raises:
        UserError: the rank is above the weight's smaller side, or the layer of LoftQ or of QA-LoRA stays
            dense.
    """
    init, config = run.lora.init_lora_weights, run.lora.to_config()
    try:
        if run.lora.use_qalora and not is_quantized:
            group_size_of(config, base)
        if init not in SHAPE_ONLY:
            weight = torch.empty(base.out_features, base.in_features, device="meta")
            make = init_for(init, run.lora.loftq_iter)
            make(weight, config.at(layer).r, 1.0, torch.clone if is_quantized else None)
    except UserError as error:
        raise UserError(f"{error.in_section('lora')} (layer {layer})") from error


class Targets(NamedTuple):
    """The layers that get adapters: none, for other methods."""

    targets: list[str] | str
    """Their names as the adapter will record them."""
    warnings: list[str]
    """Doubts about them, one text each."""


def targets_of(model: Any) -> Targets:
    """Return the targets of an outline."""
    config = adapter_configs(model).get("default")
    if config is None:
        return Targets([], [])
    names = config.target_modules
    said = doubts(model, config, lora_layers(model))
    return Targets(names if isinstance(names, str) else list(names), said)


def repeated_blocks(settings: Any) -> int | None:
    """Return the number of blocks of each stack, if all are equal and an outline can have fewer."""
    row = family_of(settings)
    if not row.stacks or row.routers or any("." in field for field in row.stacks):
        return None
    counts = {getattr(settings, field) for field in row.stacks}
    by_block = [v for v in vars(settings).values() if isinstance(v, (list, tuple)) and len(v) in counts]
    return counts.pop() if len(counts) == 1 and not by_block else None


def count_weights(model: nn.Module, is_added: bool) -> Counts:
    """Return the numbers of weights by part, of trainable ones, and by stack and linear layer."""
    parts: Counter[str] = Counter()
    linear: dict[str, Counter[str]] = {"encoder": Counter(), "decoder": Counter()}
    trainable, part_of = 0, _parts(model)
    kept = set(getattr(model, "_keep_in_fp32_modules", None) or ())
    modules = dict(named_modules(model))
    for name, parameter in model.named_parameters():
        trains = parameter.requires_grad
        trainable += parameter.numel() * trains
        part = "added" if is_added and trains else part_of(name)
        parts[part] += parameter.numel()
        owner, _, kind = name.rpartition(".")
        if part in linear and kind == "weight" and is_linear(modules[owner]):
            path = owner.removesuffix(".base_layer").split(".")
            linear[part][path[-1] if kept.isdisjoint(path) else KEPT] += parameter.numel()
    return {part: parts[part] for part in PARTS}, trainable, linear


def _parts(model: Any) -> Callable[[str], str]:
    """Return a function from a parameter's name to the part of the model that it belongs to.

    The head is that of `get_output_embeddings`, wherever a family has it; T5's relative positions belong to
    their stack.
    """
    head, prefixes = model.get_output_embeddings(), stacks(model)
    modules = dict(named_modules(model))
    own = {
        name: "head" if module is head else "embeddings"
        for name, module in modules.items()
        if module is head or (isinstance(module, nn.Embedding) and "relative" not in name)
    }

    def part_of(name: str) -> str:
        owner = name.rpartition(".")[0].removesuffix(".base_layer")
        inside = (stack for stack, prefix in prefixes.items() if name.startswith(prefix))
        return own.get(owner) or next(inside, "embeddings")

    return part_of
