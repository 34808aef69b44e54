"""Dialogues that are only summarized: files, plain text, lines and standard input."""

import io
import json
from pathlib import Path
from types import SimpleNamespace

import pytest
from support.shapes import COLUMN_SHAPES, FILES, FOLDERS

from lora_hf import cli
from lora_hf.config import DataConfig
from lora_hf.config.load import OF_THE_MODEL, READING, reading_fields
from lora_hf.data.input_file import STANDARD_INPUT, read_file
from lora_hf.data.splits import load_split
from lora_hf.errors import UserError
from lora_hf.saved.predict import format_of

COLUMN_SHAPES = [shape for shape in COLUMN_SHAPES if not shape.name.endswith("/")]
SAVED = [shape for shape in FOLDERS if shape.name == "saved_one/"]


@pytest.mark.parametrize(
    "shape",
    [shape for shape in FILES + COLUMN_SHAPES + SAVED if shape.outcome == "read"],
    ids=lambda shape: shape.name,
)
def test_every_file_that_trains_is_predicted_too_with_its_ids(shape, tmp_path):
    found = read_file(shape.write(tmp_path), DataConfig.model_validate(shape.fields))
    questions = 2 if "explode" in shape.fields else 1
    assert len(found) == 40 * questions and found[0].dialogue.startswith("Ann: ")
    assert {found[8].id} <= {"r8", "8"}


@pytest.mark.parametrize(
    ("content", "is_lines", "dialogues"),
    [
        (b"A: Hi\nB: Bye\n", False, ["A: Hi\nB: Bye"]),
        (b"A: Hi\r\nB: Bye", True, ["A: Hi", "B: Bye"]),
        (b"[Ann] Hi", False, ["[Ann] Hi"]),
        (b"{Ann}: Hi", False, ["{Ann}: Hi"]),
        (b'\xef\xbb\xbf{"dialogue": "A: Hi"}\n{"dialogue": "B"}\n', False, ["A: Hi", "B"]),
        (b'[{"article": "A: Hi"}]', False, ["A: Hi"]),
        (b'{\n "dialogue": "A: Hi"}', False, ["A: Hi"]),
    ],
)
def test_standard_input_is_json_or_lines_or_one_dialogue(content, is_lines, dialogues, monkeypatch):
    monkeypatch.setattr("sys.stdin", SimpleNamespace(buffer=io.BytesIO(content)))
    found = read_file(STANDARD_INPUT, DataConfig(), is_lines)
    assert [example.dialogue for example in found] == dialogues


@pytest.mark.parametrize(
    ("name", "content", "said"),
    [
        ("test.de", "Hallo\nTag\n", "cannot read files ending in '.de'; .*, one text per line, add --lines"),
        ("a.csv", 'dialogue,id\nhi, "b, c"\n', "line 2: more cells .* remove the space before the quote"),
        ("a.json", '{\n "dialogue": "a"\n}\n{\n "dialogue": "b"\n}\n',
         "line 4: not json: several objects, one after another; put them in one list, .* each on one line"),
    ],
)  # fmt: skip
def test_the_remedy_names_the_cause_in_a_file_that_is_nearly_readable(tmp_path, name, content, said):
    (tmp_path / name).write_text(content)
    with pytest.raises(UserError, match=said):
        read_file(tmp_path / name, DataConfig())


def test_a_row_of_several_texts_is_divided_as_in_training(tmp_path):
    trained = {"explode": "qas", "dialogue_column": "{qas.q} {doc}"}
    row = {"doc": "A: Hi", "qas": [{"q": "Who?"}, {"q": "When?"}]}
    (tmp_path / "a.jsonl").write_text(json.dumps(row))
    found = read_file(tmp_path / "a.jsonl", DataConfig(), trained_by=trained)
    assert [text.dialogue for text in found] == ["Who? A: Hi", "When? A: Hi"]
    (tmp_path / "b.jsonl").write_text(json.dumps({"dialogue": "A: Hi"}))  # another shape
    (text,) = read_file(tmp_path / "b.jsonl", DataConfig(), trained_by=trained)
    assert text.dialogue == "A: Hi"


def test_rows_on_standard_input_that_are_taken_as_one_text_are_said(monkeypatch, caplog):
    monkeypatch.setattr("sys.stdin", SimpleNamespace(buffer=io.BytesIO(b"id;dialogue\n1;A: Hi\n")))
    assert len(read_file(STANDARD_INPUT, DataConfig())) == 1
    (said,) = caplog.messages
    assert "looks like rows with the columns id, dialogue, and is taken as one text" in said


JSONL, CSV, TEXT = '{"id": 1, "dialogue": "A: Hi"}\n', "id,dialogue\n1,A: Hi\n", "A: Hi\n"
FORM = {
    "encoding": "cp1252",
    "delimiter": ";",
    "escapechar": "X",
    "column_names": ("a", "b"),
    "json_field": "a",
    "explode": "a",
}
COLUMNS = {"dialogue_column": "foo", "id_column": "foo", "explode": "a"}


@pytest.mark.parametrize(
    ("name", "content", "unread"),
    [
        ("a.jsonl", JSONL, {"delimiter", "escapechar", "column_names", "json_field"}),
        ("a.csv", CSV, {"json_field"}),
        ("a.json", f"[{JSONL}]", {"delimiter", "escapechar", "column_names"}),
        ("a.txt", TEXT, {"delimiter", "escapechar", "column_names", "json_field", *COLUMNS}),
        ("a.log", TEXT, {"delimiter", "escapechar", "column_names", "json_field", *COLUMNS}),
    ],
)
def test_a_field_that_nothing_in_the_file_is_read_by_is_refused(tmp_path, name, content, unread):
    """They were accepted, and did nothing, where `train` refuses them."""
    (tmp_path / name).write_text(content)
    for field, value in (FORM | COLUMNS).items():
        given, refused = DataConfig(**{field: value}), ""
        try:
            read_file(tmp_path / name, given, is_lines=name == "a.log")
        except UserError as error:
            refused = str(error)
        option = "--dialogue-column" if field == "dialogue_column" else f"data.{field}"
        assert (f"{option}={value!r} has no effect: " in refused) is (field in unread), (field, refused)
    if {*COLUMNS} <= unread:  # those of the training are not
        assert len(read_file(tmp_path / name, DataConfig(), name == "a.log", COLUMNS)) == 1


def test_standard_input_is_named_where_a_column_of_a_text_is_given(monkeypatch):
    monkeypatch.setattr("sys.stdin", SimpleNamespace(buffer=io.BytesIO(b"A: Hi")))
    says = "^--dialogue-column='a' has no effect: standard input is plain text, which has no columns; remove"
    with pytest.raises(UserError, match=says):
        read_file(STANDARD_INPUT, DataConfig(dialogue_column="a"))


@pytest.mark.parametrize(("name", "content"), [("a.csv", CSV), ("a.txt", TEXT)])
def test_a_template_of_turns_that_does_nothing_is_said(tmp_path, name, content, caplog):
    (tmp_path / name).write_text(content)
    recorded = {"turn_template": "{speaker} - {text}"}
    read_file(tmp_path / name, DataConfig(), trained_by=recorded)
    assert not caplog.messages
    read_file(tmp_path / name, DataConfig(**recorded))
    (said,) = caplog.messages
    assert "data.turn_template='{speaker} - {text}' has no effect on the first row" in said


@pytest.mark.parametrize("content", [b'["A: Hi", "B"]', b"[]", b'[{"dialogue": "A"}, 3]'])
def test_a_list_on_standard_input_holds_objects(monkeypatch, content):
    monkeypatch.setattr("sys.stdin", SimpleNamespace(buffer=io.BytesIO(content)))
    with pytest.raises(
        UserError, match='items are not objects: write each text as {"dialogue": ...}, or one'
    ):
        read_file(STANDARD_INPUT, DataConfig())


def test_an_error_of_standard_input_names_it(monkeypatch):
    monkeypatch.setattr("sys.stdin", SimpleNamespace(buffer=io.BytesIO(b'{"talk": "A"}')))
    says = "^standard input has no column 'dialogue' .columns: talk.; name yours: --dialogue-column talk$"
    with pytest.raises(UserError, match=says):
        read_file(STANDARD_INPUT, DataConfig())


def test_rows_that_are_left_out_do_not_move_the_ids_of_the_others(tmp_path):
    file = tmp_path / "rows.jsonl"
    file.write_text("".join(json.dumps({"dialogue": text}) + "\n" for text in ("A", "", "C")))
    found = read_file(file, DataConfig(on_bad_row="skip"))
    assert [(example.id, example.dialogue) for example in found] == [("0", "A"), ("2", "C")]


def test_only_fields_that_say_how_a_file_is_read_can_be_set():
    data, generation = reading_fields(["data.encoding=cp949", "generation.num_beams=2"])
    assert (data.encoding, generation) == ("cp949", {"num_beams": 2})
    assert reading_fields(["data.prompt=plain"], READING + OF_THE_MODEL)[0].prompt == "plain"
    for override, words in {
        "data.prompt=x": "only fields that say how a file is read can be set here",
        "data.encodin=x": "unknown key 'data.encodin' .*did you mean 'data.encoding'",
        "data.delimiter=ab": "is not one character",
        "lora.r=3": "only fields of data and generation",
    }.items():
        with pytest.raises(UserError, match=words):
            reading_fields([override])


@pytest.mark.parametrize(
    ("override", "words"),
    [
        ("data.id_column=foo", "{fields}; name its columns by --prediction, --reference and --group"),
        ("data.turn_template={text}", "{fields}"),
        ("data.on_bad_row=skip", "{fields}"),
        ("generation.num_beams=4", "only fields of data can be set here; such as data.encoding=cp1252"),
    ],
)
def test_fields_that_score_does_not_read_are_refused(override, words, tmp_path, capsys):
    (tmp_path / "p.jsonl").write_text('{"prediction": "a", "references": ["a"]}\n')
    assert cli.run(["score", str(tmp_path / "p.jsonl"), override], False) == 2
    fields = "can be set here: encoding, delimiter, escapechar, column_names, json_field, explode"
    assert words.replace("{fields}", fields) in capsys.readouterr().err


@pytest.mark.parametrize(
    ("messages", "dialogue"),
    [
        ([("user", "Hi")], "Hi"),
        ([("user", "Hi"), ("assistant", "Hello")], "Hi"),
        ([("system", "Be kind."), ("user", "Hi")], "system: Be kind.\nuser: Hi"),
    ],
)
def test_messages_without_an_answer_are_predicted_and_not_trained_on(tmp_path, messages, dialogue):
    file = tmp_path / "rows.jsonl"
    row = {"fname": "f", "messages": [{"role": role, "content": text} for role, text in messages]}
    file.write_text(json.dumps(row) + "\n")
    assert [(e.id, e.dialogue) for e in read_file(file, DataConfig())] == [("f", dialogue)]
    if messages[-1][0] != "assistant":
        with pytest.raises(UserError, match="does not end with a message whose role is assistant"):
            load_split(DataConfig(dataset_name=str(file)), "train")


def test_lines_are_for_plain_text(tmp_path):
    file = tmp_path / "rows.csv"
    file.write_text("dialogue\nA: Hi\n")
    with pytest.raises(UserError, match="--lines is for plain text, and .*rows.csv is a file of rows"):
        read_file(file, DataConfig(), is_lines=True)


def test_a_text_that_is_missing_is_named():
    with pytest.raises(UserError, match="none.txt: no such file"):
        read_file(Path("none.txt"), DataConfig(), is_lines=True)


QUESTION = {"question": "Who?", "passage": "Ann.", "nr": 7}


@pytest.mark.parametrize(
    ("row", "trained_by", "given", "found"),
    [
        (QUESTION, {"dialogue_column": "Q: {question} P: {passage}"}, {}, ("0", "Q: Who? P: Ann.")),
        (QUESTION, {"dialogue_column": "passage", "id_column": "nr"}, {}, ("7", "Ann.")),
        (QUESTION, {"dialogue_column": "passage"}, {"dialogue_column": "question"}, ("0", "Who?")),
        (
            {"translation": {"en": "Hi", "de": "Hallo"}},
            {"dialogue_column": "translation.de"},
            {},
            ("0", "Hallo"),
        ),
        ({"article": "A: Hi"}, {"dialogue_column": "passage", "id_column": "nr"}, {}, ("0", "A: Hi")),
        ({"t": [{"who": "A", "said": "Hi"}]}, {"dialogue_column": "t", "turn_template": "{who}> {said}"}, {},
         ("0", "A> Hi")),
    ],
)  # fmt: skip
def test_texts_are_read_by_the_columns_of_the_training(tmp_path, row, trained_by, given, found):
    file = tmp_path / "rows.jsonl"
    file.write_text(json.dumps(row))
    [example] = read_file(file, DataConfig(**given), trained_by=trained_by)
    assert (example.id, example.dialogue) == found


@pytest.mark.parametrize(
    ("row", "column", "remedy"),
    [
        ({"passage": "Ann."}, "{question}", "(columns: passage); name yours: --dialogue-column passage"),
        ({"nr": "7", "my talk": "A: Hi"}, "chat", "(columns: nr, 'my talk'); name yours, such as "
         "--dialogue-column 'my talk'"),
    ],
)  # fmt: skip
def test_a_file_without_the_columns_of_the_training_is_asked_for_them(tmp_path, row, column, remedy):
    file = tmp_path / "rows.jsonl"
    file.write_text(json.dumps(row))
    with pytest.raises(UserError) as error:
        read_file(file, DataConfig(), trained_by={"dialogue_column": column})
    does_not = f"the model was trained on the column {column!r}, which {file} does not have"
    assert str(error.value) == f"{does_not} {remedy}"


def test_a_text_inside_of_an_object_is_named_by_the_option(tmp_path):
    file = tmp_path / "rows.jsonl"
    file.write_text(json.dumps({"row": {"dialogue": "A: Hi", "summary": "Hi."}}))
    with pytest.raises(UserError, match="columns: row.; name yours: --dialogue-column row.dialogue$"):
        read_file(file, DataConfig())


def test_the_column_that_is_read_instead_of_the_one_of_the_training_is_named(tmp_path, caplog):
    file = tmp_path / "rows.jsonl"
    file.write_text(json.dumps({"dialogue": "A: Hi"}))
    with caplog.at_level("INFO", logger="lora_hf"):
        read_file(file, DataConfig(), trained_by={"dialogue_column": "chat"})
    assert (
        "no column 'chat', on which the model was trained; column 'dialogue' is read instead" in caplog.text
    )


def test_an_output_of_another_format_is_refused():
    assert format_of(Path("a.CSV"), None) == "csv" and format_of(None, None) == "jsonl"
    assert format_of(Path("a.xlsx"), "csv") == "csv" and format_of(Path("a.json"), None) == "jsonl"
    with pytest.raises(UserError, match="cannot write '.xlsx'; give a file with .csv, .txt, .jsonl"):
        format_of(Path("a.xlsx"), None)


def test_languages_of_which_neither_is_known_as_the_source_are_named_by_the_option_of_predict(tmp_path):
    """It said `set data.dialogue_column: ... and data.summary_column: ...`, fields of a config."""
    file = tmp_path / "pairs.jsonl"
    rows = [{"translation": {"de": "Hallo", "en": "Hello"}}, {"translation": {"en": "Bye", "de": "Tschau"}}]
    file.write_text("".join(f"{json.dumps(row)}\n" for row in rows))
    with pytest.raises(UserError) as refused:
        read_file(file, DataConfig())
    columns = "--dialogue-column translation.en or --dialogue-column translation.de"
    assert str(refused.value).endswith(f"nothing says which is the source; write {columns}")
