"""A Hub on the loopback address, a run to push, and processes that find the Hub by HF_ENDPOINT alone."""

import json
import re
import shutil
import signal
import socket
from pathlib import Path

import pytest
import yaml
from hub.server import HubServer
from support.inputs import FEW
from support.warm_python import ROOT

from lora_hf import cli

TOKEN, OTHERS, READER = "hf_AnnasOwnSecretToken01", "hf_BensOwnSecretToken0002", "hf_NobodysToken00000003"
TOKENS = {TOKEN: "anna", OTHERS: "ben"}
REPO = "anna/dialogues"
WEIGHTS = "adapter_model.safetensors"


@pytest.fixture(scope="session")
def port():
    """Return the port of all Hubs. It stays reserved, and nobody answers while no Hub runs."""
    with socket.socket() as kept:
        kept.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        kept.bind(("127.0.0.1", 0))
        yield kept.getsockname()[1]


@pytest.fixture
def hub(tmp_path, port):
    with HubServer(tmp_path / "hub", TOKENS, port=port) as server:
        yield server
    assert server.failures == []


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """Return the folder of a finished LoRA run on the embedded model."""
    folder = tmp_path_factory.mktemp("runs") / "mine"
    file = folder.with_suffix(".yaml")
    file.write_text("lora: {r: 4, lora_alpha: 8}\ntraining: {max_steps: 2, learning_rate: 5.0e-2}\n")
    before = signal.getsignal(signal.SIGTERM)
    assert cli.run(["train", "--config", str(file), *FEW, f"output_dir={folder}"], debug=False) == 0
    signal.signal(signal.SIGTERM, before)
    return folder


class Client:
    """New processes with their own home directory, initially empty."""

    def __init__(self, python, environment):
        self.python, self.environment, self.heard = python, environment, ""
        self.home = Path(environment["HF_HOME"])
        self.forget()

    def forget(self):
        """Empty the home directory: from here on it is a machine that has downloaded nothing."""
        for folder in self.home.iterdir():
            shutil.rmtree(folder) if folder.is_dir() else folder.unlink()

    def run(self, *commands):
        """Run commands, each (words, token), in one process; return status and both outputs of each."""
        given = json.dumps([[[str(word) for word in words], token] for words, token in commands])
        out, err = self.start(ROOT / "tests/hub/client.py", given=given)
        said = [re.split(r"^=== .*\n", text, flags=re.MULTILINE) for text in (out, err)]
        ends = re.findall(r"^=== (\d+) (\S+)$", out, re.MULTILINE)
        return [
            Done(int(status), float(slept), o, e) for (status, slept), o, e in zip(ends, *said, strict=False)
        ]

    def start(self, *words, given="", token=None):
        done = self.python.run(words, given, env={"HF_TOKEN": token} if token else {})
        self.heard += done.stdout + done.stderr
        assert done.returncode == 0, done.stderr
        return done.stdout, done.stderr


class Done:
    """Exit status of a command, the seconds it asked to sleep for, and its outputs."""

    def __init__(self, status, slept, out, err):
        self.status, self.slept, self.out, self.err = status, slept, out, err

    @property
    def error(self):
        assert self.status == 2, self.err
        (line,) = [line for line in self.err.splitlines() if line.startswith("error: ")]
        return line


@pytest.fixture(scope="session")
def client_environment(tmp_path_factory, port):
    """Return variables with which a process finds the Hub of the tests, or nobody where none runs."""
    known = {"HF_ENDPOINT": f"http://127.0.0.1:{port}", "HF_HOME": str(tmp_path_factory.mktemp("home"))}
    known |= {"HF_HUB_OFFLINE": "0", "HF_HUB_DISABLE_XET": "1", "HF_HUB_DISABLE_TELEMETRY": "1"}
    return known | {"OMP_NUM_THREADS": "1"}


@pytest.fixture
def client(tmp_path, warm_python, client_environment):
    made = Client(warm_python, client_environment)
    yield made
    secrets = (TOKEN, OTHERS, READER)
    assert not [secret for secret in secrets if secret in made.heard]
    for file in (p for folder in (made.home, tmp_path / "hub") for p in folder.rglob("*") if p.is_file()):
        content = file.read_bytes()
        assert not [secret for secret in secrets if secret.encode() in content], file


def push(adapter, *more, repo=REPO):
    return ["push", "--adapter", adapter, "--repo-id", repo, *more]


def card_of(hub, repo=REPO, revision="main"):
    """Return the metadata and the text of a pushed card."""
    _, head, text = hub.store.read(repo, "README.md", revision).decode().split("---\n", 2)
    return yaml.safe_load(head), text


LOGITS = """
import json, sys, torch
sys.modules.pop("peft")  # which commands hide, and one of the codes needs
from lora_hf.models.load import ASSETS
from lora_hf.saved.inference import InferenceModel
from transformers import AutoTokenizer
ids = AutoTokenizer.from_pretrained(ASSETS)("A: Shall we go? B: At noon.", return_tensors="pt").input_ids
found = []
for code in json.loads(sys.argv[1]):
    names = {}
    exec(code, names)
    model = names["model"]
    if isinstance(model, InferenceModel):
        model = model.model
    with torch.no_grad():
        found.append(model.eval()(input_ids=ids, labels=ids).logits)
torch.save(found, sys.argv[2])
"""


def logits_of(client, tmp_path, *codes):
    """Return the logits of each code's `model`, computed in one new process."""
    import torch

    client.start("-c", LOGITS, json.dumps(codes), str(tmp_path / "logits.pt"), token=TOKEN)
    return torch.load(tmp_path / "logits.pt", weights_only=True)


def loading(adapter):
    return f"import lora_hf\nmodel = lora_hf.load({str(adapter)!r}).model"
