"""LoRA-FA: h = W x + s B A x with A frozen at its initial value (Zhang et al., arXiv:2308.03303, eq. 3).

Only B trains, so that the backward pass needs no gradient of A. PEFT has LoRA-FA as an optimizer over LoRA's
parameters; the files are plain LoRA, and a loaded adapter is LoRA.
"""

from typing import Any

from lora_hf.adapters.backends import Backend
from lora_hf.adapters.config import LoraConfig
from lora_hf.adapters.methods.lora import Lora
from lora_hf.errors import UserError


class LoraFA(Lora):
    """LoRA's parameters, of which lora_A (r, in) stays frozen."""

    title = "LoRA-FA"

    def __init__(self, config: LoraConfig, base: Backend, *args: Any, **kwargs: Any) -> None:
        super().__init__(config, base, *args, **kwargs)
        self.lora_A.requires_grad_(False)

    @classmethod
    def check(cls, config: LoraConfig, base: Backend) -> None:
        name = base.plain_init if config.init_lora_weights is True else config.init_lora_weights
        if name == "lookup":
            raise UserError(
                "use_lora_fa=True freezes A, which is zero at first on a layer of type "
                f"{type(base.layer).__name__}; set init_lora_weights to gaussian or pissa, or remove the "
                "layer from target_modules",
                "use_lora_fa",
            )

    def set_trainable(self, trainable: bool) -> None:
        super().set_trainable(trainable)
        self.lora_A.requires_grad_(False)
