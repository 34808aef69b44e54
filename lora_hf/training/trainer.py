"""`LoraTrainer`: a Seq2SeqTrainer that knows adapters, counts tokens right and resumes exactly.

Somebody with a Seq2SeqTrainer script changes two lines: `inject_adapters(model, LoraConfig(...))`, and the
class's name. A model without adapters is trained whole, by the same code.
"""

import logging
from contextlib import nullcontext
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from lora_hf.distributed import full_weights
from lora_hf.errors import UserError, first_line
from lora_hf.evaluation.decoding import decoding_for, greedy
from lora_hf.evaluation.generate import fast_generation
from lora_hf.fast.loss import chunked_cross_entropy
from lora_hf.fast.t5 import without_head
from lora_hf.training.checkpoints import last_checkpoint
from lora_hf.training.fast_path import fastest, is_sharded, uncompiled, without_cache
from lora_hf.training.loraplus import split_groups
from lora_hf.training.micro_batch import EVALUATE, HALVE, Halving, memory_told
from lora_hf.training.nan_guard import NumberWatch, check_base_dtype, check_steps, check_weights
from lora_hf.training.registry import added_weights
from lora_hf.training.resumable import ResumableTrainer

logger = logging.getLogger(__name__)


class LoraTrainer(ResumableTrainer):
    """Seq2SeqTrainer for a model with adapters, or with a baseline's weights.

    - Checkpoints hold these only, adapters in PEFT's format; resuming and loading the best model read them.
    - The loss is the mean over the label tokens of the whole step: of all accumulated batches and all
      processes. The Trainer's own multiplies T5's by their number, because T5 takes `num_items_in_batch`
      and does not use it (10.14 became 20.04 at an accumulation of 2).
    - The batch order is a pure function of (data, seed, epoch), length grouping included.
    - Checkpoints and going on from them: `ResumableTrainer`.
    - An evaluation leaves the random states as they were, so that the training is the same without it.
    - A loss that is not finite, gradients that are all zero or a learning rate stuck at 0 end the training
      by a `UserError`, and weights that are not finite are never written.
    - `auto_find_batch_size` halves a batch that does not fit and doubles the accumulation: the same sums.

    Args:
        loraplus_lr_ratio: LoRA+ (arXiv:2402.12354): the learning rate of every B is this times the others',
            throughout the schedule; at least 1.
        fast_paths: a T5 trains by faster ways to the same sums (`lora_hf.fast`), in less memory;
            another model draws its adapters' dropout faster, and the log says why not the rest. Summaries
            for the validation are written as `generate_summaries` does it. `torch_compile` compiles the
            model's blocks, and not the model.

    The other arguments are those of `transformers.Seq2SeqTrainer`.

    Raises:
        UserError: a ratio below 1, or for a model without lora_B.
    """

    loss_is_scaled_for_ga = True
    model: Any

    def __init__(
        self,
        model: Any = None,
        *args: Any,
        loraplus_lr_ratio: float | None = None,
        fast_paths: bool = True,
        **kwargs: Any,
    ) -> None:
        # The Trainer refuses a quantized model that does not say that it carries adapters. The flag also
        # sends `save_pretrained` to PEFT, so it is up only while the Trainer looks.
        is_quantized = getattr(model, "is_quantized", False)  # model is None where a model_init is given
        has_flag = is_quantized and added_weights(model) is not None
        if has_flag:
            model._hf_peft_config_loaded = True
        self.loraplus_lr_ratio = loraplus_lr_ratio
        self.fast_paths, self.has_fast_loss = fast_paths, False
        super().__init__(model, *args, **kwargs)
        if has_flag:
            model._hf_peft_config_loaded = False
        self.model_accepts_loss_kwargs = True  # it is this class that takes num_items_in_batch

    def create_optimizer(self, model: Any = None) -> Any:
        """The Trainer's own, whichever was asked for; with LoRA+, every B in a group of its own rate."""
        is_new = self.optimizer is None
        try:
            optimizer = super().create_optimizer(model)
        except (ImportError, ValueError) as error:  # its package is not here, or the arguments are another's
            name: Any = self.args.optim
            raise UserError(f"training.optim={name.value!r}: {first_line(error)}") from error
        if is_new and self.loraplus_lr_ratio is not None:
            split_groups(optimizer, self.model if model is None else model, self.loraplus_lr_ratio)
        return optimizer

    def compute_loss(
        self,
        model: nn.Module,
        inputs: dict[str, Any],
        return_outputs: bool = False,
        num_items_in_batch: Tensor | int | None = None,
    ) -> Any:
        """The batch's share of the mean loss over the `num_items_in_batch` label tokens of the whole step."""
        if self.has_fast_loss and model.training and not return_outputs:
            outputs, loss = None, self._loss_without_logits(model, inputs)
        else:
            kept = without_cache(self.model) if self.fast_paths and model.training else {}
            outputs = model(**inputs, **kept)
            loss = self.label_smoother(outputs, inputs["labels"]) if self.label_smoother else outputs["loss"]
        if num_items_in_batch is not None:
            tokens = (inputs["labels"] != -100).sum()
            share = tokens / num_items_in_batch * self.accelerator.num_processes  # DDP averages over them
            loss = loss * share
        return (loss, outputs) if return_outputs else loss

    def _loss_without_logits(self, model: nn.Module, inputs: dict[str, Any]) -> Tensor:
        labels = inputs["labels"]
        given = {key: value for key, value in inputs.items() if key != "labels"}
        if "decoder_input_ids" not in given:  # a collator that is given the model makes them
            given["decoder_input_ids"] = self.model.prepare_decoder_input_ids_from_labels(labels)
        with without_head(self.model) as head:
            hidden = model(**given, use_cache=False).logits
        with self.accelerator.autocast():  # the model's own, which gives float32 back, ended with its forward
            return chunked_cross_entropy(hidden, head, labels)

    def training_step(
        self, model: nn.Module, inputs: dict[str, Any], num_items_in_batch: Tensor | int | None = None
    ) -> Tensor:
        """Forward and backward of one batch; in halves where it is asked for and memory runs out."""
        run = partial(super().training_step, model, num_items_in_batch=num_items_in_batch)
        shares = num_items_in_batch is not None  # a mean over rows has no halves that add up to it
        loss = self.halving.take(run, inputs) if self.halving.is_asked and shares else run(inputs)
        self.watch.losses.append(loss)
        return loss

    def _get_grad_norm(self, model: nn.Module, grad_norm: Any = None) -> Any:
        norm = super()._get_grad_norm(model, grad_norm)
        self.halving.end_step()
        self.watch.check_step(norm)
        return norm

    def _evaluate(self, *args: Any, **kwargs: Any) -> Any:
        with memory_told(lambda: f"evaluation after step {self.state.global_step}", EVALUATE):
            metrics = super()._evaluate(*args, **kwargs)
        self.watch.check_evaluation(metrics)
        return metrics

    def _inner_training_loop(self, *args: Any, **kwargs: Any) -> Any:
        self.watch, self.halving = NumberWatch(self), Halving(self)
        check_base_dtype(self.model)
        try:
            with memory_told(lambda: f"step {self.state.global_step + 1}", HALVE):
                output = self._train_by_the_fastest(*args, **kwargs)
            check_steps(self)
            check_weights(self)
        except UserError as error:
            self._close_bars()
            kept = last_checkpoint(Path(str(self.args.output_dir)))
            held = f"the last good checkpoint stays: {kept}" if kept else "no checkpoint to go on from"
            raise type(error)(f"{error}; {held}") from error
        return output

    def _close_bars(self) -> None:
        """End the line of the progress bar, which an error would go on in."""
        for callback in self.callback_handler.callbacks:
            if bar := getattr(callback, "training_bar", None):
                bar.close()

    def _train_by_the_fastest(self, *args: Any, **kwargs: Any) -> Any:
        with fastest(self) as self.has_fast_loss:
            try:
                return super()._inner_training_loop(*args, **kwargs)
            finally:
                self.has_fast_loss = False

    def evaluation_loop(self, *args: Any, **kwargs: Any) -> Any:
        """Each row counted once, the summaries by the fast paths where these can be."""
        cuda = [torch.cuda.current_device()] if torch.cuda.is_available() else []
        with torch.random.fork_rng(devices=cuda), uncompiled(self):  # a data loader draws a seed
            return self._evaluation_loop(*args, **kwargs)

    def _evaluation_loop(self, *args: Any, **kwargs: Any) -> Any:
        is_encoder_decoder = getattr(getattr(self.model, "config", None), "is_encoder_decoder", False)
        writes = getattr(self.args, "predict_with_generate", False) and is_encoder_decoder
        if not (self.fast_paths and writes):
            return super().evaluation_loop(*args, **kwargs)
        asked = getattr(self, "_gen_kwargs", {})
        sharded = is_sharded(self)  # then all processes go on together
        if not sharded and decoding_for(self.model, asked) is greedy:
            self._gen_kwargs = asked | {"custom_generate": greedy}
        with nullcontext() if sharded else fast_generation(self.model):
            return super().evaluation_loop(*args, **kwargs)

    def save_model(self, output_dir: str | None = None, _internal_call: bool = False) -> None:
        """The added weights, whole, from one process; a model without them as the Trainer does it."""
        if added_weights(self.model) is None:
            super().save_model(output_dir, _internal_call)
            return
        with full_weights(self.model):
            self._save(output_dir)
        if self.args.push_to_hub and not _internal_call:
            self.push_to_hub(commit_message="Model save", revision=self.args.hub_revision)

    def _save(self, output_dir: str | None = None, state_dict: Any = None) -> None:
        check_weights(self)
        if added := added_weights(self.model):
            if self.args.should_save:
                added.save(self.model, Path(output_dir or str(self.args.output_dir)), {})
        else:
            super()._save(output_dir, state_dict)

    def _load_from_checkpoint(self, resume_from_checkpoint: str, model: Any = None) -> None:
        if added := added_weights(self.model):
            with full_weights(self.model, changed=True):
                added.restore(self.model, Path(resume_from_checkpoint))
        else:
            super()._load_from_checkpoint(resume_from_checkpoint, model)

    def _load_best_model(self) -> None:
        added, best = added_weights(self.model), self.state.best_model_checkpoint
        if added and best:
            with full_weights(self.model, changed=True):
                added.restore(self.model, Path(best))
        else:
            super()._load_best_model()
