"""A saved adapter is found and read once for each command, however many steps need it."""

from collections import Counter
from pathlib import Path

import pytest
from support.models import randomize

from lora_hf import LoraConfig, cli, inject_adapters, save_adapter
from lora_hf.config import ModelConfig
from lora_hf.errors import UserError
from lora_hf.models.load import load_model
from lora_hf.saved import find_adapter as finding
from lora_hf.saved.find_adapter import base_config, config_of_run, find_adapter, prompt_config
from lora_hf.system import pick_device

COMMIT = "0123456789abcdef0123456789abcdef01234567"


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    model = load_model(ModelConfig(), pick_device())
    randomize(inject_adapters(model, LoraConfig(r=4, lora_alpha=10)))
    extra = {"prompt": "tldr", "max_source_length": 512, "max_new_tokens": 8}
    return save_adapter(model, tmp_path_factory.mktemp("saved"), extra=extra)


def command(name: str, adapter: str, tmp_path: Path) -> list[str]:
    dialogue = tmp_path / "talk.txt"
    dialogue.write_text("A: Shall we go? B: At noon.")
    words = {
        "predict": ["predict", str(dialogue), "--adapter", adapter],
        "merge": ["merge", "--adapter", adapter, "--output", str(tmp_path / "merged")],
        "evaluate": ["evaluate", "--config", "quickstart", "data.max_test_samples=2", "--adapter", adapter],
        "push": ["push", "--adapter", adapter, "--repo-id", "anna/talks", "--dry-run"],
        "doctor": ["doctor", adapter],
    }
    return words[name]


@pytest.mark.parametrize("name", ["predict", "merge", "evaluate", "push", "doctor"])
def test_a_command_reads_each_file_of_an_adapter_once(
    name: str, folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    read, original = Counter[str](), Path.read_text

    def counted(path: Path, *args: str, **kwargs: str) -> str:
        read[path.name] += path.parent == folder
        return original(path, *args, **kwargs)

    monkeypatch.setattr(Path, "read_text", counted)
    assert cli.run(command(name, str(folder), tmp_path), debug=False) == 0
    assert (read["lora_hf.json"], read["adapter_config.json"]) == (1, 1)


@pytest.mark.parametrize("name", ["predict", "merge", "evaluate", "doctor"])
def test_a_command_asks_the_hub_for_an_adapter_once(
    name: str, folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = []
    snapshot = tmp_path / COMMIT
    snapshot.symlink_to(folder)

    def fetch(repo: str, *args: object) -> Path:
        asked.append(repo)
        return snapshot

    monkeypatch.setattr(finding, "fetch", fetch)
    assert cli.run(command(name, "anna/talks@main", tmp_path), debug=False) == 0
    assert asked == ["anna/talks@main"]


def test_a_saved_adapter_says_where_it_came_from_and_what_it_holds(
    folder: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    saved = find_adapter(str(folder))
    assert (saved.folder, saved.source, saved.revision) == (folder, str(folder), None)
    assert (saved.method, saved.config.r, saved.base_model, saved.is_intact) == ("lora", 4, "embedded", True)
    assert saved.shapes == {name: tuple(tensor.shape) for name, tensor in saved.read_weights().items()}
    assert base_config(saved).model_name_or_path == "embedded" and prompt_config(saved).prompt == "tldr"
    (tmp_path / COMMIT).symlink_to(folder)
    monkeypatch.setattr(finding, "fetch", lambda *args: tmp_path / COMMIT)
    assert find_adapter("anna/talks").revision == COMMIT
    with pytest.raises(UserError, match=f"--adapter '{folder}' is not in a run directory"):
        config_of_run(saved)
