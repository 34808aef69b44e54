"""FLAN-T5 on an emulated device, with each method, and one training step of it."""

from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from typing import Any, NamedTuple

import torch
from emulated_cuda.counting import Device
from torch import nn
from transformers import T5Config, T5ForConditionalGeneration

from lora_hf import LoraConfig, inject_adapters
from lora_hf.baselines.bottleneck import add_bottlenecks
from lora_hf.baselines.prompt_tuning import add_prompt
from lora_hf.fast.loss import chunked_cross_entropy
from lora_hf.fast.t5 import faster, has_plain_frozen_head, without_head
from lora_hf.models.flan_t5 import COMMON, SIZES
from lora_hf.planning.memory_tracker import LiveBytes

BATCH = (16, 320, 56)
"""Dialogues, tokens of each, tokens of each summary."""
LORA = {"r": 8, "lora_alpha": 16, "lora_dropout": 0.05}


def flan_t5(
    size: str = "small",
    dtype: torch.dtype = torch.bfloat16,
    layers: int | None = None,
    wo: torch.dtype | None = None,
    is_nf4: bool = False,
    device: str = "cuda",
) -> Any:
    """Return a FLAN-T5 of fake tensors, with a head of its own; call it under a `FakeTensorMode`.

    Args:
        size: key of `SIZES`.
        dtype: of the weights.
        layers: number of layers of each stack, or all.
        wo: dtype of the last feed-forward layer, which Transformers keeps in float32 if others are quantized.
        is_nf4: store the other layers as bitsandbytes' NF4 with double quantization.
        device: of the weights.
    """
    config = T5Config(**COMMON, **SIZES[size])
    if layers:
        config.num_layers = config.num_decoder_layers = layers
    with torch.device(device):
        model = T5ForConditionalGeneration._from_config(config, dtype=dtype)
        model.lm_head.weight = nn.Parameter(torch.empty(model.lm_head.weight.shape, dtype=dtype))
    model.config.tie_word_embeddings = False
    ids = model.generation_config
    ids.pad_token_id, ids.eos_token_id, ids.decoder_start_token_id = 0, 1, 0
    for name, layer in list(model.named_modules()):
        if wo is not None and name.endswith(".wo"):
            layer.weight = nn.Parameter(layer.weight.to(wo))
        elif is_nf4 and type(layer) is nn.Linear and name != "lm_head":
            parent, _, child = name.rpartition(".")
            setattr(model.get_submodule(parent), child, _nf4(layer, dtype))
    return model.requires_grad_(False)


def _nf4(layer: nn.Linear, dtype: torch.dtype) -> nn.Module:
    """Return a 4-bit layer without `Params4bit`, which fake tensors cannot be."""
    from bitsandbytes.functional import QuantState
    from bitsandbytes.nn import Linear4bit

    device, n = layer.weight.device, layer.weight.numel()
    scales = QuantState(torch.empty(n // 64 // 256 + 1, device=device), code=torch.empty(256, device=device))
    scales.blocksize, scales.dtype = 256, torch.float32
    state = QuantState(
        torch.empty(n // 64, dtype=torch.uint8, device=device),
        shape=layer.weight.shape,
        code=torch.empty(16, device=device),
        blocksize=64,
        quant_type="nf4",
        dtype=dtype,
        offset=torch.empty((), device=device),
        state2=scales,
    )
    quantized = Linear4bit.__new__(Linear4bit)
    nn.Module.__init__(quantized)
    weight: Any = nn.Parameter(torch.empty(n // 2, 1, dtype=torch.uint8, device=device), requires_grad=False)
    weight.quant_state, weight.quant_type, weight.blocksize = state, "nf4", 64
    weight.compress_statistics, weight.quant_storage = True, torch.uint8
    quantized.weight, quantized.bias = weight, None  # type: ignore[assignment]
    quantized.in_features, quantized.out_features = layer.in_features, layer.out_features
    quantized.compute_dtype, quantized.compute_type_is_set = dtype, True
    quantized.quant_state, quantized.support_avx512bf16_for_cpu = state, False
    return quantized


def with_method(model: Any, method: str, **settings: Any) -> Any:
    """Add the weights of a method: `lora` with settings, `bottleneck`, `prompt_tuning`; `full` trains all."""
    if method == "lora":
        inject_adapters(model, LoraConfig(**(LORA | settings)))
    elif method == "bottleneck":
        add_bottlenecks(model, 16, "gelu")
    elif method == "prompt_tuning":
        add_prompt(model, 20, "random")
    else:
        model.requires_grad_(True)
    return model.train()


def batch_of(rows: int, source: int, target: int, device: str = "cuda") -> dict[str, torch.Tensor]:
    """Return a batch without padding."""
    shapes = {"input_ids": source, "attention_mask": source, "labels": target}
    return {
        name: torch.ones(rows, length, dtype=torch.long, device=device) for name, length in shapes.items()
    }


@contextmanager
def autocast(dtype: torch.dtype | None) -> Iterator[None]:
    with nullcontext() if dtype is None else torch.autocast("cuda", dtype):
        yield


def loss_of(
    model: Any, batch: dict[str, torch.Tensor], amp: torch.dtype | None, fast: bool = True
) -> torch.Tensor:
    """Return the loss as `LoraTrainer.compute_loss` does; without `fast` as Seq2SeqTrainer does."""
    if not fast or not has_plain_frozen_head(model):
        with autocast(amp):
            output = model(**batch, use_cache=not fast)
        output.logits = output.logits.float()  # by accelerate, around a forward under autocast
        loss: torch.Tensor = output.loss.float()
        return loss
    inputs = {name: tensor for name, tensor in batch.items() if name != "labels"}
    inputs["decoder_input_ids"] = model.prepare_decoder_input_ids_from_labels(batch["labels"])
    with without_head(model) as head:
        with autocast(amp):
            hidden = model(**inputs, use_cache=False).logits
        if amp is not None:
            hidden = hidden.float()
        with autocast(amp):
            return chunked_cross_entropy(hidden, head, batch["labels"])


class Step(NamedTuple):
    """What one forward and backward takes."""

    kernels: int
    gib: float
    """GiB read and written."""
    peak_bytes: int
    """Largest memory beside weights and their gradients."""
    waits: dict[str, int]
    by_operation: dict[str, tuple[int, float]]

    def __sub__(self, other: "Step") -> "Step":  # type: ignore[override]
        return self.combined(other, 1, -1)

    def combined(self, other: "Step", a: int, b: int) -> "Step":
        """Return a times this step and b times another."""
        names = {*self.by_operation, *other.by_operation}
        none = (0, 0.0)
        parts = {n: (self.by_operation.get(n, none), other.by_operation.get(n, none)) for n in names}
        return Step(
            a * self.kernels + b * other.kernels,
            a * self.gib + b * other.gib,
            a * self.peak_bytes + b * other.peak_bytes,
            self.waits,
            {n: (a * x[0] + b * y[0], a * x[1] + b * y[1]) for n, (x, y) in parts.items()},
        )


def step(
    model: Any,
    batch: tuple[int, int, int] = BATCH,
    amp: torch.dtype | None = torch.bfloat16,
    fast: bool = True,
) -> Step:
    """Run forward and backward of a model with a method, and count."""
    data = batch_of(*batch)
    for parameter in model.parameters():
        if parameter.requires_grad:
            parameter.register_post_accumulate_grad_hook(_forget)
    live = LiveBytes([*model.parameters(), *model.buffers(), *data.values()])
    with faster(model) if fast else nullcontext(), live, Device() as device:
        loss_of(model, data, amp, fast).backward()
    by = {name: (n, device.bytes[name] / 2**30) for name, n in device.kernels.items()}
    return Step(device.total, device.gib, live.peak, dict(device.waits), by)


def _forget(parameter: Any) -> None:
    parameter.grad = None


def step_of(size: str, build: Any, **options: Any) -> Step:
    """Count a step of a size from models with 2 and 3 layers: each further layer takes what the third takes.

    Args:
        size: key of `SIZES`.
        build: called with the number of layers; returns the model.
        options: of `step`.
    """
    two, three = (step(build(n), **options) for n in (2, 3))
    more = SIZES[size]["num_layers"] - 2
    return two.combined(three - two, 1, more)
