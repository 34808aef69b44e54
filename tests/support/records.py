"""Files of finished runs and comparisons, written without a model, for tests of their readers."""

import json
from pathlib import Path

from lora_hf.evaluation.rouge import ROUGE_NAMES
from lora_hf.files import write_json, write_text

DIALOGUE = "Tom: we meet at ten </script><b>\nAnna: yes & no"
REFERENCES = [["Tom meets Anna at ten."], ["Anna says yes.", "Anna agrees."], ["They <b>talk</b>."]]
WRITTEN = {
    "base": ["Anna.", "no", "</script><script>alert(1)</script>"],
    "full": ["Tom meets Anna at ten.", "Anna says yes.", "They talk."],
    "lora": ["Tom meets Anna.", "Anna says yes.", "They talk."],
}
TRAINED = {"base": 0, "full": 250_000, "lora": 3_500}


def write_run(root: Path, method: str, name: str | None = None, seed: int = 42) -> None:
    """Write the files of a finished run, as `train` does, and return its folder."""
    run = root / (name or method)
    scores = {n: 0.4 for n in ROUGE_NAMES} | {f"{n}_interval": [0.3, 0.5] for n in ROUGE_NAMES}
    log = (
        [{"step": s, "loss": 3.0 - s / 10, "eval_rouge1": s / 10} for s in (1, 2)] if TRAINED[method] else []
    )
    write_json(
        run / "results.json",
        scores
        | {
            "method": method,
            "seed": seed,
            "log": log,
            "n_examples": 3,
            "bytes_on_disk": 0,
            "eval_seconds": 1.0,
        }
        | {"trainable_parameters": TRAINED[method], "total_parameters": 250_000, "train_seconds": 2.0}
        | {"mean_words": 3.0, "reference_words": 3.5, "peak_memory_mib": 500.0, "base_model": "tiny"}
        | {"dtype": "float32", "device": "cpu", "base_fingerprint": "ab12", "data_fingerprint": "cd34"}
        | {"versions": {"torch": "9.9"}},
    )
    rows = [
        {"id": f"t{i}", "dialogue": DIALOGUE, "references": REFERENCES[i], "prediction": WRITTEN[method][i]}
        for i in range(3)
    ]
    write_text(run / "predictions.jsonl", "".join(json.dumps(row) + "\n" for row in rows))
    write_text(run / "config.yaml", f"method: {method}\n")


def record(rouge1, trained, **fields):
    return {
        **dict.fromkeys(ROUGE_NAMES, 0.1),
        "rouge1": rouge1,
        "trainable_parameters": trained,
        "total_parameters": 250_000,
        "n_examples": 1500,
        "mean_words": 19.04,
        "reference_words": 21.5,
        "bytes_on_disk": 0,
        "train_seconds": 0.0,
        "eval_seconds": 3.21,
        "peak_memory_mib": 1234.5,
        "base_model": "tiny",
        "dtype": "float32",
        "device": "cpu x86_64, 1 thread",
        **fields,
    }


def make_comparison(**lora):
    return {
        "arms": {
            "base": record(0.2, 0),
            "full": record(0.4, 250_000, learning_rate=1e-4, train_seconds=3661.2, bytes_on_disk=3 * 2**30),
            "lora": record(0.35, 3_500, learning_rate=1e-3, train_seconds=61.0, bytes_on_disk=14_541, **lora),
        },
        "trivial": {"first line": dict.fromkeys(ROUGE_NAMES, 0.15)},
        "gains": {"full": 0.2, "lora": 0.15, "lora_share_of_full": 0.75},
        "intervals": {
            m: dict.fromkeys(ROUGE_NAMES, [low, low + 0.05])
            for m, low in (("base", 0.18), ("full", 0.37), ("lora", 0.32))
        },
        "paired_test": {
            "metric": "rouge1",
            "difference": -0.05,
            "interval": [-0.07, -0.03],
            "p_value": 0.00012,
            "n": 1500,
        },
        "samples": [
            {
                "id": "test_0",
                "dialogue": "#Tom#: Hi\n#Anna#: Bye",
                "reference": "They part.",
                "base": "",
                "full": "Tom goes.\n\nAnna too.",
                "lora": "Tom | Anna",
            }
        ],
    }
