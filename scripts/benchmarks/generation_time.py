"""Measure how much each method slows generation, in one process, as a Markdown table.

python scripts/benchmarks/generation_time.py --config configs/methods.yaml --variants lora bottleneck
"""

import argparse
import sys
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from statistics import median
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[2]))

from lora_hf.adapters import merge_and_unload
from lora_hf.adapters.model_state import count_parameters
from lora_hf.cli.exit_status import exit_status
from lora_hf.config import RunConfig
from lora_hf.config.load import load_config
from lora_hf.config.variants import with_variant
from lora_hf.data.splits import load_split
from lora_hf.data.tokenize import encode_sources
from lora_hf.errors import UserError, did_you_mean
from lora_hf.evaluation.generate import generate_summaries
from lora_hf.models.load import load_model, load_tokenizer
from lora_hf.reporting.tables import markdown_table
from lora_hf.system import pick_device
from lora_hf.training.registry import ADDED_WEIGHTS
from scripts.benchmarks.interleaved import ratios_to, time_in_turn

MERGED = " merged"


def generation_times(
    config: RunConfig, variants: Sequence[str], new_tokens: int = 32, rounds: int = 15
) -> dict[str, dict[str, Any]]:
    """Time one batch of test dialogues with the base and with each variant, a LoRA also merged.

    The adapters are untrained, and each summary has exactly `new_tokens` tokens, so that the work is equal.

    Args:
        config: config with variants; the batch is `generation.batch_size` dialogues of its test split.
        variants: names in `config.variants` whose method adds weights.
        new_tokens: length of every summary.
        rounds: number of timed rounds.

    Returns:
        By name, `base` first: `seconds` (median), `ratio` to the base's time (median over rounds),
        `quartiles` of the ratio, and `added_weights` (0 for a merged LoRA). `base again` is the same model
        once more; its ratio shows the noise.

    Raises:
        UserError: a variant is unknown or adds no weights.
    """
    models = _models(config, variants)
    write = _writer(config, new_tokens)
    seconds = time_in_turn({name: partial(write, model) for name, model in models.items()}, rounds)
    weights = {name: count_parameters(model)[1] for name, model in models.items()}
    return {
        name: {
            "seconds": median(seconds[name]),
            "ratio": ratio,
            "quartiles": [low, high],
            "added_weights": weights[name] - weights["base"],
        }
        for name, (ratio, low, high) in ratios_to("base", seconds).items()
    }


def _models(config: RunConfig, variants: Sequence[str]) -> dict[str, Any]:
    base = load_model(config.model, pick_device())
    models = {"base": base, "base again": base}
    for name in variants:
        if name not in config.variants:
            known = sorted(config.variants)
            raise UserError(f"--variants {name!r}: the config has {known}.{did_you_mean(name, known)}")
        variant = with_variant(config, name)
        models[name] = _with_weights(variant)
        if variant.method == "lora":
            models[name + MERGED] = merge_and_unload(_with_weights(variant))
    return models


def _with_weights(config: RunConfig) -> Any:
    if config.method not in ADDED_WEIGHTS:
        raise UserError(f"--variants: method {config.method!r} adds no weights; its time is the base's")
    model = load_model(config.model, pick_device())
    ADDED_WEIGHTS[config.method].add(config, model)
    return model


def _writer(config: RunConfig, new_tokens: int) -> Callable[[Any], list[str]]:
    """Return the function that is timed: it summarizes one batch with a model."""
    tokenizer, size = load_tokenizer(config.model), config.generation.batch_size
    dialogues = [example.dialogue for example in load_split(config.data, "test")[:size]]
    sources = encode_sources(dialogues, tokenizer, config.data).ids

    def write(model: Any) -> list[str]:
        return generate_summaries(  # the fast paths would merge a LoRA
            model, tokenizer, sources, new_tokens, size, fast_paths=False, min_new_tokens=new_tokens
        )

    return write


def generation_markdown(times: dict[str, dict[str, Any]]) -> str:
    """Return a Markdown table: time, ratio to the base's time with quartiles, and added weights by model."""
    header = ["", "seconds", "÷ base [quartiles]", "added weights"]
    lines = [
        [
            name,
            f"{of['seconds']:.3f}",
            f"{of['ratio']:.3f} [{of['quartiles'][0]:.3f}, {of['quartiles'][1]:.3f}]",
            f"{of['added_weights']:,}",
        ]
        for name, of in times.items()
    ]
    return markdown_table([header, *lines]) + "\n"


if __name__ == "__main__":
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--config", required=True)
    parser.add_argument(
        "--variants",
        nargs="+",
        default=("lora", "bottleneck", "prompt_tuning"),
        help="variants of the config; LoRA is timed merged too",
    )
    parser.add_argument("--new-tokens", type=int, default=32)
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("overrides", nargs="*", metavar="KEY.SUB=VALUE")
    arguments = parser.parse_args()

    def main() -> None:
        config = load_config(arguments.config, arguments.overrides, is_study=True)
        times = generation_times(config, arguments.variants, arguments.new_tokens, arguments.rounds)
        print(generation_markdown(times), end="")

    sys.exit(exit_status(main))
