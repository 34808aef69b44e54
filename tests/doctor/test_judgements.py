"""The doctor's findings on values that are chosen by hand."""

import pytest
import torch
from packaging.requirements import Requirement
from support.families import EVERY, make_family
from support.selection import slow_except

from lora_hf.data.tokenize import Truncation
from lora_hf.doctor.adapter_files import judge_zeros
from lora_hf.doctor.adapter_on_base import judge_activations, judge_effect, judge_merging
from lora_hf.doctor.base import head
from lora_hf.doctor.check import Check, examine
from lora_hf.doctor.configs import judge_cut, judge_memory
from lora_hf.doctor.machine import version_of
from lora_hf.errors import UserError
from lora_hf.models.head import head_fault

ONE, TWO = torch.ones(2, 3), torch.full((2, 3), 2.0)
GATED = {"model_type": "t5", "feed_forward_proj": "gated-gelu"}
OLD = GATED | {"feed_forward_proj": "relu"}
LONG = GATED | {"model_type": "longt5"}


@pytest.mark.parametrize(
    ("settings", "held", "state"),
    [
        (GATED, TWO, "ok"),
        (GATED, None, "fault"),
        (GATED, ONE, "fault"),
        (GATED | {"tie_word_embeddings": True}, None, "fault"),  # as Transformers saves a tied one
        (OLD, None, "ok"),  # T5 of version 1.0 is tied
        (OLD | {"tie_word_embeddings": False}, ONE, "fault"),
        (LONG, None, "ok"),  # tied as Transformers ties it
        (LONG | {"tie_word_embeddings": False}, TWO, "ok"),
        ({"model_type": "fsmt", "tie_word_embeddings": False}, None, "ok"),  # whose head has another name
        ({"model_type": "mt5"}, None, "fault"),
        # what Transformers 5 writes of a model that it has tied, whose config was given false
        (LONG | {"scale_decoder_outputs": False, "tie_word_embeddings": True}, None, "ok"),
        (GATED | {"scale_decoder_outputs": False}, None, "fault"),
        ({"tie_word_embeddings": True}, None, "ok"),
    ],
)
def test_an_untied_head_must_exist_and_differ_from_the_embeddings(settings, held, state) -> None:
    assert bool(head_fault(settings, held, ONE)) == (state == "fault")


@pytest.mark.parametrize(
    ("error", "dtype", "state"),
    [
        (1e-6, torch.float32, "ok"),
        (3e-4, torch.float32, "ok"),  # the square root of 1.2e-7 is 3.45e-4
        (4e-4, torch.float32, "fault"),
        (4e-2, torch.bfloat16, "ok"),  # the square root of 7.8e-3 is 8.8e-2
        (9e-2, torch.bfloat16, "fault"),
        (float("nan"), torch.float32, "fault"),
    ],
)
def test_merging_may_lose_half_of_the_digits(error, dtype, state) -> None:
    assert judge_merging({"merged": error}, dtype).state == state


def test_merging_into_a_quantized_base_is_reported_and_not_a_fault() -> None:
    finding = judge_merging({"checkpoint": 0.2, "requantized": 0.3}, torch.float32)
    assert finding.state == "ok" and "2.0e-01" in finding.title and "--onto" in finding.title


def cut_of(sources: list[int], targets: list[int]) -> Truncation:
    cut = [sum(length > limit for length in of) for of, limit in ((sources, 512), (targets, 128))]
    lengths = {"source_lengths": sources, "target_lengths": targets}
    return Truncation("train", len(sources), cut[0], cut[0], 512, cut[1], 128, **lengths)


@pytest.mark.parametrize(
    ("sources", "targets", "state", "remedy"),
    [
        (0, 0, "ok", ""),
        (5, 5, "ok", ""),
        (6, 0, "fault", "set data.max_source_length=904, or shorten the rows: a run begins all the"),
        (0, 6, "fault", "set data.max_target_length=208, or"),
        (6, 1, "fault", "set data.max_source_length=904, or"),  # one of a hundred is few
        (6, 2, "fault", "set data.max_source_length=904 and data.max_target_length=208, or"),
    ],
)
def test_more_than_a_twentieth_cut_is_a_fault_that_gives_the_lengths(sources, targets, state, remedy) -> None:
    cut = cut_of([900] * sources + [40] * (100 - sources), [201] * targets + [9] * (100 - targets))
    (found,) = judge_cut([cut])
    assert found.state == state and found.remedy.startswith(remedy) and bool(found.remedy) == bool(remedy)


def test_lengths_that_are_proposed_are_not_beyond_the_model_s() -> None:
    cut = cut_of([900] * 9, [9] * 9)
    (bounded,) = judge_cut([cut], most=(600, None))
    assert bounded.remedy.startswith("set data.max_source_length=600, the most that the model can take, or")
    (short,) = judge_cut([cut], most=(512, None))
    assert short.remedy.startswith("shorten the rows: a run begins all the same")


def test_one_finding_has_the_lengths_that_all_splits_need() -> None:
    splits = [cut_of([900] * 9, [9] * 9), cut_of([700] * 9, [200] * 9), cut_of([9] * 9, [9] * 9)]
    kept, found = judge_cut(splits)
    assert kept.state == "ok" and found.title.count("train: 9 of 9 dialogues are cut") == 2
    assert found.remedy.startswith("set data.max_source_length=904 and data.max_target_length=200, or")


def test_too_little_memory_is_a_fault() -> None:
    way = {"overrides": ["model.load_in_4bit=true"], "peak_bytes": 2**29}
    assert judge_memory(2**30, 2**30, []).state == "ok"
    short = judge_memory(2**30 + 1, 2**30, [way])
    assert short.state == "fault" and short.title == "a step needs 1.0 GiB, and 1.0 GiB are free"
    assert short.remedy == "one of these fits: model.load_in_4bit=true (512.0 MiB)"
    assert "smaller model" in judge_memory(2**30 + 1, 2**30, []).remedy
    on_cpu = judge_memory(2**30, 2**30, [], is_on_cpu=True)
    assert on_cpu.title.startswith("a step needs 1.0 GiB on top of Python and PyTorch, and")


def test_activations_beyond_float16_are_reported_and_infinite_logits_are_a_fault() -> None:
    assert "beyond float16" not in judge_activations("float32", True, 65_504, True).title
    assert "66,246, and beyond float16's 65,504" in judge_activations("float32", True, 66_246, True).title
    assert judge_activations("bfloat16", False, 1.0, True).state == "fault"


def test_an_adapter_without_effect_and_zero_matrices_are_faults() -> None:
    assert [judge_effect(moved).state for moved in (0.0, 1e-9, float("nan"))] == ["fault", "ok", "fault"]
    names = [f"layer.{number}" for number in range(5)]
    assert judge_zeros([], 9).state == "ok"
    assert judge_zeros(names, 9).title.endswith("do nothing: layer.0, layer.1, layer.2 and 2 more")


@pytest.mark.parametrize(
    ("line", "expected"),
    [
        ("torch>=999", "is installed in version"),
        ("no-such-package>=1", "is not installed"),
        ("torch>=1", None),
    ],
)
def test_a_package_that_is_absent_or_too_old_is_a_fault_with_pip_s_line(
    line: str, expected: str | None
) -> None:
    findings = list(version_of(Requirement(line)))
    assert bool(findings) == bool(expected)
    assert not expected or (expected in findings[0].title and findings[0].remedy == f"pip install '{line}'")


INSTALL, RESIZE = "pip install 'lora_hf[x]'", "resize it first, by a call, or give another base"


@pytest.mark.parametrize(
    ("before", "remedy", "after"), [(": ", INSTALL, ""), (" (", INSTALL, ")"), (": ", RESIZE, "")]
)
def test_the_remedy_of_an_error_that_has_its_own_is_that_one(before, remedy, after) -> None:
    def check():
        raise UserError(f"its tokenizer needs the package x{before}{remedy}{after}")
        yield

    (finding,) = examine({"tokenizer": Check(check, "add the tokenizer's files")}, {})
    assert (finding.title, finding.remedy) == ("its tokenizer needs the package x", remedy)


def test_a_longt5_that_transformers_has_tied_is_green(tmp_path) -> None:
    make_family("LongT5", tie_word_embeddings=False).save_pretrained(tmp_path)
    assert [finding.state for finding in head(tmp_path)] == ["ok"]


@pytest.mark.parametrize(  # the heads of three are tied here by accident
    "family",
    slow_except(("Bart", "LongT5", "FSMT", "BertGpt2", "T5Gemma"), sorted({*EVERY} - {"T5", "MT5", "UMT5"})),
)
def test_the_head_of_a_right_checkpoint_is_green_in_every_family(family, tmp_path) -> None:
    make_family(family).save_pretrained(tmp_path)
    assert [finding.state for finding in head(tmp_path)] == ["ok"]
