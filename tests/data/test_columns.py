"""Columns by the config, or found by their names; turns, several references, ids, and rows without text."""

import csv
import json
import logging
from datetime import date, datetime
from decimal import Decimal

import pytest

from lora_hf.config import DataConfig, ModelConfig, RunConfig
from lora_hf.config.load import load_config
from lora_hf.config.yaml_reader import read_value
from lora_hf.data.columns import PLAIN, cell, joined
from lora_hf.data.examples import fault_of
from lora_hf.data.explode import exploded
from lora_hf.data.hub_dataset import with_label_names
from lora_hf.data.input_file import read_file
from lora_hf.data.prepare import load_data
from lora_hf.data.readers import read_rows
from lora_hf.data.splits import iterate_split, load_split
from lora_hf.errors import UserError
from lora_hf.models.load import load_tokenizer

TALK, GIST = "A: Hi", "They greet."


def load(tmp_path, rows, split="train", **fields):
    for name in ("train", "validation", "test"):
        kept = rows if name != "test" or "test_rows" not in fields else fields["test_rows"]
        (tmp_path / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in kept))
    fields.pop("test_rows", None)
    config = DataConfig.model_validate({"dataset_name": str(tmp_path), **fields})
    return config, load_split(config, split)


@pytest.mark.parametrize("streaming", [False, True])
@pytest.mark.parametrize(
    ("row", "fields", "references"),
    [
        ({"talk": {"a": {"b": TALK}}, "s": GIST}, {"dialogue_column": "talk.a.b", "summary_column": "s"},
         [GIST]),
        ({"a.b": TALK, "summary": GIST}, {"dialogue_column": "a.b"}, [GIST]),
        ({"dialogue": TALK, "x": GIST, "y": "Two."}, {"summary_column": ["x", "y"]}, [GIST, "Two."]),
        ({"dialogue": TALK, "notes": [{"by": "x", "text": GIST}, {"by": "y", "text": "Two."}]},
         {"summary_column": "notes.text"}, [GIST, "Two."]),
        ({"dialogue": TALK, "x": GIST, "y": ""}, {"summary_column": ["x", "y"]}, [GIST]),
        ({"dialogue": TALK, "summary2": "2.", "summary10": "10.", "summary1": "1."}, {}, ["1.", "2.", "10."]),
        ({"article": TALK, "highlights": GIST, "other": 3}, {}, [GIST]),
        ({"input_text": TALK, "target_text": GIST, "id": 3}, {}, [GIST]),
        ({"prompt": TALK, "completion": GIST}, {}, [GIST]),
        ({"Dialogue": TALK, "SUMMARY": GIST, "Id": 3}, {}, [GIST]),
        ({"Article": TALK, "Highlights": GIST}, {}, [GIST]),
        ({"dialogue": TALK, "summary": GIST, "text": "no", "target": "no"}, {}, [GIST]),  # not guessed
        ({"dialogue": TALK, "summary": GIST, "text": "B: Bye", "target": "End."},
         {"dialogue_column": "dialogue", "summary_column": "target"}, ["End."]),
    ],
)  # fmt: skip
def test_columns_are_those_of_the_config_or_found_by_one_pair_of_names(
    tmp_path, row, fields, references, streaming
):
    config, [example] = load(tmp_path, [row], streaming=streaming, **fields)
    assert (example.dialogue, list(example.references)) == (TALK, references)
    rows = list(iterate_split(config, "train"))
    assert [(row["dialogue"], row["summary"]) for row in rows] == [(TALK, one) for one in references]


@pytest.mark.parametrize(
    ("row", "fields", "words"),
    [
        (
            {"text": TALK, "source": TALK, "target": GIST},
            {},
            "data.dialogue_column='dialogue': .* has the columns",
        ),
        (
            {"text": TALK, "target": GIST},
            {"dialogue_column": "talk"},
            "data.dialogue_column='talk': .* has the",
        ),
        (
            {"dialogue": TALK, "x": GIST},
            {"summary_column": ["x", "y"]},
            "data.summary_column='y': .* has the",
        ),
        ({"dialogue": [{"who": "A"}], "summary": GIST}, {}, "rows have an empty dialogue or summary"),
        ({"dialogue": TALK, "summary": []}, {}, "rows have an empty dialogue or summary"),
        ({"Instruction": TALK, "Input": TALK, "Output": GIST}, {}, "has the columns"),  # all three count
        ({"Dialogue": TALK, "dialogUE": TALK, "Summary": GIST}, {}, "has the columns"),
        (
            {"turns": TALK, "summary": GIST},
            {},
            "data.dialogue_column: turns and data.summary_column: summary$",
        ),
        (
            {"paragraphs": [{"context": TALK, "qas": [{"question": "Who?"}]}], "title": GIST},
            {},
            "way round. If each row holds several examples, set data.explode: paragraphs, or paragraphs.qas "
            "for the list inside it",
        ),
    ],
)
def test_nothing_is_guessed_between_two_or_against_the_config(tmp_path, row, fields, words):
    with pytest.raises(UserError, match=words):
        load(tmp_path, [row], **fields)


@pytest.mark.parametrize(
    ("override", "words"),
    [
        ("encoding=cp9999", "is not a text encoding that Python knows, such as utf-8"),
        ("encoding=base64", "is not a text encoding that Python knows"),
        ("delimiter=::", "is not one character, such as ';'"),
        ("validation_share=1.5", "must be below 1"),
        ("validation_share=0.95", "data.test_share=0.1 leave nothing for training"),
        ("test_share=0.95", "data.validation_share=0.1 and data.test_share=0.95 leave nothing for training"),
        (
            "dataset_name=$HOME/a.csv",
            "begins with a variable, which a config does not expand: write the path",
        ),
        ("turn_template=said", "names no key of a turn in braces"),
        ("data_files={training: a.csv, train: b.csv}", "names a split twice"),
        ("data_files={all: a.csv}", "names the split 'all'; known are train, "),
        ("data_files={train: [3]}", "must be a file, a list of files, or these by split"),
    ],
)
def test_a_wrong_value_of_a_field_on_files_is_one_error(override, words):
    with pytest.raises(UserError) as error:
        load_config("quickstart", [f"data.{override}"])
    assert words in str(error.value) and "\n" not in str(error.value)


@pytest.mark.parametrize("value", ["3", "[a, 3]", "[]", "''"])
def test_another_value_than_names_of_columns_is_one_error(value):
    with pytest.raises(UserError) as error:
        load_config("quickstart", [f"data.summary_column={value}"])
    assert str(error.value).endswith("is neither the name of a column nor a list of names")
    assert "\n" not in str(error.value)


def test_what_was_found_is_said_and_fname_is_the_id(tmp_path, caplog):
    with caplog.at_level(logging.DEBUG, "lora_hf"):
        _, [example] = load(tmp_path, [{"fname": "f1", "document": TALK, "summary": GIST}])
    assert example.id == "f1"
    assert (
        "[train]: columns 'document' -> 'summary' (data.dialogue_column, data.summary_column)" in caplog.text
    )


@pytest.mark.parametrize(
    ("turns", "text"),
    [
        ([{"speaker": "A", "text": "Hi"}, {"speaker": "B", "text": "Bye"}], "A: Hi\nB: Bye"),
        ([{"role": "user", "content": "Hi"}], "user: Hi"),
        ([{"text": "Hi"}, "B: Bye"], "Hi\nB: Bye"),
        ([{"speaker": "A"}], [{"speaker": "A"}]),  # refused as not text
        ({"speaker": ["A", "B"], "utterance": ["Hi", "Bye"]}, "A: Hi\nB: Bye"),
        ([{"speaker": 1, "text": "Hi"}, {"speaker": None, "text": 7}], "1: Hi\n7"),
        ([{"speaker": {"name": "A"}, "text": "Hi"}], [{"speaker": {"name": "A"}, "text": "Hi"}]),  # refused
        ([["Ann", "Hi"], ["Bo", "Bye"]], "Ann: Hi\nBo: Bye"),
        ([["Hi.", "Bye."]], [["Hi.", "Bye."]]),  # not a name and what was said
        ([{"Ann": "Hi"}, {"Bo": "Bye"}], "Ann: Hi\nBo: Bye"),
        ([{"Ann": "Hi", "Bo": None}, {"Ann": None, "Bo": "Bye"}], "Ann: Hi\nBo: Bye"),
        ([{"said": "Hi"}, {"said": "Bye"}], [{"said": "Hi"}, {"said": "Bye"}]),  # the key is no speaker
        ([{"role": "user", "content": [{"type": "text", "text": "Hi"}, {"text": "you"}]}], "user: Hi\nyou"),
        ({"speaker": ["A", "B"], "text": ["Hi"]}, {"speaker": ["A", "B"], "text": ["Hi"]}),
    ],
)
def test_turns_become_lines(turns, text):
    assert joined(turns) == text


def test_the_template_of_turns_names_their_keys():
    turns = [{"who": "A", "said": "{x}", "role": "user"}, "B: Bye"]
    assert joined(turns, "<{who}> {said}") == "<A> {x}\nB: Bye"
    assert joined(turns, "[{speaker}] {said}") == "[user] {x}\nB: Bye"
    assert joined(turns, "{who}: {text}") == turns  # refused: a turn has no text by any usual name


@pytest.mark.parametrize(
    ("labels", "texts"),
    [([1, 0], ["1", "0"]), ([True, "maybe"], ["true", "maybe"]), ([2.5, 3], ["2.5", "3"])],
)
def test_a_column_of_numbers_is_read_as_text(tmp_path, labels, texts, caplog):
    rows = [{"dialogue": f"A: {i}", "summary": label} for i, label in enumerate(labels)]
    with caplog.at_level(logging.INFO, "lora_hf"):
        _, examples = load(tmp_path, rows)
    assert [example.references[0] for example in examples] == texts
    assert "'summary' holds numbers or true/false, which are read as text" in caplog.text
    with pytest.raises(UserError, match="summary is 3, a number"):
        load(tmp_path, [{"dialogue": "A: 1", "summary": "One."}, {"dialogue": "A: 3", "summary": 3}])


@pytest.mark.parametrize("name", ["all", "all.parquet", "all.arrow"])
def test_labels_of_a_dataset_are_read_by_their_names(tmp_path, name):
    import datasets

    datasets.disable_progress_bars()
    features = {"text": datasets.Value("string"), "target": datasets.ClassLabel(names=["no", "yes"])}
    rows = {"text": [f"A: {i}" for i in range(40)], "target": [i % 2 for i in range(40)]}
    made = datasets.Dataset.from_dict(rows, datasets.Features(features))
    place = str(tmp_path / name)
    made.to_parquet(place) if name.endswith("parquet") else made.save_to_disk(tmp_path / "all")
    if name.endswith("arrow"):
        (file,) = (tmp_path / "all").glob("*.arrow")
        file.rename(place)
    found = load_split(DataConfig(dataset_name=place), "train")
    assert {(int(e.dialogue[3:]) % 2, e.references) for e in found} == {(0, ("no",)), (1, ("yes",))}
    hidden = made.map(lambda row: {"target": -1})  # as in test splits that are scored by a server
    assert list(with_label_names(hidden))[0] == {"text": "A: 0", "target": None}


@pytest.mark.parametrize("streaming", [False, True])
def test_rows_without_text_are_left_out_on_request_and_listed(tmp_path, streaming, caplog):
    rows = [{"dialogue": f"A: {i}", "summary": {3: "", 5: "\u200b\ufeff "}.get(i, GIST)} for i in range(8)]
    with pytest.raises(UserError, match="data.on_bad_row: skip"):
        load(tmp_path, rows, streaming=streaming)
    _, examples = load(tmp_path, rows, streaming=streaming, on_bad_row="skip")
    assert [example.dialogue[3:] for example in examples] == list("012467")
    assert "2 of 8 rows have an empty dialogue or summary" in caplog.text and "rows [4, 6]" in caplog.text


@pytest.mark.parametrize("more", [{}, {"summary": ""}, {"summary": None}, {"summary": []}])
def test_a_test_split_without_references_is_predicted_and_validation_is_scored(tmp_path, caplog, more):
    with caplog.at_level(logging.WARNING, "lora_hf"):  # also with -q
        config, [scored] = load(
            tmp_path,
            [{"dialogue": TALK, "summary": GIST}],
            "test",
            test_rows=[{"id": "t", "dialogue": "B: Bye"} | more],
        )
    said = "the test split has no references; scores are those of the validation split"
    assert scored.dialogue == TALK and said in caplog.text
    assert said in load_data(RunConfig(data=config), load_tokenizer(ModelConfig())).warnings
    [predicted] = read_file(tmp_path / "test.jsonl", DataConfig())
    assert (predicted.id, predicted.dialogue) == ("t", "B: Bye")
    (tmp_path / "talks.jsonl").write_text(
        json.dumps({"fname": "f", "article": [{"speaker": "A", "text": "Hi"}]})
    )
    assert [(e.id, e.dialogue) for e in read_file(tmp_path / "talks.jsonl", DataConfig())] == [("f", TALK)]


def german(i, languages="de en", **more):
    return {"translation": {language: f"{language} {i}" for language in languages.split()}} | more


@pytest.mark.parametrize("streaming", [False, True])
@pytest.mark.parametrize(
    ("languages", "codes", "pair"),
    [
        ("de en", {}, "de en"),
        ("en de", {}, "en de"),
        ("de en", {"source_language": "eng_Latn", "target_language": "deu_Latn"}, "en de"),
        ("de en", {"target_language": "de_DE"}, "en de"),
        ("deu eng", {"source_language": "en"}, "eng deu"),
        ("de en fr", {"source_language": "fr_XX", "target_language": "en_XX"}, "fr en"),
        ("zho_Hans zho_Hant", {"source_language": "zho_Hant"}, "zho_Hant zho_Hans"),
    ],
)
def test_a_translation_goes_by_the_codes_of_the_languages_or_by_the_order_in_train(
    tmp_path, languages, codes, pair, streaming
):
    first, second = pair.split()
    reverse = " ".join(reversed(languages.split()))
    for split in ("train", "test"):
        rows = [german(1, languages)]
        _, [found] = load(tmp_path, rows, split, test_rows=[german(1, reverse)], streaming=streaming, **codes)
        assert (found.dialogue, found.references) == (f"{first} 1", (f"{second} 1",))


@pytest.mark.parametrize(
    ("rows", "fields", "words"),
    [
        ([german(0), german(1, "en de")], {}, "nothing says which is the source"),
        ([german(0, "de en fr")], {}, "'de', 'en', 'fr'.* nothing says"),
        ([german(0)], {"source_language": "fra_Latn"}, "data.source_language='fra_Latn' does not say"),
        ([german(0)], {"source_language": "en", "target_language": "eng"}, "does not say"),
        ([german(0, "de_AT de_DE")], {"target_language": "deu_Latn"}, "does not say"),
    ],
)
def test_the_direction_of_a_translation_is_asked_for_where_nothing_says_it(tmp_path, rows, fields, words):
    with pytest.raises(UserError, match=words) as error:
        load(tmp_path, rows, **fields)
    assert "set data.dialogue_column: translation." in str(error.value) and "\n" not in str(error.value)


@pytest.mark.parametrize("is_saved", [False, True])
def test_formats_that_sort_the_languages_do_not_say_the_direction(tmp_path, is_saved):
    import datasets

    datasets.disable_progress_bars()
    features = datasets.Features({"translation": datasets.Translation(("en", "de"))})
    made = datasets.Dataset.from_list([german(i) for i in range(40)], features)
    place = tmp_path / ("saved" if is_saved else "rows.parquet")
    made.save_to_disk(str(place)) if is_saved else made.to_parquet(str(place))
    with pytest.raises(UserError) as error:
        load_split(DataConfig(dataset_name=str(place)), "test")
    assert "data.dialogue_column: translation.en and data.summary_column: translation.de" in str(error.value)
    config = DataConfig(dataset_name=str(place), target_language="deu_Latn")
    assert load_split(config, "test")[0].dialogue.startswith("en ")


TEMPLATE = {"dialogue_column": "{query}\n\n{turns}"}


@pytest.mark.parametrize("streaming", [False, True])
def test_turns_in_a_template_become_lines(tmp_path, streaming):
    turns = [{"who": "A", "text": "Hi"}, {"who": "B", "text": "Yo"}]
    row = {"query": 7, "turns": turns, "summary": GIST}
    _, [example] = load(tmp_path, [row], streaming=streaming, turn_template="{who}> {text}", **TEMPLATE)
    assert example.dialogue == "7\n\nA> Hi\nB> Yo"


@pytest.mark.parametrize("streaming", [False, True])
@pytest.mark.parametrize(
    ("query", "fault"),
    [
        ("", "query is empty"),
        (" \n", "query is empty"),
        (None, "query is missing"),
        ([1, 2], "query is .1, 2., a list"),
        ({"a": 1}, "query is {'a': 1}, an object"),
        ([], "query is an empty list"),
    ],
)
def test_an_empty_column_in_a_template_is_a_row_without_text(tmp_path, query, fault, streaming):
    rows = [{"query": one, "turns": TALK, "summary": GIST} for one in ("Who?", query)]
    with pytest.raises(UserError, match=fault):
        load(tmp_path, rows, streaming=streaming, **TEMPLATE)
    _, [kept] = load(tmp_path, rows, streaming=streaming, on_bad_row="skip", **TEMPLATE)
    assert kept.dialogue == f"Who?\n\n{TALK}"


def test_another_id_column_than_the_rows_have_is_an_error(tmp_path):
    rows = [{"dialogue": TALK, "summary": GIST, "meta": {"nr": 5}}]
    assert load(tmp_path, rows, id_column="meta.nr")[1][0].id == "5"
    assert load(tmp_path, [{"dialogue": "A", "summary": GIST}, *rows], id_column="meta.nr")[1][1].id == "5"
    with pytest.raises(UserError, match="data.id_column='mata': .* Did you mean 'meta'?"):
        load(tmp_path, rows, id_column="mata")


@pytest.mark.parametrize("streaming", [False, True])
def test_rows_without_an_id_have_their_number_as_one_and_no_two_rows_the_same(tmp_path, streaming):
    file = tmp_path / "all.jsonl"
    rows = [{"dialogue": f"A: {i}", "summary": "" if i == 2 else GIST} for i in range(60)]
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    one = DataConfig(dataset_name=str(file), on_bad_row="skip", streaming=streaming)
    found = load_split(one, "test")
    assert 2 < len(found) < 20 and all(f"A: {example.id}" == example.dialogue for example in found)
    some = [{"dialogue": f"A: {i}", "summary": GIST} | ({"id": i - 1} if i % 2 else {}) for i in range(6)]
    _, examples = load(tmp_path, some, "test", streaming=streaming)
    assert [example.id for example in examples] == ["row 0", "0", "row 2", "2", "row 4", "4"]


@pytest.mark.parametrize("streaming", [False, True])
@pytest.mark.parametrize(
    ("dialogue", "summary", "read"),
    [
        (TALK, '["a", "b"]', (TALK, ["a", "b"])),
        (TALK, ' ["a", null, ""]', (TALK, ["a"])),
        ('[{"speaker": "A", "text": "Hi"}, {"text": "Yo"}]', GIST, ("A: Hi\nYo", [GIST])),
        ('["A: Hi", "B: Yo"]', GIST, ("A: Hi\nB: Yo", [GIST])),
        ("[Ann] Hi", "[1, 2]", ("[Ann] Hi", ["[1, 2]"])),  # texts, as before
        ("[]", '["a"', ("[]", ['["a"'])),
        ('"A"', '["a", 1]', ('"A"', ['["a", 1]'])),
        ("['A: Hi', \"B: I'm\"]", str(["a", None, "it's"]), ("A: Hi\nB: I'm", ["a", "it's"])),  # `to_csv`
        ("[{'speaker': 'A', 'text': 'Hi'}]", "['a'] or b", ("A: Hi", ["['a'] or b"])),
    ],
)
def test_a_list_in_csv_is_one_if_json_or_python_writes_it_so(tmp_path, dialogue, summary, read, streaming):
    for split in ("train", "validation", "test"):
        with (tmp_path / f"{split}.csv").open("w", newline="") as file:
            csv.writer(file).writerows([("dialogue", "summary"), (dialogue, summary)])
    rows = list(iterate_split(DataConfig(dataset_name=str(tmp_path), streaming=streaming), "train"))
    assert [(row["dialogue"], row["summary"]) for row in rows] == [(read[0], one) for one in read[1]]


def test_an_array_in_a_cell_as_numpy_prints_it_is_refused_and_an_object_of_lists_is_read(tmp_path):
    file = tmp_path / "rows.csv"
    for answers, found in (
        ({"text": ["a", "b"], "answer_start": [1, 2]}, ["a", "b"]),
        ("{'text': array(['a'], dtype=object)}", "numpy"),
        ("['a' 'b']", "numpy"),
    ):
        with file.open("w", newline="") as stream:
            rows = [(f"Who {i}?", TALK, answers) for i in range(40)]
            csv.writer(stream).writerows([("question", "context", "answers"), *rows])
        column = "answers" if str(answers).startswith("[") else "answers.text"
        config = DataConfig(
            dataset_name=str(file), dialogue_column="{question} {context}", summary_column=column
        )
        if found == "numpy":
            with pytest.raises(UserError, match="as numpy prints it.*json.dumps"):
                load_split(config, "train")
        else:
            assert list(load_split(config, "train")[0].references) == found


def test_a_text_of_json_lines_that_looks_like_a_list_stays_a_text_and_empty_references_are_left_out(tmp_path):
    assert load(tmp_path, [{"dialogue": '["a"]', "summary": GIST}])[1][0].dialogue == '["a"]'
    rows = [{"dialogue": TALK, "summary": ["x", None, " ", "y"]}]
    assert load(tmp_path, rows)[1][0].references == ("x", "y")
    with pytest.raises(UserError, match="summary is an empty list"):
        load(tmp_path, [{"dialogue": TALK, "summary": [None, ""]}])


@pytest.mark.parametrize(
    ("rows", "column", "found"),
    [
        ([{"q": [{"a": 1}, {"a": 2}], "t": 3}, {"t": 4, "q": None}, {"t": 5}], "q", [1, 2]),
        ([{"q": {"a": [1, 2]}}], "q", [1, 2]),  # as `datasets` stores a list of objects
        ([{"q": '[{"a": 1}, {"a": 2}]'}], "q", [1, 2]),  # a cell of csv
        ([{"q": "[{'a': 1}, {'a': 2}]"}], "q", [1, 2]),
        ([{"p": [{"q": [{"a": 1}]}, {"q": [{"a": 2}]}]}], "p.q", [1, 2]),
        ([{"p": {"q": [{"a": 1}, {"a": 2}]}}], "p.q", [1, 2]),
        ([{"p": {"q": [[{"a": 1}], [{"a": 2}]]}}], "p.q", [1, 2]),
        ([{"queries": []}], "querys", "x, has the columns|'x.jsonl' has|Did you mean 'queries'"),
        ([{"q": "text"}], "q", "x.jsonl, line 7: 'q' is not a list of objects: 'text'"),
        ([{"p": [{"q": []}, {"r": []}]}], "p.q", "an item of 'p' has no 'q': keys .'r'."),
        ([{"q": {"a": [1], "b": [1, 2]}}], "q", "not a list of objects"),
    ],
)
def test_a_list_in_a_row_becomes_rows(rows, column, found):
    numbered = ((7, row) for row in rows)
    if isinstance(found, str):
        with pytest.raises(UserError, match=found):
            list(exploded(numbered, column, "x.jsonl"))
        return
    read = [row for _, row in exploded(numbered, column, "x.jsonl")]
    assert [cell(row, f"{column}.a") for row in read] == found
    assert all(row.get("t", 3) == 3 for row in read)


@pytest.mark.parametrize("streaming", [False, True])
def test_columns_and_files_that_were_found_are_logged_once_per_run(tmp_path, caplog, streaming):
    (tmp_path / "data").mkdir()
    for split in ("train", "validation", "test"):
        rows = [{"article": f"{split} A: {i}?", "highlights": i} for i in range(3)]
        text = "".join(json.dumps(row) + "\n" for row in rows)
        (tmp_path / f"data/{split}.jsonl").write_text(text)
    data = {"dataset_name": str(tmp_path), "streaming": streaming}
    with caplog.at_level(logging.INFO, logger="lora_hf"):
        run = load_data(RunConfig.model_validate({"data": data}), load_tokenizer(ModelConfig()))
        assert len(list(run.train)) == 3
    lines = [record.getMessage() for record in caplog.records]
    for part in ("columns 'article'", "'highlights' holds numbers", "[train]: data/train.jsonl"):
        assert sum(part in line for line in lines) == 1, lines


@pytest.mark.parametrize(("name", "at"), [("train.jsonl", ", line 2: "), ("train.json", ": ")])
def test_a_key_that_an_object_has_twice_is_refused_like_two_columns_of_one_name(tmp_path, name, at):
    rows = ['{"dialogue": "A: 1", "summary": "1."}', '{"dialogue": "A: 2", "dialogue": "A: 3"}']
    text = "\n".join(rows) if name.endswith("l") else f"[{', '.join(rows)}]"
    (tmp_path / name).write_text(text)
    with pytest.raises(UserError, match=f"{name}{at}not json: an object has the key 'dialogue' twice"):
        load_split(DataConfig(dataset_name=str(tmp_path / name)), "train")


@pytest.mark.parametrize("streaming", [False, True])
def test_turns_as_json_in_a_cell_of_csv_are_lines_inside_a_template_too(tmp_path, streaming):
    turns = json.dumps([{"speaker": "A", "text": "Hi"}, {"speaker": "B", "text": "Ho"}])
    for split in ("train", "validation", "test"):
        with (tmp_path / f"{split}.csv").open("w", newline="") as file:
            csv.writer(file).writerows([("topic", "talk", "gist"), ("greeting", turns, GIST)])
    columns = {"dialogue_column": "{topic}: {talk}", "summary_column": "gist"}
    config = DataConfig(dataset_name=str(tmp_path), streaming=streaming, **columns)
    assert load_split(config, "train")[0].dialogue == "greeting: A: Hi\nB: Ho"


@pytest.mark.parametrize("streaming", [False, True])
@pytest.mark.parametrize(
    ("talk", "is_unused"), [(TALK, True), ([{"speaker": "A", "text": "Hi"}], False), ([["A", "Hi"]], False)]
)
def test_a_template_for_turns_that_the_data_does_not_have_is_warned_of(
    talk, is_unused, streaming, tmp_path, caplog
):
    config, _ = load(tmp_path, [{"dialogue": talk, "summary": GIST}], turn_template="{speaker} - {text}")
    caplog.clear()
    load_split(config.model_copy(update={"streaming": streaming}), "train")
    words = "data.turn_template='{speaker} - {text}' has no effect on the first row"
    assert caplog.text.count(words) == is_unused


@pytest.mark.parametrize(
    ("value", "fault"),
    [
        (3, "dialogue is 3, a number"),
        (b"A: Hi", "dialogue is b'A: Hi', of type bytes; convert the column to text"),
        (date(2026, 1, 2), "dialogue is 2026-01-02, of type date; convert"),
        (datetime(2026, 1, 2), "of type datetime; convert"),
        (Decimal("1.50"), "dialogue is 1.50, of type Decimal; convert"),
        (True, "dialogue is True, true or false"),
    ],
)
def test_a_cell_that_is_no_text_is_called_what_it_is(value, fault):
    assert fault in fault_of({"dialogue": value, "summary": GIST}, PLAIN)


def test_a_column_is_found_in_either_form_of_its_letters(tmp_path):
    rows = [{"resume\u0301": GIST, "te\u0301xte": TALK}]
    _, [example] = load(tmp_path, rows, dialogue_column="t\u00e9xte", summary_column="resum\u00e9")
    assert (example.dialogue, example.references) == (TALK, (GIST,))


@pytest.mark.parametrize("streaming", [False, True])
@pytest.mark.parametrize(
    ("turns", "fault"),
    [
        ([{"speaker": "A", "text": None}], "dialogue has null under 'text' in turn 1: remove the turn"),
        ([{"speaker": "A", "text": "Hi"}, {"speaker": None, "text": None}], "null under 'text' in turn 2"),
        ([{"role": "user", "content": None}], "null under 'content' in turn 1"),
        ([{"Ann": "Hi"}, {"Ben": None}], "null under 'Ben' in turn 2"),
        (["A: Hi", None], "dialogue has null as turn 2"),
        ([{"who": "A", "said": "Hi", "mood": None}], "has turns with the keys who, said, mood: set"),
    ],
)
def test_a_null_in_the_turns_is_named_with_its_row(turns, fault, streaming, tmp_path):
    rows = [{"dialogue": TALK, "summary": GIST}, {"dialogue": turns, "summary": GIST}]
    with pytest.raises(UserError) as error:
        load(tmp_path, rows, streaming=streaming)
    assert fault in str(error.value) and ("row 2" in str(error.value) or "rows [2]" in str(error.value))


INNER = {"dialogue": TALK, "summary": GIST}


@pytest.mark.parametrize(
    ("content", "remedy", "fields"),
    [
        (
            {"rows": [{"row_idx": 0, "row": INNER}]},  # as the Hub's viewer gives rows
            "set data.dialogue_column: row.dialogue and data.summary_column: row.summary",
            {"dialogue_column": "row.dialogue", "summary_column": "row.summary"},
        ),
        (
            {"version": "1", "data": {"talks": [INNER]}},
            "set data.json_field: data.talks",
            {"json_field": "data.talks"},
        ),
    ],
)
def test_texts_inside_of_objects_are_found_by_the_remedy(content, remedy, fields, tmp_path):
    for split in ("train", "validation", "test"):
        (tmp_path / f"{split}.json").write_text(json.dumps(content))
    with pytest.raises(UserError, match=remedy):
        load_split(DataConfig(dataset_name=str(tmp_path)), "train")
    (example,) = load_split(DataConfig(dataset_name=str(tmp_path), **fields), "train")
    assert (example.dialogue, example.references) == (TALK, (GIST,))


def test_a_field_of_rows_that_are_lines_is_said_to_have_no_effect(tmp_path, caplog):
    """`datasets` reads json lines under the name .json too, and they have no field of which to take rows."""
    (tmp_path / "train.json").write_text(2 * f"{json.dumps(INNER)}\n")
    (tmp_path / "test.json").write_text(json.dumps({"data": [INNER]}))
    config = DataConfig(dataset_name=str(tmp_path), json_field="data")
    (row,) = load_split(config, "train")
    assert row.references == (GIST, GIST) and len(load_split(config, "test")) == 1
    assert caplog.text.count("data.json_field='data' has no effect on ") == 1


def test_rows_under_their_numbers_are_rows(tmp_path):
    """As pandas writes them with `orient="index"`."""
    for split in ("train", "validation", "test"):
        (tmp_path / f"{split}.json").write_text(json.dumps({"0": INNER, "1": INNER | {"dialogue": "B: Yo"}}))
    found = load_split(DataConfig(dataset_name=str(tmp_path)), "train")
    assert [one.dialogue for one in found] == [TALK, "B: Yo"]


ROW = {"dialogue": TALK, "summary": GIST}


@pytest.mark.parametrize(
    "content",
    [
        {name: ROW for name in "abc"},
        {"a": ROW, "b": ROW, "c": ROW, "d": ROW | {"topic": "greeting"}},
        {"columns": [*ROW], "index": [0, 1, 2], "data": [[*ROW.values()]] * 3},
    ],
    ids=["index", "a row with a field more", "split"],
)
def test_rows_of_json_under_their_names_or_beside_their_columns_are_rows(content, tmp_path):
    (tmp_path / "talks.json").write_text(json.dumps(content))
    rows = read_rows(tmp_path / "talks.json")
    assert len(rows) == len(content.get("index", content))
    assert all(row["dialogue"] == TALK and row["summary"] == GIST for row in rows)


def test_columns_of_json_with_named_rows_stay_columns(tmp_path):
    content = {name: {"first": text, "second": text} for name, text in {"topic": "greeting", **ROW}.items()}
    (tmp_path / "talks.json").write_text(json.dumps(content))
    rows = read_rows(tmp_path / "talks.json")
    assert rows == [{"topic": "greeting", **ROW}] * 2
    (tmp_path / "nested.json").write_text(json.dumps({"columns": [["a", "b"]], "data": [["x"]]}))
    with pytest.raises(UserError, match="must be an object such as .*, and is a list"):
        read_rows(tmp_path / "nested.json")


def test_columns_of_json_are_joined_by_their_keys(tmp_path):
    """Pandas may write the rows of two columns in another order."""
    columns = {"dialogue": {"1": "A: One", "0": "A: Zero"}, "summary": {"0": "zero", "1": "one"}}
    (tmp_path / "talks.json").write_text(json.dumps(columns))
    rows = read_rows(tmp_path / "talks.json")
    assert {(row["dialogue"], row["summary"]) for row in rows} == {("A: One", "one"), ("A: Zero", "zero")}


@pytest.mark.parametrize(
    ("prompt", "says"),
    [
        ("{topic}: {dialogue}", r"data.dialogue_column: '\{topic\} \{...\}'"),
        ("{source} {summary}", r"\{summary\} is a column"),
        ("Sum up {{dialogue}}", r"only single braces are filled: write \{dialogue\}"),
    ],
)
def test_a_prompt_with_a_place_that_is_not_filled_is_refused(prompt, says, tmp_path):
    with pytest.raises(UserError, match=says):
        load(tmp_path, [{"topic": "greeting", "dialogue": TALK, "summary": GIST}], prompt=prompt)


def test_a_backslash_and_an_n_in_a_prompt_are_said(tmp_path, caplog):
    rows = [{"dialogue": TALK, "summary": GIST}]
    load(tmp_path, rows, prompt=r"Sum up:\n{dialogue}")
    (says,) = caplog.messages
    assert says.endswith(r"""put the value into double quotes: 'data.prompt="Sum up:\n{dialogue}"'""")
    caplog.clear()
    load(tmp_path, rows, prompt=read_value(r'"Sum up:\n{dialogue}"'))
    assert caplog.messages == []


def test_other_braces_of_a_prompt_are_said_and_stay(tmp_path, caplog):
    load(tmp_path, [{"dialogue": TALK, "summary": GIST}], prompt='{"a": {}} {dialogue} {i}')
    assert caplog.messages == [
        """data.prompt='{"a": {}} {dialogue} {i}': {i} stays as it is; only {dialogue} is filled"""
    ]
