"""Which layers an adapter sits on: targets are names, so a new architecture needs no code."""

from collections.abc import Iterator

from torch import nn

from lora_hf.adapters.backends import is_supported, type_name
from lora_hf.adapters.config import LoraConfig, name_matches
from lora_hf.adapters.layer import LoraLayer
from lora_hf.errors import UserError, did_you_mean


def own_modules(module: nn.Module, prefix: str = "") -> Iterator[tuple[str, nn.Module]]:
    """The model's modules under their own names, without what adapters have added below them."""
    for name, child in module.named_children():
        yield prefix + name, child
        if not isinstance(child, LoraLayer):
            yield from own_modules(child, f"{prefix}{name}.")


def find_targets(model: nn.Module, config: LoraConfig) -> dict[str, nn.Module]:
    """The layers that `config.target_modules` names.

    Raises:
        UserError: an entry matches nothing, or a layer that cannot carry an adapter.
    """
    found: dict[str, nn.Module] = {}
    unused = {config.target_modules} if isinstance(config.target_modules, str) else {*config.target_modules}
    for name, module in own_modules(model):
        matched = name_matches(config.target_modules, name)
        if matched:
            if not isinstance(module, LoraLayer) and not is_supported(module):
                raise UserError(
                    f"lora.target_modules: {matched[0]!r} matched {name}, a {type_name(module)}, "
                    "which cannot carry an adapter; name linear layers only"
                )
            found[name] = module
            unused.difference_update(matched)
    if unused:
        raise _no_match(model, sorted(unused))
    return found


def _no_match(model: nn.Module, unused: list[str]) -> UserError:
    layers = {n for n, m in own_modules(model) if isinstance(m, LoraLayer) or is_supported(m)}
    ends = sorted({name.rsplit(".", 1)[-1] for name in layers})
    model_name = getattr(model, "name_or_path", "") or type(model).__name__
    return UserError(
        f"lora.target_modules: {unused} matched no layer of {model_name}; "
        f"its linear layers end in {ends}.{did_you_mean(unused[0], ends)}"
    )
