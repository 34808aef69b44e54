"""`init`, `train MODEL DATA`, and the commands that a command names at its end."""

import json
import re
import shlex
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from support.records import make_comparison

from lora_hf import cli, terminal
from lora_hf.cli import next_steps
from lora_hf.cli.starting import source_of
from lora_hf.config import RunConfig
from lora_hf.config.load import load_config, resolved_yaml
from lora_hf.config.starter import starter_config
from lora_hf.config.task import TASKS
from lora_hf.errors import RunFailed, UserError
from lora_hf.evaluation.rouge import ROUGE_NAMES
from lora_hf.experiments.compare import plan_comparison
from lora_hf.experiments.runner import check_root
from lora_hf.hub.upload import CARD

PEFT = {"peft_type": "LORA", "r": 4, "target_modules": ["q"], "base_model_name_or_path": "gone/base"}


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with a csv of 40 rows."""
    monkeypatch.chdir(tmp_path)
    rows = [f"{n},Ann: Is it {n}? Bob: Yes.,It is {n}." for n in range(40)]
    (tmp_path / "talks.csv").write_text("\n".join(["id,text,gist", *rows]))
    (tmp_path / "pairs.csv").write_text("\n".join(["id,source,target", *rows]))
    return tmp_path


def ran(capsys: pytest.CaptureFixture[str], *words: str) -> tuple[str, str]:
    assert cli.run(list(words), debug=False) == 0
    out, err = capsys.readouterr()
    return out, err


@pytest.mark.parametrize("task", TASKS)
@pytest.mark.parametrize("method", ["lora", "full", "bottleneck", "prompt_tuning"])
def test_a_starter_config_is_valid_and_short_and_each_section_has_a_comment(task: str, method) -> None:
    text = starter_config("my data.csv", task=task, method=method, columns=("a: b", "c", "d"))
    Path("x.yaml").write_text(text)
    run = load_config("x.yaml")
    assert (run.method, run.task.name, run.data.summary_column) == (method, task, ("c", "d"))
    assert len(text.splitlines()) <= 45 and max(map(len, text.splitlines())) <= 90
    assert "max_steps" not in run.training and run.output_dir == "runs/my data"


def test_init_writes_a_config_and_says_how_the_data_is_split(capsys: pytest.CaptureFixture[str]) -> None:
    out, err = ran(capsys, "init", "--data", "talks.csv", "--columns", "text,gist", "--yes")
    assert out == "talks.yaml\n"
    run = load_config("talks.yaml")
    assert (run.data.dialogue_column, run.data.summary_column) == ("text", "gist")
    assert run.training["num_train_epochs"] == 10  # 40 rows are few
    text = Path("talks.yaml").read_text()
    splits = [line for line in err.splitlines() if line.startswith(("train: ", "validation: ", "test: "))]
    assert len(splits) == 3 and all(f"# {line}" in text for line in splits)
    assert "lora-hf doctor --config talks.yaml" in err and "lora-hf train --config talks.yaml" in err
    assert cli.run(["init", "--data", "talks.csv", "--columns", "text,gist"], debug=False) == 2
    error = capsys.readouterr().err
    assert "'talks.yaml' exists, and nothing is overwritten: name another file by --output" in error


def test_long_names_in_a_starter_config_are_on_lines_of_their_own() -> None:
    folder, file = f"runs/{'a-long-name/' * 5}x", f"my talks {'and more ' * 8}.yaml"
    notes = [f"train: 36 dialogues, about 80 % of {folder}, by a hash of the text (data.split_seed=0)"]
    text = starter_config("talks.csv", output_dir=folder, file=file, notes=notes)
    *lines, tail = text.splitlines()
    comments = [line for line in lines if line.lstrip().startswith("#")]
    assert max(map(len, [*comments, tail])) <= 100
    assert f"\n# adapter, scores and predictions\noutput_dir: {folder}\n" in text
    assert any("(data.split_seed=0)" in line for line in comments)
    command = text.partition("fine-tuning too:\n")[2].partition("\nmethod:")[0]
    command = command.replace("#", "").replace("\\\n", "")
    assert shlex.split(command)[2:] == ["--config", file, f"output_dir={folder}-compared"]


def test_two_configs_of_the_same_data_have_folders_of_their_own(capsys: pytest.CaptureFixture[str]) -> None:
    for words in ([], ["-o", "q 2.yaml"]):
        ran(capsys, "init", "--data", "talks.csv", "--columns", "text,gist", "--yes", *words)
    assert [load_config(f"{name}.yaml").output_dir for name in ("talks", "q 2")] == ["runs/talks", "runs/q 2"]


def test_the_commands_in_a_starter_config_work_one_after_the_other(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """`compare` used to find the run of `train` in its folder."""
    ran(capsys, "init", "--data", "talks.csv", "--columns", "text,gist", "--yes", "-o", "q 2.yaml")
    lines = Path("q 2.yaml").read_text().splitlines()
    commands = [shlex.split(line[1:]) for line in lines if line.startswith("#   lora-hf ")]
    assert [command[:4] for command in commands] == [
        ["lora-hf", verb, "--config", "q 2.yaml"] for verb in ("train", "compare")
    ]
    (folder / load_config("q 2.yaml", commands[0][4:]).output_dir / "adapter").mkdir(parents=True)
    planned = plan_comparison(load_config("q 2.yaml", commands[1][4:]))
    check_root(planned[0].config, ("base", "lora", "full"), "comparison")
    with pytest.raises(UserError, match="no comparison") as refused:
        check_root(plan_comparison(load_config("q 2.yaml"))[0].config, (), "comparison")
    assert f"such as '{commands[1][4]}', or" in str(refused.value)


@pytest.fixture
def trains_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    def run_config(source: Any, overrides: list[str]) -> tuple[RunConfig, dict[str, Any]]:
        run = load_config(source, overrides)
        (Path(run.output_dir) / "adapter").mkdir(parents=True)
        return run, {}

    monkeypatch.setattr("lora_hf.runs.start.run_config", run_config)
    for name in ("print_scores", "_print_trivial"):
        monkeypatch.setattr(f"lora_hf.cli.running.{name}", lambda *given: None)


@pytest.mark.parametrize(
    ("typed", "proposed"),
    [
        ("--config talks.yaml", "--config talks.yaml output_dir=runs/talks-compared"),
        ("--config quickstart seed=3 -o runs/y", "--config quickstart seed=3 output_dir=runs/y-compared"),
        ("--config talks.yaml overwrite=true", "--config talks.yaml output_dir=runs/talks-compared"),
        ("embedded talks.csv -o 'runs/a b'", "embedded talks.csv -o 'runs/a b-compared'"),
        ("embedded talks.csv output_dir=x lora.r=4", "embedded talks.csv lora.r=4 -o x-compared"),
        ("--config methods", None),  # `compare` does not take variants
        ("--config runs/earlier/config.yaml -o runs/z", None),  # a run's own: it has no `arms`
        ("--config full.yaml", None),
    ],
)
def test_the_proposed_comparison_gives_full_fine_tuning_its_own_rate(
    typed: str,
    proposed: str | None,
    folder: Path,
    trains_nothing: None,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The run's own config.yaml has no `arms`: with it, the rate was LoRA's."""
    monkeypatch.setattr(next_steps, "program_name", lambda: "lora-hf")
    (folder / "talks.csv").write_text(
        (folder / "talks.csv").read_text().replace("text,gist", "dialogue,summary")
    )
    ran(capsys, "init", "--data", "talks.csv", "--model", "embedded", "--yes")
    ran(
        capsys,
        "init",
        "--data",
        "talks.csv",
        "--model",
        "embedded",
        "--yes",
        "--method",
        "full",
        "-o",
        "full.yaml",
    )
    assert "lora-hf compare" not in Path("full.yaml").read_text()
    earlier = load_config("talks.yaml").for_run("lora", 42, "runs/earlier")
    (folder / "runs/earlier").mkdir(parents=True)
    (folder / "runs/earlier/config.yaml").write_text(resolved_yaml(earlier))
    _, err = ran(capsys, "train", *shlex.split(typed))
    found = [line.strip() for line in err.splitlines() if line.startswith("    lora-hf compare ")]
    assert found == ([f"lora-hf compare {proposed}"] if proposed else [])
    if proposed is None:
        return
    words = shlex.split(proposed)
    at = {word: words[words.index(word) + 1] for word in ("--config", "-o") if word in words}
    rest = [word for word in words if word not in (*at, *at.values())]
    config = Path(at["--config"]) if "--config" in at else None
    source = source_of("compare", config, rest, at.get("-o"))
    runs = plan_comparison(load_config(source.config, source.overrides))
    rates = {run.name: run.config.training["learning_rate"] for run in runs}
    assert rates["full"] < rates["lora"]
    check_root(runs[0].config, ("base", "lora", "full"), "comparison")


@pytest.mark.parametrize(
    ("header", "options", "error"),
    [
        ("id,text,gist", (), "has the columns id, text, gist. Name the input's and the target's, such as "
         "--columns text,gist"),
        ("text,gist", (), "columns text, gist. Name the input's and the target's: --columns text,gist"),
        ("my text,gist", (), "the columns 'my text', gist. Name the input's and the target's: "
         "--columns 'my text,gist'"),
        ("id,text,gist", ("--columns", "txt,gist"), "--columns txt,gist: mine.csv has the columns id, text, "
         "gist. Did you mean 'text'?"),
        ("id,text,gist", ("--columns", "text,text"), "--columns 'text,text' does not name two columns"),
        ("gist", (), "has the columns gist. Two are needed, the input's and the target's"),
        ("en^de", (), "error: mine.csv has the columns 'en^de'. Set 'data.delimiter=^'\n"),
    ],
)  # fmt: skip
def test_init_names_only_its_own_option_for_columns(
    header: str, options: tuple[str, ...], error: str, capsys: pytest.CaptureFixture[str]
) -> None:
    cells = ("n", "Ann: Is it so? Bob: Yes.", "It is so.")[-header.count(",") - 1 :]
    Path("mine.csv").write_text("\n".join([header, *[",".join(cells)] * 9]))
    assert cli.run(["init", "--data", "mine.csv", *options, "--yes"], debug=False) == 2
    told = capsys.readouterr().err
    assert error in told and "Set data.dialogue_column" not in told


def test_what_init_says_to_set_can_be_typed_after_it_and_is_written(
    capsys: pytest.CaptureFixture[str],
) -> None:
    """A config, to which `set data.delimiter: '^'` belongs, does not exist yet."""
    Path("mine.csv").write_text(
        "\n".join(["dialogue^summary", *(f"Ann: {n}?^It is {n}." for n in range(40))])
    )
    for typed in (["init", "--data", "mine.csv", "--yes"], ["train", "embedded", "mine.csv"]):
        assert cli.run(typed, debug=False) == 2
        assert "error: mine.csv has the columns 'dialogue^summary'. Set 'data.delimiter=^'\n" in (
            capsys.readouterr().err
        )
    fields = ["data.delimiter=^", "data.max_source_length=64", "data.split_seed=3"]
    ran(capsys, "init", "--data", "mine.csv", "--yes", *fields)
    data = load_config("mine.yaml").data
    assert (data.delimiter, data.max_source_length, data.split_seed) == ("^", 64, 3)
    for word, error in (
        ("lora.r=3", "lora.r=3: only fields of data can be set here"),
        ("data.summary_column=x", "data.summary_column=x: write --data, or --columns"),
        ("data.delimitr=x", "did you mean 'data.delimiter'?"),
    ):
        assert cli.run(["init", "--data", "mine.csv", "--yes", "-o", "other.yaml", word], debug=False) == 2
        assert error in capsys.readouterr().err
    assert not Path("other.yaml").exists()


@pytest.mark.parametrize("command", ["train", "plan", "compare"])
@pytest.mark.parametrize(
    ("words", "error"),
    [
        ([], "talks.csv has the columns id, text, gist. Name the input's and the target's, such as "
         "--columns text,gist (the fields data.dialogue_column and data.summary_column)\n"),
        (["--columns", "txt,gist"], "--columns txt,gist: talks.csv has the columns id, text, gist. "
         "Did you mean 'text'?\n"),
        (["data.dialogue_column=txt"], "data.dialogue_column='txt': talks.csv has the columns"),
        (["--columns", "text,gist", "data.id_column=n"], "data.id_column='n': talks.csv has the columns"),
        (["--columns", "text"], "--columns 'text' does not name two columns, such as text,title\n"),
    ],
)  # fmt: skip
def test_a_command_without_a_config_names_its_option_for_columns_and_the_fields(
    command: str, words: list[str], error: str, capsys: pytest.CaptureFixture[str]
) -> None:
    typed = [command, "embedded", "talks.csv", *([] if command == "plan" else ["-o", "runs/x"]), *words]
    assert cli.run(typed, debug=False) == 2
    assert error in capsys.readouterr().err
    assert not Path("runs").exists()


def test_columns_on_the_command_line_are_written_into_the_config_and_into_the_next_commands(
    trains_nothing: None, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(next_steps, "program_name", lambda: "lora-hf")
    columns = ["--columns", "text,gist"]
    _, err = ran(capsys, "train", "embedded", "talks.csv", *columns, "-o", "runs/x", "seed=3")
    proposed = "compare embedded talks.csv --columns text,gist seed=3 -o runs/x-compared"
    assert proposed in err
    source = source_of("compare", None, ["embedded", "talks.csv"], "runs/y", "text,gist")
    source.write()
    for run in (load_config("runs/y.yaml"), load_config(source.config, source.overrides)):
        assert (run.data.dialogue_column, run.data.summary_column) == ("text", "gist")
    several = source_of("plan", Path("runs/y.yaml"), ["seed=3"], None, "id,text,gist")
    data = load_config(several.config, several.overrides).data
    assert (data.dialogue_column, data.summary_column) == ("id", ("text", "gist"))


@pytest.mark.parametrize("name", ["talks.csv", "gone/talks.jsonl.gz"])
def test_a_file_of_texts_in_the_place_of_the_model_is_called_so(
    name: str, capsys: pytest.CaptureFixture[str]
) -> None:
    for command in ("train", "plan", "compare"):
        assert cli.run([command, name, "embedded"], debug=False) == 2
        says = f"error: {command} {name} embedded: '{name}' is a file of texts and not a model; the order is"
        assert says in capsys.readouterr().err
        assert cli.run([command, name], debug=False) == 2
        error = capsys.readouterr().err
        assert (
            f"name the base model before your texts: `lora-hf {command} google/flan-t5-small {name}`" in error
        )
        assert "Shipped configs" not in error
    given = ["init", "--data", "talks.csv", "--columns", "text,gist", "--yes", "--model", name]
    assert cli.run(given, debug=False) == 2
    assert f"--model '{name}' is a file of texts and not a model: give" in capsys.readouterr().err
    Path("models").mkdir()
    for model, says in (("./no", "no such folder"), ("models", "holds no model: it has no config.json")):
        assert cli.run([*given[:-1], model], debug=False) == 2
        assert f"--model '{model}'" in (error := capsys.readouterr().err) and says in error
    assert not Path("talks.yaml").exists()


@pytest.mark.parametrize(
    ("columns", "rows", "proposed"),
    [
        ("ticket,conversation,gist,date", ["1000,A: Hi. B: Yes,They meet.,2026-11-30"], "conversation,gist"),
        ("label,body,date", ["good,It works well today.,2026-11-30"], "body,label"),
    ],
)
def test_the_columns_that_an_error_proposes_are_texts(
    columns: str, rows: list[str], proposed: str, capsys: pytest.CaptureFixture[str]
) -> None:
    """`date` resembles `dialogue`, and is longer than a label."""
    Path("mine.csv").write_text("\n".join([columns, *rows * 3]) + "\n")
    assert cli.run(["init", "mine.csv"], debug=False) == 2
    assert f"such as --columns {proposed}" in capsys.readouterr().err


def test_init_asks_for_what_the_options_do_not_say(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    typed = "classify classification nowhere.csv talks.csv text gits text gist"
    answers = iter([*typed.split(), "embeded", "./no", "embedded", "loora", "lora"])
    asked: dict[str, str | None] = {}

    def prompt(question: str, default: str | None = None, err: bool = False) -> str:
        asked[question] = default
        return next(answers)

    monkeypatch.setattr("typer.prompt", prompt)
    monkeypatch.setattr("sys.stdin.isatty", lambda: True, raising=False)
    out, err = ran(capsys, "init", "-o", "mine.yaml")
    run = load_config("mine.yaml")
    assert (run.task.name, run.model.model_name_or_path) == ("classification", "embedded")
    assert (run.data.dialogue_column, run.data.summary_column) == ("text", "gist")
    found = {"Column of the input, the text": "text", "Column of the target, the label": "gist"}
    assert asked.items() >= found.items() and "--columns" not in err
    assert "'classify' is not one of" in err and "'loora' is not one of" in err
    assert "--model './no': no such folder" in err
    assert "Did you mean 'embedded'?" in err and "Did you mean 'gist'?" in err
    assert "no such file" in err and "talks.csv has the columns id, text, gist" in err
    assert next(answers, None) is None and out == "mine.yaml\n"


@pytest.mark.parametrize("data", ["talkz.csv", "talks.csv"])
def test_init_asks_nothing_where_the_data_is_not_there_or_the_file_exists(
    data: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("typer.prompt", lambda *_, **__: pytest.fail("it asks"))
    monkeypatch.setattr("sys.stdin.isatty", lambda: True, raising=False)
    Path("talks.yaml").touch()
    assert cli.run(["init", data], debug=False) == 2
    says = {
        "talkz.csv": "Did you mean 'talks.csv'?",
        "talks.csv": "'talks.yaml' exists, and nothing is overwritten",
    }
    assert says[data] in capsys.readouterr().err


@pytest.mark.parametrize(
    ("columns", "first", "second", "named"),
    [
        ("Ticket,text,gist", "T-1", "T-2", "Ticket"),
        ("text,gist,case_no", 11, 12, "case_no"),
        ("text,gist,score", 11, 12, None),  # another number of each row
        ("loss,text,gist", 0.5, 0.25, None),
        ("team,text,gist", "a", "a", None),
        ("title,text,gist", "Two words", "Other words", None),
        ("id,text,gist", "T-1", "T-2", None),  # found without a field
    ],
)
def test_a_column_that_names_each_row_is_written_into_the_config(
    columns: str, first: object, second: object, named: str | None, capsys: pytest.CaptureFixture[str]
) -> None:
    def row(n: int) -> str:
        values = {"text": f"Ann: Is it {n}? Bob: Yes.", "gist": f"It is {n}."}
        own = first if n == 0 else second if n == 1 else f"{second}{n}" if first != second else first
        return ",".join(str(values.get(name, own)) for name in columns.split(","))

    Path("mine.csv").write_text("\n".join([columns, *map(row, range(40))]))
    _, err = ran(capsys, "init", "mine.csv", "--columns", "text,gist")
    assert load_config("mine.yaml").data.id_column == (named or "id")
    assert (f"columns: 'text' -> 'gist', named by {named!r}\n" in err) == bool(named)
    assert ("# names each row in predictions and reports" in Path("mine.yaml").read_text()) == bool(named)


@pytest.mark.parametrize("test_row", [{}, {"ticket": "T-1"}], ids=["without", "the same in all"])
def test_a_column_that_does_not_name_the_rows_of_each_split_is_not_taken(
    test_row: dict[str, str], capsys: pytest.CaptureFixture[str]
) -> None:
    Path("talks").mkdir()
    for split, size in (("train", 12), ("validation", 4), ("test", 4)):
        texts = [{"dialogue": f"Ann: {split} {n}?", "summary": f"{n}."} for n in range(size)]
        rows = [(test_row if split == "test" else {"ticket": f"T-{n}"}) | row for n, row in enumerate(texts)]
        Path(f"talks/{split}.jsonl").write_text("\n".join(map(json.dumps, rows)))
    ran(capsys, "init", "talks")
    assert load_config("talks.yaml").data.id_column == "id"


def test_init_says_how_many_rows_the_texts_have(capsys: pytest.CaptureFixture[str]) -> None:
    """`doctor` and `plan` count rows; equal texts are one dialogue with several references."""
    rows = [f"Ann: Is it {n // 2}? Bob: Yes.,It is {n}." for n in range(40)]
    Path("pairs.csv").write_text("\n".join(["text,gist", *rows]))
    _, err = ran(capsys, "init", "pairs.csv", "--columns", "text,gist")
    found = re.findall(r"^\w+: (\d+) dialogues? \((\d+) rows\)", err, re.M)
    assert len(found) == 3 and all(2 * int(texts) == int(pairs) for texts, pairs in found)


def test_a_model_and_data_are_a_config(trains_nothing: None, capsys: pytest.CaptureFixture[str]) -> None:
    """What the run writes is tested in `test_docs.py`, on the page docs/from_zero.md."""
    out, err = ran(capsys, "train", "embedded", "pairs.csv", "-o", "runs/x", "lora.r=4")
    assert "predict - --adapter runs/x" in err and "merge --adapter runs/x --output runs/x-merged" in err
    assert "Next:" not in out
    source = source_of("train", None, ["embedded", "pairs.csv", "lora.r=4"], "runs/x")
    run = load_config(source.config, source.overrides)
    assert (run.output_dir, run.lora.r, run.training["learning_rate"]) == ("runs/x", 4, 1e-2)
    assert run.training["num_train_epochs"] == 10 and "max_steps" not in run.training
    source = source_of("compare", None, ["embedded", "pairs.csv"])
    source.write()
    assert load_config("runs/pairs.yaml").output_dir == "runs/pairs"
    source.write()  # the same again
    Path("runs/pairs.yaml").write_text("seed: 3\n")
    with pytest.raises(UserError, match="holds another config"):
        source.write()


@pytest.mark.parametrize(("seeds", "says_so"), [({}, True), ({"seeds": [1, 2]}, False)])
def test_a_verdict_on_one_seed_says_so(
    seeds: dict[str, Any], says_so: bool, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    spread = {"spread": dict.fromkeys(ROUGE_NAMES, 0.01)} if seeds else {}
    compared = make_comparison(**seeds, **spread)
    monkeypatch.setattr("lora_hf.experiments.compare.compare", lambda file, overrides: compared)
    assert cli.run(["compare", "--config", "quickstart"], debug=False) == 0
    out = capsys.readouterr().out
    assert "LoRA is significantly worse" in out and ("significantly worse (one seed)" in out) is says_so


def test_a_comparison_after_a_run_of_the_same_data_has_a_folder_of_its_own(
    folder: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Both are named after the data, and a folder of a run takes no comparison."""
    made: list[str] = []
    monkeypatch.setattr(
        "lora_hf.experiments.compare.compare",
        lambda file, overrides: made.append(load_config(file, overrides).output_dir),
    )
    monkeypatch.setattr("lora_hf.cli.running._print_comparison", lambda *_: None)
    typed = ["compare", "embedded", "pairs.csv"]
    _, err = ran(capsys, *typed)
    assert "holds a run" not in err
    (folder / "runs/pairs").mkdir(parents=True)
    (folder / "runs/pairs/config.yaml").write_text("seed: 1\n")
    _, err = ran(capsys, *typed)
    assert "runs/pairs holds a run: the comparison goes to runs/pairs-compared\n" in err
    written = Path("runs/pairs-compared.yaml").read_text()
    for more in (["-o", "runs/pairs-compared"], ["-o", "runs/pairs"], ["output_dir=runs/y"]):
        _, err = ran(capsys, *typed, *more)
        assert "holds a run" not in err
    (folder / "runs/pairs/comparison.json").write_text("{}")
    ran(capsys, *typed)
    named = ["pairs", "pairs-compared", "pairs-compared", "pairs", "y", "pairs"]
    assert made == [f"runs/{name}" for name in named]
    assert Path("runs/pairs-compared.yaml").read_text() == written  # as `train` proposes it, by -o


def test_the_config_of_a_comparison_stays_only_where_a_run_has_begun(
    capsys: pytest.CaptureFixture[str],
    runs_in_this_process: list[Any],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """After a typo in the model, the same -o takes the right one."""
    config, words = Path("runs/c1.yaml"), ["pairs.csv", "-o", "runs/c1"]
    assert cli.run(["compare", "./embeded", *words], debug=False) == 2
    assert "embeded" in capsys.readouterr().err and not runs_in_this_process
    assert not config.exists() and not config.with_suffix("").exists()
    assert cli.run(["compare", "embedded", *words, "lora.r=none"], debug=False) == 2
    assert not config.exists()

    def compare(file: Path, overrides: list[str]) -> None:
        Path("runs/c1/base").mkdir(parents=True)
        raise RunFailed(1)

    monkeypatch.setattr("lora_hf.experiments.compare.compare", compare)
    assert cli.run(["compare", "embedded", *words], debug=False) == 1
    assert load_config(config).model.model_name_or_path == "embedded"


@pytest.mark.parametrize(
    ("words", "error"),
    [
        (["new.yaml", "--data", "talks.csv"], "(new.yaml); name the new file by --output"),
        (["talks.csv", "new.yml"], "(new.yml); name the new file by --output"),
        (["pairs.csv", "--data", "talks.csv"], "error: pairs.csv and --data talks.csv: give the data once\n"),
        (["embedded", "talks.csv"], "error: init embedded talks.csv: give one word, the data; name the base "
         "model by --model, and the new file by --output\n"),
        ([], "error: DATA is missing: give a file, a folder or a name on the Hub that holds your texts, as "
         "in `lora-hf init talks.csv`\n"),
    ],
)  # fmt: skip
def test_init_takes_one_word_which_is_the_data(
    words: list[str], error: str, capsys: pytest.CaptureFixture[str]
) -> None:
    ran(capsys, "init", "talks.csv", "--columns", "text,gist", "-o", "q.yaml", "data.split_seed=3", "--yes")
    written = load_config("q.yaml").data
    assert (written.dataset_name, written.split_seed) == ("talks.csv", 3)
    assert cli.run(["init", *words, "--yes"], debug=False) == 2
    assert error in capsys.readouterr().err and not Path("talks.yaml").exists()


def test_an_ending_that_no_predictions_have_is_an_error_with_the_option(
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert cli.run(["predict", "talks.csv", "--adapter", "runs/x", "-o", "out.xlsx"], debug=False) == 2
    error, where = capsys.readouterr().err.splitlines()[-2:]
    assert error.startswith("error: --output out.xlsx") and where.endswith("#command-line")


@pytest.mark.parametrize("command", next_steps.NEXT)
def test_the_next_commands_are_commands_and_are_left_out_of_json(
    command: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    from typer.main import get_command

    monkeypatch.setattr(next_steps, "program_name", lambda: "lora-hf")
    names = "page adapter mergeable merged run onnx ct2 exportable whole".split()
    paths = {name: Path(f"a b/{name}") for name in names} | {"source": "--config quickstart"}
    paths |= {"repository": "USER/NAME", "file": "FILE", "compared": "--config quickstart"}
    next_steps.show_next(command, **paths)
    err = capsys.readouterr().err
    lines = [line.partition("|")[2] or line for line in err.splitlines() if line.startswith("    ")]
    assert len(lines) == len(next_steps.NEXT[command])
    for line in lines:
        words = shlex.split(line)
        if words[0] != "lora-hf":
            assert words == ["a b/page"]
            continue
        get_command(cli.app).commands[words[1]].make_context(words[1], words[2:])  # type: ignore[attr-defined]
    next_steps.show_next(command, as_json=True, **paths)
    next_steps.show_next(command)
    monkeypatch.setenv(terminal.PART, "1")
    next_steps.show_next(command, **paths)
    assert capsys.readouterr().err == ""


def test_a_next_command_keeps_the_options_that_it_needs(
    folder: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The push that a dry run proposes must be the one that it shows; an adapter needs its base."""
    monkeypatch.setattr(next_steps, "program_name", lambda: "lora-hf")
    monkeypatch.setattr("lora_hf.saved.push.prepare_push", lambda *_: SimpleNamespace(files={CARD: b"card"}))
    monkeypatch.setattr("lora_hf.saved.push.push", lambda *_: "done")
    monkeypatch.setattr("lora_hf.saved.predict.predict", lambda *_: [])
    monkeypatch.setattr("lora_hf.saved.evaluate.evaluate", lambda *_: ({}, []))
    monkeypatch.setattr("lora_hf.cli.checking._report", lambda *_, **__: True)
    pushing = ["push", "--adapter", "runs/a", "--repo-id", "user/name", "--revision", "dev"]
    chosen = ["--private", "--base-model", "user/base", "--license", "mit", "--samples", "0", "--overwrite"]
    (folder / "my base").mkdir()
    for name in ("ada", "run/adapter"):
        (folder / name).mkdir(parents=True)
        (folder / name / "adapter_config.json").write_text(json.dumps(PEFT))
    monkeypatch.setattr("lora_hf.cli.saved.print_scores", lambda _: None)
    cases = [
        ([*pushing, *chosen, "--dry-run"], [[*pushing, *chosen]]),
        (pushing, [["predict", "FILE", "--adapter", "user/name@dev"]]),
        (
            ["predict", "talks.csv", "--adapter", "ada", "--base", "my base", "-o", "out.csv"],
            [
                ["serve", "--adapter", "mine=ada", "--base", "my base"],
                ["merge", "--adapter", "ada", "--base", "my base", "--output", "ada-merged"],
            ],
        ),
        (
            ["predict", "talks.csv", "--adapter", "run/adapter", "-o", "out2.csv"],
            [
                ["serve", "--adapter", "mine=run/adapter"],
                ["merge", "--adapter", "run/adapter", "--output", "run-merged"],  # as `train` names it
            ],
        ),
        (
            ["doctor", "ada", "--base", "my base"],
            [["predict", "-", "--adapter", "ada", "--base", "my base", "--format", "text"]],
        ),
        (
            ["evaluate", "--config", "quickstart", "--adapter", "ada"],
            [["predict", "-", "--adapter", "ada", "--base", "embedded", "--format", "text"]],
        ),
    ]
    for typed, following in cases:
        _, err = ran(capsys, *typed)
        commands = [line.partition("| ")[2] or line for line in err.splitlines() if "    " in line]
        assert [shlex.split(line)[1:] for line in commands] == following


def test_the_next_command_for_a_config_of_several_runs_makes_all_of_them(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(next_steps, "program_name", lambda: "lora-hf")
    monkeypatch.setattr("lora_hf.cli.checking._report", lambda *_, **__: True)
    monkeypatch.setattr("lora_hf.planning.plan.plan", lambda _: {})
    monkeypatch.setattr("lora_hf.reporting.plan_table.plan_terminal", lambda *_: [])
    for name, more, makes, field in (
        ("quickstart", [], "train", None),
        ("quickstart", ["seeds=[1,2]"], "compare", None),
        ("methods", [], "methods", "variants=["),
        ("rank_study", [], "sweep", "sweep.space=["),
    ):
        for command in ("doctor", "plan"):
            _, err = ran(capsys, command, "--config", name, *more)
            following = [shlex.split(line) for line in err.splitlines() if line.startswith("    ")]
            assert following == [["lora-hf", makes, "--config", name, *more]]
            assert ("is not planned" in err) is (command == "plan" and field is not None)
            assert command == "doctor" or (field or "") in err


def test_a_command_that_the_shell_lacks_is_named_by_its_path(
    folder: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """`make quickstart` installs into .venv, and does not activate it."""
    (folder / ".venv/bin").mkdir(parents=True)
    for name in ("lora-hf", "activate", "python"):
        (folder / ".venv/bin" / name).touch()
    monkeypatch.setattr("sys.executable", str(folder / ".venv/bin/python"))
    monkeypatch.setattr("shutil.which", lambda name: None)
    next_steps.show_next("verify", run=Path("runs/x"))
    err = capsys.readouterr().err
    assert "    .venv/bin/lora-hf report runs/x\n" in err and "    source .venv/bin/activate\n" in err
    (folder / ".venv/bin/lora-hf").unlink()
    assert next_steps.program_name() == ".venv/bin/python -m lora_hf"
