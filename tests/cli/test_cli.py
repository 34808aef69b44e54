"""The commands: what they print and write, and one message for each mistake."""

import csv
import io
import json
import shutil
import signal
from pathlib import Path

import pytest
import torch
from support.inputs import FEW
from support.selection import slow_except

from lora_hf import cli
from lora_hf.cli import streams
from lora_hf.config import DataConfig
from lora_hf.data.splits import load_split
from lora_hf.doctor.check import Finding
from lora_hf.evaluation.rouge import ROUGE_NAMES
from lora_hf.files import checkpoint_fingerprint

ROOT = Path(__file__).parents[2]
OF_OTHER_SPLITS = ("data.max_train_samples", "data.max_eval_samples", "data.max_target_length")
FEW_TEXTS = [w for w in FEW if w.startswith(("data.", "generation.")) and not w.startswith(OF_OTHER_SPLITS)]
"""The fields of `FEW` that have an effect where nothing trains; `evaluate` warns of others."""


@pytest.fixture(autouse=True)
def keep_the_handler():
    before = signal.getsignal(signal.SIGTERM)
    yield
    signal.signal(signal.SIGTERM, before)


@pytest.fixture(scope="module")
def config(tmp_path_factory):
    file = tmp_path_factory.mktemp("configs") / "tiny.yaml"
    file.write_text("lora: {r: 4, lora_alpha: 8}\ntraining: {max_steps: 2, learning_rate: 5.0e-2}\n")
    return file


@pytest.fixture(scope="module")
def trained(config, tmp_path_factory):
    """A finished LoRA run."""
    folder = tmp_path_factory.mktemp("runs") / "lora"
    assert cli.run(["train", "--config", str(config), *FEW, f"output_dir={folder}"], debug=False) == 0
    return folder


@pytest.fixture
def mistake(capsys):
    """Run a command that must fail as a user's mistake, and get the message."""

    def run(*words):
        assert cli.run([str(word) for word in words], debug=False) == 2
        said = capsys.readouterr().err
        assert "Traceback" not in said
        (line,) = [line for line in said.splitlines() if line.startswith("error: ")]
        return line

    return run


@pytest.mark.parametrize("words", [[], ["trian"], ["train"], ["train", "--no-such-option"], ["train", "x=1"]])
def test_an_invalid_command_line_is_one_error(mistake, words):
    assert len(mistake(*words)) > len("error: ...")


@pytest.mark.parametrize("words", [["train", "--config", "quickstart"], ["doctor"]])
def test_a_number_of_processes_without_a_rank_is_not_waited_for(mistake, monkeypatch, words):
    monkeypatch.delenv("RANK", raising=False)
    monkeypatch.setenv("WORLD_SIZE", "2")
    assert "WORLD_SIZE=2 says that there are several processes, but RANK is not set" in mistake(*words)


@pytest.mark.parametrize(
    ("override", "expected"),
    [
        ("lora.rnk=4", "unknown key 'lora.rnk'"),
        ("lora.r=eight", "lora.r='eight' is not an integer"),
        ("training.learning_rate=fast", "training.learning_rate='fast' is not a number"),
        ("model.model_name_or_path=./no/model", "model.model_name_or_path='./no/model': no such folder"),
        ("model.model_name_or_path=nobody/no-model", "model.model_name_or_path='nobody/no-model' cannot"),
        ("lora.target_modules=[query]", "'query'] matched no"),
        ("data.dialogue_column=talk", "data.dialogue_column='talk': embedded [train] has the columns"),
        ("data.dataset_name=./rows.csv", "data.dataset_name='./rows.csv': no such file or folder"),
        ("data.max_source_length=5", "data.max_source_length=5 leaves no room for text"),
        ("output_dir=configs/quickstart.yaml", "output_dir='configs/quickstart.yaml' is a file"),
        ("output_dir=docs", "output_dir='docs' holds ["),
    ],
)
def test_each_mistake_in_a_run_is_one_error_that_names_it(
    mistake, config, tmp_path, monkeypatch, override, expected
):
    monkeypatch.chdir(tmp_path)
    for file in ("configs/quickstart.yaml", "docs/thesis.tex"):
        (tmp_path / file).parent.mkdir()
        (tmp_path / file).write_text("mine")
    assert expected in mistake("train", "--config", config, *FEW, "output_dir=run", override)
    assert (tmp_path / "docs/thesis.tex").read_text() == "mine"
    assert not (tmp_path / "run").exists()  # a mistake leaves nothing behind


@pytest.mark.parametrize("name", ["./no/model", "nobody/no-model"])
@pytest.mark.parametrize("command", ["serve", "predict", "merge", "truncate", "doctor", "export"])
def test_a_base_from_the_command_line_is_named_as_it_was_written(
    config, trained, tmp_path, capsys, command, name
):
    (tmp_path / "talk.txt").write_text("A: Hi")
    adapter, output = ["--adapter", trained, "--base", name], ["--output", tmp_path / "out"]
    words = {
        "serve": ["--base", name],
        "predict": [tmp_path / "talk.txt", *adapter],
        "merge": [*adapter, *output],
        "truncate": [*adapter, *output],
        "doctor": [trained, "--base", name],
        "export": [name, *output],
    }[command]
    cli.run([command, *map(str, words)], debug=False)
    said = "".join(capsys.readouterr())
    written = f"{'MODEL ' if command == 'export' else '--base='}{name!r}"
    assert written in said
    assert "model.model_name_or_path" not in said


def test_an_error_about_an_adapter_s_base_names_the_file_that_names_the_base(mistake, trained, tmp_path):
    adapter = shutil.copytree(trained / "adapter", tmp_path / "adapter")
    file = adapter / "adapter_config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | {"base_model_name_or_path": "./no/model"}))
    (tmp_path / "talk.txt").write_text("A: Hi")
    error = mistake("predict", tmp_path / "talk.txt", "--adapter", adapter)
    assert f"{adapter}: base_model_name_or_path='./no/model': no such folder" in error


def test_doctor_prints_each_notice_once(trained, tmp_path, capsys):
    adapter = shutil.copytree(trained / "adapter", tmp_path / "adapter")
    (adapter / "lora_hf.json").unlink()  # as PEFT leaves it: four checks ask for the prompt
    cli.run(["doctor", str(adapter)], debug=False)
    lines = capsys.readouterr().err.splitlines()
    assert any("does not say its prompt" in line for line in lines) and len(lines) == len({*lines})


def test_doctor_prints_whole_lines_where_no_terminal_shows_them(monkeypatch, capsys):
    monkeypatch.setenv("COLUMNS", "60")
    cli.run(["doctor"], debug=False)
    *findings, counts, checked = capsys.readouterr().out.splitlines()
    assert all(line.split()[0] in ("ok", "fault", "unknown", "remedy:") for line in findings)
    assert max(map(len, findings)) > 60
    assert (counts, checked) == ("2 checks passed", "checked: this machine")


def test_doctor_and_verify_print_passed_checks_only_if_asked(trained, monkeypatch, capsys):
    """A config without faults used to be 18 equal lines."""
    found = [Finding("ok", "as it should be", "", name) for name in ("fields", "dtype")]
    monkeypatch.setattr("lora_hf.doctor.of_machine", lambda: iter(()))
    monkeypatch.setattr("lora_hf.doctor.of_config", lambda path, overrides: iter(found))
    monkeypatch.setattr("lora_hf.doctor.of_run", lambda run: iter(found))
    of_config, of_run = ["doctor", "--config", "quickstart"], ["verify", str(trained)]
    for words, checked in (
        (of_config, "this machine; quickstart, its data and its base model"),
        (of_run, f"{trained}, its data and its base model"),
    ):
        assert cli.run(words, debug=False) == 0
        told = capsys.readouterr()
        assert told.out == f"2 checks passed (-v lists them)\nchecked: {checked}\n"
        assert "\nNext:\n" in told.err
        assert cli.run([*words, "-v"], debug=False) == 0
        *lines, count, _ = capsys.readouterr().out.splitlines()
        assert [line.split()[:2] for line in lines] == [["ok", "fields"], ["ok", "dtype"]]
        assert count == "2 checks passed"
        assert cli.run([*words, "--json"], debug=False) == 0
        assert len(json.loads(capsys.readouterr().out)["findings"]) == 2
    found.append(Finding("unknown", "not checked: no network", "", "tokens"))
    assert cli.run(of_config, debug=False) == 0
    assert capsys.readouterr().out.splitlines() == [
        "unknown tokens       not checked: no network",
        "2 ok, 0 failed, 1 not checked",
        "quickstart could not be checked whole: remove the reason above and check again; a run checks data "
        "and model too, before it trains",
    ]
    found.append(Finding("fault", "too long", "cut it", "tokens"))
    assert cli.run(of_run, debug=False) == 1
    out = capsys.readouterr().out.splitlines()
    assert [line.split()[0] for line in out] == ["unknown", "fault", "remedy:", "2", str(trained)]
    assert out[-1] == f"{trained} could not be checked whole: correct what failed, then check again"


def test_doctor_names_the_checks_that_need_another_one_in_one_line(monkeypatch, capsys):
    """A model that could not be downloaded used to be seven lines, one for each check that needs it."""
    monkeypatch.setattr("lora_hf.doctor.of_machine", lambda: iter(()))
    monkeypatch.setattr("lora_hf.doctor.configs.share_trained", lambda *_: ("all", []))
    typed = ["doctor", "--config", "quickstart", "model.model_name_or_path=google/flan-t5-small"]
    assert cli.run(typed, debug=False) == 0
    cause, dependents, counts, last = capsys.readouterr().out.splitlines()
    assert cause.startswith(
        "unknown checkpoint   not checked: model.model_name_or_path='google/flan-t5-small'"
    )
    assert dependents == (
        "unknown checkpoint   not checked, because they need checkpoint: tokenizer, head, tokens, retention, "
        "batches, memory"
    )
    assert counts == "6 ok, 0 failed, 7 not checked (-v lists each)"
    assert last.startswith("quickstart could not be checked whole: remove the reason above and check again")
    assert cli.run([*typed, "-v"], debug=False) == 0
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 15 and lines[-3].startswith("unknown memory       not checked: it needs tokens")
    assert cli.run([*typed, "--json"], debug=False) == 0
    record = json.loads(capsys.readouterr().out)
    assert record["unknown"] == 7 and {*record["findings"][0]} == {"state", "title", "remedy", "check"}


def test_doctor_says_without_v_what_is_cut(tmp_path, monkeypatch, capsys):
    rows = [
        {"dialogue": f"Ann: {n}? Bob: yes." + " No." * 40 * (n == 3), "summary": f"{n}."} for n in range(60)
    ]
    for split in ("train", "validation", "test"):
        of_split = [row | {"dialogue": f"{split} {row['dialogue']}"} for row in rows]
        (tmp_path / f"{split}.jsonl").write_text("\n".join(map(json.dumps, of_split)))
    monkeypatch.setattr("lora_hf.doctor.of_machine", lambda: iter(()))
    monkeypatch.setattr("lora_hf.doctor.configs.far_data", lambda *of: "")  # these texts are
    monkeypatch.setattr("lora_hf.planning.plan.activation_bytes", lambda *of, **options: 2**20)
    typed = ["doctor", "--config", "quickstart", f"data.dataset_name={tmp_path}"]
    typed += [f"data.max_{split}_samples=null" for split in ("train", "eval", "test")]
    assert cli.run([*typed, "data.max_source_length=80"], debug=False) == 0
    _, _, note = capsys.readouterr().out.splitlines()
    assert note.startswith("note: train: 1 of 60 dialogues are cut at 80 tokens") and note.count(";") == 2
    assert cli.run([*typed, "data.max_source_length=512"], debug=False) == 0
    assert len(capsys.readouterr().out.splitlines()) == 2
    (tmp_path / "test.jsonl").write_text("\n".join((tmp_path / "test.jsonl").read_text().splitlines()[:3]))
    assert cli.run([*typed, "data.max_source_length=80"], debug=False) == 0
    *_, cut, few = capsys.readouterr().out.splitlines()
    assert cut.startswith("note: train: 1 of 60") and few == (
        "note: the score rests on 3 test dialogues: too few to tell anything; give more test rows"
    )


def test_a_directory_with_other_results_stops_a_run_and_names_what_changed(mistake, config, trained):
    before = (trained / "results.json").stat().st_mtime_ns
    error = mistake("train", "--config", config, *FEW, f"output_dir={trained}", "lora.r=2", "seed=1")
    assert "(lora.r: 4 -> 2; seed: 42 -> 1)" in error and "overwrite=true" in error
    assert (trained / "results.json").stat().st_mtime_ns == before


def test_a_finished_run_is_skipped(config, trained, capsys):
    before = {p: p.stat().st_mtime_ns for p in trained.rglob("*")}
    assert cli.run(["train", "--config", str(config), *FEW, f"output_dir={trained}"], debug=False) == 0
    assert {p: p.stat().st_mtime_ns for p in trained.rglob("*")} == before
    assert "rouge1 " in capsys.readouterr().out


@pytest.mark.parametrize(
    ("words", "result"),
    [
        (["train", "--config", "CONFIG", *FEW, "output_dir=RUN"], "rouge1 "),
        (["evaluate", "--config", "CONFIG", *FEW_TEXTS, "--adapter", "RUN"], "rouge1 "),
        (["score", "RUN/predictions.jsonl", "--json"], '"rouge1": '),
        (["predict", "TALK", "--adapter", "RUN"], '"prediction": '),
        (["merge", "--adapter", "RUN", "--output", "NEW/merged"], "/merged: the model"),
        (["report", "RUN"], "report: "),
        (["push", "--adapter", "RUN", "--repo-id", "me/talks", "--dry-run"], "adapter_model.safetensors"),
        (["schema"], '"$defs"'),
    ],
    ids=lambda value: value[0] if isinstance(value, list) else "",
)
def test_results_go_to_standard_output_and_the_rest_to_standard_error(
    config, trained, tmp_path, capsys, words, result
):
    (example,) = load_split(DataConfig(max_test_samples=1), "test")
    (tmp_path / "talk.txt").write_text(example.dialogue)
    places = {"CONFIG": config, "RUN": trained, "TALK": tmp_path / "talk.txt", "NEW": tmp_path}
    for name, place in places.items():
        words = [word.replace(name, str(place)) for word in words]
    assert cli.run([*words, "-q"], debug=False) == 0
    quiet = capsys.readouterr()
    assert result in quiet.out and quiet.err == ""
    if words[0] in ("train", "evaluate"):  # without -q: the same results, and lines about the run
        assert cli.run(words, debug=False) == 0
        said = capsys.readouterr()
        assert (
            said.out == quiet.out
            and said.err.strip()
            and not {*said.err.splitlines()} & {*said.out.splitlines()}
        )


@pytest.mark.slow
@pytest.mark.versions
def test_evaluate_repeats_the_scores_of_the_run_and_its_predictions(config, trained, tmp_path, capsys):
    words = ["evaluate", "--config", str(config), *FEW, "--json", "--output", str(tmp_path / "out")]
    assert cli.run([*words, "--adapter", str(trained / "adapter")], debug=False) == 0
    said = json.loads(capsys.readouterr().out)
    record = json.loads((trained / "results.json").read_text())
    assert record["splits"] == {split: f"embedded [{split}]" for split in ("train", "validation", "test")}
    assert {name: said[name] for name in ROUGE_NAMES} == {name: record[name] for name in ROUGE_NAMES}
    written = [(folder / "predictions.jsonl").read_text() for folder in (trained, tmp_path / "out")]
    assert written[0] == written[1]
    assert cli.run(words, debug=False) == 2  # the folder is not empty now
    for place in (trained, trained / "adapter"):  # by the config of the run
        assert cli.run(["evaluate", "--adapter", str(place), "--json"], debug=False) == 0
        again = json.loads(capsys.readouterr().out)
        assert {name: again[name] for name in ROUGE_NAMES} == {name: said[name] for name in ROUGE_NAMES}
    assert cli.run(["evaluate", "--config", str(config), *FEW], debug=False) == 0  # the base


def test_predict_says_in_one_line_that_a_run_was_not_scored(trained, tmp_path, capsys):
    (tmp_path / "talk.txt").write_text("A: Lunch at noon?\nB: Yes.")
    run = shutil.copytree(trained, tmp_path / "run")
    words = ["predict", str(tmp_path / "talk.txt"), "--format", "text", "-q", "--adapter"]
    assert cli.run([*words, str(run)], debug=False) == 0
    scored = capsys.readouterr()
    (run / "results.json").unlink()
    for place in (run, run / "adapter"):
        assert cli.run([*words, str(place)], debug=False) == 0
        unscored = capsys.readouterr()
        assert unscored.out == scored.out
        (line,) = [*{*unscored.err.splitlines()} - {*scored.err.splitlines()}]
        assert line.startswith(f"warning: {run} has not been scored") and str(run / "config.yaml") in line


def test_predict_gives_each_row_a_summary_even_if_dialogues_are_equal(trained, tmp_path, capsys):
    talk = tmp_path / "talks.csv"
    talk.write_text('id,talk\n7,"A: Hi"\n8,"A: Bye, now"\n9,"A: Hi"\n')
    words = ["predict", str(talk), "--adapter", str(trained / "adapter"), "--dialogue-column", "talk"]
    assert cli.run(words, debug=False) == 0
    printed = capsys.readouterr().out
    rows = [json.loads(line) for line in printed.splitlines()]
    assert [(row["id"], row["dialogue"]) for row in rows] == [
        ("7", "A: Hi"),
        ("8", "A: Bye, now"),
        ("9", "A: Hi"),
    ]
    assert rows[0]["prediction"] == rows[2]["prediction"]
    words[3] = str(trained)  # the run directory will do
    assert cli.run([*words, "--output", str(tmp_path / "out.jsonl")], debug=False) == 0
    assert (tmp_path / "out.jsonl").read_text() == printed
    assert capsys.readouterr().out == ""
    lines = tmp_path / "lines.txt"
    lines.write_bytes("A: Hi\nA: Bye, now \xe9\n".encode("cp1252"))
    words = ["predict", str(lines), "--adapter", str(trained), "--lines", "data.encoding=cp1252"]
    for more in (["--output", str(tmp_path / "out.csv")], ["--output", str(tmp_path / "out.txt")]):
        assert cli.run([*words, *more], debug=False) == 0
    with (tmp_path / "out.csv").open(newline="") as file:
        found = list(csv.DictReader(file))
    assert [(row["id"], row["dialogue"]) for row in found] == [("0", "A: Hi"), ("1", "A: Bye, now é")]
    assert (tmp_path / "out.txt").read_text().splitlines() == [row["prediction"] for row in found]
    assert cli.run(["score", str(tmp_path / "out.txt"), "--reference", str(tmp_path / "out.txt")], False) == 0
    assert "2 rows" in capsys.readouterr().out


def test_predict_can_keep_the_columns_of_the_file(trained, tmp_path, capsys, mistake):
    turns = [{"speaker": "A", "text": "Bye"}]
    (tmp_path / "talks.csv").write_text('ticket,talk,note\n7,"A: Hi",\n8,"A: Bye","x, y"\n')
    rows = [{"talk": turns, "dialogue": "x", "id": None}, {"talk": "A: Hi", "id": 3, "day": float("nan")}]
    rows[0]["tags"] = ["a"]
    (tmp_path / "talks.json").write_text(json.dumps(rows))
    given = ["--adapter", str(trained), "--dialogue-column", "talk"]
    said = []

    def predicted(name: str, *more: str) -> str:
        assert cli.run(["predict", str(tmp_path / name), *given, *more], debug=False) == 0
        out, err = capsys.readouterr()
        said.append(err)
        return out

    plain = [json.loads(line)["prediction"] for line in predicted("talks.csv").splitlines()]
    assert "talks.csv: columns are not written: note, ticket (--keep-columns writes all)" in said[-1]
    found = csv.DictReader(predicted("talks.csv", "--keep-columns", "--format", "csv").splitlines())
    assert "not written" not in said[-1]
    kept = [{"ticket": "7", "talk": "A: Hi", "note": ""}, {"ticket": "8", "talk": "A: Bye", "note": "x, y"}]
    assert list(found) == [row | {"prediction": text} for row, text in zip(kept, plain, strict=True)]
    plain = [json.loads(line)["prediction"] for line in predicted("talks.json").splitlines()]
    lines = predicted("talks.json", "--keep-columns").splitlines()
    found_rows = [json.loads(line) for line in lines]
    assert [row.pop("prediction") for row in found_rows] == plain
    assert found_rows == [rows[0], rows[1] | {"day": None}]  # as in the file, whatever was read
    as_csv = list(csv.DictReader(predicted("talks.json", "--keep-columns", "--format", "csv").splitlines()))
    assert json.loads(as_csv[0]["talk"]) == turns and as_csv[0]["tags"] == '["a"]' and as_csv[0]["day"] == ""
    (tmp_path / "cr.json").write_text(json.dumps([{"talk": "A: Hi\rB: Yes"}, {"talk": "A: Bye"}]))
    (tmp_path / "cr.csv").write_text(predicted("cr.json", "--keep-columns", "--format", "csv"), newline="")
    with (tmp_path / "cr.csv").open(newline="") as file:
        assert [row["talk"] for row in csv.DictReader(file)] == ["A: Hi\rB: Yes", "A: Bye"]
    (tmp_path / "again.csv").write_text("talk,prediction\nA: Hi,x\n")
    error = mistake("predict", tmp_path / "again.csv", *given, "--keep-columns")
    assert "has a column 'prediction' already" in error
    error = mistake(
        "predict", tmp_path / "talks.csv", *given, "--keep-columns", "--output", tmp_path / "o.txt"
    )
    assert "--keep-columns: text has one prediction per line" in error and not (tmp_path / "o.txt").exists()


def test_merge_writes_a_plain_model_of_the_same_logits(trained, tmp_path, mistake):
    from transformers import AutoModelForSeq2SeqLM, AutoTokenizer

    from lora_hf import load

    merged = tmp_path / "merged"
    words = ["merge", "--adapter", str(trained / "adapter"), "--output", str(merged)]
    assert cli.run(words, debug=False) == 0
    plain, tokenizer = (kind.from_pretrained(merged) for kind in (AutoModelForSeq2SeqLM, AutoTokenizer))
    adapted = load(trained / "adapter").model
    ids = tokenizer("A: Shall we go?", return_tensors="pt").input_ids
    with torch.no_grad():
        ours = adapted(input_ids=ids.to(adapted.device), labels=ids.to(adapted.device)).logits.cpu()
        torch.testing.assert_close(plain(input_ids=ids, labels=ids).logits, ours, atol=1e-3, rtol=1e-3)
    assert "is a folder that is not empty; nothing is overwritten" in mistake(*words)
    file = tmp_path / "file"
    file.write_text("mine")
    assert "is a file; nothing is overwritten" in mistake(*words[:-1], file)
    talk = tmp_path / "talk.csv"
    talk.write_text("dialogue\nA: Hi\n")
    error = mistake("predict", talk, "--adapter", trained / "adapter", "--output", talk)
    assert "nothing is overwritten" in error and talk.read_text() == "dialogue\nA: Hi\n"


@pytest.mark.parametrize(
    ("method", "weights"),
    # d_model 128, 2 blocks of 2 sublayers and 2 of 3; a prompt is its length times d_model
    slow_except(
        [("bottleneck", 10 * (2 * 64 * 128 + 64 + 128))],
        [("bottleneck", 10 * (2 * 64 * 128 + 64 + 128)), ("prompt_tuning", 20 * 128)],
        versions=True,
    ),
)
def test_a_baseline_is_trained_scored_and_used_again_like_an_adapter(
    mistake, config, trained, tmp_path, capsys, method, weights
):
    run = tmp_path / "run"
    assert (
        cli.run(["train", "--config", str(config), *FEW, f"method={method}", f"output_dir={run}"], False) == 0
    )
    record = json.loads((run / "results.json").read_text())
    assert record.keys() == json.loads((trained / "results.json").read_text()).keys()
    assert (record["method"], record["trainable_parameters"]) == (method, weights)
    (run / "results.json").unlink()  # killed while scoring: the same command scores what is trained
    words = ["train", "--config", str(config), *FEW, f"method={method}", f"output_dir={run}"]
    assert cli.run(words, debug=False) == 0
    again = json.loads((run / "results.json").read_text())
    assert {name: again[name] for name in ROUGE_NAMES} == {name: record[name] for name in ROUGE_NAMES}
    capsys.readouterr()
    assert cli.run(["evaluate", "--config", str(config), *FEW, "--json", "--adapter", str(run)], False) == 0
    assert json.loads(capsys.readouterr().out)["rouge1"] == record["rouge1"]
    (tmp_path / "talk.txt").write_text("A: Hi\nB: Bye")
    assert cli.run(["predict", str(tmp_path / "talk.txt"), "--adapter", str(run)], False) == 0
    assert f"holds a {method}, which" in mistake("merge", "--adapter", run, "--output", tmp_path / "merged")


def test_mistakes_about_adapters_are_one_error_each(mistake, config, trained, tmp_path):
    other = shutil.copytree(trained / "adapter", tmp_path / "other")
    manifest = json.loads((other / "lora_hf.json").read_text())
    (other / "lora_hf.json").write_text(json.dumps(manifest | {"base_fingerprint": "0" * 16}))
    ours = checkpoint_fingerprint([ROOT / "lora_hf/assets/tiny_t5/model.safetensors"])
    error = mistake("evaluate", "--config", config, *FEW, "--adapter", other)
    assert "0" * 16 in error or ours in error
    assert "no such folder" in mistake("evaluate", "--config", config, *FEW, "--adapter", tmp_path / "none")
    (tmp_path / "empty").mkdir()
    assert "adapter_config.json" in mistake(
        "merge", "--adapter", tmp_path / "empty", "--output", tmp_path / "m"
    )
    assert "no such file" in mistake("predict", tmp_path / "none.csv", "--adapter", trained / "adapter")
    (tmp_path / "talks.csv").write_text("talk\nA: Hi\n")
    error = mistake("predict", tmp_path / "talks.csv", "--adapter", trained / "adapter")
    assert "has no column 'dialogue' (columns: talk); name yours: --dialogue-column talk" in error


@pytest.mark.parametrize("is_terminal", [False, True])
def test_output_that_the_system_s_encoding_lacks_is_written(is_terminal: bool) -> None:
    stream = io.TextIOWrapper(io.BytesIO(), encoding="ascii")
    stream.isatty = lambda: is_terminal  # type: ignore[method-assign]
    streams.make_writable(stream)
    print("Café", file=stream, flush=True)
    assert stream.buffer.getvalue().decode() == ("Caf\\xe9\n" if is_terminal else "Café\n")
    streams.make_writable(io.StringIO())
