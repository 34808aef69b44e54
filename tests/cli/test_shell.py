"""The shell: completion in a real bash, every verb's example, and the doctor's exit statuses as processes."""

import json
import os
import re
import shlex
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import typer
from support.shell_words import expanded
from support.warm_python import WarmPython

from lora_hf import cli
from lora_hf.cli.options import complete_config, complete_override
from lora_hf.config.load import find_config
from lora_hf.terminal import split_verbosity

ROOT = Path(__file__).parents[2]
VERBS = {verb.__name__: verb for verb in cli.VERBS}


def examples(verb: str) -> list[str]:
    """The command lines in a verb's help."""
    return re.findall(
        r"^    [A-Z][^.\n]*: \[dim\](lora-hf .+)\[/dim\]$", str(VERBS[verb].__doc__), re.MULTILINE
    )


@pytest.mark.parametrize("verb", VERBS)
def test_the_example_in_a_command_s_help_is_valid(verb: str, capsys: pytest.CaptureFixture) -> None:
    os.environ["COLUMNS"] = "200"
    assert cli.run([verb, "--help"], debug=False) == 0
    said = capsys.readouterr().out
    assert examples(verb) and all(example in said for example in examples(verb))
    assert "--help" in said and "<bool" not in said  # a flag takes no value
    assert str(VERBS[verb].__doc__).count("[dim]") == len(examples(verb))  # each has a label
    for example in examples(verb):
        assert not expanded(example)
        words, _ = split_verbosity(shlex.split(example.partition(" >")[0])[2:])
        command = typer.main.get_command(cli.app).commands[verb]
        with command.make_context(verb, list(words)) as context:  # raises where it takes an option not so
            named = context.params.get("config")
        assert named is None or find_config(Path(named)).is_file()


@pytest.fixture
def bash(tmp_path: Path):
    """Run lines in a bash that has `lora-hf` on its path and its completion loaded."""
    if not (shell := shutil.which("bash")):
        pytest.skip("no bash")
    program = tmp_path / "bin" / "lora-hf"
    program.parent.mkdir()
    program.write_text(f'#!/bin/sh\nexec {sys.executable} -m lora_hf "$@"\n')
    program.chmod(0o755)
    environment = os.environ | {
        "PATH": f"{program.parent}:{os.environ['PATH']}",
        "HOME": str(tmp_path),
        "PYTHONPATH": str(ROOT),
        "_TYPER_COMPLETE_TEST_DISABLE_SHELL_DETECTION": "1",
    }

    def run(script: str) -> str:
        done = subprocess.run(
            [shell, "--norc", "-c", script], env=environment, cwd=ROOT, capture_output=True, text=True
        )
        assert done.returncode == 0, done.stderr
        return done.stdout

    return run


OFFERED = {
    "lora-hf ": set(VERBS),
    "lora-hf e": {verb for verb in VERBS if verb.startswith("e")},
    "lora-hf doctor --b": {"--base"},
    "lora-hf merge --": {"--adapter", "--output", "--base", "--onto", "--check", "--dtype", "--help"},
    "lora-hf train --config quick": {"quickstart"},
    "lora-hf train --config quickstart lora.lora_": {"lora.lora_alpha=", "lora.lora_dropout="},
}
"""What is typed, and the completions of its last word."""


@pytest.mark.slow
def test_bash_completes_verbs_options_configs_and_their_keys(bash) -> None:
    script = """
        eval "$(lora-hf --show-completion bash)"
        complete=$(complete -p lora-hf | sed 's/.*-F \\([^ ]*\\) .*/\\1/')
    """
    for line in OFFERED:
        words = line.split(" ")
        script += f"""
        COMP_WORDS=({" ".join(map(shlex.quote, words))}) COMP_CWORD={len(words) - 1}
        $complete lora-hf
        echo "${{COMPREPLY[@]}}"
        """
    completed = [set(found.split()) for found in bash(script).splitlines()]
    assert dict(zip(OFFERED, completed, strict=True)) == OFFERED


def test_completion_is_installed_where_bash_reads_it(bash, tmp_path: Path) -> None:
    assert "completion installed in" in bash("lora-hf --install-completion bash")
    (script,) = (tmp_path / ".bash_completions").iterdir()
    assert "_LORA_HF_COMPLETE=complete_bash" in script.read_text()
    assert str(script) in (tmp_path / ".bashrc").read_text()


def test_keys_and_configs_are_completed_by_what_is_shipped(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)
    assert complete_override("training.per_device_") == [
        "training.per_device_train_batch_size=",
        "training.per_device_eval_batch_size=",
    ]
    assert complete_override("see") == ["seed=", "seeds="] and complete_override("") == []
    assert complete_config("meth") == ["methods"] and {"quickstart", "mkdocs.yml"} <= {*complete_config("")}


@pytest.fixture
def doctor(warm_python: WarmPython) -> Callable[..., tuple[int, str]]:
    """Run it as a process: its status and its output."""

    def run(*words: str) -> tuple[int, str]:
        done = warm_python.run([sys.executable, "-m", "lora_hf", "doctor", *words])
        assert "Traceback" not in done.stderr
        return done.returncode, done.stdout

    return run


def test_doctor_without_arguments_checks_the_machine(doctor: Callable[..., tuple[int, str]]) -> None:
    status, out = doctor()
    assert status == 0 and [line.split()[:2] for line in out.splitlines() if line[:2] == "ok"] == [
        ["ok", "versions"],
        ["ok", "device"],
    ]
    assert out.splitlines()[-2:] == ["2 checks passed", "checked: this machine"]


def test_doctor_ends_with_status_1_at_a_fault_and_json_names_it(
    doctor: Callable[..., tuple[int, str]],
) -> None:
    few = ["data.max_train_samples=10", "data.max_eval_samples=3", "data.max_test_samples=3"]
    status, out = doctor("--json", "--config", "configs/quickstart.yaml", *few)
    said = json.loads(out)
    assert (status, said["fault"], said["unknown"]) == (0, 0, 0)
    status, out = doctor("--json", "--config", "quickstart", *few, "lora.target_modules=[query]")
    said = json.loads(out)
    assert status == 1 and said["fault"] == sum(f["state"] == "fault" for f in said["findings"]) == 1
    (red,) = [f for f in said["findings"] if f["state"] == "fault"]
    assert red["check"] == "targets" and red["remedy"]


@pytest.mark.parametrize(
    "words",
    [
        ["./no/adapter"],
        ["--config", "no.yaml"],
        ["--config", "quickstart", "runs/adapter"],
        ["one", "two"],
        ["--base", "embedded"],
        ["--nonsense"],
    ],
    ids=" ".join,
)
def test_doctor_ends_with_status_2_only_for_a_mistake_in_the_command(words: list[str], capsys) -> None:
    assert cli.run(["doctor", *words], debug=False) == 2
    captured = capsys.readouterr()
    assert captured.out == "" and captured.err.startswith("error: ")
