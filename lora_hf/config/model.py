"""The `model:` section: the base model and the storage format of its weights."""

from difflib import get_close_matches
from pathlib import Path
from typing import Annotated, Any, Literal, Self

from pydantic import AfterValidator, model_validator
from pydantic_core import PydanticCustomError

from lora_hf.config.types import Count, Flag, Place, Section, Text

Dtype = Literal["auto", "float32", "bfloat16", "float16"]
EMBEDDED = "embedded"
"""Name of the model and of the sample in the package."""
ASSETS = Path(__file__).parents[1] / "assets" / "tiny_t5"
"""Folder of the embedded model."""
EMBEDDED_SAMPLE = ASSETS.with_name("sample")
"""Folder of the embedded sample, one `jsonl.gz` per split."""
NAME_FIELD = "model.model_name_or_path"
DENSE = {"load_in_4bit": False, "load_in_8bit": False}
"""Fields that full fine-tuning sets in a comparison, because quantized weights cannot be trained."""

STORAGE = {
    ("bnb", 8): "int8",
    ("hqq", 4): "affine4",
    ("torchao", 8): "torchao_int8",
}
"""(`quant_method`, bits) -> storage format; for 4 bits by bitsandbytes, `bnb_4bit_quant_type` names it."""


def _check_spelling(name: str) -> str:
    """Refuse a misspelt `embedded`, which would be looked up on the Hub."""
    near = get_close_matches(name.lower(), [EMBEDDED], cutoff=0.8)
    if near and name != EMBEDDED and "/" not in name and not Path(name).expanduser().exists():
        raise ValueError(f"is not a file or folder here. Did you mean {EMBEDDED!r}?")
    return name


Source = Annotated[Place, AfterValidator(_check_spelling)]


class ModelConfig(Section):
    """The base model and the storage format of its weights.

    `load_in_4bit` and `load_in_8bit` switch quantization on. The other fields choose the format and are
    ignored without them, so that a variant switches quantization off with one field.
    """

    model_name_or_path: Source = "embedded"
    """`embedded` (the tiny T5 in the package), a name on the Hub, or a folder."""
    revision: Text | None = None
    """Commit, tag or branch on the Hub; a commit makes the run repeatable."""
    dtype: Dtype = "auto"
    """Data type of the frozen weights. `auto`: bfloat16 on CUDA 8.0 and later, float32 elsewhere; what is
    dense in a checkpoint that is quantized already keeps that of its files."""
    load_in_4bit: Flag = False
    """Store the base in 4 bits (QLoRA, arXiv:2305.14314): a quarter of the memory, a slower step."""
    load_in_8bit: Flag = False
    """Store the base in int8 (LLM.int8, arXiv:2208.07339): half the memory, closer to the dense model."""
    quant_method: Literal["bnb", "hqq", "torchao"] = "bnb"
    """Library: bitsandbytes; HQQ, whose affine 4 bits QA-LoRA merges into; torchao, with `load_in_8bit`."""
    bnb_4bit_quant_type: Literal["nf4", "fp4"] = "nf4"
    """`nf4` has the lower error on normally distributed weights, as trained ones are."""
    bnb_4bit_use_double_quant: Flag = True
    """Quantize the scales too: 0.37 bit per weight less (QLoRA, section 3)."""
    bnb_4bit_compute_dtype: Dtype = "auto"
    """Data type to which 4-bit weights are unpacked for the product; `auto` as in `dtype`."""
    hqq_group_size: Count = 64
    """Inputs that share a scale and a zero point; 128 takes 10 % less memory than 64, at a larger error."""
    untie_head: Flag = False
    """Give the output head its own copy of the embeddings, so that either can train without the other."""
    quantize_wo: Flag = False
    """Quantize the layers `wo` of T5, mT5 and UMT5 too, which Transformers leaves dense: less memory, a
    slightly larger error. Other models have no such layers, and the field is refused with them."""

    _name_field: str = NAME_FIELD

    def with_name_field(self, field: str) -> Self:
        """Return a copy whose errors name another field or option as the place where the model was named."""
        config = self.model_copy()
        config._name_field = field
        return config

    @property
    def name_field(self) -> str:
        """Field or option in which the model was named."""
        return self._name_field

    @property
    def as_written(self) -> str:
        """The model as errors name it: `model.model_name_or_path='a/b'`, or `--base='a/b'`."""
        return f"{self._name_field}={self.model_name_or_path!r}"

    @property
    def is_quantized(self) -> bool:
        """True if the frozen weights are stored in 4 or 8 bits."""
        return self.load_in_4bit or self.load_in_8bit

    @property
    def storage(self) -> str:
        """The storage format of the frozen weights: a key of `models.storage.STORAGE_FORMATS`."""
        if not self.is_quantized:
            return "dense"
        return STORAGE.get((self.quant_method, 8 if self.load_in_8bit else 4), self.bnb_4bit_quant_type)

    def storage_fields(self) -> dict[str, Any]:
        """Return the fields, beside name and revision, with which an adapter's base is loaded again."""
        fields = self.model_dump(exclude={"model_name_or_path", "revision"}, exclude_defaults=True)
        dense = ("dtype", "untie_head")
        return fields if self.is_quantized else {k: v for k, v in fields.items() if k in dense}

    @model_validator(mode="after")
    def _check_storage(self) -> Self:
        if self.load_in_4bit and self.load_in_8bit:
            raise _conflict(
                "load_in_8bit", "and model.load_in_4bit=true exclude each other: remove one of them"
            )
        if self.quant_method != "bnb":
            bits = next(b for method, b in STORAGE if method == self.quant_method)
            if self.is_quantized and bits != (8 if self.load_in_8bit else 4):
                remedy = f"has {bits} bits only: set load_in_{bits}bit: true, or quant_method: bnb"
                raise _conflict("quant_method", remedy)
            if not self.is_quantized and self.model_fields_set.isdisjoint(DENSE):
                raise _conflict("quant_method", f"stores nothing without model.load_in_{bits}bit: true")
        if self.quantize_wo and self.is_quantized and "float16" in self._computed_in():
            remedy = (
                "cannot be combined with float16, in which T5's wo overflows: use bfloat16, or leave wo dense"
            )
            raise _conflict("quantize_wo", remedy)
        return self

    def _computed_in(self) -> tuple[Dtype, ...]:
        is_bnb = self.load_in_4bit and self.quant_method == "bnb"
        return (self.dtype, self.bnb_4bit_compute_dtype) if is_bnb else (self.dtype,)


def _conflict(field: str, remedy: str) -> PydanticCustomError:
    """Return the error of two fields that exclude each other; it names the one to change."""
    return PydanticCustomError("together", remedy, {"path": ("model", field)})
