"""A tiny T5 with the same weights in every version of Transformers, and adapters of the installed PEFT.

As a script it runs in the environment of an older PEFT, and imports nothing of this project:

    python tests/support/old_peft.py write FOLDER       adapters, and the logits with each
    python tests/support/old_peft.py read FOLDER...     the logits with adapters that lora_hf wrote
"""

import sys
from pathlib import Path
from typing import Any

if __name__ == "__main__":  # newer than these versions of PEFT, and not needed
    sys.modules |= dict.fromkeys(("torchao", "bitsandbytes", "hqq"))  # type: ignore[arg-type]

import torch
from safetensors.torch import save_file
from torch import Tensor
from transformers import T5Config, T5ForConditionalGeneration

LOGITS = "logits.safetensors"
SHAPE = {"vocab_size": 32, "d_model": 16, "d_kv": 4, "d_ff": 24, "num_layers": 2, "num_heads": 2}
CASES: dict[str, tuple[tuple[int, int], dict[str, Any]]] = {
    "plain": ((0, 4), {}),
    "blocks": ((0, 4), {"layers_to_transform": [0]}),
    "pattern": ((0, 4), {"layers_to_transform": [1], "layers_pattern": "block"}),
    "head": ((0, 4), {"target_modules": ["q", "wi", "q_proj"], "modules_to_save": ["lm_head"]}),
    "ranks": ((0, 7), {"rank_pattern": {"v": 3, "wi": 2}, "alpha_pattern": {"q": 7}}),
    "dora": ((0, 10), {"use_dora": True, "use_rslora": True}),
}
"""Name -> the first version of PEFT that has the fields, and the fields."""


def base() -> Any:
    """Return the model: the weights depend on nothing but the order of their names."""
    fixed = {"feed_forward_proj": "gated-gelu", "dropout_rate": 0.0, "decoder_start_token_id": 0}
    model = T5ForConditionalGeneration(T5Config(**SHAPE, **fixed, tie_word_embeddings=False))
    model.lm_head.weight = torch.nn.Parameter(torch.zeros(SHAPE["vocab_size"], SHAPE["d_model"]))
    model.config.tie_word_embeddings = False
    move(model, 0)
    return model.eval()


def move(model: torch.nn.Module, seed: int) -> None:
    """Draw all trainable weights again."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for _, weight in sorted(model.named_parameters()):
            if weight.requires_grad:
                weight.copy_(0.3 * torch.randn(weight.shape, generator=generator))


def logits(model: torch.nn.Module) -> Tensor:
    """Return the logits of three short texts."""
    ids = torch.arange(3, 30).view(3, 9)
    with torch.no_grad():
        found: Tensor = model.eval()(input_ids=ids, labels=ids[:, :4].contiguous()).logits
    return found.contiguous()


def write(folder: Path) -> None:
    """Write the cases that the installed PEFT knows."""
    import peft

    for name, (since, fields) in CASES.items():
        if since > _version(peft.__version__):
            continue
        plain = {"r": 2, "lora_alpha": 5, "target_modules": ["q", "v"], "task_type": "SEQ_2_SEQ_LM"}
        model = peft.get_peft_model(base(), peft.LoraConfig(**{**plain, **fields}))
        move(model, 1)
        model.save_pretrained(str(folder / name), safe_serialization=True)
        (folder / name / "README.md").unlink(missing_ok=True)
        save_file({"logits": logits(model)}, folder / name / LOGITS)


def read(folders: list[Path]) -> None:
    """Write the logits that the installed PEFT computes with these adapters."""
    import peft

    for folder in folders:
        model = peft.PeftModel.from_pretrained(base(), str(folder))
        save_file({"logits": logits(model)}, folder / LOGITS)


def _version(text: str) -> tuple[int, int]:
    major, minor = text.split(".")[:2]
    return int(major), int(minor)


if __name__ == "__main__":
    if sys.argv[1] == "write":
        write(Path(sys.argv[2]))
    else:
        read([Path(name) for name in sys.argv[2:]])
