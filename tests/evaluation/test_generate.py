"""The fast way of writing summaries writes what `generate` writes, and leaves the model as it was."""

import logging
import re
from contextlib import nullcontext
from itertools import product
from typing import Any

import pytest
import torch
from accelerate import cpu_offload
from support.models import TOKENS, make_bart, make_mt5, make_t5, make_umt5, randomize, untie_head
from support.selection import slow_except
from torch import nn
from torch.nn.utils import parametrize, prune
from transformers import GenerationConfig, LogitsProcessorList, PrefixConstrainedLogitsProcessor

from lora_hf import (
    LoraConfig,
    UserError,
    disable_adapters,
    inject_adapters,
    merge_adapters,
    merge_and_unload,
    set_adapter,
)
from lora_hf.adapters.layer import LoraLayer
from lora_hf.adapters.merge import merged_where_exact
from lora_hf.baselines.prompt_tuning import add_prompt
from lora_hf.evaluation import generate as module
from lora_hf.evaluation.decoding import greedy
from lora_hf.evaluation.generate import fast_generation, generate_summaries, padded
from lora_hf.fast import packed as packing

NEW, ROOM = 22, 12
"""Tokens at most, and those that a buffer has room for at first: the longest rows need more."""
ROWS = 14


@pytest.fixture(autouse=True)
def small_buffers(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("lora_hf.evaluation.decoding.INITIAL_CAPACITY", ROOM)


class Tokenizer:
    """Numbers for tokens."""

    pad_token_id = 0

    def batch_decode(self, tokens: Any, skip_special_tokens: bool) -> list[str]:
        return [" ".join(str(int(t)) for t in row if t > 1) for row in tokens]


def ending(model: nn.Module) -> nn.Module:
    """Make a random model end its rows here and there: after as many tokens as the source's length says."""

    def raise_end(module: Any, args: Any, kwargs: dict[str, Any], outputs: Any) -> Any:
        if outputs.past_key_values is None:
            return outputs  # the probe of rows
        step = outputs.past_key_values.get_seq_length()
        mask = kwargs["attention_mask"]
        lengths = mask.sum(1) if mask.dim() == 2 else (mask[:, 0, 0] == 0).sum(1)  # ready: what is added
        lengths = lengths.repeat_interleave(len(outputs.logits) // len(lengths))  # one source for its beams
        ends = torch.where(step >= 3 + lengths * 7 % 17, 1e4, -1e4)
        outputs.logits[:, -1, model.config.eos_token_id] = ends.to(outputs.logits.dtype)
        return outputs

    model.register_forward_hook(raise_end, with_kwargs=True)
    return model


def adapted(make: Any) -> nn.Module:
    targets = ["q_proj", "v_proj"] if make is make_bart else ["q", "v"]
    base = make()
    if make in (make_mt5, make_umt5):
        untie_head(base)
    model = inject_adapters(base, LoraConfig(r=4, target_modules=targets))
    randomize(model)
    return ending(model.eval())


def sources(n: int = ROWS, seed: int = 0) -> list[list[int]]:
    generator = torch.Generator().manual_seed(seed)
    lengths = torch.randint(1, 30, (n,), generator=generator).tolist()
    return [torch.randint(2, TOKENS, (k,), generator=generator).tolist() for k in lengths]


def write(model: Any, **options: Any) -> list[str]:
    return generate_summaries(model, Tokenizer(), sources(), NEW, **options)


@pytest.mark.parametrize(
    ("beams", "make"),
    slow_except(
        [(1, make_umt5), (3, make_t5)],
        product((1, 3), (make_t5, make_mt5, make_umt5, make_bart)),
        versions=[(3, make_bart)],
    ),
)
def test_the_same_tokens_whatever_the_batch(make: Any, beams: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "ENCODER_TOKENS", 50)  # several parts a batch
    model = adapted(make)
    one_by_one = write(model, batch_size=1, fast_paths=False, num_beams=beams)
    assert len(set(one_by_one)) >= 10
    assert len({len(text.split()) for text in one_by_one}) > 8  # rows end at different steps
    for sizes in ({"batch_size": 8}, {"batch_tokens": 100}, {}):
        assert write(model, num_beams=beams, **sizes) == one_by_one


@pytest.mark.parametrize("make", slow_except([make_t5], [make_t5, make_mt5, make_umt5]))
def test_masks_made_ahead_as_on_a_gpu_give_the_same_tokens(
    make: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = adapted(make)
    expected = write(model)
    monkeypatch.setattr("lora_hf.evaluation.decoding.MASKS_AHEAD", ("cpu",))
    assert write(model) == expected


def test_a_summary_may_have_as_many_tokens_as_generate_writes_and_no_fewer() -> None:
    model, limit = make_t5(), 4  # at random weights it does not end before
    ids = torch.tensor([sources()[0]])
    plain = model.generate(input_ids=ids, max_new_tokens=limit, max_length=None, do_sample=False)
    expected = [int(token) for token in plain[0] if token > 1]
    assert len(expected) == limit
    for fast_paths in (True, False):
        (text,) = generate_summaries(model, Tokenizer(), ids.tolist(), limit, fast_paths=fast_paths)
        assert [int(token) for token in text.split()] == expected


def test_further_options_reach_generate() -> None:
    model = adapted(make_t5)
    options: dict[str, Any] = {"no_repeat_ngram_size": 1, "min_new_tokens": 6}
    fast = write(model, **options)
    assert fast == write(model, fast_paths=False, **options) != write(model)
    assert all(len(set(text.split())) == len(text.split()) for text in fast)


def test_the_model_s_own_configuration_is_followed() -> None:
    model = adapted(make_t5)
    greedy_ones, searched = write(model), write(model, num_beams=3, fast_paths=False)
    model.generation_config.num_beams = 3
    assert write(model) == searched != greedy_ones
    assert write(model, num_beams=1) == greedy_ones
    given = GenerationConfig(num_beams=2, pad_token_id=0, eos_token_id=1)
    assert write(model, generation_config=given) == write(model, num_beams=2) != searched


@pytest.mark.parametrize(
    ("options", "why"),
    [
        pytest.param({"num_beams": 3, "use_cache": False}, "use_cache is off", marks=pytest.mark.slow),
        ({"use_cache": False}, "use_cache is off"),
        ({"decoder_input_ids": torch.tensor([[0, 5, 6]] * ROWS)}, "decoder_input_ids is given"),
    ],
)
def test_unsupported_options_use_generate_and_say_so(
    options: dict[str, Any], why: str, caplog: pytest.LogCaptureFixture
) -> None:
    model = adapted(make_t5)
    model._forward_hooks.clear()  # the one that ends rows needs the cache
    plain = write(model, fast_paths=False, **options)
    with caplog.at_level("DEBUG", "lora_hf"):
        assert write(model, **options) == plain
    assert f"using Transformers' own decoding: {why}" in caplog.text


@pytest.mark.parametrize(
    "options",
    [{"penalty_alpha": 0.6, "top_k": 4}, {"num_beams": 4, "num_beam_groups": 2, "diversity_penalty": 0.5}],
)
def test_generation_options_that_transformers_refuses_are_refused(options: dict[str, Any]) -> None:
    for fast_paths in (False, True):
        with pytest.raises(ValueError):
            write(adapted(make_t5), fast_paths=fast_paths, **options)


@pytest.mark.parametrize(
    "options",
    [
        {"do_sample": True, "temperature": 5.0},
        {"top_p": 0.5},
        {"num_return_sequences": 2, "num_beams": 2},
        {"return_dict_in_generate": True},
    ],
)
def test_options_that_draw_or_return_something_else_are_refused(options: dict[str, Any]) -> None:
    model, given = adapted(make_t5), GenerationConfig(**options)
    for asked in (options, {"generation_config": given}):
        with pytest.raises(UserError, match=f"{next(iter(options))}=.*: remove it, or call the model's own"):
            write(model, **asked)
    neutral = {"do_sample": False, "temperature": 1.0, "top_k": 50, "top_p": 1.0, "num_return_sequences": 1}
    assert write(model, **neutral) == write(model)


def test_a_model_whose_weights_accelerate_fetches_is_used_as_it_is_or_refused() -> None:
    plain = write(make_t5())
    assert write(cpu_offload(make_t5(), execution_device=torch.device("cpu"))) == plain
    model = cpu_offload(adapted(make_t5), execution_device=torch.device("cpu"))
    with pytest.raises(UserError, match="accelerate keeps weights of .*adapters need them"):
        write(model)


def test_layers_that_do_not_compute_what_their_weight_says_are_not_merged() -> None:
    model = adapted(make_t5)
    layers = [m for m in model.modules() if isinstance(m, LoraLayer)]
    prune.l1_unstructured(layers[0].base_layer, "weight", 0.5)
    parametrize.register_parametrization(layers[1].base_layer, "weight", nn.Dropout(0.0))
    layers[2].base_layer.register_forward_hook(lambda module, args, output: 0 * output)
    assert write(model) == write(model, fast_paths=False)
    with merged_where_exact(model):
        assert [bool(layer.merged) for layer in layers[:4]] == [False] * 3 + [True]
    for merge in (merge_adapters, merge_and_unload):
        with pytest.raises(UserError, match=r"merging: .*base_layer is pruned: .*prune.remove"):
            merge(model)


def test_prompt_tuning_whose_encoder_puts_positions_before_the_text() -> None:
    model = ending(make_t5())
    torch.manual_seed(0)
    add_prompt(model, 5, "random")
    assert write(model) == write(model, fast_paths=False, batch_size=4)


@pytest.mark.parametrize(
    ("sources", "says"),
    [
        ("Hi", "sources='Hi' are not token ids: pass lists of token ids, as encode_sources"),
        (None, "sources=None are not token ids"),
        (["Hi"], "sources[0]='Hi' is not a list of token ids"),
        ([[3, 1], ["a"]], "sources[1]=['a'] is not a list of token ids"),
        ([3, 1], "sources[0]=3 is not a list of token ids"),
        ([[True, 1.5]], "sources[0]=[True, 1.5] is not a list of token ids"),
        ([[3, 1], []], "sources[1] has no token"),
        ([[3, TOKENS]], f"sources[0] has the token {TOKENS}, and the model has {TOKENS} tokens"),
        ([[-100]], "sources[0] has the token -100"),
    ],
    ids=str,
)
def test_sources_that_are_no_token_ids_are_one_error(sources: Any, says: str) -> None:
    with pytest.raises(UserError, match=re.escape(says)):
        generate_summaries(make_t5(), Tokenizer(), sources, 3)


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"max_new_tokens": 0}, "max_new_tokens=0 must be a whole number of at least 1"),
        ({"max_new_tokens": "9"}, "max_new_tokens='9' must be a whole number"),
        ({"max_new_tokens": [3, 3]}, "max_new_tokens: 2 values for 1 sources"),
        ({"adapters": [None, None]}, "adapters: 2 values for 1 sources"),
        ({"batch_size": 0}, "batch_size=0 must be a whole number"),
    ],
    ids=str,
)
def test_numbers_that_fit_no_generation_are_one_error(options: dict[str, Any], says: str) -> None:
    with pytest.raises(UserError, match=re.escape(says)):
        generate_summaries(make_t5(), Tokenizer(), [[3, 1]], **({"max_new_tokens": 3} | options))


def test_token_ids_may_be_tuples_and_tensors() -> None:
    model = make_t5()
    expected = generate_summaries(model, Tokenizer(), [[5, 4, 1]], 3)
    assert generate_summaries(model, Tokenizer(), [(5, 4, 1)], 3) == expected
    assert generate_summaries(model, Tokenizer(), torch.tensor([[5, 4, 1]]), 3) == expected


def test_generation_is_correct_when_the_buffer_grows() -> None:
    """More tokens than a buffer has room for at first."""
    model = ending(make_t5())
    options = {"min_new_tokens": 2 * ROOM + 3}
    long = generate_summaries(model, Tokenizer(), sources(3), 3 * ROOM, **options)
    assert long == generate_summaries(model, Tokenizer(), sources(3), 3 * ROOM, fast_paths=False, **options)


def test_finished_rows_leave_the_batch() -> None:
    model, rows = adapted(make_t5), []
    model.decoder.register_forward_pre_hook(
        lambda module, args, kw: rows.append(len(kw["input_ids"])), with_kwargs=True
    )
    write(model)
    assert rows[0] == ROWS and rows[-1] < 3 and rows == sorted(rows, reverse=True)


def test_no_row_leaves_under_a_processor_that_knows_rows_by_their_number() -> None:
    model, rows = adapted(make_t5), []
    model.decoder.register_forward_pre_hook(
        lambda module, args, kw: rows.append(len(kw["input_ids"])), with_kwargs=True
    )
    inputs = padded(sources(8), 0, torch.device("cpu"))
    allowed = PrefixConstrainedLogitsProcessor(lambda row, ids: [1, 2 + row, 30 + row], num_beams=1)
    both = [
        model.generate(
            **inputs, max_new_tokens=NEW, logits_processor=LogitsProcessorList([allowed]), custom_generate=way
        )
        for way in (greedy, None)
    ]
    assert torch.equal(*both)
    assert set(rows) == {8}


def test_the_model_is_left_as_it_was_even_after_an_error() -> None:
    model = adapted(make_t5)
    before = {name: parameter for name, parameter in model.named_parameters()}
    copies = {name: parameter.detach().clone() for name, parameter in before.items()}
    kinds = [type(m) for m in model.modules()]
    with pytest.raises(RuntimeError, match="in the middle"), fast_generation(model):
        assert packing.PackedLinear in {type(m) for m in model.modules()}
        assert all(layer.merged for layer in model.modules() if hasattr(layer, "merged"))
        raise RuntimeError("in the middle")
    assert [type(m) for m in model.modules()] == kinds
    assert not any("packed" in vars(m) for m in model.modules())
    after = dict(model.named_parameters())
    assert after.keys() == before.keys()
    assert all(after[name] is before[name] and torch.equal(after[name], copies[name]) for name in before)


def test_disabled_adapters_are_not_merged() -> None:
    model = adapted(make_t5)
    layers = [m for m in model.modules() if hasattr(m, "merged")]
    with disable_adapters(model), merged_where_exact(model):
        assert layers and not any(layer.merged for layer in layers)


def test_adapters_merged_before_stay_merged() -> None:
    model = adapted(make_t5)
    merge_adapters(model)
    layers = [m for m in model.modules() if hasattr(m, "merged")]
    with merged_where_exact(model):
        pass
    assert all(layer.merged == {"default": 1.0} for layer in layers)


def test_a_quantized_layer_is_not_merged() -> None:
    model = adapted(make_t5)
    layers = [m for m in model.modules() if hasattr(m, "merged")]
    layers[0].base.is_quantized = True
    with merged_where_exact(model):
        assert [bool(layer.merged) for layer in layers] == [False] + [True] * (len(layers) - 1)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_packed_weights_give_the_same_product(dtype: torch.dtype) -> None:
    torch.manual_seed(0)
    layer, x = nn.Linear(70, 50, bias=True).to(dtype), torch.randn(3, 4, 70, dtype=dtype)
    with torch.no_grad():
        plain = layer(x)
        with packing.packed(layer):
            inside = layer(x)
            torch.testing.assert_close(inside, plain)
    assert type(layer) is nn.Linear


def test_packed_weights_are_not_used_with_gradients() -> None:
    layer, x = nn.Linear(8, 8), torch.randn(2, 8, requires_grad=True)
    with packing.packed(layer):
        layer(x).sum().backward()
    assert x.grad is not None and layer.weight.grad is not None


def test_too_large_a_model_is_not_packed(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(packing, "MOST_BYTES", 100)
    layer = nn.Linear(8, 8)
    with caplog.at_level(logging.DEBUG), packing.packed(layer):
        assert type(layer) is nn.Linear
    assert "not packed" in caplog.text


CROWD: dict[str, dict[str, Any]] = {
    "short": {"r": 2},
    "long": {"r": 5, "use_rslora": True, "target_modules": ["q", "o", "wo"]},
    "taken": {"r": 3, "init_lora_weights": "pissa"},
    "dora": {"r": 2, "use_dora": True},
}
MIXED = [*CROWD, None, "short", "long"] * 2


def crowded() -> nn.Module:
    model = make_t5()
    for number, (name, fields) in enumerate(CROWD.items()):
        inject_adapters(model, LoraConfig(lora_alpha=7, **fields), name)
        torch.manual_seed(number)
        with torch.no_grad():
            for parameter in model.parameters():
                if parameter.requires_grad:
                    parameter += 0.3 * torch.randn_like(parameter)
    return ending(model.eval())


def alone(model: nn.Module, name: str | None, **options: Any) -> list[str]:
    if name is not None:
        set_adapter(model, name)
    with disable_adapters(model) if name is None else nullcontext():
        return write(model, batch_size=8, fast_paths=False, **options)


@pytest.mark.parametrize("beams", slow_except([], [1, 3], versions=[1]))
def test_each_row_of_a_mixed_batch_is_what_its_adapter_alone_writes(
    beams: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "ENCODER_TOKENS", 50)  # several parts a batch, each of other rows
    model = crowded()
    by_name = {name: alone(model, name, num_beams=beams) for name in (*CROWD, None)}
    assert all(len(set(texts)) > 3 for texts in zip(*by_name.values(), strict=True))  # they differ
    expected = [by_name[name][i] for i, name in enumerate(MIXED)]
    assert len({len(text.split()) for text in expected}) > 8  # and rows leave at different steps
    for sizes in ({}, {"batch_size": 8}, {"batch_tokens": 100}, {"fast_paths": False}):
        assert write(model, adapters=MIXED, num_beams=beams, **sizes) == expected
    with fast_generation(model, merged=False):  # as a server has it
        assert write(model, adapters=MIXED, num_beams=beams) == expected
    set_adapter(model, "dora")
    assert write(model, adapters=[None] * len(MIXED), num_beams=beams) == by_name[None]


def test_each_row_may_have_its_own_maximum_length() -> None:
    model = adapted(make_t5)
    limits = [3, 15, 7, 15, 3, 15, 7] * 2
    cut = generate_summaries(model, Tokenizer(), sources(), limits)
    apart = {limit: generate_summaries(model, Tokenizer(), sources(), limit) for limit in set(limits)}
    assert cut == [apart[limit][i] for i, limit in enumerate(limits)]
    assert any(len(text.split()) == 3 for text in cut)


@pytest.mark.parametrize("fits", [True, False])
def test_adapters_are_merged_only_where_the_merged_weights_fit(
    fits: bool, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    model = inject_adapters(make_t5(), LoraConfig(r=4))
    needed = sum(layer.base.nbytes for layer in model.modules() if isinstance(layer, LoraLayer))
    monkeypatch.setattr(module, "free_memory", lambda device: 2 * needed - (not fits))
    with caplog.at_level("INFO"), fast_generation(model):
        merged = [layer.merged for layer in model.modules() if isinstance(layer, LoraLayer)]
    assert all(map(bool, merged)) if fits else not any(merged)
    assert ("adapters stay unmerged" in caplog.text) != fits


def test_memory_that_runs_out_is_one_error_and_the_model_is_as_before(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    model = inject_adapters(make_t5(), LoraConfig(r=4))
    before = [layer.base_layer.weight for layer in model.modules() if isinstance(layer, LoraLayer)]

    def no_room(*args: Any, **kwargs: Any) -> None:
        raise torch.OutOfMemoryError("CUDA out of memory.")

    monkeypatch.setattr(model, "generate", no_room)
    with pytest.raises(
        UserError, match=r"writing 4 texts: out of memory \(CUDA.*; choose a smaller generation"
    ):
        generate_summaries(model, Tokenizer(), sources(4), NEW)
    after = [layer.base_layer.weight for layer in model.modules() if isinstance(layer, LoraLayer)]
    assert all(a is b for a, b in zip(after, before, strict=True))


@pytest.mark.parametrize("how", [{}, {"num_beams": 2}, {"fast_paths": False}], ids=str)
def test_scores_that_are_not_numbers_are_an_error_and_no_text(how: dict[str, Any]) -> None:
    model = make_t5()
    sources = [[5, 6, 7, 1], [8, 9, 1]]
    assert len(generate_summaries(model, Tokenizer(), sources, 4, **how)) == 2
    with torch.no_grad():
        model.lm_head.weight[1, 0] = torch.nan  # one score, that of the end
    with pytest.raises(UserError, match="scores of the next token are NaN or infinite: look for damaged"):
        generate_summaries(model, Tokenizer(), sources, 4, **how)
    with pytest.raises(UserError, match=r"float16 has too small a range.*model.dtype to bfloat16"):
        generate_summaries(model.half(), Tokenizer(), sources, 4, **how)
