"""`training:` of the YAML as `Seq2SeqTrainingArguments`, with the defaults this task needs."""

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
)  # renamed in transformers 5.23, where the old name warns


def training_arguments(
    config: RunConfig, checkpoints: str, max_new_tokens: int, compute_dtype: torch.dtype
) -> Seq2SeqTrainingArguments:
    """The YAML's fields over these defaults: generation while evaluating, batches of like length.

    Args:
        config: one arm's config.
        checkpoints: folder of the Trainer's checkpoints.
        max_new_tokens: length of the summaries written at each evaluation.
        compute_dtype: of the base model; bfloat16 turns on autocast, so that the loss is still float32.

    Raises:
        UserError: float16, in which T5 overflows, or a setting this machine does not support.
    """
    check_dtype(compute_dtype)
    defaults: dict[str, Any] = {
        "predict_with_generate": True,
        "train_sampling_strategy": "group_by_length",
        "per_device_eval_batch_size": config.generation.batch_size,
        CHECKPOINTING: {"use_reentrant": False},  # a frozen base's input has no gradient
        "dataloader_pin_memory": torch.cuda.is_available(),
        "use_cpu": pick_device().type == "cpu",  # bfloat16 on a CPU is refused unless this is said
        "bf16": compute_dtype == torch.bfloat16,
        "save_strategy": "epoch",
        "logging_nan_inf_filter": False,  # `numbers` looks once a step; this looks at each batch, and hides
        "logging_steps": 50,
        "restore_callback_states_from_checkpoint": True,  # how long early stopping has been patient
    }
    decided = {
        "push_to_hub": False,  # `runs.push` does it, of the whole run
        "report_to": config.training.get("report_to") or "none",  # Transformers takes null for a name
    }
    try:
        return Seq2SeqTrainingArguments(
            output_dir=checkpoints,
            seed=config.seed,
            generation_max_length=max_new_tokens + 1,  # an encoder-decoder counts the start token
            generation_num_beams=1,
            **(defaults | config.training | decided),
        )
    except ValueError as error:  # what this machine cannot do, such as bf16 without a device that has it
        raise UserError(f"training: {error}") from error


def check_dtype(dtype: torch.dtype) -> None:
    """Refuse to train in float16.

    Raises:
        UserError: it is that.
    """
    if dtype == torch.float16:
        raise UserError(
            "model.dtype='float16' cannot train T5: its activations overflow and the loss becomes NaN; "
            "use bfloat16, or float32"
        )


EXTRA = ("tensorboard", "wandb", "mlflow")
"""Those that come with `lora_hf[trackers]`."""


def check_trackers(names: str | list[str] | None) -> None:
    """Make each tracker once, as the Trainer will: a missing package is told before anything is loaded.

    Raises:
        UserError: a name that is none, or a tracker that cannot be made here.
    """
    if names == "all":  # that are installed
        return
    for name in [names] if isinstance(names, str) else names or []:
        try:
            for tracker in get_reporting_integration_callbacks(name):
                tracker()
        except (RuntimeError, ImportError, ValueError) as error:
            remedy = " (pip install 'lora_hf[trackers]')" if name in EXTRA else ""
            raise UserError(f"training.report_to={name!r}: {first_line(error)}{remedy}") from error
