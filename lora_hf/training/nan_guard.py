"""Numbers that go wrong in training: each is named at its step, with what helps, before it is written.

The Trainer's own loop goes on: it logs a loss of NaN as 0, and writes weights of NaN over the hours that were
good. Looked at here is what is there already, the losses of a step's batches and the gradients' norm from
clipping, once a step and before the optimizer changes a weight: one wait for the device, in the place of the
Trainer's one a batch (`logging_nan_inf_filter`).
"""

from math import isfinite
from typing import Any

import torch
from torch import Tensor, nn

from lora_hf.distributed import Agreed, total
from lora_hf.errors import UserError, few
from lora_hf.fast.t5 import MODELS

ZERO_STEPS = 2
"""Steps for which the learning rate may be 0: the first of a warm-up, and one more."""
SCALER_STEPS = 17
"""The same in float16, whose scaler begins at 65,536 and skips a step for each halving until it fits."""


class NumberWatch:
    """Looks at the numbers of one training.

    Args:
        trainer: whose training it is.
    """

    def __init__(self, trainer: Any) -> None:
        self.trainer = trainer
        self.losses: list[Tensor] = []
        """Of the batches since the last step: their shares of its loss, still on the device."""

    def check_step(self, grad_norm: Tensor | float | None) -> None:
        """Look at a step whose gradients are there and whose weights are not yet changed.

        Args:
            grad_norm: of all gradients; None where the engine (DeepSpeed) does not tell it.

        Raises:
            UserError: the loss or the norm is not finite, all gradients are zero, or the rate is stuck at 0.
        """
        norm = None if grad_norm is None else float(getattr(grad_norm, "full_tensor", lambda: grad_norm)())
        loss = total(float(sum(self.losses)))  # of all processes: each ends by the same words
        self.losses = []
        step, scaler = self.trainer.state.global_step + 1, getattr(self.trainer.accelerator, "scaler", None)
        for what, value in (("loss", loss), ("gradient norm", norm if scaler is None else None)):
            if value is not None and not isfinite(value):  # a scaler takes care of infinite gradients itself
                raise Agreed(f"step {step}: the {what} is {value}; {self._remedy(step)}")
        if norm == 0 and loss > 0:
            raise Agreed(f"step {step}: all gradients are zero at a loss of {loss:.4g}; {self._unreached()}")
        if step == (ZERO_STEPS if scaler is None else SCALER_STEPS) + 1 and self._rate() == 0:
            raise Agreed(f"step {step}: the learning rate is still 0; {self._stuck(scaler is not None)}")

    def check_evaluation(self, metrics: dict[str, float]) -> None:
        """Look at what an evaluation between two steps has found.

        Raises:
            UserError: its loss is not finite.
        """
        step = self.trainer.state.global_step
        for name, value in metrics.items():
            if name.endswith("_loss") and not isfinite(value):
                raise Agreed(f"after step {step}: {name} is {value}; {self._remedy(step + 1)}")

    def _rate(self) -> float:
        return max(float(group["lr"]) for group in self.trainer.optimizer.param_groups)

    def _remedy(self, step: int) -> str:
        """What is known of the cause of a number that is not finite."""
        args, model = self.trainer.args, self.trainer.model
        if frozen := not_finite(model, trains=False):
            remedy = "take the checkpoint again; `lora-hf doctor` examines it"
            return f"the base itself holds NaN or infinity ({few(frozen)}): {remedy}"
        lower = f"a training.learning_rate below {args.learning_rate:g}"
        if not 0 < args.max_grad_norm <= 1:
            lower += f", training.max_grad_norm: 1.0 (it is {args.max_grad_norm:g})"
        if broken := not_finite(model, trains=True):
            return f"weights that train left their range in the step before ({few(broken)}): {lower}"
        dtype = "float16" if args.fp16 else str(model.dtype).removeprefix("torch.")
        if step == 1:
            return (
                f"nothing was learned yet: see the base, its dtype ({dtype}) and whether batches have labels"
            )
        wider = "" if dtype == "float32" else f", or float32 (it is {dtype})"
        return f"no weight was changed by this step; {lower}{wider}"

    def _unreached(self) -> str:
        """Why nothing that trains may have got a gradient."""
        args, model = self.trainer.args, self.trainer.model
        trains = [(name, p) for name, p in model.named_parameters() if p.requires_grad]
        without = [name for name, p in trains if p.grad is None]
        held = [_local(p) for _, p in trains]
        largest = max((p.abs().max().item() for p in held if p.numel()), default=0.0)
        causes = [
            "matrices A and B that are both zero",
            f"weights too large (up to {largest:.2g}, at training.learning_rate={args.learning_rate:g})",
        ]
        if args.gradient_checkpointing:
            causes.append("training.gradient_checkpointing with use_reentrant: true")
        if getattr(model, "is_quantized", False):
            causes.append("a store without a gradient on this machine (try model.load_in_4bit: false)")
        none = f"{len(without)} of {len(trains)} weights that train have none at all; " if without else ""
        return f"{none}known causes: {', '.join(causes)}"

    def _stuck(self, is_scaled: bool) -> str:
        if is_scaled:
            return "every step was skipped, for its gradients overflow in float16: use bf16, or float32"
        args = self.trainer.args
        if args.learning_rate == 0:
            return "give a training.learning_rate above 0"
        return (
            f"nothing raises it to training.learning_rate={args.learning_rate:g}: "
            f"see training.lr_scheduler_type={str(args.lr_scheduler_type)!r} and training.warmup_steps"
        )


def not_finite(model: nn.Module, trains: bool) -> list[str]:
    """The parameters that hold NaN or infinity: of those that train, or of the others; of this process."""
    return [
        name
        for name, p in model.named_parameters()
        if p.requires_grad is trains and p.is_floating_point() and not _local(p).isfinite().all()
    ]


def _local(parameter: Any) -> Tensor:
    shard: Tensor = getattr(parameter, "to_local", lambda: parameter)()
    return shard.detach()


def check_steps(trainer: Any) -> None:
    """See that something was trained on.

    Raises:
        UserError: no batch was full.
    """
    args, state = trainer.args, trainer.state
    if state.max_steps and not state.global_step:
        raise UserError(
            f"training.dataloader_drop_last={str(args.dataloader_drop_last).lower()}: no batch of "
            f"{args.train_batch_size} is full, and none was trained on; false, or a smaller "
            "training.per_device_train_batch_size"
        )


def check_weights(trainer: Any) -> None:
    """See that what a trainer has trained may be written.

    Raises:
        UserError: some of it is not finite.
    """
    if broken := not_finite(trainer.model, trains=True):
        raise UserError(
            f"after step {trainer.state.global_step}: {len(broken)} tensors that train hold NaN or infinity "
            f"({few(broken)}) and are not written; "
            f"train with a training.learning_rate below {trainer.args.learning_rate:g}"
        )


def check_base_dtype(model: Any) -> None:
    """See that a base can be trained against as its numbers are stored.

    Raises:
        UserError: quantized weights that were cast, or a T5 in float16 or with `wo` in packed bytes.
    """
    is_t5 = getattr(getattr(model, "config", None), "model_type", None) in MODELS
    for name, layer in model.named_modules():
        weight = getattr(layer, "weight", None)
        if not isinstance(weight, Tensor):
            continue
        if (kept := stored_dtype(weight)) not in (None, weight.dtype):
            remedy = "load it again and never cast it: `dtype=` of from_pretrained, or model.dtype"
            raise UserError(
                f"{name}: quantized weights are {kept}, and were cast to {weight.dtype}; {remedy}"
            )
        if is_t5 and name.endswith(".wo") and weight.dtype == torch.uint8:
            remedy = "keep it dense, or store the same bits as int8 (model.quantize_wo: true does)"
            raise UserError(f"{name}: T5 rounds what enters it to its dtype, {weight.dtype}; {remedy}")
        if is_t5 and weight.dtype == torch.float16:
            remedy = "load the base in bfloat16 or float32 (model.dtype, `dtype=` of from_pretrained)"
            raise UserError(f"{name} is in float16, in which T5 overflows and its loss becomes NaN; {remedy}")


def stored_dtype(weight: Any) -> torch.dtype | None:
    """What a quantized weight of bitsandbytes was stored as; None for any other."""
    if getattr(weight, "quant_state", None) is not None:
        kept: torch.dtype = weight.quant_storage
        return kept
    is_int8 = getattr(weight, "SCB", None) is not None and not getattr(weight, "has_fp16_weights", False)
    return torch.int8 if is_int8 else None
