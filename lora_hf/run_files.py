"""The files of a run directory, by name; others read them, so the names are fixed."""

from lora_hf.files import PARTIAL

CONFIG = "config.yaml"
"""The resolved config: `--config` of it repeats the run."""
INPUTS = "inputs.json"
"""Hashes of what the config names: data and base model."""
ADAPTER = "adapter"
MODEL = "model"
CHECKPOINTS = "checkpoints"
TRAINED = "training.json"
"""Written once the training stage is whole: seconds, steps, losses, the Trainer's log."""
PREDICTIONS = "predictions.jsonl"
RESULTS = "results.json"
"""Written last: a run with this file is finished."""
ROUGE_NAMES = ("rouge1", "rouge2", "rougeL", "rougeLsum")
"""The scores in it."""

COMPARISON, STUDY, SWEEP, REPORT = "comparison", "methods", "sweep", "report"
"""The reports of several runs, in the folder above theirs, and of one, in its own; with each of `ENDS`."""
PAGE = ".html"
ENDS = (".json", ".md", PAGE, ".png")
STORE = ".db"
"""Of a sweep that searches: its trials."""


UNFINISHED = f"{PARTIAL}checkpoints"
"""In the folder of the checkpoints: where the next one is written."""

OWN = (
    *(CONFIG, INPUTS, ADAPTER, MODEL, CHECKPOINTS, TRAINED, PREDICTIONS, RESULTS),
    *(REPORT + end for end in ENDS),
)
"""In the order in which a run writes them."""
