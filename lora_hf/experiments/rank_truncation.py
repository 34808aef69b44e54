"""The rank that one trained adapter needed: truncate it to smaller ranks, and score each.

The best rank-k approximation of a layer's update is its first k singular directions (Eckart and Young 1936).
An adapter trained at rank k can be at least as good.
"""

import logging
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, cast

from torch import nn

from lora_hf import files
from lora_hf.adapters import combine_adapters, delete_adapter, save_adapter, set_adapter, spectra
from lora_hf.adapters.model_state import lora_layers
from lora_hf.adapters.saved_adapter import SavedAdapter
from lora_hf.config import RunConfig
from lora_hf.config.prediction import NEW_TOKENS
from lora_hf.data.prepare import encode_test
from lora_hf.data.splits import load_split
from lora_hf.errors import UserError
from lora_hf.evaluation.evaluate import score_model
from lora_hf.evaluation.metrics import Scoring
from lora_hf.evaluation.predictions import kept_scores
from lora_hf.evaluation.significance import SIGNIFICANCE_LEVEL
from lora_hf.experiments.summary import Scores, mean_scores, paired_record
from lora_hf.files import check_new, write_json, write_text
from lora_hf.models.languages import set_language
from lora_hf.reporting.rank_truncation import draw_truncation, truncation_markdown
from lora_hf.run_files import TRUNCATION
from lora_hf.run_records import PairedRecord, RankResult, TruncationRecord
from lora_hf.saved.evaluate import report_other_settings, report_trained_on
from lora_hf.saved.find_adapter import load_with_base
from lora_hf.scores import Score
from lora_hf.training.registry import saved_method

NAME = "default"
TABLE, PICTURE, FIGURES = REPORT = tuple(TRUNCATION + end for end in (".md", ".png", ".json"))
logger = logging.getLogger(__name__)


def truncate(
    adapter: SavedAdapter,
    output: Path,
    config: RunConfig,
    ranks: Sequence[int] | None,
    base: str | None = None,
) -> TruncationRecord:
    """Truncate an adapter to smaller ranks, save and score each, and write truncation.json, .md and .png.

    Args:
        adapter: a LoRA adapter.
        output: a new folder; the adapter of rank k goes to `r<k>` in it.
        config: supplies the test split and `generation`.
        ranks: None takes the powers of two below the adapter's own.
        base: the base model, or None for the one the adapter names.

    Returns:
        The content of truncation.json: each rank's scores with intervals, tested against the whole
        adapter.

    Raises:
        UserError: `output` exists, the adapter is not a product of two factors, or a rank is out of range.
    """
    check_new(output)
    if (method := saved_method(adapter)) != "lora":
        raise UserError(f"--adapter {adapter.source!r} is of method {method}, which has no rank to truncate")
    scoring = Scoring.of_config(config)
    scoring.check()
    model, tokenizer = load_with_base(adapter, base)
    _check_low_rank(model, adapter)
    manifest = adapter.manifest
    found = spectra(model, NAME)
    whole = max(len(values) for values in found.values())
    smaller = _checked(ranks, whole)
    test = load_split(config.data, "test")
    report_other_settings(config, adapter)
    report_trained_on(config, adapter, test)
    sources, _ = encode_test(test, tokenizer, config.data, config.task)
    set_language(model, tokenizer, config.data)
    length = config.generation.max_new_tokens or manifest.get("max_new_tokens", NEW_TOKENS)

    def score() -> Scores:
        _, rows = score_model(
            config.generation, model, tokenizer, test, sources, length, config.fast_paths, scoring
        )
        return mean_scores([kept_scores(rows, scoring)])

    scores = {whole: score()}
    with files.whole_output(output) as folder:
        for rank in smaller:
            logger.info("rank %d of %d", rank, whole)
            name = f"r{rank}"
            combine_adapters(model, {NAME: 1.0}, name, "svd", rank)
            save_adapter(model, folder, name, manifest)  # with the prompt and lengths of its training
            scores[rank] = score()
            delete_adapter(model, name)
            set_adapter(model, NAME)
        singular = {path: values.tolist() for path, values in found.items()}
        results = {rank: _rank_result(rank, scores, singular, scoring) for rank in sorted(scores)}
        tests = len(results) - 1
        record: TruncationRecord = {
            "adapter": adapter.source,
            "whole": whole,
            "needed": min(
                rank
                for rank, of in results.items()
                if not _is_worse(of.get("against_whole"), tests, scoring.main)
            ),
            "ranks": {str(rank): of for rank, of in results.items()},
            "spectra": singular,
        }
        record.update(scoring.fields())  # type: ignore[typeddict-item]
        write_json(folder / FIGURES, record)
        write_text(folder / TABLE, truncation_markdown(record))
        draw_truncation(record, folder / PICTURE)
        return record


def _check_low_rank(model: nn.Module, adapter: SavedAdapter) -> None:
    """Refuse what has no singular values to leave out, before anything is scored."""
    methods = [layer.adapters[NAME] for layer in lora_layers(model).values() if NAME in layer.adapters]
    others = {str(one.title) for one in methods if not one.is_low_rank or one.has_requantized_base}
    kinds = [f"adapters of kind {sorted(others)}"] if others else []
    if names := adapter.config.modules_to_save:
        kinds.append(f"whole layers, modules_to_save={list(names)}")
    if kinds:
        raise UserError(
            f"--adapter {adapter.source!r} holds {' and '.join(kinds)}: only products of two matrices on the "
            "base as it is can be truncated; train one with a smaller lora.r"
        )


def _checked(ranks: Sequence[int] | None, whole: int) -> list[int]:
    powers = [2**i for i in range(whole.bit_length()) if 2**i < whole]
    smaller = sorted(set(powers if ranks is None else ranks), reverse=True)
    if wrong := [rank for rank in smaller if not 1 <= rank < whole]:
        raise UserError(f"--ranks {wrong[0]}: give ranks from 1 to {whole - 1}; the adapter's own is {whole}")
    return smaller


def _rank_result(
    rank: int, by_rank: Mapping[int, Scores], found: Mapping[str, list[float]], scoring: Scoring
) -> RankResult:
    scores, whole = by_rank[rank], max(by_rank)
    kept = sum(value**2 for values in found.values() for value in values[:rank])
    total = sum(value**2 for values in found.values() for value in values)
    main = scoring.main
    means = {name: values.exact for name, values in scores.items()}
    intervals = {f"{name}_interval": values.interval() for name, values in scores.items()}
    n = len(scores[main.name].statistics)
    fields: dict[str, Any] = {"n_examples": n, "energy": kept / max(total, 1e-300)}
    if rank != whole:
        fields["against_whole"] = paired_record(scores, by_rank[whole], main)
    return cast(RankResult, {**means, **intervals, **fields})


def _is_worse(test: PairedRecord | None, tests: int, main: Score) -> bool:
    return (
        test is not None
        and main.sign * test["difference"] < 0
        and test["p_value"] < SIGNIFICANCE_LEVEL / tests
    )
