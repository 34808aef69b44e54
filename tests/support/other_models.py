"""Tiny speech and vision models of Transformers, which the Python API takes and no command does."""

from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from support.families import BART_SHAPE
from support.matrix_models import randomized
from support.models import TOKENS
from tokenizers.pre_tokenizers import ByteLevel
from torch import Tensor
from transformers import (
    GenerationConfig,
    GPT2Config,
    Speech2TextConfig,
    Speech2TextForConditionalGeneration,
    TrOCRConfig,
    VisionEncoderDecoderConfig,
    VisionEncoderDecoderModel,
    ViTConfig,
    WhisperConfig,
    WhisperFeatureExtractor,
    WhisperForConditionalGeneration,
    WhisperProcessor,
    WhisperTokenizer,
    default_data_collator,
)
from transformers.models.whisper.tokenization_whisper import LANGUAGES

PAD, BEGIN, END = 0, 1, 2
MELS, FRAMES, PIXELS = 8, 40, 28
LABELS = 5
"""Tokens of a row's labels, with their end."""
_SPECIAL = {"pad_token_id": PAD, "bos_token_id": BEGIN, "eos_token_id": END, "decoder_start_token_id": BEGIN}
_VIT = {
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "intermediate_size": 48,
    "image_size": PIXELS,
    "patch_size": 14,
}


def _whisper() -> Any:
    sizes = BART_SHAPE | _SPECIAL | {"num_mel_bins": MELS, "max_source_positions": FRAMES // 2}
    settings = WhisperConfig(
        **sizes, max_target_positions=24, suppress_tokens=None, begin_suppress_tokens=None
    )
    return WhisperForConditionalGeneration(settings)


def _speech2text() -> Any:
    sizes = BART_SHAPE | _SPECIAL | {"input_feat_per_channel": MELS, "conv_channels": 16}
    return Speech2TextForConditionalGeneration(Speech2TextConfig(**sizes, max_target_positions=24))


def _pair(decoder: Any) -> Any:
    settings = VisionEncoderDecoderConfig.from_encoder_decoder_configs(ViTConfig(**_VIT), decoder)
    for name, token in _SPECIAL.items():
        setattr(settings, name, token)
    return VisionEncoderDecoderModel(settings)


def _trocr() -> Any:
    sizes = {name: size for name, size in BART_SHAPE.items() if name.startswith("decoder")}
    return _pair(TrOCRConfig(**sizes | _SPECIAL, vocab_size=TOKENS, d_model=32, max_position_embeddings=64))


def _captioner() -> Any:
    return _pair(GPT2Config(vocab_size=TOKENS, n_embd=32, n_layer=2, n_head=2, n_positions=64))


class Other(NamedTuple):
    """A kind of model."""

    make: Callable[[], Any]
    """Builds a random one."""
    inputs: str
    """Name of its input."""
    shape: tuple[int, ...]
    """Shape of the input of one row."""

    def model(self) -> Any:
        """Build the model, with weights that matter and without dropout."""
        torch.manual_seed(0)
        model = self.make()
        for module in model.modules():
            if isinstance(module, torch.nn.Dropout):
                module.p = 0.0
            elif isinstance(getattr(module, "dropout", None), float):
                module.dropout = 0.0
        return randomized(model)

    def rows(self, n: int = 6) -> list[dict[str, Any]]:
        """Draw rows of an input and labels, as `default_data_collator` takes them."""
        draw = torch.Generator().manual_seed(2)
        inputs = torch.randn(n, *self.shape, generator=draw)
        labels = torch.randint(END + 1, TOKENS, (n, LABELS), generator=draw)
        labels[:, -1] = END
        return [{self.inputs: x, "labels": y} for x, y in zip(inputs, labels, strict=True)]

    def batch(self, n: int = 3) -> dict[str, Tensor]:
        """Return the first rows as one batch."""
        return dict(default_data_collator(self.rows()[:n]))


OTHERS = {
    "Whisper": Other(_whisper, "input_features", (MELS, FRAMES)),
    "Speech2Text": Other(_speech2text, "input_features", (FRAMES, MELS)),
    "TrOCR": Other(_trocr, "pixel_values", (3, PIXELS, PIXELS)),
    "ViT and GPT-2": Other(_captioner, "pixel_values", (3, PIXELS, PIXELS)),
}


def save_whisper(folder: Path) -> None:
    """Save a tiny Whisper with its processor: sounds of a second, and text of single bytes."""
    characters = sorted(ByteLevel.alphabet())
    spoken = [f"<|{code}|>" for code in LANGUAGES]  # the tokenizer counts on their order
    marks = ["<|endoftext|>", "<|startoftranscript|>", *spoken, "<|translate|>", "<|transcribe|>"]
    marks += ["<|startoflm|>", "<|startofprev|>", "<|nospeech|>", "<|notimestamps|>"]
    vocabulary = {token: i for i, token in enumerate([*characters, *marks])}
    tokenizer = WhisperTokenizer(vocab=vocabulary, merges=[], pad_token="<|endoftext|>")
    tokenizer.add_special_tokens({"additional_special_tokens": marks[1:]})
    end, start = vocabulary["<|endoftext|>"], vocabulary["<|startoftranscript|>"]
    special = {"pad_token_id": end, "bos_token_id": end, "eos_token_id": end, "decoder_start_token_id": start}
    sizes = BART_SHAPE | special | {"vocab_size": len(vocabulary), "num_mel_bins": MELS}
    settings = WhisperConfig(**sizes, max_source_positions=50, max_target_positions=32)
    torch.manual_seed(0)
    model = randomized(WhisperForConditionalGeneration(settings))
    model.generation_config = GenerationConfig(
        **special,
        lang_to_id={mark: vocabulary[mark] for mark in spoken},
        task_to_id={task: vocabulary[f"<|{task}|>"] for task in ("transcribe", "translate")},
        no_timestamps_token_id=vocabulary["<|notimestamps|>"],
        is_multilingual=True,
        max_length=12,
    )
    model.save_pretrained(folder)
    extractor = WhisperFeatureExtractor(feature_size=MELS, chunk_length=1)
    WhisperProcessor(extractor, tokenizer).save_pretrained(folder)


def recordings() -> dict[str, list[dict[str, Any]]]:
    """Return splits of a second of noise each, in the form of a dataset of sounds."""
    draw = np.random.default_rng(0)
    rows = [
        {"audio": {"array": draw.standard_normal(16_000), "sampling_rate": 16_000}, "text": f"say {word}"}
        for word in ("noon", "one", "two", "at three")
    ]
    return {"train": rows, "test": rows[:2]}
