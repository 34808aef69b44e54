"""`score_file`: every format gives the same numbers, groups are dialogues, and each mistake is named."""

import csv
import json
from functools import cache

import pytest
from support.inputs import shared_data

from lora_hf.data.opened import Form
from lora_hf.errors import UserError
from lora_hf.evaluation import score_file as score
from lora_hf.evaluation.rouge import ROUGE_NAMES, rouge_per_pair
from lora_hf.evaluation.score_file import render_json, render_table, score_file

FILE = "dialogue-summary-training-results.csv"

ROWS = [
    {"id": "a", "made": "Tom asks Mr. Lee, \"Why?\"", "human": "Tom asks why."},
    {"id": "b", "made": "NA", "human": "None"},
    {"id": "a", "made": "Tom leaves.\nHe is late.", "human": "Tom goes, he's late"},
    {"id": "b", "made": "", "human": "Anna calls the bank."},
]  # fmt: skip


def write(folder, rows=ROWS, ending="csv", name="rows"):
    path = folder / f"{name}.{ending}"
    if ending == "csv":
        with path.open("w", encoding="utf-8", newline="") as file:
            writer = csv.DictWriter(file, list(rows[0]))
            writer.writeheader()
            writer.writerows(rows)
    elif ending == "parquet":
        import pyarrow
        from pyarrow import parquet

        parquet.write_table(pyarrow.Table.from_pylist(rows), path)
    elif ending == "json":
        path.write_text(json.dumps(rows), encoding="utf-8")
    else:
        path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


@pytest.mark.parametrize("ending", ["csv", "CSV", "jsonl", "json", "parquet"])
def test_every_format_gives_the_same_scores(tmp_path, ending):
    written = write(tmp_path, ending=ending.lower())
    path = written.rename(tmp_path / f"renamed.{ending}")
    scores = score_file(path, "made", "human")
    expected = rouge_per_pair([row["made"] for row in ROWS], [row["human"] for row in ROWS])
    for name in ROUGE_NAMES:
        assert scores[name] == pytest.approx(sum(expected[name]) / 4)
        low, high = scores[f"{name}_interval"]
        assert low <= scores[name] <= high
    assert (scores["n"], scores["n_rows"]) == (4, 4)
    assert "rouge1_best" not in scores


def test_texts_that_are_not_english_are_scored_by_their_own_words(tmp_path):
    rows = [
        {"made": "安娜明天来。", "human": "安娜明天来。"},
        {"made": "我不知道。", "human": "安娜明天来。"},
    ]
    scores = score_file(write(tmp_path, rows), "made", "human")
    assert scores["rouge1"] == scores["rougeLsum"] == 0.5
    assert render_table(scores).splitlines()[-1] == "tokenizer of ROUGE: unicode, no stems"
    english = score_file(write(tmp_path), "made", "human")
    assert english["rouge_tokenizer"] == "english, Porter stems"


def test_json_lines_under_the_name_of_json_and_a_byte_order_mark_are_read(tmp_path):
    expected = score_file(write(tmp_path), "made", "human")
    lines = write(tmp_path, ending="jsonl").rename(tmp_path / "lines.json")
    assert score_file(lines, "made", "human") == expected
    marked = tmp_path / "marked.csv"
    marked.write_bytes(b"\xef\xbb\xbf" + write(tmp_path).read_bytes())
    assert score_file(marked, "made", "human", group="id")["n"] == 2


def test_groups_by_column_by_size_and_by_list_are_one_thing(tmp_path):
    ordered = [ROWS[i] for i in (0, 2, 1, 3)]
    by_column = score_file(write(tmp_path), "made", "human", group="id")
    assert score_file(write(tmp_path, ordered), "made", "human", group_size=2) == by_column

    same = [{"id": row["id"], "made": f"Tom {row['id']}", "human": row["human"]} for row in ordered]
    lists = [{"made": f"Tom {k}", "human": [row["human"] for row in ROWS if row["id"] == k]} for k in "ab"]
    rows = score_file(write(tmp_path, same), "made", "human", group_size=2)
    for ending in ("jsonl", "parquet"):
        assert score_file(write(tmp_path, lists, ending), "made", "human") == rows | {"n_rows": 2}


def test_a_group_counts_once_and_has_its_best_reference(tmp_path):
    rows = [
        {"id": k, "made": "a b", "human": human}
        for k, human in (("x", "a b"), ("x", "c"), ("x", "c"), ("y", "c"))
    ]
    scores = score_file(write(tmp_path, rows), "made", "human", group="id")
    assert scores["rouge1"] == pytest.approx((1 / 3 + 0) / 2)
    assert scores["rouge1_best"] == pytest.approx((1 + 0) / 2)
    assert (scores["n"], scores["n_rows"]) == (2, 4)
    assert scores["rouge1_best_interval"] == [0.0, 1.0]


def test_the_order_of_dialogues_and_repeated_runs_do_not_change_the_scores(tmp_path):
    path = write(tmp_path)
    scores = score_file(path, "made", "human")
    assert score_file(path, "made", "human") == scores
    assert score_file(write(tmp_path, ROWS[::-1]), "made", "human")["rouge1"] == pytest.approx(
        scores["rouge1"]
    )


def test_lists_in_csv_are_said_to_be_references(tmp_path, caplog):
    caplog.set_level("INFO")
    rows = [{"made": "a", "human": '["a", "b"]'}, {"made": "a", "human": "a"}]
    score_file(file := write(tmp_path, rows), "made", "human")
    assert f"{file}: lists in human are read as several references of a row (1 of 2 rows)" in caplog.messages


def test_numbers_count_as_the_text_they_look_like(tmp_path):
    rows = [{"made": 42, "human": "42 is the answer"}, {"made": "007", "human": 7}]
    scores = {
        ending: score_file(write(tmp_path, rows, ending), "made", "human") for ending in ("csv", "jsonl")
    }
    assert scores["csv"] == scores["jsonl"]
    assert scores["csv"]["rouge1"] == pytest.approx((2 / 5 + 0) / 2)  # "007" is not 7


def test_a_cell_may_be_longer_than_the_csv_modules_default_limit(tmp_path):
    rows = [{"dialogue": "x" * 200_000, "made": "a", "human": "a"}]
    assert score_file(write(tmp_path, rows), "made", "human")["rouge1"] == 1.0


def test_other_metrics_take_the_rows_of_one_example_as_its_references(tmp_path):
    rows = [
        {"id": "a", "made": "Paris", "human": "in Paris"},
        {"id": "a", "made": "Paris", "human": "Paris"},
        {"id": "b", "made": "Rome", "human": "Oslo"},
    ]
    scores = score_file(write(tmp_path, rows), "made", "human", group="id", metrics=("squad", "accuracy"))
    assert (scores["exact_match"], scores["f1"], scores["accuracy"], scores["n"]) == (50, 50, 0.5, 2)
    table = render_table(scores, ("squad", "accuracy"))
    assert "exact match 50.00 [" in table and "accuracy    0.5000 [" in table
    assert "2 examples in 3 rows" in table and "dialogue" not in table
    assert score_file(write(tmp_path, rows), "made", "human", language="de")["rouge_tokenizer"].endswith(
        "german stems"
    )
    with pytest.raises(UserError, match="have several predictions, such as 'Lima' and 'Paris'"):
        score_file(
            write(tmp_path, [*rows, rows[0] | {"made": "Lima"}]), "made", "human", "id", metrics=("squad",)
        )


def test_json_is_flat_and_complete(tmp_path):
    scores = score_file(write(tmp_path), "made", "human", group="id")
    data = json.loads(render_json(scores))
    assert data == scores
    expected = [
        f"{name}{kind}{end}" for kind in ("", "_best") for name in ROUGE_NAMES for end in ("", "_interval")
    ]
    assert list(data) == [*expected, "n", "n_rows", "rouge_tokenizer"]


def test_the_table_shows_four_digits_and_says_what_was_counted(tmp_path):
    scores = score_file(write(tmp_path), "made", "human", group="id")
    table = render_table(scores)
    assert f"ROUGE-1    {scores['rouge1']:.4f} [" in table and f"{scores['rougeLsum_best']:.4f} [" in table
    assert "2 dialogues in 4 rows" in table
    by_row = render_table(score_file(write(tmp_path), "made", "human"))
    assert "best" not in by_row and "4 rows, each counted as one dialogue" in by_row
    assert max(map(len, (table + "\n" + by_row).split("\n"))) <= 100


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (
            {"prediction": "mades"},
            r"--prediction mades: .*rows.csv has no .*id, made, human\..*mean 'made'",
        ),
        ({"reference": "x"}, "--reference x: "),
        ({"group": "ids"}, "--group ids: .*Did you mean 'id'"),
        ({"group_size": 3}, "--group-size 3 does not divide the 4 rows"),
        ({"group_size": 0}, "--group-size 0 must be at least 1"),
        ({"group": "id", "group_size": 2}, "--group id and --group-size 2 exclude each other"),
    ],
)
def test_wrong_arguments_are_named(tmp_path, arguments, words):
    with pytest.raises(UserError, match=words):
        score_file(write(tmp_path), **({"prediction": "made", "reference": "human"} | arguments))


@pytest.mark.parametrize(
    ("name", "content", "words"),
    [
        ("x.csv", b"", "x.csv has no rows; give a file with one row for each text"),
        ("x.csv", b"made,human\n", "x.csv has no rows"),
        ("x.csv", b"made,human\na,b\na\n", "line 3: fewer cells than the 2 columns"),
        ("x.csv", b"made,human\na,b,c\n", "line 2: more cells than the 2 columns"),
        ("x.csv", b'made,human\n"a,b\n', "line 2: not csv"),
        ("x.csv", b"made,made,human\na,b,c\n", "more than one column is named 'made'"),
        ("x.csv", b"made,human\na,\n", "row 1, column 'human' is empty"),
        ("x.csv", "made,human\ncaf\xe9,b\n".encode("latin-1"), "not UTF-8"),
        ("x.jsonl", b"\n\n", "x.jsonl has no rows"),
        ("x.jsonl", b'{"made": "a", "human": "b"}\n\n{"made": "a",\n', "line 3: not json"),
        ("x.jsonl", b'["a", "b"]\n', "line 1: must be an object .* is a list"),
        ("x.jsonl", b'{"made": null, "human": "b"}\n', "row 1, column 'made' must be text, but is missing"),
        ("x.jsonl", b'{"made": NaN, "human": "b"}\n', "'made' must be text, but is missing"),
        ("x.jsonl", b'{"made": "a", "human": "b"}\n{"made": "a"}\n', "row 2, column 'human' .* missing"),
        ("x.jsonl", b'{"made": true, "human": "b"}\n', "'made' must be text, but is True"),
        ("x.jsonl", b'{"made": ["a"], "human": "b"}\n', r"'made' must be text, but is \['a'\]"),
        ("x.jsonl", b'{"made": "a", "human": []}\n', "'human' is empty"),
        ("x.jsonl", b'{"made": "a", "human": ["b", null]}\n', "'human' must be text, but is missing"),
        ("x.json", b'[{"made": "a", "human": "b"}, 3]', "item 2: must be an object .* is a number"),
        ("x.json", b"{", "line 1: not json"),
        ("x.json", b"[]", "x.json has no rows"),
        ("x.parquet", b"made,human\n", "not a parquet file"),
        (
            "x.txt",
            b"one\ntwo\n",
            "--prediction made: .*x.txt is plain text, one prediction per line: leave out",
        ),
    ],
)
def test_a_file_that_cannot_be_scored_is_refused_and_the_place_named(tmp_path, name, content, words):
    (tmp_path / name).write_bytes(content)
    with pytest.raises(UserError, match=words):
        score_file(tmp_path / name, "made", "human")


def test_texts_are_scored_line_by_line_against_texts_or_columns(tmp_path):
    made, human = tmp_path / "made.txt", tmp_path / "human.txt"
    made.write_text("Tom asks.\r\n\nHe \u2028leaves.\n", newline="")
    human.write_text("Tom asks why.\nAnn calls.\nHe goes.")
    rows = [{"made": "Tom asks.", "human": "Tom asks why."}, {"made": "", "human": "Ann calls."},
            {"made": "He \u2028leaves.", "human": "He goes."}]  # fmt: skip
    expected = score_file(write(tmp_path, rows), "made", "human")
    assert score_file(made, None, str(human)) == expected
    assert score_file(write(tmp_path, rows), "made", [str(human)]) == expected
    human.write_text("Tom asks why.\nAnn calls.\n")
    with pytest.raises(UserError, match="--reference .*human.txt has 2 lines, and .*made.txt 3 rows"):
        score_file(made, None, str(human))
    with pytest.raises(UserError, match="give --reference, .* or a text file with one reference per line"):
        score_file(made)


def test_a_file_of_columns_as_references_is_called_a_file(tmp_path):
    made, gold = tmp_path / "made.txt", tmp_path / "gold.csv"
    made.write_text("a\nb\n"), gold.write_text("reference\na\nb\n")
    says = r"gold.csv is a file of columns: --reference takes a column of .*made.txt .*or a .txt"
    with pytest.raises(UserError, match=says):
        score_file(made, reference=str(gold))


def test_several_columns_of_references_are_those_of_a_list(tmp_path):
    columns = [{"made": "Tom asks.", "x": "Tom asks why.", "y": "Why?", "z": ""}]
    listed = [{"prediction": "Tom asks.", "references": ["Tom asks why.", "Why?"]}]
    expected = score_file(write(tmp_path, listed, "jsonl"))  # as predictions.jsonl of a run
    assert score_file(write(tmp_path, columns), "made", ["x", "y", "z"]) == expected
    with pytest.raises(UserError, match="row 1, column 'z' is empty"):
        score_file(write(tmp_path, columns), "made", ["z"])
    with pytest.raises(UserError, match="--prediction: .* name the column: made, x, y, z"):
        score_file(write(tmp_path, columns), reference="x")


def test_references_in_fields_of_objects_and_as_text_in_csv_are_those_of_a_list(tmp_path):
    texts = ["Tom asks why.", "Why?"]
    expected = score_file(
        write(tmp_path, [{"prediction": "Tom asks.", "references": texts}], "jsonl"), metrics=["squad"]
    )
    nested = [{"made": {"text": "Tom asks."}, "gold": {"answers": [{"text": text} for text in texts]}}]
    found = score_file(write(tmp_path, nested, "jsonl"), "made.text", "gold.answers.text", metrics=["squad"])
    assert found == expected and expected["n"] == 1
    for gold in (json.dumps(texts), str(texts)):
        cells = write(tmp_path, [{"made": "Tom asks.", "gold": gold}])
        assert score_file(cells, "made", "gold", metrics=["squad"]) == expected
    cells = write(tmp_path, [{"made": "Tom asks.", "gold": str({"text": texts, "start": [0, 1]})}])
    assert score_file(cells, "made", "gold.text", metrics=["squad"]) == expected
    with pytest.raises(UserError, match="--reference gold.answer: .* has no such column; .*'gold'"):
        score_file(write(tmp_path, nested, "jsonl"), "made.text", "gold.answer")


def test_the_form_of_a_file_is_given_as_in_a_config(tmp_path):
    file = tmp_path / "rows.csv"
    file.write_bytes("made^human\ncafé^café\n".encode("cp1252"))
    assert score_file(file, "made", "human", form=Form("cp1252", "^"))["rouge1"] == 1.0


@pytest.mark.parametrize(
    ("name", "reference", "form", "unread"),
    [
        (
            "a.jsonl",
            None,
            {"delimiter": ";"},
            "data.delimiter=';' has no effect: none of the files ends in .csv",
        ),
        ("a.jsonl", None, {"column_names": ("a", "b")}, "data.column_names=('a', 'b') has no effect"),
        ("a.jsonl", None, {"json_field": "a"}, "data.json_field='a' has no effect"),
        ("a.jsonl", None, {"encoding": "cp1252"}, ""),
        ("a.parquet", None, {"encoding": "cp1252"}, "data.encoding='cp1252' has no effect"),
        ("a.parquet", "b.txt", {"encoding": "cp1252"}, ""),
        ("b.txt", "b.txt", {"encoding": "cp1252"}, ""),
        ("b.txt", "b.txt", {"escapechar": "X"}, "data.escapechar='X' has no effect"),
        ("b.txt", "b.txt", {"explode": "a"}, "data.explode='a' has no effect: {} is plain text"),
    ],
)
def test_a_field_that_nothing_in_the_files_is_read_by_is_refused(tmp_path, name, reference, form, unread):
    """They were accepted, and did nothing, where `train` refuses them."""
    row = {"prediction": "a", "references": ["a"]}
    for ending in ("jsonl", "parquet"):
        write(tmp_path, [row], ending, "a")
    (tmp_path / "b.txt").write_text("a\n")
    names = [str(tmp_path / reference)] if reference else None
    refused = ""
    try:
        score_file(tmp_path / name, None, names, form=Form(**form))
    except UserError as error:
        refused = str(error)
    assert unread.format(tmp_path / name) in refused and bool(refused) is bool(unread)


def test_a_missing_file_and_a_folder_are_named(tmp_path):
    write(tmp_path)
    with pytest.raises(UserError, match=r"row.csv: no such file. Did you mean '.*rows.csv'"):
        score_file(tmp_path / "row.csv", "made", "human")
    with pytest.raises(UserError, match="nowhere.csv: no such file"):
        score_file(tmp_path / "no" / "nowhere.csv", "made", "human")
    with pytest.raises(UserError, match="is a folder"):
        score_file(tmp_path, "made", "human")


def test_a_row_without_a_group_is_refused(tmp_path):
    rows = [{"id": "a", "made": "a", "human": "b"}, {"id": "", "made": "a", "human": "b"}]
    with pytest.raises(UserError, match="row 2, column 'id' is empty"):
        score_file(write(tmp_path, rows), "made", "human", group="id")


@pytest.fixture(scope="module")
def published():
    """Scores of the published file, by model and size of group; each pair is scored once."""
    path = shared_data("flan_t5_predictions") / FILE
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(score, "rouge_per_pair", cache(rouge_per_pair))
        yield lambda model, size: score_file(
            path, f"{model}_model_summaries", "human_baseline_summaries", group_size=size
        )


@pytest.mark.parametrize(
    ("model", "rouge1", "rouge2", "rouge_l", "rouge_lsum", "best"),
    [
        pytest.param("original", 0.233278, 0.076052, 0.201543, 0.2110, 0.293, marks=pytest.mark.slow),
        pytest.param("instruct", 0.421427, 0.180340, 0.338374, 0.3739, 0.494, marks=pytest.mark.slow),
        pytest.param("peft", 0.408132, 0.163454, 0.325120, 0.3607, 0.479, marks=pytest.mark.slow),
    ],
)
def test_the_published_predictions_score_what_was_published(
    published, model, rouge1, rouge2, rouge_l, rouge_lsum, best
):
    scores = published(model, 3)
    # The published table did not split sentences, so its rougeLsum is its rougeL; ours is higher.
    assert [scores[name] for name in ROUGE_NAMES[:3]] == pytest.approx([rouge1, rouge2, rouge_l], abs=1e-6)
    assert scores["rougeLsum"] == pytest.approx(rouge_lsum, abs=5e-5)
    assert scores["rouge1_best"] == pytest.approx(best, abs=5e-4)
    assert (scores["n"], scores["n_rows"]) == (500, 1500)


def test_rows_of_a_dialogue_are_not_independent(published):
    rows, dialogues = (published("instruct", size) for size in (None, 3))
    assert rows["rouge1"] == pytest.approx(dialogues["rouge1"], abs=1e-12)
    low, high = rows["rouge1_interval"]
    wide_low, wide_high = dialogues["rouge1_interval"]
    assert wide_high - wide_low > 1.3 * (high - low)
