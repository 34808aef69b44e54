"""Checks of the optimizer: its package, its settings, and the weights that it holds."""

import copy
import logging
from dataclasses import fields
from typing import Any

import torch
from torch import nn
from transformers import Seq2SeqTrainer, Seq2SeqTrainingArguments
from transformers.trainer_utils import check_target_module_exists
from transformers.utils import is_torchao_available

from lora_hf.config.problems import shown
from lora_hf.errors import UserError, few, first_line
from lora_hf.system import reveal

logger = logging.getLogger(__name__)

OPTIMIZER_FIELDS: dict[str, tuple[Any, Any]] = {
    "adam_beta1": (0.5, 0.6),
    "adam_beta2": (0.5, 0.6),
    "adam_epsilon": (0.5, 0.6),
    "optim_target_modules": (None, "all-linear"),
}
"""Fields that some optimizers do not read, with two values that make a difference where one is read."""
TRIED = (None, "0.25", "7", "true", "none")
"""Values of a key of `optim_args`, None for its absence: one of them makes a difference, or is refused."""


def check_given_optimizer(optimizer: torch.optim.Optimizer, model: nn.Module) -> None:
    """Refuse an optimizer that changes nothing: one made of the model's weights before they were frozen.

    One that changes a part of what trains is a warning: it may be meant, or was made before an adapter came.

    Raises:
        UserError: it holds none of the trainable weights.
    """
    held = {id(weight) for group in optimizer.param_groups for weight in group["params"]}
    trainable = {name: weight for name, weight in model.named_parameters() if weight.requires_grad}
    left = [name for name, weight in trainable.items() if id(weight) not in held]
    kind = type(optimizer).__name__
    if len(left) == len(trainable):
        raise UserError(
            f"optimizers: the {kind} that was given holds none of the weights that train; create it after "
            "inject_adapters"
        )
    if left:
        logger.warning(
            "optimizers: the %s that was given leaves out %s of %s tensors that require gradients, which "
            "stay as they are: %s. Create it after the last inject_adapters",
            *(kind, f"{len(left):,}", f"{len(trainable):,}", few(left)),
        )


def check_optimizer(args: Any) -> None:
    """Create the optimizer for a small layer, as the Trainer will for the model.

    Raises:
        UserError: its package is missing, `optim_args` do not fit it, or a setting has no effect on it.
    """
    name, layer = str(getattr(args.optim, "value", args.optim)), nn.Linear(2, 2)
    if name.startswith("adamw_torch_") and name.endswith("bit") and reveal("torchao"):
        is_torchao_available.cache_clear()  # asked while the command line hid the package
    asked, args = args, copy.copy(args)
    if args.optim_target_modules:  # names of the model's layers, of which the small layer has none
        args.optim_target_modules = "all-linear"
    try:
        kind, settings = Seq2SeqTrainer.get_optimizer_cls_and_kwargs(args, layer)  # type: ignore[arg-type]
        if isinstance(kind, type):
            groups = settings.pop("params", None) or list(layer.parameters())
            kind(groups, **settings)
    except Exception as error:  # each package has its own ways to refuse
        given = f" with training.optim_args={args.optim_args!r}" if args.optim_args else ""
        raise UserError(f"training.optim={name!r}{given}: {first_line(error)}") from error
    defaults = {field.name: field.default for field in fields(Seq2SeqTrainingArguments)}
    for field, values in OPTIMIZER_FIELDS.items():
        given = getattr(asked, field)
        if given != defaults[field] and not _makes_a_difference(args, layer, field, values):
            raise UserError(
                f"training.{field}={shown(given)} has no effect with training.optim={name!r}; remove it"
            )
    parts = dict(part.split("=", 1) for part in (args.optim_args or "").replace(" ", "").split(",") if part)
    for key, given in parts.items():
        others = [f"{other}={value}" for other, value in parts.items() if other != key]
        tried = [",".join(others + ([f"{key}={value}"] if value else [])) for value in TRIED]
        if not _makes_a_difference(args, layer, "optim_args", tried):
            raise UserError(
                f"training.optim_args={args.optim_args!r}: {key}={given} has no effect with "
                f"training.optim={name!r}; remove it{_adam_field(key)}"
            )


def check_optimizer_layers(targets: str | list[str] | None, model: nn.Module) -> None:
    """Check that `optim_target_modules` names linear layers that train, with Transformers' own matching.

    Args:
        targets: the field's value.
        model: the model that the run trains; one without memory is enough.

    Raises:
        UserError: it names none, or only layers of a frozen base.
    """
    if not targets:
        return
    linear = {name: module for name, module in model.named_modules() if isinstance(module, nn.Linear)}
    trained = [name for name, module in linear.items() if module.weight.requires_grad]
    is_every = isinstance(targets, str) and targets.replace("_", "-") == "all-linear"
    if trained and (is_every or any(check_target_module_exists(targets, name) for name in trained)):
        return
    ends = sorted({name.split(".")[-1] for name in linear})
    reason = f"; its linear layers end in {', '.join(ends)}"
    if len(trained) < len(linear):
        reason = (
            ": with method: lora these are only the layers of lora.modules_to_save; use method: full, or "
            "another training.optim"
        )
    raise UserError(
        f"training.optim_target_modules={shown(targets)} names no linear layer that trains{reason}"
    )


def _adam_field(key: str) -> str:
    """Return the field that has the place of a usual key of Adam's."""
    known = {"beta1": "adam_beta1", "beta2": "adam_beta2", "eps": "adam_epsilon"}
    known |= {"lr": "learning_rate", "weight_decay": "weight_decay", "betas": "adam_beta1 and adam_beta2"}
    return f", or use training.{known[key]}" if key in known else ""


def _makes_a_difference(args: Any, layer: nn.Module, field: str, values: Any) -> bool:
    """Return whether an optimizer depends on a field: some value changes its settings, or is refused."""
    outcomes = set()
    for value in values:
        changed = copy.copy(args)
        setattr(changed, field, value)
        try:
            kind, settings = Seq2SeqTrainer.get_optimizer_cls_and_kwargs(changed, layer)  # type: ignore[arg-type]
        except Exception as error:
            outcomes.add(type(error).__name__)
            continue
        groups = [{k: v for k, v in group.items() if k != "params"} for group in settings.pop("params", [])]
        outcomes.add(repr((kind, settings, groups)))
    return len(outcomes) > 1
