"""`torch.nn.Linear`: the weight is a plain matrix."""

from torch import Tensor, dtype, nn

from lora_hf.adapters.functional import low_rank_product


class DenseLinear:
    """A floating-point `nn.Linear`."""

    def __init__(self, layer: nn.Linear) -> None:
        self.layer = layer
        self.in_features = layer.in_features
        self.out_features = layer.out_features

    def low_rank(self, x: Tensor, lora_A: Tensor, lora_B: Tensor, scaling: float, dropout: float) -> Tensor:
        return low_rank_product(x, lora_A, lora_B, scaling, dropout)

    def dequantize(self, dtype: dtype) -> Tensor:
        return self.layer.weight.detach().to(dtype, copy=True)

    def requantize(self, weight: Tensor) -> nn.Parameter:
        stored = self.layer.weight
        return nn.Parameter(weight.to(stored.device, stored.dtype), requires_grad=False)
