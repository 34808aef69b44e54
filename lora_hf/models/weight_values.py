"""Check the values of a base model's weights: finite, and no matrix of zeros.

A run on weights with NaN or zeros ends without an error, with a score of 0.
"""

from collections.abc import Collection, Iterable, Iterator
from math import isfinite
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from lora_hf.adapters.checkpoint_io import DAMAGED
from lora_hf.errors import UserError, few
from lora_hf.models.base_files import AGAIN
from lora_hf.models.checkpoint import packed_weights

OUTPUTS = ("o", "wo", "out_proj", "fc2", "o_proj", "down_proj")
"""Names of the projections that attention and feed-forward layers end in, in all families."""
ZEROS = "all zeros, as after an incomplete download or copy"
LAST_ROWS = 0.05
"""Share of a matrix's rows that may be zeros up to its end, as where a vocabulary was padded."""
ADDED = (
    "as in blocks that were added and not trained yet; if none were added, the download was incomplete: "
    + AGAIN
)


def file_tensors(files: Iterable[Path]) -> Iterator[tuple[str, Tensor]]:
    """Yield the names and tensors of safetensors files one at a time, on the CPU; packed weights as bytes.

    Raises:
        UserError: a file cannot be read.
    """
    files = list(files)
    packed = packed_weights(files)
    for file in files:
        try:
            with safe_open(file, framework="pt") as tensors:
                for name in sorted(tensors.keys()):
                    tensor = tensors.get_tensor(name)
                    yield name, tensor.view(torch.uint8) if name in packed else tensor
        except (OSError, SafetensorError) as error:
            raise UserError(f"{file} {DAMAGED}: {error}") from error


def check_values(tensors: Iterable[tuple[str, Tensor]], model: str, beside: Collection[str] = ()) -> str:
    """Check that all values are finite and that no matrix is zero as a whole.

    One pass over the floating-point tensors, on their device. Skipped are integers, tensors on the meta
    device, and those without values on this process (DeepSpeed ZeRO-3). Zeros in one row are allowed, because
    embeddings of padding have them, and BART stores its `final_logits_bias` as a matrix of one row. Zeros in
    at most half of the projections that a block ends in are allowed too: blocks that were added so that the
    model computes the same at first begin so (LLaMA Pro, arXiv:2401.02415), and training fills them. So are
    zeros in parts that text does not reach: T5Gemma 2 initializes the projection of its images so.

    Args:
        tensors: names and tensors of any shape, as a loaded model or the files of a checkpoint have them.
        model: the model as errors name it.
        beside: names of modules beside the language model, as `Family.beside` lists them.

    Returns:
        Sentences that name the output projections of zeros, and the matrices of which more than `LAST_ROWS`
        are zeros up to the end, as in a file whose end was never written; empty if there are none.

    Raises:
        UserError: a tensor has NaN or infinite values, or another matrix is all zeros.
    """
    outputs: dict[str, bool] = {}
    doubts: list[str] = []
    for name, tensor in tensors:
        if tensor.is_meta or not tensor.is_floating_point() or not tensor.numel():
            continue
        values = tensor.detach()
        if values.element_size() < 2:  # PyTorch finds no minimum of 8-bit floats
            values = values.to(torch.bfloat16)
        low, high = (value.item() for value in values.aminmax())  # NaN if any value is
        if not isfinite(low) or not isfinite(high):
            overflow = (
                "; or, if the file holds values beyond ±65,504, which float16 cannot represent, set "
                "model.dtype: float32"
            )
            raise UserError(
                f"{model}: {name} has values that are not finite (NaN or infinity), so its file is damaged: "
                f"{AGAIN}{overflow if tensor.dtype == torch.float16 else ''}"
            )
        if tensor.ndim < 2 or len(tensor) < 2 or not set(beside).isdisjoint(name.split(".")):
            continue
        is_zero = low == high == 0
        if name.split(".")[-2:-1] and name.split(".")[-2] in OUTPUTS:
            outputs[name] = is_zero
        elif is_zero:
            raise UserError(f"{model}: {name} {tuple(tensor.shape)} is {ZEROS}: {AGAIN}")
        if not is_zero and (rows := _zero_rows_at_end(values)) > max(1, LAST_ROWS * len(values)):
            doubts.append(f"{model}: the last {rows} of {len(values)} rows of {name} are {ZEROS}: {AGAIN}")
    zeros = [name for name, is_zero in outputs.items() if is_zero]
    if 2 * len(zeros) > len(outputs):
        raise UserError(
            f"{model}: {len(zeros)} of {len(outputs)} output projections are {ZEROS}: {few(zeros)}; {AGAIN}"
        )
    if zeros:
        doubts.append(f"{model}: {len(zeros)} output projections are all zeros ({few(zeros)}), {ADDED}")
    return "; ".join(doubts)


def _zero_rows_at_end(values: Tensor) -> int:
    if values[-1].any():
        return 0
    kept = values.flatten(1).any(1).nonzero()
    return len(values) - 1 - int(kept[-1])
