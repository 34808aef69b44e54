"""A base that cannot train, by its numbers or its dtype, is refused before the first step."""

from pathlib import Path
from typing import Any

import pytest
import torch
from support.models import make_t5
from support.tiny_trainer import CONFIG, arguments, make_trainer
from torch import nn
from transformers import T5Config, T5ForConditionalGeneration

from lora_hf import inject_adapters
from lora_hf.errors import UserError
from lora_hf.models.storage.bitsandbytes import nothing_kept_dense
from lora_hf.training.nan_guard import check_base_dtype


def t5_of(dtype: torch.dtype) -> nn.Module:
    return inject_adapters(make_t5().to(dtype), CONFIG)


def test_training_a_base_in_float16_is_refused(tmp_path: Path) -> None:
    trainer = make_trainer(t5_of(torch.float16), arguments(tmp_path))
    with pytest.raises(UserError, match="is in float16, in which this family overflows.*model.dtype"):
        trainer.train()
    check_base_dtype(t5_of(torch.bfloat16))


def quantized(folder: Path, **fields: Any) -> nn.Module:
    from transformers import BitsAndBytesConfig

    torch.manual_seed(0)
    sizes = {"vocab_size": 96, "d_model": 64, "d_kv": 32, "d_ff": 64, "num_layers": 1, "num_heads": 2}
    T5ForConditionalGeneration(T5Config(feed_forward_proj="gated-gelu", **sizes)).save_pretrained(folder)
    how = BitsAndBytesConfig(**fields)
    return T5ForConditionalGeneration.from_pretrained(folder, quantization_config=how, device_map="cpu")


@pytest.mark.parametrize("bits", ["load_in_4bit", "load_in_8bit"])
def test_quantized_weights_that_were_cast_are_refused(bits: str, tmp_path: Path) -> None:
    model = quantized(tmp_path / "base", **{bits: True})
    check_base_dtype(model)
    q = model.get_submodule("encoder.block.0.layer.0.SelfAttention.q")
    q.weight.data = q.weight.data.to(torch.bfloat16)
    trainer = make_trainer(inject_adapters(model, CONFIG), arguments(tmp_path / "out"))
    kept = "uint8" if bits == "load_in_4bit" else "int8"
    said = f"SelfAttention.q.*: quantized weights of torch.{kept} were cast to torch.bfloat16; load"
    with pytest.raises(UserError, match=said):
        trainer.train()


def test_a_wo_in_packed_bytes_is_refused(tmp_path: Path) -> None:
    with nothing_kept_dense(T5Config()):
        model = quantized(tmp_path, load_in_4bit=True)
    with pytest.raises(
        UserError,
        match="wo: T5DenseGatedActDense casts its input to the weight's dtype, torch.uint8; keep it dense",
    ):
        check_base_dtype(model)
    with nothing_kept_dense(T5Config()):
        check_base_dtype(quantized(tmp_path, load_in_4bit=True, bnb_4bit_quant_storage=torch.int8))
