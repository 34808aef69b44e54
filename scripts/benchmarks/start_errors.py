"""Measure the error of a quantized weight after each initialization, as a Markdown table.

    python scripts/benchmarks/start_errors.py [--model embedded] [--r 16]

Each cell is the mean over the q and v layers of ‖W' - W‖ / ‖W‖ (Frobenius), where W' is
the quantized weight plus s B A.
"""

import argparse
import logging
from statistics import mean

import torch

from lora_hf import LoraConfig, inject_adapters
from lora_hf.adapters.initialize import LayerInit, initialize_layer
from lora_hf.adapters.layer import LoraLayer
from lora_hf.adapters.model_state import model_state
from lora_hf.config import ModelConfig
from lora_hf.models.load import load_model

FORMATS = {
    "NF4": {"load_in_4bit": True, "bnb_4bit_use_double_quant": False},
    "NF4, double": {"load_in_4bit": True},
    "FP4": {"load_in_4bit": True, "bnb_4bit_quant_type": "fp4"},
    "affine 4 bits, groups of 64": {"load_in_4bit": True, "quant_method": "hqq"},
    "int8": {"load_in_8bit": True},
}
INITS = {
    "PiSSA": {"init_lora_weights": "pissa"},
    "PiSSA, randomized": {"init_lora_weights": "pissa_niter_4"},
    "OLoRA": {"init_lora_weights": "olora"},
    "LoftQ, T = 1": {"init_lora_weights": "loftq"},
    "LoftQ, T = 5": {"init_lora_weights": "loftq", "loftq_iter": 5},
}


def errors(model_name: str, storage: dict, config: LoraConfig) -> tuple[float, float]:
    """Return the mean relative error before and after the initialization."""
    model = load_model(ModelConfig(model_name_or_path=model_name, **storage), torch.device("cpu"))
    found: list[tuple[float, float]] = []

    def initialize(name: str, settings: LoraConfig, layer: LoraLayer) -> LayerInit:
        init = initialize_layer(settings, layer.base, model_state(model).base_weights(name))
        found.append(init.errors)
        return init

    inject_adapters(model, config, initialize=initialize)
    return mean(before for before, _ in found), mean(after for _, after in found)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--model", default="embedded")
    parser.add_argument("--r", type=int, default=16)
    arguments = parser.parse_args()
    logging.getLogger("bitsandbytes").setLevel(logging.ERROR)
    print("| initialization | alpha / r | " + " | ".join(FORMATS) + " |")
    print("|---|---" + "|---" * len(FORMATS) + "|")
    before: list[str] = []
    rows = []
    for name, fields in INITS.items():
        for scale in (1, 4):
            config = LoraConfig(r=arguments.r, lora_alpha=scale * arguments.r, **fields)
            pairs = [errors(arguments.model, storage, config) for storage in FORMATS.values()]
            before = [f"{pair[0]:.4f}" for pair in pairs]
            rows.append([name, str(scale), *(f"{pair[1]:.4f}" for pair in pairs)])
    for row in [["none", "", *before], *rows]:
        print("| " + " | ".join(row) + " |")


if __name__ == "__main__":
    main()
