"""Adapters from disk, strictly: what does not fit is one error that names both sides, and changes nothing."""

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
from lora_hf.adapters.initialize import Start, draw_start, restore
from lora_hf.adapters.inits import LoraInit
from lora_hf.adapters.inject import Originals, inject_adapters, originals_of
from lora_hf.adapters.layer import LoraLayer, check_adapter_name
from lora_hf.adapters.layer_replication import replicate_layers
from lora_hf.adapters.model_state import modules_of, saved_modules
from lora_hf.adapters.peft_format import TAKEN_OVER, peft_shapes, put_peft_tensors
from lora_hf.adapters.rollback import undone_on_error
from lora_hf.adapters.save import PREFIX, START_NAME, adapted, adapter_state
from lora_hf.adapters.saved_adapter import SavedAdapter
from lora_hf.adapters.targets import find_saved, find_targets
from lora_hf.errors import UserError

logger = logging.getLogger(__name__)


def load_adapter(
    model: nn.Module,
    directory: str | Path | SavedAdapter,
    adapter_name: str = "default",
    trainable: bool = False,
    originals: Originals | None = None,
) -> nn.Module:
    """Inject the adapter that a folder describes, make it the active one, and return the model.

    Args:
        model: the base the adapter was trained on, without an adapter of this name.
        directory: a folder that `save_adapter` or PEFT wrote, or the adapter found there.
        adapter_name: the name it gets here.
        trainable: whether its weights get gradients.
        originals: gives the weights before quantization, where the adapter was started on a base stored for
            it; None takes `model.original_weights`.

    Raises:
        UserError: no such files, a pickle, another base, tensors that do not fit, or PEFT fields that are
            not implemented; the model is then as it was.
    """
    saved = SavedAdapter.at(directory)
    check_adapter_name(adapter_name)
    folder, config = saved.folder, saved.config
    check_base(model, saved)
    with undone_on_error(model):
        if config.layer_replication:
            replicate_layers(model, config.layer_replication)
        tensors = saved.read_weights(lambda shapes: _check_fit(model, config, shapes, folder))
        tensors = without_base_copies(model, tensors, folder)
        check_formats(model, saved)
        begin = _Beginning(folder, config, originals_of(model, originals))
        with torch.random.fork_rng(devices=[]):  # a start drawn here is overwritten: leave the seed alone
            inject_adapters(model, config, adapter_name, draw=begin)
        _put(model, tensors, adapter_name)
    for module in modules_of(model, adapter_name).values():
        module.requires_grad_(trainable)
    return model


def _check_fit(model: nn.Module, config: LoraConfig, shapes: Shapes, folder: Path) -> None:
    copies = {key: owner.shape for key, owner in _base_copies(model, shapes).items()}
    check_shapes(shapes, expected_shapes(model, config) | {k: tuple(s) for k, s in copies.items()}, folder)


def _base_copies(model: nn.Module, keys: Iterable[str]) -> dict[str, nn.Parameter]:
    """Of a file's keys, those of untouched embeddings, each with the model's own."""
    weights = dict(model.named_parameters())
    copies = {}
    for key in keys:
        path = key.removeprefix(PREFIX).removesuffix(".base_layer.weight")
        own = weights.get(f"{path}.weight", weights.get(f"{path}.base_layer.weight"))
        if key.endswith(".base_layer.weight") and own is not None:
            copies[key] = own
    return copies


def without_base_copies(model: nn.Module, tensors: dict[str, Tensor], folder: Path) -> dict[str, Tensor]:
    """Leave out the untouched embedding that PEFT writes beside an adapter of one.

    Raises:
        UserError: it is not the model's own: a resized or trained embedding, which no adapter of ours brings.
    """
    copies = _base_copies(model, tensors)
    for key, own in copies.items():
        tensor = tensors[key]
        if own.shape != tensor.shape or not torch.equal(own.cpu().to(tensor.dtype), tensor):
            path = key.removeprefix(PREFIX).removesuffix(".base_layer.weight")
            raise UserError(f"the adapter {folder} brings its own weight of {path}, which is not this base's")
    return {key: tensor for key, tensor in tensors.items() if key not in copies}


class _Beginning:
    """The start of each layer of an adapter that is being loaded: zeros, and what was taken from the base."""

    def __init__(self, folder: Path, config: LoraConfig, originals: Originals | None) -> None:
        file = folder / START_NAME
        self.factors = read_tensors(file) if file.is_file() else {}
        self.originals = originals
        start = str(config.init_lora_weights)
        self.is_unconverted = not self.factors and start.startswith(TAKEN_OVER)
        if "niter" in start and self.is_unconverted:
            raise UserError(
                f"{folder}: init_lora_weights={start!r} is a randomized start, which cannot be repeated, "
                "and the file lacks what it took from the base; save it by PEFT's save_pretrained(..., "
                "path_initial_model_for_weight_conversion=<the folder of its start>), which can be loaded"
            )
        if self.is_unconverted:
            logger.info("%s: PEFT's unconverted %s: the start is computed once more", folder, start)

    def __call__(self, name: str, config: LoraConfig, layer: LoraLayer) -> Start:
        base, key = layer.base, f"{PREFIX}{name}."
        shapes = peft_shapes(config, base)
        A, B = (torch.zeros(shapes[base.peft_names[part]]).flatten(1) for part in ("lora_A", "lora_B"))
        if self.is_unconverted:
            W = base.dequantize(torch.float32) if base.is_quantized else None
            drawn = draw_start(config, base, W)
            return drawn._replace(init=LoraInit(A, B, drawn.init.subtracted))
        if f"{key}start_A" not in self.factors:
            return Start(LoraInit(A, B))
        factors = self.factors[f"{key}start_A"], self.factors[f"{key}start_B"]
        if base.is_quantized and self.originals is None:
            raise UserError(
                "the adapter's base is made from the weights before quantization; load it "
                "with lora_hf's load_model"
            )
        original = self.originals(name) if self.originals and base.is_quantized else None
        return Start(LoraInit(A, B, factors), restore(config, base, factors, original))


def put_adapter_state(model: nn.Module, tensors: dict[str, Tensor], adapter_name: str = "default") -> None:
    """Copy tensors under PEFT's names into an injected adapter; strict, as `load_adapter`.

    What was taken over from the weight comes back too: it is the second half of each factor.
    """
    shapes = {key: tuple(tensor.shape) for key, tensor in adapter_state(model, adapter_name).items()}
    check_tensors(tensors, shapes, adapter_name)
    _put(model, tensors, adapter_name)


def _put(model: nn.Module, tensors: dict[str, Tensor], adapter_name: str) -> None:
    for path, base, method in adapted(model, adapter_name):
        key = f"{PREFIX}{path}."
        own = {name.removeprefix(key): tensor for name, tensor in tensors.items() if name.startswith(key)}
        put_peft_tensors(method, base, own)
    for path, module in saved_modules(model).items():
        if adapter_name in module.copies:
            key, names = f"{PREFIX}{path}.", module.copies[adapter_name].state_dict()
            module.copies[adapter_name].load_state_dict({part: tensors[key + part] for part in names})


def expected_shapes(model: nn.Module, config: LoraConfig) -> dict[str, tuple[int, ...]]:
    """The tensors that an adapter of this config has on this model: PEFT's key -> shape."""
    shapes: dict[str, tuple[int, ...]] = {}
    for path, module in find_targets(model, config).items():
        layer = module if isinstance(module, LoraLayer) else LoraLayer(module)
        for part, shape in peft_shapes(config.at(path), layer.base).items():
            shapes[f"{PREFIX}{path}.{part}"] = shape
    for path, module in find_saved(model, config).items():
        for part, tensor in getattr(module, "original", module).state_dict().items():
            shapes[f"{PREFIX}{path}.{part}"] = tuple(tensor.shape)
    return shapes


def check_formats(model: nn.Module, saved: SavedAdapter) -> None:
    """Refuse an adapter that makes up for the errors of another store than the model's.

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
        raise UserError(
            f"the adapter {folder} was started on weights stored as {needed}, whose errors it makes up for; "
            f"this base is stored as {here}: load the base as that (model.load_in_4bit and its fields)"
        )


def check_base(model: nn.Module, saved: SavedAdapter) -> None:
    """Refuse an adapter that was trained on another checkpoint than the model's.

    Raises:
        UserError: both fingerprints are known and differ.
    """
    folder, manifest = saved.folder, saved.manifest
    trained_on, here = manifest.get("base_fingerprint"), getattr(model, "base_fingerprint", None)
    if not trained_on or not here:
        logger.info("%s: the base it was trained on is not recorded; names and shapes are checked", folder)
    elif trained_on != here:
        raise UserError(
            f"the adapter {folder} was trained on {manifest.get('base_model_name_or_path')} (fingerprint "
            f"{trained_on}); this base is {getattr(model, 'name_or_path', '?')} (fingerprint {here})"
        )
