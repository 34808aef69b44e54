"""The NaN guard: end a training at the step at which a number goes wrong, before anything bad is written.

The Trainer continues: it logs a loss of NaN as 0, and overwrites hours of good weights with NaN. The guard
uses numbers that exist anyway, the losses of a step's batches and the norm of the gradients from clipping,
once per step and before the optimizer changes a weight. The Trainer's own filter (`logging_nan_inf_filter`)
waits for the device at each batch.

On a GPU, reading a number at once would leave the device idle until the host has prepared the next step.
There the numbers are read in the next step, by when the device has long computed them. Meanwhile the
optimizer itself skips a step whose numbers are bad, on the device, as it does under a float16 scaler. An
optimizer that cannot skip has its numbers read at once.
"""

from collections.abc import Sized
from functools import cached_property
from math import isfinite
from typing import Any

import torch
from torch import Tensor, nn

from lora_hf.adapters.backends.bitsandbytes import quantized_dtype
from lora_hf.adapters.weight_readers import casts_to_weight
from lora_hf.distributed import AgreedError, add_up
from lora_hf.errors import UserError, few
from lora_hf.families import family_of
from lora_hf.training.fast_path import shards_weights

LATE = ("cuda",)
"""Devices that compute while the host continues: their numbers are read one step late."""

ZERO_STEPS = 2
"""Steps for which the learning rate may be 0: the first of a warm-up, and one more."""
SCALER_STEPS = 17
"""The same in float16, whose scaler starts at 65,536 and skips a step each time it halves the scale."""


ZERO_IN_A_ROW = 30
"""Steps without a gradient that a model may have in a row if it skips blocks at random (LayerDrop,
arXiv:1909.11556): at a probability of one half for all adapted blocks together, once in a billion times."""


def skips_blocks(model: nn.Module) -> bool:
    """Return whether a model in training mode leaves out blocks at random, as `encoder_layerdrop` says."""
    return any(getattr(module, "layerdrop", 0) for module in model.modules())


class Diverged(AgreedError):
    """After some steps, the numbers of a training allow no further one; other settings may do better."""


class NanGuard:
    """Checks the numbers of one training.

    Args:
        trainer: the trainer.
    """

    def __init__(self, trainer: Any) -> None:
        self.trainer = trainer
        self.losses: list[Tensor] = []
        """Losses of the batches since the last step (their shares of its loss), still on the device."""
        self.tokens: Tensor | int | None = None
        """Number of label tokens in these batches."""
        self._zeros = 0
        self._first: int | None = None
        """The first step of this training; above 1 in one that was resumed."""
        self._skipping: Any = None
        """The optimizer, if it skips bad steps on the device."""
        self._unread: tuple[int, Tensor, Any, Tensor | int | None] | None = None
        """A step, its numbers on their way to the host, the event after which they are there, its tokens."""

    def check_step(self, grad_norm: Tensor | float | None) -> None:
        """Check a step after its backward passes and before its weights change.

        On a GPU this checks the step before, and makes the optimizer skip this one if its numbers are bad.

        Args:
            grad_norm: norm of all gradients; None if the engine (DeepSpeed) does not report it.

        Raises:
            UserError: the loss or the norm is not finite, all labels are -100, all gradients are zero, or the
                learning rate stays 0.
        """
        self.check_unread()
        step, numbers = self.trainer.state.global_step + 1, self._numbers(grad_norm)
        is_sharded = hasattr(grad_norm, "full_tensor")
        self._skipping = None if is_sharded else self._skipping_optimizer(numbers)
        if self._skipping is None:
            self._check(step, numbers.tolist(), self.tokens)
        else:
            loss, norm = numbers
            is_bad = ~(loss + norm).isfinite()
            if not self._may_be_zero():
                is_bad |= (norm == 0) & (loss > 0)
            self._skipping.found_inf = is_bad.float()
            host, event = numbers.to("cpu", non_blocking=True), None
            if numbers.device.type == "cuda":
                event = torch.cuda.Event()
                event.record(torch.cuda.current_stream(numbers.device))
            self._unread = step, host, event, self.tokens
        scaler = self._scaler()
        self._first = self._first or step
        last = (ZERO_STEPS if scaler is None else SCALER_STEPS) + 1
        if self._first == last:  # resumed: this step still has the rate of the checkpoint
            last += 1
        if step == last and self._learning_rate() == 0:
            raise AgreedError(
                f"step {step}: the learning rate is still 0; {self._why_stuck(scaler is not None)}"
            )

    def check_unread(self) -> None:
        """Check a step whose numbers were not read yet: before the next step, or before anything is written.

        Raises:
            UserError: as `check_step`.
        """
        if self._unread is None:
            return
        (step, host, event, tokens), self._unread = self._unread, None
        if event is not None:
            event.synchronize()  # recorded a step ago: the device has more to compute, and continues
        self._check(step, host.tolist(), tokens)

    def end(self) -> None:
        """Give the optimizer back as it was."""
        vars(self._skipping or self).pop("found_inf", None)

    def _numbers(self, grad_norm: Tensor | float | None) -> Tensor:
        """Return the step's loss, over all processes, and norm as one tensor on the device."""
        losses, self.losses = self.losses, []
        device = losses[0].device
        loss = torch.stack([x.detach().to(device, torch.float32) for x in losses]).sum()
        add_up(loss)  # so that all processes end with the same message
        if grad_norm is None:
            return loss[None]
        norm = torch.as_tensor(getattr(grad_norm, "full_tensor", lambda: grad_norm)())
        return torch.stack([loss, norm.detach().to(device, torch.float32)])

    def _skipping_optimizer(self, numbers: Tensor) -> Any:
        """Return the optimizer if its fused step can be skipped on the device; otherwise None."""
        trainer = self.trainer
        if numbers.device.type not in LATE or len(numbers) < 2 or self._scaler() or shards_weights(trainer):
            return None
        optimizer = getattr(trainer.optimizer, "optimizer", trainer.optimizer)  # accelerate wraps it
        can_skip = getattr(optimizer, "_step_supports_amp_scaling", False)
        return optimizer if can_skip and all(group["fused"] for group in optimizer.param_groups) else None

    def _check(self, step: int, numbers: list[float], tokens: Tensor | int | None) -> None:
        loss, norm = numbers[0], numbers[1] if len(numbers) > 1 else None
        if not isfinite(loss) and tokens is not None and not int(tokens):
            raise AgreedError(
                f"step {step}: the labels of all of its rows are -100, so nothing can be learned from them: "
                "leave rows without labels out of the dataset"
            )
        scaled = self._scaler() is not None
        for what, value in (("loss", loss), ("gradient norm", None if scaled else norm)):
            if value is not None and not isfinite(value):  # a scaler handles infinite gradients itself
                raise self._error(f"step {step}: the {what} is {value}; {self._remedy(step)}")
        self._zeros = self._zeros + 1 if norm == 0 and loss > 0 else 0
        if self._zeros and not self._may_be_zero():
            raise self._error(
                f"step {step}: all gradients are zero at a loss of {loss:.4g}; {self._why_zero()}"
            )

    def _may_be_zero(self) -> bool:
        """Return whether every block with trained weights may have been skipped in the last step."""
        return self._skips_blocks and self._zeros < ZERO_IN_A_ROW

    @cached_property
    def _skips_blocks(self) -> bool:
        return skips_blocks(self.trainer.model)

    def _scaler(self) -> Any:
        return getattr(self.trainer.accelerator, "scaler", None)

    def check_evaluation(self, metrics: dict[str, float]) -> None:
        """Check the result of an evaluation between two steps.

        Raises:
            UserError: its loss is not finite.
        """
        step = self.trainer.state.global_step
        for name, value in metrics.items():
            if name.endswith("_loss") and not isfinite(value):
                raise self._error(f"after step {step}: {name} is {value}; {self._remedy(step + 1)}")

    def _error(self, text: str) -> AgreedError:
        """Return the error for numbers that no step could go on from: `Diverged` after a step of training."""
        return (Diverged if self.trainer.state.global_step else AgreedError)(text)

    def _learning_rate(self) -> float:
        return max(float(group["lr"]) for group in self.trainer.optimizer.param_groups)

    def _remedy(self, step: int) -> str:
        """Return what caused a number that is not finite, as far as it can be found out, and what to do."""
        args, model = self.trainer.args, self.trainer.model
        if frozen := not_finite(model, trainable=False):
            remedy = "download the checkpoint again; `lora-hf doctor` examines it"
            return f"the base model itself holds NaN or infinity ({few(frozen)}): {remedy}"
        lower = f"choose a training.learning_rate below {args.learning_rate:g}"
        if not 0 < args.max_grad_norm <= 1:
            lower += f", training.max_grad_norm: 1.0 (it is {args.max_grad_norm:g})"
        if broken := not_finite(model, trainable=True):
            return f"trainable weights overflowed in the step before ({few(broken)}): {lower}"
        dtype = "float16" if args.fp16 else str(model.dtype).removeprefix("torch.")
        if step == 1:
            return (
                f"nothing was trained yet: check the base model, its dtype ({dtype}) and the batches' labels"
            )
        wider = "" if dtype == "float32" else f", or float32 (it is {dtype})"
        return f"no weight was changed by this step; {lower}{wider}"

    def _why_zero(self) -> str:
        """Return what may keep gradients from all trainable weights."""
        args, model = self.trainer.args, self.trainer.model
        trainable = [(name, p) for name, p in model.named_parameters() if p.requires_grad]
        without = [name for name, p in trainable if p.grad is None]
        if self._skipping is not None and len(without) == len(trainable):
            without = []  # the step is over, and its gradients are removed
        local = [_local(p) for _, p in trainable]
        largest = max((p.abs().max().item() for p in local if p.numel()), default=0.0)
        causes = [
            "matrices A and B that are both zero",
            f"weights too large (up to {largest:.2g}, at training.learning_rate={args.learning_rate:g})",
        ]
        if args.gradient_checkpointing:
            causes.append("training.gradient_checkpointing with use_reentrant: true")
        if getattr(model, "is_quantized", False):
            causes.append(
                "a storage format without gradients on this machine (try model.load_in_4bit: false)"
            )
        none = f"{len(without)} of {len(trainable)} trainable weights have none at all; " if without else ""
        return f"{none}known causes: {', '.join(causes)}"

    def _why_stuck(self, is_scaled: bool) -> str:
        if is_scaled:
            return "every step was skipped, because its gradients overflow in float16: use bf16 or float32"
        args = self.trainer.args
        if args.learning_rate == 0:
            return "choose a training.learning_rate above 0"
        schedule: Any = args.lr_scheduler_type
        return (
            f"nothing raises it to training.learning_rate={args.learning_rate:g}: "
            f"check training.lr_scheduler_type={schedule.value!r} and training.warmup_steps"
        )


def not_finite(model: nn.Module, trainable: bool) -> list[str]:
    """Return the parameters of this process, trainable or frozen, that hold NaN or infinity."""
    return [
        name
        for name, p in model.named_parameters()
        if p.requires_grad is trainable
        and p.is_floating_point()
        and quantized_dtype(p) is None
        and not _local(p).isfinite().all()
    ]


def _local(parameter: Any) -> Tensor:
    shard: Tensor = getattr(parameter, "to_local", lambda: parameter)()
    return shard.detach()


NO_ROWS = "train_dataset has no rows, so nothing was trained: give a dataset with rows"


def check_steps(trainer: Any) -> None:
    """Refuse to end a training that took no step.

    Raises:
        UserError: no step was asked for, there were no rows, no batch was full, or a callback stopped it.
    """
    args, state = trainer.args, trainer.state
    if not state.max_steps:
        raise UserError(
            f"max_steps={args.max_steps} and num_train_epochs={args.num_train_epochs:g} are no step, so "
            "nothing was trained: raise one of them"
        )
    if not state.global_step:
        rows = trainer.train_dataset
        has_rows = isinstance(rows, Sized) and len(rows) >= args.train_batch_size
        if has_rows and trainer.control.should_training_stop:
            raise UserError("a callback stopped the training before its first step, so nothing was trained")
        if not args.dataloader_drop_last:
            raise UserError(NO_ROWS)
        raise UserError(
            f"training.dataloader_drop_last={str(args.dataloader_drop_last).lower()}: no batch of "
            f"{args.train_batch_size} is full, so nothing was trained; set it to false, or choose a smaller "
            "training.per_device_train_batch_size"
        )


def check_weights(trainer: Any) -> None:
    """Refuse to write trained weights that are not finite.

    Raises:
        UserError: some are not.
    """
    if broken := not_finite(trainer.model, trainable=True):
        raise UserError(
            f"after step {trainer.state.global_step}: {len(broken)} trainable tensors hold NaN or infinity "
            f"({few(broken)}) and are not written; "
            f"choose a training.learning_rate below {trainer.args.learning_rate:g}"
        )


def check_base_dtype(model: Any) -> None:
    """Refuse a base model whose weights, as they are stored, cannot be trained against.

    Raises:
        UserError: quantized weights that were cast, a family in float16 that overflows in it, or packed bytes
            to which activations are cast.
    """
    overflows = family_of(model).overflows_float16
    for name, layer in model.named_modules():
        for child in casts_to_weight(layer):
            if getattr(getattr(layer, child).weight, "dtype", None) == torch.uint8:
                remedy = "keep it dense, or store the same bits as int8 (`load_model` does)"
                raise UserError(
                    f"{name}.{child}: {type(layer).__name__} casts its input to the weight's dtype, "
                    f"torch.uint8; {remedy}"
                )
        weight = getattr(layer, "weight", None)
        if not isinstance(weight, Tensor):
            continue
        expected = quantized_dtype(weight)
        if expected not in (None, weight.dtype):
            remedy = (
                "load the model again and do not cast it: use `dtype=` of from_pretrained, or model.dtype"
            )
            raise UserError(f"{name}: quantized weights of {expected} were cast to {weight.dtype}; {remedy}")
        if overflows and weight.dtype == torch.float16 and expected is None:
            remedy = "load the base in bfloat16 or float32 (model.dtype, or `dtype=` of from_pretrained)"
            raise UserError(f"{name} is in float16, in which this family overflows to NaN; {remedy}")
