"""The `training:` section as `Seq2SeqTrainingArguments`, with the defaults that this task needs."""

from dataclasses import fields
from typing import Any

import torch
from transformers import Seq2SeqTrainingArguments
from transformers.integrations.integration_utils import get_reporting_integration_callbacks

from lora_hf.config import RunConfig
from lora_hf.errors import UserError, first_line
from lora_hf.system import pick_device

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
