"""What one adapter is: the fields a person sets, under PEFT's names."""

import re
from dataclasses import dataclass, field

from lora_hf.errors import UserError


@dataclass(frozen=True)
class LoraConfig:
    """Settings of one LoRA adapter (Hu et al., arXiv:2106.09685).

    Args:
        r: rank of the update B A; each target trains r * (in_features + out_features) weights.
        lora_alpha: the update is scaled by lora_alpha / r.
        lora_dropout: probability with which an input element of A is zeroed in training.
        target_modules: names of the layers that get an adapter. A list matches whole names or their
            last parts (`q` matches `...SelfAttention.q`); a string is a regular expression that must
            match the full name.
        init_lora_weights: True starts A with Kaiming's uniform distribution, `gaussian` with
            a normal one of deviation 1/r; B starts at zero, so that the start is the identity.

    Raises:
        UserError: a value outside its range.
    """

    r: int = 8
    lora_alpha: float = 8
    lora_dropout: float = 0.0
    target_modules: tuple[str, ...] | str = field(default=("q", "v"))
    init_lora_weights: bool | str = True

    def __post_init__(self) -> None:
        if not isinstance(self.target_modules, str):
            object.__setattr__(self, "target_modules", tuple(self.target_modules))
        if isinstance(self.r, bool) or not isinstance(self.r, int) or self.r < 1:
            raise UserError(f"lora.r={self.r!r} is not a whole number of at least 1")
        if not 0 < self.lora_alpha < float("inf"):
            raise UserError(f"lora.lora_alpha={self.lora_alpha!r} is not a finite number above 0")
        if not 0 <= self.lora_dropout < 1:
            raise UserError(f"lora.lora_dropout={self.lora_dropout!r} is not in [0, 1)")
        if not self.target_modules:
            raise UserError("lora.target_modules is empty: name at least one layer, for example [q, v]")
        self._check_pattern()

    def _check_pattern(self) -> None:
        if isinstance(self.target_modules, str):
            try:
                re.compile(self.target_modules)
            except re.error as error:
                raise UserError(
                    f"lora.target_modules={self.target_modules!r} is not a regular expression: {error}"
                ) from None

    def matches(self, module_name: str) -> list[str]:
        """The entries of `target_modules` that match a module's dotted name."""
        if isinstance(self.target_modules, str):
            return [self.target_modules] if re.fullmatch(self.target_modules, module_name) else []
        return [t for t in self.target_modules if module_name == t or module_name.endswith("." + t)]
