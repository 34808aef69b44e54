"""Adapters that older versions of PEFT wrote are read with the logits that they had there.

`make test-peft-versions` writes these folders, and tests the other direction.
"""

import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from support.old_peft import LOGITS, base, logits
from support.selection import slow_except

from lora_hf import load_adapter

GOLDEN = Path(__file__).parent / "golden"
FOLDERS = sorted(file.parent.relative_to(GOLDEN).as_posix() for file in GOLDEN.glob(f"*/*/{LOGITS}"))
FAST = [name for name in FOLDERS if name.startswith(("0.4.0/", "0.17.1/"))]
"""Of the oldest version and the newest."""


def test_every_version_is_there() -> None:
    assert {name.partition("/")[0] for name in FOLDERS} == {"0.4.0", "0.7.1", "0.10.0", "0.13.2", "0.17.1"}


@pytest.mark.parametrize("name", slow_except(FAST, FOLDERS, versions=True))
def test_an_adapter_of_an_older_version_has_its_logits(name: str, tmp_path: Path) -> None:
    adapter = shutil.copytree(GOLDEN / name, tmp_path / "adapter")
    found = logits(load_adapter(base(), adapter))
    torch.testing.assert_close(found, load_file(GOLDEN / name / LOGITS)["logits"], rtol=0, atol=1e-4)
    assert not torch.allclose(found, logits(base()), atol=1e-2)
