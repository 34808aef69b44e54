"""A training split that is larger than the memory that may be held beside what the program itself needs."""

import subprocess
import sys
from pathlib import Path

import pytest

from scripts.large_data import write_splits

ROOT = Path(__file__).parents[2]
READ = """
import resource, sys
from itertools import islice
from transformers import AutoTokenizer
from lora_hf.config import DataConfig
from lora_hf.data.stream import load_train
from lora_hf.errors import UserError
from lora_hf.modeling import EMBEDDED, locate

folder, streaming, more = sys.argv[1], sys.argv[2] == "streaming", int(sys.argv[3])
tokenizer = AutoTokenizer.from_pretrained(locate(EMBEDDED))
list(load_train(DataConfig(dataset_name=folder, streaming=True, max_train_samples=4096), tokenizer)[0])
(held,) = (line for line in open("/proc/self/status") if line.startswith("VmData"))
limit = int(held.split()[1]) * 1024 + more
resource.setrlimit(resource.RLIMIT_DATA, (limit, limit))
try:
    rows, _ = load_train(DataConfig(dataset_name=folder, streaming=streaming), tokenizer)
    print(len(rows), sum(1 for _ in islice(rows, 5_000)))
except UserError as error:
    print(error)
"""


@pytest.mark.slow
def test_a_split_larger_than_the_memory_is_streamed_and_else_told_to_be(tmp_path):
    size = write_splits(tmp_path / "data", 50_000, 1500)
    for kind, expected in (("streaming", "50000 5000"), ("held", "data.streaming: true holds")):
        words = [sys.executable, "-c", READ, str(tmp_path / "data"), kind, str(size * 9 // 10)]
        done = subprocess.run(words, cwd=ROOT, capture_output=True, text=True, timeout=200)
        assert done.returncode == 0 and expected in done.stdout, done.stderr
