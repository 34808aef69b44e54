"""Combine adapters: their weighted sum as a new one, exactly or at a lower rank."""

import math
from collections.abc import Callable, Mapping
from numbers import Real

import torch
from torch import Tensor, nn

from lora_hf.adapters.config import LoraConfig
from lora_hf.adapters.initialize import LayerInit
from lora_hf.adapters.inits import LoraInit, svd_factors
from lora_hf.adapters.inject import inject_adapters
from lora_hf.adapters.layer import LoraLayer
from lora_hf.adapters.methods import Method
from lora_hf.adapters.model_state import adapter_configs, lora_layers, refuse_merged
from lora_hf.errors import UserError

Weighted = list[tuple[float, Method]]
Combination = Callable[[Weighted, int], tuple[Tensor, Tensor]]


def combine_adapters(
    model: nn.Module,
    weights: Mapping[str, float],
    adapter_name: str,
    combination: str = "cat",
    r: int | None = None,
) -> nn.Module:
    """Add an adapter that is the weighted sum of others, activate it, and return the model.

    Args:
        model: carries the others, which stay unchanged.
        weights: name -> factor of its update; a negative one subtracts it.
        adapter_name: name of the new adapter.
        combination: `cat` concatenates the factors: exact, at the sum of their ranks. `svd` is the best
            approximation of the sum at rank `r`. `linear` adds A to A and B to B at their common rank, which
            is PEFT's default: cheap, but not the sum of the updates, because the products cross.
        r: rank of the result, for `svd` only; by default the largest of theirs.

    Raises:
        UserError: unknown names, or adapters that this combination cannot take.
    """
    refuse_merged(model)
    _check_weights(weights, adapter_configs(model))
    if combination not in COMBINATIONS:
        raise UserError(f"combination={combination!r} must be one of {list(COMBINATIONS)}")
    if r is not None and (combination != "svd" or not isinstance(r, int) or r < 1):
        raise UserError(f"r={r!r} requires combination='svd' and must be a whole number of at least 1")
    parts = {path: layer.methods(weights) for path, layer in lora_layers(model).items()}
    parts = {path: methods for path, methods in parts.items() if methods}
    _check(parts, combination)
    rank = r or COMBINED_RANK[combination](parts)
    factors = {path: COMBINATIONS[combination](methods, rank) for path, methods in parts.items()}
    config = LoraConfig(r=rank, lora_alpha=rank, target_modules=tuple(parts))

    def initialize(name: str, config: LoraConfig, layer: LoraLayer) -> LayerInit:
        return LayerInit(LoraInit(*factors[name]))

    return inject_adapters(model, config, adapter_name, initialize=initialize)


def _check_weights(weights: Mapping[str, float], known: Mapping[str, LoraConfig]) -> None:
    if not isinstance(weights, Mapping) or not weights:
        raise UserError(
            f"weights={weights!r} must be a mapping of names to numbers, such as {{'a': 1, 'b': -0.5}}"
        )
    if unknown := [name for name in weights if name not in known]:
        raise UserError(f"no adapter {unknown} in the model; it has {sorted(known)}")
    for name, weight in weights.items():
        if not isinstance(weight, Real) or not math.isfinite(weight):
            raise UserError(f"weights[{name!r}]={weight!r} must be a finite number")
        if known[name].modules_to_save:
            raise UserError(
                f"adapter {name!r} has modules_to_save={list(known[name].modules_to_save)}: whole layers, "
                "which cannot be added; combine adapters without them"
            )


def _check(parts: Mapping[str, Weighted], combination: str) -> None:
    for path, methods in parts.items():
        if any(not method.is_low_rank or method.has_requantized_base for _, method in methods):
            kinds = sorted({method.title for _, method in methods})
            raise UserError(
                f"{path} has adapters of kind {kinds}; only low-rank adapters on the loaded base can "
                "be combined: merge the others, or activate them together by set_adapter"
            )
        ranks = {_rank(method) for _, method in methods}
        if combination == "linear" and len(ranks) > 1:
            raise UserError(
                f"combination='linear' needs one rank, and {path} has {sorted(ranks)}: use 'cat' or 'svd'"
            )


def _joined(methods: Weighted) -> tuple[Tensor, Tensor]:
    """Concatenate the factors, weights and scales in B."""
    pairs = [(weight, *method.factors()) for weight, method in methods]
    return torch.cat([A for _, A, _ in pairs]), torch.cat([w * B for w, _, B in pairs], dim=1)


def _cat(methods: Weighted, rank: int) -> tuple[Tensor, Tensor]:
    return _padded(*_joined(methods), rank)


def _svd(methods: Weighted, rank: int) -> tuple[Tensor, Tensor]:
    svd = thin_svd(*_joined(methods))
    A, B = svd_factors(svd, min(rank, len(svd[1])), 1.0)
    return _padded(A.float(), B.float(), rank)


def thin_svd(A: Tensor, B: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Return U (out, k), S (k,) and Vh (k, in) of B A in float64, without forming B A.

    k is at most r, in and out.

    Args:
        A: (r, in).
        B: (out, r).
    """
    Q_out, R_out = torch.linalg.qr(B.double())
    Q_in, R_in = torch.linalg.qr(A.double().T)
    U, S, Vh = torch.linalg.svd(R_out @ R_in.T, full_matrices=False)
    return Q_out @ U, S, Vh @ Q_in.T


def spectra(model: nn.Module, adapter_name: str = "default") -> dict[str, Tensor]:
    """Return the singular values of an adapter's update s B A in descending order: layer name -> (k,).

    Raises:
        UserError: no such adapter, or one whose update is not a product of two factors.
    """
    _check_weights({adapter_name: 1.0}, adapter_configs(model))
    parts = {path: layer.methods({adapter_name: 1.0}) for path, layer in lora_layers(model).items()}
    parts = {path: methods for path, methods in parts.items() if methods}
    _check(parts, "svd")
    return {path: thin_svd(*_joined(methods))[1] for path, methods in parts.items()}


def _linear(methods: Weighted, rank: int) -> tuple[Tensor, Tensor]:
    """Scale each factor by the root of weight and scale, the sign in A, as PEFT's `add_weighted_adapter`."""
    A = B = torch.zeros(())
    for weight, method in methods:
        own_A, own_B = method.factors()
        root = (abs(weight) * method.scaling) ** 0.5
        A = A.to(own_A) + root * (1 if weight >= 0 else -1) * own_A
        B = B.to(own_B) + root * own_B / method.scaling
    return _padded(A, B, rank)


def _padded(A: Tensor, B: Tensor, rank: int) -> tuple[Tensor, Tensor]:
    """Pad with zeros where a layer has fewer adapters than others, or a lower rank."""
    missing = rank - A.shape[0]
    return nn.functional.pad(A, (0, 0, 0, missing)), nn.functional.pad(B, (0, missing))


def _rank(method: Method) -> int:
    return method.factors()[0].shape[0]


COMBINATIONS: dict[str, Combination] = {"cat": _cat, "linear": _linear, "svd": _svd}
COMBINED_RANK: dict[str, Callable[[Mapping[str, Weighted]], int]] = {
    "cat": lambda parts: max(sum(_rank(m) for _, m in methods) for methods in parts.values()),
    "linear": lambda parts: max(_rank(m) for methods in parts.values() for _, m in methods),
    "svd": lambda parts: max(_rank(m) for methods in parts.values() for _, m in methods),
}
