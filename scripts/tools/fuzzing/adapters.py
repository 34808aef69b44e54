"""Broken adapters: the files of a valid adapter, changed and passed to `predict`, `merge` or `doctor`."""

import json
import os
import pickle
import shutil
import struct
from collections.abc import Callable
from pathlib import Path
from random import Random
from typing import Any

import torch
from safetensors.torch import load_file, save_file

from lora_hf import LoraConfig, cli, inject_adapters, save_adapter
from lora_hf.adapters.checkpoint_io import MANIFEST_NAME
from lora_hf.adapters.peft_format import CONFIG_NAME, WEIGHTS_NAME
from lora_hf.adapters.save import INITIALIZATION_NAME
from lora_hf.config import ModelConfig
from lora_hf.errors import NOT_JSON
from lora_hf.models.load import load_model
from scripts.tools.fuzzing.junk import NAMES, VALUES, break_bytes, deep
from scripts.tools.fuzzing.trial import OUT

FILES = (CONFIG_NAME, WEIGHTS_NAME, MANIFEST_NAME)
DIALOGUE = "Anna: Lunch at noon?\nBen: Yes, at the cafe by the station."
ADAPTERS: dict[str, dict[str, Any]] = {
    "lora": {"r": 4, "lora_alpha": 9},
    "dora": {"r": 2, "lora_alpha": 5, "use_dora": True, "target_modules": ["q", "wo"]},
    "saved": {"r": 2, "modules_to_save": ["lm_head"], "rank_pattern": {"v": 3}},
    "pissa": {"r": 2, "init_lora_weights": "pissa"},
    "replicated": {"r": 2, "layer_replication": {"encoder": [[0, 2], [1, 2]]}},
}
"""Fields of the `LoraConfig` of each valid adapter."""


def prepare(folder: Path) -> None:
    """Save valid adapters of the embedded model, one folder for each entry of `ADAPTERS`."""
    for name, fields in ADAPTERS.items():
        model = load_model(ModelConfig(), torch.device("cpu"))
        extra = {"prompt": "{dialogue}\n\nTL;DR: ", "max_source_length": 96, "max_new_tokens": 4}
        save_adapter(inject_adapters(model, LoraConfig(**fields)), folder / name, extra=extra)


def make(random: Random, folder: Path, whole: Path) -> list[str]:
    """Write a broken adapter and return the command line that reads it.

    Args:
        random: source of all choices.
        folder: folder of this input.
        whole: folder that `prepare` has filled.
    """
    adapter = folder / "adapter"
    shutil.copytree(whole / random.choice([*ADAPTERS]), adapter)
    if random.random() < 0.5:
        _remove_hash(adapter, with_manifest=random.random() < 0.5)
    random.choice(BREAKS)(random, adapter)
    if random.random() < 1 / 3 and _can_be_read(adapter):
        random.choice(BREAKS)(random, adapter)
    (folder / "one.txt").write_text(DIALOGUE)
    verb = random.choice(("predict", "predict", "predict", "merge", "doctor"))
    if verb == "doctor":
        return ["doctor", str(adapter)]
    given = [str(folder / "one.txt")] if verb == "predict" else []
    name = f"{OUT}/lines.jsonl" if verb == "predict" else OUT
    return [verb, *given, "--adapter", str(adapter), "--base", "embedded", "--output", name]


def _can_be_read(adapter: Path) -> bool:
    """Return whether the files can be read here, to be changed once more: no pipe, no gigabytes."""
    files = {*adapter.iterdir(), adapter / CONFIG_NAME, adapter / WEIGHTS_NAME}
    return all(file.is_file() and file.stat().st_size < 10**8 for file in files)


def run(words: list[str]) -> int:
    """Run the command and return its exit status; 1 of `doctor` (a check found a fault) counts as 0."""
    status = cli.run(words, debug=False)
    return 0 if words[0] == "doctor" and status == 1 else status


def _remove_hash(adapter: Path, with_manifest: bool) -> None:
    """Remove the hash of the weights, which would reveal every change, alone or with its manifest."""
    manifest = json.loads((adapter / MANIFEST_NAME).read_text())
    manifest.pop("weights_sha256", None)
    (adapter / MANIFEST_NAME).unlink() if with_manifest else _put(adapter / MANIFEST_NAME, manifest)


def _put(file: Path, value: Any) -> None:
    file.write_text(json.dumps(value), encoding="utf-8")


def _change_bytes(random: Random, adapter: Path) -> None:
    file = adapter / random.choice((*FILES, INITIALIZATION_NAME))
    if file.is_file():
        file.write_bytes(break_bytes(random, file.read_bytes()))


def _change_field(random: Random, adapter: Path) -> None:
    """Set one field of the config or of the manifest to a value of any kind."""
    file = adapter / random.choice((CONFIG_NAME, CONFIG_NAME, MANIFEST_NAME))
    if file.is_file():
        fields = _json(file)
        fields[random.choice([*fields, "bias", "unknown", "r", "target_modules"])] = random.choice(VALUES)
        _put(file, fields)


def _change_rank(random: Random, adapter: Path) -> None:
    fields = _json(adapter / CONFIG_NAME)
    absurd = random.choice((0, -1, 10**9, 10**30, 1.5, True, "4", [4], 2**31, 5))
    fields["r"] = absurd
    if random.random() < 0.5:
        fields |= {"r": 4, "rank_pattern": {random.choice(("q", "v", ".*", "(", "x")): absurd}}
    _put(adapter / CONFIG_NAME, fields)


def _change_tensor(random: Random, adapter: Path) -> None:
    """Change a tensor's name, shape, dtype or values; the file remains valid safetensors."""
    file = adapter / WEIGHTS_NAME
    try:
        tensors = load_file(file)
    except Exception:  # an earlier change broke the file
        return
    name = random.choice([*tensors])
    tensor = tensors[name]
    change = random.randrange(7)
    if change == 0:
        tensors[random.choice(NAMES) or "x"] = tensors.pop(name)
    elif change == 1:
        tensors[name] = tensor.T.contiguous() if tensor.dim() == 2 else tensor[None]
    elif change == 2:
        tensors[name] = tensor.to(random.choice((torch.int8, torch.float64, torch.bool, torch.bfloat16)))
    elif change == 3:
        tensors[name] = torch.full_like(tensor, random.choice((float("nan"), float("inf"), 1e38)))
    elif change == 4:
        del tensors[name]
    elif change == 5:
        tensors[name] = tensor.flatten()[:0]
    else:
        tensors[f"{name}.{random.choice(('x', 'weight', '../x'))}"] = tensor.clone()
    save_file(tensors, file, metadata=random.choice(({"format": "pt"}, None, {"format": "tf"}, {"a": "b"})))


def _change_header(random: Random, adapter: Path) -> None:
    """Write a safetensors header that does not describe the data after it."""
    file = adapter / WEIGHTS_NAME
    data = file.read_bytes()
    (n,) = struct.unpack("<Q", data[:8].ljust(8, b"\0"))
    try:
        header = json.loads(data[8 : 8 + n])
    except NOT_JSON:
        return
    if not header or not isinstance(header, dict):  # an earlier change broke it
        return
    name = random.choice([*header])
    wrong: list[Any] = [{"shape": [10**9, 10**9]}, {"shape": [-1]}, {"shape": "a"}, {"dtype": "X"}]
    wrong += [{"data_offsets": [0, 2**40]}, {"data_offsets": [8, 4]}, {"data_offsets": None}]
    is_entry = isinstance(header[name], dict)
    header[name] = header[name] | random.choice(wrong) if is_entry else random.choice(VALUES)
    text = json.dumps(header).encode() if random.random() < 0.8 else deep(5000, is_map=True).encode()
    size = len(text) if random.random() < 0.8 else random.choice((0, 2**63, 2**40, len(text) - 1))
    file.write_bytes(struct.pack("<Q", size) + text + data[8 + n :])


def _write_huge(random: Random, adapter: Path) -> None:
    """Write a sparse file of 6 GiB that has a header and no data."""
    size = 6 << 30
    names = _tensor_names(adapter) if random.random() < 0.5 else ["x"]
    header = json.dumps(
        {names[0]: {"dtype": "F32", "shape": [size // 4], "data_offsets": [0, size]}}
    ).encode()
    with (adapter / WEIGHTS_NAME).open("wb") as stream:
        stream.write(struct.pack("<Q", len(header)) + header)
        stream.truncate(8 + len(header) + size)


def _tensor_names(adapter: Path) -> list[str]:
    """Return the names of the tensors, or `["x"]` if the file cannot be read."""
    try:
        return [*load_file(adapter / WEIGHTS_NAME)]
    except Exception:
        return ["x"]


class _Command:
    def __reduce__(self) -> tuple[Any, ...]:
        return os.system, ("touch pwned",)


def _write_pickle(random: Random, adapter: Path) -> None:
    """Write a pickle that runs a command when read: beside the weights or in the place of a file."""
    name = random.choice(("adapter_model.bin", *FILES, INITIALIZATION_NAME))
    if random.random() < 0.5:
        (adapter / WEIGHTS_NAME).unlink(missing_ok=True)
    if (adapter / name).is_dir():  # from an earlier change
        (adapter / name).rmdir()
    (adapter / name).write_bytes(pickle.dumps(_Command()))
    if random.random() < 0.3:
        torch.save({"x": _Command()}, adapter / name)


def _write_deep_json(random: Random, adapter: Path) -> None:
    (adapter / random.choice((CONFIG_NAME, MANIFEST_NAME))).write_text(
        random.choice(
            (deep(100_000, True), deep(100_000, False), '{"r": ' + "9" * 10_000 + "}", "[]", "null", "1")
        )
    )


def _replace_file(random: Random, adapter: Path) -> None:
    """Replace a file by a folder, a pipe, a link, an empty file or nothing."""
    file = adapter / random.choice(FILES)
    file.unlink(missing_ok=True)
    kind = random.randrange(5)
    if kind == 0:
        file.mkdir()
    elif kind == 1:
        os.mkfifo(file)
    elif kind == 2:
        file.symlink_to(random.choice(("/dev/zero", "/etc/passwd", file.name)))
    elif kind == 3:
        (adapter / random.choice((INITIALIZATION_NAME, WEIGHTS_NAME))).write_bytes(b"")


BREAKS: list[Callable[[Random, Path], None]] = [
    *(_change_bytes, _change_bytes, _change_field, _change_field, _change_tensor, _change_tensor),
    *(_change_rank, _change_header, _write_huge, _write_pickle, _write_deep_json, _replace_file),
]


def _json(file: Path) -> dict[str, Any]:
    """Return the fields of a JSON file, or none if it cannot be read."""
    try:
        fields = json.loads(file.read_text(encoding="utf-8"))
        return fields if isinstance(fields, dict) else {}
    except (OSError, *NOT_JSON):
        return {}
