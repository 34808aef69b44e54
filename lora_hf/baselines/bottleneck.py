"""Bottleneck adapter layers (Houlsby et al., arXiv:1902.00751, section 2.1).

    h <- h + U f(D h + b) + c        D (m, d), U (d, m), on the output of each attention and feed-forward

A sublayer's output is that of its last projection, which is wrapped: so no forward is copied, and the
adapter acts before the residual sum, as in the paper's figure 2. (The base's own dropout comes after the
adapter here.) The initial output is the base's bit for bit: U and c are zero, where the paper draws U as
small as D. Weights are float32 and cast to the dtype of the activations at use, as LoRA's are.
"""

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch._subclasses.fake_tensor import is_fake

from lora_hf.adapters.backends import backend_for, is_linear
from lora_hf.adapters.default_targets import FUSED, QUERIES, VALUES, not_language
from lora_hf.adapters.wrappers import named_modules, set_submodule, unwrapped
from lora_hf.baselines.checkpoint_io import Extra, record_baseline
from lora_hf.errors import UserError

ACTIVATIONS: dict[str, Callable[[Tensor], Tensor]] = {
    "gelu": F.gelu,
    "relu": F.relu,
    "silu": F.silu,
    "tanh": torch.tanh,
}
INNER = QUERIES | VALUES | FUSED | {"k", "k_proj", "key", "key_proj", "k_lin", "to_k", "wk"}
"""Names of the projections within an attention."""
INNER_PARTS = {"global", "relative"}
"""Words in the names of others: LED's `query_global`, ProphetNet's `relative_pos_embeddings`."""
DEVIATION = 1e-2
"""Standard deviation of D's normal distribution, cut at two deviations (the paper's section 2.1)."""


class Bottleneck(Extra):
    """The term added to a sublayer's output: 2 m d + m + d weights.

    Args:
        d: width of the output.
        m: width of the bottleneck.
        non_linearity: a key of `ACTIVATIONS`.
        device: of the weights.
    """

    def __init__(self, d: int, m: int, non_linearity: str, device: torch.device) -> None:
        super().__init__()
        down = torch.empty(m, d)
        if not is_fake(down):  # a plan's fake tensors have no values
            torch.nn.init.trunc_normal_(down, std=DEVIATION, a=-2 * DEVIATION, b=2 * DEVIATION)
        self.down = nn.Parameter(down.to(device))  # drawn on the CPU: the same on every device
        self.down_bias = nn.Parameter(torch.zeros(m, device=device))
        self.up = nn.Parameter(torch.zeros(d, m, device=device))
        self.up_bias = nn.Parameter(torch.zeros(d, device=device))
        self.activation = ACTIVATIONS[non_linearity]

    def forward(self, h: Tensor) -> Tensor:
        """Return U f(D h + b) + c in the dtype of h, for h (..., d)."""
        middle = F.linear(h, self.down.to(h.dtype), self.down_bias.to(h.dtype))  # (..., d) -> (..., m)
        return F.linear(self.activation(middle), self.up.to(h.dtype), self.up_bias.to(h.dtype))


class BottleneckLayer(nn.Module):
    """A sublayer's last projection and the adapter on its output.

    It exposes the projection's `weight` and `bias`, because T5 reads `wo.weight.dtype`.
    """

    def __init__(self, base_layer: nn.Module, bottleneck: Bottleneck) -> None:
        super().__init__()
        self.base_layer = base_layer
        self.bottleneck = bottleneck

    @property
    def weight(self) -> Tensor:
        """The projection's weight, in its storage format."""
        return self.base_layer.weight  # type: ignore[return-value]

    @property
    def bias(self) -> Tensor | None:
        """The projection's bias, or None."""
        return self.base_layer.bias  # type: ignore[return-value]

    def forward(self, x: Tensor) -> Tensor:
        """Return the adapted output (..., d), for x (..., in)."""
        h: Tensor = self.base_layer(x)
        return h + self.bottleneck(h).to(h.dtype)


def find_sublayers(model: nn.Module) -> dict[str, nn.Module]:
    """Return the last projection of every attention and feed-forward in the stacks of blocks, by name.

    In a block, a module with linear layers is an attention or a feed-forward (BART keeps the latter's in the
    block itself), and the projection back to the width of the model computes its output: `o` and `wo`,
    `out_proj` and `fc2`. Queries, keys and values have that width too, and are known by name. A mixture of
    experts has one such projection per expert; its router has none, nor has what text does not reach.

    Raises:
        UserError: the model has no stack of blocks with linear layers in it.
    """
    modules = dict(named_modules(model))
    stacks = [name for name, module in modules.items() if isinstance(module, nn.ModuleList)]
    aside, widths = not_language(model, modules), _widths(model)
    found: dict[str, nn.Module] = {}
    for name, module in modules.items():
        if aside(name) or not any(name.startswith(f"{stack}.") for stack in stacks):
            continue
        children = [(child, unwrapped(layer)) for child, layer in module.named_children()]
        outputs = [
            (child, layer)
            for child, layer in children
            if is_linear(layer)
            and child not in INNER
            and INNER_PARTS.isdisjoint(child.split("_"))
            and (not widths or backend_for(layer).out_features in widths)
        ]
        if outputs:
            last, layer = outputs[-1]
            found[f"{name}.{last}"] = layer
    if not found:
        raise UserError(
            f"method=bottleneck: {type(model).__name__} has no stack of blocks with linear layers"
        )
    return found


def _widths(model: Any) -> set[int]:
    """Return the widths of the model's stacks, those of their embeddings; empty if it has none."""
    parts = [getattr(model, f"get_{part}", lambda: None)() for part in ("encoder", "decoder")]
    embeddings = [
        part.get_input_embeddings() for part in (model, *parts) if hasattr(part, "get_input_embeddings")
    ]
    return {module.embedding_dim for module in embeddings if isinstance(module, nn.Embedding)}


def add_bottlenecks(model: nn.Module, bottleneck_dim: int, non_linearity: str) -> None:
    """Put an adapter on every sublayer's output, in place; the base is frozen, the adapters train.

    Args:
        model: any stack of blocks, in any storage format.
        bottleneck_dim: m.
        non_linearity: a key of `ACTIVATIONS`.

    Raises:
        UserError: the model has no such sublayers, or already has adapters or a baseline.
    """
    sublayers = find_sublayers(model)
    record_baseline(model, "bottleneck", {"bottleneck_dim": bottleneck_dim, "non_linearity": non_linearity})
    for name, layer in sublayers.items():
        base = backend_for(layer)
        adapter = Bottleneck(base.out_features, bottleneck_dim, non_linearity, base.device)
        wrapped = BottleneckLayer(layer, adapter)
        wrapped.train(layer.training)
        set_submodule(model, name, wrapped)
