"""Measure size and error of FLAN-T5's linear layers in each storage format, on random weights.

    python scripts/benchmarks/weight_bytes.py [small base ...]

Prints a Markdown table: the bytes of all linear layers except `lm_head`, including scales and code books,
relative to bfloat16, and the mean error ||Q - W|| / ||W|| of the quantized weights.
"""

import argparse
from pathlib import Path
from statistics import mean
from tempfile import TemporaryDirectory

import torch

from lora_hf.adapters.backends import backend_for, is_linear
from lora_hf.adapters.functional import relative_error
from lora_hf.adapters.model_state import model_state
from lora_hf.config import ModelConfig
from lora_hf.models.flan_t5 import SIZES, random_flan_t5
from lora_hf.models.load import load_model
from lora_hf.system import pick_device

AFFINE = {"load_in_4bit": True, "quant_method": "hqq"}
FORMATS = {
    "bf16": {},
    "int8": {"load_in_8bit": True},
    "torchao int8": {"load_in_8bit": True, "quant_method": "torchao"},
    "nf4, double quantization": {"load_in_4bit": True},
    "fp4, double quantization": {"load_in_4bit": True, "bnb_4bit_quant_type": "fp4"},
    "affine 4 bits, groups of 64": AFFINE | {"hqq_group_size": 64},
    "affine 4 bits, groups of 128": AFFINE | {"hqq_group_size": 128},
}


def measure(folder: Path, fields: dict[str, object]) -> tuple[int, int, float]:
    """Return the bytes of the stored weights, their bytes in bfloat16, and the mean relative error."""
    config = ModelConfig(model_name_or_path=str(folder), dtype="bfloat16", **fields)
    model = load_model(config, pick_device())
    layers = {n: x for n, x in model.named_modules() if is_linear(x) and x is not model.lm_head}
    base_weights = model_state(model).base_weights
    errors = [
        relative_error(backend_for(x).dequantize(torch.float32).cpu(), base_weights(n).float())
        for n, x in layers.items()
        if base_weights and backend_for(x).is_quantized
    ]
    dense = sum(2 * x.in_features * x.out_features for x in layers.values())
    return sum(backend_for(x).nbytes for x in layers.values()), dense, mean(errors) if errors else 0.0


parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
parser.add_argument("shapes", nargs="*", default=["small", "base"], help=f"some of {', '.join(SIZES)}")
print("| FLAN-T5 | storage | wo | bytes | relative to bf16 | error of a quantized weight |")
print("|---|---|---|---:|---:|---:|")
for shape in parser.parse_args().shapes:
    with TemporaryDirectory() as folder:
        random_flan_t5(shape).to(torch.bfloat16).save_pretrained(folder)
        for storage, fields in FORMATS.items():
            for quantize_wo in (False, True) if fields else (False,):
                stored, dense, error = measure(Path(folder), {**fields, "quantize_wo": quantize_wo})
                wo = "quantized" if quantize_wo else "dense"
                row = (
                    shape,
                    storage,
                    wo,
                    f"{stored:,}",
                    f"{stored / dense:.4f}",
                    f"{error:.4f}" if error else "",
                )
                print(f"| {' | '.join(row)} |", flush=True)
