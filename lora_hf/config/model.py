"""The `model:` section: which base, and how its weights are stored."""

from typing import Literal

from lora_hf.config.fields import Flag, Section, Text

Dtype = Literal["auto", "float32", "bfloat16", "float16"]


class ModelConfig(Section):
    """The base model and how it is stored."""

    model_name_or_path: Text = "embedded"
    """`embedded` (the tiny T5 in the package), a name on the Hub, or a folder."""
    revision: Text | None = None
    """Commit, tag or branch on the Hub; a commit makes the run repeatable."""
    dtype: Dtype = "auto"
    """Of the frozen weights. `auto`: bfloat16 on CUDA 8.0 and later, float32 elsewhere."""
    load_in_4bit: Flag = False
    """Store the base in 4 bits (QLoRA, arXiv:2305.14314): a quarter of the memory, a slower step."""
    bnb_4bit_quant_type: Literal["nf4", "fp4"] = "nf4"
    """nf4 is the better one for weights that look normally distributed, as trained ones do."""
    bnb_4bit_use_double_quant: Flag = True
    """Quantize the scales too: 0.37 bit per weight less (QLoRA, section 3)."""
    bnb_4bit_compute_dtype: Dtype = "auto"
    """What 4-bit weights are unpacked to for the product; `auto` as in `dtype`."""

    @property
    def storage(self) -> str:
        """How the frozen weights are kept: `dense`, `nf4` or `fp4`."""
        return self.bnb_4bit_quant_type if self.load_in_4bit else "dense"
