"""`LoraTrainer`: a Seq2SeqTrainer that supports adapters, weights the loss by tokens and resumes exactly.

A script with a Seq2SeqTrainer changes two lines: `inject_adapters(model, LoraConfig(...))`, and the name of
the class. A model without adapters is trained whole by the same code.
"""

import logging
from collections.abc import Callable
from contextlib import nullcontext
from functools import partial
from inspect import Parameter, signature
from math import isfinite, nan
from pathlib import Path
from typing import Any

import torch
from huggingface_hub import ModelCard
from torch import Tensor, nn
from transformers import Seq2SeqTrainingArguments

from lora_hf.adapters.active import adapters_in_use, carriers_of, check_trainable
from lora_hf.adapters.attention_type import keep_attention_type
from lora_hf.adapters.model_state import adapter_configs, update_state
from lora_hf.adapters.wrappers import unwrapped
from lora_hf.config.training_fields import FIXED
from lora_hf.data.collate import check_padding_side, check_tokens, warn_of_padded_labels, with_decoder_inputs
from lora_hf.distributed import AgreedError, add_up, full_weights
from lora_hf.errors import UserError, did_you_mean, first_line
from lora_hf.evaluation.decoding import decoding_for
from lora_hf.evaluation.generate import fast_generation, numbers_kept
from lora_hf.fast.loss import chunked_cross_entropy
from lora_hf.fast.t5 import without_head
from lora_hf.memory import out_of_memory_reported
from lora_hf.models.positions import positions_of
from lora_hf.scores import METRICS
from lora_hf.training.checkpoints import last_checkpoint
from lora_hf.training.compiling import PADDED_ON, padded_to_buckets
from lora_hf.training.devices import skip_unused_search, use_one_gpu, without_autocast
from lora_hf.training.fast_path import (
    check_float16,
    compiles_blocks,
    fast_training,
    shards_weights,
    uncompiled,
    without_cache,
)
from lora_hf.training.loraplus import split_groups
from lora_hf.training.micro_batch import (
    MICRO_BATCH,
    SMALLER_EVALUATION,
    UNCOMPILED,
    MicroBatching,
)
from lora_hf.training.nan_guard import (
    NO_ROWS,
    NanGuard,
    check_base_dtype,
    check_steps,
    check_weights,
    skips_blocks,
)
from lora_hf.training.optimizer import check_given_optimizer, check_optimizer, check_optimizer_layers
from lora_hf.training.registry import added_weights, check_saved, warn_of_dtype
from lora_hf.training.resumable import ResumableTrainer
from lora_hf.training.trackers import name_failed_starts
from lora_hf.training.unused_layers import UnusedLayers

logger = logging.getLogger(__name__)


OTHER_NAMES = {"tokenizer": "processing_class", "peft_config": "inject_adapters(model, LoraConfig(...))"}
"""What takes the place of arguments that older versions of Transformers or other trainers have."""


class LoraTrainer(ResumableTrainer):
    """Seq2SeqTrainer for a model with adapters or with the weights of a baseline.

    - Checkpoints hold only these weights, adapters in PEFT's format; resuming and loading the best model read
      them. Beside an adapter lies the tokenizer that the trainer was given, which `lora_hf.load` uses.
    - The loss is the mean over the label tokens of the whole step, over all accumulated batches and all
      processes. The Trainer multiplies T5's loss by their number, because T5 accepts `num_items_in_batch` and
      does not use it (10.14 became 20.04 with 2 accumulated batches). A `compute_loss` of your own that takes
      keywords has to divide by `num_items_in_batch` itself.
    - The batch order is a pure function of data, seed and epoch, with length grouping too.
    - Resuming is exact to the bit: `ResumableTrainer`.
    - An evaluation leaves the random states unchanged, so that training takes the same steps without it.
    - A loss that is not finite, gradients that are all zero, or a learning rate stuck at 0 end the training
      with a `UserError`; weights that are not finite are never written (`nan_guard`).
    - `auto_find_batch_size` splits batches that do not fit, at the same effective batch size (`micro_batch`).

    Args:
        loraplus_lr_ratio: LoRA+ (arXiv:2402.12354): ratio of every B's learning rate to that of the other
            weights, throughout the schedule; at least 1.
        fast_paths: use the fast path (`lora_hf.fast`): T5 computes the same values in less time and memory,
            other models draw the adapters' dropout faster, and the log says why the rest is off. Summaries in
            evaluations are generated as by `generate_summaries`. `torch_compile` compiles the model's blocks
            one by one.

    The other arguments are those of `transformers.Seq2SeqTrainer`.

    Raises:
        UserError: the ratio is below 1 or given beside an optimizer, the model has no lora_B, `args` are
            none of a `Seq2SeqTrainer`, or it has no argument of a name.
    """

    loss_is_scaled_for_ga = True
    model: Any
    compiles_by_default = False
    """True if a rule, not the user, decided to compile: what cannot be compiled then runs uncompiled."""
    saves_tokenizer = True
    """True if the tokenizer is written beside the adapter; the folder of a run names that of its base."""
    _has_begun = False
    _rows_without_token = 0
    """Rows of an evaluation in batches without a label token, whose loss is NaN."""
    _has_nan: Tensor | bool = False
    """True if another batch of the evaluation has a loss that is not finite."""

    def __init__(
        self,
        model: Any = None,
        *args: Any,
        loraplus_lr_ratio: float | None = None,
        fast_paths: bool = True,
        **kwargs: Any,
    ) -> None:
        # The Trainer refuses a quantized model without this flag. It also makes `save_pretrained` use PEFT,
        # so it is set only during the check.
        is_quantized = getattr(model, "is_quantized", False)  # model is None if a model_init is given
        has_flag = is_quantized and added_weights(model) is not None
        if has_flag:
            model._hf_peft_config_loaded = True
        self.loraplus_lr_ratio = loraplus_lr_ratio
        self.fast_paths, self.has_fast_loss, self.has_buckets = fast_paths, False, False
        self._has_autocast_outside = False
        given = args[0] if args else kwargs.get("args")
        if not isinstance(given, Seq2SeqTrainingArguments):
            raise UserError(
                "args: LoraTrainer needs a transformers.Seq2SeqTrainingArguments, not "
                f"{type(given).__name__}; it takes the same fields as TrainingArguments"
            )
        check_arguments(super().__init__, kwargs)
        use_one_gpu(given)
        skip_unused_search(given, model)
        inner = unwrapped(model)  # the Trainer reads names of columns from it, and wraps it as it needs
        super().__init__(inner, *args, **kwargs)
        if loraplus_lr_ratio is not None and self.optimizer is not None:
            raise UserError(
                f"loraplus_lr_ratio={loraplus_lr_ratio!r} has no effect on the "
                f"{type(self.optimizer).__name__} given as optimizers, whose groups have rates of their own: "
                "leave out one of them; without optimizers, args.optim and args.learning_rate make it",
                "loraplus_lr_ratio",
            )
        if hasattr(model, "_orig_mod"):
            self._set_signature_columns_if_needed()
            self.model = self.model_wrapped = model
        if self.args.neftune_noise_alpha is not None:
            raise UserError(
                f"neftune_noise_alpha={self.args.neftune_noise_alpha!r} {FIXED['neftune_noise_alpha'][1]}",
                "neftune_noise_alpha",
            )
        if has_flag:
            model._hf_peft_config_loaded = False
        keep_attention_type(unwrapped(self.model))
        name_failed_starts(self.callback_handler.callbacks)
        self.model_accepts_loss_kwargs = True  # compute_loss uses num_items_in_batch

    def create_optimizer(self, model: Any = None) -> Any:
        """Create the optimizer that `optim` names; with LoRA+, every B is in a group with a higher rate.

        Raises:
            UserError: the optimizer's settings do not fit, or one that was given holds no weight that trains.
        """
        is_new = self.optimizer is None
        if self.optimizer is not None and not self.is_fsdp_enabled:  # FSDP replaces the weights
            check_given_optimizer(self.optimizer, self.model if model is None else model)
        if is_new and self.optimizer_cls_and_kwargs is None:
            check_optimizer(self.args)
            check_optimizer_layers(self.args.optim_target_modules, self.model if model is None else model)
        try:
            optimizer = super().create_optimizer(model)
        except (ImportError, ValueError) as error:  # settings that do not fit the model
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
        """Return the batch's share of the mean loss over the step's `num_items_in_batch` label tokens.

        It is 0 for a batch without a label token, and NaN, which the guard reports, in a step without one.

        A `compute_loss_func` that was given to the trainer is called in the place of the model's own loss.

        Raises:
            UserError: the batch has no labels.
        """
        if inputs.get("labels") is None:
            held = ", ".join(str(name) for name, value in inputs.items() if value is not None)
            raise UserError(
                f"a batch has no labels, only {held}: add the token ids of the target "
                "texts to the rows of the dataset, as `labels`"
            )
        if self.has_buckets and model.training:
            settings = self.model.config
            inputs = padded_to_buckets(inputs, settings.pad_token_id, positions_of(settings))
        inputs = with_decoder_inputs(self.model, inputs)
        if self.compute_loss_func is not None:
            outputs = model(**inputs)  # with the labels, of which the model makes the decoder's inputs
            loss = self.compute_loss_func(outputs, inputs["labels"], num_items_in_batch=num_items_in_batch)
            if num_items_in_batch is not None:  # the function's mean is over the tokens of all processes
                loss = loss * self.accelerator.num_processes
            loss = self._with_gradient(loss)
            return (loss, outputs) if return_outputs else loss
        if self.has_fast_loss and model.training and not return_outputs:
            outputs, loss = None, self._loss_without_logits(model, inputs)
        else:
            no_cache = without_cache(self.model) if self.fast_paths and model.training else {}
            outputs = model(**inputs, **no_cache)
            if self.label_smoother:
                loss = self.label_smoother(outputs, inputs["labels"])
            else:  # a tuple begins with the loss
                loss = outputs["loss"] if isinstance(outputs, dict) else outputs[0]
        if num_items_in_batch is not None:
            tokens = (inputs["labels"] != -100).sum()
            share = (
                tokens / num_items_in_batch * self.accelerator.num_processes
            )  # DDP averages over processes
            loss = torch.where(tokens > 0, loss, 0.0) * share  # NaN is the mean over no token, and of no step
        loss = self._with_gradient(loss)
        return (loss, outputs) if return_outputs else loss

    def _with_gradient(self, loss: Tensor) -> Tensor:
        """Return the loss, with a gradient of zero where all blocks with adapters were skipped.

        Raises:
            UserError: a callback has merged or disabled the adapters.
        """
        if not torch.is_grad_enabled() or loss.requires_grad:
            return loss
        check_trainable(self.model)
        trained = [parameter for parameter in self.model.parameters() if parameter.requires_grad]
        return (
            loss + 0.0 * sum(parameter.sum() for parameter in trained) if skips_blocks(self.model) else loss
        )

    def _loss_without_logits(self, model: nn.Module, inputs: dict[str, Any]) -> Tensor:
        labels = inputs["labels"]
        others = {key: value for key, value in inputs.items() if key != "labels"}
        if "decoder_input_ids" not in others:  # present if the collator knows the model
            others["decoder_input_ids"] = self.model.prepare_decoder_input_ids_from_labels(labels)
        with without_head(self.model) as head:
            hidden = model(**others, use_cache=False).logits
        with self.accelerator.autocast():  # the model's own autocast ended with its forward
            return chunked_cross_entropy(hidden, head, labels)

    def training_step(
        self, model: nn.Module, inputs: dict[str, Any], num_items_in_batch: Tensor | int | None = None
    ) -> Tensor:
        """Run forward and backward of one batch, in micro-batches if that is on and memory runs out.

        Raises:
            UserError: a token without an embedding, or a collator that pads on the left. On a GPU only the
                first batch is checked, because each check waits for the device. Or a callback has added,
                removed, activated or disabled an adapter.
        """
        if (now := sorted(adapter_configs(self.model))) != self.adapters_at_start:
            raise UserError(
                f"step {self.state.global_step + 1}: the model's adapters have changed during the training, "
                f"from {self.adapters_at_start} to {now}, and the optimizer holds the weights of the first "
                "ones: add and delete adapters before train() or after it"
            )
        if (used := sorted(adapters_in_use(self._carriers))) != self.used_at_start:
            check_trainable(self.model)
            raise UserError(
                f"step {self.state.global_step + 1}: the adapters in use have changed during the training, "
                f"from {self.used_at_start} to {used}, and the optimizer holds the weights of the "
                "first ones: call set_adapter before train() or after it, or undo it before the next step"
            )
        if not self._has_begun or self.args.device.type == "cpu":
            check_tokens(unwrapped(self.model), inputs)
        if not self._has_begun:
            check_padding_side(unwrapped(self.model), self.data_collator, inputs)
            warn_of_padded_labels(unwrapped(self.model), inputs)
        self._has_begun = True
        if self.has_buckets:
            torch.compiler.cudagraph_mark_step_begin()  # where a mode of torch_compile records CUDA graphs
        step = partial(super().training_step, model, num_items_in_batch=num_items_in_batch)
        adds_up = num_items_in_batch is not None  # means over the rows of micro-batches would not add up
        loss = (
            self.micro_batching.run(step, inputs) if self.micro_batching.is_on and adds_up else step(inputs)
        )
        self.nan_guard.losses.append(loss)
        self.nan_guard.tokens = num_items_in_batch
        return loss

    def _get_grad_norm(self, model: nn.Module, grad_norm: Any = None) -> Any:
        norm = super()._get_grad_norm(model, grad_norm)
        self.micro_batching.end_step()
        self.nan_guard.check_step(norm)
        self.unused_layers.check_step()
        return norm

    def _maybe_log_save_evaluate(self, *args: Any, **kwargs: Any) -> None:
        control = self.control
        if control.should_log or control.should_evaluate or control.should_save:
            self.nan_guard.check_unread()
        super()._maybe_log_save_evaluate(*args, **kwargs)

    def _finalize_training(self, *args: Any, **kwargs: Any) -> Any:
        self.nan_guard.check_unread()
        return super()._finalize_training(*args, **kwargs)

    def _evaluate(self, *args: Any, **kwargs: Any) -> Any:
        when = f"evaluation after step {self.state.global_step}"
        with out_of_memory_reported(lambda: when, SMALLER_EVALUATION):
            metrics = super()._evaluate(*args, **kwargs)
        self.nan_guard.check_evaluation(metrics)
        return metrics

    def _inner_training_loop(self, *args: Any, **kwargs: Any) -> Any:
        self.nan_guard, self.micro_batching, self._has_begun = NanGuard(self), MicroBatching(self), False
        check_base_dtype(self.model)
        check_float16(self)
        check_trainable(self.model)
        self.adapters_at_start = sorted(adapter_configs(self.model))
        self._carriers = carriers_of(self.model)
        self.used_at_start = sorted(adapters_in_use(self._carriers))
        check_saved(self.model)
        warn_of_dtype(self.model)
        self.unused_layers = UnusedLayers(self.model)
        self.has_buckets = self.args.device.type in PADDED_ON and compiles_blocks(self)
        remedy = f"{UNCOMPILED}; {MICRO_BATCH}" if self.compiles_by_default else MICRO_BATCH
        try:
            with (
                out_of_memory_reported(lambda: f"step {self.state.global_step + 1}", remedy),
                fast_training(self) as self.has_fast_loss,
            ):
                output = super()._inner_training_loop(*args, **kwargs)
            check_steps(self)
            check_weights(self)
            self.unused_layers.report()
        except UserError as error:
            for callback in self.callback_handler.callbacks:
                if bar := getattr(callback, "training_bar", None):
                    bar.close()  # ends its line, so that the message starts a new one
            kept = last_checkpoint(Path(str(self.args.output_dir)))
            if not kept and not self.state.global_step:
                raise
            outcome = f"the last good checkpoint is kept: {kept}" if kept else "no checkpoint to resume from"
            raise type(error)(f"{error}; {outcome}") from error
        except ValueError as error:
            if "does not contain any data" not in str(error):  # of accelerate, about a stream
                raise
            raise UserError(NO_ROWS) from error
        finally:
            self.has_fast_loss = self.has_buckets = False
            self.nan_guard.end()
            if added_weights(self.model) is None and self.state.global_step:
                update_state(self.model, is_changed=True, base_weights=None)
        return output

    def evaluation_loop(self, *args: Any, **kwargs: Any) -> Any:
        """Evaluate, count each row once, and generate on the fast path.

        Random states and the modules' own numbers are left unchanged. Texts are generated without autocast,
        as the trained model will write them; the loss is computed as in training.
        """
        is_encoder_decoder = getattr(getattr(self.model, "config", None), "is_encoder_decoder", False)
        generates = getattr(self.args, "predict_with_generate", False) and is_encoder_decoder
        fast = self.fast_paths and generates and not shards_weights(self)  # shards: rows must end together
        options = getattr(self, "_gen_kwargs", {})
        if fast and (decoding := decoding_for(self.model, options)):
            self._gen_kwargs = options | {"custom_generate": decoding}
        cuda = [torch.cuda.current_device()] if torch.cuda.is_available() else []
        with (
            torch.random.fork_rng(devices=cuda),  # a data loader draws a seed
            numbers_kept(self.model),
            uncompiled(self),
            fast_generation(self.model) if fast else nullcontext(),
            without_autocast(self.model) if generates else nullcontext(False) as self._has_autocast_outside,
        ):
            self._rows_without_token, self._has_nan = 0, False
            try:
                output = super().evaluation_loop(*args, **kwargs)
            finally:
                self._has_autocast_outside = False
            self._correct_loss(output.metrics, f"{kwargs.get('metric_key_prefix', 'eval')}_loss")
            return output

    def prediction_step(
        self,
        model: nn.Module,
        inputs: dict[str, Any],
        prediction_loss_only: bool,
        ignore_keys: list[str] | None = None,
        **gen_kwargs: Any,
    ) -> tuple[Any, Any, Any]:
        """Evaluate a batch. Rows without labels get texts, if texts are to be generated, and no loss.

        Raises:
            UserError: there are no labels, and no text is to be generated.
        """
        labels = inputs.get("labels")
        can_generate = getattr(unwrapped(self.model), "can_generate", lambda: False)
        args: Any = self.args
        if labels is None and self.label_names == ["labels"] and can_generate():
            if prediction_loss_only or not args.predict_with_generate:
                raise UserError(
                    "the rows have no labels, without which there is neither a loss nor a prediction: add "
                    "the token ids of the target texts as `labels`, or call predict with "
                    f"predict_with_generate=True in args (it is {args.predict_with_generate})"
                )
            inputs = {name: value for name, value in inputs.items() if name != "labels"}
        elif isinstance(labels, Tensor) and not bool((labels != -100).any()):
            self._rows_without_token += len(labels)
            return super().prediction_step(model, inputs, prediction_loss_only, ignore_keys, **gen_kwargs)
        found = super().prediction_step(model, inputs, prediction_loss_only, ignore_keys, **gen_kwargs)
        if labels is not None and isinstance(found[0], Tensor):
            self._has_nan = ~found[0].isfinite().all() | self._has_nan  # read at the end: a GPU does not wait
        return found

    def _correct_loss(self, metrics: dict[str, float], name: str) -> None:
        """Say what the loss of an evaluation leaves out, or why it is NaN.

        The Trainer takes its mean over the batches where it is finite, in older versions of Transformers over
        all. Here a loss that is not finite, although the batch has labels, makes the mean NaN.

        Raises:
            UserError: it is NaN because of labels; in `predict`, whose texts are there, this is a warning.
        """
        rows, spoiled = torch.tensor([self._rows_without_token, int(self._has_nan)], device=self.args.device)
        add_up(rows)
        add_up(spoiled)
        if name not in metrics or not (rows or spoiled):
            return
        if spoiled:
            metrics[name] = nan
            return
        value = metrics[name]
        effect = "has nothing of" if isfinite(value) else f"is {value}, because of"
        text = (
            f"{name} {effect} {int(rows):,} rows in batches whose labels are all -100: leave rows "
            "without labels out of the dataset"
        )
        if name.startswith("eval") and not isfinite(value):
            raise AgreedError(text)
        logger.warning("%s", text)

    def compute_loss_context_manager(self) -> Any:
        """Return the context of an evaluation's loss: the training's autocast, if the forward lacks it."""
        inner = super().compute_loss_context_manager()
        if self._has_autocast_outside:
            inner.enter_context(self.accelerator.autocast())
        return inner

    def save_model(self, output_dir: str | None = None, _internal_call: bool = False) -> None:
        """Save the added weights, gathered in one process; a model without them as the Trainer does."""
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
                folder = Path(output_dir or str(self.args.output_dir))
                added.save(self.model, folder, {})
                tokenizer = self.processing_class or getattr(self.data_collator, "tokenizer", None)
                if self.saves_tokenizer and tokenizer is not None:  # its tokens may be others than the base's
                    tokenizer.save_pretrained(folder)
        else:
            super()._save(output_dir, state_dict)

    def create_model_card(self, *args: Any, **kwargs: Any) -> None:
        """Write the Trainer's model card; the metadata of adapters say what they are, as PEFT's do."""
        file = Path(str(self.args.output_dir)) / "README.md"
        names = self.is_world_process_zero() and bool(adapter_configs(self.model))
        if names and file.is_file():  # for a card of PEFT's, the Trainer calls a method of PEFT's models
            card = ModelCard.load(file)
            card.data.library_name = None
            card.save(file)
        super().create_model_card(*args, **kwargs)
        if names:
            card = ModelCard.load(file)
            card.data.library_name = "peft"
            card.data.tags = list(dict.fromkeys([*(card.data.tags or ()), "lora"]))
            if card.data.base_model:
                card.data.base_model_relation = "adapter"
            card.save(file)

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
        if best and self.is_world_process_zero():
            state, name = self.state, str(self.args.metric_for_best_model).removeprefix("eval_")
            labels = {score.name: score.label for metric in METRICS.values() for score in metric}
            text = "the weights of step %d of %d are kept: the best %s, %.4g"
            what = labels.get(name, name)
            logger.info(text, state.best_global_step, state.global_step, what, state.best_metric)


def check_arguments(function: Callable[..., Any], given: dict[str, Any]) -> None:
    """Refuse keywords that the trainer's `__init__` does not have.

    Raises:
        UserError: there is one. The message names what takes its place.
    """
    known = signature(function).parameters
    if any(parameter.kind is Parameter.VAR_KEYWORD for parameter in known.values()):
        return
    for name in given.keys() - known.keys():
        if name in OTHER_NAMES:
            hint = f" Use {OTHER_NAMES[name]} instead."
        elif name in signature(Seq2SeqTrainingArguments).parameters:
            hint = " It is a field of args, the Seq2SeqTrainingArguments."
        else:
            hint = did_you_mean(name, known)
        raise UserError(f"LoraTrainer has no argument {name!r}.{hint}", name)
