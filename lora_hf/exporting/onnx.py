"""Write a T5 as ONNX, and run the graphs with greedy search in onnxruntime."""

import warnings
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.export import Dim

from lora_hf.errors import UserError
from lora_hf.exporting.graphs import DecoderGraph, EncoderGraph
from lora_hf.fast.t5 import attention_by

ENCODER, DECODER = "encoder.onnx", "decoder.onnx"
KINDS = ("t5", "mt5")
OPSET = 18
LARGEST = 2**30
"""Bytes of weights; larger ones go into a file of their own, because a graph's file is limited to 2 GiB."""
ROWS, SOURCE, TOKENS = 2, 5, 3
"""Sizes of the example that the graphs are traced with; the graphs accept any."""


def write_graphs(model: Any, folder: Path) -> None:
    """Write encoder.onnx and decoder.onnx, with dynamic batch size, source length and token count.

    Raises:
        UserError: the model is not a dense T5, or the package onnxscript is missing.
    """
    _check(model)
    folder.mkdir(parents=True, exist_ok=True)
    with attention_by(model, "eager"):
        _write_both(model, folder)


def _write_both(model: Any, folder: Path) -> None:
    rows, source, tokens = Dim("rows", min=1), Dim("source", min=1), Dim("tokens", min=0)
    ids, mask = torch.ones(ROWS, SOURCE, dtype=torch.long), torch.ones(ROWS, SOURCE, dtype=torch.long)
    free = {0: rows, 1: source}
    encoder = EncoderGraph(model)
    layers = len(model.decoder.block)
    across = names("source", layers)
    _write(encoder, (ids, mask), [free, free], ["input_ids", "attention_mask"], across, folder / ENCODER)
    with torch.no_grad():
        made = encoder(ids, mask)
    heads, d_kv = made[0].shape[1], made[0].shape[3]
    past = [torch.zeros(ROWS, heads, TOKENS, d_kv, dtype=made[0].dtype) for _ in range(2 * layers)]
    shapes = [{0: rows}, free, tuple([{0: rows, 2: tokens}] * len(past) + [{0: rows, 2: source}] * len(made))]
    inputs = ["input_ids", "attention_mask", *names("past", layers), *across]
    outputs = ["logits", *names("present", layers)]
    _write(DecoderGraph(model), (ids[:, :1], mask, *past, *made), shapes, inputs, outputs, folder / DECODER)


def names(prefix: str, layers: int) -> list[str]:
    """Return `past_0_keys`, `past_0_values`, `past_1_keys` and so on."""
    return [f"{prefix}_{layer}_{part}" for layer in range(layers) for part in ("keys", "values")]


def check_exported(kind: str | None, model: str) -> None:
    """Check that there are graphs for a family.

    Args:
        kind: its `model_type`.
        model: the model as errors name it.

    Raises:
        UserError: there are none.
    """
    if kind not in KINDS:
        raise UserError(
            f"{model} is of type {kind}, and ONNX graphs are written for {' and '.join(KINDS)} only. Use the "
            "model's folder with Transformers (AutoModelForSeq2SeqLM.from_pretrained); `lora-hf merge` makes "
            "such a folder from an adapter"
        )


def _check(model: Any) -> None:
    check_exported(getattr(model.config, "model_type", None), f"a {type(model).__name__}")
    if any(not p.is_floating_point() for p in model.parameters()):
        raise UserError(
            "a quantized model cannot be exported: merge with --onto checkpoint, and export that folder"
        )
    try:
        import onnxscript  # noqa: F401  # torch.onnx needs it
    except ImportError:
        raise UserError(
            "export needs the packages onnx and onnxscript: pip install 'lora_hf[onnx]'"
        ) from None


def _write(
    graph: Any,
    example: tuple[Tensor, ...],
    shapes: list[Any],
    inputs: list[str],
    outputs: list[str],
    file: Path,
) -> None:
    size = sum(p.numel() * p.element_size() for p in graph.parameters())
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # about two inputs that share a dimension, as intended
        torch.onnx.export(
            graph.eval(),
            example,
            str(file),
            input_names=inputs,
            output_names=outputs,
            dynamic_shapes=shapes,
            opset_version=OPSET,
            dynamo=True,
            external_data=size > LARGEST,
            verbose=False,
        )


class OnnxT5:
    """The two graphs, run with onnxruntime on the CPU."""

    def __init__(self, folder: Path) -> None:
        """Load encoder.onnx and decoder.onnx.

        Raises:
            UserError: a graph or the package onnxruntime is missing.
        """
        try:
            import onnxruntime
        except ImportError:
            raise UserError(
                "running ONNX needs the package onnxruntime: pip install 'lora_hf[onnx]'"
            ) from None
        if missing := [name for name in (ENCODER, DECODER) if not (folder / name).is_file()]:
            raise UserError(f"{folder} has no {missing[0]}: create it with `lora-hf export`")
        providers = ["CPUExecutionProvider"]
        self.encoder = onnxruntime.InferenceSession(folder / ENCODER, providers=providers)
        self.decoder = onnxruntime.InferenceSession(folder / DECODER, providers=providers)
        self.past = [x for x in self.decoder.get_inputs() if x.name.startswith("past_")]

    def greedy(
        self,
        input_ids: np.ndarray,
        attention_mask: np.ndarray,
        max_new_tokens: int,
        start: int,
        end: int,
        pad: int,
    ) -> np.ndarray:
        """Return tokens (rows, at most 1 + max_new_tokens), as Transformers' greedy `generate` does.

        Args:
            input_ids, attention_mask: (rows, source), int64.
            max_new_tokens: the most tokens to generate.
            start, end, pad: token ids of the decoder's start, the end of a text, and padding.
        """
        inputs = {"input_ids": input_ids, "attention_mask": attention_mask}
        made = dict(
            zip([x.name for x in self.encoder.get_outputs()], self.encoder.run(None, inputs), strict=True)
        )
        rows = len(input_ids)
        empty = {x.name: np.zeros((rows, x.shape[1], 0, x.shape[3]), np.float32) for x in self.past}
        written, is_open, past = [np.full(rows, start)], np.ones(rows, bool), list(empty.values())
        for _ in range(max_new_tokens):
            states = dict(zip(empty, past, strict=True)) | made | {"attention_mask": attention_mask}
            logits, *past = self.decoder.run(None, {"input_ids": written[-1][:, None]} | states)
            written.append(np.where(is_open, logits.argmax(-1), pad))
            is_open &= written[-1] != end
            if not is_open.any():
                break
        return np.stack(written, axis=1)
