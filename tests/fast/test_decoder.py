"""The written-out decoder gives the logits of the model's own forward, token by token."""

from contextlib import nullcontext
from typing import Any

import pytest
import torch
from support.models import T5_SHAPE, TOKENS, make_mt5, make_t5, make_umt5, nf4_t5, randomize
from torch import Tensor
from transformers import T5Config, T5ForConditionalGeneration

from lora_hf import LoraConfig, adapter_rows, inject_adapters, merge_adapters, set_adapter
from lora_hf.adapters.active import shrinking_batch
from lora_hf.fast import decoder as decoders
from lora_hf.fast.decoder import T5Decoder, can_step
from lora_hf.fast.packed import packed
from lora_hf.fast.t5 import faster

ROWS, SOURCE = 4, 9


def adapted(model: Any, **settings: Any) -> Any:
    for name in ("a", "b"):
        inject_adapters(model, LoraConfig(**({"r": 3} | settings)), name)
    randomize(model)
    set_adapter(model, "a")
    return model.eval()


def merged() -> Any:
    model = adapted(make_t5())
    merge_adapters(model)
    return model


def other_scale() -> Any:
    model = make_t5()
    model.config.scale_decoder_outputs = not model.config.scale_decoder_outputs
    return model


def not_gated() -> Any:
    torch.manual_seed(0)
    return T5ForConditionalGeneration(T5Config(**T5_SHAPE | {"feed_forward_proj": "relu"})).eval()


MODELS: dict[str, Any] = {
    "T5": make_t5,
    "mT5": make_mt5,
    "the other scale of outputs": other_scale,
    "not gated": not_gated,
    "LoRA": lambda: adapted(make_t5()),
    "DoRA, all linear": lambda: adapted(make_t5(), use_dora=True, target_modules="all-linear"),
    "merged": merged,
    "replicated": lambda: adapted(make_t5(), layer_replication={"decoder": [[0, 2], [0, 2]]}),
    "bfloat16": lambda: make_t5().bfloat16(),
    "nf4": nf4_t5,
}


def batch() -> tuple[Tensor, Tensor, Tensor]:
    """Return sources and their mask, padded on the right, and the tokens of each row."""
    torch.manual_seed(0)
    mask = (torch.arange(SOURCE) < torch.tensor([9, 7, 5, 2])[:, None]).long()
    return torch.randint(3, TOKENS, (ROWS, SOURCE)), mask, torch.randint(3, TOKENS, (ROWS, 12))


def expected(model: Any, ids: Tensor, mask: Tensor, tokens: Tensor) -> Tensor:
    """Return the logits (rows, tokens, vocabulary) by Transformers, with the whole text at once."""
    return model(input_ids=ids, attention_mask=mask, decoder_input_ids=tokens, use_cache=False).logits


@torch.inference_mode()
def check(model: Any, names: list[str | None] | None = None, **tolerance: float) -> None:
    """Compare six tokens of all rows, and six more of rows 1 and 3 without their common padding."""
    ids, mask, tokens = batch()
    chosen = adapter_rows(model, names, frozen=True) if names else nullcontext()
    with chosen, shrinking_batch(model) as keep:
        whole = expected(model, ids, mask, tokens)
        with faster(model), packed(model):
            hidden = model.get_encoder()(input_ids=ids, attention_mask=mask).last_hidden_state
            assert can_step(model, hidden, mask)
            step, kept = T5Decoder(model, hidden, mask), torch.tensor([1, 3])
            for at in range(6):
                torch.testing.assert_close(step(tokens[:, at]), whole[:, at], **tolerance)
            step.keep(kept, SOURCE - 7)
            keep(kept.tolist())
            for at in range(6, 12):
                torch.testing.assert_close(step(tokens[kept, at]), whole[kept, at], **tolerance)


@pytest.mark.parametrize("kind", MODELS)
def test_logits_are_those_of_the_model(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(decoders, "INITIAL_CAPACITY", 4)  # buffers grow twice
    model = MODELS[kind]()
    is_half = model.dtype == torch.bfloat16
    check(model, **({"atol": 0.1, "rtol": 0.1} if is_half else {"atol": 1e-4, "rtol": 1e-4}))


def test_each_row_keeps_its_adapter() -> None:
    check(adapted(make_t5()), ["a", "b", None, "b"], atol=1e-4, rtol=1e-4)


def test_a_token_far_from_the_first_has_the_bias_of_its_distance(monkeypatch: pytest.MonkeyPatch) -> None:
    """Buckets of distances are wide beyond 16 tokens, and the last one is open."""
    monkeypatch.setattr(decoders, "INITIAL_CAPACITY", 8)
    model, (ids, mask, _) = make_t5(), batch()
    torch.manual_seed(1)
    tokens = torch.randint(3, TOKENS, (1, 200))
    with torch.inference_mode():
        whole = expected(model, ids[:1], mask[:1], tokens)
        step = T5Decoder(model, model.encoder(input_ids=ids[:1]).last_hidden_state, mask[:1])
        for at in range(200):
            torch.testing.assert_close(step(tokens[:, at]), whole[:, at], atol=1e-4, rtol=1e-4)


def with_hook() -> Any:
    model = make_t5()
    model.decoder.block[1].layer[2].register_forward_hook(lambda *args: None)
    return model


def with_own_forward() -> Any:
    model = make_t5()
    model.decoder.block[0].forward = model.decoder.block[0].forward
    return model


@pytest.mark.parametrize(
    "make",
    [with_hook, with_own_forward, make_umt5, lambda: make_t5().half()],
    ids=["a hook", "a forward of its own", "UMT5", "float16"],
)
def test_what_a_forward_adds_is_left_to_the_model(make: Any) -> None:
    model, (_, mask, _) = make(), batch()
    hidden = torch.zeros(ROWS, SOURCE, model.config.d_model, dtype=model.dtype)
    assert can_step(make_t5(), hidden.float(), mask)
    assert not can_step(model, hidden, mask)


def test_other_shapes_and_autocast_are_left_to_the_model() -> None:
    model, (_, mask, _) = make_t5(), batch()
    hidden = torch.zeros(ROWS, SOURCE, model.config.d_model)
    assert not can_step(model, hidden, mask[:, 1:])  # prompt tuning: positions without a mask
    assert not can_step(model, hidden.to("meta"), mask)
    with torch.autocast("cpu", torch.bfloat16):
        assert not can_step(model, hidden, mask)
