"""The report of runs that are done, from their folders alone."""

import json
import re
from pathlib import Path
from typing import Any

import pytest
from matplotlib.figure import Figure
from support.records import WRITTEN, write_run

from lora_hf import cli
from lora_hf.errors import UserError
from lora_hf.evaluation.metrics import Scoring
from lora_hf.evaluation.predictions import write_predictions
from lora_hf.experiments.report import report, write_report
from lora_hf.files import file_sha256, write_json, write_text
from lora_hf.reporting.figures import Report, _scores_by_weights, dots, logged
from lora_hf.reporting.highlight import marked
from lora_hf.run_files import ROUGE_NAMES
from lora_hf.run_records import PREDICTIONS_VERSION, read_predictions, same_order


@pytest.fixture
def drawn(tmp_path: Path) -> Path:
    for method in WRITTEN:
        write_run(tmp_path, method)
    write_text(tmp_path / "lora/adapter/adapter_model.safetensors", "weights")
    return tmp_path


@pytest.fixture
def compared(drawn: Path, no_figures: None) -> Path:
    """The same, for tests of what else is on the page: drawing the figures takes most of a report's time."""
    return drawn


@pytest.fixture(scope="module")
def page(tmp_path_factory: pytest.TempPathFactory) -> str:
    """Return the report of a comparison in its present state."""
    root = tmp_path_factory.mktemp("compared")
    for method in WRITTEN:
        write_run(root, method)
    return report(root)[2].read_text()


def data_of(page: str) -> dict[str, Any]:
    found = re.search(r'<script type="application/json" id="data">(.*?)</script>', page, re.DOTALL)
    assert found
    data: dict[str, Any] = json.loads(found.group(1))
    return data


def test_a_report_of_a_comparison_from_its_folders(drawn: Path) -> None:
    files = report(drawn)
    assert [file.name for file in files] == [f"comparison{end}" for end in (".json", ".md", ".html", ".png")]
    record = json.loads(files[0].read_text())
    assert (
        record["arms"].keys() == {"base", "full", "lora"} and 0.6 < record["gains"]["lora_share_of_full"] < 1
    )
    page = files[2].read_text()
    data = data_of(page)
    assert [row["id"] for row in data["examples"]] == ["t0", "t1", "t2"]
    assert data["examples"][0]["score"]["full"] == 1 > data["examples"][0]["score"]["lora"] > 0
    gaps = [f"largest gap: |{of}|" for of in ("LoRA − full", "LoRA − base", "full − base")]
    assert [order["label"] for order in data["orders"]][:4] == ["as in the test set", *gaps]
    assert page.count("<svg") == 5 and "LoRA trains 1.40% of the weights" in page
    verdict = "LoRA vs full: -0.083 ROUGE-1, 95 % CI -0.250 to +0.000, p = 1: 3 examples are too few to find"
    for text in (page, files[1].read_text()):
        assert verdict in text and text.index(verdict) < text.index("ROUGE-2")
    basis = ("embedded, 3 test dialogues", "tiny in float32 on cpu", str(drawn))
    assert all(f"<dd>{value}</dd>" in page for value in basis) and "<dt>seed</dt><dd>42</dd>" in page
    assert re.search(r"<dt>finished</dt><dd>\d{4}-\d\d-\d\d</dd>", page)
    assert file_sha256(drawn / "lora/adapter/adapter_model.safetensors") in page
    assert all(word in page for word in ("ab12", "cd34", "9.9", "method: lora"))
    assert report(drawn) and files[2].read_text() == page  # equal runs, equal bytes


def test_model_output_is_escaped_on_the_page(page: str) -> None:
    assert "alert(1)</script>" not in page and "<b>" not in page
    assert page.count("</script>") == 2  # the page's own
    assert data_of(page)["examples"][2]["text"]["base"] == WRITTEN["base"][2]


def test_the_page_asks_for_nothing_from_elsewhere(page: str) -> None:
    names = {"http://www.w3.org/2000/svg", "http://www.w3.org/1999/xlink"}  # of XML, not addresses
    assert not re.search(r"(src|href)=[\"'](?!#)", page) and "@import" not in page
    outside = {url for url in re.findall(r"https?://[^\s\"'<>]+", page) if url not in names}
    assert all(
        url.startswith(("http://purl.org", "http://creativecommons.org", "https://matplotlib.org"))
        or url.startswith("http://www.w3.org/")
        for url in outside
    )


def test_the_command_works_from_any_folder(compared: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A run's own `output_dir` says which folder its relative paths start from, if nothing else does."""
    start, name = compared.parent, compared.name
    for method in WRITTEN:
        write_text(compared / method / "config.yaml", f"method: {method}\noutput_dir: {name}/{method}\n")
    monkeypatch.chdir("/")
    report(compared / "lora")
    made = f"cd {start} &amp;&amp; lora-hf train --config {name}/lora/config.yaml</code>"
    assert made in (compared / "lora/report.html").read_text()
    known = {"command": "lora-hf compare --config a.yaml"}
    for recorded, expected in (
        ({}, str(start)),
        ({"working_directory": "/my work"}, "&#39;/my work&#39;"),
    ):
        write_json(compared / "comparison.json", known | recorded)
        report(compared)
        page = (compared / "comparison.html").read_text()
        assert f"cd {expected} &amp;&amp; lora-hf compare --config a.yaml</code>" in page


def test_the_command_is_kept(compared: Path) -> None:
    write_json(compared / "comparison.json", {"command": "lora-hf compare --config 'my c.yaml'"})
    record = json.loads(report(compared)[0].read_text())
    assert record["command"] == "lora-hf compare --config 'my c.yaml'"
    assert "lora-hf compare --config &#39;my c.yaml&#39;" in (compared / "comparison.html").read_text()


def test_a_report_of_one_run(drawn: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run = drawn / "lora"
    assert cli.run(["report", str(run)], debug=False) == 0
    assert str(run / "report.html") in capsys.readouterr().out
    page = (run / "report.html").read_text()
    assert f"lora-hf train --config {run}/config.yaml" in page
    assert data_of(page)["labels"] == {"lora": "LoRA"} and page.count("<svg") == 4
    assert "against the weights trained" not in page  # it would have one point
    table = (run / "report.md").read_text()
    title = "LoRA: tiny, dialogue summarization (data: embedded)"  # two runs are told apart by their titles
    assert "| ROUGE-1 | 0.400 [" in table and table.startswith(f"# {title}\n")
    assert f"<title>{title}</title>" in page


def test_a_title_has_the_file_of_the_data_and_not_its_folders(compared: Path) -> None:
    run = compared / "lora"
    write_text(run / "config.yaml", "method: lora\ndata: {dataset_name: /home/me/a/long/way/talks.csv}\n")
    files = report(run)
    assert files[1].read_text().startswith("# LoRA: tiny, dialogue summarization (data: talks.csv)\n")
    assert "<dd>/home/me/a/long/way/talks.csv, " in files[2].read_text()


def test_changed_summaries_are_reported(compared: Path, caplog: pytest.LogCaptureFixture) -> None:
    run = compared / "lora"
    record = json.loads((run / "results.json").read_text())
    known = {"sha256": {"predictions.jsonl": file_sha256(run / "predictions.jsonl")}}
    write_json(run / "results.json", record | known)
    report(run)
    assert not caplog.records
    with (run / "predictions.jsonl").open("a") as file:
        file.write("\n")
    report(run)
    (record,) = caplog.records
    assert "was changed after the run; scoring it again. `lora-hf verify" in record.getMessage()


def keep_rouge(run: Path, value: float, version: int) -> None:
    """Put a ROUGE of our own into a run's predictions."""
    rows = read_predictions(run)
    for row in rows:
        row["rouge"] = {name: [value] * len(row["references"]) for name in ROUGE_NAMES}
        row["version"] = version
    write_predictions(run / "predictions.jsonl", rows)


@pytest.mark.parametrize(("version", "expected"), [(PREDICTIONS_VERSION, 0.25), (1, 1.0)])
def test_a_report_uses_the_rouge_that_predictions_keep(compared: Path, version: int, expected: float) -> None:
    keep_rouge(compared / "full", 0.25, version)
    data = data_of(report(compared)[2].read_text())
    assert data["examples"][0]["score"]["full"] == expected


def test_changed_predictions_are_scored_again(compared: Path, caplog: pytest.LogCaptureFixture) -> None:
    run = compared / "full"
    record = json.loads((run / "results.json").read_text())
    write_json(run / "results.json", record | {"sha256": {"predictions.jsonl": "0"}})
    keep_rouge(run, 0.25, PREDICTIONS_VERSION)
    assert data_of(report(run)[2].read_text())["examples"][0]["score"]["full"] == 1


def rewrite(run: Path, lines: list[str]) -> None:
    write_text(run / "predictions.jsonl", "".join(line + "\n" for line in lines))


def lines_of(run: Path) -> list[str]:
    return (run / "predictions.jsonl").read_text().splitlines()


def test_runs_are_joined_by_id_in_any_order_of_their_rows(compared: Path) -> None:
    expected = json.loads(report(compared)[0].read_text())
    rewrite(compared / "lora", lines_of(compared / "lora")[::-1])
    files = report(compared)
    assert json.loads(files[0].read_text()) | {"made_from": ""} == expected | {"made_from": ""}
    assert data_of(files[2].read_text())["examples"][0]["text"]["lora"] == WRITTEN["lora"][0]


def test_a_seed_with_reordered_rows_is_joined_by_id(compared: Path) -> None:
    write_run(compared, "lora", "lora-seed-7", seed=7)
    expected = json.loads(report(compared)[0].read_text())["paired_test"]
    rewrite(compared / "lora-seed-7", lines_of(compared / "lora-seed-7")[::-1])
    assert json.loads(report(compared)[0].read_text())["paired_test"] == expected


def test_runs_with_different_ids_are_refused(compared: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = compared / "lora/predictions.jsonl"
    write_text(file, file.read_text().replace('"t1"', '"other"'))
    assert cli.run(["report", str(compared)], debug=False) == 2
    said = capsys.readouterr().err
    assert f"error: {file} lacks id 't1', which the run compared with it has" in said
    assert not (compared / "comparison.json").exists()


def test_equal_ids_of_the_data_are_matched_in_turn(compared: Path) -> None:
    expected = json.loads(report(compared)[0].read_text())["paired_test"]
    for name in WRITTEN:
        run = compared / name
        write_text(run / "predictions.jsonl", "\n".join(lines_of(run)).replace('"t1"', '"t0"'))
        record = json.loads((run / "results.json").read_text())
        known = {"sha256": {"predictions.jsonl": file_sha256(run / "predictions.jsonl")}}
        write_json(run / "results.json", record | known)
    assert json.loads(report(compared)[0].read_text())["paired_test"] == expected


SCORED = {"version": 2, "rouge": {name: [0.5] for name in ROUGE_NAMES}}
DAMAGED_ROWS: dict[str, tuple[Any, str]] = {
    "number": (3, "int in place of a JSON object"),
    "no id": ({"id": None}, "id must be a string"),
    "number as id": ({"id": 7}, "id must be a string"),
    "no dialogue": ({"dialogue": None}, "dialogue must be a string"),
    "no prediction": ({"prediction": None}, "prediction must be a string"),
    "list as prediction": ({"prediction": ["x"]}, "prediction must be a string"),
    "no references": ({"references": None}, "references must be a list"),
    "empty references": ({"references": []}, "references must be a list"),
    "number as reference": ({"references": [3]}, "references must be a list"),
    "version 4": ({"version": 4}, "unknown version 4"),
    "version as a string": ({"version": "2"}, "unknown version '2'"),
    "version without rouge": ({"version": 2}, "rouge must be a JSON object"),
    "rouge as a string": (SCORED | {"rouge": "rouge1"}, "rouge must be a JSON object"),
    "strings as rouge": (SCORED | {"rouge": {n: ["a", "b"] for n in ROUGE_NAMES}}, "rouge.rouge1 must"),
    "too few values": (SCORED, "rouge.rouge1 must hold one number from 0 to 1 per reference (2)"),
    "not a number": (SCORED | {"rouge": {n: [0.5, float("nan")] for n in ROUGE_NAMES}}, "rouge.rouge1 must"),
    "same id": ({"id": "t0"}, "id 't0' is already on line 1"),
}


@pytest.mark.parametrize("place", ["lora", "."])
@pytest.mark.parametrize(("change", "expected"), DAMAGED_ROWS.values(), ids=DAMAGED_ROWS)
def test_a_damaged_row_is_one_error_with_its_line(
    compared: Path, place: str, change: Any, expected: str, capsys: pytest.CaptureFixture[str]
) -> None:
    first, second, third = lines_of(compared / "lora")
    row = json.loads(second) | change if isinstance(change, dict) else change
    rewrite(compared / "lora", [first, json.dumps(row), third])
    assert cli.run(["report", str(compared / place)], debug=False) == 2
    said = capsys.readouterr().err
    assert f"error: {compared}/lora/predictions.jsonl: line 2: {expected}" in said
    assert "restore the file, or delete" in said and "and run again" in said


@pytest.mark.parametrize("place", ["lora", "."])
@pytest.mark.parametrize(
    ("kept", "expected"),
    [
        ([], "line 1: the file holds no rows"),
        ([0, 1], "line 2: the file ends with 2 rows; results.json has 3"),
        ([0, 1, 2, 2], "line 4: id 't2' is already on line 3"),
        ([0, 0, 2], "line 2: id 't0' is already on line 1"),
        (None, "No such file or directory"),
    ],
)
def test_lost_and_repeated_rows_are_one_error(
    compared: Path, place: str, kept: list[int] | None, expected: str, capsys: pytest.CaptureFixture[str]
) -> None:
    lines = lines_of(compared / "lora")
    if kept is None:
        (compared / "lora/predictions.jsonl").unlink()
    else:
        rewrite(compared / "lora", [lines[i] for i in kept])
    assert cli.run(["report", str(compared / place)], debug=False) == 2
    assert (
        f"error: {compared}/lora/predictions.jsonl: {expected}; restore the file" in capsys.readouterr().err
    )


def test_a_comparison_run_again_reports_damage(compared: Path) -> None:
    """`compare` with finished runs goes through `write_report`."""
    folders = {name: [compared / name] for name in WRITTEN}
    write_report("comparison", compared, folders, {"command": "", "working_directory": "."})
    lines = lines_of(compared / "full")
    for damage in ([], lines[:2], ["3", *lines[1:]]):
        rewrite(compared / "full", damage)
        with pytest.raises(UserError, match=r"full/predictions.jsonl: line \d: "):
            write_report("comparison", compared, folders, {"command": "", "working_directory": "."})
    (compared / "full/predictions.jsonl").unlink()
    with pytest.raises(UserError, match=r"full/predictions.jsonl: No such file"):
        write_report("comparison", compared, folders, {"command": "", "working_directory": "."})


def test_many_groups_have_their_legend_below_and_one_step_gives_no_curve() -> None:
    names = [f"r-{i}" for i in range(8)]
    comparison: Any = {"order": names, "intervals": {}, "variants": {}}
    for i, name in enumerate(names):
        comparison["intervals"][name] = {"rouge1": [0.4, 0.6]}
        log = [{"step": 5, "loss": 1.0}, *([{"step": 9, "loss": 0.5}] if i else [])]
        comparison["variants"][name] = {"rouge1": 0.5, "trainable_parameters": 3000 * 2**i, "log": log}
    assert logged(comparison, "loss").keys() == set(names[1:])
    axes = Figure(layout="constrained").subplots()
    labels = dict(zip(names, names, strict=True))
    shown = Report("", [], {}, [], set(), [], {}, {}, comparison, labels, {}, {}, Scoring())
    _scores_by_weights(shown, axes)
    assert axes.get_legend() is None and len(axes.figure.legends) == 1
    axes.figure.canvas.draw()
    ticks = [t for t in axes.get_xticklabels(which="both") if t.get_text()]
    inside = [t.get_window_extent() for t in ticks]
    assert all(a.x1 <= b.x0 for a, b in zip(inside, inside[1:], strict=False))


def test_runs_that_differ_in_seed_are_one_group(compared: Path) -> None:
    write_run(compared, "lora", "lora-seed-7", seed=7)
    record = json.loads(report(compared)[0].read_text())
    assert record["arms"]["lora"]["seeds"] == [42, 7] and "seeds" not in record["arms"]["full"]


def test_a_study_keeps_its_order_and_its_kind(compared: Path) -> None:
    write_run(compared, "lora", "dora")
    write_json(compared / "methods.json", {"order": ["base", "lora", "full", "dora"]})
    files = report(compared)
    assert files[0].name == "methods.json"
    page = files[2].read_text()
    assert list(data_of(page)["labels"]) == ["base", "lora", "full", "dora"]
    verdict = "<p>No significant difference from lora: base, full, dora.</p>"  # of three dialogues
    assert page.index("</h1>") < page.index(verdict) < page.index("<dl") < page.index("<table")
    assert {order["label"] for order in data_of(page)["orders"]} >= {
        "largest gap: |dora − lora|",
        "largest gap: |full − lora|",
    }


@pytest.mark.parametrize("missing", ["base", "lora"])
def test_what_is_missing_is_named(compared: Path, missing: str, capsys: pytest.CaptureFixture[str]) -> None:
    (compared / missing / "results.json").unlink()
    assert cli.run(["report", str(compared)], debug=False) == 2
    assert f"none of ['{missing}']" in capsys.readouterr().err


def test_a_missing_loss_curve_is_stated_on_the_page(compared: Path) -> None:
    for name in ("base", "full", "lora"):
        file = compared / name / "results.json"
        record = json.loads(file.read_text())
        kept = [{key: value for key, value in entry.items() if key != "loss"} for entry in record["log"]]
        write_json(file, record | {"log": kept})
    page = report(compared)[2].read_text()
    remedy = "To draw it, set training.logging_steps to at most half of the number of steps.</p>"
    assert f"Not drawn: Training loss over steps. {remedy}" in page
    assert "<figcaption>ROUGE-1 on the validation split over steps<" in page
    assert ">Nothing was trained, so there are no curves over steps.</p>" in (
        report(compared / "base")[2].read_text()
    )


def test_few_dialogues_are_large_dots_and_many_are_small_ones() -> None:
    assert dots(20)[0] >= 0.8 and dots(20)[1] > 2 * dots(1500)[1]
    assert dots(1500)[0] < 0.3 <= dots(200)[0] < 0.5


def test_a_folder_without_runs_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for folder in (tmp_path, tmp_path / "nowhere"):
        assert cli.run(["report", str(folder)], debug=False) == 2
        said = capsys.readouterr().err
        assert "holds no finished run: give the output_dir of a train, compare, methods or sweep" in said
    run = tmp_path / "quickstart" / "base"
    run.mkdir(parents=True)
    (run / "results.json").write_text("{}")
    assert cli.run(["report", str(tmp_path)], debug=False) == 2
    assert f"or a run's folder in it, such as '{tmp_path / 'quickstart'}'" in capsys.readouterr().err


def test_shared_words_are_those_that_rouge_counts() -> None:
    assert marked("He meets <b> Anna's cats", ["anna met the cat"]) == (
        "He meets &lt;b&gt; <mark>Anna</mark>&#x27;s <mark>cats</mark>"
    )
    assert marked("the cat sat", ["The cat"]) == "<mark>the cat</mark> sat"
    assert marked("我去上海。", ["我去北京。"]) == "<mark>我去</mark>上海。"
    assert marked("", ["x"]) == ""
    other = marked("Anna, the dog!", ["Anna met the cat."], differences=True)
    assert other == "Anna, the <mark>dog</mark>!"


def test_runs_that_count_rows_without_ids_otherwise_are_matched_by_dialogue(tmp_path):
    def rows(*ids):
        return [{"id": name, "dialogue": f"A: {at}"} for name, at in zip(ids, "123"[: len(ids)], strict=True)]

    first, other = rows("0", "1", "2"), rows("4", "1", "9")
    assert same_order(tmp_path, other[::-1], first) == other
    with pytest.raises(UserError, match="lacks id '0'"):
        same_order(tmp_path, [*rows("4", "1"), {"id": "9", "dialogue": "B"}], first)
