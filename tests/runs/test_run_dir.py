"""The run directory: equal inputs go on or are left, other inputs stop, `overwrite` removes only its own."""

import json
import shutil
from itertools import product

import pytest
import yaml

import lora_hf
from lora_hf.config import METHOD_CHOICES, RunConfig
from lora_hf.config.load import load_config
from lora_hf.doctor.runs import model
from lora_hf.errors import UserError
from lora_hf.models.load import ASSETS
from lora_hf.run_files import ADAPTER, CONFIG, INPUTS, OWN, PREDICTIONS, RESULTS
from lora_hf.run_records import folder_bytes, read_predictions, read_record
from lora_hf.runs.run_dir import RunDirectory, inputs_of

TRAINED = {*METHOD_CHOICES} - {"base"}
HASHES = {"data": "d1", "model": "m1"}


def run_of(folder, **fields):
    return RunDirectory(RunConfig.model_validate({"output_dir": str(folder), **fields}))


def finished(folder, **fields):
    """A run that has all a run leaves, and a file of somebody else's in its folder."""
    run = run_of(folder, **fields)
    run.prepare(HASHES)
    for name in ("adapter", "checkpoints/checkpoint-2"):
        (folder / name).mkdir(parents=True)
        (folder / name / "weights").write_text("w")
    for name in ("training.json", "predictions.jsonl", "results.json"):
        (folder / name).write_text("{}\n")
    (folder / "notes.txt").write_text("mine")
    return run


def snapshot(folder):
    return {str(p.relative_to(folder)): p.stat().st_mtime_ns for p in folder.rglob("*") if p.is_file()}


def test_the_same_inputs_leave_a_finished_run_untouched(tmp_path):
    finished(tmp_path)
    before = snapshot(tmp_path)
    again = run_of(tmp_path, overwrite=True, training={"logging_steps": 7})  # neither changes the outcome
    again.check()
    again.prepare(HASHES)
    assert again.results() == {}
    assert snapshot(tmp_path) == before


def test_an_interrupted_run_is_gone_on_with(tmp_path):
    finished(tmp_path)
    (tmp_path / RESULTS).unlink()
    again = run_of(tmp_path)
    again.prepare(HASHES)
    assert again.results() is None
    assert (tmp_path / "checkpoints/checkpoint-2/weights").exists()


def test_changed_fields_are_named_and_nothing_is_touched(tmp_path):
    finished(tmp_path, lora={"r": 16})
    before = snapshot(tmp_path)
    other = run_of(tmp_path, lora={"r": 4}, training={"max_steps": 3}, seed=7)
    for look in (other.check, lambda: other.prepare(HASHES)):
        with pytest.raises(UserError) as error:
            look()
        assert str(error.value) == (
            f"output_dir='{tmp_path}' holds a run with other inputs (lora.r: 16 -> 4; training.max_steps: "
            "(not set) -> 3; seed: 42 -> 7); choose another output_dir, or add overwrite=true to replace it"
        )
    assert snapshot(tmp_path) == before


def test_auto_equals_the_default_targets_that_an_older_run_names(tmp_path):
    """The embedded model is a T5."""
    finished(tmp_path, lora={"target_modules": ["q", "v"]})
    run_of(tmp_path).prepare(HASHES)
    assert (tmp_path / RESULTS).exists()
    with pytest.raises(UserError, match=r"lora.target_modules: \[q, v\] -> \[q, k\]"):
        run_of(tmp_path, lora={"target_modules": ["q", "k"]}).check()


def test_the_same_config_over_other_data_or_another_model_is_another_run(tmp_path):
    finished(tmp_path)
    before = snapshot(tmp_path)
    with pytest.raises(UserError, match=r"other inputs \(data: 'd1' -> 'd2'\)"):
        run_of(tmp_path).prepare({**HASHES, "data": "d2"})
    assert snapshot(tmp_path) == before
    run_of(tmp_path, overwrite=True).prepare({**HASHES, "model": "m2"})
    assert not (tmp_path / RESULTS).exists() and read_record(tmp_path / INPUTS)["model"] == "m2"


def test_overwrite_removes_what_a_run_writes_and_nothing_else(tmp_path):
    finished(tmp_path)
    other = run_of(tmp_path, lora={"r": 4}, overwrite=True)
    other.check()
    assert (tmp_path / RESULTS).exists()  # looking clears nothing
    other.prepare(HASHES)
    assert sorted(p.name for p in tmp_path.iterdir()) == [CONFIG, INPUTS, "notes.txt"]
    assert yaml.safe_load((tmp_path / CONFIG).read_text())["lora"]["r"] == 4


def test_a_kill_while_clearing_leaves_no_results_under_a_config_that_did_not_make_them(tmp_path, monkeypatch):
    finished(tmp_path)
    monkeypatch.setattr("shutil.rmtree", lambda path: (_ for _ in ()).throw(KeyboardInterrupt))
    with pytest.raises(KeyboardInterrupt):
        run_of(tmp_path, lora={"r": 4}, overwrite=True).prepare(HASHES)
    assert not (tmp_path / RESULTS).exists()
    assert (tmp_path / CONFIG).exists()  # still the old one: the same command clears the rest
    monkeypatch.undo()
    run_of(tmp_path, lora={"r": 4}, overwrite=True).prepare(HASHES)
    assert not (tmp_path / ADAPTER).exists()


def test_a_folder_of_other_things_is_left_alone_unless_told_to_write_beside_them(tmp_path):
    (tmp_path / "thesis.tex").write_text("mine")
    with pytest.raises(UserError, match=r"holds \['thesis.tex'\] but no run; .* overwrite=true"):
        run_of(tmp_path).check()
    run_of(tmp_path, overwrite=True).prepare(HASHES)
    assert (tmp_path / "thesis.tex").read_text() == "mine"


def test_a_folder_of_several_runs_is_called_so(tmp_path):
    """`train` after `compare` with the same folder used to say that it holds no run."""
    (tmp_path / "comparison.json").write_text("{}")
    for name in ("base", "lora"):
        (tmp_path / name).mkdir()
        (tmp_path / name / CONFIG).write_text("")
    with pytest.raises(UserError, match=r"holds several runs, each in a folder of its own \(base, lora\);"):
        run_of(tmp_path).check()


@pytest.mark.parametrize("name", [name for name in OWN if name != CONFIG])
def test_files_under_a_runs_names_that_no_config_explains_are_never_taken_nor_removed(tmp_path, name):
    (tmp_path / name).mkdir()
    for overwrite in (False, True):
        with pytest.raises(UserError, match=f"'{name}'.* but no config.yaml that says what made them"):
            run_of(tmp_path, overwrite=overwrite).check()
    assert (tmp_path / name).exists()


def test_a_file_is_no_directory(tmp_path):
    (tmp_path / "file").write_text("x")
    with pytest.raises(UserError, match="is a file"):
        run_of(tmp_path / "file").check()
    with pytest.raises(UserError, match="output_dir='.*file/run' cannot be written: Not a directory"):
        run_of(tmp_path / "file" / "run").prepare(HASHES)


def test_a_config_that_cannot_be_read_stops_and_overwrite_replaces_it(tmp_path):
    finished(tmp_path)
    (tmp_path / CONFIG).write_text("method: lora\nno_such_field: 3\n")
    with pytest.raises(UserError, match="config.yaml is not readable"):
        run_of(tmp_path).check()
    run_of(tmp_path, overwrite=True).prepare(HASHES)
    assert load_config(tmp_path / CONFIG).method == "lora"


@pytest.mark.parametrize(
    ("name", "damage"),
    [*product((INPUTS, RESULTS), (b"{", b"[]", b"\xff", b"[" * 10**5)), (INPUTS, b'{"processes": "x"}')],
)
def test_a_record_that_cannot_be_read_stops_and_overwrite_replaces_it(tmp_path, name, damage):
    finished(tmp_path)
    (tmp_path / name).write_bytes(damage)
    with pytest.raises(UserError, match="holds a run with other inputs"):
        run_of(tmp_path).check()
    run_of(tmp_path, overwrite=True).prepare(HASHES)
    assert read_record(tmp_path / INPUTS) == HASHES and not (tmp_path / RESULTS).exists()


@pytest.mark.parametrize("damage", ["{", "[]", '{"prediction": 3}', "[" * 10**5])
def test_predictions_that_cannot_be_read_are_one_error(tmp_path, damage):
    (tmp_path / PREDICTIONS).write_text(damage)
    with pytest.raises(UserError, match=r"predictions.jsonl: line 1: .*; restore the file, or delete"):
        read_predictions(tmp_path)


def test_the_stored_config_repeats_the_run_and_does_not_overwrite_unasked(tmp_path):
    run = run_of(tmp_path, lora={"r": 3}, training={"max_steps": 5, "learning_rate": 5e-4}, overwrite=True)
    run.prepare(HASHES)
    stored = load_config(tmp_path / CONFIG)
    assert stored == run.config.model_copy(update={"overwrite": False})
    RunDirectory(stored).check()


@pytest.mark.parametrize(
    ("change", "touched"),
    [
        ({"lora": {"r": 4}}, {"lora"}),
        ({"bottleneck": {"bottleneck_dim": 4}}, {"bottleneck"}),
        ({"prompt_tuning": {"num_virtual_tokens": 4}}, {"prompt_tuning"}),
        ({"training": {"learning_rate": 1e-5}}, TRAINED),
        ({"training": {"logging_steps": 3, "report_to": "none", "save_total_limit": 1}}, set()),
        ({"arms": {"full": {"training": {"learning_rate": 1e-5}}}}, {"full"}),
        ({"seed": 1}, TRAINED),
        ({"loraplus_lr_ratio": 16}, {"lora"}),
        (
            {"early_stopping_patience": 2, "training": {"load_best_model_at_end": True}},
            TRAINED,
        ),
        ({"generation": {"num_beams": 2}}, {*METHOD_CHOICES}),
        ({"data": {"prompt": "plain"}}, {*METHOD_CHOICES}),
        ({"output_dir": "elsewhere", "overwrite": True, "seeds": [42, 1]}, set()),
    ],
)
def test_a_change_touches_only_the_arms_whose_outcome_depends_on_it(change, touched):
    def inputs(**fields):
        config = RunConfig.model_validate(fields)
        return {m: inputs_of(config.for_run(m, config.seed, "x")) for m in METHOD_CHOICES}

    before, after = inputs(), inputs(**change)
    assert {method for method in before if before[method] != after[method]} == touched


def test_bytes_on_disk_are_those_of_all_files_below(tmp_path):
    (tmp_path / "a" / "b").mkdir(parents=True)
    (tmp_path / "a" / "x").write_bytes(b"123")
    (tmp_path / "a" / "b" / "y").write_bytes(b"4567")
    assert folder_bytes(tmp_path / "a") == 7
    assert folder_bytes(tmp_path / "none") == 0


def test_a_record_is_read_or_absent(tmp_path):
    assert read_record(tmp_path / RESULTS) is None
    (tmp_path / RESULTS).write_text(json.dumps({"rouge1": 0.5}))
    assert read_record(tmp_path / RESULTS) == {"rouge1": 0.5}


def test_a_base_with_another_config_or_tokenizer_is_another_run(tmp_path, caplog):
    base = shutil.copytree(ASSETS, tmp_path / "base")
    fields = {
        "output_dir": str(tmp_path / "run"),
        "model": {"model_name_or_path": str(base)},
        "data": {"max_train_samples": 4, "max_eval_samples": 2, "max_test_samples": 2},
        "training": {"max_steps": 1, "save_strategy": "no"},
        "generation": {"max_new_tokens": 4},
    }
    lora_hf.train(fields)
    settings = {file: json.loads((base / file).read_text()) for file in ("config.json", "tokenizer.json")}

    def write(file, **changed):
        (base / file).write_text(json.dumps(settings[file] | changed, indent=1))

    def said_by_loading():
        caplog.clear()
        lora_hf.load(tmp_path / "run")
        return [text for text in caplog.messages if "has changed since the adapter was trained" in text]

    truncation = {"direction": "Right", "max_length": 9, "strategy": "LongestFirst", "stride": 0}
    write("tokenizer.json", truncation=truncation)  # what any call replaces
    write("config.json", transformers_version="4.57.0", dtype="bfloat16")
    lora_hf.train(fields)
    assert not said_by_loading()
    others = {
        "config.json": {"layer_norm_epsilon": 0.1},
        "tokenizer.json": {"normalizer": {"type": "Lowercase"}},
    }
    for file, changed in others.items():
        write(file, **changed)
        with pytest.raises(UserError, match=r"other inputs \(config and tokenizer of the model: "):
            lora_hf.train(fields)
        assert len(said_by_loading()) == 1
        found = model(load_config(tmp_path / "run/config.yaml"), read_record(tmp_path / "run" / RESULTS))
        assert any(f"the config and tokenizer of {base} has changed" in str(finding) for finding in found)
        write(file)
    lora_hf.train(fields)
