"""Trackers: train loss and validation ROUGE arrive where `training.report_to` sends them."""

import json
import os
import socket
import struct
import subprocess
import sys
from collections.abc import Iterator
from importlib.machinery import ModuleSpec
from pathlib import Path
from types import ModuleType
from unittest.mock import MagicMock, Mock, patch

import pytest
import torch
from support.inputs import FEW
from support.tiny_trainer import adapted, arguments, make_trainer
from transformers import TrainerCallback
from transformers.integrations import integration_utils

from lora_hf.config.load import load_config
from lora_hf.errors import UserError
from lora_hf.training.arguments import training_arguments
from lora_hf.training.trackers import PACKAGED_TRACKERS, SERVER_OF, check_server, check_trackers

ROOT = Path(__file__).parents[2]
STEPS = 3
TRAIN = f"""method=lora lora.r=4 training.max_steps={STEPS} training.logging_steps=1
training.eval_strategy=steps training.eval_steps={STEPS} training.save_strategy=no
training.learning_rate=1e-2""".split()


def train(folder: Path, tracker: str, **environment: str) -> dict:
    """A run of three steps by the command, in a process and a folder of its own; gives its training.json."""
    words = [
        "train",
        "--config",
        "quickstart",
        *FEW,
        *TRAIN,
        f"training.report_to=[{tracker}]",
        "output_dir=run",
    ]
    done = subprocess.run(
        [sys.executable, "-m", "lora_hf", *words],
        cwd=folder,
        env=os.environ
        | {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT), "HF_HUB_OFFLINE": "1"}
        | environment,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    return json.loads((folder / "run/training.json").read_text())


def logged(training: dict, key: str) -> dict[int, float]:
    """Return the values that the Trainer logged under a name, by step."""
    return {entry["step"]: entry[key] for entry in training["log"] if key in entry}


def expected(training: dict) -> tuple[dict[int, float], dict[int, float]]:
    losses, rouge = logged(training, "loss"), logged(training, "eval_rouge1")
    assert list(losses) == [1, 2, 3] and list(rouge) == [STEPS]
    return losses, rouge


def near(values: dict[int, float]) -> object:
    return pytest.approx(values, rel=1e-6)


def log_records(data: bytes, begin: int) -> Iterator[bytes]:
    """The records of a log of LevelDB's format, that begins so many bytes into its file.

    Blocks of 32 KiB; before each piece its checksum (4), length (2) and type (1): whole, first, middle, last.
    """
    position, record = 0, b""
    while position + 7 <= len(data):
        left = 2**15 - (begin + position) % 2**15
        if left < 7:
            position += left
            continue
        length, kind = struct.unpack_from("<HB", data, position + 4)
        record += data[position + 7 : position + 7 + length]
        position += 7 + length
        if kind in (1, 4):
            yield record
            record = b""


@pytest.mark.slow
def test_tensorboard_receives_train_loss_and_rouge_of_the_validation(tmp_path: Path) -> None:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    losses, rouge = expected(train(tmp_path, "tensorboard"))
    (events,) = (tmp_path / "run").rglob("events.out.tfevents.*")
    read = EventAccumulator(str(events)).Reload()

    def scalars(tag: str) -> dict[int, float]:
        return {event.step: event.value for event in read.Scalars(tag)}

    assert scalars("train/loss") == near(losses)
    assert scalars("eval/rouge1") == near(rouge)


@pytest.mark.slow
def test_weights_and_biases_receives_them_offline(tmp_path: Path) -> None:
    from wandb.proto import wandb_internal_pb2

    quiet = {
        "WANDB_MODE": "offline",
        "WANDB_DIR": str(tmp_path),
        "WANDB_SILENT": "true",
        "HOME": str(tmp_path),
    }
    losses, rouge = expected(train(tmp_path, "wandb", **quiet))
    (file,) = (tmp_path / "wandb").rglob("*.wandb")
    rows: list[dict] = []
    for data in log_records(file.read_bytes()[7:], 7):
        record = wandb_internal_pb2.Record()
        record.ParseFromString(data)
        if record.WhichOneof("record_type") == "history":
            items = record.history.item
            rows.append({".".join(i.nested_key) or i.key: json.loads(i.value_json) for i in items})

    def history(key: str) -> dict[int, float]:
        return {row["train/global_step"]: row[key] for row in rows if key in row}

    assert history("train/loss") == near(losses)
    assert history("eval/rouge1") == near(rouge)


@pytest.mark.slow
def test_mlflow_receives_them_in_a_local_store(tmp_path: Path) -> None:
    from mlflow import MlflowClient

    store = f"sqlite:///{tmp_path / 'mlflow.db'}"
    quiet = {"MLFLOW_DISABLE_TELEMETRY": "true", "MLFLOW_EXPERIMENT_NAME": "summaries"}
    losses, rouge = expected(train(tmp_path, "mlflow", MLFLOW_TRACKING_URI=store, **quiet))
    client = MlflowClient(store)
    (run,) = client.search_runs([client.get_experiment_by_name("summaries").experiment_id])

    def history(key: str) -> dict[int, float]:
        return {metric.step: metric.value for metric in client.get_metric_history(run.info.run_id, key)}

    assert run.info.status == "FINISHED"
    assert history("loss") == near(losses)
    assert history("eval_rouge1") == near(rouge)


@pytest.fixture(params=["light", pytest.param("installed", marks=pytest.mark.slow)])
def packages(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Put modules of the same interface in the place of W&B and MLflow, whose import takes seconds."""
    if request.param == "light":
        wandb, mlflow = ModuleType("wandb"), MagicMock()
        wandb.run = None  # type: ignore[attr-defined]
        wandb.login = lambda prompt, verify: "WANDB_API_KEY" in os.environ  # type: ignore[attr-defined]
        for name, module in (("wandb", wandb), ("mlflow", mlflow)):
            module.__spec__ = ModuleSpec(name, None)
            monkeypatch.setitem(sys.modules, name, module)


@pytest.mark.usefixtures("packages")
@pytest.mark.parametrize("names", [None, "none", "all", [], ["tensorboard"], "tensorboard"])
def test_installed_trackers_and_none_are_accepted(
    names: str | list[str] | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("WANDB_MODE", "offline")
    check_trackers(names)


@pytest.mark.usefixtures("packages")
@pytest.mark.parametrize("names", ["wandb", ["wandb"], "all", ["all"]])
def test_weights_and_biases_without_a_key_is_refused_before_anything_is_loaded(
    names: str | list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("wandb")
    monkeypatch.setenv("HOME", str(tmp_path))
    for name in [name for name in os.environ if name.startswith(("WANDB_", "NETRC"))]:
        monkeypatch.delenv(name)
    with pytest.raises(UserError, match=r"^training.report_to=\S+ wandb has no API key: run `wandb login`"):
        check_trackers(names)
    monkeypatch.setenv("WANDB_API_KEY", "0" * 40)
    monkeypatch.setattr(socket, "create_connection", Mock())
    check_trackers(names)


SERVERS = [("wandb", "WANDB_BASE_URL", "WANDB_MODE=offline"), ("mlflow", "MLFLOW_TRACKING_URI", "sqlite:///")]


@pytest.mark.usefixtures("packages")
@pytest.mark.parametrize(("name", "variable", "remedy"), SERVERS)
def test_a_server_that_does_not_respond_is_refused_unless_a_proxy_is_between(
    name: str, variable: str, remedy: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("WANDB_API_KEY", "0" * 40)
    with socket.socket() as server:
        server.bind(("127.0.0.1", 0))
        place = f"http://127.0.0.1:{server.getsockname()[1]}"
        monkeypatch.setenv(variable, place)
        says = rf"report_to='{name}': the server {variable}='{place}' does not respond .*{remedy}"
        with pytest.raises(UserError, match=says):
            check_trackers(name)
        monkeypatch.setenv("http_proxy", "http://proxy.example:3128")
        monkeypatch.setenv("no_proxy", "")
        check_trackers(name)  # the proxy knows, and a direct connection would say nothing
        monkeypatch.setenv("no_proxy", "127.0.0.1")
        with pytest.raises(UserError, match=says):
            check_trackers(name)
        server.listen()
        check_trackers(name)


def test_weights_and_biases_without_a_network_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(socket, "create_connection", Mock(side_effect=OSError("Name or service not known")))
    for variable in ("WANDB_BASE_URL", "http_proxy", "https_proxy", "HTTP_PROXY", "HTTPS_PROXY"):
        monkeypatch.delenv(variable, raising=False)
    says = r"the server https://api.wandb.ai \(change it with WANDB_BASE_URL\) does not respond \(Name"
    with pytest.raises(UserError, match=says):
        check_server("wandb")
    check_server("tensorboard")
    for name in ("comet_ml", "clearml", "swanlab", "kubeflow"):
        monkeypatch.setenv(SERVER_OF[name].variable, "https://tracker.example")
        with pytest.raises(UserError, match=f"{SERVER_OF[name].variable}='https://tracker.example' does not"):
            check_server(name)


def test_a_tracker_that_fails_to_start_is_one_error_with_its_name(tmp_path: Path) -> None:
    class CometCallback(TrainerCallback):
        def setup(self, args, state, model, **kwargs):
            raise ConnectionError("no such workspace")

        def on_train_begin(self, args, state, control, model=None, **kwargs):
            self.setup(args, state, model)

    with patch.dict(integration_utils.INTEGRATION_TO_CALLBACK, comet_ml=CometCallback):
        trainer = make_trainer(adapted(), arguments(tmp_path), callbacks=[CometCallback()])
    with pytest.raises(UserError, match="^training.report_to: comet_ml did not start: no such workspace"):
        trainer.train()


def test_null_means_no_tracker(tmp_path: Path) -> None:
    (tmp_path / "c.yaml").write_text("training: {report_to: null}")
    config = load_config(tmp_path / "c.yaml")
    check_trackers(config.training["report_to"])
    assert not training_arguments(config, str(tmp_path), 8, torch.float32).report_to


@pytest.mark.parametrize("name", PACKAGED_TRACKERS)
def test_a_tracker_that_is_not_installed_is_one_error_with_the_extra(name: str, monkeypatch) -> None:
    monkeypatch.setattr(integration_utils, f"is_{name}_available", lambda: False)
    with pytest.raises(UserError, match=rf"training.report_to='{name}'.*lora_hf\[trackers\]"):
        check_trackers([name])


def test_an_unknown_tracker_is_refused_before_anything_is_loaded(tmp_path: Path, capsys) -> None:
    from lora_hf import cli

    words = [
        "train",
        "--config",
        "quickstart",
        *FEW,
        "training.report_to=wandbb",
        f"output_dir={tmp_path / 'run'}",
    ]
    assert cli.run(words, debug=False) == 2
    assert "error: training.report_to='wandbb': wandbb is not supported" in capsys.readouterr().err
    assert not (tmp_path / "run").exists()
