"""The same answer twice: equal runs in two processes, and `verify`, which scores one again."""

import json
import shutil
import signal
from pathlib import Path

import pytest
import yaml
from support.inputs import FEW

from lora_hf import cli
from lora_hf.doctor import RUN, of_run

SETTINGS = """data.max_train_samples=24 data.max_eval_samples=4 data.max_test_samples=6
generation.max_new_tokens=12 training.max_steps=4 training.disable_tqdm=true training.eval_strategy=no
training.save_strategy=no retention={}""".split()


def training(folder):
    return ["train", "--config", "configs/quickstart.yaml", f"output_dir={folder}", *SETTINGS]


@pytest.fixture(scope="module", autouse=True)
def keep_the_handler():
    before = signal.getsignal(signal.SIGTERM)
    yield
    signal.signal(signal.SIGTERM, before)


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    folder = tmp_path_factory.mktemp("runs") / "first"
    assert cli.run(training(folder), debug=False) == 0
    return folder


@pytest.fixture
def run(trained, tmp_path):
    return Path(shutil.copytree(trained, tmp_path / "run"))


def results(run):
    return json.loads((run / "results.json").read_text())


def faults(run):
    return {finding.check: finding.title for finding in of_run(run) if finding.state == "fault"}


@pytest.mark.slow
def test_the_same_run_in_another_process_writes_the_same_bytes(trained, warm_python, tmp_path):
    second = tmp_path / "second"
    done = warm_python.run(["-m", "lora_hf", *training(second)])
    assert done.returncode == 0, done.stderr
    assert results(second)["sha256"] == results(trained)["sha256"]
    assert {"adapter/adapter_model.safetensors", "predictions.jsonl"} <= results(trained)["sha256"].keys()
    for name in ("rouge1", "rouge2", "rougeL", "rougeLsum", "train_loss"):
        assert results(second)[name] == results(trained)[name]


def test_verify_of_an_unchanged_run_finds_no_fault(run, capsys):
    status = cli.run(["verify", str(run), "--json"], debug=False)
    out = capsys.readouterr().out
    report = json.loads(out)
    assert status == 0 and report["fault"] == report["unknown"] == 0, out
    assert {finding["check"] for finding in report["findings"]} == set(RUN)
    assert "all 6 summaries are the same when generated again" in out


def test_a_changed_weight_is_seen_by_its_hash_and_by_what_it_writes(run):
    file = run / "adapter/adapter_model.safetensors"
    held = bytearray(file.read_bytes())
    held[-2000:] = b"\x42" * 2000  # finite numbers, of other sizes
    file.write_bytes(held)
    found = faults(run)
    assert "adapter/adapter_model.safetensors" in found["files"] and {"files", "trained"} <= found.keys()


def test_a_changed_score_is_seen(run):
    (run / "results.json").write_text(json.dumps(results(run) | {"rougeL": 0.99}))
    assert "rougeL 0.99 ->" in faults(run)["scores"] and "scoring" in faults(run)


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        ({"rougeL": None}, "is not a record of a run: rougeL=None"),
        ({"rouge2": "x"}, "is not a record of a run: rouge2='x'"),
        ({"rouge1_interval": [0.1, 0.2]}, "rouge1_interval [0.1, 0.2] ->"),
        ({"mean_words": 3.0}, "mean_words 3.0 ->"),
    ],
)
def test_what_cannot_be_compared_or_differs_in_the_record_is_a_fault(run, change, expected):
    (run / "results.json").write_text(json.dumps(results(run) | change))
    assert expected in " ".join(faults(run).values())


def test_weights_that_the_run_has_not_recorded_are_a_fault(run):
    (run / "adapter/adapter_model.bin").write_bytes(b"x")
    assert faults(run)["files"] == "not recorded by the run: adapter/adapter_model.bin"


def test_of_several_runs_one_that_has_not_ended_is_a_fault(run):
    shutil.copytree(run, run.parent / "several/whole")
    shutil.copytree(run, run.parent / "several/cut").joinpath("results.json").unlink()
    assert faults(run.parent / "several") == {"record": "cut: it has not finished: results.json is missing"}


def test_a_changed_summary_is_seen(run):
    file = run / "predictions.jsonl"
    first, *rest = file.read_text().splitlines()
    file.write_text("\n".join([json.dumps(json.loads(first) | {"prediction": "Other."}), *rest]) + "\n")
    found = faults(run)
    assert (
        "predictions.jsonl" in found["files"]
        and "1 of 6 summaries differ from the recorded ones" in found["scoring"]
    )


def test_missing_and_torn_files_are_faults(run, capsys):
    (run / "predictions.jsonl").unlink()
    assert {"files", "scores"} <= faults(run).keys()
    (run / "results.json").write_text("{")
    assert cli.run(["verify", str(run)], debug=False) == 1
    assert "not readable as JSON" in capsys.readouterr().out.replace("\n", " ")


def change_weights(run):
    file = run / "adapter/adapter_model.safetensors"
    file.write_bytes(file.read_bytes()[:-2000] + b"\x42" * 2000)


DAMAGES = {
    "changed weights": change_weights,
    "lost weights": lambda run: shutil.rmtree(run / "adapter"),
    "a torn record": lambda run: (run / "results.json").write_text("{"),
    "no predictions": lambda run: (run / "predictions.jsonl").unlink(),
    "a changed config": lambda run: (run / "config.yaml").write_text("lora: {r: x}"),
}


@pytest.mark.slow
@pytest.mark.parametrize("damage", DAMAGES)
def test_the_remedy_in_the_report_repairs_the_run(run, damage):
    DAMAGES[damage](run)
    found = [finding for finding in of_run(run) if finding.state == "fault"]
    for finding in found:
        assert "rerun its command" in finding.remedy, finding
    words = ["overwrite=true"] if any("overwrite=true" in finding.remedy for finding in found) else []
    for name in ("results.json", "training.json"):
        if any(name in finding.remedy for finding in found):
            (run / name).unlink(missing_ok=True)
    assert cli.run([*training(run), *words], debug=False) == 0
    assert not faults(run)


def write_splits(folder, summary):
    folder.mkdir(exist_ok=True)
    for split in ("train", "validation", "test"):
        rows = [{"dialogue": f"A: {split} {i}? B: yes.", "summary": summary.format(i)} for i in range(3)]
        (folder / f"{split}.jsonl").write_text("\n".join(map(json.dumps, rows)))


@pytest.mark.slow
def test_changed_data_is_seen(tmp_path):
    write_splits(tmp_path / "mine", "{} is meant.")
    words = ["train", "--config", "configs/quickstart.yaml", *FEW, "method=base"]
    words += [f"data.dataset_name={tmp_path / 'mine'}", f"output_dir={tmp_path / 'run'}"]
    assert cli.run(words, debug=False) == 0
    assert not faults(tmp_path / "run")
    write_splits(tmp_path / "mine", "{} is another.")
    assert "data" in faults(tmp_path / "run")
    assert cli.run([*words, "overwrite=true"], debug=False) == 0
    assert not faults(tmp_path / "run")


def test_another_base_is_seen(run):
    record = results(run) | {"base_fingerprint": "0" * 16}  # as if the run had been on another one
    (run / "results.json").write_text(json.dumps(record))
    assert "0" * 16 in faults(run)["model"]


def test_without_the_base_the_data_is_not_checked(run):
    held = yaml.safe_load((run / "config.yaml").read_text())
    held["model"]["model_name_or_path"] = "./base"  # a path of the folder in which the run was started
    (run / "config.yaml").write_text(yaml.safe_dump(held))
    found = {finding.check: (finding.state, finding.title) for finding in of_run(run)}
    assert found["data"] == (
        "unknown",
        "not checked: it needs the tokenizer of the base model, which cannot be loaded",
    )
    assert (
        found["model"][0] == "fault" and f"begins at the current folder, '{Path.cwd()}'" in found["model"][1]
    )


def test_a_folder_of_several_runs_names_each_and_one_of_none_is_refused(run, tmp_path, capsys):
    shutil.copytree(run, tmp_path / "both/lora")
    shutil.copytree(run, tmp_path / "both/other")
    titles = [finding.title for finding in of_run(tmp_path / "both")]
    assert {title.split(":")[0] for title in titles} == {"lora", "other"}
    assert cli.run(["verify", str(tmp_path / "nothing")], debug=False) == 2
    assert "nothing holds no finished run" in capsys.readouterr().err
