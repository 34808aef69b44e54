"""The training stage of an arm: new weights in, the Trainer's loop, what was learned on disk."""

import logging
from pathlib import Path
from typing import Any

import torch
from transformers import DataCollatorForSeq2Seq, EarlyStoppingCallback, TrainerCallback

from lora_hf.adapters import count_parameters
from lora_hf.config import RunConfig
from lora_hf.data.prepare import ArmData
from lora_hf.distributed import from_main, full_weights, is_main, together
from lora_hf.errors import UserError, first_line
from lora_hf.evaluation.evaluate import ValidationRouge
from lora_hf.files import whole
from lora_hf.models.load import load_model, save_model
from lora_hf.run_files import ADAPTER, CHECKPOINTS, MODEL
from lora_hf.system import resolve_dtype
from lora_hf.training.arguments import training_arguments
from lora_hf.training.checkpoints import newest_checkpoint
from lora_hf.training.registry import ADDED_WEIGHTS
from lora_hf.training.signals import Interrupted, StopOnSignal
from lora_hf.training.trainer import LoraTrainer

logger = logging.getLogger(__name__)


def adapt(config: RunConfig, model: Any) -> None:
    """Put the new weights in, or leave the model as it is, for a full fine-tuning."""
    if config.method in ADDED_WEIGHTS:
        ADDED_WEIGHTS[config.method].put_in(config, model)
    trainable, total = count_parameters(model)
    logger.info("%s of %s weights train (%.2f %%)", f"{trainable:,}", f"{total:,}", 100 * trainable / total)


def fit(config: RunConfig, run: Path, model: Any, tokenizer: Any, data: ArmData) -> dict[str, Any]:
    """Train in place, going on from the last checkpoint if there is one, and save what was learned.

    Returns:
        What is known of the training: seconds, steps, losses, numbers of weights.

    Raises:
        Interrupted: told to stop; a checkpoint is saved.
    """
    stop = StopOnSignal()
    trainer = together(lambda: make_trainer(config, run, model, tokenizer, data, stop))
    checkpoint = from_main(lambda: newest_checkpoint(run / CHECKPOINTS))
    if checkpoint:
        logger.info("going on from %s", checkpoint)
    output = _train(trainer, stop, str(checkpoint) if checkpoint else None)
    with full_weights(model, only_trained=config.method in ADDED_WEIGHTS):
        if is_main():
            save_trained(config, run, model, tokenizer, data)
    trainable, total = count_parameters(model)
    return {
        "train_seconds": round(output.metrics["train_runtime"], 2),
        "resumed_at_step": int(checkpoint.name.split("-")[1]) if checkpoint else None,
        "steps": trainer.state.global_step,
        "train_loss": output.training_loss,
        "learning_rate": trainer.args.learning_rate,
        "best_metric": trainer.state.best_metric,
        "log": trainer.state.log_history,
        "trainable_parameters": trainable,
        "total_parameters": total,
    }


def make_trainer(
    config: RunConfig, run: Path, model: Any, tokenizer: Any, data: ArmData, stop: StopOnSignal
) -> LoraTrainer:
    """The trainer of an arm; full fine-tuning keeps its weights in float32 and computes as the others do."""
    dtype = resolve_dtype(config.model.dtype, model.device)
    try:
        args = training_arguments(config, str(run / CHECKPOINTS), data.max_new_tokens, dtype)
    except ImportError as error:  # of a package that a setting needs, such as deepspeed
        raise UserError(f"training: a setting needs a package: {first_line(error)}") from error
    callbacks: list[TrainerCallback] = [stop]
    if config.early_stopping_patience is not None:
        callbacks.append(EarlyStoppingCallback(config.early_stopping_patience))
    return LoraTrainer(
        model,
        args,
        train_dataset=data.train,
        eval_dataset=data.validation,
        processing_class=tokenizer,
        data_collator=DataCollatorForSeq2Seq(tokenizer),
        compute_metrics=ValidationRouge(tokenizer),
        callbacks=callbacks,
        loraplus_lr_ratio=config.loraplus_lr_ratio,
        fast_paths=config.fast_paths,
    )


def _train(trainer: LoraTrainer, stop: StopOnSignal, checkpoint: str | None) -> Any:
    try:
        output = trainer.train(resume_from_checkpoint=checkpoint)
    except Interrupted as interrupted:
        if not interrupted.args:  # raised in an evaluation, between two whole steps
            trainer._save_checkpoint(trainer.model, trial=None)
        raise Interrupted(interrupted.args[0] if interrupted.args else _saved(trainer)) from None
    finally:
        stop.restore()
    if stop.received is not None:
        raise Interrupted(_saved(trainer))
    return output


def _saved(trainer: LoraTrainer) -> str:
    return f"stopped after step {trainer.state.global_step}, saved; the same command goes on from there"


def save_trained(config: RunConfig, run: Path, model: Any, tokenizer: Any, data: ArmData) -> None:
    """The new weights, with what `predict` must know to repeat the prompt; or model and tokenizer."""
    if config.method in ADDED_WEIGHTS:
        use = {
            "prompt": config.data.prompt,
            "max_source_length": config.data.max_source_length,
            "max_new_tokens": data.max_new_tokens,
            "base_store": config.model.how_stored(),
        }
        with whole(run / ADAPTER) as folder:
            ADDED_WEIGHTS[config.method].save(model, folder, use)
        return
    with whole(run / MODEL) as folder:
        save_model(model, tokenizer, folder)


def load_trained(config: RunConfig, run: Path, model: Any, device: torch.device) -> Any:
    """What `save_trained` wrote, back on the model it was trained on."""
    if config.method in ADDED_WEIGHTS:
        return ADDED_WEIGHTS[config.method].load(model, run / ADAPTER)
    trained = config.model.model_copy(update={"model_name_or_path": str(run / MODEL), "revision": None})
    loaded = load_model(trained, device, train_all=True)
    loaded.base_fingerprint = model.base_fingerprint
    return loaded
