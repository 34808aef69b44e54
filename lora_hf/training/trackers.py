"""Checks of the trackers in `report_to` before a model is loaded: package, account, server."""

import inspect
import os
import socket
from collections.abc import Callable
from urllib.parse import urlsplit

from transformers.integrations.integration_utils import (
    get_available_reporting_integrations,
    get_reporting_integration_callbacks,
)

from lora_hf.config.problems import shown
from lora_hf.errors import UserError, first_line

PACKAGED_TRACKERS = ("tensorboard", "wandb", "mlflow")
"""Trackers that `lora_hf[trackers]` installs."""
SECONDS = 5
"""Longest wait for a tracker's server; MLflow itself retries for minutes, at the first step."""


def check_trackers(names: str | list[str] | None) -> None:
    """Create each tracker once, as the Trainer will, and check that it can be reached.

    Raises:
        UserError: an unknown name, or a tracker that cannot be created or used here.
    """
    listed = [names] if isinstance(names, str) else names or []
    for name in get_available_reporting_integrations() if listed == ["all"] else listed:
        try:
            for tracker in get_reporting_integration_callbacks(name):
                tracker()
        except (RuntimeError, ImportError, ValueError) as error:
            remedy = " (pip install 'lora_hf[trackers]')" if name in PACKAGED_TRACKERS else ""
            raise UserError(f"training.report_to={name!r}: {first_line(error)}{remedy}") from error
        try:
            USABLE.get(name, lambda: None)()
        except UserError as error:
            raise UserError(f"training.report_to={shown(names)}: {error}") from error


def _check_wandb() -> None:
    """Refuse Weights & Biases without a key: `wandb.init` fails, once the model is loaded."""
    import wandb

    if os.environ.get("WANDB_MODE") in ("offline", "disabled", "dryrun") or os.environ.get("WANDB_API_KEY"):
        return
    if "prompt" in inspect.signature(wandb.login).parameters:
        has_key = wandb.login(prompt=False, verify=False)
    else:  # before 0.28
        has_key = bool(wandb.api.api_key)
    if not has_key:
        raise UserError(
            "wandb has no API key: run `wandb login`, set WANDB_API_KEY, or set WANDB_MODE=offline to write "
            "to a folder"
        )


def _check_mlflow() -> None:
    """Refuse MLflow with a tracking server that does not accept a connection."""
    place = urlsplit(os.environ.get("MLFLOW_TRACKING_URI", ""))
    if place.scheme not in ("http", "https"):
        return
    try:
        port = place.port or {"http": 80, "https": 443}[place.scheme]
        socket.create_connection((place.hostname, port), timeout=SECONDS).close()
    except (OSError, ValueError) as error:
        raise UserError(
            f"the server MLFLOW_TRACKING_URI={place.geturl()!r} does not respond ({first_line(error)}); "
            "start it, or write to a file: MLFLOW_TRACKING_URI=sqlite:///mlflow.db"
        ) from error


USABLE: dict[str, Callable[[], None]] = {"wandb": _check_wandb, "mlflow": _check_mlflow}
"""Trackers that need more than their package."""
