"""One new adapter out of several: their weighted sum, exactly or at a lower rank."""

import math
from collections.abc import Callable, Mapping
from numbers import Real

import torch
from torch import Tensor, nn

from lora_hf.adapters.config import LoraConfig
from lora_hf.adapters.initialize import Start
from lora_hf.adapters.inits import LoraInit, svd_factors
from lora_hf.adapters.inject import inject_adapters
from lora_hf.adapters.layer import LoraLayer
from lora_hf.adapters.methods import Lora
from lora_hf.adapters.model_state import adapter_configs, lora_layers, refuse_merged
from lora_hf.errors import UserError

Weighted = list[tuple[float, Lora]]
Combination = Callable[[Weighted, int], tuple[Tensor, Tensor]]


def combine_adapters(
    model: nn.Module,
    weights: Mapping[str, float],
    adapter_name: str,
    combination: str = "cat",
    r: int | None = None,
) -> nn.Module:
    """Add an adapter that is the weighted sum of others, make it the active one, and return the model.

    Args:
        model: carries the others, which stay as they are.
        weights: name -> the weight of its update; negative ones take it away.
        adapter_name: of the new one.
        combination: `cat` puts the factors side by side: exact, at the sum of their ranks. `svd` is the best
            approximation of the sum at rank `r`. `linear` adds A to A and B to B at their common rank, which
            is PEFT's default: cheap, and not the sum of the updates, for the products cross.
        r: rank of the result; for `svd` only, by default the largest of theirs.

    Raises:
        UserError: unknown names, or adapters that this combination cannot take.
    """
    refuse_merged(model)
    _check_weights(weights, adapter_configs(model))
    if combination not in COMBINATIONS:
        raise UserError(f"combination={combination!r} is none of {list(COMBINATIONS)}")
    if r is not None and (combination != "svd" or not isinstance(r, int) or r < 1):
        raise UserError(f"r={r!r} goes with combination='svd', and is a whole number of at least 1")
    parts = {path: layer.methods(weights) for path, layer in lora_layers(model).items()}
    parts = {path: methods for path, methods in parts.items() if methods}
    _check(parts, combination)
    rank = r or COMBINED_RANK[combination](parts)
    factors = {path: COMBINATIONS[combination](methods, rank) for path, methods in parts.items()}
    config = LoraConfig(r=rank, lora_alpha=rank, target_modules=tuple(parts))

    def draw(name: str, config: LoraConfig, layer: LoraLayer) -> Start:
        return Start(LoraInit(*factors[name]))

    return inject_adapters(model, config, adapter_name, draw=draw)


def _check_weights(weights: Mapping[str, float], known: Mapping[str, LoraConfig]) -> None:
    if not isinstance(weights, Mapping) or not weights:
        raise UserError(
            f"weights={weights!r} is no mapping of names to numbers, such as {{'a': 1, 'b': -0.5}}"
        )
    if unknown := [name for name in weights if name not in known]:
        raise UserError(f"no adapter {unknown} in the model; it has {sorted(known)}")
    for name, weight in weights.items():
        if not isinstance(weight, Real) or not math.isfinite(weight):
            raise UserError(f"weights[{name!r}]={weight!r} is not a finite number")
        if known[name].modules_to_save:
            raise UserError(
                f"adapter {name!r} has modules_to_save={list(known[name].modules_to_save)}: whole layers, "
                "of which there is no sum; combine adapters without them"
            )


def _check(parts: Mapping[str, Weighted], combination: str) -> None:
    for path, methods in parts.items():
        kinds = {type(method).__name__ for _, method in methods}
        if kinds != {"Lora"} or any(method.is_restored for _, method in methods):
            raise UserError(
                f"{path} has adapters of kind {sorted(kinds)}; only LoRA on the base as it was loaded is "
                "a sum that can be combined: merge the others, or activate them together by set_adapter"
            )
        ranks = {_factors(method)[0].shape[0] for _, method in methods}
        if combination == "linear" and len(ranks) > 1:
            raise UserError(
                f"combination='linear' needs one rank, and {path} has {sorted(ranks)}: take 'cat' or 'svd'"
            )


def _factors(method: Lora) -> tuple[Tensor, Tensor]:
    """A (r, in) and B (out, r) with the scale in B, what was taken over from the base beside them."""
    A, B = method.lora_A.detach(), method.scaling * method.lora_B.detach()
    if method.taken_over is None:
        return A, B
    start_A, start_B = method.taken_over
    return torch.cat([A, start_A]), torch.cat([B, -method.scaling * start_B], dim=1)


def _joined(methods: Weighted) -> tuple[Tensor, Tensor]:
    """The factors side by side, weights and scales in B."""
    pairs = [(weight, *_factors(method)) for weight, method in methods]
    return torch.cat([A for _, A, _ in pairs]), torch.cat([w * B for w, _, B in pairs], dim=1)


def _cat(methods: Weighted, rank: int) -> tuple[Tensor, Tensor]:
    return _padded(*_joined(methods), rank)


def _svd(methods: Weighted, rank: int) -> tuple[Tensor, Tensor]:
    svd = thin_svd(*_joined(methods))
    A, B = svd_factors(svd, min(rank, len(svd[1])), 1.0)
    return _padded(A.float(), B.float(), rank)


def thin_svd(A: Tensor, B: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """U (out, k), S (k,) and Vh (k, in) of B A in float64, k at most its rank's bound, without forming B A.

    Args:
        A: (r, in).
        B: (out, r).
    """
    Q_out, R_out = torch.linalg.qr(B.double())
    Q_in, R_in = torch.linalg.qr(A.double().T)
    U, S, Vh = torch.linalg.svd(R_out @ R_in.T, full_matrices=False)
    return Q_out @ U, S, Vh @ Q_in.T


def spectra(model: nn.Module, adapter_name: str = "default") -> dict[str, Tensor]:
    """The singular values of what an adapter has learned: layer name -> s B A's, (k,), falling.

    Raises:
        UserError: no such adapter, or one whose update is no product of two factors.
    """
    _check_weights({adapter_name: 1.0}, adapter_configs(model))
    parts = {path: layer.methods({adapter_name: 1.0}) for path, layer in lora_layers(model).items()}
    parts = {path: methods for path, methods in parts.items() if methods}
    _check(parts, "svd")
    return {path: thin_svd(*_joined(methods))[1] for path, methods in parts.items()}


def _linear(methods: Weighted, rank: int) -> tuple[Tensor, Tensor]:
    """Each factor by the root of its weight and scale, the sign with A, as PEFT's `add_weighted_adapter`."""
    A = B = torch.zeros(())
    for weight, method in methods:
        own_A, own_B = _factors(method)
        root = (abs(weight) * method.scaling) ** 0.5
        A = A.to(own_A) + root * (1 if weight >= 0 else -1) * own_A
        B = B.to(own_B) + root * own_B / method.scaling
    return _padded(A, B, rank)


def _padded(A: Tensor, B: Tensor, rank: int) -> tuple[Tensor, Tensor]:
    """Rows of zeros where a layer has fewer adapters than others, or a lower rank of its own."""
    missing = rank - A.shape[0]
    return nn.functional.pad(A, (0, 0, 0, missing)), nn.functional.pad(B, (0, missing))


def _rank(method: Lora) -> int:
    return _factors(method)[0].shape[0]


COMBINATIONS: dict[str, Combination] = {"cat": _cat, "linear": _linear, "svd": _svd}
COMBINED_RANK: dict[str, Callable[[Mapping[str, Weighted]], int]] = {
    "cat": lambda parts: max(sum(_rank(m) for _, m in methods) for methods in parts.values()),
    "linear": lambda parts: max(_rank(m) for methods in parts.values() for _, m in methods),
    "svd": lambda parts: max(_rank(m) for methods in parts.values() for _, m in methods),
}
