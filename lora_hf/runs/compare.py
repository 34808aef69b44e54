"""The comparison: base, full fine-tuning and LoRA on the same data and seeds.

Each arm runs in a process of its own, by the command a person would type, so that its time and its peak
memory are its own. An arm that is finished with the same inputs is left as it is.
"""

import json
import logging
import signal
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from types import FrameType
from typing import Any

from lora_hf.config import Method, RunConfig
from lora_hf.config.file import load_config
from lora_hf.errors import ArmFailed, UserError
from lora_hf.files import write_json, write_text
from lora_hf.runs.directory import RunDirectory, read_predictions
from lora_hf.runs.summary import summarize_arms

COMPARISON, TABLE, PICTURE = "comparison.json", "comparison.md", "comparison.png"
ORDER: tuple[Method, ...] = ("base", "lora", "full")
"""Of the runs: a target that matches nothing is found before the hours of full fine-tuning."""
logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Arm:
    """One run of a comparison: its directory under the comparison's, and its config."""

    name: str
    config: RunConfig


def plan_arms(config: RunConfig) -> list[Arm]:
    """Base once, for nothing in it is random; the others once a seed: `lora`, then `lora-seed-<n>`."""
    seeds = config.seeds or (config.seed,)
    arms = []
    for method in ORDER:
        for seed in seeds[:1] if method == "base" else seeds:
            name = method if seed == seeds[0] else f"{method}-seed-{seed}"
            arms.append(Arm(name, config.for_arm(method, seed, str(Path(config.output_dir) / name))))
    return arms


def compare(config_file: str | Path, overrides: Sequence[str] = ()) -> dict[str, Any]:
    """Run what is not yet done, and write comparison.json, comparison.md and comparison.png.

    Args:
        config_file: a YAML; its `method` is not read.
        overrides: `key.sub=value`, as on the command line.

    Returns:
        What comparison.json holds.

    Raises:
        UserError: a mistake in the config, or an output directory with other inputs in it.
        ArmFailed: an arm did not end well; those that did are kept.
    """
    config = load_config(config_file, overrides)
    arms = plan_arms(config)
    check_root(Path(config.output_dir), arms, config.overwrite)
    for arm in arms:
        RunDirectory(arm.config).check()
    for number, arm in enumerate(arms, start=1):
        logger.info("[%d/%d] %s -> %s", number, len(arms), arm.name, arm.config.output_dir)
        run_process(arm_command(config_file, overrides, arm))
    comparison = read_comparison(config, arms)
    write_report(Path(config.output_dir), comparison)
    return comparison


def check_root(root: Path, arms: list[Arm], overwrite: bool) -> None:
    """Refuse a directory that holds something else than a comparison.

    Raises:
        UserError: it does, and `overwrite` is not set.
    """
    if root.exists() and not root.is_dir():
        raise UserError(f"output_dir={str(root)!r} is a file")
    ours = {arm.name for arm in arms} | {COMPARISON, TABLE, PICTURE}
    found = {p.name for p in root.iterdir()} if root.exists() else set()
    foreign = sorted(name for name in found - ours if not name.startswith(ORDER))
    if foreign and not overwrite:
        raise UserError(
            f"output_dir={str(root)!r} holds {foreign[:5]} and no comparison; choose another output_dir, or "
            "add overwrite=true to write beside them"
        )


def arm_command(config_file: str | Path, overrides: Sequence[str], arm: Arm) -> list[str]:
    """The command that runs one arm by itself."""
    folder = json.dumps(arm.config.output_dir, ensure_ascii=False)  # quoted: it may hold " #" or ": "
    own = [f"method={arm.config.method}", f"seed={arm.config.seed}", f"output_dir={folder}"]
    if arm.config.method == "full":
        own.append("model.load_in_4bit=false")
    if arm.config.method != "lora":
        own.append("loraplus_lr_ratio=null")
    return [sys.executable, "-m", "lora_hf", "train", "--config", str(config_file), *overrides, *own]


def run_process(command: list[str]) -> None:
    """Run a command, hand it the signals that come, and wait for it.

    The child gets a process group of its own: a Ctrl-C in the terminal reaches it once, through here.
    """
    child = subprocess.Popen(command, process_group=0)

    def forward(number: int, frame: FrameType | None) -> None:
        child.send_signal(number)

    before = {number: signal.signal(number, forward) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        status = child.wait()
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
    if status != 0:
        raise ArmFailed(status)


def read_comparison(config: RunConfig, arms: list[Arm]) -> dict[str, Any]:
    """Gather the arms' records and predictions, by method, and summarize them."""
    records: dict[Method, list[dict[str, Any]]] = {method: [] for method in ORDER}
    rows: dict[Method, list[list[dict[str, Any]]]] = {method: [] for method in ORDER}
    for arm in arms:
        run = RunDirectory(arm.config)
        record = run.results()
        assert record is not None, f"{run.path} has no results"
        records[arm.config.method].append(record)
        rows[arm.config.method].append(read_predictions(run.path))
    return summarize_arms(records, rows)


def write_report(root: Path, comparison: dict[str, Any]) -> None:
    """The table as Markdown, the figures as JSON, and the picture."""
    from lora_hf.reporting.plots import draw_comparison
    from lora_hf.reporting.table import comparison_markdown

    write_json(root / COMPARISON, comparison)
    write_text(root / TABLE, comparison_markdown(comparison))
    draw_comparison(comparison, root / PICTURE)
