"""Compare `long="cut"` with `long="split"`: ROUGE and time on dialogues that are too long for a model.

    python scripts/benchmarks/long_texts.py runs/quickstart/lora
    python scripts/benchmarks/long_texts.py runs/notes --data mts_dialog --tokens 2000

A long dialogue is 3 to 6 dialogues of a test split in turn, or as many as have `--tokens` together;
its reference is their references, joined. Prints JSON, with processor time.
"""

import argparse
import itertools
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


def long_dialogues(
    given: argparse.Namespace, tokenizer: Any, data: DataConfig
) -> tuple[list[str], list[list[str]]]:
    """Return joined dialogues and their references."""
    random, test = Random(given.seed), load_split(DataConfig(dataset_name=given.data), "test")
    lengths = source_lengths([example.dialogue for example in test], tokenizer, data)
    chosen = []
    for _ in range(given.dialogues):
        order = random.sample(range(len(test)), len(test))
        sums = itertools.accumulate(lengths[i] for i in order)
        enough = next((n for n, tokens in enumerate(sums, 1) if tokens >= (given.tokens or 0)), len(test))
        chosen.append([test[i] for i in order[: enough if given.tokens else random.randint(3, 6)]])
    dialogues = ["\n".join(example.dialogue for example in part) for part in chosen]
    return dialogues, [[" ".join(example.references[0] for example in part)] for part in chosen]


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("model", help="a run, an adapter or a model, as `lora_hf.load` takes it")
    parser.add_argument("--data", default="embedded", help="a dataset, as `data.dataset_name` takes it")
    parser.add_argument("--tokens", type=int, help="of each long dialogue, at least")
    parser.add_argument("--dialogues", type=int, default=100)
    parser.add_argument("--seed", type=int, default=0)
    given = parser.parse_args()
    model = lora_hf.load(given.model)
    data = next(iter(model.adapters[name] for name in (*model.names, None))).data
    dialogues, references = long_dialogues(given, model.tokenizer, data)
    found: dict[str, Any] = {
        "source_tokens": round(mean(source_lengths(dialogues, model.tokenizer, data))),
        "max_source_length": data.max_source_length,
        "parts": sum(map(len, divided(dialogues, model.tokenizer, data))),
    }
    for long in LONG:
        start = time.process_time()
        written = model.generate(dialogues, long=long)
        seconds = time.process_time() - start
        scores = Scoring().measure(written, references).scores
        found[long] = {name: round(score.value, 4) for name, score in scores.items()}
        found[long] |= {"words": round(mean(len(text.split()) for text in written), 1)}
        found[long] |= {"seconds": round(seconds, 1)}
    print(json.dumps({"machine": machine("cpu"), "options": vars(given)} | found, indent=2))


if __name__ == "__main__":
    main()
