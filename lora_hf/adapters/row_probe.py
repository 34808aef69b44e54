"""Find out by running a model whether each row of a batch can have its own adapter.

A layer adds an adapter's branch to some entries of its input's first dimension. They are the rows of the
batch in most models. In others that dimension is the length of the text (LED) or counts tokens (experts), and
in some the rows meet (batch normalization in training mode). Batches of two and of three rows show which.
"""

from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from lora_hf.adapters.model_state import lora_layers, model_state, update_state
from lora_hf.errors import UserError

SOURCE, TARGET = 5, 3
"""Tokens in a row of the probe; another number than its rows, and more than one."""
TOLERANCE = 1e-3
"""Largest change of a row's values, relative to the largest of them, that rounding explains."""
ONE_AT_A_TIME = "so its rows cannot have adapters of their own; use set_adapter, one adapter at a time"
Inputs = Callable[[int, int], tuple[tuple[Any, ...], dict[str, Any]]]
"""(rows, variant) -> arguments of the forward: the first row is always the same, others are the variant's."""


def probe_rows(model: Any, stack: ExitStack) -> None:
    """Probe a model that reads token ids at once, and another one at its first forward while `stack` is open.

    A result holds as long as the adapted layers and the mode (training or not) stay the same.

    Raises:
        UserError: a layer's first dimension is not the batch, or rows of the batch meet; it names the layer.
    """
    key = (model.training, frozenset(lora_layers(model)))
    if key in model_state(model).rows_probed:
        return

    def check(inputs: Inputs) -> None:
        _check(model, inputs)
        update_state(model, rows_probed=model_state(model).rows_probed | {key})

    if (inputs := _token_inputs(model)) is not None:
        check(inputs)
        return

    def at_first_call(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        handle.remove()
        values = [*args, *kwargs.values()]
        if all(isinstance(value, Tensor | bool | int | float | str | None) for value in values):
            check(_variants_of(args, kwargs))

    handle = model.register_forward_pre_hook(at_first_call, with_kwargs=True)
    stack.callback(handle.remove)


def _token_inputs(model: Any) -> Inputs | None:
    """Return inputs of token ids; None for a model that reads something else."""
    config, device = getattr(model, "config", None), next(model.parameters()).device
    size = getattr(config, "vocab_size", None)
    if getattr(model, "main_input_name", None) != "input_ids" or not isinstance(size, int) or size < 20:
        return None

    def inputs(rows: int, variant: int) -> tuple[tuple[Any, ...], dict[str, Any]]:
        def ids(length: int) -> Tensor:
            start = torch.tensor([3, 6 + 4 * variant, 7 + 5 * variant][:rows], device=device)
            return start[:, None] + torch.arange(length, device=device)

        found = {"input_ids": ids(SOURCE), "attention_mask": torch.ones_like(ids(SOURCE))}
        if getattr(config, "is_encoder_decoder", False):
            found["decoder_input_ids"] = ids(TARGET)
        return (), found | {"use_cache": False}

    return inputs


def _variants_of(args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> Inputs:
    """Return inputs made from the first row of a real batch."""
    first = next((x for x in [*args, *kwargs.values()] if isinstance(x, Tensor) and x.dim()), None)
    size = 0 if first is None else len(first)

    def inputs(rows: int, variant: int) -> tuple[tuple[Any, ...], dict[str, Any]]:
        def rebuilt(value: Any) -> Any:
            if not isinstance(value, Tensor) or not value.dim() or len(value) != size:
                return value
            row = value[0]
            factors = (2 + variant, -1 - 3 * variant)  # normalized, any two rows are the same
            if row.is_floating_point():
                return torch.stack([row, *(row * factor for factor in factors)][:rows])
            return torch.stack([row.roll(i * (variant + 1)) for i in range(rows)])

        return tuple(map(rebuilt, args)), {name: rebuilt(value) for name, value in kwargs.items()}

    return inputs


def _check(model: nn.Module, inputs: Inputs) -> None:
    runs = []
    for rows, variant in ((2, 0), (3, 0), (3, 1)):
        seen = _run(model, *inputs(rows, variant))
        for name, values in seen.items():
            if name and (wrong := next((x for x in values if x.shape[0] != rows), None)) is not None:
                raise UserError(
                    f"{name} gets {tuple(wrong.shape)} for a batch of {rows} rows: its first dimension is "
                    f"not the batch, {ONE_AT_A_TIME}"
                )
        runs.append(seen)
    for name, values in runs[1].items():
        if any(_differ(*pair) for pair in zip(values, runs[2].get(name, []), strict=False)):
            raise UserError(
                f"rows of a batch change each other's values before {name or 'the output'}, as batch "
                f"normalization does in training mode, {ONE_AT_A_TIME}, or call model.eval()"
            )


def _run(model: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> dict[str, list[Tensor]]:
    """Run the base, and return the inputs of the adapted layers by name, and the output under an empty name.

    Args:
        model: carries adapters, which are off in this run.
        args, kwargs: of its forward.
    """
    seen: dict[str, list[Tensor]] = {}
    devices = [d for d in {p.device for p in model.parameters()} if d.type == "cuda"]
    with unchanged(model), torch.no_grad(), torch.random.fork_rng(devices=devices), ExitStack() as stack:
        torch.manual_seed(0)  # the same dropout in each run
        for name, layer in lora_layers(model).items():
            layer.enabled = False
            own = seen.setdefault(name, [])
            stack.enter_context(layer.register_forward_pre_hook(lambda _, args, own=own: own.append(args[0])))
        output: Any = model(*args, **kwargs)
    values = [output] if isinstance(output, Tensor) else list(getattr(output, "values", lambda: output)())
    seen[""] = [x for x in values if isinstance(x, Tensor) and x.dim()][:1]  # behind the loss
    return seen


@contextmanager
def unchanged(model: nn.Module) -> Iterator[None]:
    """Restore what a forward changes: running statistics, and layers that follow the length (BigBird's)."""
    modules = list(model.modules())
    kept = [
        (
            module,
            dict(module._modules),
            {k: v for k, v in vars(module).items() if isinstance(v, bool | int | str)},
        )
        for module in modules
    ]
    statistics = [b for m in modules if m.training and hasattr(m, "running_mean") for b in m.buffers()]
    before = [buffer.clone() for buffer in statistics]
    try:
        yield
    finally:
        for module, children, attributes in kept:
            module._modules.clear()
            module._modules.update(children)
            vars(module).update(attributes)
        for buffer, old in zip(statistics, before, strict=True):
            buffer.copy_(old)


def _differ(one: Tensor, other: Tensor) -> bool:
    """Return whether the first of three rows differs, in a tensor of rows."""
    if one.shape != other.shape or one.shape[0] != 3 or not one.is_floating_point():
        return False
    change, largest = (one[0] - other[0]).abs().max(), one[0].abs().max()
    return bool(change > TOLERANCE * largest)
