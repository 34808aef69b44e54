"""Layers that compute their weight from other tensors at each call: pruning, weight and spectral norm.

Such a layer has no weight that an adapter could be merged into: the next call overwrites what is put there.
"""

from torch import nn
from torch.nn.utils import parametrize

from lora_hf.errors import UserError

PERMANENT = {
    "_mask": ("pruned", "torch.nn.utils.prune.remove(layer, {name!r})"),
    "_g": ("weight-normalized", "torch.nn.utils.remove_weight_norm(layer, {name!r})"),
    "_u": ("spectrally normalized", "torch.nn.utils.remove_spectral_norm(layer, {name!r})"),
}
"""End of the name of a tensor that is beside the original -> what the layer is, and what ends that."""


def refuse_computed_weight(field: str, name: str, module: nn.Module) -> None:
    """Refuse a layer, or one that contains a layer, whose weight or bias is computed at each call.

    Args:
        field: of the configuration, for the error.
        name: dotted name of the layer.
        module: the layer.

    Raises:
        UserError: with the call that makes the present value permanent.
    """
    for path, layer in module.named_modules(prefix=name):
        for tensor in ("weight", "bias"):
            if parametrize.is_parametrized(layer, tensor):
                kinds = [type(one).__name__ for one in layer.parametrizations[tensor]]
                what = f"parametrized by {', '.join(kinds)}"
                call = f"torch.nn.utils.parametrize.remove_parametrizations(layer, {tensor!r})"
                raise _error(field, path, tensor, what, call)
            beside = {*layer._parameters, *layer._buffers}
            found = next((end for end in PERMANENT if tensor + end in beside), None)
            if found and tensor not in beside:
                what, call = PERMANENT[found]
                raise _error(field, path, tensor, what, call.format(name=tensor))


def _error(field: str, path: str, tensor: str, what: str, call: str) -> UserError:
    return UserError(
        f"{field}: {path} is {what}: its {tensor} is computed again at each call, and an adapter could not "
        f"be merged into it; make the present one permanent first, by {call}, or leave the layer out",
        field,
    )
