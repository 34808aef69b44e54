"""The `training:` section as `Seq2SeqTrainingArguments`, and what a run checks before it loads a model."""

import copy
from collections.abc import Sized
from contextlib import suppress
from dataclasses import fields
from importlib.util import find_spec
from typing import Any

import torch
from torch import nn
from transformers import Seq2SeqTrainer, Seq2SeqTrainingArguments
from transformers.integrations.integration_utils import get_reporting_integration_callbacks

from lora_hf.config import RunConfig
from lora_hf.config.problems import shown
from lora_hf.distributed import world_size
from lora_hf.errors import UserError, first_line
from lora_hf.system import pick_device, resolve_dtype

FIELDS = {field.name for field in fields(Seq2SeqTrainingArguments)}
CHECKPOINTING = next(
    name for name in ("activation_checkpointing_kwargs", "gradient_checkpointing_kwargs") if name in FIELDS
)  # renamed in Transformers 5.23, which warns of the old name


def training_arguments(
    config: RunConfig, checkpoints: str, max_new_tokens: int, compute_dtype: torch.dtype
) -> Seq2SeqTrainingArguments:
    """Return the YAML's fields over defaults: generation in evaluations, batches of similar length, and so
    on.

    Args:
        config: the run's config.
        checkpoints: folder of the Trainer's checkpoints.
        max_new_tokens: maximum length of summaries in evaluations.
        compute_dtype: dtype of the base model; bfloat16 turns on autocast, with the loss in float32.

    Raises:
        UserError: float16, in which T5 overflows, or a setting that this machine does not support.
    """
    check_dtype(compute_dtype)
    defaults: dict[str, Any] = {
        "predict_with_generate": True,
        "train_sampling_strategy": "group_by_length",
        "per_device_eval_batch_size": config.generation.batch_size,
        CHECKPOINTING: {"use_reentrant": False},  # the input of a frozen base has no gradient
        "dataloader_pin_memory": torch.cuda.is_available(),
        "use_cpu": pick_device().type == "cpu",  # otherwise bfloat16 is refused on a CPU
        "bf16": compute_dtype == torch.bfloat16,
        "save_strategy": "epoch",
        "logging_nan_inf_filter": False,  # the NaN guard checks each step; this filter hides NaN
        "logging_steps": 50,
        "restore_callback_states_from_checkpoint": True,  # the counter of early stopping
    }
    decided = {
        "push_to_hub": False,  # a run is pushed whole, at its end (`saved.push`)
        "report_to": config.training.get("report_to") or "none",  # Transformers takes null for a name
    }
    try:
        return Seq2SeqTrainingArguments(
            output_dir=checkpoints,
            seed=config.seed,
            generation_max_length=max_new_tokens + 1,  # an encoder-decoder counts the start token
            generation_num_beams=config.generation.num_beams,
            **(defaults | config.training | decided),
        )
    except ValueError as error:  # not supported by this machine, such as bf16 without a device for it
        raise UserError(f"training: {error}") from error
    except ImportError as error:
        raise UserError(f"training: a setting needs a package: {first_line(error)}") from error


SHARDING = ("deepspeed", "fsdp", "fsdp_config")
"""Fields that, once they are in a `TrainingArguments`, change how this process loads models."""


def check_training_settings(config: RunConfig) -> Seq2SeqTrainingArguments | None:
    """Check the section `training` on this machine, before a model is loaded.

    Returns:
        The arguments, without `SHARDING`; None if the method trains nothing.

    Raises:
        UserError: a package is missing, a setting needs several processes or another device, or it would have
            no effect.
    """
    if config.method == "base":
        return None
    training = config.training
    check_trackers(training.get("report_to"))
    if training.get("fsdp") and world_size() == 1:
        raise UserError(
            f"training.fsdp={shown(training['fsdp'])} needs several processes, and this is one: start "
            "them by `torchrun --nproc_per_node N -m lora_hf train ...`, or remove fsdp"
        )
    if training.get("fsdp") and training.get("deepspeed"):
        raise UserError("training.fsdp and training.deepspeed cannot be used together: remove one of them")
    if training.get("deepspeed") and not find_spec("deepspeed"):
        raise UserError("training.deepspeed needs the package deepspeed: pip install 'lora_hf[deepspeed]'")
    if config.data.streaming:
        check_streaming(
            str(training.get("train_sampling_strategy", "group_by_length")),
            training.get("dataloader_num_workers", 0),
        )
    plain = config.model_copy(
        update={"training": {key: value for key, value in training.items() if key not in SHARDING}}
    )
    dtype = resolve_dtype(config.model.dtype, pick_device())
    arguments = training_arguments(plain, "unused", config.data.max_target_length, dtype)
    check_optimizer(arguments)
    return arguments


def check_streaming(strategy: str, workers: int) -> None:
    """Check the settings that a streamed training split restricts.

    Raises:
        UserError: an order that needs all rows, or worker processes, which would each read every row.
    """
    if strategy not in ("random", "group_by_length") or workers:
        raise UserError(
            f"data.streaming=true needs training.train_sampling_strategy: random or group_by_length "
            f"(it is {strategy!r}) and training.dataloader_num_workers: 0 (it is {workers})"
        )


def check_full_batches(config: RunConfig, rows: Sized) -> None:
    """Check that `dataloader_drop_last` leaves a batch to train on.

    Args:
        config: the run's.
        rows: the training split; one that is streamed from the Hub has no length, and is not checked.

    Raises:
        UserError: there are fewer rows than a batch of all processes has.
    """
    batch = config.training.get("per_device_train_batch_size", 8) * world_size()
    if config.method == "base" or not config.training.get("dataloader_drop_last"):
        return
    with suppress(TypeError):
        if len(rows) < batch:
            raise UserError(
                f"training.dataloader_drop_last=true: {len(rows):,} rows fill no batch of {batch}, so "
                "nothing would train; set it to false, or lower training.per_device_train_batch_size"
            )


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

    Raises:
        UserError: it holds none of the trainable weights.
    """
    held = {id(weight) for group in optimizer.param_groups for weight in group["params"]}
    if not any(id(weight) in held for weight in model.parameters() if weight.requires_grad):
        raise UserError(
            f"optimizers: the {type(optimizer).__name__} that was given holds none of the weights that "
            "train; create it after inject_adapters"
        )


def check_optimizer(args: Any) -> None:
    """Create the optimizer for a small layer, as the Trainer will for the model.

    Raises:
        UserError: its package is missing, `optim_args` do not fit it, or a setting has no effect on it.
    """
    name, layer = str(getattr(args.optim, "value", args.optim)), nn.Linear(2, 2)
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


def check_dtype(dtype: torch.dtype) -> None:
    """Refuse to train in float16.

    Raises:
        UserError: dtype is float16.
    """
    if dtype == torch.float16:
        raise UserError(
            "model.dtype='float16' cannot train T5: its activations overflow and the loss becomes NaN; "
            "use bfloat16, or float32"
        )


PACKAGED_TRACKERS = ("tensorboard", "wandb", "mlflow")
"""Trackers that `lora_hf[trackers]` installs."""


def check_trackers(names: str | list[str] | None) -> None:
    """Create each tracker once, as the Trainer will, to report a missing package before anything is loaded.

    Raises:
        UserError: an unknown name, or a tracker that cannot be created here.
    """
    if names == "all":  # all that are installed
        return
    for name in [names] if isinstance(names, str) else names or []:
        try:
            for tracker in get_reporting_integration_callbacks(name):
                tracker()
        except (RuntimeError, ImportError, ValueError) as error:
            remedy = " (pip install 'lora_hf[trackers]')" if name in PACKAGED_TRACKERS else ""
            raise UserError(f"training.report_to={name!r}: {first_line(error)}{remedy}") from error
