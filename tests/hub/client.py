"""Run commands in one new process that finds the Hub by its environment alone.

Standard input is a JSON list of [words, token or null]. `load-model` and `load-data`, with fields of their
section as JSON, are not commands: they load what a run loads first, and end as a command does. Both outputs
have a line `=== <status> <seconds>` after each. It would have slept so many seconds between one try and the
next: here nobody sleeps.
"""

import json
import os
import sys
import time
from functools import partial
from pathlib import Path

from lora_hf import cli
from lora_hf.cli.exit_status import exit_status
from lora_hf.config import DataConfig, ModelConfig
from lora_hf.data.splits import SPLITS, load_split
from lora_hf.files import folder_sha256
from lora_hf.models.load import find_base, load_tokenizer


def load_model(fields):
    """Print the hash of the files that a base model is loaded from."""
    config = ModelConfig(**fields)
    load_tokenizer(config)
    hashes = folder_sha256(Path(find_base(config, "weights")[0]))
    print({name: value for name, value in hashes.items() if name != "README.md"})


def load_data(fields):
    """Print the number of dialogues in each split."""
    print([len(load_split(DataConfig(**fields), split)) for split in SPLITS])


LOADING = {"load-model": load_model, "load-data": load_data}
slept = []
time.sleep = slept.append
for words, token in json.load(sys.stdin):
    os.environ.pop("HF_TOKEN", None)
    slept.clear()
    if token is not None:
        os.environ["HF_TOKEN"] = token
    if words[0] in LOADING:
        status = exit_status(partial(LOADING[words[0]], json.loads(words[1])), debug=True)
    else:
        status = cli.run(words, debug=True)
    for stream in (sys.stdout, sys.stderr):
        print(f"=== {status} {sum(slept)}", file=stream, flush=True)
