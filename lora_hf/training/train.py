"""The training stage of a run: add weights, run the Trainer, save the result."""

import logging
import math
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from transformers import (
    EarlyStoppingCallback,
    PrinterCallback,
    ProgressCallback,
    TrainerCallback,
    TrainerState,
    TrainingArguments,
)

from lora_hf.adapters import count_parameters
from lora_hf.adapters.model_state import model_state, update_state
from lora_hf.config import RunConfig
from lora_hf.config.prediction import PredictionSettings
from lora_hf.data.collate import collator
from lora_hf.data.prepare import RunData
from lora_hf.distributed import from_main, full_weights, in_all_processes, is_main, is_sharded
from lora_hf.evaluation.evaluate import ValidationScores
from lora_hf.evaluation.metrics import Scoring
from lora_hf.evaluation.retention import RetentionTask
from lora_hf.files import whole
from lora_hf.models.generation import generation_config
from lora_hf.models.languages import set_language
from lora_hf.models.load import load_model, quiet
from lora_hf.models.plain_folder import public_name, save_model
from lora_hf.run_files import ADAPTER, CHECKPOINTS, MODEL
from lora_hf.run_records import TrainingRecord
from lora_hf.scores import Score
from lora_hf.system import resolve_dtype
from lora_hf.training.arguments import training_arguments
from lora_hf.training.checkpoints import newest_checkpoint
from lora_hf.training.compiling import compiles_by_default
from lora_hf.training.progress import ShowProgress
from lora_hf.training.registry import ADDED_WEIGHTS
from lora_hf.training.signals import Interrupted, StopOnSignal
from lora_hf.training.trainer import LoraTrainer

CLEAR_GAIN = 0.02
"""Share of the best earlier score by which the last one must be better, for the advice to train longer."""
logger = logging.getLogger(__name__)


@dataclass
class Run:
    """One run in this process."""

    config: RunConfig
    directory: Path
    tokenizer: Any
    data: RunData
    model: Any
    """The base model at first; in the end the trained one, complete in every process."""
    retention: list[RetentionTask] = field(default_factory=list)
    """Further tasks that it is scored on before and after training."""

    @property
    def has_added_weights(self) -> bool:
        """Return whether the method trains weights beside the model's own."""
        return self.config.method in ADDED_WEIGHTS


def adapt(run: Run) -> None:
    """Add the weights that the method trains; for full fine-tuning the model stays as loaded."""
    if run.has_added_weights:
        ADDED_WEIGHTS[run.config.method].add(run.config, run.model)
    trainable, total = count_parameters(run.model)
    logger.info(
        "method: %s, %s of %s parameters are trainable (%.2f%%)",
        *(run.config.method, f"{trainable:,}", f"{total:,}", 100 * trainable / total),
    )


def train(run: Run) -> TrainingRecord:
    """Train the model in place, resuming from the last checkpoint if there is one, and save the result.

    Raises:
        Interrupted: a signal stopped the training; a checkpoint is saved.
    """
    stop = StopOnSignal()
    trainer = in_all_processes(lambda: make_trainer(run, stop))
    checkpoint = from_main(lambda: newest_checkpoint(run.directory / CHECKPOINTS))
    if checkpoint:
        logger.info("resuming from %s", checkpoint)
    with _own_forward(run.model):
        output = _run_trainer(trainer, stop, str(checkpoint) if checkpoint else None)
    if is_main() and (advice := longer_training(trainer.state, trainer.args)):
        logger.info(advice)
    with full_weights(run.model, only_trained=run.has_added_weights):
        if is_main():
            save_trained(run)
    if not is_sharded(run.model):
        _release(trainer)
    trainable, total = count_parameters(run.model)
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


def make_trainer(run: Run, stop: StopOnSignal) -> LoraTrainer:
    """Return the trainer of a run.

    Raises:
        UserError: a setting of `training:` needs a missing package, or is not supported by this machine.
    """
    config, data = run.config, run.data
    dtype = resolve_dtype(config.model.dtype, run.model.device)
    compiles = compiles_by_default(config, data.train, run.model.device)
    args = training_arguments(
        config, str(run.directory / CHECKPOINTS), data.max_new_tokens, dtype, compiles=compiles
    )
    set_language(run.model, run.tokenizer, config.data)
    run.model.generation_config = generation_config(run.model, config.generation)  # for evaluations
    scoring = Scoring.of_config(config)
    callbacks: list[TrainerCallback] = [stop]
    if config.early_stopping_patience is not None:
        callbacks.append(EarlyStoppingCallback(config.early_stopping_patience))
    trainer = LoraTrainer(
        run.model,
        args,
        train_dataset=data.train,
        eval_dataset=data.validation,
        processing_class=run.tokenizer,
        data_collator=collator(run.tokenizer, run.model),
        compute_metrics=ValidationScores(run.tokenizer, scoring, data.validation),
        callbacks=callbacks,
        loraplus_lr_ratio=config.loraplus_lr_ratio,
        fast_paths=config.fast_paths,
    )
    trainer.compiles_by_default, trainer.saves_tokenizer = compiles, False
    for shown in (ProgressCallback, PrinterCallback):  # a notebook keeps its own table
        if trainer.pop_callback(shown):
            trainer.add_callback(ShowProgress(main_first(scoring)))
    return trainer


def main_first(scoring: Scoring) -> list[Score]:
    """Return the scores of an evaluation, the main one first."""
    return sorted(scoring.scores, key=lambda score: score != scoring.main)


def longer_training(state: TrainerState, args: TrainingArguments) -> str | None:
    """Return the advice to train longer if the last step's evaluation was the best one, by a clear margin.

    Args:
        state: after training.
        args: those of the training; without `load_best_model_at_end`, no evaluation is known to be the best.
    """
    if (
        not args.load_best_model_at_end
        or state.best_metric is None
        or state.best_global_step != state.max_steps
    ):
        return None
    name = f"eval_{str(args.metric_for_best_model).removeprefix('eval_')}"
    known = [log[name] for log in state.log_history if name in log and log["step"] < state.max_steps]
    if not known:
        return None
    before = max(known) if args.greater_is_better else min(known)
    if abs(state.best_metric - before) <= CLEAR_GAIN * abs(before):
        return None
    field, what = ("max_steps", "steps") if args.max_steps > 0 else ("num_train_epochs", "epochs")
    twice = math.ceil(2 * getattr(args, field))
    change = f"training.{field}={twice}, in a new output_dir"
    return f"the last evaluation was the best: more {what} may help ({change})"


def _run_trainer(trainer: LoraTrainer, stop: StopOnSignal, checkpoint: str | None) -> Any:
    try:
        with quiet():  # a full model's checkpoints are written with a bar for each
            output = trainer.train(resume_from_checkpoint=checkpoint)
    except Interrupted as interrupted:
        if not interrupted.args:  # raised in an evaluation, so between two steps
            trainer._save_checkpoint(trainer.model, trial=None)
        raise Interrupted(interrupted.args[0] if interrupted.args else _saved(trainer)) from None
    finally:
        stop.restore()
        if isinstance(shown := trainer.pop_callback(ShowProgress), ShowProgress):
            shown.close()
    if stop.received is not None:
        raise Interrupted(_saved(trainer))
    return output


def _release(trainer: LoraTrainer) -> None:
    """Free the optimizer's states, which the Trainer's reference cycles would keep through all of scoring."""
    handler = trainer.callback_handler
    trainer.optimizer = trainer.lr_scheduler = handler.optimizer = handler.lr_scheduler = None
    trainer.accelerator.free_memory()


@contextmanager
def _own_forward(model: Any) -> Iterator[None]:
    """Afterwards give the model back its forward, around which accelerate leaves the training's autocast.

    A model that is scored under autocast writes other texts than the same model loaded from its files.
    """
    before = model.__dict__.get("forward")
    yield
    model.__dict__.pop("_original_forward", None)
    model.__dict__.pop("forward", None)
    if before is not None:
        model.forward = before


def _saved(trainer: LoraTrainer) -> str:
    return f"stopped after step {trainer.state.global_step}, checkpoint saved; rerun the command to resume"


def save_trained(run: Run) -> None:
    """Save the added weights with the values that `predict` needs, or the whole model with its tokenizer."""
    config = run.config
    settings = PredictionSettings.of_run(config, run.data.max_new_tokens)
    if column := run.data.translated_column:
        settings = replace(settings, data=config.data.model_copy(update={"dialogue_column": column}))
    if run.has_added_weights:
        for_prediction = settings.manifest() | {"base_store": config.model.storage_fields()}
        with whole(run.directory / ADAPTER) as folder:
            ADDED_WEIGHTS[config.method].save(run.model, folder, for_prediction)
        return
    with whole(run.directory / MODEL) as folder:
        origin = f"{public_name(config.model.model_name_or_path)} with all of its weights fine-tuned."
        save_model(run.model, run.tokenizer, folder, settings, origin)


def load_trained(config: RunConfig, directory: Path, base: Any) -> Any:
    """Return the base model with the weights that `save_trained` wrote, or the model that it wrote."""
    if config.method in ADDED_WEIGHTS:
        return ADDED_WEIGHTS[config.method].load(base, directory / ADAPTER)
    model = config.model.model_copy(update={"model_name_or_path": str(directory / MODEL), "revision": None})
    loaded = load_model(model, base.device, train_all=True, report_generation=False)
    of_base = model_state(base)
    update_state(loaded, base_fingerprint=of_base.base_fingerprint, base_settings=of_base.base_settings)
    return loaded
