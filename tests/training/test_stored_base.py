"""Bases whose files are quantized already: what needs their weights before that is refused by config.json."""

import json
import re
from pathlib import Path

import pytest

from lora_hf import UserError
from lora_hf.config import RunConfig
from lora_hf.doctor.configs import targets
from lora_hf.models.load import ASSETS
from lora_hf.runs.run import execute


@pytest.mark.parametrize("bits", [4, 8])
@pytest.mark.parametrize("fields", [*("pissa", "pissa_niter_4", "olora", "loftq"), None])
def test_a_base_stored_quantized_is_refused_before_its_weights_and_the_data_are_read(
    fields: str | None, bits: int, tmp_path: Path
) -> None:
    """The folder has no tokenizer, no weights, and there is no such dataset."""
    stored = {"quant_method": "bitsandbytes", f"load_in_{bits}bit": True}
    settings = json.loads((ASSETS / "config.json").read_text()) | {"quantization_config": stored}
    base = tmp_path / "base"
    base.mkdir()
    (base / "config.json").write_text(json.dumps(settings))
    config = RunConfig(
        method="lora" if fields else "full",
        model={"model_name_or_path": str(base)},
        lora={"init_lora_weights": fields} if fields else {},
        data={"dataset_name": "none"},
        output_dir=str(tmp_path / "run"),
    )
    words = (
        f"lora.init_lora_weights='{fields}' reads the weights before quantization, and the files of "
        f"model.model_name_or_path='{base}' have them in {bits} bits only: give the checkpoint before "
        f"quantization, with model.load_in_{bits}bit: true, or set lora.init_lora_weights to true or gaussian"
        if fields
        else f"its weights are stored in {bits} bits and cannot all be trained; use method lora"
    )
    for check in (lambda: execute(config), lambda: list(targets(config))):
        with pytest.raises(UserError, match=re.escape(words)):
            check()
    assert not (tmp_path / "run").exists()
