"""Write a model for CTranslate2 by its own converter, and run such a folder.

CTranslate2 (https://opennmt.net/CTranslate2) runs encoder-decoders on CPUs in float32, and in int8 with one
scale for each row of a weight. Its search is its own: greedy tokens are those of Transformers, and beams can
end elsewhere, because it stops at the first `num_beams` finished outputs, as `early_stopping` does.
"""

import importlib
import json
import tempfile
from collections.abc import Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch
from transformers import GenerationConfig as TransformersConfig

from lora_hf.errors import UserError
from lora_hf.files import read_object, write_json
from lora_hf.models.exported import AGAIN, ExportedModel

QUANTIZATIONS = ("float32", "int8", "int8_bfloat16")
"""Types of the stored weights, by the names of CTranslate2."""
FAMILIES = ("t5", "mt5", "umt5", "bart", "mbart", "m2m_100", "marian", "pegasus")
"""Values of `model_type` that its converter knows, of those from text to text; NLLB is an m2m_100."""
MODEL, VOCABULARY, SETTINGS = "model.bin", "shared_vocabulary.json", "config.json"
INSTALL = "pip install 'lora_hf[ctranslate2]'"


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
        model: a dense encoder-decoder without adapters, in float32 on the CPU; its generation settings begin
            in the right language.
        tokenizer: its tokenizer.
        folder: exists.
        quantization: one of `QUANTIZATIONS`.

    Raises:
        UserError: the package is missing, or its converter cannot convert this model.
    """
    converters = package().converters

    class LoadedModel(converters.TransformersConverter):  # type: ignore[misc,name-defined]
        """Converts the model in memory: its folder may be in another dtype, or hold an unmerged adapter."""

        def load_model(self, *given: Any, **options: Any) -> Any:
            return model

        def load_tokenizer(self, *given: Any, **options: Any) -> Any:
            return tokenizer

    is_tied = model.config.tie_word_embeddings
    with tempfile.TemporaryDirectory() as settings:
        model.config.save_pretrained(settings)  # the converter chooses its reader by it
        try:
            # The converter takes tied embeddings for T5's scaled logits; Transformers 5 calls all T5s tied.
            model.config.tie_word_embeddings = scales_logits(model.config)
            LoadedModel(settings).convert(str(folder), quantization=quantization, force=True)
        except (ValueError, KeyError, AttributeError, NotImplementedError, RuntimeError) as error:
            raise UserError(
                f"the converter of CTranslate2 cannot convert this {type(model).__name__}: {error}; use the "
                "merged folder with Transformers, or export it to ONNX (--to onnx)"
            ) from error
        finally:
            model.config.tie_word_embeddings = is_tied
    own = read_object(folder / SETTINGS)
    if model.config.model_type != "marian":  # starts from a zero embedding, and has no token for it
        start = model.generation_config.decoder_start_token_id
        own["decoder_start_token"] = tokenizer.convert_ids_to_tokens(start)
    write_json(folder / SETTINGS, own)


def scales_logits(config: Any) -> bool:
    """Return whether a model of T5's families scales the decoder's output by d_model^-0.5 before its head.

    Greedy search does not show it, because it keeps the order of the logits; beam search does.
    """
    if config.model_type == "t5":
        return bool(config.scale_decoder_outputs)
    return config.model_type == "umt5"


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
        first = options.forced_bos_token_id
        beams = options.num_beams or 1
        results = self._translator.translate_batch(
            [self._words(source) for source in sources],
            target_prefix=None if first is None else [self._words([first])] * len(sources),
            beam_size=beams,
            length_penalty=(1.0 if options.length_penalty is None else options.length_penalty),
            repetition_penalty=options.repetition_penalty or 1.0,
            no_repeat_ngram_size=options.no_repeat_ngram_size or 0,
            suppress_sequences=self._suppressed(options.bad_words_ids or ()),
            max_input_length=0,
            max_decoding_length=max(limits),
            min_decoding_length=options.min_new_tokens or 0,
        )
        written = [[self._ids[token] for token in result.hypotheses[0]] for result in results]
        return [row[:limit] for row, limit in zip(written, limits, strict=True)]

    def _words(self, ids: Sequence[int]) -> list[str]:
        return [self._tokens[number] for number in ids]

    def _suppressed(self, sequences: Sequence[Sequence[int]]) -> list[list[str]] | None:
        """Return sequences as tokens; those of Marian's padding are not in CTranslate2's vocabulary."""
        known = [self._words(ids) for ids in sequences if all(number < len(self._tokens) for number in ids)]
        return known or None
