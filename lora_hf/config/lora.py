"""The `lora:` section: what an adapter is, under PEFT's names."""

import re
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, Field, PlainSerializer, field_validator

from lora_hf.config.types import Count, Flag, Integer, Items, Number, Section, Text
from lora_hf.errors import NOT_REGULAR

Start = Literal[True, "gaussian", "pissa", "pissa_niter_4", "pissa_niter_16", "olora", "loftq"]


def _whole(value: float) -> float:
    """32, not 32.0, as PEFT writes it in adapter_config.json."""
    return int(value) if float(value).is_integer() else value


Alpha = Annotated[
    Number, Field(gt=0), AfterValidator(_whole), PlainSerializer(_whole, return_type=int | float)
]
Index = Annotated[Integer, Field(ge=0)]
Spans = Items[Annotated[Items[Index], Field(min_length=2, max_length=2)]]


class LoraSection(Section):
    """The adapters: the fields of `lora_hf.adapters.config.LoraConfig`, names and defaults as PEFT's."""

    r: Count = 8
    """Rank: each adapted layer learns r * (in + out) numbers."""
    lora_alpha: Alpha = 8
    """The update is scaled by lora_alpha / r."""
    lora_dropout: Annotated[Number, Field(ge=0, lt=1)] = 0.0
    """Rate of dropout on what enters the adapter, while training."""
    target_modules: Items[str] | str = ("q", "v")
    """Layer names (whole or a `.suffix`), a regular expression that the full name matches, or all-linear."""
    exclude_modules: Items[str] | str = ()
    """Taken out of the targets: names or one regular expression."""
    layers_to_transform: Items[Index] | None = None
    """Only these of the stacked blocks, counted from 0 in each stack; null takes all."""
    rank_pattern: dict[Text, Count] = {}
    """By layer name (or its end, or a regular expression): another r."""
    alpha_pattern: dict[Text, Alpha] = {}
    """By layer name: another lora_alpha."""
    modules_to_save: Items[Text] = ()
    """Layers that train whole and are saved with the adapter."""
    use_rslora: Flag = False
    """Scale by lora_alpha / sqrt(r) (rsLoRA)."""
    use_dora: Flag = False
    """Learn each output row's norm apart from its direction (DoRA)."""
    use_qalora: Flag = False
    """One column of A per quantization group, for an exact merge into affine 4 bits (QA-LoRA)."""
    qalora_group_size: Count | None = None
    """Inputs a group; null takes the store's own."""
    init_lora_weights: Start = True
    """Where A and B start: true (Kaiming, as PEFT), gaussian, or from the weight's own directions."""
    loftq_iter: Count = 1
    """T, the alternations of LoftQ."""
    layer_replication: dict[Text, Spans] | Spans | None = None
    """{encoder: [[0, 4], [2, 6]]}: the stack made of these blocks, [start, end)."""

    @field_validator("target_modules", "exclude_modules", mode="before")
    @classmethod
    def _check_targets(cls, value: Any) -> Any:
        names = [value] if isinstance(value, str) else value
        are_names = isinstance(names, (list, tuple)) and all(isinstance(name, str) and name for name in names)
        if not are_names:
            raise ValueError("is not a list of layer names, such as [q, v], nor one regular expression")
        if isinstance(value, str):
            _check_expression(value)
        return value

    @field_validator("target_modules")
    @classmethod
    def _check_some(cls, value: Any) -> Any:
        if not value:
            raise ValueError("is not a list of layer names, such as [q, v], nor one regular expression")
        return value

    @field_validator("rank_pattern", "alpha_pattern")
    @classmethod
    def _check_keys(cls, value: dict[str, Any]) -> dict[str, Any]:
        for key in value:
            _check_expression(key)
        return value


def _check_expression(text: str) -> None:
    try:
        re.compile(text)
    except NOT_REGULAR as error:
        raise ValueError(f"is not a regular expression: {error}") from None
