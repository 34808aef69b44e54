"""Read adapters, strictly: whatever does not fit is one error that names both sides and changes nothing."""

import json
import logging
from collections.abc import Iterable
from pathlib import Path

import torch
from torch import Tensor, nn

from lora_hf.adapters.checkpoint_io import (
    Shapes,
    check_shapes,
    check_tensors,
    read_tensors,
)
from lora_hf.adapters.config import LoraConfig
from lora_hf.adapters.initialize import LayerInit, initialize_layer, requantized_base, zero_init
from lora_hf.adapters.inject import base_weights_of, inject_adapters
from lora_hf.adapters.layer import LoraLayer, check_adapter_name
from lora_hf.adapters.layer_replication import replicate_layers
from lora_hf.adapters.methods import ADAPTER_METHODS
from lora_hf.adapters.model_state import BaseWeights, model_state, saved_modules
from lora_hf.adapters.peft_format import CHANGES_BASE
from lora_hf.adapters.rollback import rolled_back_on_error
from lora_hf.adapters.save import PREFIX, SHARED_PREFIX, START_NAME, adapted, adapter_state
from lora_hf.adapters.saved_adapter import SavedAdapter
from lora_hf.adapters.targets import find_saved, find_targets
from lora_hf.adapters.wrappers import named_parameters, plain_keys, refuse_synchronized, unwrapped
from lora_hf.errors import UserError

logger = logging.getLogger(__name__)


def load_adapter(
    model: nn.Module,
    directory: str | Path | SavedAdapter,
    adapter_name: str = "default",
    trainable: bool = False,
    base_weights: BaseWeights | None = None,
) -> nn.Module:
    """Inject the adapter of a folder, activate it, and return the model.

    Args:
        model: the base the adapter was trained on, without an adapter of this name.
        directory: a folder that `save_adapter` or PEFT wrote, or the adapter found there.
        adapter_name: the name it gets here.
        trainable: give its weights gradients.
        base_weights: layer name -> weight before quantization, needed if the base was quantized again for
            the adapter; None takes those that `load_model` has recorded.

    Raises:
        UserError: no such files, a pickle, another base, tensors that do not fit, or PEFT fields that are
            not implemented; the model is then unchanged.
    """
    whole, model = model, unwrapped(model)
    saved = SavedAdapter.at(directory)
    check_adapter_name(adapter_name)
    if trainable:
        refuse_synchronized(whole)
    folder, config = saved.folder, saved.config
    check_base(model, saved)
    with rolled_back_on_error(model):
        if config.layer_replication:
            replicate_layers(model, config.layer_replication)
        tensors = saved.read_weights(lambda shapes: _check_fit(model, config, shapes, folder))
        tensors = {name: tensors[key] for key, name in plain_keys(model, tensors).items()}
        tensors = without_base_copies(model, tensors, folder)
        check_formats(model, saved)
        initialize = _SavedInit(folder, config, base_weights_of(model, base_weights))
        with torch.random.fork_rng(devices=[]):  # what is drawn here is overwritten: keep the random state
            inject_adapters(model, config, adapter_name, initialize=initialize)
        _put(model, tensors, adapter_name)
    for _, _, method in adapted(model, adapter_name):
        method.set_trainable(trainable)
    for module in saved_modules(model).values():
        if adapter_name in module.copies:
            module.copies[adapter_name].requires_grad_(trainable)
    return whole


def _check_fit(model: nn.Module, config: LoraConfig, shapes: Shapes, folder: Path) -> None:
    shapes = {name: shapes[key] for key, name in plain_keys(model, shapes).items()}
    copies = {key: owner.shape for key, owner in _base_copies(model, shapes).items()}
    check_shapes(shapes, expected_shapes(model, config) | {k: tuple(s) for k, s in copies.items()}, folder)


def _base_copies(model: nn.Module, keys: Iterable[str]) -> dict[str, nn.Parameter]:
    """Return the keys of a file that hold unchanged embeddings, with the model's own Parameters."""
    weights = named_parameters(model)
    copies = {}
    for key in keys:
        path = key.removeprefix(PREFIX).removesuffix(".base_layer.weight")
        own = weights.get(f"{path}.weight", weights.get(f"{path}.base_layer.weight"))
        if key.endswith(".base_layer.weight") and own is not None:
            copies[key] = own
    return copies


def without_base_copies(model: nn.Module, tensors: dict[str, Tensor], folder: Path) -> dict[str, Tensor]:
    """Leave out the unchanged embedding that PEFT writes beside an adapter on one.

    Raises:
        UserError: it differs from the model's: a resized or trained embedding, which is not supported.
    """
    copies = _base_copies(model, tensors)
    for key, own in copies.items():
        tensor = tensors[key]
        if own.shape != tensor.shape or not torch.equal(own.cpu().to(tensor.dtype), tensor):
            path = key.removeprefix(PREFIX).removesuffix(".base_layer.weight")
            raise UserError(
                f"the adapter {folder} has its own weight of {path}, which differs from this base's; "
                "save the resized or trained embedding into the base first"
            )
    return {key: tensor for key, tensor in tensors.items() if key not in copies}


class _SavedInit:
    """The initialization of an adapter that is being loaded: zeros, and what was taken out of the base."""

    def __init__(self, folder: Path, config: LoraConfig, base_weights: BaseWeights | None) -> None:
        file = folder / START_NAME
        self.factors = read_tensors(file) if file.is_file() else {}
        self.base_weights = base_weights
        start = str(config.init_lora_weights)
        self.is_unconverted = not self.factors and start.startswith(CHANGES_BASE)
        if "niter" in start and self.is_unconverted:
            raise UserError(
                f"{folder}: init_lora_weights={start!r} is a randomized initialization, which cannot be "
                "repeated, and the file lacks what it took out of the base; save it by PEFT's "
                "save_pretrained(..., path_initial_model_for_weight_conversion=<initial adapter's folder>)"
            )
        if self.is_unconverted:
            logger.info("%s: PEFT's unconverted %s: the initialization is computed again", folder, start)

    def __call__(self, name: str, config: LoraConfig, layer: LoraLayer) -> LayerInit:
        base, key = layer.base, f"{PREFIX}{name}."
        init = zero_init(config, base)
        if init.factors is None:
            return init
        if self.is_unconverted:
            W = base.dequantize(torch.float32) if base.is_quantized else None
            drawn = initialize_layer(config, base, W)
            assert drawn.factors is not None
            return drawn._replace(factors=init.factors._replace(subtracted=drawn.factors.subtracted))
        if f"{key}start_A" not in self.factors:
            return init
        subtracted = self.factors[f"{key}start_A"], self.factors[f"{key}start_B"]
        if base.is_quantized and self.base_weights is None:
            raise UserError(
                "the adapter's base is made from the weights before quantization; load it "
                "with lora_hf's load_model"
            )
        original = self.base_weights(name) if self.base_weights and base.is_quantized else None
        weight = requantized_base(config, base, subtracted, original)
        return LayerInit(init.factors._replace(subtracted=subtracted), weight)


def put_adapter_state(model: nn.Module, tensors: dict[str, Tensor], adapter_name: str = "default") -> None:
    """Copy tensors under PEFT's names into an injected adapter; strict, as `load_adapter`.

    Base offsets are restored too: they are the second half of each factor.
    """
    shapes = {key: tuple(tensor.shape) for key, tensor in adapter_state(model, adapter_name).items()}
    check_tensors(tensors, shapes, adapter_name)
    _put(model, tensors, adapter_name)


def _put(model: nn.Module, tensors: dict[str, Tensor], adapter_name: str) -> None:
    for path, base, method in adapted(model, adapter_name):
        key = f"{PREFIX}{path}."
        own = {name.removeprefix(key): tensor for name, tensor in tensors.items() if name.startswith(key)}
        method.from_peft(own, base)
        for name in method.shared_names:
            if (tensor := tensors.pop(SHARED_PREFIX + name, None)) is not None:  # once for all layers
                method.get_parameter(name).data.copy_(tensor)
    for path, module in saved_modules(model).items():
        if adapter_name in module.copies:
            key, names = f"{PREFIX}{path}.", module.copies[adapter_name].state_dict()
            module.copies[adapter_name].load_state_dict({part: tensors[key + part] for part in names})


def expected_shapes(model: nn.Module, config: LoraConfig) -> dict[str, tuple[int, ...]]:
    """Return the tensors that an adapter of this configuration has on this model: PEFT's key -> shape."""
    method = ADAPTER_METHODS[config.method]
    bases = {
        path: (module if isinstance(module, LoraLayer) else LoraLayer(module)).base
        for path, module in find_targets(model, config).items()
    }
    shared = method.shared_shapes(config, bases.values()) if method.saves_shared(config) else {}
    shapes = {f"{SHARED_PREFIX}{name}": shape for name, shape in shared.items()}
    for path, base in bases.items():
        for part, shape in method.peft_shapes(config.at(path), base).items():
            shapes[f"{PREFIX}{path}.{part}"] = shape
    for path, module in find_saved(model, config).items():
        for part, tensor in getattr(module, "original", module).state_dict().items():
            shapes[f"{PREFIX}{path}.{part}"] = tuple(tensor.shape)
    return shapes


def check_formats(model: nn.Module, saved: SavedAdapter) -> None:
    """Refuse an adapter that compensates for the errors of another storage format than the model's.

    Raises:
        UserError: it does, or it is PEFT's LoftQ, whose base cannot be made again from the file.
    """
    folder, config, manifest = saved.folder, saved.config, saved.manifest
    if config.init_lora_weights == "loftq" and not manifest:
        raise UserError(
            f"{folder}: PEFT's LoftQ adapters fit only the quantized backbone that was saved with them; load "
            "that as the base and set init_lora_weights to true in the file"
        )
    needed = manifest.get("base_formats")
    if needed is None:
        return
    layers = find_targets(model, config).values()
    here = sorted({(m if isinstance(m, LoraLayer) else LoraLayer(m)).base.format for m in layers})
    if here != needed:
        fields = manifest.get("base_store")
        raise UserError(
            f"the adapter {folder} was initialized on weights stored as {needed} and compensates for their "
            f"errors; this base is stored as {here}: load it in that format"
            + (f", with `model: {json.dumps(fields)}`" if fields else "")
        )


def check_base(model: nn.Module, saved: SavedAdapter) -> None:
    """Refuse an adapter that was trained on another checkpoint than the model's.

    Raises:
        UserError: both fingerprints are known and differ.
    """
    folder, manifest = saved.folder, saved.manifest
    trained_on, here = manifest.get("base_fingerprint"), model_state(model).base_fingerprint
    if not trained_on or not here:
        logger.info("%s: the base it was trained on is not recorded; names and shapes are checked", folder)
    elif trained_on != here:
        raise UserError(
            f"the adapter {folder} was trained on {manifest.get('base_model_name_or_path')} (fingerprint "
            f"{trained_on}); this base is {getattr(model, 'name_or_path', '?')} (fingerprint {here})"
        )
