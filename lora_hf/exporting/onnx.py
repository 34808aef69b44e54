"""Write a model as ONNX graphs, quantize them, and run such a folder with onnxruntime.

The folder is one that Hugging Face Optimum's `ORTModelForSeq2SeqLM` loads. Here the graphs are run by
Transformers' own `generate`, so that every search and every setting is the same as in torch.
"""

import importlib
import logging
import warnings
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.export import Dim
from transformers import DynamicCache, EncoderDecoderCache, GenerationMixin, PreTrainedModel
from transformers import GenerationConfig as TransformersConfig
from transformers.modeling_outputs import BaseModelOutput, Seq2SeqLMOutput

from lora_hf.errors import UserError
from lora_hf.exporting.graphs import DecoderGraph, EncoderGraph, cross_attentions, products
from lora_hf.fast.t5 import attention_by
from lora_hf.models.exported import AGAIN, ExportedModel

ENCODER, DECODER = "encoder_model.onnx", "decoder_model_merged.onnx"
QUANTIZATIONS = ("float32", "int8")
FAMILIES = ("t5", "mt5", "umt5", "bart", "mbart", "m2m_100", "pegasus")
"""Values of `model_type` whose graphs are tested; NLLB is an m2m_100."""
PACKAGES = ("onnxruntime", "onnx", "onnxscript")
INSTALL = "pip install 'lora_hf[onnx]'"
OPSET = 18
LARGEST = 2**30
"""Bytes of weights; larger ones go into a file of their own, because a graph's file is limited to 2 GiB."""
ROWS, SOURCE, NEW, PAST, KNOWN = 2, 7, 2, 3, 4
"""Sizes of the example that the graphs are traced with; no difference of them is 0 or 1, which tracing would
keep. The graphs accept any."""
CODE = """from optimum.onnxruntime import ORTModelForSeq2SeqLM  # pip install optimum-onnx[onnxruntime]
from transformers import AutoTokenizer

tokenizer, model = AutoTokenizer.from_pretrained("."), ORTModelForSeq2SeqLM.from_pretrained(".")
TEXT
tokens = model.generate(**tokenizer(text, return_tensors="pt"))
print(tokenizer.decode(tokens[0], skip_special_tokens=True))
"""
"""Python code of a README: TEXT is replaced."""


def check_packages(*names: str) -> None:
    """Check that packages are installed, by default those that write the graphs.

    Raises:
        UserError: one is not.
    """
    if missing := [name for name in names or PACKAGES if find_spec(name) is None]:
        raise UserError(f"ONNX needs the package {missing[0]}: {INSTALL}")


def write_onnx(model: Any, tokenizer: Any, folder: Path, quantization: str) -> None:
    """Write the two graphs, with any numbers of rows and tokens, and config.json.

    Args:
        model: a dense encoder-decoder of `FAMILIES` without adapters, in float32 on the CPU.
        tokenizer: not used; part of the signature of all engines.
        folder: exists.
        quantization: `int8` quantizes matrix products by onnxruntime: weights per column, activations as they
            come. Embeddings stay in float32.

    Raises:
        UserError: a package is missing.
    """
    check_packages()
    with attention_by(model, "eager"), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # about inputs that share a dimension, as intended
        _write_graphs(model.eval(), folder)
    _free_last_dimension(folder / DECODER)
    if quantization == "int8":
        for file in (folder / ENCODER, folder / DECODER):
            _quantize(file)
    model.config.save_pretrained(folder)


def _write_graphs(model: Any, folder: Path) -> None:
    rows, new, past, known = Dim("rows", min=1), Dim("new", min=1), Dim("past", min=0), Dim("known", min=0)
    source = Dim("source", min=KNOWN)  # tracing wants this bound, which the graphs do not keep
    ids, mask = torch.ones(ROWS, SOURCE, dtype=torch.long), torch.ones(ROWS, SOURCE, dtype=torch.long)
    sizes: Any = {0: rows, 1: source}
    encoder = EncoderGraph(model)
    _write(
        *(encoder, (ids, mask), ["input_ids", "attention_mask"], ["last_hidden_state"]),
        *([sizes, sizes], folder / ENCODER),
    )
    with torch.no_grad():
        hidden = encoder(ids, mask)
    attentions = cross_attentions(model)
    heads = model.config.get_text_config(decoder=True).num_attention_heads
    width = products(attentions[0])[0].out_features // heads
    lengths = [PAST, PAST, KNOWN, KNOWN] * len(attentions)
    states = [torch.zeros(ROWS, heads, length, width) for length in lengths]
    shapes = [sizes, {0: rows, 1: new}, sizes]
    shapes.append(tuple({0: rows, 2: past if length == PAST else known} for length in lengths))
    inputs = ["encoder_attention_mask", "input_ids", "encoder_hidden_states"]
    inputs += cache_names("past_key_values", len(attentions))
    outputs = ["logits", *cache_names("present", len(attentions))]
    example = (mask, ids[:, :NEW], hidden, *states)
    _write(DecoderGraph(model), example, inputs, outputs, shapes, folder / DECODER)


def cache_names(prefix: str, layers: int) -> list[str]:
    """Return `PREFIX.0.decoder.key`, `.decoder.value`, `.encoder.key`, `.encoder.value` and so on."""
    parts = [f"{stack}.{part}" for stack in ("decoder", "encoder") for part in ("key", "value")]
    return [f"{prefix}.{layer}.{part}" for layer in range(layers) for part in parts]


def _write(
    graph: Any,
    example: tuple[Tensor, ...],
    inputs: list[str],
    outputs: list[str],
    shapes: list[Any],
    file: Path,
) -> None:
    torch.onnx.export(
        graph,
        example,
        str(file),
        input_names=inputs,
        output_names=outputs,
        dynamic_shapes=shapes,
        opset_version=OPSET,
        dynamo=True,
        external_data=sum(p.numel() * p.element_size() for p in graph.parameters()) > LARGEST,
        verbose=False,
    )


def _free_last_dimension(file: Path) -> None:
    """Let the decoder accept an empty cache of any width.

    Optimum makes the empty cache of the first step d_model / heads wide, which is not d_kv in all T5s
    (FLAN-T5-small has 512 / 6 and 64). A reshape in front of each state, which copies nothing, mends it.
    """
    import onnx

    model = onnx.load(str(file), load_external_data=False)
    graph, added = model.graph, []
    states = {state.name: state for state in graph.input if state.name.startswith("past_key_values.")}
    for node in graph.node:
        for number, name in enumerate(node.input):
            if name in states:
                node.input[number] = f"{name}.shaped"
    for name, state in states.items():
        width = state.type.tensor_type.shape.dim[3]
        shape = onnx.helper.make_tensor(
            f"{name}.shape", onnx.TensorProto.INT64, [4], [0, 0, -1, width.dim_value]
        )
        graph.initializer.append(shape)
        added.append(onnx.helper.make_node("Reshape", [name, shape.name], [f"{name}.shaped"]))
        width.dim_param = "width"
    nodes = [*added, *graph.node]
    del graph.node[:]
    graph.node.extend(nodes)
    onnx.save(model, str(file))


def _quantize(file: Path) -> None:
    """Quantize the matrix products of a graph to int8, in place."""
    from onnxruntime.quantization import QuantType, quantize_dynamic

    part = file.with_name(f"float32-{file.name}")
    data = file.with_name(f"{file.name}.data")
    is_large = data.is_file()
    file.rename(part)
    before = logging.root.manager.disable
    logging.disable(logging.WARNING)  # it recommends a pass over the graph that torch has made already
    try:
        quantize_dynamic(
            str(part),
            str(file),
            op_types_to_quantize=["MatMul"],
            per_channel=True,
            weight_type=QuantType.QInt8,
            use_external_data_format=is_large,
            extra_options={"MatMulConstBOnly": True},
        )
    finally:
        logging.disable(before)
    part.unlink()


def readme_code(tokenizer: Any, options: TransformersConfig) -> str:
    """Return Python code for a README, which prints what the model writes for `text`."""
    return CODE


class OnnxModel(ExportedModel):
    """A folder of `write_onnx`, run by onnxruntime with as many threads as torch has."""

    engine = "onnx"

    def __init__(self, folder: Path) -> None:
        """Load the graphs.

        Raises:
            UserError: a package is missing, or a file is missing or damaged.
        """
        check_packages("onnxruntime")
        super().__init__(folder)
        self._model: Any = _Generating(self.config, folder)
        self._model.generation_config = TransformersConfig()

    def generate_ids(
        self, sources: list[list[int]], limits: list[int], options: TransformersConfig
    ) -> list[list[int]]:
        """Generate one batch; see `ExportedModel.generate_ids`."""
        longest = max(map(len, sources))
        ids = torch.tensor([row + [options.pad_token_id] * (longest - len(row)) for row in sources])
        mask = torch.tensor([[1] * len(row) + [0] * (longest - len(row)) for row in sources])
        options.max_new_tokens, options.max_length = max(limits), None
        with torch.inference_mode():
            inputs = {
                "input_ids": ids,
                "attention_mask": mask,
                "encoder_outputs": self._model.encode(ids, mask),
            }
            tokens = self._model.generate(**inputs, generation_config=options)
        return [row[1 : 1 + limit] for row, limit in zip(tokens.tolist(), limits, strict=True)]


class _Generating(PreTrainedModel, GenerationMixin):
    """The graphs as a model of Transformers, for its `generate`."""

    main_input_name = "input_ids"
    base_model_prefix = "graphs"
    _supports_sdpa = True
    _supports_flash_attn = True
    _is_stateful = True  # the cache cannot be rolled back

    def __init__(self, config: Any, folder: Path) -> None:
        super().__init__(config)
        self.place = torch.nn.Parameter(torch.zeros(1), requires_grad=False)  # says device and dtype
        self.encoder_session, self.decoder_session = (_session(folder / name) for name in (ENCODER, DECODER))
        names = [state.name for state in self.decoder_session.get_inputs()]
        self.states = [name for name in names if name.startswith("past_key_values.")]
        self.heads = self.decoder_session.get_inputs()[-1].shape[1]
        self.presents = [name.replace("past_key_values", "present") for name in self.states]
        self.own_presents = [name for name in self.presents if ".decoder." in name]

    def encode(self, input_ids: Tensor, attention_mask: Tensor) -> BaseModelOutput:
        """Run the encoder on tokens (rows, source)."""
        feed = {"input_ids": input_ids.numpy(), "attention_mask": attention_mask.numpy()}
        return BaseModelOutput(last_hidden_state=torch.from_numpy(self.encoder_session.run(None, feed)[0]))

    def forward(
        self,
        encoder_outputs: Any,
        attention_mask: Tensor,
        decoder_input_ids: Tensor,
        past_key_values: EncoderDecoderCache,
        **unused: Any,
    ) -> Seq2SeqLMOutput:
        """Run the decoder on new tokens; see `graphs.DecoderGraph`."""
        own: Any = past_key_values.self_attention_cache
        source: Any = past_key_values.cross_attention_cache
        is_first = not past_key_values.is_updated
        hidden = encoder_outputs[0]
        if is_first:
            empty = torch.zeros(len(hidden), self.heads, 0, 1)
            past = [empty] * len(self.states)
        else:
            layers: Any = zip(own.layers, source.layers, strict=True)
            past = [part for pair in layers for layer in pair for part in (layer.keys, layer.values)]
        feed = dict(zip(self.states, past, strict=True))
        feed |= {"encoder_attention_mask": attention_mask, "encoder_hidden_states": hidden}
        feed["input_ids"] = decoder_input_ids
        wanted = self.presents if is_first else self.own_presents
        logits, *made = self.decoder_session.run(
            ["logits", *wanted], {name: value.contiguous().numpy() for name, value in feed.items()}
        )
        found = {name: torch.from_numpy(value) for name, value in zip(wanted, made, strict=True)}
        for layer in range(len(self.states) // 4):
            for cache, stack in ((own, "decoder"), (source, "encoder")):
                key, value = (found.get(f"present.{layer}.{stack}.{part}") for part in ("key", "value"))
                if key is None or value is None:
                    continue
                if is_first:
                    cache.update(key, value, layer)
                else:
                    cache.layers[layer].keys, cache.layers[layer].values = key, value
            past_key_values.is_updated[layer] = True
        return Seq2SeqLMOutput(logits=torch.from_numpy(logits), past_key_values=past_key_values)

    def _prepare_cache_for_generation(  # type: ignore[override]
        self, generation_config: Any, model_kwargs: dict[str, Any], *given: Any, **kwargs: Any
    ) -> None:
        cache = EncoderDecoderCache(DynamicCache(), DynamicCache())
        cache.is_updated = {}
        model_kwargs["past_key_values"] = cache


def _session(file: Path) -> Any:
    onnxruntime = importlib.import_module("onnxruntime")
    if not file.is_file():
        raise UserError(f"{file.parent} has no {file.name}: {AGAIN}")
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = torch.get_num_threads()
    try:
        return onnxruntime.InferenceSession(str(file), options, providers=["CPUExecutionProvider"])
    except Exception as error:  # onnxruntime has a class for each status, of no common base
        raise UserError(f"{file} cannot be read by onnxruntime: {error}; {AGAIN}") from error
