"""After a kill, a full disk or an unwritable place, earlier files of a run are left and it can resume."""

import errno
import json
import logging
import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from support.disks import full_disk, read_only
from support.inputs import FEW
from support.resuming import assert_equal, trainer_of

from lora_hf import cli, files
from lora_hf.config import RunConfig
from lora_hf.errors import NotWritten, UserError
from lora_hf.experiments.runner import check_root, run_process
from lora_hf.files import PARTIAL, file_sha256, whole, whole_output, write_json, write_text
from lora_hf.run_files import ADAPTER, CHECKPOINTS, CONFIG, RESULTS
from lora_hf.runs.lock import run_lock
from lora_hf.runs.run_dir import RunDirectory
from lora_hf.training.checkpoints import last_checkpoint

ROOT = Path(__file__).parents[2]


def held(folder):
    return {str(p.relative_to(folder)): p.read_bytes() for p in folder.rglob("*") if p.is_file()}


def test_a_file_and_a_folder_are_there_whole_or_as_they_were(tmp_path):
    file, folder = tmp_path / "a.json", tmp_path / "adapter"
    write_text(file, "old")
    with whole(folder) as beside:
        write_text(beside / "weights", "old")
    before = held(tmp_path)
    for place in (file, folder):
        with pytest.raises(KeyboardInterrupt), whole(place) as beside:
            write_text(beside / "weights" if place == folder else beside, "half")
            assert held(tmp_path).items() > before.items()
            raise KeyboardInterrupt
        assert held(tmp_path) == before
    write_text(file, "new")
    with whole(folder) as beside:
        write_text(beside / "other", "new")
    assert held(tmp_path) == {"a.json": b"new", "adapter/other": b"new"}


def test_what_a_kill_left_beside_is_nobody_s(tmp_path):
    """The first file of a run or of a study, or the journal of a search, half-written."""
    run = RunConfig.model_validate({"output_dir": str(tmp_path / "lora")})
    (tmp_path / "lora").mkdir()
    (tmp_path / "lora" / f"{PARTIAL}{CONFIG}").write_text("meth")
    RunDirectory(run).check()
    for name in (f"{PARTIAL}sweep.json", "sweep.db", "sweep.db-journal"):
        (tmp_path / name).write_text("{")
    check_root(run, ("lora",), "sweep")
    (tmp_path / "notes.txt").write_text("mine")
    with pytest.raises(UserError, match="notes.txt"):
        check_root(run, ("lora",), "sweep")


def test_overwriting_clears_what_a_kill_left(tmp_path):
    RunDirectory(RunConfig.model_validate({"output_dir": str(tmp_path)})).prepare({"data": "1"})
    (tmp_path / f"{PARTIAL}{ADAPTER}").mkdir()
    other = RunConfig.model_validate({"output_dir": str(tmp_path), "seed": 7, "overwrite": True})
    RunDirectory(other).prepare({"data": "1"})
    assert not list(tmp_path.glob(f"{PARTIAL}*"))


HOLDER = """
import sys, time
from pathlib import Path
from lora_hf.runs.lock import run_lock
with run_lock(Path(sys.argv[1])):
    print("held", flush=True)
    time.sleep(60)
"""


def test_a_second_process_of_a_run_waits_until_the_first_is_killed(tmp_path, caplog, monkeypatch):
    monkeypatch.setattr(logging.getLogger("lora_hf"), "propagate", True)
    entered = threading.Event()

    def second():
        with run_lock(tmp_path / "run"):
            entered.set()

    with subprocess.Popen(
        [sys.executable, "-c", HOLDER, str(tmp_path / "run")], stdout=subprocess.PIPE, text=True
    ) as holder:
        assert holder.stdout is not None and holder.stdout.readline() == "held\n"
        thread = threading.Thread(target=second)
        thread.start()
        assert not entered.wait(0.3)
        holder.kill()
    assert entered.wait(5)
    thread.join()
    assert f"{tmp_path / 'run'}: another process is running this; waiting for it to end" in caplog.text
    assert held(tmp_path) == {}  # the lock is on the folder: it leaves no file


WRITER = """
import sys
from pathlib import Path
from lora_hf.files import whole_output
with whole_output(Path(sys.argv[1])) as folder:
    folder.mkdir()
    (folder / "a").write_text("first")
    print("held", flush=True)
    sys.stdin.read()
"""


@pytest.mark.parametrize("is_killed", [True, False])
def test_of_two_processes_that_write_one_folder_the_second_waits(is_killed, tmp_path, caplog, monkeypatch):
    """And finds the folder taken, unless the first was killed: `merge -o m` twice left half a folder."""
    monkeypatch.setattr(logging.getLogger("lora_hf"), "propagate", True)
    output, ended = tmp_path / "m", []

    def second():
        try:
            with whole_output(output) as folder:
                folder.mkdir()
                (folder / "b").write_text("second")
        except UserError as error:
            ended.append(str(error))

    words = [sys.executable, "-c", WRITER, str(output)]
    with subprocess.Popen(words, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as first:
        assert first.stdout is not None and first.stdout.readline() == "held\n"
        thread = threading.Thread(target=second)
        thread.start()
        thread.join(0.3)
        assert thread.is_alive() and not output.exists()
        first.kill() if is_killed else first.communicate("")
    thread.join()
    assert "another process is running this; waiting for it to end" in caplog.text
    assert [file.name for file in output.iterdir()] == (["b"] if is_killed else ["a"])
    assert bool(ended) != is_killed and all("is not empty; nothing is overwritten" in text for text in ended)
    assert held(tmp_path).keys() == {f"m/{file.name}" for file in output.iterdir()}  # no hidden files


def test_a_run_on_a_read_only_disk_is_locked_too(tmp_path, caplog):
    with full_disk(tmp_path / "disk", 64):
        (tmp_path / "disk" / "run").mkdir()
        with read_only(tmp_path / "disk"), run_lock(tmp_path / "disk" / "run"):
            pass
    assert not caplog.text


def test_a_file_system_without_locks_is_used_unlocked(tmp_path, caplog, monkeypatch):
    def refuse(*args, **kwargs):
        raise OSError(errno.ENOLCK, os.strerror(errno.ENOLCK))

    monkeypatch.setattr(files, "lock_descriptor", refuse)
    monkeypatch.setattr(logging.getLogger("lora_hf"), "propagate", True)
    with caplog.at_level(logging.INFO, "lora_hf"), run_lock(tmp_path / "run"):
        assert "not locked against other processes: No locks available" in caplog.text


def test_a_run_whose_parent_is_killed_is_told_to_stop(tmp_path):
    if sys.platform != "linux":
        pytest.skip("the system tells a process of its parent's end on Linux alone")
    code = "import os, sys, time; open(sys.argv[1], 'w').write(str(os.getpid())); time.sleep(900)"
    parent = os.fork()
    if parent == 0:
        run_process([sys.executable, "-c", code, str(tmp_path / "pid")])
        os._exit(0)
    until = time.monotonic() + 300
    while not (tmp_path / "pid").exists() or not (tmp_path / "pid").read_text():
        assert time.monotonic() < until
        time.sleep(0.01)
    os.kill(parent, signal.SIGKILL)
    os.waitpid(parent, 0)
    child = int((tmp_path / "pid").read_text())
    status = Path(f"/proc/{child}/status")
    while status.exists() and "State:\tZ" not in status.read_text():
        assert time.monotonic() < until
        time.sleep(0.01)
    assert time.monotonic() < until


@pytest.mark.parametrize("kib", [110, *(pytest.param(kib, marks=pytest.mark.slow) for kib in (60, 150, 190))])
def test_a_disk_that_is_full_costs_no_checkpoint_and_with_room_it_goes_on(kib, tmp_path):
    whole_run = trainer_of(tmp_path / "whole")
    whole_run.train()
    with full_disk(tmp_path / "disk", kib) as more_room:
        trainer = trainer_of(tmp_path / "disk")
        with pytest.raises(NotWritten, match="No space left on device"):
            trainer.train()
        found = [p.name for p in (tmp_path / "disk").iterdir()]
        assert set(found) <= {"checkpoint-4", "checkpoint-8"} and len(found) < 3
        last = last_checkpoint(tmp_path / "disk")
        assert (last is None) == (found == [])
        more_room(1000)
        again = trainer_of(tmp_path / "disk")
        again.train(resume_from_checkpoint=str(last)) if last else again.train()
        assert_equal(again, whole_run)


def test_weights_larger_than_the_disk_s_room_are_the_same_error(tmp_path):
    """Safetensors has an exception of its own, and frees what it had written: there is room for a probe."""
    with full_disk(tmp_path / "disk", 3000):
        file = tmp_path / "disk" / "model.safetensors"
        with pytest.raises(NotWritten) as caught, whole(file) as beside:
            save_file({"weight": torch.zeros(2**21)}, beside)
        assert caught.value.errno == errno.ENOSPC and caught.value.filename == str(file)
        assert not list((tmp_path / "disk").iterdir())


def test_small_files_on_a_full_disk_stay_as_they_were(tmp_path):
    with full_disk(tmp_path / "disk", 64):
        file = tmp_path / "disk" / "record.json"
        write_json(file, {"old": 1})
        with pytest.raises(NotWritten) as caught:
            write_json(file, {"new": "x" * 2**17})
        assert caught.value.errno == errno.ENOSPC and caught.value.filename == str(file)
        assert held(tmp_path / "disk") == {"record.json": b'{\n  "old": 1\n}\n'}


def test_a_disk_that_cannot_be_written_is_one_error_and_untouched(tmp_path):
    config = RunConfig.model_validate({"output_dir": str(tmp_path / "disk" / "run")})
    with full_disk(tmp_path / "disk", 200) as _:
        (tmp_path / "disk" / "notes").write_text("mine")
        with read_only(tmp_path / "disk"):
            with (
                pytest.raises(UserError, match="cannot be written: Read-only file system"),
                run_lock(Path(config.output_dir)),
            ):
                pytest.fail("it has begun")
            with pytest.raises(NotWritten, match="Read-only file system"):
                write_text(tmp_path / "disk" / "x.md", "x")
        assert held(tmp_path / "disk") == {"notes": b"mine"}


def test_a_place_below_a_file_is_one_error(tmp_path):
    (tmp_path / "file").write_text("mine")
    with pytest.raises(UserError, match="output_dir=.*cannot be written: Not a directory"):
        with run_lock(tmp_path / "file" / "run"):
            pytest.fail("it has begun")
    assert held(tmp_path) == {"file": b"mine"}


def test_the_command_ends_in_one_message_without_a_traceback(monkeypatch, capsys):
    def full(*command):
        raise NotWritten(errno.ENOSPC, os.strerror(errno.ENOSPC), "runs/a/checkpoints/checkpoint-4")

    monkeypatch.setattr(cli, "invoke", full)
    before = signal.getsignal(signal.SIGTERM)
    try:
        assert cli.run(["train"], debug=False) == 1
    finally:
        signal.signal(signal.SIGTERM, before)
    (line,) = capsys.readouterr().err.splitlines()
    expected = "error: runs/a/checkpoints/checkpoint-4 cannot be written: No space left on device; "
    assert line.startswith(expected) and "rerun the command" in line


@pytest.mark.slow
def test_a_run_on_a_full_disk_goes_on_by_the_same_command_once_there_is_room(tmp_path):
    config = tmp_path / "run.yaml"
    config.write_text("lora: {r: 4, lora_alpha: 8}\ntraining: {learning_rate: 5.0e-3}\n")
    words = [sys.executable, "-m", "lora_hf", "train", "--config", str(config), *FEW]
    words += ["training.max_steps=8", "training.save_strategy=steps", "training.save_steps=2"]

    def run(folder):
        return subprocess.run([*words, f"output_dir={folder}"], capture_output=True, text=True, cwd=ROOT)

    with full_disk(tmp_path / "disk", 400) as more_room:
        done = run(tmp_path / "disk" / "run")
        (error,) = [line for line in done.stderr.splitlines() if line.startswith("error: ")]
        assert done.returncode == 1 and "Traceback" not in done.stderr, done.stderr
        assert "checkpoint-" in error and "No space left on device" in error
        last = last_checkpoint(tmp_path / "disk" / "run" / CHECKPOINTS)
        assert last is not None
        more_room(4000)
        assert run(tmp_path / "disk" / "run").returncode == 0
        record = json.loads((tmp_path / "disk" / "run" / RESULTS).read_text())
        assert record["resumed_at_step"] == int(last.name.removeprefix("checkpoint-")) < 8
        assert run(tmp_path / "whole").returncode == 0
        weights = Path(ADAPTER) / "adapter_model.safetensors"
        assert file_sha256(tmp_path / "disk" / "run" / weights) == file_sha256(tmp_path / "whole" / weights)
