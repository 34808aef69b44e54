"""Scores of a file of saved predictions, with bootstrap intervals over examples: `lora-hf score`.

An example, such as a dialogue, that has several references takes several rows of the file (`group` or
`group_size`), or one row with several columns of references, or with a list in the cell, as json and parquet
allow. Predictions and references may also be plain text, one per line. The ROUGE of an example is the mean
over its references, with the best one beside it; `evaluation.metrics` says what other metrics do. The
bootstrap resamples examples.
"""

import json
import logging
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from lora_hf.data.columns import cell, list_in
from lora_hf.data.opened import SEEN, Form, endings
from lora_hf.data.readers import TEXT, Row, read_lines, read_rows
from lora_hf.data.sources import CSV, check_form, refuse_columns
from lora_hf.errors import UserError, counted, did_you_mean, in_words
from lora_hf.evaluation.metrics import Measured, Scoring, scoring_by
from lora_hf.evaluation.metrics.rouge import from_dialogue_scores
from lora_hf.evaluation.rouge import group_scores, rouge_per_pair
from lora_hf.evaluation.words import choose_tokenizer
from lora_hf.scores import Score

logger = logging.getLogger(__name__)
FileScores = dict[str, Any]
PREDICTION, REFERENCES = "prediction", ("references", "reference")
"""Columns of a run's predictions.jsonl, which need not be named."""


def score_file(
    path: str | Path,
    prediction: str | None = None,
    reference: str | Sequence[str] | None = None,
    group: str | None = None,
    group_size: int | None = None,
    form: Form = SEEN,
    metrics: Sequence[str] = ("rouge",),
    language: str | None = None,
) -> FileScores:
    """Score the predictions in a csv, tsv, jsonl, json, parquet, arrow or text file.

    Args:
        path: the file; a text file has one prediction per line.
        prediction: column with the texts to score; an empty one scores 0. None is `prediction`.
        reference: column with references, a text or a list of texts (in csv as JSON or Python write it), or
            several such columns; `a.b` is the field b of the objects in a; or a text file with one reference
            per line. None is `references` or `reference`.
        group: column that has the same value in all rows of an example; the rows need not be adjacent.
        group_size: number of adjacent rows per example. Without it or `group`, each row is one.
        form: encoding, delimiter and so on, where the files do not show them.
        metrics: names of metrics, or paths of Python files.
        language: language of the references, a code such as `de`, if it is known.

    Returns:
        Each score, such as `rouge1` from 0 to 1, and its 95 % interval, `rouge1_interval`, [low, high]; of
        ROUGE the same for `rouge1_best` and so on if an example has several references; `n` (examples),
        `n_rows`, and what the metrics say of themselves, such as `rouge_tokenizer`, how texts were divided
        into words, or `bleu_signature`.

    Raises:
        UserError: the file cannot be read, or not by a field of `form`, a column or cell is missing or not
            text, or `group_size` does not divide the rows, or a metric is unknown or needs a package that is
            missing.
    """
    scoring = scoring_by(metrics, language)
    if group is not None and group_size is not None:
        raise UserError(f"--group {group} and --group-size {group_size} exclude each other; give one of them")
    rows, prediction, references = _table(path, prediction, reference, form)
    options = [("--prediction", prediction), *(("--reference", name) for name in references)]
    for option, name in (*options, ("--group", group)):
        if name is not None:
            _require_column(rows, name, f"{option} {name}: {path}")
    pairs, pairs_of_row = _pairs(rows, prediction, references, path)
    groups = [
        [i for row in rows_ for i in pairs_of_row[row]] for rows_ in _groups(rows, group, group_size, path)
    ]
    measured = _measured(pairs, groups, scoring, path)
    result: FileScores = {}
    for kind, scores in (("", measured.scores), ("_best", measured.best)):
        for name, values in scores.items():
            result |= {f"{name}{kind}": values.exact, f"{name}{kind}_interval": values.interval()}
    return result | {"n": len(groups), "n_rows": len(rows), **measured.facts}


def _measured(
    pairs: Sequence[tuple[str, str]], groups: Sequence[Sequence[int]], scoring: Scoring, path: str | Path
) -> Measured:
    """Score the examples; ROUGE compares pairs, so it alone allows an example with several predictions."""
    known = {}
    of_each = [[pairs[i][1] for i in members] for members in groups]
    if "rouge" in scoring.task.metrics:
        tokenizer = choose_tokenizer((text for _, text in pairs), scoring.language)
        predictions, texts = (tuple(pair[side] for pair in pairs) for side in (0, 1))
        per_pair = rouge_per_pair(predictions, texts, tokenizer)
        first = [pairs[members[0]][0] for members in groups]
        known["rouge"] = from_dialogue_scores(
            group_scores(per_pair, groups), first, of_each, scoring.language
        )
    if scoring.task.metrics != ("rouge",):
        for members in groups:
            written = {pairs[i][0] for i in members}
            if len(written) > 1:
                raise UserError(
                    f"{path}: the rows of one example have several predictions, such as "
                    f"{' and '.join(map(repr, sorted(written)[:2]))}; only ROUGE can be taken of them"
                )
    return scoring.measure([pairs[members[0]][0] for members in groups], of_each, known)


def render_json(scores: FileScores) -> str:
    """Return the scores as an indented JSON object without a final newline."""
    return json.dumps(scores, indent=2)


def render_table(scores: FileScores, metrics: Sequence[str] = ("rouge",)) -> str:
    """Return the scores as a text table: a line per score, a column for mean and best reference."""
    scoring = scoring_by(metrics)
    listed, is_rouge = scoring.scores, scoring.task.metrics == ("rouge",)
    has_best = any(f"{score.name}_best" in scores for score in listed)
    heading = "F1" if is_rouge else "score"
    kinds = {"": "mean over references", "_best": "best reference"} if has_best else {"": heading}
    width = max(11, *(len(score.label) + 1 for score in listed))
    lines = [" " * width + "".join(f"{title:<32}" for title in kinds.values()).rstrip()]
    for score in listed:
        cells = (_cell(score, scores, kind) for kind in kinds if f"{score.name}{kind}" in scores)
        lines.append(f"{score.label:<{width}}" + "".join(f"{cell:<32}" for cell in cells).rstrip())
    n, n_rows = scores["n"], scores["n_rows"]
    one = "dialogue" if is_rouge else "example"
    rows = counted(n_rows, "row")
    what = f"{counted(n, one)} in {rows}" if n_rows != n else f"{rows}, each counted as one {one}"
    lines.append(f"{what}; 95 % intervals in brackets, by bootstrap over {one}s")
    lines += [f"{name.replace('_', ' ')}: {scores[name]}" for name in scores if name.endswith("_signature")]
    notes = [name for name in scores if name.endswith("_note")]
    lines += [f"{name.removesuffix('_note').upper()}: {scores[name]}" for name in notes]
    if "rouge_tokenizer" in scores:
        lines.append(f"tokenizer of ROUGE: {scores['rouge_tokenizer']}")
    return "\n".join(lines)


def _cell(score: Score, scores: FileScores, kind: str) -> str:
    low, high = map(score.text, scores[f"{score.name}{kind}_interval"])
    return f"{score.text(scores[score.name + kind])} [{low}, {high}]"


def _table(
    path: str | Path, prediction: str | None, reference: str | Sequence[str] | None, form: Form
) -> tuple[list[Row], str, list[str]]:
    """Return the rows, and the names of the columns of predictions and references; lines become columns."""
    path = Path(path).expanduser()
    given = [reference] if isinstance(reference, str) else list(reference or ())
    if endings(path)[0] == TEXT:
        if prediction is not None:
            remedy = "leave out --prediction"
            raise UserError(
                f"--prediction {prediction}: {path} is plain text, one prediction per line: {remedy}"
            )
        rows: list[Row] = [{PREDICTION: line} for line in read_lines(path, form)]
        if not rows:
            raise UserError(f"{path} has no rows; give a file with one line for each text")
        refuse_columns(str(path), {"data.explode": form.explode})
    else:
        rows = read_rows(path, form)
    check_form(form, [path], any(endings(Path(name))[0] == TEXT for name in (str(path), *given)))
    columns = list(dict.fromkeys(key for row in rows for key in row))
    if prediction is None and PREDICTION not in columns:
        raise UserError(
            f"--prediction: {path} has no column {PREDICTION!r}; name the column: {in_words(columns)}"
        )
    given = given or [name for name in REFERENCES if name in columns][:1]
    if not given:
        raise UserError(
            f"{path}: give --reference, one of the columns {in_words(columns)}, or a text file with one "
            "reference per line"
        )
    for name in given:
        if name not in columns and endings(Path(name))[0] == TEXT:
            lines = read_lines(Path(name), form)
            if len(lines) != len(rows):
                both = f"{counted(len(lines), 'line')}, and {path} {counted(len(rows), 'row')}"
                raise UserError(f"--reference {name} has {both}")
            rows = [row | {name: line} for row, line in zip(rows, lines, strict=True)]
        elif name not in columns and Path(name).expanduser().is_file():
            raise UserError(
                f"--reference {name} is a file of columns: --reference takes a column of {path} "
                f"({in_words(columns)}) or a .txt with one reference per line; put the references into one "
                "of the two"
            )
    prediction = prediction or PREDICTION
    for name in {prediction, *given} - {*columns}:
        if any(cell(row, name) is not None for row in rows):  # `answers.text`: a field of objects
            rows = [row | {name: cell(row, name)} for row in rows]
    if endings(path)[0] in CSV:
        lists = [{n: list_in(row[n]) for n in given if isinstance(row.get(n), str)} for row in rows]
        n_lists = sum(any(isinstance(cell, list) for cell in own.values()) for own in lists)
        if n_lists:
            text = "%s: lists in %s are read as several references of a row (%s of %s rows)"
            logger.info(text, path, in_words(given), f"{n_lists:,}", f"{len(rows):,}")
        rows = [row | own for row, own in zip(rows, lists, strict=True)]
    return rows, prediction, given


def _require_column(rows: Sequence[Row], name: str, where: str) -> None:
    columns = list(dict.fromkeys(key for row in rows for key in row))
    if name not in columns:
        raise UserError(
            f"{where} has no such column; its columns are {in_words(columns)}.{did_you_mean(name, columns)}"
        )


def _pairs(
    rows: Sequence[Row], prediction: str, columns: Sequence[str], path: str | Path
) -> tuple[list[tuple[str, str]], list[list[int]]]:
    """Return all (prediction, reference) pairs, and for each row the indices of its pairs."""
    pairs: list[tuple[str, str]] = []
    pairs_of_row = []
    for number, row in enumerate(rows, start=1):
        text = _text(row.get(prediction), f"{path}, row {number}, column {prediction!r}")
        cells = {name: row.get(name) for name in columns}
        if len(columns) > 1:  # an annotator may have left one out, but not all
            cells = {name: cell for name, cell in cells.items() if cell not in (None, "")} or cells
        references = [
            one
            for name, cell in cells.items()
            for one in _references(cell, f"{path}, row {number}, column {name!r}")
        ]
        pairs_of_row.append(list(range(len(pairs), len(pairs) + len(references))))
        pairs += [(text, each) for each in references]
    return pairs, pairs_of_row


def _references(cell: object, where: str) -> list[str]:
    texts = [_text(each, where) for each in cell] if isinstance(cell, list) else [_text(cell, where)]
    if not texts or not all(text.strip() for text in texts):  # in csv an empty cell is a missing one
        raise UserError(f"{where} is empty: nothing to compare the prediction with")
    return texts


def _text(cell: object, where: str) -> str:
    """Return a cell as text; writers of json and parquet may have stored a text of digits as a number."""
    if isinstance(cell, str):
        return cell
    if isinstance(cell, int | float) and not isinstance(cell, bool) and cell == cell:  # NaN is a missing cell
        return str(cell)
    raise UserError(
        f"{where} must be text, but is {'missing' if cell is None or cell != cell else repr(cell)}"
    )


def _groups(
    rows: Sequence[Row], group: str | None, group_size: int | None, path: str | Path
) -> list[Sequence[int]]:
    """Return the rows of each dialogue, in order of first appearance."""
    if group is not None:
        members: dict[str, list[int]] = {}
        for index, row in enumerate(rows):
            where = f"{path}, row {index + 1}, column {group!r}"
            key = _text(row.get(group), where)
            if not key.strip():
                raise UserError(f"{where} is empty, so its dialogue is not known; fill it in")
            members.setdefault(key, []).append(index)
        return list(members.values())
    size = 1 if group_size is None else group_size
    if size < 1:
        raise UserError(f"--group-size {size} must be at least 1")
    if len(rows) % size:
        raise UserError(f"--group-size {size} does not divide the {counted(len(rows), 'row')} of {path}")
    return [range(start, start + size) for start in range(0, len(rows), size)]
