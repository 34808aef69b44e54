"""The rank that was needed, from one trained adapter: cut to smaller ranks, each scored.

The best approximation of rank k of what each layer has learned is its first k singular directions (Eckart and
Young 1936). What a smaller adapter would have learned if it had been trained is at least as good.
"""

import logging
from collections.abc import Sequence
from pathlib import Path
from statistics import mean
from typing import Any

from lora_hf import files
from lora_hf.adapters import combine_adapters, delete_adapter, save_adapter, set_adapter, spectra
from lora_hf.adapters.saved_adapter import SavedAdapter
from lora_hf.config import RunConfig
from lora_hf.data.splits import load_split
from lora_hf.data.tokenize import encode_sources
from lora_hf.errors import UserError
from lora_hf.evaluation.evaluate import score_model
from lora_hf.evaluation.rouge import ROUGE_NAMES
from lora_hf.evaluation.significance import SIGNIFICANCE_LEVEL, bootstrap_interval
from lora_hf.experiments.summary import dialogue_scores, paired_record
from lora_hf.files import check_new, write_json, write_text
from lora_hf.reporting.rank_truncation import draw_truncation, truncation_markdown
from lora_hf.saved.adapter import load_with_base
from lora_hf.saved.inference import NEW_TOKENS
from lora_hf.training.registry import saved_method

NAME = "default"
TABLE, PICTURE, FIGURES = REPORT = ("truncation.md", "truncation.png", "truncation.json")
logger = logging.getLogger(__name__)


def truncate(
    adapter: SavedAdapter,
    output: Path,
    config: RunConfig,
    ranks: Sequence[int] | None,
    base: str | None = None,
) -> dict[str, Any]:
    """Cut an adapter to smaller ranks, save and score each, and write truncation.json, .md and .png.

    Args:
        adapter: a LoRA adapter.
        output: a new folder; the adapter of rank k goes to `r<k>` in it.
        config: whose test split and `generation` are used.
        ranks: to cut to; None takes the powers of two below the adapter's own.
        base: the base model, or None for the one the adapter names.

    Returns:
        What truncation.json holds: `ranks` (for each its scores, intervals, share of the update's energy, and
        the paired test against the whole adapter), `spectra` (layer name -> singular values) and `needed`,
        the least rank that is not worse by that test.

    Raises:
        UserError: what is there already in `output`; an adapter that is no product of two factors; a rank
            that is none.
    """
    check_new(output)
    if (method := saved_method(adapter)) != "lora":
        raise UserError(f"--adapter {adapter.source!r} is of method {method}, which has no rank to cut")
    model, tokenizer = load_with_base(adapter, base)
    manifest = adapter.manifest
    found = spectra(model, NAME)
    whole = max(len(values) for values in found.values())
    cut = _checked(ranks, whole)
    test = load_split(config.data, "test")
    sources = encode_sources([example.dialogue for example in test], tokenizer, config.data).ids
    length = config.generation.max_new_tokens or manifest.get("max_new_tokens", NEW_TOKENS)

    def scored() -> dict[str, Any]:
        scores, rows = score_model(
            config.generation, model, tokenizer, test, sources, length, config.fast_paths
        )
        return scores | {"by_dialogue": dialogue_scores([rows])}

    results = {whole: scored()}
    with files.whole(output) as folder:
        for rank in cut:
            logger.info("rank %d of %d", rank, whole)
            name = f"r{rank}"
            combine_adapters(model, {NAME: 1.0}, name, "svd", rank)
            save_adapter(model, folder, name, manifest)  # with the prompt and lengths it was trained with
            results[rank] = scored()
            delete_adapter(model, name)
            set_adapter(model, NAME)
        return _written(
            folder, adapter.source, results, {path: values.tolist() for path, values in found.items()}
        )


def _checked(ranks: Sequence[int] | None, whole: int) -> list[int]:
    powers = [2**i for i in range(whole.bit_length()) if 2**i < whole]
    cut = sorted(set(powers if ranks is None else ranks), reverse=True)
    if wrong := [rank for rank in cut if not 1 <= rank < whole]:
        raise UserError(f"--ranks {wrong[0]}: give ranks from 1 to {whole - 1}; the adapter's own is {whole}")
    return cut


def _written(
    output: Path, adapter: str, results: dict[int, dict[str, Any]], found: dict[str, list[float]]
) -> dict[str, Any]:
    whole = max(results)
    ranks = {rank: _rank_record(rank, results, found) for rank in sorted(results)}
    good = [r for r, record in ranks.items() if not _is_worse(record.get("against_whole"), len(ranks) - 1)]
    record = {
        "adapter": adapter,
        "whole": whole,
        "needed": min(good),
        "ranks": {str(rank): of for rank, of in ranks.items()},
        "spectra": found,
    }
    write_json(output / FIGURES, record)
    write_text(output / TABLE, truncation_markdown(record))
    draw_truncation(record, output / PICTURE)
    return record


def _rank_record(
    rank: int, results: dict[int, dict[str, Any]], found: dict[str, list[float]]
) -> dict[str, Any]:
    scores = results[rank]["by_dialogue"]
    record: dict[str, Any] = {name: mean(scores[name]) for name in ROUGE_NAMES}
    record |= {f"{name}_interval": list(bootstrap_interval(scores[name])) for name in ROUGE_NAMES}
    record["n_examples"] = results[rank]["n_examples"]
    record["energy"] = _energy(rank, found)
    if rank != max(results):
        record["against_whole"] = paired_record(scores, results[max(results)]["by_dialogue"])
    return record


def _energy(rank: int, found: dict[str, list[float]]) -> float:
    """The kept share of the updates' squared Frobenius norms, over all layers."""
    kept = sum(value**2 for values in found.values() for value in values[:rank])
    return kept / max(sum(value**2 for values in found.values() for value in values), 1e-300)


def _is_worse(test: dict[str, Any] | None, tests: int) -> bool:
    return test is not None and test["difference"] < 0 and test["p_value"] < SIGNIFICANCE_LEVEL / tests
