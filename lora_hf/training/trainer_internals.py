"""Private names of Transformers' Trainer that `lora_hf.training` overrides or uses, and why.

Any release of Transformers may rename them or change how they are called, so `pyproject.toml` admits no
version above the last one tried. To try a new version, run `tests/training/test_trainer_internals.py`: it
names each entry that is missing or has other parameters, and each private name in use that this table lacks.
Then run `tests/training` and `tests/runs`, which show whether the behavior is still the same.
"""

from typing import NamedTuple


class Internal(NamedTuple):
    """One private name."""

    reason: str
    """Why the public interface is not enough."""
    parameters: tuple[str, ...] | None
    """Its parameters without `self`, in order; None for an attribute."""


OVERRIDDEN: dict[str, Internal] = {
    "_inner_training_loop": Internal(
        "The fast path, the NaN guard and micro-batching last as long as the loop. `train` has placed the "
        "model and read the checkpoint when it calls this.",
        ("batch_size", "args", "resume_from_checkpoint", "trial", "ignore_keys_for_eval"),
    ),
    "_run_epoch": Internal(
        "Before its first step, an interrupted evaluation is repeated, and a run that has ended takes no "
        "step. `epoch`, `trial` and `ignore_keys_for_eval` are read as keywords.",
        (
            *("model", "epoch", "train_dataloader", "steps_in_epoch", "num_update_steps_per_epoch", "trial"),
            *("ignore_keys_for_eval", "start_time", "resume_from_checkpoint", "epochs_trained"),
            "steps_trained_in_current_epoch",
        ),
    ),
    "_finalize_training": Internal(
        "After the last step, an interrupted evaluation is repeated, and on a GPU its numbers are checked.",
        ("trial", "num_train_samples", "start_time"),
    ),
    "_load_optimizer_and_scheduler": Internal(
        "The state of another optimizer is refused here; the Trainer would fail in the first step, or go on.",
        ("checkpoint",),
    ),
    "_get_grad_norm": Internal(
        "The one place between a step's gradients and the optimizer that knows their norm; callbacks do not.",
        ("model", "grad_norm"),
    ),
    "_evaluate": Internal(
        "Out of memory and a loss that is not finite are reported before that step's checkpoint is written.",
        ("trial", "ignore_keys_for_eval", "skip_scheduler"),
    ),
    "_maybe_log_save_evaluate": Internal(
        "On a GPU, the numbers of the last step are checked before it is logged, evaluated or saved. Also "
        "called, to repeat an interrupted evaluation with all that the Trainer does around one.",
        (
            *("tr_loss", "grad_norm", "model", "trial", "epoch", "ignore_keys_for_eval", "start_time"),
            "learning_rate",
        ),
    ),
    "_determine_best_metric": Internal(
        "The best evaluation is saved, because it will be loaded; the Trainer saves at multiples of "
        "`save_steps` alone.",
        ("metrics", "trial"),
    ),
    "_get_train_sampler": Internal(
        "Batches depend on data, seed and epoch alone; the Trainer's length grouping draws from the global "
        "random state.",
        ("train_dataset",),
    ),
    "_save_checkpoint": Internal(
        "A checkpoint is written beside its place, sealed and renamed, and only then are older ones removed.",
        ("model", "trial"),
    ),
    "_get_output_dir": Internal(
        "Redirects the Trainer's writing to the place beside the checkpoint.", ("trial",)
    ),
    "_push_from_checkpoint": Internal(
        "Uploads from the checkpoint's final place: the upload continues in the background after the rename.",
        ("checkpoint_folder",),
    ),
    "_save": Internal("Writes the adapter, or a baseline's weights, alone.", ("output_dir", "state_dict")),
    "_load_from_checkpoint": Internal("Reads what `_save` wrote.", ("resume_from_checkpoint", "model")),
    "_load_best_model": Internal("Reads what `_save` wrote.", ()),
}
USED: dict[str, Internal] = {
    "_set_signature_columns_if_needed": Internal(
        "Called while the model is not yet the compiled one, whose forward accepts anything.", ()
    ),
    "_load_rng_state": Internal(
        "Random states at the beginning of a repeated evaluation: those of the checkpoint.", ("checkpoint",)
    ),
    "_tr_loss": Internal(
        "An argument of `_maybe_log_save_evaluate`, and the last part of the loss so far.", None
    ),
    "_total_loss_scalar": Internal(
        "The sum of the losses that were logged: a checkpoint keeps it, for the mean of a resumed run.", None
    ),
    "_gen_kwargs": Internal(
        "Keywords of `generate` in an evaluation between two steps, where nobody calls `evaluate` with them.",
        None,
    ),
    "_hf_peft_config_loaded": Internal(
        "A flag of the model: the Trainer refuses to train a quantized model without it.", None
    ),
}
