"""Ways to break the folder of a base, and the one error that loading and the doctor give of it."""

import json
import logging
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from support.models import CPU, make_t5

from lora_hf import UserError
from lora_hf.config import ModelConfig
from lora_hf.doctor.base import checkpoint
from lora_hf.models.load import load_model

GENERATION = "generation_config.json"
POINTER = "version https://git-lfs.github.com/spec/v1\noid sha256:4d7a\nsize 12345\n"
WEIGHTS = "model.safetensors"
LAST_SHARD = "model-00002-of-00002.safetensors"


def change_tensors(folder: Path, change: Callable[[dict], dict]) -> None:
    save_file(change(load_file(folder / WEIGHTS)), folder / WEIGHTS, metadata={"format": "pt"})


def change_settings(**fields: Any) -> Callable[[Path], None]:
    def change(folder: Path) -> None:
        settings = json.loads((folder / "config.json").read_text())
        (folder / "config.json").write_text(json.dumps(settings | fields))

    return change


def without(*parts: str) -> Callable[[Path], None]:
    def change(folder: Path) -> None:
        change_tensors(
            folder, lambda old: {k: v.clone() for k, v in old.items() if not any(p in k for p in parts)}
        )

    return change


def with_values(change: Callable[[str, torch.Tensor], torch.Tensor]) -> Callable[[Path], None]:
    return lambda folder: change_tensors(folder, lambda old: {k: change(k, v) for k, v in old.items()})


def spoil(part: str, value: float) -> Callable[[Path], None]:
    """Set one value of the tensors whose names contain `part`."""

    def change(name: str, tensor: torch.Tensor) -> torch.Tensor:
        if part in name:
            tensor = tensor.clone()
            tensor.view(-1)[-1] = value
        return tensor

    return with_values(change)


def zero_second_half(folder: Path) -> None:
    data = (folder / WEIGHTS).read_bytes()
    (folder / WEIGHTS).write_bytes(data[: len(data) // 2] + bytes(len(data) - len(data) // 2))


def as_integers(dtype: torch.dtype) -> Callable[[Path], None]:
    return with_values(lambda name, x: x.mul(100).to(dtype) if x.ndim > 1 and "block" in name else x)


def write(name: str, text: str) -> Callable[[Path], None]:
    return lambda folder: (folder / name).write_text(text) and None


def remove(name: str) -> Callable[[Path], None]:
    return lambda folder: (folder / name).unlink()


def cut(folder: Path) -> None:
    (folder / WEIGHTS).write_bytes((folder / WEIGHTS).read_bytes()[:-1000])


def shards(folder: Path) -> None:
    make_t5().save_pretrained(folder, max_shard_size="120KB")
    (folder / WEIGHTS).unlink()
    assert (folder / LAST_SHARD).is_file()


def index(**fields: Any) -> Callable[[Path], None]:
    def change(folder: Path) -> None:
        shards(folder)
        file = folder / "model.safetensors.index.json"
        file.write_text(json.dumps(json.loads(file.read_text()) | fields))

    return change


def rename(change: Callable[[str], str]) -> Callable[[Path], None]:
    return lambda folder: change_tensors(folder, lambda old: {change(k): v.clone() for k, v in old.items()})


def move(name: str) -> Callable[[Path], None]:
    return lambda folder: (folder / WEIGHTS).rename(folder / name) and None


def all_of(*changes: Callable[[Path], None]) -> Callable[[Path], None]:
    def change(folder: Path) -> None:
        for one in changes:
            one(folder)

    return change


def zeros(*parts: str) -> Callable[[Path], None]:
    return with_values(lambda name, x: torch.zeros_like(x) if any(part in name for part in parts) else x)


def missing_shard(folder: Path) -> None:
    shards(folder)
    (folder / LAST_SHARD).unlink()


def pointer_shard(folder: Path) -> None:
    shards(folder)
    (folder / LAST_SHARD).write_text(POINTER)


def error_of(config: ModelConfig) -> str:
    """Return the error of loading, which the doctor gives too, in the same words."""
    with pytest.raises(UserError) as loading:
        load_model(config, CPU)
    with pytest.raises(UserError) as checking:
        list(checkpoint(config))
    assert str(checking.value) == str(loading.value)
    return str(loading.value)


def change_tokenizer(**fields: Any) -> Callable[[Path], None]:
    def change(folder: Path) -> None:
        settings = json.loads((folder / "tokenizer_config.json").read_text())
        (folder / "tokenizer_config.json").write_text(json.dumps(settings | fields))

    return change


def assert_refused(
    config: ModelConfig,
    folder: Path,
    change: Callable[[Path], None],
    words: str,
    caplog: pytest.LogCaptureFixture,
) -> None:
    """Check that a changed base is one error with these words, without Transformers' own report."""
    change(folder)
    with caplog.at_level(logging.WARNING):
        message = error_of(config)
    assert re.search(words, message)
    assert "LOAD REPORT" not in caplog.text
