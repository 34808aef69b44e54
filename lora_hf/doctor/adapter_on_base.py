"""Checks of an adapter on its base: whether it loads, and its effect."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from lora_hf.adapters import LoraConfig, merge_errors
from lora_hf.adapters.active import adapters_off
from lora_hf.adapters.model_state import lora_layers, model_state
from lora_hf.adapters.saved_adapter import SavedAdapter
from lora_hf.config import ModelConfig, RunConfig
from lora_hf.doctor.check import CannotTell, Finding, Findings, fault, ok, unknown
from lora_hf.doctor.configs import tokens_cut
from lora_hf.errors import UserError, counted
from lora_hf.evaluation.metrics import Scoring
from lora_hf.families import family_of
from lora_hf.models.load import load_model
from lora_hf.saved.find_adapter import config_of_run, own_tokenizer, run_directory, settings_on_sample
from lora_hf.saved.merge import sample_batch
from lora_hf.system import device_name, pick_device
from lora_hf.training.registry import load_saved

FLOAT16_MAX = torch.finfo(torch.float16).max
SAMPLED_DIALOGUES = 200
"""Dialogues of the embedded sample to tokenize, if the adapter's own data is unknown."""


class Adapted(NamedTuple):
    """An adapter on its base, and a few tokenized dialogues of the embedded sample with its own prompt."""

    model: Any
    batch: dict[str, Tensor]


def base(storage: ModelConfig, checkpoint: Path) -> Findings:
    """Load the base; return it."""
    model = load_model(storage, pick_device())
    yield ok(f"loads in {str(model.dtype).removeprefix('torch.')} on {device_name(model.device)}")
    return model


def adapted(adapter: SavedAdapter, base: Any, tokenizer: Any) -> Findings:
    """Load the adapter as every command does; return it on its base.

    Loading compares the weights' hash, the base's fingerprint, the target layers, and the name and shape of
    every tensor.
    """
    model = load_saved(base, adapter).eval()
    layers = len(lora_layers(model))
    yield ok(f"loads on {counted(layers, 'layer')}" if layers else "loads")
    if adapter.is_intact is None:
        yield unknown(
            "the weights' hash is not recorded (PEFT writes none): a changed file would not be noticed"
        )
    if not (adapter.manifest.get("base_fingerprint") and model_state(base).base_fingerprint):
        yield unknown("the base's fingerprint is not recorded (PEFT writes none): only shapes were compared")
    return Adapted(model, sample_batch(model, tokenizer, adapter))


def dtype(adapted: Adapted, numbers: None) -> Findings:
    """Check that a forward pass is finite; report its largest activation beside float16's largest number."""
    model = adapted.model
    with largest_activation(model) as largest, torch.no_grad():
        logits = model(**adapted.batch).logits
    computed = str(model.dtype).removeprefix("torch.")
    overflows = family_of(model).overflows_float16
    yield judge_activations(computed, bool(logits.isfinite().all()), largest[0], overflows)


@contextmanager
def largest_activation(model: nn.Module) -> Iterator[list[float]]:
    """Inside the block, keep the largest absolute output of any module, in a list of one value."""
    largest = [0.0]

    def look(module: nn.Module, inputs: Any, output: Any) -> None:
        if isinstance(output, Tensor) and output.is_floating_point():
            largest[0] = max(largest[0], output.abs().max().item())

    hooks = [module.register_forward_hook(look) for module in model.modules()]
    try:
        yield largest
    finally:
        for hook in hooks:
            hook.remove()


def judge_activations(computed: str, is_finite: bool, largest: float, overflows: bool) -> Finding:
    """Return the finding on a forward pass in the data type `computed`."""
    if not is_finite:
        remedy = "load the base in float32 (model.dtype), and compare with the base alone"
        return fault(f"the logits of a sample are not finite in {computed}", remedy)
    if largest > FLOAT16_MAX:
        end = f"beyond float16's {FLOAT16_MAX:,.0f}: use {computed} or float32"
    else:
        end = f"float16 ends at {FLOAT16_MAX:,.0f}" + (
            "; this family trains in bfloat16 or float32" if overflows else ""
        )
    return ok(f"finite in {computed}; the largest activation is {largest:,.0f}, and {end}")


def effect(settings: LoraConfig | None, adapted: Adapted, dtype: None) -> Findings:
    """Check that the adapter changes the base's output."""
    if settings is None:
        return
    model, batch = adapted
    with torch.no_grad():
        with_it = model(**batch).logits.float()
        with adapters_off(model):
            without = model(**batch).logits.float()
    yield judge_effect(((with_it - without).norm() / without.norm()).item())


def judge_effect(moved: float) -> Finding:
    """Return the finding on the change of the logits, as a share of their size."""
    if moved > 0:
        return ok(f"changes the logits of a sample by {moved:.1%} of their size")
    return fault("does not change the logits of a sample", "train it, or use the base alone")


def merging(settings: LoraConfig | None, adapted: Adapted, dtype: None) -> Findings:
    """Check that merging changes the output by rounding only."""
    if settings is None:
        return
    yield judge_merging(merge_errors(*adapted), adapted.model.dtype)


def judge_merging(errors: Mapping[str, float], dtype: torch.dtype) -> Finding:
    """Return the finding on the errors of merging: on a dense base, half of the digits must stay."""
    if "merged" not in errors:
        each = ", ".join(f"{way} changes the logits by {error:.1e}" for way, error in errors.items())
        return ok(f"the base is quantized: choose by lora-hf merge --onto; {each} of their size")
    reported = f"merging changes the logits by {errors['merged']:.1e} of their size"
    if errors["merged"] <= torch.finfo(dtype).eps ** 0.5:
        return ok(reported)
    computed = str(dtype).removeprefix("torch.")
    remedy = "merge into the base in float32, or use the adapter unmerged"
    return fault(f"{reported}, more than rounding in {computed} explains", remedy)


def tokens(adapter: SavedAdapter, storage: ModelConfig, tokenizer: Any) -> Findings:
    """Check that few dialogues are truncated, of the run's own data or of the embedded sample."""
    tokenizer = own_tokenizer(adapter, storage, tokenizer) or tokenizer
    if run := run_of(adapter):
        try:
            yield from tokens_cut(run.data, tokenizer, scoring=Scoring.of_config(run))
        except UserError as error:  # the data was removed: not a fault of the adapter
            raise CannotTell(f"the run's data cannot be read: {error}") from error
        return
    sample = settings_on_sample(adapter, max_test_samples=SAMPLED_DIALOGUES).data
    for finding in tokens_cut(sample, tokenizer, ("test",)):
        yield Finding(finding.state, f"embedded sample, {finding.title}", finding.remedy)


def run_of(adapter: SavedAdapter) -> RunConfig | None:
    """Return the config of the run that an adapter belongs to, or None."""
    if run_directory(adapter) is None:
        return None
    try:
        return config_of_run(adapter)
    except UserError as error:
        raise CannotTell(f"the run's config cannot be read: {error}") from error
