"""Checks of the trackers in `report_to` before a model is loaded: package, account, server."""

import inspect
import os
import socket
from collections.abc import Callable, Iterable
from contextlib import suppress
from functools import partial
from typing import Any, NamedTuple
from urllib.parse import urlsplit
from urllib.request import getproxies, proxy_bypass

from transformers import TrainerCallback
from transformers.integrations import integration_utils
from transformers.integrations.integration_utils import (
    get_available_reporting_integrations,
    get_reporting_integration_callbacks,
)

from lora_hf.config.problems import shown
from lora_hf.errors import UserError, first_line

PACKAGED_TRACKERS = ("tensorboard", "wandb", "mlflow")
"""Trackers that `lora_hf[trackers]` installs."""
SECONDS = 5
"""Longest wait for a tracker's server; MLflow and W&B themselves retry for minutes, at the first step."""


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
            USABLE.get(name, partial(check_server, name))()
        except UserError as error:
            raise UserError(f"training.report_to={shown(names)}: {error}") from error


def _check_wandb() -> None:
    """Refuse Weights & Biases without a key or its server: `wandb.init` fails, once the model is loaded."""
    import wandb

    if os.environ.get("WANDB_MODE") in ("offline", "disabled", "dryrun") or wandb.run is not None:
        return
    if not os.environ.get("WANDB_API_KEY"):
        if "prompt" in inspect.signature(wandb.login).parameters:
            has_key = wandb.login(prompt=False, verify=False)
        else:  # before 0.28
            has_key = bool(wandb.api.api_key)
        if not has_key:
            raise UserError(
                "wandb has no API key: run `wandb login`, set WANDB_API_KEY, or set WANDB_MODE=offline to "
                "write to a folder"
            )
    address = None
    with suppress(ImportError, AttributeError):  # `wandb login --host` writes it to a file
        from wandb.sdk import wandb_setup

        address = wandb_setup.singleton().settings.base_url
    check_server("wandb", address)


USABLE: dict[str, Callable[[], None]] = {"wandb": _check_wandb}
"""Trackers that need more than their package and their server."""


class Server(NamedTuple):
    """The server that a tracker sends metrics to."""

    variable: str
    """The environment variable with its address."""
    default: str | None = None
    """The address where the variable is not set; None if there is nothing to reach, or the tracker knows."""
    remedy: str = "remove the tracker from training.report_to"


MLFLOW = Server("MLFLOW_TRACKING_URI", remedy="write to a file: MLFLOW_TRACKING_URI=sqlite:///mlflow.db")
SERVER_OF = {
    "wandb": Server("WANDB_BASE_URL", "https://api.wandb.ai", "set WANDB_MODE=offline to write to a folder"),
    "mlflow": MLFLOW,
    "dagshub": MLFLOW._replace(remedy=Server._field_defaults["remedy"]),
    "comet_ml": Server("COMET_URL_OVERRIDE"),
    "clearml": Server("CLEARML_API_HOST"),
    "swanlab": Server("SWANLAB_API_HOST", remedy="set SWANLAB_MODE=local to write to a folder"),
    "kubeflow": Server("KUBEFLOW_TRAINER_SERVER_URL"),
}
"""Trackers with a server of their own; the others write files or are hosted in one place."""


def check_server(name: str, address: str | None = None) -> None:
    """Refuse a tracker whose server does not accept a connection.

    A server behind a proxy is not tried: a direct connection to it would say nothing.

    Args:
        name: the tracker's.
        address: of its server, where the tracker's own files name it.

    Raises:
        UserError: there is no server, or it does not respond within `SECONDS`.
    """
    if (server := SERVER_OF.get(name)) is None:
        return
    given = os.environ.get(server.variable)
    place = urlsplit(given or address or server.default or "")
    if place.scheme not in ("http", "https"):
        return
    if place.scheme in getproxies() and not proxy_bypass(place.hostname or ""):
        return
    try:
        port = place.port or {"http": 80, "https": 443}[place.scheme]
        socket.create_connection((place.hostname, port), timeout=SECONDS).close()
    except (OSError, ValueError) as error:
        shown_place = f"{server.variable}={given!r}" if given else place.geturl()
        changed = "" if given else f" (change it with {server.variable})"
        raise UserError(
            f"the server {shown_place}{changed} does not respond ({first_line(error)}); start it, or "
            f"{server.remedy}"
        ) from error


def name_failed_starts(callbacks: Iterable[TrainerCallback]) -> None:
    """Let a tracker that fails when training begins be one error with its name, in place of its own."""
    names = {kind: name for name, kind in integration_utils.INTEGRATION_TO_CALLBACK.items()}
    for callback in callbacks:
        if name := names.get(type(callback)):
            callback.on_train_begin = _named(callback.on_train_begin, name)  # type: ignore[method-assign]


def _named(start: Callable[..., Any], name: str) -> Callable[..., Any]:
    def begin(*args: Any, **kwargs: Any) -> Any:
        try:
            return start(*args, **kwargs)
        except Exception as error:  # each tracker has its own
            remedy = getattr(SERVER_OF.get(name), "remedy", Server._field_defaults["remedy"])
            raise UserError(
                f"training.report_to: {name} did not start: {first_line(error)}; {remedy}"
            ) from error

    return begin
