"""Checks of a config on this machine, with its model and data; no weights are read."""

import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

from lora_hf.adapters.model_state import lora_layers
from lora_hf.config import DataConfig, ModelConfig, RunConfig
from lora_hf.config.load import find_config, load_config
from lora_hf.config.model import EMBEDDED
from lora_hf.config.task import SUMMARIZATION, Task
from lora_hf.config.variants import with_grid, with_variant
from lora_hf.data import overlap, unknown_tokens
from lora_hf.data.examples import Example
from lora_hf.data.familiar import far_data
from lora_hf.data.overlap import SharedDialogues
from lora_hf.data.prepare import ADDED_END, WITH_SPECIAL, prompt_problem
from lora_hf.data.sources import is_on_hub, is_remote
from lora_hf.data.split_names import SPLITS, Split
from lora_hf.data.splits import few_scored, load_split_and_origin, scored_split
from lora_hf.data.streaming import load_train
from lora_hf.data.tokenize import TokenizedDialogues, Truncation
from lora_hf.data.unknown_tokens import UnknownTokens
from lora_hf.doctor.base import stored
from lora_hf.doctor.check import CannotTell, Finding, Findings, fault, notice, ok, unknown
from lora_hf.errors import Unavailable, UserError, as_typed, counted
from lora_hf.evaluation import writable
from lora_hf.evaluation.metrics import Scoring
from lora_hf.evaluation.retention import load_retention
from lora_hf.evaluation.writable import unwritable
from lora_hf.files import is_writable
from lora_hf.memory import free_memory
from lora_hf.models.load import check_run_lengths
from lora_hf.models.positions import positions_of
from lora_hf.models.storage import STORAGE_FORMATS
from lora_hf.planning.fake_model import check_fit, count_weights, outline, settings_of, targets_of
from lora_hf.planning.plan import Plan, Rows, needs_less, plan_step
from lora_hf.reporting.tables import ON_TOP, bytes_cell
from lora_hf.saved.push import check_push
from lora_hf.system import pick_device, resolve_dtype
from lora_hf.training.arguments import (
    check_dtype,
    check_full_batches,
    check_training_settings,
    doubtful_schedule,
)
from lora_hf.training.stored_base import check_stored_base

CUT_SHARE = 0.05
"""Largest share of truncated rows; beyond it, training and scores no longer reflect the data."""
FEW_CUT = 0.01
"""Share of truncated rows with the lengths that are proposed."""
Lengths = tuple[int | None, int | None]


def fields(path: Path, overrides: list[str]) -> Findings:
    """Check all fields, in every variant; return the config."""
    config = load_config(path, overrides, is_study=True)
    runs = len(runs_of(config))
    yield ok(f"{path}: method {config.method}" + (f", {runs} training runs" if runs > 1 else ""))
    place = Path(config.output_dir)
    if not is_writable(place / "config.yaml"):
        yield fault(f"output_dir={config.output_dir!r} cannot be written", "choose another output_dir")
    return config


def runs_of(config: RunConfig) -> dict[str, RunConfig]:
    """Return the runs that train, by name: variants, a sweep's grid, or the config itself."""
    studies = (config, with_grid(config))
    runs = {f"{name}: ": with_variant(study, name) for study in studies for name in study.variants}
    runs = runs or {"": config}
    return {name: run for name, run in runs.items() if run.method != "base"}


def compared_runs(config: RunConfig) -> dict[str, RunConfig]:
    """Return `runs_of`, and those of `compare` whose `training` the config changes in `arms`."""
    arms = [method for method, own in config.arms.items() if own.training and method != "base"]
    own = {f"arms.{m}: ": config.for_run(m, config.seed, config.output_dir) for m in arms}
    return runs_of(config) | own


@contextmanager
def named(run: str) -> Iterator[None]:
    """Put a variant's name before the message of a `UserError`."""
    try:
        yield
    except UserError as error:
        raise type(error)(f"{run}{error}") from error


def storage(fields: RunConfig) -> Findings:
    """Check that the storage format is available; return the section `model`."""
    runs = runs_of(fields) or {"": fields}
    formats = sorted({run.model.storage for run in runs.values()})
    for name in formats:
        STORAGE_FORMATS[name].check_package()
    yield ok(f"{fields.model.model_name_or_path}, {stored(formats)}")
    return fields.model


def metrics(fields: RunConfig) -> Findings:
    """Check that the metrics of the task can be computed."""
    scoring = Scoring.of_config(fields)
    scoring.check()
    labels = ", ".join(score.label for score in scoring.scores)
    yield ok(f"scored by {labels}; {scoring.main.label} decides")


def dtype(fields: RunConfig) -> Findings:
    """Check that no run trains in float16."""
    reported = set()
    for name, run in runs_of(fields).items():
        used = resolve_dtype(run.model.dtype, pick_device())
        with named(name):
            check_dtype(used)
        reported.add(f"{str(used).removeprefix('torch.')} (dtype: {run.model.dtype})")
    yield ok(" and ".join(sorted(reported)) or "no run trains")


def training(fields: RunConfig, dtype: None) -> Findings:
    """Check that this machine can train with `training:`: packages, processes, optimizer, trackers."""
    trackers: set[str] = set()
    for name, run in compared_runs(fields).items():
        with named(name):
            arguments = check_training_settings(run)
            check_push(run)
        trackers |= set((arguments.report_to if arguments else None) or ())
    yield ok(f"accepted by Transformers; metrics go to {', '.join(sorted(trackers)) or 'the log only'}")


def targets(fields: RunConfig) -> Findings:
    """Check that the method fits the model: weights that can train, targets, ranks, initialization."""
    shares, doubtful = [], []
    for name, run in runs_of(fields).items():
        with named(name):
            settings = _settings_of(run.model, fields.model)
            check_stored_base(run, settings.to_dict())
            share, doubts = share_trained(run, settings)
        shares.append(f"{name}{share}")
        doubtful += [f"{name}{doubt}" for doubt in doubts]
    for doubt in doubtful:
        yield fault(doubt, "lora.target_modules: auto")
    yield ok("; ".join(shares) or "no run trains")


def _settings_of(base: ModelConfig, checked: ModelConfig) -> Any:
    """Return `settings_of` a run's base.

    Raises:
        CannotTell: it cannot be used, and is the folder about which `checkpoint` has reported that.
        UserError: another base, of a variant or on the Hub, cannot be used.
    """
    try:
        return settings_of(base)
    except UserError as error:
        name = base.model_name_or_path
        if name == checked.model_name_or_path and Path(name).expanduser().is_dir():
            raise CannotTell("the base cannot be used, see checkpoint", "checkpoint") from error
        raise


def share_trained(run: RunConfig, settings: Any) -> tuple[str, list[str]]:
    """Return how much of the model trains, computed on a model without memory; and doubts about its targets.

    Raises:
        UserError: a target matches nothing, or as `check_fit`.
    """
    dtype = resolve_dtype(run.model.dtype, pick_device())
    with outline(run, settings, dtype) as model:
        check_fit(run, model)
        parts, trainable, _ = count_weights(model, run.method != "full")
        adapted, found = len(lora_layers(model)), targets_of(model)
    where = f" on {counted(adapted, 'layer')}" if adapted else ""
    return f"{trainable:,} weights train{where} ({trainable / sum(parts.values()):.1%})", found.warnings


def batches(fields: RunConfig, tokens: Rows | None) -> Findings:
    """Check that the training split fills a batch, and that its steps are more than those of the warm-up."""
    if tokens is None:
        raise CannotTell("the number of training rows is unknown", "tokens")
    own, said = runs_of(fields), set[str]()
    for name, run in compared_runs(fields).items():
        with named(name):
            check_full_batches(run, tokens)
        short = doubtful_schedule(run, tokens)
        if short and (name in own or short[0] not in said):  # what `arms` do not change is said once
            yield fault(f"{name}{short[0]}", short[1])
            said.add(short[0])
    yield ok("the training split has enough rows for a full batch")


def memory(fields: RunConfig, targets: None, tokens: Rows | None) -> Findings:
    """Check that the peak memory of a step fits into the free memory."""
    if fields.method == "base":
        return
    record = plan_step(fields, tokens, read=False)
    if (needed := record["peak_bytes"]) is None:
        raise CannotTell(record["not_counted"])
    free = free_memory(pick_device())
    if free is None:
        raise CannotTell(f"a step needs {bytes_cell(needed)}; the free memory is unknown here")
    needed = max(needed, record["scoring_bytes"] or 0)
    less = needs_less(fields, record, free) if needed > free else []
    yield judge_memory(needed, free, less, bool(record["compiled"]), pick_device().type == "cpu")


def judge_memory(
    needed: int, free: int, less: list[Plan], is_compiled: bool = False, is_on_cpu: bool = False
) -> Finding:
    """Return the finding on the memory of a step; `less` are the changes with which it fits."""
    step = "a compiled step needs at most" if is_compiled else "a step needs"
    on_top = f" {ON_TOP}" if is_on_cpu else ""
    text = f"{step} {bytes_cell(needed)}{on_top}, and {bytes_cell(free)} are free"
    if needed <= free:
        return ok(text)
    if not less:
        return fault(text, "choose a smaller model; `lora-hf plan` shows the parts")
    changes = (f"{' '.join(way['overrides'])} ({bytes_cell(way['peak_bytes'])})" for way in less)
    return fault(text, f"one of these fits: {'; '.join(changes)}")


def tokens(path: Path, fields: RunConfig, tokenizer: Any) -> Findings:
    """Check that the data is valid and few rows are truncated; return the token ids of the training split."""
    try:
        for name, run in (runs_of(fields) or {"": fields}).items():
            with named(name), suppress(Unavailable):  # a variant's own base, which is reported by `targets`
                check_run_lengths(run)
        scoring = Scoring.of_config(fields)
        return (yield from tokens_cut(fields.data, tokenizer, scoring=scoring, most=_largest(fields)))
    except CannotTell as reason:  # memory can still be judged by the config's bounds
        yield unknown(f"not checked: {reason}")
    except UserError as error:
        for line in str(error).splitlines():
            yield fault(line, _remedy_of_data(line, path, fields.data.dataset_name))
    return None


def _largest(fields: RunConfig) -> Lengths:
    """Return the largest numbers of tokens of sources and targets; None for any, or what cannot be known."""
    with suppress(Unavailable, UserError):
        encoder, decoder = positions_of(settings_of(fields.model))
        if encoder is not None and fields.method == "prompt_tuning":
            encoder -= fields.prompt_tuning.num_virtual_tokens
        return encoder, decoder
    return None, None


def _remedy_of_data(error: str, path: Path, name: str) -> str:
    """Return the remedy of an error on the data; of a missing file, the one of its name beside the config."""
    if "no such file or folder" in error:
        folder = find_config(path).parent
        for beside in (folder / name, folder / Path(name).name):
            if beside.exists():
                return f"a file of that name is beside the config: {as_typed(f'data.dataset_name={beside}')}"
    field = re.match(r"(data\.\w+)", error)
    return f"correct {field[1] if field else 'the section data'} in {path}, or set it after the config"


def retention(fields: RunConfig, tokenizer: Any) -> Findings:
    """Check that the further tasks can be read and scored."""
    for name, section in fields.retention.items():
        if is_remote(section.data) and section.data.dataset_name.partition("/")[0] != EMBEDDED:
            raise CannotTell(f"{section.data.dataset_name} (retention.{name}) is downloaded by a run first")
    tasks = load_retention(fields, tokenizer)
    if not tasks:
        yield ok("the config has no other tasks to score")
    for task in tasks:
        words = task.scoring.task
        what = words.source if len(task.test) == 1 else words.sources
        yield ok(f"{task.name}: {len(task.test):,} {what}, by {task.scoring.main.label}")


def tokens_cut(
    data: DataConfig,
    tokenizer: Any,
    splits: tuple[Split, ...] = SPLITS,
    scoring: Scoring | None = None,
    most: Lengths = (None, None),
) -> Findings:
    """Yield findings on truncated rows, unknown tokens and shared dialogues; return the training token ids.

    Also on texts that are far from what the embedded model knows, and with the scoring of a config on
    references that cannot be written. Proposed lengths are at most those of `most`, as for `judge_cut`.

    Raises:
        CannotTell: the data has to be downloaded first.
    """
    task = scoring.task if scoring else SUMMARIZATION
    if is_remote(data):
        where = "on the Hub" if is_on_hub(data) else "at an address"
        raise CannotTell(f"{data.dataset_name} is {where}; a run downloads it first")
    train = load_train(data, tokenizer) if "train" in splits else None
    held_out: dict[str, Sequence[Example]] = {}
    cut: list[Truncation] = []
    others: list[Finding] = []
    for split in splits:
        if split == "train" and train:
            rows = train.rows
        else:
            held_out[split], origin, _ = load_split_and_origin(data, split)
            rows = held_rows(held_out[split], data, split, tokenizer)
        cut.append(rows.truncation.in_words_of(task))
        if rows.with_special:
            words = f"{rows.with_special:,}", task.sources, task.targets
            others.append(ok(WITH_SPECIAL % (split, *words, tokenizer.eos_token)))
        if rows.unknown:
            others.append(judge_unknown(rows.unknown.in_words_of(task)))
        if split == "test":
            texts = [example.dialogue for example in held_out[split]]
            few = few_scored(data, task, len(texts), origin)
            others += map(notice, filter(None, (few, far_data(texts, tokenizer, task.sources))))
    yield from judge_cut(cut, most)
    yield from others
    if rows.unknown_in_prompt.unknown:
        yield fault(prompt_problem(data, rows.unknown_in_prompt), "change data.prompt")
    if rows.added_end is not None:
        yield ok(ADDED_END % (rows.added_end, task.target))
    if train is None:
        return None
    if "test" in held_out and scored_split(data, "test") == "validation":
        yield ok("test has no references: scores are those of validation")
        del held_out["test"]
    if scoring and (test := held_out.get("test")):
        lost = unwritable(scoring, [example.references for example in test], tokenizer, data)
        if lost.text:
            yield fault(lost.text, writable.REMEDY) if lost.is_fault else ok(lost.text)
    yield from judge_shared(train.shared_with(held_out), task)
    return train.rows


def judge_unknown(unknown: UnknownTokens) -> Finding:
    """Return the finding on the tokens of a split that the tokenizer does not know."""
    return fault(str(unknown), unknown_tokens.REMEDY) if unknown.is_fault else ok(str(unknown))


def judge_shared(found: list[SharedDialogues], task: Task = SUMMARIZATION) -> Iterator[Finding]:
    """Yield the findings on dialogues that stand in several splits."""
    for shared in (one.in_words_of(task) for one in found):
        yield fault(str(shared), overlap.REMEDY) if shared.is_fault else ok(str(shared))
    if not found:
        yield ok(overlap.NONE_SHARED % task.source)


def held_rows(
    examples: Sequence[Example], data: DataConfig, split: Split, tokenizer: Any
) -> TokenizedDialogues:
    """Tokenize a split: one row per reference for validation, one per dialogue for the test."""
    if split == "test":
        examples = [replace(example, references=example.references[:1]) for example in examples]
    return TokenizedDialogues(list(examples), tokenizer, data, split)


def judge_cut(splits: Sequence[Truncation], most: Lengths = (None, None)) -> Iterator[Finding]:
    """Yield the findings on truncated rows: of each split where they are few, and one of all others.

    Args:
        splits: with their lengths.
        most: largest numbers of tokens of sources and targets that the model can take; None for any.
    """
    faulty: list[Truncation] = []
    for cut in splits:
        if max(cut.cut_sources, cut.cut_targets or 0) > CUT_SHARE * cut.n:
            faulty.append(cut)
        elif cut.cut_sources or cut.cut_targets:
            yield notice(str(cut))
        else:
            longest = max(cut.source_lengths, default=0)
            yield ok(f"{cut.split}: {counted(cut.n, 'row')}, the longest {longest} tokens, none cut")
    if not faulty:
        return
    limits, raised = faulty[0], []
    for field, limit, lengths, largest in (
        ("source", limits.max_source_length, [cut.source_lengths for cut in splits], most[0]),
        ("target", limits.max_target_length or 0, [cut.target_lengths for cut in splits], most[1]),
    ):
        enough = max(map(_enough, lengths))
        if largest is not None and limit < largest < enough:
            raised.append(f"data.max_{field}_length={largest}, the most that the model can take")
        elif enough > limit and (largest is None or enough <= largest):
            raised.append(f"data.max_{field}_length={enough}")
    remedy = f"set {' and '.join(raised)}, or shorten" if raised else "shorten"
    text = f"{remedy} the rows: a run begins all the same, and does not learn what is cut"
    yield fault("; ".join(map(str, faulty)), text)


def _enough(lengths: Sequence[int]) -> int:
    """Return the smallest multiple of 8 tokens at which at most 1 % of the rows are cut."""
    if not lengths:
        return 0
    longest_kept = sorted(lengths)[-1 - int(FEW_CUT * len(lengths))]
    return -(-longest_kept // 8) * 8
