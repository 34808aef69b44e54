"""A training split that is larger than the memory that may be held beside what the program itself needs."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from lora_hf.config import DataConfig
from lora_hf.data import streaming as stream
from lora_hf.data.streaming import load_train
from lora_hf.errors import UserError
from scripts.tools.large_data import write_splits

ROOT = Path(__file__).parents[2]
READ = """
import resource, sys
from itertools import islice
from transformers import AutoTokenizer
from lora_hf.config import DataConfig
from lora_hf.data.streaming import load_train
from lora_hf.models.load import EMBEDDED, locate

folder, more = sys.argv[1], int(sys.argv[2])
tokenizer = AutoTokenizer.from_pretrained(locate(EMBEDDED))
list(load_train(DataConfig(dataset_name=folder, streaming=True, max_train_samples=4096), tokenizer)[0])
(held,) = (line for line in open("/proc/self/status") if line.startswith("VmData"))
limit = int(held.split()[1]) * 1024 + more
resource.setrlimit(resource.RLIMIT_DATA, (limit, limit))
rows = load_train(DataConfig(dataset_name=folder, streaming=True), tokenizer)[0]
print(len(rows), sum(1 for _ in islice(rows, 5_000)))
"""


@pytest.mark.slow
def test_a_split_larger_than_the_memory_is_streamed(tmp_path):
    size = write_splits(tmp_path / "data", 100_000, 1500)
    words = [sys.executable, "-c", READ, str(tmp_path / "data"), str(size * 9 // 10)]
    known = os.environ | {"TOKENIZERS_PARALLELISM": "false"}  # threads are memory too
    done = subprocess.run(words, cwd=ROOT, env=known, capture_output=True, text=True, timeout=250)
    assert done.returncode == 0 and done.stdout == "100000 5000\n", done.stderr


def test_a_split_that_does_not_fit_in_memory_is_an_error_that_names_streaming(monkeypatch):
    def load_split(config, split):
        raise MemoryError

    monkeypatch.setattr(stream, "load_split_and_origin", load_split)
    with pytest.raises(UserError, match="'embedded' does not fit in memory; data.streaming: true"):
        load_train(DataConfig(), None)
