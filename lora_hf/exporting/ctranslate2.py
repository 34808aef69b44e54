"""Write a model for CTranslate2 by its own converter, and run such a folder.

CTranslate2 (https://opennmt.net/CTranslate2) runs encoder-decoders on CPUs in float32, and in int8 with one
scale for each row of a weight. Its search is its own: greedy tokens are those of Transformers, and beams can
end elsewhere, because it stops at the first `num_beams` finished outputs, as `early_stopping` does. With some
settings its tokens are others (`own_search`).
"""

import importlib
import json
import logging
import tempfile
from collections.abc import Sequence
from functools import cache
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch
from transformers import GenerationConfig as TransformersConfig

from lora_hf.errors import UserError
from lora_hf.files import read_object, write_json
from lora_hf.models.exported import AGAIN, ExportedModel

logger = logging.getLogger(__name__)
QUANTIZATIONS = ("float32", "int8", "int8_bfloat16")
"""Types of the stored weights, by the names of CTranslate2."""
FAMILIES = ("t5", "mt5", "umt5", "bart", "mbart", "m2m_100", "pegasus")
"""Values of `model_type` that its converter knows and that are tested here; NLLB is an m2m_100."""
MODEL, VOCABULARY, SETTINGS = "model.bin", "shared_vocabulary.json", "config.json"
INSTALL = "pip install 'lora_hf[ctranslate2]'"
CODE = """import ctranslate2
from transformers import AutoTokenizer

tokenizer, translator = AutoTokenizer.from_pretrained("."), ctranslate2.Translator(".")
TEXT
source = tokenizer.convert_ids_to_tokens(tokenizer(text).input_ids)
(result,) = translator.translate_batch([source], OPTIONS)
ids = tokenizer.convert_tokens_to_ids(result.hypotheses[0])
print(tokenizer.decode(ids, skip_special_tokens=True))
"""
"""Python code of a README: TEXT and OPTIONS are replaced."""


def package() -> Any:
    """Return the module `ctranslate2`.

    Raises:
        UserError: it is not installed.
    """
    if find_spec("ctranslate2") is None:
        raise UserError(f"CTranslate2 folders need the package ctranslate2: {INSTALL}")
    return importlib.import_module("ctranslate2")


def write_ctranslate2(model: Any, tokenizer: Any, folder: Path, quantization: str) -> None:
    """Write model.bin, config.json and the vocabulary of CTranslate2 into a folder.

    Args:
        model: a dense encoder-decoder in float32 on the CPU; its generation settings begin in the right
            language. Adapters are merged, or they are ignored.
        tokenizer: its tokenizer.
        folder: exists.
        quantization: one of `QUANTIZATIONS`.

    Raises:
        UserError: the package is missing, or its converter cannot convert this model.
    """
    Converter(model, tokenizer, quantization).write(folder, model.generation_config)


class Converter:
    """CTranslate2's converter of a model in memory, for several versions of its weights.

    A weight that the model has when the converter is created is quantized once. When the model is written
    again with an adapter merged, only the weights that it changes are quantized again.
    """

    def __init__(self, model: Any, tokenizer: Any, quantization: str) -> None:
        """Remember the weights of the base; arguments of `write_ctranslate2`.

        Raises:
            UserError: the package is missing.
        """
        self._package = package()
        self._model, self._tokenizer, self._quantization = model, tokenizer, quantization
        # the tensors are held so that no later one can have the same address
        self._base = {_place(parameter): parameter.detach() for parameter in model.parameters()}
        self._quantized: dict[_Place, Any] = {}  # parts of the converter's, with the weight and its scale

    def write(self, folder: Path, begin: TransformersConfig) -> None:
        """Write the files of `write_ctranslate2`.

        Args:
            folder: exists.
            begin: generation settings, of which the decoder's start is used.

        Raises:
            UserError: the converter cannot convert this model.
        """
        model, tokenizer = self._model, self._tokenizer
        before = dict(vars(model.config))
        with tempfile.TemporaryDirectory() as settings:
            model.config.save_pretrained(settings)  # the converter chooses its reader by it
            try:
                vars(model.config).update(_read_by_converter(model))
                spec = self._read(settings)
                spec.validate()
                self._quantize(spec)
                spec.save(str(folder))
            except (ValueError, KeyError, AttributeError, NotImplementedError, RuntimeError) as error:
                raise UserError(
                    f"the converter of CTranslate2 cannot convert this {type(model).__name__}: {error}; use "
                    "the merged folder with Transformers, or export it to ONNX (--to onnx)"
                ) from error
            finally:
                vars(model.config).clear()
                vars(model.config).update(before)
        own = read_object(folder / SETTINGS)
        start = begin.bos_token_id if begin.decoder_start_token_id is None else begin.decoder_start_token_id
        own["decoder_start_token"] = tokenizer.convert_ids_to_tokens(start)
        own["bos_token"] = own["bos_token"] or own["eos_token"]  # not used here, but it has to be one
        write_json(folder / SETTINGS, own)

    def _read(self, settings: str) -> Any:
        """Return the converter's specification of the model, whose variables share its memory."""
        model, tokenizer = self._model, _AllTokens(self._tokenizer, self._model.config.vocab_size)

        class LoadedModel(self._package.converters.TransformersConverter):  # type: ignore[name-defined]
            """Reads the model in memory: its folder may be in another dtype, or hold an unmerged adapter."""

            def load_model(self, *given: Any, **options: Any) -> Any:
                return model

            def load_tokenizer(self, *given: Any, **options: Any) -> Any:
                return tokenizer

            def specification(self) -> Any:
                spec = self._load()
                if spec is None:
                    raise NotImplementedError("it has no reader for this model")
                return spec

        return LoadedModel(settings).specification()

    def _quantize(self, spec: Any) -> None:
        """Quantize a specification; the weights of the base are set aside meanwhile.

        CTranslate2 quantizes to integers in place, so that weights of the model are copied before.
        """
        if not self._quantization.startswith("int"):
            spec.optimize(self._quantization)
            return
        model_spec = self._package.specs.model_spec
        aside: dict[str, Any] = {}
        for name, variable in spec.variables(ordered=True):
            scope, _, attribute = name.rpartition("/")
            part, tensor = model_spec.index_spec(spec, scope), getattr(variable, "tensor", None)
            if tensor is None or not hasattr(part, f"{attribute}_scale"):
                continue
            if _place(tensor) in self._base:
                aside[name] = part, tensor
                setattr(part, attribute, model_spec.OPTIONAL)
            else:
                variable.tensor = tensor.clone()
        spec.optimize(self._quantization)
        first: dict[_Place, str] = {}
        for name, (part, tensor) in aside.items():
            place, attribute = _place(tensor), name.rpartition("/")[2]
            if place in first:  # as `optimize` names equal weights
                setattr(part, attribute, first[place])
                continue
            first[place] = name
            if place not in self._quantized:
                alone = type(part)()
                setattr(alone, attribute, tensor.clone())
                alone.validate()
                alone.optimize(self._quantization)
                self._quantized[place] = alone
            for own in (attribute, f"{attribute}_scale"):
                setattr(part, own, getattr(self._quantized[place], own))


_Place = tuple[int, tuple[int, ...]]


def _place(tensor: torch.Tensor) -> _Place:
    """Return what identifies a tensor among those that exist at the same time."""
    return tensor.data_ptr(), tuple(tensor.shape)


class _AllTokens:
    """A tokenizer with a name for every row of the embeddings: the converter wants as many tokens."""

    def __init__(self, tokenizer: Any, size: int) -> None:
        self._tokenizer, self._size = tokenizer, size

    def __getattr__(self, name: str) -> Any:
        return getattr(self._tokenizer, name)

    def get_vocab(self) -> dict[str, int]:
        known: dict[str, int] = self._tokenizer.get_vocab()
        taken = set(known.values())
        return known | {f"<unused_{n}>": n for n in range(self._size) if n not in taken}


def _read_by_converter(model: Any) -> dict[str, bool]:
    """Return fields of a model's configuration as the converter understands them.

    It takes tied embeddings for the scaling of T5's logits by d_model^-0.5, and Transformers 5 calls all T5s
    tied. Greedy search does not show it, because the order of the logits stays; beam search does. Of BART's
    families it reads fields that only the published configurations have.
    """
    config = model.config
    if hasattr(config, "num_decoder_layers"):  # T5
        by_field = getattr(config, "scale_decoder_outputs", config.model_type == "umt5")
        return {"tie_word_embeddings": bool(by_field)}
    encoder = model.get_encoder()
    return {
        "normalize_before": hasattr(encoder, "layer_norm"),
        "normalize_embedding": hasattr(encoder, "layernorm_embedding"),
    }


def search_options(options: TransformersConfig, max_new_tokens: int) -> dict[str, Any]:
    """Return settings of Transformers' `generate` as keywords of `Translator.translate_batch`."""
    found = {"beam_size": options.num_beams or 1, "max_decoding_length": max_new_tokens}
    found |= {"min_decoding_length": options.min_new_tokens or 0, "max_input_length": 0}  # 0: any length
    if found["beam_size"] > 1 and options.length_penalty is not None:
        found["length_penalty"] = options.length_penalty
    for name, neutral in (("repetition_penalty", 1.0), ("no_repeat_ngram_size", 0)):
        if (value := getattr(options, name)) not in (None, neutral):
            found[name] = value
    return found


def own_search(options: TransformersConfig) -> list[str]:
    """Return the settings with which CTranslate2 writes other tokens than Transformers.

    This was seen with beams in five families, also with `early_stopping`, and
    in greedy search for BART and mT5.
    """
    names = ["repetition_penalty", "no_repeat_ngram_size"]
    names += ["min_new_tokens"] if (options.num_beams or 1) > 1 else []
    neutral = {"repetition_penalty": 1.0}
    return [name for name in names if (getattr(options, name) or 0) not in (0, neutral.get(name, 0))]


@cache
def _warn_of_own_search(names: tuple[str, ...]) -> None:
    logger.warning(
        "CTranslate2 applies %s in its own way: some texts differ from those of the run. For the same texts, "
        "use the adapter, the merged folder or ONNX",
        " and ".join(f"generation.{name}" for name in names),
    )


def readme_code(tokenizer: Any, options: TransformersConfig) -> str:
    """Return Python code for a README, which prints what the model writes for `text`.

    Args:
        tokenizer: the model's.
        options: the generation settings beside the model.
    """
    keywords = search_options(options, options.max_new_tokens)
    first = options.forced_bos_token_id
    if first is not None:
        keywords["target_prefix"] = [[tokenizer.convert_ids_to_tokens(first)]]
    listed = ", ".join(f"{name}={value!r}" for name, value in keywords.items())
    return CODE.replace("OPTIONS", listed)


class CTranslate2Model(ExportedModel):
    """A folder of `write_ctranslate2`, run by CTranslate2 with as many threads as torch has."""

    engine = "ctranslate2"

    def __init__(self, folder: Path) -> None:
        """Load the model.

        Raises:
            UserError: the package is missing, or a file is missing or damaged.
        """
        ctranslate2 = package()
        super().__init__(folder)
        if not (file := folder / VOCABULARY).is_file():
            raise UserError(f"{folder} has no {VOCABULARY}: {AGAIN}")
        self._tokens: list[str] = json.loads(file.read_text(encoding="utf-8"))
        self._ids = {token: number for number, token in reversed([*enumerate(self._tokens)])}
        try:
            self._translator = ctranslate2.Translator(
                str(folder), device="cpu", intra_threads=torch.get_num_threads()
            )
        except (RuntimeError, ValueError) as error:
            raise UserError(f"{folder} cannot be read by CTranslate2: {error}; {AGAIN}") from error

    @property
    def description(self) -> str:
        """Types of weights and arithmetic, which this processor may not both have, and the engine."""
        computed = self._translator.compute_type
        own = {self.quantization, f"{self.quantization}_float32"}
        return super().description + ("" if computed in own else f" (computed in {computed})")

    def generate_ids(
        self, sources: list[list[int]], limits: list[int], options: TransformersConfig
    ) -> list[list[int]]:
        """Generate one batch; see `ExportedModel.generate_ids`."""
        if options.forced_eos_token_id is not None:
            raise UserError(
                f"forced_eos_token_id={options.forced_eos_token_id}: CTranslate2 cannot force a last token; "
                "leave it out, or use the model that was exported"
            )
        if names := own_search(options):
            _warn_of_own_search(tuple(names))
        first = options.forced_bos_token_id
        results = self._translator.translate_batch(
            [self._words(source) for source in sources],
            target_prefix=None if first is None else [self._words([first])] * len(sources),
            suppress_sequences=[self._words(ids) for ids in options.bad_words_ids or ()] or None,
            **search_options(options, max(limits)),
        )
        written = [[self._ids[token] for token in result.hypotheses[0]] for result in results]
        return [row[:limit] for row, limit in zip(written, limits, strict=True)]

    def _words(self, ids: Sequence[int]) -> list[str]:
        return [self._tokens[number] for number in ids]
