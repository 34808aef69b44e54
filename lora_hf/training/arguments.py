"""The `training:` section as `Seq2SeqTrainingArguments`, and what a run checks before it loads a model."""

import json
import logging
import math
import multiprocessing
import os
import warnings
from collections.abc import Mapping, Sized
from contextlib import suppress
from dataclasses import fields
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch
from accelerate.utils import GradientAccumulationPlugin
from torch.utils.checkpoint import checkpoint
from transformers import Seq2SeqTrainingArguments, get_scheduler
from transformers.trainer_pt_utils import AcceleratorConfig

from lora_hf.config import RunConfig
from lora_hf.config.problems import shown
from lora_hf.config.task import SUMMARIZATION
from lora_hf.config.training import asks_to_compile
from lora_hf.config.training_fields import RUN_DEFAULTS
from lora_hf.distributed import world_size
from lora_hf.errors import UserError, counted, did_you_mean, first_line
from lora_hf.evaluation.metrics import Scoring
from lora_hf.system import device_name, pick_device, resolve_dtype
from lora_hf.training.compiling import steps_of
from lora_hf.training.optimizer import check_optimizer
from lora_hf.training.trackers import check_trackers

logger = logging.getLogger(__name__)
FIELDS = {field.name for field in fields(Seq2SeqTrainingArguments)}
CHECKPOINTING_NAMES = ("activation_checkpointing_kwargs", "gradient_checkpointing_kwargs")
CHECKPOINTING = next(
    name for name in CHECKPOINTING_NAMES if name in FIELDS
)  # renamed in Transformers 5.23, which warns of the old name


def training_arguments(
    config: RunConfig,
    checkpoints: str,
    max_new_tokens: int,
    compute_dtype: torch.dtype,
    compiles: bool = False,
) -> Seq2SeqTrainingArguments:
    """Return the YAML's fields over defaults: generation in evaluations, batches of similar length, and so
    on.

    Args:
        config: the run's config.
        checkpoints: folder of the Trainer's checkpoints.
        max_new_tokens: maximum length of summaries in evaluations.
        compute_dtype: dtype of the base model; bfloat16 turns on autocast, with the loss in float32.
        compiles: compile the model's blocks, although the config does not say so; float32 stays float32.

    Raises:
        UserError: float16, or a setting that this machine does not support.
    """
    check_dtype(compute_dtype)
    defaults: dict[str, Any] = RUN_DEFAULTS | {
        "predict_with_generate": True,
        "train_sampling_strategy": "group_by_length",
        "per_device_eval_batch_size": config.generation.batch_size,
        CHECKPOINTING: {"use_reentrant": False},  # the input of a frozen base has no gradient
        "dataloader_pin_memory": torch.cuda.is_available(),
        "use_cpu": pick_device().type == "cpu",  # otherwise bfloat16 is refused on a CPU
        "bf16": compute_dtype == torch.bfloat16,
        "logging_nan_inf_filter": False,  # the NaN guard checks each step; this filter hides NaN
        "disable_tqdm": False,  # Transformers' own default follows the level of its log
        "restore_callback_states_from_checkpoint": True,  # the counter of early stopping
    }
    if pick_device().type == "cuda" and not config.training.get("use_cpu"):
        defaults |= _loading(config)
    if compiles:
        defaults |= {"torch_compile": True, "tf32": False}  # Transformers turns TF32 on for compiled models
    decided = _best_checkpoint(config) | {
        "push_to_hub": False,  # a run is pushed whole, at its end (`saved.push`)
        "report_to": config.training.get("report_to") or "none",  # Transformers takes null for a name
    }
    try:
        return Seq2SeqTrainingArguments(
            output_dir=checkpoints,
            seed=config.seed,
            generation_max_length=max_new_tokens + 1,  # an encoder-decoder counts the start token
            generation_num_beams=config.generation.num_beams,
            **(defaults | config.training | decided | _accelerator(config.training, defaults)),
        )
    except ValueError as error:  # not supported by this machine, such as bf16 without a device for it
        raise UserError(f"training: {error}") from error
    except ImportError as error:
        raise UserError(f"training: a setting needs a package: {first_line(error)}") from error


def _loading(config: RunConfig) -> dict[str, Any]:
    """Return defaults by which batches are prepared and copied while a GPU computes.

    Workers take rows in the sampler's order and draw nothing, so that a resumed run takes the same steps.
    """
    workers = 0 if config.data.streaming else loading_workers()  # each worker would read every streamed row
    return {
        "dataloader_num_workers": workers,
        "accelerator_config": {"non_blocking": config.training.get("dataloader_pin_memory", True)},
    }


def loading_workers() -> int:
    """Return how many processes prepare batches by default: at most two, beside one CPU for each training.

    They are forked, because the rows and the function that makes batches of them are not copied otherwise;
    where Python starts processes in another way, there are none.
    """
    method = multiprocessing.get_start_method(allow_none=True) or multiprocessing.get_all_start_methods()[0]
    if method != "fork":
        return 0
    return max(0, min(2, len(os.sched_getaffinity(0)) // world_size() - 1))


def _accelerator(training: Mapping[str, Any], defaults: Mapping[str, Any]) -> dict[str, Any]:
    """Return `accelerator_config` with the defaults of fields that a mapping of the user's leaves out."""
    own, given = defaults.get("accelerator_config"), training.get("accelerator_config")
    return {"accelerator_config": own | given} if own and isinstance(given, dict) else {}


def _best_checkpoint(config: RunConfig) -> dict[str, Any]:
    """Return by which score the best checkpoint is chosen, and which direction of it is better.

    Summarization has Transformers' default, the loss; other tasks have their main score.
    """
    training, task = config.training, config.task
    chosen = training.get("metric_for_best_model")
    needs_one = training.get("load_best_model_at_end") or training.get("save_strategy") == "best"
    found: dict[str, Any] = {}
    if chosen is None and needs_one and task != SUMMARIZATION:
        chosen = found["metric_for_best_model"] = task.main
    name = str(chosen or "").removeprefix("eval_")
    is_lower = any(score.name == name and not score.higher_is_better for score in Scoring(task).scores)
    if is_lower and training.get("greater_is_better") is None:
        found["greater_is_better"] = False
    return found


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
    if training.get("ddp_backend") and world_size() == 1:
        raise UserError(
            f"training.ddp_backend={shown(training['ddp_backend'])} is for several processes, and this is "
            "one: start them by `torchrun --nproc_per_node N -m lora_hf train ...`, or remove it"
        )
    if training.get("ddp_backend") in CUDA_BACKENDS and pick_device().type != "cuda":
        raise UserError(
            f"training.ddp_backend={shown(training['ddp_backend'])} needs a GPU, and this machine has none: "
            "use gloo, or remove it"
        )
    check_half(config, pick_device())
    check_environment(config)
    check_accelerator(training.get("accelerator_config"))
    check_checkpointing(training)
    if asks_to_compile(training):
        check_compiler(training.get("torch_compile_backend"))
        if config.model.quantize_wo and config.model.storage in ("nf4", "fp4"):
            raise UserError(
                "model.quantize_wo=true stores 4-bit weights as int8, which bitsandbytes does not let "
                "PyTorch compile: remove it, or training.torch_compile"
            )
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


CUDA_BACKENDS = ("nccl",)
"""Values of `ddp_backend` that exchange data between NVIDIA's GPUs alone."""


def check_half(config: RunConfig, device: torch.device) -> None:
    """Check that the 16-bit dtype of a run fits the device; warn of bfloat16 where a GPU has none.

    Raises:
        UserError: float16 autocast without a GPU, or together with bfloat16 or without the fast path.
    """
    training, model = config.training, config.model
    dtype = resolve_dtype(model.dtype, device)
    in_bf16 = training.get("bf16") or dtype == torch.bfloat16
    if training.get("fp16"):
        conflicts = {
            "needs a GPU, and this machine has none": device.type != "cuda",
            "and model.dtype bfloat16 exclude each other: bfloat16 needs no gradient scaler": dtype
            == torch.bfloat16,
            "needs fast_paths: true, which keeps T5's wo in float32": not config.fast_paths,
            "cannot be combined with training.torch_compile": asks_to_compile(training),
            "cannot be combined with model.quantize_wo, because T5's wo has to stay in float32": bool(
                model.quantize_wo and model.is_quantized
            ),
            "cannot be combined with training.deepspeed or training.fsdp": any(
                training.get(field) for field in SHARDING
            ),
        }
        for reason in (reason for reason, applies in conflicts.items() if applies):
            raise UserError(f"training.fp16=true {reason}")
    if in_bf16 and device.type == "cuda" and torch.cuda.get_device_capability(device) < (8, 0):
        logger.warning(
            "bfloat16 on %s: GPUs of compute capability below 8.0 emulate it, more slowly than float32; "
            "use model.dtype: auto, with training.fp16: true for a family whose fast path allows it",
            device_name(device),
        )


def check_environment(config: RunConfig) -> None:
    """Check that no variable of `accelerate launch` changes the training unless the config says the same.

    Raises:
        UserError: one does, and the run's files would not record it; or it asks for a missing package.
    """
    training, device = config.training, pick_device()
    is_bf16 = training.get("bf16") or resolve_dtype(config.model.dtype, device) == torch.bfloat16
    precision = "fp16" if training.get("fp16") else "bf16" if is_bf16 else "no"
    known = {
        "ACCELERATE_MIXED_PRECISION": (precision, "training.bf16 or training.fp16"),
        "ACCELERATE_TORCH_DEVICE": (device.type, "CUDA_VISIBLE_DEVICES to choose a GPU"),
        "ACCELERATE_USE_MEGATRON_LM": ("no", "training.deepspeed or training.fsdp"),
        "ACCELERATE_USE_SAGEMAKER": ("no", "training.deepspeed or training.fsdp"),
    }
    if not asks_to_compile(training):
        known["ACCELERATE_DYNAMO_BACKEND"] = "no", "training.torch_compile"
    if not find_spec("deepspeed"):
        known["ACCELERATE_USE_DEEPSPEED"] = "no", "training.deepspeed after pip install 'lora_hf[deepspeed]'"
    for name, (own, field) in known.items():
        if (os.environ.get(name) or "no").lower() not in ("no", "false", "0", own):
            raise UserError(
                f"the environment has {name}={os.environ[name]}, which would change the training, and no "
                f"file of the run would say so: unset it (`accelerate launch` sets it), and use {field}"
            )


OF_ONE_READER = ("split_batches", "dispatch_batches")
"""Fields of `accelerator_config` by which one process reads the rows of all."""
OWN_BATCHES = (
    "{}: true cannot be used, because each process reads its own rows: remove it, and set "
    "per_device_train_batch_size to the rows that each process takes at a step"
)


def check_accelerator(given: dict[str, Any] | str | None) -> None:
    """Check the fields of `accelerator_config`, a mapping, its JSON text or the path of a JSON file.

    Raises:
        UserError: a field that accelerate does not have, or a wrong value.
    """
    known = [field.name for field in fields(AcceleratorConfig)]
    held: dict[str, Any] = {}
    if isinstance(given, str):
        held = json.loads(given if given.strip().startswith("{") else Path(given).read_text(encoding="utf-8"))
    elif given:
        held = given
    for name in held.keys() - {*known}:
        raise UserError(
            f"training.accelerator_config={shown(given)}: there is no field {name!r}; its fields are "
            f"{', '.join(known)}.{did_you_mean(str(name), known)}"
        )
    for name in OF_ONE_READER:
        if held.get(name) and world_size() > 1:  # one process reads all rows anyway
            raise UserError(f"training.accelerator_config={shown(given)}: {OWN_BATCHES.format(name)}")
    of_accumulation = held.get("gradient_accumulation_kwargs") or {}
    if not isinstance(of_accumulation, Mapping) or "num_steps" in of_accumulation:
        raise UserError(
            f"training.accelerator_config={shown(given)}: instead of gradient_accumulation_kwargs, set "
            "training.gradient_accumulation_steps"
        )
    try:
        GradientAccumulationPlugin(**of_accumulation)
    except TypeError as error:
        raise UserError(
            f"training.accelerator_config={shown(given)}: gradient_accumulation_kwargs: {first_line(error)}"
        ) from error


def check_checkpointing(training: Mapping[str, Any]) -> None:
    """Try the arguments of activation checkpointing on one function; the model passes them at each block.

    Raises:
        UserError: PyTorch does not accept them.
    """
    for name in CHECKPOINTING_NAMES:
        if given := training.get(name):
            settings = json.loads(given) if isinstance(given, str) else given
            try:
                with warnings.catch_warnings():
                    warnings.simplefilter("ignore")  # about use_reentrant, which may be left out
                    checkpoint(torch.clone, torch.zeros(1, requires_grad=True), **settings)
            except (TypeError, ValueError) as error:
                raise UserError(
                    f"training.{name}={shown(given)}: torch.utils.checkpoint does not accept it "
                    f"({first_line(error)}); the usual value is {{use_reentrant: false}}"
                ) from error


OF_PACKAGES = {"onnxrt": "onnxruntime", "openxla": "torch_xla", "tvm": "tvm"}
"""Backends of `torch.compile` that PyTorch lists also where the module that they import is missing."""


def check_compiler(backend: str | None) -> None:
    """Check that PyTorch has the backend of `torch_compile_backend`.

    Raises:
        UserError: it is not installed.
    """
    from torch._dynamo.backends.registry import list_backends, lookup_backend
    from torch._dynamo.exc import InvalidBackend

    try:
        lookup_backend(name := (backend or "inductor").lower())
        if name in OF_PACKAGES and find_spec(OF_PACKAGES[name]) is None:
            raise ImportError(OF_PACKAGES[name])
    except (InvalidBackend, ImportError) as error:
        raise UserError(
            f"training.torch_compile_backend={backend!r} is not installed; this PyTorch has "
            f"{', '.join(one for one in list_backends() if find_spec(OF_PACKAGES.get(one, 'torch')))}"
        ) from error


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


def doubtful_schedule(config: RunConfig, rows: Sized) -> tuple[str, str] | None:
    """Return how the learning rate of a run differs from what its config says, and the remedy; None if not.

    `warmup_steps: 500` or `num_decay_steps: 1000` is copied with the rest of a script, and a small data set
    is trained in fewer steps.

    Args:
        config: the run's.
        rows: the training split; the steps of one that is streamed from the Hub are unknown.
    """
    training = config.training
    given, steps = training.get("warmup_steps") or 0, steps_of(training, rows)
    if config.method == "base" or steps is None:
        return None
    warmup = int(given) if given >= 1 else math.ceil(steps * given)
    if given and warmup >= steps:
        least = f"the learning rate only reaches {(steps - 1) / warmup:.0%} of training.learning_rate"
        title = f"training.warmup_steps={given:g} is not below the run's {counted(steps, 'step')}: {least}"
        return title, "lower it (0.1 is a tenth of the steps), or train longer"
    given = training.get("lr_scheduler_kwargs") or {}
    settings = json.loads(given) if isinstance(given, str) else given
    rates = _rates(training, settings, warmup, steps)
    if not rates:
        return None
    field = "lr_scheduler_kwargs" if settings else "lr_scheduler_type"
    run = f"in the run's {counted(steps, 'step')} the learning rate"
    title = f"training.{field}={shown(training.get(field))}: {run}"
    if max(rates) < LEAST_PEAK:
        return f"{title} only reaches {max(rates):.2g} of training.learning_rate", FITTING_STEPS
    if max(rates) > MOST_PEAK:
        least = "give a least rate below training.learning_rate"
        return f"{title} rises to {max(rates):,.4g} times training.learning_rate", least
    decays = training.get("lr_scheduler_type") == "warmup_stable_decay"
    if decays and rates[-1] == 1 and settings.get("min_lr_ratio") != 1:
        return f"{title} does not decay", FITTING_STEPS
    return None


LEAST_PEAK, MOST_PEAK = 0.5, 1.001
"""Largest rates of a run, as parts of its `learning_rate`, between which a schedule is as meant."""
FITTING_STEPS = "give numbers of steps that fit into the run, or train longer"
LOOKED_AT = 1000
"""Steps of a run at which the rate is looked at, besides the first ones."""


def _rates(training: Mapping[str, Any], settings: dict[str, Any], warmup: int, steps: int) -> list[float]:
    """Return the learning rate at steps of a run, as parts of the config's; none if it depends on losses."""
    known = {field.name: field.default for field in fields(Seq2SeqTrainingArguments)}
    rate = float(training.get("learning_rate", known["learning_rate"]))
    schedule = get_scheduler(
        training.get("lr_scheduler_type", known["lr_scheduler_type"]),
        torch.optim.SGD([torch.zeros(1)], lr=rate),
        warmup,
        steps,
        settings or None,
    )
    spread = range(0, steps, max(1, steps // LOOKED_AT))
    taken = sorted({*spread, *range(warmup, min(warmup + 2, steps)), steps - 1})
    return [by_step(step) for by_step in getattr(schedule, "lr_lambdas", ())[:1] for step in taken]


def check_dtype(dtype: torch.dtype) -> None:
    """Refuse to train in float16.

    Raises:
        UserError: dtype is float16.
    """
    if dtype == torch.float16:
        raise UserError(
            "model.dtype='float16' has too small a range for training: activations or gradients leave it, "
            "and the loss becomes NaN or nothing is learned; use bfloat16, or float32"
        )
