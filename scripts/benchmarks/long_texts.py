"""Compare `long="cut"` with `long="split"`: ROUGE and time on dialogues that are too long for a model.

    python scripts/benchmarks/long_texts.py runs/quickstart/lora

A long dialogue is 3 to 6 dialogues of the embedded test split, one after another; its reference is their
references, joined. Prints JSON.
"""

import argparse
import json
import sys
import time
from pathlib import Path
from random import Random
from statistics import mean
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[2]))

import lora_hf
from lora_hf.config import DataConfig
from lora_hf.data.parts import LONG, divided
from lora_hf.data.splits import load_split
from lora_hf.data.tokenize import source_lengths
from lora_hf.evaluation.metrics import Scoring
from scripts.benchmarks.bench import machine


def long_dialogues(n: int, seed: int) -> tuple[list[str], list[list[str]]]:
    """Return dialogues of 3 to 6 joined ones, and their references."""
    random, test = Random(seed), load_split(DataConfig(), "test")
    chosen = [random.sample(test, random.randint(3, 6)) for _ in range(n)]
    dialogues = ["\n".join(example.dialogue for example in part) for part in chosen]
    return dialogues, [[" ".join(example.references[0] for example in part)] for part in chosen]


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("model", help="a run, an adapter or a model, as `lora_hf.load` takes it")
    parser.add_argument("--dialogues", type=int, default=100)
    parser.add_argument("--seed", type=int, default=0)
    given = parser.parse_args()
    model = lora_hf.load(given.model)
    dialogues, references = long_dialogues(given.dialogues, given.seed)
    data = next(iter(model.adapters[name] for name in (*model.names, None))).data
    found: dict[str, Any] = {
        "source_tokens": round(mean(source_lengths(dialogues, model.tokenizer, data))),
        "max_source_length": data.max_source_length,
        "parts": sum(map(len, divided(dialogues, model.tokenizer, data))),
    }
    for long in LONG:
        start = time.perf_counter()
        written = model.generate(dialogues, long=long)
        seconds = time.perf_counter() - start
        scores = Scoring().measure(written, references).scores
        found[long] = {name: round(score.value, 4) for name, score in scores.items()}
        found[long] |= {"words": round(mean(len(text.split()) for text in written), 1)}
        found[long] |= {"seconds": round(seconds, 1)}
    print(json.dumps({"machine": machine("cpu"), "options": vars(given)} | found, indent=2))


if __name__ == "__main__":
    main()
