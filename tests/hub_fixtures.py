"""A Hub on the loopback address, a run to push, and fresh processes that know it by HF_ENDPOINT alone."""

import json
import os
import re
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import yaml
from conftest import FEW
from hub_server import HubServer

from lora_hf import cli

ROOT = Path(__file__).parents[1]
TOKEN, OTHERS, READER = "hf_AnnasOwnSecretToken01", "hf_BensOwnSecretToken0002", "hf_NobodysToken00000003"
TOKENS = {TOKEN: "anna", OTHERS: "ben"}
REPO = "anna/dialogues"
WEIGHTS = "adapter_model.safetensors"


@pytest.fixture
def hub(tmp_path):
    with HubServer(tmp_path / "hub", TOKENS) as server:
        yield server
    assert server.failures == []


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """A finished LoRA run on the embedded model."""
    folder = tmp_path_factory.mktemp("runs") / "mine"
    file = folder.with_suffix(".yaml")
    file.write_text("lora: {r: 4, lora_alpha: 8}\ntraining: {max_steps: 2, learning_rate: 5.0e-2}\n")
    before = signal.getsignal(signal.SIGTERM)
    assert cli.run(["train", "--config", str(file), *FEW, f"output_dir={folder}"], debug=False) == 0
    signal.signal(signal.SIGTERM, before)
    return folder


class Client:
    """Fresh processes with a home of their own."""

    def __init__(self, home, endpoint):
        self.home, self.heard = home, ""
        self.environment = os.environ | {
            "HF_ENDPOINT": endpoint,
            "HF_HUB_DISABLE_XET": "1",
            "HF_HOME": str(home),
            "HF_HUB_OFFLINE": "0",
            "HF_HUB_DISABLE_TELEMETRY": "1",
            "PYTHONPATH": str(ROOT),
            "OMP_NUM_THREADS": "1",
        }
        self.environment.pop("HF_TOKEN", None)

    def run(self, *commands):
        """Commands in one process, each (words, token): its status, and what it said on both streams."""
        given = json.dumps([[[str(word) for word in words], token] for words, token in commands])
        out, err = self.python(str(ROOT / "tests/hub_client.py"), given=given)
        said = [re.split(r"^=== \d+\n", text, flags=re.MULTILINE) for text in (out, err)]
        statuses = map(int, re.findall(r"^=== (\d+)$", out, re.MULTILINE))
        return [Done(status, o, e) for status, o, e in zip(statuses, *said, strict=False)]

    def python(self, *words, given=None, token=None):
        environment = self.environment | ({"HF_TOKEN": token} if token else {})
        done = subprocess.run(
            [sys.executable, *words], input=given, env=environment, cwd=ROOT, capture_output=True, text=True
        )
        self.heard += done.stdout + done.stderr
        assert done.returncode == 0, done.stderr
        return done.stdout, done.stderr


class Done:
    def __init__(self, status, out, err):
        self.status, self.out, self.err = status, out, err

    @property
    def error(self):
        assert self.status == 2, self.err
        (line,) = [line for line in self.err.splitlines() if line.startswith("error: ")]
        return line


@pytest.fixture
def client(tmp_path, hub):
    made = Client(tmp_path / "home", hub.endpoint)
    yield made
    for secret in (TOKEN, OTHERS, READER):
        assert secret not in made.heard
        for folder in (tmp_path / "home", tmp_path / "hub"):
            assert not [p for p in folder.rglob("*") if p.is_file() and secret.encode() in p.read_bytes()]


def push(adapter, *more, repo=REPO):
    return ["push", "--adapter", adapter, "--repo-id", repo, *more]


def card_of(hub, repo=REPO, revision="main"):
    """A pushed card's metadata and text."""
    _, head, text = hub.store.read(repo, "README.md", revision).decode().split("---\n", 2)
    return yaml.safe_load(head), text


LOGITS = """
import json, sys, torch
from lora_hf.modeling import ASSETS
from lora_hf.runs.saved import load_with_base
from transformers import AutoTokenizer
ids = AutoTokenizer.from_pretrained(ASSETS)("A: Shall we go? B: At noon.", return_tensors="pt").input_ids
found = []
for code in json.loads(sys.argv[1]):
    names = {}
    exec(code, names)
    with torch.no_grad():
        found.append(names["model"].eval()(input_ids=ids, labels=ids).logits)
torch.save(found, sys.argv[2])
"""


def logits_of(client, tmp_path, *codes):
    """What the `model` of each code says, computed in one fresh process."""
    import torch

    client.python("-c", LOGITS, json.dumps(codes), str(tmp_path / "logits.pt"), token=TOKEN)
    return torch.load(tmp_path / "logits.pt", weights_only=True)


def loading(adapter):
    start = "from lora_hf.runs.saved import load_with_base\n"
    return f"{start}model, tokenizer, _ = load_with_base({str(adapter)!r}, None)"
