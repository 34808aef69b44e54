"""Ends of commands, many in processes of their own: statuses, one message, Ctrl-C and a closed pipe."""

import fcntl
import io
import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from support.disks import full_disk, read_only
from support.inputs import FEW

from lora_hf import cli
from lora_hf.cli.exit_status import exit_status
from lora_hf.cli.streams import make_writable
from lora_hf.config import RunConfig
from lora_hf.errors import RunFailed

ROOT = Path(__file__).parents[2]


@pytest.fixture(autouse=True)
def keep_the_handler():
    before = signal.getsignal(signal.SIGTERM)
    yield
    signal.signal(signal.SIGTERM, before)


def process(*words, **options):
    return subprocess.Popen(
        [sys.executable, *map(str, words)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        cwd=ROOT,
        env=os.environ | {"OMP_NUM_THREADS": "1", "PYTHONUNBUFFERED": "1"},
        **options,
    )


def test_help_imports_nothing_heavy():
    code = """
import sys
from lora_hf.cli import run
status = run(["--help"], debug=False)
heavy = {"torch", "transformers", "datasets", "matplotlib", "numpy", "pydantic"} & set(sys.modules)
print(status, sorted(heavy), len(sys.modules), file=sys.stderr)
"""
    out, err = process("-c", code).communicate()
    status, heavy, modules = err.strip().split(" ", 2)
    assert (status, heavy) == ("0", "[]")
    assert int(modules) < 500  # 400: a quarter of a second; torch alone has 1,000 more
    for verb in ("train", "compare", "evaluate", "predict", "merge", "score", "push"):
        assert f" {verb} " in out


def test_a_path_too_long_for_any_file_system_is_one_error(capsys):
    assert cli.run(["report", "r" * 256], debug=False) == 2
    error, _ = capsys.readouterr().err.splitlines()
    assert error == f"error: {'r' * 256 + '/results.json'!r} is too long for a path"


def test_a_missing_config_is_one_error_and_debug_adds_its_traceback():
    for more, tracebacks in (([], 0), (["--debug"], 1)):
        child = process("scripts/train.py", "--config", "configs/quickstrt.yaml", *more)
        out, err = child.communicate()
        assert (child.returncode, out, err.count("Traceback")) == (2, "", tracebacks)
        error = "error: configs/quickstrt.yaml: no such config; did you mean 'configs/quickstart.yaml'?"
        assert err.splitlines()[-2:] == [error, "help: docs/troubleshooting.md#configuration"]


def test_an_internal_error_is_not_reported_as_the_user_s_mistake(monkeypatch):
    def fail(error):
        monkeypatch.setattr(cli, "invoke", lambda *command: (_ for _ in ()).throw(error))
        return cli.run(["train"], debug=False)

    with pytest.raises(ZeroDivisionError):
        fail(ZeroDivisionError())
    assert [fail(RunFailed(code)) for code in (2, 1, 130, -2, -15, -9)] == [2, 1, 130, 130, 130, 1]


def test_a_run_killed_by_the_system_is_reported(monkeypatch, capsys):
    monkeypatch.setattr(cli, "invoke", lambda *command: (_ for _ in ()).throw(RunFailed(-9)))
    assert cli.run(["compare"], debug=False) == 1
    assert "ended by SIGKILL; often memory ran out" in capsys.readouterr().err


def test_a_closed_output_pipe_is_not_an_error(tmp_path, warm_python):
    (tmp_path / "p.csv").write_text("made,human\na,a\n")
    words = ["score", tmp_path / "p.csv", "--prediction", "made", "--reference", "human"]
    reading, writing = os.pipe()
    os.close(reading)
    with os.fdopen(writing, "w") as nobody:
        child = warm_python.start(["-m", "lora_hf", *words], stdout=nobody)
    assert "Traceback" not in child.stderr.read()
    assert child.wait() == 1


@pytest.mark.parametrize("unbuffered", ["", "1"])
@pytest.mark.parametrize("words", [["schema"], ["--help"], ["--version"], ["score", "p.csv", "--json"]])
def test_results_that_a_full_disk_does_not_take_are_one_error(tmp_path, warm_python, words, unbuffered):
    (tmp_path / "p.csv").write_text("prediction,references\na,a\n")
    with open("/dev/full", "w") as full:
        child = warm_python.start(
            ["-m", "lora_hf", *words], stdout=full, cwd=tmp_path, env={"PYTHONUNBUFFERED": unbuffered}
        )
    error = "error: standard output cannot be written: No space left on device. Redirect it to another place"
    assert child.stderr.read() == f"{error} and rerun\n"
    assert child.wait() == 1


CLOSED = """
import os, sys
os.close(NUMBER)
sys.stdout, sys.stderr = (None if number == NUMBER else stream for number, stream in NAMED)
sys.argv = ["lora-hf", *WORDS]
from lora_hf.cli import main
main()
"""
"""What Python does at its start where a shell has closed an output, as by `>&-`."""


def closed(number: int, words: list[str]) -> str:
    code = CLOSED.replace("NAMED", "((1, sys.stdout), (2, sys.stderr))")
    return code.replace("NUMBER", str(number)).replace("WORDS", repr(words))


def test_a_closed_output_is_an_error_only_where_there_are_results(tmp_path, warm_python):
    done = warm_python.run(["-c", closed(1, ["schema"])])
    assert done.returncode == 1
    assert done.stderr.startswith("error: standard output cannot be written: Bad file descriptor")
    assert done.stderr.count("\n") == 1
    done = warm_python.run(["-c", closed(1, ["score", "no.csv"])])
    assert done.returncode == 2 and done.stderr.startswith("error: ") and "no.csv" in done.stderr


@pytest.mark.parametrize("lost", ["full", "closed"])
def test_messages_that_cannot_be_written_end_nothing_and_are_not_among_the_results(
    tmp_path, warm_python, lost
):
    rows = [f"{{'dialogue': 'A: Number {number}', 'summary': 'It is {number}.'}}" for number in range(40)]
    (tmp_path / "talks.jsonl").write_text("\n".join(rows).replace("'", '"'))
    words = ["init", "--data", "talks.jsonl", "--model", "embedded", "--yes"]
    with open("/dev/full" if lost == "full" else os.devnull, "w") as stderr:
        how = ["-m", "lora_hf", *words] if lost == "full" else ["-c", closed(2, words)]
        child = warm_python.start(how, stderr=stderr, cwd=tmp_path)
        assert child.stdout.read() == "talks.yaml\n"
    assert child.wait() == 0


def test_a_command_that_is_given_no_words_ends_its_process_after_threads_and_exit_functions(warm_python):
    """Without the interpreter's shutdown, which takes all imported modules apart."""
    code = """
import atexit, sys, threading
from lora_hf.cli import main
def wait():
    threading.main_thread().join()
    print("a thread")
atexit.register(print, "an exit function")
threading.Thread(target=wait).start()
sys.argv = ["lora-hf", "score", "no.csv"]
try:
    main(*GIVEN)
finally:
    print("the caller")
"""
    endings = []
    for given in ("[]", "[['score', 'no.csv']]"):
        done = warm_python.run(["-c", code.replace("GIVEN", given)])
        assert done.returncode == 2 and "no.csv: no such file" in done.stderr
        endings.append(done.stdout.splitlines())
    assert endings == [["a thread", "an exit function"], ["the caller", "a thread", "an exit function"]]


def test_ctrl_c_saves_a_checkpoint_and_the_same_command_resumes(tmp_path, warm_python, monkeypatch, capsys):
    """The output of 60 steps exceeds a pipe of 4 KiB, so that the run cannot end before it is read."""
    config = tmp_path / "tiny.yaml"
    config.write_text("lora: {r: 4, lora_alpha: 8}\ntraining: {learning_rate: 5.0e-2}\n")
    run = tmp_path / "run"
    words = ["scripts/train.py", "--config", config, *FEW, f"output_dir={run}"]
    words += ["training.max_steps=60", "training.logging_steps=1", "training.save_strategy='no'"]
    words += ["training.per_device_train_batch_size=1", "data.max_source_length=32"]
    child = warm_python.start(words)
    fcntl.fcntl(child.stderr, fcntl.F_SETPIPE_SZ, 4096)
    assert any(": loss " in line for line in child.stderr)
    child.send_signal(signal.SIGINT)
    _, err = child.communicate()
    assert child.returncode == 130, err
    (checkpoint,) = (run / "checkpoints").iterdir()
    step = int(checkpoint.name.removeprefix("checkpoint-"))
    assert 1 <= step < 60
    expected = f"interrupted: stopped after step {step}, checkpoint saved; rerun the command to resume"
    assert err.splitlines()[-1] == expected and "Traceback" not in err
    assert not (run / "results.json").exists()
    monkeypatch.chdir(ROOT)
    assert cli.run([str(word) for word in ["train", *words[1:]]], debug=False) == 0, capsys.readouterr().err
    record = json.loads((run / "results.json").read_text())
    assert (record["resumed_at_step"], record["steps"]) == (step, 60)


def test_an_interrupt_while_a_config_is_written_is_one(monkeypatch, capsys):
    """Pydantic turns what is raised in a serializer into an exception of its own."""

    def interrupted():
        raise KeyboardInterrupt

    monkeypatch.setattr("lora_hf.config.schema.embedded_retention", interrupted)
    config = RunConfig(retention={"place": {"task": "summarization"}})
    assert exit_status(lambda: config.model_dump_json()) == 130
    assert capsys.readouterr().err == "interrupted\n"


def test_a_place_that_is_not_writable_is_refused_before_any_work(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr("lora_hf.planning.plan.activation_bytes", lambda *of, **options: 2**20)
    with full_disk(tmp_path / "disk", 64):
        config = tmp_path / "x.yaml"
        config.write_text(f"output_dir: {tmp_path}/disk/run\n")
        with read_only(tmp_path / "disk"):
            monkeypatch.setattr("lora_hf.saved.predict.load_source", lambda *of: pytest.fail("it is loaded"))
            (tmp_path / "t.txt").write_text("Ann: Hi.")
            words = ["predict", str(tmp_path / "t.txt"), "--model", "embedded", "--output"]
            assert cli.run([*words, str(tmp_path / "disk" / "p.jsonl")], debug=False) == 2
            assert "cannot be written there; choose another place" in capsys.readouterr().err
            assert cli.run(["doctor", "--config", str(config), *FEW], debug=False) == 1
            assert "disk/run' cannot be written" in capsys.readouterr().out.replace("\n", "")


def test_a_path_that_is_not_utf_8_is_printed_by_its_bytes():
    written = io.BytesIO()
    stream = io.TextIOWrapper(written, encoding="ascii")
    make_writable(stream)
    print(os.fsdecode(b"l\xfc.jsonl"), "é", file=stream, flush=True)
    assert written.getvalue() == b"l\xfc.jsonl " + "é\n".encode()


def test_a_folder_whose_name_is_not_utf_8_is_refused_before_a_model_is_written(capsys):
    for words in (["merge", "--adapter", "a"], ["train", "embedded", "x.csv"]):
        assert cli.run([*words, "--output", os.fsdecode(b"m\xfc")], debug=False) == 2
        assert "the path is not UTF-8, and no model can be written there" in capsys.readouterr().err
