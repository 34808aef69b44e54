"""Choose the learning rate of each run or variant on the validation split, from one common grid.

    python scripts/benchmarks/learning_rates.py --config configs/quickstart.yaml --rates 1e-3 1e-2 \\
        --output runs/rates
    python scripts/benchmarks/learning_rates.py --config configs/methods.yaml --rates 1e-2 1e-1 \\
        --output runs/rates --variants bottleneck prompt_tuning -- data.max_eval_samples=200
"""

import argparse
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from lora_hf.cli.exit_status import exit_status
from lora_hf.config import Method
from lora_hf.config.load import load_config
from lora_hf.errors import UserError
from lora_hf.experiments.runner import run_process, words
from lora_hf.experiments.search import kept_score
from lora_hf.files import write_text

RUNS: tuple[Method, ...] = ("full", "lora")
Scores = dict[str, dict[float, float]]


def learning_rate_grid(
    config_file: str,
    rates: Sequence[float],
    output: Path,
    overrides: Sequence[str],
    variants: Sequence[str] = (),
) -> Scores:
    """Train each run or variant at each rate and return its last ROUGE-1 on the validation split.

    Args:
        config_file: config of the runs; its test split is not used.
        rates: grid of learning rates, the same for all.
        output: folder of the runs and of `learning_rates.md`; finished runs in it are skipped.
        overrides: `key.sub=value`, for all runs.
        variants: names of variants of the config; default: full fine-tuning and LoRA.

    Returns:
        ROUGE-1 (0 to 1) by run or variant, then by rate.

    Raises:
        UserError: a run logged no `eval_rouge1`, or a variant is unknown.
    """
    known = load_config(config_file, overrides, is_study=True).variants
    if unknown := [name for name in variants if name not in known]:
        raise UserError(f"--variants {unknown[0]!r}: the config has {sorted(known)}")
    groups = {name: known[name] for name in variants} or {method: {"method": method} for method in RUNS}
    scores: Scores = {name: {} for name in groups}
    for name, changes in groups.items():
        for rate in rates:
            run = output / f"{name}-{rate:g}"
            own = [*words(changes), *words({"output_dir": str(run)}), *at_rate(changes, rate)]
            run_process([sys.executable, "-m", "lora_hf", "train", "--config", config_file, *overrides, *own])
            scores[name][rate] = kept_score(run, "rouge1", {})
    write_text(output / "learning_rates.md", grid_markdown(scores))
    return scores


def at_rate(changes: Mapping[str, Any], rate: float) -> list[str]:
    """Return overrides that set the rate, even if the run has its own, and evaluate at the last step only."""
    method = changes.get("method", "lora")
    rates = [f"training.learning_rate={rate:g}", f"arms.{method}.training.learning_rate={rate:g}"]
    return [*rates, "data.max_test_samples=1", "training.eval_strategy=steps", "training.eval_steps=0.999"]


def grid_markdown(scores: Scores) -> str:
    """Return a Markdown table with a row per rate and a column per run; the best rate of each is bold."""
    rates = list(next(iter(scores.values())))
    best = {name: max(by_rate, key=lambda rate: by_rate[rate]) for name, by_rate in scores.items()}

    def cell(name: str, rate: float) -> str:
        mark = "**" if best[name] == rate else ""
        return f"{mark}{scores[name][rate]:.4f}{mark}"

    header = "| learning rate | " + " | ".join(scores) + " |\n| ---: |" + " ---: |" * len(scores)
    lines = [f"| {rate:g} | " + " | ".join(cell(name, rate) for name in scores) + " |" for rate in rates]
    return "\n".join([header, *lines]) + "\n"


if __name__ == "__main__":
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--config", required=True)
    parser.add_argument("--rates", type=float, nargs="+", required=True)
    parser.add_argument("--output", type=Path, required=True)
    parser.add_argument(
        "--variants", nargs="+", default=(), help="variants of the config; default: full and lora"
    )
    parser.add_argument("overrides", nargs="*", metavar="KEY.SUB=VALUE")
    arguments = parser.parse_args()

    def main() -> None:
        scores = learning_rate_grid(
            arguments.config, arguments.rates, arguments.output, arguments.overrides, arguments.variants
        )
        print(grid_markdown(scores))

    sys.exit(exit_status(main))
