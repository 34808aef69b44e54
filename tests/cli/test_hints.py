"""Almost right command lines end in one error with the words that would do."""

import json
import re
import shutil
from pathlib import Path

import pytest
from support.selection import slow_except

from lora_hf import LoraConfig, ModelConfig, cli, inject_adapters, load_model, save_adapter
from lora_hf.adapters.saved_adapter import SavedAdapter
from lora_hf.cli.hints import as_arguments
from lora_hf.config.load import load_config
from lora_hf.errors import UserError, is_windows_path, path_hint
from lora_hf.saved.find_adapter import find_adapter

ADAPTER_FILES = ("adapter_config.json", "adapter_model.safetensors", "lora_hf.json")


@pytest.fixture(autouse=True)
def _in_a_folder_of_its_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def said(capsys: pytest.CaptureFixture[str], *words: str) -> str:
    assert cli.run(list(words), debug=False) == 2
    out, err = capsys.readouterr()
    found = re.fullmatch(r"(model: .*\n)?(error: .*)\n(help: .*docs/troubleshooting\.md#.*\n)?", err)
    assert found and not out, err
    return found[2]


@pytest.mark.parametrize(
    ("line", "hint"),
    [
        ("train --config quickstart --learning_rate 1e-3", "without dashes: training.learning_rate=1e-3"),
        ("train --config quickstart --learning-rate=1e-3", "without dashes: training.learning_rate=1e-3"),
        ("train --config quickstart --lr 1e-3", "without dashes: training.learning_rate=1e-3"),
        ("train --learning_rate 1e-3", "without dashes: training.learning_rate=1e-3"),
        ("compare --config quickstart --lora.r 8", "without dashes: lora.r=8"),
        ("sweep --config quickstart --lora_r=8", "without dashes: lora.r=8"),
        ("train --config quickstart --output_dir x", "without dashes: output_dir=x"),
        ("train --config quickstart --model a/b", "without dashes: model.model_name_or_path=a/b"),
        ("train --config quickstart --overwrite", "without dashes: overwrite=VALUE"),
        (
            "evaluate --config quickstart --base a/b",
            "for another base model, write model.model_name_or_path=a/b; a merged, fully fine-tuned or "
            "exported model is given by --model a/b",
        ),
        ("evaluate", "Missing option '--config'; give a YAML file or the name of a shipped config"),
        ("evaluate --adapter user/name", "Missing option '--config'; give a YAML file or the name of a"),
        ("evaluate quickstart --adapter a", "'--config': write `lora-hf evaluate --config quickstart`"),
        ("train --config quickstart --zzz 1", "written as key=value, such as lora.r=8"),
        ("train --cfg quickstart", "--config"),
        ("predict talk.txt --adaptor x", "--adapter"),
        ("predict talk.txt --adapter x --num-beams 4", "write generation.num_beams=4, without dashes"),
        ("merge --adapter x -o y --num_beams=4", "write generation.num_beams=4, without dashes"),
        ("predict talk.txt --adapter x num_beams=4", "did you mean 'generation.num_beams'?"),
        ("predict talk.txt --adapter x data.path=y", "did you mean 'data.dataset_name'?"),
        ("train --config quickstart lora_r=4", "did you mean 'lora.r'?"),
        ("train quickstart", "write `lora-hf train --config quickstart`"),
        ("compare my.yaml lora.r=8", "write `lora-hf compare --config my.yaml`"),
        ("train lora.r=8", "(`--config quickstart`)"),
        ("merge run", "write --adapter run"),
        ("quickstart", "`lora-hf train --config quickstart`"),
        ("help", "`lora-hf --help`"),
        ("serve run", "--adapter NAME=DIR"),
        ("doctor quickstart", "`lora-hf doctor --config quickstart`"),
        ("doctor my.yaml", "`lora-hf doctor --config my.yaml`"),
        ("doctor lora.r=8", "add --config NAME"),
        ("train --config quickstrat", "did you mean 'quickstart'?"),
        ("train --config configs/quickstrat.yaml", "did you mean 'quickstart'?"),
        ("train --config zzzz", "the shipped configs: flan_t5_base_dialogsum_base, "),
        ("train --config quickstrat", "Shipped configs: flan_t5_base_dialogsum_base, "),
        ("train --config", "Shipped configs: flan_t5_base_dialogsum_base, "),
        ("sweep", "Shipped configs: flan_t5_base_dialogsum_base, "),
        ("compare", "or a model and data (`lora-hf compare MODEL DATA`). Shipped configs: flan_t5_base_"),
        ("train embedded ./none.csv", "'./none.csv': no such file"),
        ("init", "DATA is missing: give a file"),
        ("init --data embedded --columns text", "does not name two columns, such as text,title"),
        ("init --data embedded --task sumarization", "Did you mean 'summarization'?"),
        ("init --data embedded --method qlora", "--method 'qlora' is not one of lora, full"),
        (r"train --config C:\me\x.yaml", "'/mnt/c/me/x.yaml'"),
        ("train --config quickstart lora.r 8", "write lora.r=8 without spaces"),
        ("train --config quickstart lora.r = 8", "write lora.r=8 without spaces"),
        ("train --config quickstart lora.r:8", "did you mean 'lora.r=8'?"),
        ("train --config quickstart seeds=1,2,3", "write [1, 2, 3]"),
        ("train --config quickstart lora.r=4,8", "`lora-hf sweep`"),
        ("train --config quickstart method=qlora", "method: lora, with model.load_in_4bit: true"),
        ("train --config quickstart method=dora", "method: lora, with lora.use_dora: true"),
        ("train --config quickstart method=adapter", "write method: bottleneck"),
        ("train --config quickstart method=LoRA", "write method: lora"),
        ("train --config quickstart method=full-finetuning", "write method: full"),
        ("train --config quickstart method=Prompt-Tuning", "write method: prompt_tuning"),
        ("train --config quickstart lora.target_modules=q,v", "write [q, v]"),
        ("train --config quickstart lora.exclude_modules=wi,wo,", "write [wi, wo]"),
        ("train --config quickstart lora.target_modules=all_linear", "write all-linear"),
        (r"train --config quickstart output_dir=C:\runs\x", "'/mnt/c/runs/x'"),
        (
            "train --config quickstart model.model_name_or_path=https://huggingface.co/google/flan-t5-small",
            "write google/flan-t5-small",
        ),
        (
            "train --config quickstart model.model_name_or_path=https://hf.co/a/b/tree/v1?x=1",
            "write a/b, with model.revision=v1",
        ),
        (
            "train --config quickstart model.model_name_or_path=hf://a/b",
            "is not a name on the Hub: write a/b",
        ),
        ("train --config quickstart model.model_name_or_path=a/b@v1", "write a/b, with model.revision=v1"),
        (
            "train --config quickstart data.dataset_name=https://huggingface.co/datasets/a/b/tree/v1",
            "with data.dataset_revision=v1",
        ),
        (
            "train --config quickstart model.model_name_or_path=m.bin",
            "is a file: give the folder of the model",
        ),
        ("summarize talks.csv", "No such command 'summarize'. Did you mean 'predict'?"),
        ("fine-tune --config quickstart", "No such command 'fine-tune'. Did you mean 'train'?"),
        ("tune --config quickstart", "No such command 'tune'. Did you mean 'sweep'?"),
        ("score a.csv --num-beams 4", "No such option: --num-beams"),
        ("version", "No such command 'version'. Write `lora-hf --version`."),
        ("train --config quickstart --gpu 1", "the first GPU is used, or that of CUDA_VISIBLE_DEVICES=1"),
        ("train --config quickstart data.max_input_length=3", "did you mean 'data.max_source_length'?"),
        ("train --config quickstart training.packing=true", "rows are not joined"),
        ("predict a.txt --adapter runs/mine/checkpoints", "give the run that it is in, 'runs/mine'"),
        ("doctor --adapter runs/mine", "write the folder without an option: `lora-hf doctor runs/mine`"),
        ("train --data talks.csv", "; write `lora-hf train google/flan-t5-small talks.csv`"),
        ("compare --data=talks.csv --model embedded", "; write `lora-hf compare embedded talks.csv`"),
        ("init --base a/b", "No such option: --base. Did you mean --model?"),
        ("merge --adapter runs/mine --model a/b", "No such option: --model. Did you mean --base?"),
        ("merge --model runs/mine -o new", "No such option: --model; write --adapter runs/mine"),
        ("push --model=runs/mine --repo-id a/b", "No such option: --model; write --adapter runs/mine"),
        ("serve --model merged", "No such option: --model. Did you mean --base?"),
        (
            "export --adapter runs/mine -o new",
            "write the folder without an option: `lora-hf export runs/mine`",
        ),
        ("export --model merged -o new", "write the folder without an option: `lora-hf export merged`"),
        ("demo --base ct2", "write the folder without an option: `lora-hf demo ct2`"),
        ("report runs/mine/adapter", "give the run that it is in, 'runs/mine'"),
        ("train --config quickstart model=a/b", "write model: {model_name_or_path: a/b}"),
    ],
)
def test_a_command_line_that_is_almost_right_is_answered_with_the_right_one(
    line: str, hint: str, capsys: pytest.CaptureFixture[str]
) -> None:
    Path("run").mkdir()
    Path("m.bin").touch()
    Path("runs/mine/adapter").mkdir(parents=True)
    Path("runs/mine/checkpoints").mkdir()
    Path("runs/mine/config.yaml").touch()
    assert hint in said(capsys, *line.split(" "))
    assert sorted(entry.name for entry in Path().iterdir()) == ["m.bin", "run", "runs"]


def test_the_folder_of_a_run_s_adapter_leads_the_demo_to_the_run() -> None:
    from lora_hf.demo.models import find_runs

    adapter(Path("runs/mine/adapter"))
    Path("runs/mine/config.yaml").touch()
    with pytest.raises(UserError, match="give the run that it is in, 'runs/mine'"):
        find_runs(Path("runs/mine/adapter"))


def test_the_version_is_printed(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.run(["--version"], debug=False) == 0
    out = capsys.readouterr().out
    assert out.startswith("lora_hf ") and "torch " in out and "transformers " in out and "Python 3." in out


def test_a_prompt_in_braces_is_told_to_be_quoted() -> None:
    Path("x.yaml").write_text("data: {prompt: {dialogue}}")
    with pytest.raises(UserError, match="text in braces needs quotes: '{dialogue}'"):
        load_config("x.yaml")


def adapter(folder: Path, base: str = "embedded") -> Path:
    folder.mkdir(parents=True)
    for name in ADAPTER_FILES:
        (folder / name).write_text(json.dumps({"base_model_name_or_path": base}))
    return folder


def comparison() -> None:
    for method in ("lora", "base"):
        run = Path("runs/mine") / method
        adapter(run / "adapter") if method == "lora" else run.mkdir(parents=True)
        for file in ("config.yaml", "results.json"):
            (run / file).write_text(json.dumps({"method": method}))
    adapter(Path("runs/mine/lora/checkpoints/checkpoint-3"))


@pytest.mark.parametrize(
    ("name", "hint"),
    [
        ("runs/mine", "holds no adapter itself: give one of the folders in it, runs/mine/lora"),
        ("runs", "give one of the folders in it, runs/mine/lora"),
        (
            "runs/mine/lora/adapter/adapter_model.safetensors",
            "give the folder of the adapter, 'runs/mine/lora/adapter'",
        ),
        ("runs/mine/lora/results.json", "give the folder of the adapter, 'runs/mine/lora'"),
        ("talk.txt", "is a file: give the folder of the adapter"),
        ("runs/mine/base", "is a run of the base model, which has no adapter"),
        ("runs/stopped", "has not finished, and holds no adapter yet: rerun its command"),
        ("model", "is a whole model and not an adapter"),
        ("merged", "not an adapter: predict and evaluate take it by --model, and serve takes it by --base"),
        ("runs/mnie/lora", "Did you mean 'runs/mine/lora'?"),
        ("./runs/mine/lroa", "Did you mean 'runs/mine/lora'?"),
        (r"C:\Users\me\lora", "'/mnt/c/Users/me/lora'"),
        (r"runs\mine\lora", "'runs/mine/lora'"),
    ],
)
@pytest.mark.parametrize("command", ["doctor", "predict"])
def test_what_stands_beside_an_adapter_leads_to_it(
    command: str, name: str, hint: str, capsys: pytest.CaptureFixture[str]
) -> None:
    comparison()
    merged = ("merged/config.json", "merged/lora_hf.json")
    for file in ("talk.txt", "runs/stopped/config.yaml", "model/config.json", *merged):
        Path(file).parent.mkdir(exist_ok=True)
        Path(file).write_text("{}")
    words = {"doctor": ["doctor", name], "predict": ["predict", "talk.txt", "--adapter", name]}[command]
    told = said(capsys, *words)
    assert hint in told and ("--adapter '" not in told or command != "doctor")


@pytest.mark.parametrize(
    ("words", "hint"),
    [
        (["predict", "talk.txt"], "give --adapter DIR, or --model DIR for a whole model (merged,"),
        (
            ["predict", "talk.txt", "--base", "model"],
            "(merged, fully fine-tuned or exported), write --model model",
        ),
        (
            ["predict", "talk.txt", "--adapter", "a", "--model", "b"],
            "--adapter and --model: give one of them",
        ),
        (
            ["evaluate", "--config", "quickstart", "--adapter", "a", "--model", "b"],
            "--adapter and --model: give",
        ),
        (["predict", "talk.txt", "--model", "./none"], "--model './none': no such folder"),
        (
            ["predict", "talk.txt", "--model", "model", "--base", "t5"],
            "--base 't5' is for an adapter, and --model ",
        ),
    ],
)
def test_a_command_takes_an_adapter_or_a_whole_model(
    words: list[str], hint: str, capsys: pytest.CaptureFixture[str]
) -> None:
    Path("talk.txt").write_text("A: Hi")
    (Path("model")).mkdir()
    Path("model/config.json").write_text("{}")
    assert hint in said(capsys, *words)


def test_a_name_on_the_hub_is_still_looked_for_there_beside_a_folder_of_a_near_name() -> None:
    adapter(Path("anna/talk"))
    said = r"there is no such folder here \(did you mean 'anna/talk'\?\), and from the Hub it cannot be down"
    with pytest.raises(UserError, match=said):
        find_adapter("anna/talks")


def test_a_part_of_a_run_that_does_not_exist_is_answered_with_the_run() -> None:
    adapter(Path("talks/adapter"))
    with pytest.raises(
        UserError,
        match=r"--adapter 'talks/lora': there is no such folder here \(did you mean the run 'talks'",
    ):
        find_adapter("talks/lora")


@pytest.mark.parametrize(
    "base", slow_except([r"C:\models\t5"], ["/home/ann/models/t5", r"C:\models\t5", "models/t5"])
)
def test_a_base_path_of_another_machine_is_answered_with_the_option_that_replaces_it(
    base: str, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    source = tmp_path / "source"
    lora_hf_adapter(source)
    for name in ("adapter_config.json", "lora_hf.json"):
        fields = json.loads((source / name).read_text()) | {"base_model_name_or_path": base}
        (source / name).write_text(json.dumps(fields))
    Path("talk.txt").write_text("A: Hi")
    error = said(capsys, "predict", "talk.txt", "--adapter", str(source))
    assert "Name the base model on this machine: --base FOLDER or USER/NAME" in error
    assert cli.run(["predict", "talk.txt", "--adapter", str(source), "--base", "embedded"], False) == 0


def lora_hf_adapter(folder: Path) -> None:
    import lora_hf

    model = lora_hf.load_model(lora_hf.ModelConfig())
    lora_hf.save_adapter(lora_hf.inject_adapters(model, lora_hf.LoraConfig(r=2, lora_alpha=3)), folder)


@pytest.mark.parametrize("field", ["model.model_name_or_path", "data.dataset_name"])
@pytest.mark.parametrize("path", [r"C:\me\x", r"folder\x", r"..\x"])
def test_a_windows_path_in_a_config_is_not_looked_for_on_the_hub(
    field: str, path: str, capsys: pytest.CaptureFixture[str]
) -> None:
    error = said(capsys, "train", "--config", "quickstart", f"{field}={path}", "output_dir=out")
    assert f"{field}={path!r}: no such f" in error and "It is written as on Windows" in error
    assert not Path("out").exists()


def test_verify_of_an_adapter_names_its_run(capsys: pytest.CaptureFixture[str]) -> None:
    comparison()
    assert "give the run that it is in, 'runs/mine/lora'" in said(capsys, "verify", "runs/mine/lora/adapter")


def test_a_text_in_place_of_a_file_is_told_what_a_file_is(capsys: pytest.CaptureFixture[str]) -> None:
    comparison()
    assert "may be in a .txt file" in said(
        capsys, "predict", "A: Hi Bob. B: Hi!", "--adapter", "runs/mine/lora"
    )


def test_paths_that_exist_or_are_near_nothing_have_no_hint(tmp_path: Path) -> None:
    (tmp_path / "data").mkdir()
    assert path_hint(str(tmp_path / "data")) == path_hint(str(tmp_path / "zzz" / "x")) == ""
    for name in ("./zzz/x", "zzz.csv", "zzz/x.jsonl"):
        assert path_hint(name) == f" The path begins at the current folder, {str(Path.cwd())!r}."
    assert path_hint("acme/t5-v1.1") == path_hint("acme/talks") == ""
    assert path_hint(str(tmp_path / "daat")) == f" Did you mean {str(tmp_path / 'data')!r}?"
    assert not any(map(is_windows_path, ("a/b", "google/flan-t5-base", "./x", "C:x", "embedded")))
    shutil.rmtree(tmp_path / "data")


@pytest.mark.parametrize(
    ("line", "expected"),
    [
        ("predict x.txt --adapter a --adapter b", "--adapter a is not used, because --adapter b after it"),
        ("predict x.txt -o a --adapter b --output=c", "-o a is not used, because --output=c after it"),
        ("predict x.txt --adapter a --adapter=a", ""),
        ("score x.csv --reference a --reference b", ""),
    ],
)
def test_an_option_that_another_one_replaces_is_a_warning(
    line: str, expected: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert cli.run(line.split(), debug=False) == 2
    err = capsys.readouterr().err
    assert ("is not used" in err) is bool(expected) and expected in err


def test_a_tilde_is_the_user_s_folder_wherever_a_path_is_given(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    home = tmp_path / "home"
    home.mkdir()
    monkeypatch.setenv("HOME", str(home))
    (home / "a.yaml").write_text("output_dir: ~/run\ndata: {max_train_samples: 8}\n")
    rows = [f"A: Hi {number},Greets,Greets\n" for number in range(40)]
    (home / "talks.csv").write_text("dialogue,summary,prediction\n" + "".join(rows))
    assert load_config("~/a.yaml").output_dir == load_config({"output_dir": "~/run"}).output_dir
    assert load_config("~/a.yaml").output_dir == str(home / "run")
    assert cli.run(["score", "~/talks.csv", "--reference=summary"], debug=False) == 0
    capsys.readouterr()
    words = ["init", "--data=~/talks.csv", "--model=embedded", "--output=~/made.yaml", "--yes"]
    assert cli.run(words, debug=False) == 0
    assert (home / "made.yaml").is_file()
    model = load_model(ModelConfig())
    inject_adapters(model, LoraConfig(r=2))
    assert save_adapter(model, "~/adapter") == home / "adapter"
    assert SavedAdapter.at("~/adapter").folder == home / "adapter"
    assert [entry.name for entry in Path().iterdir()] == ["home"]


@pytest.mark.parametrize(
    ("as_yaml", "typed"),
    [
        ("Set data.delimiter: ';'", "Set 'data.delimiter=;'"),
        ("set data.escapechar: '\\', or", "set 'data.escapechar=\\', or"),
        ("set data.json_field: data.talks", "set data.json_field=data.talks"),
        ("set data.column_names: [id, text]; then", "set 'data.column_names=[id, text]'; then"),
        ("set data.encoding, such as x", "set data.encoding, such as x"),
    ],
)
def test_a_line_of_a_config_is_an_argument_that_a_shell_takes(as_yaml: str, typed: str) -> None:
    assert as_arguments(as_yaml) == typed
