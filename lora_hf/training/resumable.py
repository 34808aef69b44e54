"""The Trainer with checkpoints that a kill cannot damage, and from which a run resumes bit for bit."""

import logging
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from transformers.trainer_utils import rotate_checkpoints

from lora_hf.errors import UserError, first_line
from lora_hf.training.checkpoints import (
    STATE,
    checkpoint_in,
    is_over,
    keep_loss,
    kept_loss,
    seal,
    was_interrupted,
    whole_checkpoint,
)
from lora_hf.training.dataloading import OrderedTrainer

logger = logging.getLogger(__name__)


class ResumableTrainer(OrderedTrainer):
    """Seq2SeqTrainer whose resumed runs end with the same bits as uninterrupted ones.

    - A checkpoint is written beside its place and renamed; then the oldest are removed, if there is a limit.
    - Resuming after the last step takes no further step. (In the middle of an epoch, the Trainer takes one.)
    - An interrupted evaluation is repeated before the next step.
    - The best evaluation has a checkpoint, whatever `save_steps` is, if it will be loaded at the end.
    """

    model: Any
    _writing_in: Path | None = None
    _resumed_from: str | None = None
    _loss_before: float | None = 0.0
    """Sum of the losses of the steps before this call; None if the checkpoint does not say it."""

    def _inner_training_loop(self, *args: Any, **kwargs: Any) -> Any:
        self._resumed_from, self._loss_before = kwargs.get("resume_from_checkpoint"), 0.0
        return super()._inner_training_loop(*args, **kwargs)

    def _load_optimizer_and_scheduler(self, checkpoint: str | None) -> None:
        """Load the optimizer's state; one of another optimizer is refused before the first step.

        Raises:
            UserError: the checkpoint's optimizer has other settings, or other groups of weights.
        """
        optimizer: Any = self.optimizer
        if checkpoint is None or not hasattr(optimizer, "param_groups"):
            super()._load_optimizer_and_scheduler(checkpoint)
            return
        own = [set(group) for group in optimizer.param_groups]
        reason = ""
        try:
            super()._load_optimizer_and_scheduler(checkpoint)
        except (KeyError, ValueError) as error:
            reason = first_line(error)
        groups = optimizer.param_groups
        missing = {name for names, group in zip(own, groups, strict=False) for name in names - set(group)}
        if missing and not reason:
            reason = f"its state has no {', '.join(sorted(missing))}"
        if reason:
            optim = str(getattr(self.args.optim, "value", self.args.optim))
            raise UserError(
                f"{checkpoint} was saved with another optimizer than {optim=}, or with other weights that "
                f"train ({reason}); resume with the same optim, optimizer settings and active adapters, or "
                "train from the beginning",
                "optim",
            )
        for name, key in (("learning_rate", "initial_lr"), ("weight_decay", "weight_decay")):
            given, kept = getattr(self.args, name), {group.get(key) for group in groups} - {None, 0.0}
            if kept and given and given not in kept and self.optimizer_cls_and_kwargs is None:
                text = "%s=%s is not used: the optimizer of %s continues with %s"
                logger.warning(text, name, given, checkpoint, ", ".join(map(str, sorted(kept))))

    def _run_epoch(self, *args: Any, **kwargs: Any) -> None:
        """Run an epoch, unless the resumed run had ended, or ends by the evaluation that is repeated."""
        self._repeat_evaluation(kwargs.get("trial"), kwargs.get("ignore_keys_for_eval"))
        if is_over(self.state):
            self.control.should_training_stop = True
        if self.epoch_sampler:  # accelerate does not find it in a resumed run of several processes
            self.epoch_sampler.set_epoch(kwargs["epoch"])
        if not self.control.should_training_stop:
            super()._run_epoch(*args, **kwargs)

    def _finalize_training(self, trial: Any, *args: Any, **kwargs: Any) -> Any:
        self._repeat_evaluation(trial, None)
        output = super()._finalize_training(trial, *args, **kwargs)
        if not self._loss_before:
            return output
        total = self._loss_before + self._total_loss_scalar  # the Trainer's mean is over this call's steps
        mean = {"train_loss": total / self.state.global_step}
        self.state.log_history[-1].update(mean)
        return output._replace(training_loss=mean["train_loss"], metrics=output.metrics | mean)

    def _repeat_evaluation(self, trial: Any, ignore_keys: Any) -> None:
        """Repeat the evaluation that a signal interrupted, and save a checkpoint with its result."""
        checkpoint, self._resumed_from = self._resumed_from, None
        if checkpoint:
            self._loss_before = kept_loss(Path(checkpoint))
        if checkpoint and was_interrupted(self.state):
            self._load_rng_state(checkpoint)
            self.control.should_evaluate, self.control.should_save = True, True
            self._maybe_log_save_evaluate(
                self._tr_loss, None, self.model, trial, self.state.epoch or 0, ignore_keys, time.time()
            )

    def _determine_best_metric(self, metrics: dict[str, float], trial: Any) -> bool:
        """Compare an evaluation with the best one; if it is better and will be loaded, have it saved.

        With fewer checkpoints than evaluations, the Trainer would keep the last weights in silence.
        """
        is_best = super()._determine_best_metric(metrics, trial)
        if is_best and self.args.load_best_model_at_end:
            self.control.should_save = True
        return is_best

    def _save_checkpoint(self, model: Any, trial: Any) -> None:
        """Write the checkpoint beside its place, seal and rename it, and only then remove the oldest ones."""
        folder = Path(self._get_output_dir(trial))
        place = checkpoint_in(folder, self.state.global_step)
        wait = self.accelerator.wait_for_everyone
        with whole_checkpoint(place, self.args.should_save) as beside:
            wait()  # until leftovers of a kill are removed
            with self._writing(beside.parent):
                super()._save_checkpoint(model, trial)
            if self._loss_before is not None and self.args.should_save:
                keep_loss(beside, self._loss_before + self._total_loss_scalar + self._tr_loss.item())
            best = checkpoint_in(folder, self.state.best_global_step or 0)
            if best == place or best.is_dir():
                self.state.best_model_checkpoint = str(best)
            wait()  # until each process has written its part
            if self.args.should_save:
                self.state.save_to_json(str(beside / STATE))
                seal(beside)
        wait()
        if self.args.push_to_hub:
            self._push_from_checkpoint(str(place))
        if self.args.should_save:
            limit, best_one = self.args.save_total_limit, self.state.best_model_checkpoint
            rotate_checkpoints(str(folder), limit, best_one, use_mtime=True)

    @contextmanager
    def _writing(self, folder: Path) -> Iterator[None]:
        self._writing_in = folder
        try:
            yield
        finally:
            self._writing_in = None

    def _get_output_dir(self, trial: Any) -> str:
        return str(self._writing_in) if self._writing_in else super()._get_output_dir(trial)

    def _push_from_checkpoint(self, checkpoint_folder: str) -> None:
        if self._writing_in is None:  # the upload runs in the background, and needs the folder's final place
            super()._push_from_checkpoint(checkpoint_folder)
