"""Checks of a base model's settings and tokenizer files, in whatever way they were written or copied.

Transformers reads these files without checking them: a list in the place of an object, a size of 0 or a token
beyond the vocabulary ends in a traceback, some of them only in the first step or while generating.
"""

import json
from collections.abc import Iterator
from contextlib import contextmanager
from hashlib import sha256
from pathlib import Path
from typing import Any

import torch
from huggingface_hub.errors import StrictDataclassError
from transformers import CONFIG_MAPPING, AutoConfig

from lora_hf.errors import UserError, few, first_line
from lora_hf.files import file_sha256, read_object, refuse_git_lfs_pointer
from lora_hf.hub.download import INDEX, SETTINGS
from lora_hf.models.kind import check_kind

LOADED = ("*.safetensors", "*.json", "*.model", "*.txt")
"""Files of a folder that loading a model and its tokenizer may read."""
TOKENIZER_CONFIG = "tokenizer_config.json"
OBJECTS = (
    SETTINGS,
    "generation_config.json",
    TOKENIZER_CONFIG,
    "special_tokens_map.json",
    "added_tokens.json",
    INDEX,
)
"""Files that hold one JSON object; `tokenizer.json` is left to its own reader, because it may be large."""
TOKENIZER_FILES = (
    *(TOKENIZER_CONFIG, "tokenizer.json", "special_tokens_map.json", "added_tokens.json"),
    *("vocab*", "*_vocab.json", "merges.txt", "*.model", "*.spm", "*.tokenizer"),
)
NO_EFFECT = ("_name_or_path", "architectures", "dtype", "torch_dtype", "transformers_version")
"""Keys of the settings that change no output: the dtype is chosen by `model.dtype`."""
NOT_OF_THE_TOKENIZER = ("padding", "truncation")
"""Keys of tokenizer.json that a script leaves there, and that each call replaces."""
AGAIN = "download the model again"
ADDED = ("bos_token", "eos_token", "pad_token", "unk_token", "cls_token", "sep_token")
"""Special tokens that a tokenizer adds by itself; others, such as `<mask>`, come only from the text."""


def settings_hash(folder: Path) -> str:
    """Return a hash of what a folder's settings and tokenizer files say, however they are written.

    With other ones, such as another `layer_norm_epsilon`, the same weights write other texts.

    Args:
        folder: the files of a model that has been loaded.

    Returns:
        16 hexadecimal digits.
    """
    said: dict[str, Any] = {}
    patterns = (SETTINGS, "generation_config.json", *TOKENIZER_FILES)
    for file in sorted({file for pattern in patterns for file in folder.glob(pattern)}):
        try:
            held = json.loads(file.read_text(encoding="utf-8")) if file.suffix == ".json" else None
        except ValueError:  # the tokenizer's own reader says what is wrong
            held = None
        if isinstance(held, dict):
            left_out = (*NO_EFFECT, *NOT_OF_THE_TOKENIZER)
            said[file.name] = {key: value for key, value in held.items() if key not in left_out}
        else:
            said[file.name] = file_sha256(file)
    return sha256(json.dumps(said, sort_keys=True).encode()).hexdigest()[:16]


def check_files(folder: Path, model: str) -> None:
    """Check that a base model's files are the files themselves and that each JSON file holds an object.

    Args:
        folder: the files of the model.
        model: the model as errors name it.

    Raises:
        UserError: a Git LFS pointer, no config.json, or a JSON file that cannot be read or holds no object;
            the model is of another kind than the commands work with (`check_kind`).
    """
    for file in sorted(file for pattern in LOADED for file in folder.glob(pattern)):
        refuse_git_lfs_pointer(file)
    for name in OBJECTS:
        try:
            read_object(folder / name)
        except FileNotFoundError:
            if name == SETTINGS:
                held = few(file.name for file in folder.iterdir()) or "nothing"
                raise UserError(
                    f"{model}: the folder has no {SETTINGS}; it holds {held}. Give the folder of a whole "
                    "model, as `save_pretrained` writes it"
                ) from None
        except UserError as error:
            raise UserError(f"{model}: {error}: {AGAIN}") from error
    settings = read_object(folder / SETTINGS)
    check_kind(settings, model)
    _check_positions(settings, model)


def _check_positions(settings: dict[str, Any], model: str) -> None:
    """Check the relative positions of T5's families: with wrong ones, a model is built but cannot be called.

    The encoder has half of the buckets for each direction, half of those are single distances, and the others
    divide the logarithm of the distances up to a larger maximum.
    """
    buckets = settings.get("relative_attention_num_buckets", 32)
    distance = settings.get("relative_attention_max_distance", 128)
    if type(buckets) is int and buckets < 4:
        raise UserError(
            f"{model}: relative_attention_num_buckets={buckets} in its {SETTINGS} must be at least 4 (T5 has "
            f"32). Correct it, or {AGAIN}"
        )
    if type(buckets) is int and type(distance) is int and distance <= buckets // 2:
        raise UserError(
            f"{model}: relative_attention_max_distance={distance} in its {SETTINGS} must be above "
            f"{buckets // 2}, half of relative_attention_num_buckets (T5 has 128). Correct it, or {AGAIN}"
        )


def read_config(folder: str | Path, model: str) -> Any:
    """Return the Transformers config of a base model; errors as `building`."""
    with building(folder, model):
        return AutoConfig.from_pretrained(folder, trust_remote_code=False)


@contextmanager
def building(folder: str | Path, model: str) -> Iterator[None]:
    """Turn any exception with which Transformers builds a model from config.json into a `UserError`.

    Raises:
        UserError: it names the values that cannot be, or else gives the reason.
    """
    try:
        yield
    except (UserError, MemoryError):
        raise
    except Exception as error:  # whatever a value leads to: ZeroDivisionError, RuntimeError, AttributeError
        if isinstance(error, StrictDataclassError):  # the reason is on the second line
            reason = " ".join(str(error).split())
        else:
            reason = "; ".join(_wrong_values(read_object(Path(folder) / SETTINGS))) or first_line(error)
            if reason == first_line(error) and not isinstance(error, OSError | ValueError | ImportError):
                reason = f"one of its values cannot be used ({type(error).__name__}: {reason})"
        raise UserError(
            f"{model} cannot be loaded: its {SETTINGS} does not describe a model that can be built: "
            f"{reason.rstrip('.')}. Correct it, or {AGAIN}"
        ) from error


def _wrong_values(settings: dict[str, Any]) -> list[str]:
    """Return what is wrong: sizes of 0 or less where the family's default is positive, an unknown dtype."""
    kind = settings.get("model_type")
    defaults = vars(CONFIG_MAPPING[kind]()) if isinstance(kind, str) and kind in CONFIG_MAPPING else {}
    wrong = [
        f"{name}={value} must be positive"
        for name, value in settings.items()
        if type(value) is int and value <= 0 and not name.endswith("_id")
        if type(defaults.get(name)) is int and defaults[name] > 0
    ]
    dtype = settings.get("dtype")
    if dtype is not None and not isinstance(getattr(torch, str(dtype), None), torch.dtype):
        wrong.append(f"dtype={dtype!r} is not a type of PyTorch, such as 'float32'")
    return wrong


class DamagedTokenizer(UserError):
    """The files of a tokenizer cannot be read."""


@contextmanager
def reading_tokenizer(folder: Path, model: str) -> Iterator[None]:
    """Turn any exception of reading a tokenizer into a `DamagedTokenizer` that names its files."""
    try:
        for pattern in TOKENIZER_FILES:
            for file in folder.glob(pattern):
                refuse_git_lfs_pointer(file)
        yield
    except (UserError, MemoryError):
        raise
    except Exception as error:  # whatever a file leads to, from Transformers and tokenizers
        names = sorted(
            file.name
            for file in folder.iterdir()
            if file.name.startswith(
                ("tokenizer", "vocab", "merges", "special", "added", "spiece", "sentence")
            )
        )
        held = ", ".join(names) or "no file of a tokenizer"
        absent = "" if TOKENIZER_CONFIG in names else f", but no {TOKENIZER_CONFIG}, which names its class"
        raise DamagedTokenizer(
            f"{model}: its tokenizer cannot be loaded ({type(error).__name__}: {first_line(error)}). The "
            f"folder holds {held}{absent}: download the tokenizer's files again, or copy them from the model "
            "that this one was made from"
        ) from error


def check_tokenizer(tokenizer: Any, folder: Path, model: str) -> None:
    """Check that a tokenizer fits the model beside it.

    Tokens that only a text can name, such as BART's `<mask>`, may be beyond the embeddings: some published
    models have it so.

    Raises:
        UserError: it has tokens without an embedding, or a limit on a text's length that is not a number.
    """
    size = read_object(folder / SETTINGS).get("vocab_size")
    if type(size) is int and len(tokenizer) > size:
        by_text = set(tokenizer.all_special_tokens) - {getattr(tokenizer, name) for name in ADDED}
        beyond = {
            token: n for token, n in tokenizer.get_vocab().items() if n >= size and token not in by_text
        }
        if beyond:
            raise UserError(
                f"{model}: the tokenizer has {len(tokenizer):,} tokens, but the model has embeddings for "
                f"{size:,}; beyond them are {few(map(repr, beyond))}. Use the tokenizer that was saved with "
                "this model, or resize the model's embeddings (`resize_token_embeddings`) and save it"
            )
    if not isinstance(limit := tokenizer.model_max_length, int | float):
        raise UserError(f"{folder / TOKENIZER_CONFIG}: model_max_length={limit!r} must be a number")
