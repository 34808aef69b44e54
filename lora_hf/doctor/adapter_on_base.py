"""Checks of an adapter together with the base it was trained on: does it fit, and what does it do there."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from transformers import T5ForConditionalGeneration

from lora_hf.adapters import LoraConfig, disable_adapters, merge_errors, replicate_layers
from lora_hf.adapters.checkpoint_io import check_tensors
from lora_hf.adapters.load import check_base, check_formats, expected_shapes, without_base_copies
from lora_hf.adapters.rollback import undone
from lora_hf.adapters.saved_adapter import SavedAdapter
from lora_hf.adapters.targets import find_targets
from lora_hf.config import ModelConfig, RunConfig
from lora_hf.doctor.check import CannotTell, Finding, Findings, fault, ok, unknown
from lora_hf.doctor.configs import tokens_cut
from lora_hf.errors import UserError
from lora_hf.models.load import load_model
from lora_hf.run_files import CONFIG
from lora_hf.saved.adapter import config_of_run, prompt_config
from lora_hf.saved.merge import sample_batch
from lora_hf.system import device_name, pick_device
from lora_hf.training.registry import load_saved

FLOAT16_MAX = torch.finfo(torch.float16).max
SAMPLED_DIALOGUES = 200
"""Dialogues of the package's sample, where the adapter's own data is not known."""


class Targets(NamedTuple):
    """The layers of the base that an adapter sits on, and the tensors that it has there, by PEFT's names."""

    layers: list[str]
    shapes: dict[str, tuple[int, ...]]


def base(store: ModelConfig, checkpoint: Path) -> Findings:
    """The base loads; gives it."""
    model = load_model(store, pick_device())
    yield ok(f"loads in {str(model.dtype).removeprefix('torch.')} on {device_name(model.device)}")
    return model


def fingerprint(adapter: SavedAdapter, base: Any) -> Findings:
    """The base is the checkpoint that the adapter was trained on."""
    check_base(base, adapter)
    if not adapter.manifest.get("base_fingerprint"):
        yield unknown("the adapter's files do not say which weights it was trained on: PEFT's do not")
    elif not base.base_fingerprint:
        yield unknown("the base is in no files that could be compared")
    else:
        yield ok(f"{base.base_fingerprint}: the weights it was trained on")


def targets(adapter: SavedAdapter, settings: LoraConfig | None, base: nn.Module) -> Findings:
    """The base has every layer that the adapter names; gives them."""
    if settings is None:  # a baseline's weights: loading puts them in their places
        return None
    with undone(base):
        if settings.layer_replication:
            replicate_layers(base, settings.layer_replication)
        found = Targets(list(find_targets(base, settings)), expected_shapes(base, settings))
        check_formats(base, adapter)
    copied = f", {len(settings.modules_to_save)} copied whole" if settings.modules_to_save else ""
    yield ok(f"{len(found.layers)} layers{copied}")
    return found


def keys(
    adapter: SavedAdapter, weights: dict[str, Tensor], base: nn.Module, targets: Targets | None
) -> Findings:
    """The file has every tensor that those layers need, in its shape, and no other."""
    if targets is None:
        return
    check_tensors(without_base_copies(base, weights, adapter.folder), targets.shapes, adapter.folder)
    yield ok("none missing, none unexpected, every shape right")


def adapted(
    adapter: SavedAdapter, base: Any, hash: None, numbers: None, fingerprint: None, targets: Any, keys: None
) -> Findings:
    """It loads as every command loads it; gives the base with the adapter on it."""
    model = load_saved(base, adapter).eval()
    yield ok("the adapter loads")
    return model


def dtype(adapter: SavedAdapter, adapted: Any, tokenizer: Any) -> Findings:
    """A forward pass is finite; tells how near its activations come to float16's end."""
    with largest_activation(adapted) as largest, torch.no_grad():
        logits = adapted(**sample_batch(adapted, tokenizer, adapter)).logits
    computed = str(adapted.dtype).removeprefix("torch.")
    is_t5 = isinstance(adapted, T5ForConditionalGeneration)
    yield judge_activations(computed, bool(logits.isfinite().all()), largest[0], is_t5)


@contextmanager
def largest_activation(model: nn.Module) -> Iterator[list[float]]:
    """Inside the block, in the list's one place, the largest absolute value that any module has given out."""
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


def judge_activations(computed: str, is_finite: bool, largest: float, is_t5: bool) -> Finding:
    """The finding on a forward pass in the dtype `computed`."""
    if not is_finite:
        remedy = "load the base in float32 (model.dtype), and compare with the base alone"
        return fault(f"the logits of a sample are not finite in {computed}", remedy)
    if largest > FLOAT16_MAX:
        end = f"beyond float16's {FLOAT16_MAX:,.0f}: use it in {computed} or float32"
    else:
        end = f"float16 ends at {FLOAT16_MAX:,.0f}" + ("; T5 trains in bfloat16 or float32" if is_t5 else "")
    return ok(f"finite in {computed}; the largest activation is {largest:,.0f}, and {end}")


def effect(
    adapter: SavedAdapter, settings: LoraConfig | None, adapted: Any, tokenizer: Any, dtype: None
) -> Findings:
    """The adapter changes what the base says."""
    if settings is None:
        return
    batch = sample_batch(adapted, tokenizer, adapter)
    with torch.no_grad():
        with_it = adapted(**batch).logits.float()
        with disable_adapters(adapted):
            without = adapted(**batch).logits.float()
    yield judge_effect(((with_it - without).norm() / without.norm()).item())


def judge_effect(moved: float) -> Finding:
    """The finding on how far the logits moved, as a share of their size."""
    if moved > 0:
        return ok(f"moves the logits of a sample by {moved:.1%} of their size")
    return fault("does not move the logits of a sample at all", "train it, or use the base without it")


def merging(
    adapter: SavedAdapter, settings: LoraConfig | None, adapted: Any, tokenizer: Any, dtype: None
) -> Findings:
    """Merged into the base, it says what it says unmerged, to rounding."""
    if settings is None:
        return
    errors = merge_errors(adapted, sample_batch(adapted, tokenizer, adapter))
    yield judge_merging(errors, adapted.dtype)


def judge_merging(errors: Mapping[str, float], dtype: torch.dtype) -> Finding:
    """The finding on each way's error: on a dense base half of the dtype's digits must stay."""
    told = ", ".join(f"{way} moves the logits by {error:.1e} of their size" for way, error in errors.items())
    if "merged" not in errors:
        return ok(f"a quantized base, and so a choice (lora-hf merge --onto): {told}")
    if errors["merged"] <= torch.finfo(dtype).eps ** 0.5:
        return ok(told)
    computed = str(dtype).removeprefix("torch.")
    remedy = "merge onto the base in float32, or use the adapter unmerged"
    return fault(f"{told}, more than rounding in {computed} explains", remedy)


def tokens(adapter: SavedAdapter, store: ModelConfig, tokenizer: Any) -> Findings:
    """Few dialogues are longer than the model reads: the run's own, or of the package's sample."""
    if run := run_of(adapter):
        try:
            yield from tokens_cut(run.data, tokenizer)
        except UserError as error:  # the data has gone since: not the adapter's fault
            raise CannotTell(f"the run's data cannot be read: {error}") from error
        return
    sample = prompt_config(adapter, max_test_samples=SAMPLED_DIALOGUES)
    for finding in tokens_cut(sample, tokenizer, ("test",)):
        yield Finding(finding.state, f"the package's sample, {finding.title}", finding.remedy)


def run_of(adapter: SavedAdapter) -> RunConfig | None:
    """The config of the run that an adapter is in, where it is in one."""
    if not (adapter.folder.parent / CONFIG).is_file():
        return None
    try:
        return config_of_run(adapter)
    except UserError as error:
        raise CannotTell(f"the run's config cannot be read: {error}") from error
