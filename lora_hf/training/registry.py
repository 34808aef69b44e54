"""Registry of the methods that add weights to a frozen base: how to add, save and load them.

Two methods have no entry: `base` trains nothing, and `full` trains the model's own weights.
"""

import logging
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import nn

from lora_hf.adapters import inject_adapters, load_adapter, save_adapter
from lora_hf.adapters.embeddings import embedding_keys, embedding_tensors
from lora_hf.adapters.load import put_adapter_state
from lora_hf.adapters.model_state import adapter_configs, modules_of
from lora_hf.adapters.saved_adapter import SavedAdapter
from lora_hf.adapters.targets import find_targets
from lora_hf.adapters.wrappers import named_parameters
from lora_hf.baselines.bottleneck import add_bottlenecks, find_sublayers
from lora_hf.baselines.checkpoint_io import (
    extras_method,
    load_extras,
    new_weights,
    put_weights,
    save_extras,
)
from lora_hf.baselines.prompt_tuning import add_prompt, stacks_of
from lora_hf.config import RunConfig
from lora_hf.config.problems import field_of_section
from lora_hf.errors import UserError, few

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class AddedWeights:
    """Operations on the weights that one method adds."""

    check: Callable[[RunConfig, Any], Any]
    """Refuse a config that does not fit the model, before anything on disk is cleared."""
    add: Callable[[RunConfig, Any], Any]
    """Add the weights to a model, initialized, and freeze its base."""
    save: Callable[[Any, Path, dict[str, Any]], Any]
    """Write the weights and, beside them, the values that `predict` needs."""
    restore: Callable[[Any, Path], None]
    """Load a checkpoint's weights into a model that already has them."""
    load: Callable[[Any, Path | SavedAdapter], Any]
    """Add saved weights to a base model, frozen."""


def _check_adapters(config: RunConfig, model: Any) -> None:
    with field_of_section("lora"):
        find_targets(model, config.lora.to_config())


def _add_adapters(config: RunConfig, model: Any) -> None:
    with field_of_section("lora"):
        inject_adapters(model, config.lora.to_config())


def _save_adapters(model: Any, folder: Path, extra: dict[str, Any]) -> None:
    for name in adapter_configs(model):
        save_adapter(model, folder, name, extra)


def _restore_adapters(model: Any, folder: Path) -> None:
    for name in adapter_configs(model):
        saved = SavedAdapter(folder if name == "default" else folder / name)
        put_adapter_state(model, saved.read_weights(), name, saved.config)


def _restore_extras(model: Any, folder: Path) -> None:
    put_weights(model, SavedAdapter(folder).read_weights(), folder)


def _put_prompt(model: Any, num_virtual_tokens: int, init: str, scaled: bool = False) -> None:
    """Add a saved prompt: those of before prompts were scaled have no such setting."""
    add_prompt(model, num_virtual_tokens, init, scaled)


ADDED_WEIGHTS: dict[str, AddedWeights] = {
    "lora": AddedWeights(
        check=_check_adapters,
        add=_add_adapters,
        save=_save_adapters,
        restore=_restore_adapters,
        load=load_adapter,
    ),
    "bottleneck": AddedWeights(
        check=lambda config, model: find_sublayers(model),
        add=lambda config, model: add_bottlenecks(model, **config.bottleneck.model_dump()),
        save=save_extras,
        restore=_restore_extras,
        load=partial(load_extras, put_in=add_bottlenecks),
    ),
    "prompt_tuning": AddedWeights(
        check=lambda config, model: stacks_of(model),
        add=lambda config, model: add_prompt(model, **config.prompt_tuning.model_dump()),
        save=save_extras,
        restore=_restore_extras,
        load=partial(load_extras, put_in=_put_prompt),
    ),
}


def added_weights(model: nn.Module) -> AddedWeights | None:
    """Return the operations on the weights that were added to a model; None if there are none."""
    method = "lora" if adapter_configs(model) else extras_method(model)
    return ADDED_WEIGHTS[method] if method else None


def check_saved(model: nn.Module) -> None:
    """Refuse weights that train beside an adapter and that its files would not hold.

    Raises:
        UserError: weights of the base train; each of them is named.
    """
    if added_weights(model) is None:
        return
    method = extras_method(model)
    own = {
        id(p)
        for name in adapter_configs(model)
        for m in modules_of(model, name).values()
        for p in m.parameters()
    }
    own |= {id(p) for p in new_weights(model).values()}
    lost = {name: p for name, p in named_parameters(model).items() if p.requires_grad and id(p) not in own}
    if lost and (kept := embedding_tensors(model)):  # of a resized vocabulary
        held = {id(p) for p in embedding_keys(model, kept).values()}
        lost = {name: p for name, p in lost.items() if id(p) not in held}
    if lost:
        remedy = "freeze them" if method else "freeze them, or name their layers in modules_to_save"
        kind = f"method {method}" if method else "adapters"
        raise UserError(
            f"{len(lost)} weights would train, but are not saved with the {kind}: {few(lost)}; {remedy}"
        )


def warn_of_dtype(model: nn.Module) -> None:
    """Warn of added weights in a dtype whose steps are coarser than most updates."""
    dtypes = {p.dtype for p in model.parameters() if p.requires_grad and p.is_floating_point()}
    if added_weights(model) is not None and (coarse := dtypes & {torch.bfloat16, torch.float16}):
        logger.warning(
            "the weights that train are in %s, in which small updates are lost: cast the base first, and add "
            "adapters, which are float32, to it",
            " and ".join(sorted(str(dtype).removeprefix("torch.") for dtype in coarse)),
        )


def saved_method(saved: SavedAdapter) -> str:
    """Return the method of a saved adapter.

    Raises:
        UserError: its manifest names an unknown one.
    """
    method = saved.method
    if not isinstance(method, str) or method not in ADDED_WEIGHTS:
        raise UserError(
            f"{saved.folder} holds weights of method {method!r}; known are {sorted(ADDED_WEIGHTS)}"
        )
    return method


def load_saved(model: Any, saved: SavedAdapter) -> Any:
    """Load a saved adapter of any method onto its base model, frozen, and return the model.

    Raises:
        UserError: as the method's own loading.
    """
    return ADDED_WEIGHTS[saved_method(saved)].load(model, saved)
