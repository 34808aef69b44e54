"""One grid of learning rates for all that train, judged on the validation split."""

import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from lora_hf.config import Method
from lora_hf.config.file import load_config
from lora_hf.errors import UserError
from lora_hf.files import write_text
from lora_hf.layout import TRAINED
from lora_hf.runs.directory import read_record
from lora_hf.runs.study import run_process, words

ARMS: tuple[Method, ...] = ("full", "lora")
Scores = dict[str, dict[float, float]]


def learning_rate_grid(
    config_file: str,
    rates: Sequence[float],
    output: Path,
    overrides: Sequence[str],
    variants: Sequence[str] = (),
) -> Scores:
    """Train each arm, or each of these variants, at each rate; read its last ROUGE-1 on the validation split.

    Args:
        config_file: the config whose rates are to be chosen; its test split is not looked at.
        rates: the grid, the same for all.
        output: folder of the runs and of `learning_rates.md`; what is done there is not done again.
        overrides: `key.sub=value`, for all runs.
        variants: of the config, in the place of full and lora.

    Returns:
        By arm or variant, by rate: ROUGE-1 in 0 to 1.

    Raises:
        UserError: a run logged no `eval_rouge1`, or the config has no such variant.
    """
    known = load_config(config_file, overrides, is_study=True).variants
    if unknown := [name for name in variants if name not in known]:
        raise UserError(f"--variants {unknown[0]!r}: the config has {sorted(known)}")
    groups = {name: known[name] for name in variants} or {arm: {"method": arm} for arm in ARMS}
    scores: Scores = {name: {} for name in groups}
    for name, changes in groups.items():
        for rate in rates:
            run = output / f"{name}-{rate:g}"
            own = [*words(changes), *words({"output_dir": str(run)}), *at_rate(changes, rate)]
            run_process([sys.executable, "-m", "lora_hf", "train", "--config", config_file, *overrides, *own])
            scores[name][rate] = last_rouge(run)
    write_text(output / "learning_rates.md", grid_markdown(scores))
    return scores


def at_rate(changes: Mapping[str, Any], rate: float) -> list[str]:
    """Overrides that set the rate, also where an arm has its own, and evaluate once, at the last step."""
    method = changes.get("method", "lora")
    rates = [f"training.learning_rate={rate:g}", f"arms.{method}.training.learning_rate={rate:g}"]
    return [*rates, "data.max_test_samples=1", "training.eval_strategy=steps", "training.eval_steps=0.999"]


def last_rouge(run: Path) -> float:
    """The last `eval_rouge1` of a run's log."""
    log = (read_record(run / TRAINED) or {}).get("log", [])
    values = [entry["eval_rouge1"] for entry in log if "eval_rouge1" in entry]
    if not values:
        raise UserError(f"{run} logged no eval_rouge1: set training.eval_strategy")
    return float(values[-1])


def grid_markdown(scores: Scores) -> str:
    """A table of rates by arms, the best of each in bold."""
    rates = list(next(iter(scores.values())))
    best = {arm: max(by_rate, key=lambda rate: by_rate[rate]) for arm, by_rate in scores.items()}

    def cell(arm: str, rate: float) -> str:
        mark = "**" if best[arm] == rate else ""
        return f"{mark}{scores[arm][rate]:.4f}{mark}"

    header = "| learning rate | " + " | ".join(scores) + " |\n| ---: |" + " ---: |" * len(scores)
    lines = [f"| {rate:g} | " + " | ".join(cell(arm, rate) for arm in scores) + " |" for rate in rates]
    return "\n".join([header, *lines]) + "\n"
