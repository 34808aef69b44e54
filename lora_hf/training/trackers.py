"""Where a run's metrics go beside its log: `training.report_to`, by the Trainer's own integrations."""

from transformers.integrations.integration_utils import get_reporting_integration_callbacks

from lora_hf.errors import UserError, first_line

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
