"""Load the base model and its tokenizer from the package, a folder or the Hub; dense, or in 8 or 4 bits.

Weights are read from safetensors only, and no remote code runs. `float16` is for scoring only: T5's `wo`
overflows in it (66,246 > 65,504 was measured) and the loss becomes NaN, so training in it is refused.
"""

import logging
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from importlib.util import find_spec
from math import prod
from pathlib import Path
from typing import Any, NamedTuple

import torch
from transformers import AutoTokenizer
from transformers.core_model_loading import WeightRenaming
from transformers.utils import logging as transformers_logging

from lora_hf import terminal
from lora_hf.adapters.attention_type import keep_attention_type
from lora_hf.adapters.backends import is_transposed
from lora_hf.adapters.backends.bitsandbytes import keep_differentiable
from lora_hf.adapters.checkpoint_io import MANIFEST_NAME, read_dtypes, read_shapes
from lora_hf.adapters.model_state import update_state
from lora_hf.adapters.peft_format import CONFIG_NAME
from lora_hf.config import DataConfig, GenerationConfig, ModelConfig, RunConfig
from lora_hf.config.model import ASSETS, EMBEDDED, NAME_FIELD, Dtype
from lora_hf.errors import UserError, few, first_line, is_windows_path, path_hint
from lora_hf.families import family_of
from lora_hf.files import checkpoint_fingerprint, read_object
from lora_hf.hub.download import SETTINGS, Part, fetch_model
from lora_hf.hub.names import is_hub_name, refuse_address
from lora_hf.memory import SMALLER_MODEL, out_of_memory_reported
from lora_hf.models.base_files import (
    building,
    check_files,
    check_tokenizer,
    read_config,
    reading_tokenizer,
    settings_hash,
)
from lora_hf.models.base_weights import CheckpointWeights
from lora_hf.models.checkpoint import check_checkpoint, checkpoint_files, packed_weights
from lora_hf.models.exported import engine_of, exported_config, refuse_exported
from lora_hf.models.generation import keep_needed
from lora_hf.models.head import KEEPS_HEAD, guard_ties, lost_head, untie_head
from lora_hf.models.positions import check_positions, keep_position_tables
from lora_hf.models.special_tokens import complete_tokenizer
from lora_hf.models.storage import STORAGE_FORMATS
from lora_hf.models.storage.bitsandbytes import check_stored, keeps_dense, load_stored
from lora_hf.models.weight_values import check_values, file_tensors
from lora_hf.run_files import ADAPTER, MODEL
from lora_hf.run_files import CONFIG as RUN_CONFIG
from lora_hf.system import device_name, pick_device, resolve_dtype

logger = logging.getLogger(__name__)
NO_CODE = {"trust_remote_code": False}
"""Without this, Transformers asks on the terminal whether the code of a repository may run."""
STORED_DTYPES: dict[str, Dtype] = {"F32": "float32", "BF16": "bfloat16", "F16": "float16"}
"""Names of safetensors -> names of `model.dtype`."""
PACKAGES = {"sacremoses": ("sacremoses",), "sentencepiece": ("sentencepiece", "tiktoken", "protobuf")}
"""Packages of tokenizers -> words of Transformers' errors where they are missing."""
RECORDED = "base_model_name_or_path"
"""Field of an adapter's files that names its base model."""
REMEDY = (
    " (give a folder with config.json, tokenizer files and safetensors, or a name on the Hub if it can be "
    f"reached; {EMBEDDED!r}, a toy, needs neither)"
)


def locate(name_or_path: str, field: str = NAME_FIELD) -> str:
    """Return the argument of `from_pretrained`: an existing folder, or a name on the Hub.

    Args:
        name_or_path: the name as the user wrote it; `embedded` is the model in the package.
        field: the field or option in which it was written.

    Raises:
        UserError: it is written as a path, and there is no such folder.
    """
    if name_or_path == EMBEDDED:
        return str(ASSETS)
    path = Path(name_or_path).expanduser()
    if path.is_dir():
        return str(path)
    if path.is_file():
        raise UserError(
            f"{field}={name_or_path!r} is a file: give the folder of the model, {str(path.parent)!r}; in "
            "commands that take MODEL DATA, the model comes before the data"
        )
    refuse_address(name_or_path, field, "model.revision" if field == NAME_FIELD else "")
    if not is_hub_name(name_or_path) or is_windows_path(name_or_path):
        hint = path_hint(name_or_path) + _base_hint(field)
        raise UserError(f"{field}={name_or_path!r}: no such folder.{hint}".removesuffix("."))
    return name_or_path


def _base_hint(field: str) -> str:
    """Return a sentence for the field of an adapter's file, which names a place of the machine it is from."""
    is_recorded = field.endswith(RECORDED)
    return " Name the base model on this machine: --base FOLDER or USER/NAME." if is_recorded else ""


@contextmanager
def _as_user_error(config: ModelConfig) -> Iterator[None]:
    """Convert errors of Transformers about a name or a folder to one message with field and remedy."""
    try:
        yield
    except UserError:
        raise
    except (OSError, ValueError, KeyError, ImportError) as error:
        remedy = REMEDY + _base_hint(config.name_field)
        raise UserError(f"{_not_loaded(config)}: {first_line(error)}{remedy}") from error


@contextmanager
def _naming_packages(config: ModelConfig) -> Iterator[None]:
    """Name the extra that a tokenizer needs, in the place of Transformers' several lines.

    Without sentencepiece, Transformers takes its files for those of another library, and asks for tiktoken.
    """
    try:
        yield
    except (ImportError, ValueError) as error:
        text = str(error).lower()
        for package, names in PACKAGES.items():
            if any(name in text for name in names) and find_spec(package) is None:
                raise UserError(
                    f"{config.as_written}: its tokenizer needs the package {package}: "
                    "pip install 'lora_hf[multilingual]'"
                ) from error
        raise


def _not_loaded(config: ModelConfig) -> str:
    at = f" at model.revision={config.revision!r}" if config.revision else ""
    return f"{config.as_written}{at} cannot be loaded"


def load_tokenizer(config: ModelConfig, place: Path | None = None) -> Any:
    """Load the model's tokenizer.

    Args:
        config: the model.
        place: folder of the tokenizer's files; None for the model's own.

    Raises:
        UserError: there is no such folder or Hub name, it has no tokenizer, one of the tokenizer's files
            cannot be read, or the tokenizer has tokens for which the model has no embeddings; it needs a
            package that is not installed; or no file names its padding, its end or the decoder's start.
    """
    if engine_of(config.model_name_or_path):
        folder = str(Path(config.model_name_or_path).expanduser())
    else:
        folder, _ = find_base(config, "tokenizer")
    settings, model = model_config(config), Path(folder)  # Transformers reads it too, for the class
    name = config.as_written if place is None else str(place)
    folder = str(place or folder)
    with reading_tokenizer(Path(folder), name), _naming_packages(config):
        tokenizer = AutoTokenizer.from_pretrained(folder, config=settings if place else None, **NO_CODE)
    files = {"tokenizer.json", *tokenizer.vocab_files_names.values()}
    if not tokenizer.vocab_files_names:  # ByT5, which knows every byte
        files = {"tokenizer_config.json"}
    if not any((Path(folder) / file).is_file() for file in files):
        raise UserError(
            f"{config.as_written}: there is no tokenizer beside the model (none of {sorted(files)}), and "
            "Transformers would create an empty one; add the files of the tokenizer it was trained with"
        )
    check_tokenizer(tokenizer, model, name)
    with _as_user_error(config):
        complete_tokenizer(tokenizer, settings, model, name)
    # Gemma's tokenizers pad on the left, for decoder-only models. Padding before labels would be read by the
    # decoder between its start and the text, and absolute positions would depend on the rows of a batch.
    tokenizer.padding_side = "right"
    return tokenizer


def model_config(config: ModelConfig) -> Any:
    """Return a model's Transformers configuration, without its weights; that of an exported model too.

    Raises:
        UserError: the model cannot be found, or its configuration cannot be read.
    """
    if engine_of(config.model_name_or_path):
        return exported_config(Path(config.model_name_or_path).expanduser())
    folder, _ = find_base(config, "tokenizer")
    return read_config(folder, config.as_written)


def check_lengths(
    config: ModelConfig,
    data: DataConfig,
    generation: GenerationConfig,
    virtual_tokens: int = 0,
    has_labels: bool = True,
) -> None:
    """Check a config's lengths against the model's positions, before its weights are loaded.

    The arguments are those of `check_positions`, with the model's section in place of its configuration.

    Raises:
        UserError: as `check_positions`.
    """
    check_positions(model_config(config), data, generation, config.as_written, virtual_tokens, has_labels)


def check_run_lengths(run: RunConfig) -> None:
    """Check a run's lengths as `check_lengths` does, with the virtual tokens of its method."""
    virtual_tokens = run.prompt_tuning.num_virtual_tokens if run.method == "prompt_tuning" else 0
    check_lengths(run.model, run.data, run.generation, virtual_tokens)


def report_model(config: ModelConfig, device: torch.device, train_all: bool = False) -> None:
    """Log which model is about to be loaded, in which dtype and where; arguments of `load_model`."""
    dtype = torch.float32 if train_all else resolve_dtype(config.dtype, device)
    stored = f"{config.storage}, computed in " if config.is_quantized else ""
    revision = f"@{config.revision}" if config.revision else ""
    how = f"{stored}{str(dtype).removeprefix('torch.')} on {device_name(device)}"
    text = f"model: {config.model_name_or_path}{revision} in {how}"
    logger.log(terminal.level_once(text), "%s", text)


def _device(device: torch.device | str) -> torch.device:
    try:
        return torch.device(device)
    except (RuntimeError, TypeError) as error:
        known = "cpu, cuda or cuda:1"
        raise UserError(f"device={device!r} is not a device, such as {known}: {first_line(error)}") from None


def load_model(
    config: ModelConfig,
    device: torch.device | str | None = None,
    train_all: bool = False,
    report_generation: bool = True,
) -> Any:
    """Load the base model, guard its ties, and record its checkpoint's fingerprint in its state.

    The state of a quantized model has `base_weights` too: layer name -> weight before quantization.

    Of the checkpoint's generation settings, `model.generation_config` keeps what the family needs.

    Args:
        config: the model and its storage format.
        device: device of the model, such as `cuda:1`; None takes the best of this machine.
        train_all: all weights will train, so they are loaded in float32, whatever `dtype` says.
        report_generation: log which generation settings of the checkpoint are not used.

    Raises:
        UserError: the model cannot be found or read, its layers do not fit the storage format, or `train_all`
            with quantized weights; a weight has values that are not finite, or a matrix is all zeros; memory
            runs out.
    """
    if not isinstance(config, ModelConfig):
        raise UserError(
            f"config={config!r} is not a ModelConfig: pass lora_hf.ModelConfig(model_name_or_path=...)"
        )
    if train_all and config.is_quantized:
        bits = 4 if config.load_in_4bit else 8
        raise UserError(
            f"model.load_in_{bits}bit=true: {bits}-bit weights cannot all be trained; use method lora"
        )
    device = pick_device() if device is None else _device(device)
    dtype = torch.float32 if train_all else resolve_dtype(config.dtype, device)
    folder, commit = find_base(config, "weights")
    stored = check_base(config, folder)
    if train_all:
        check_trainable(config, stored and stored.bits)
    if stored and stored.note:
        logger.warning("%s", stored.note)
    loading = out_of_memory_reported(lambda: f"loading {config.as_written}", SMALLER_MODEL)
    with _as_user_error(config), quiet(), loading:
        options = {"dtype": dtype}
        if stored:
            model = load_stored(folder, config, device, options, stored.has_kept)
        else:
            model = STORAGE_FORMATS[config.storage].load(folder, config, device, options)
    files = checkpoint_files(Path(folder))
    # Quantized layers hide what they were made from, so the files are read once more.
    is_quantized = config.is_quantized or stored is not None
    tensors = file_tensors(files) if is_quantized else sorted(_values(model))
    if note := check_values(tensors, config.as_written, family_of(model).beside):
        logger.warning("%s", note)
    if lost := lost_head(Path(folder)):
        logger.warning("%s: %s; %s", config.as_written, lost, KEEPS_HEAD)
    keep_differentiable(model)
    keep_attention_type(model)
    keep_position_tables(model)
    guard_ties(model)
    if config.untie_head:
        untie_head(model)
    brought = keep_needed(model, config.model_name_or_path if report_generation else "")
    update_state(model, checkpoint_generation=brought)
    # Transformers 5.23 does not record the commit, and a saved adapter has to name it.
    model.config._commit_hash = commit
    update_state(model, base_fingerprint=checkpoint_fingerprint(files) if files else None)
    if config.model_name_or_path != EMBEDDED and commit is None:  # what a commit holds never changes
        update_state(model, base_settings=settings_hash(Path(folder)))
    if files and config.is_quantized and not stored:
        transposed = [name for name, module in model.named_modules() if is_transposed(module)]
        conversions = getattr(model, "_weight_conversions", None) or ()
        renamings = [one for one in conversions if isinstance(one, WeightRenaming)]
        base_weights = CheckpointWeights(files, model.base_model_prefix, transposed, renamings)
        update_state(model, base_weights=base_weights)
    model.name_or_path = config.model_name_or_path
    return model.eval()


def _values(model: Any) -> Iterator[tuple[str, torch.Tensor]]:
    """Yield what a checkpoint holds of a model: its parameters, and buffers such as `final_logits_bias`."""
    yield from model.named_parameters()
    in_files = model.state_dict().keys()
    yield from ((name, buffer) for name, buffer in model.named_buffers() if name in in_files)


def stored_dtype(config: ModelConfig) -> Dtype:
    """Return the data type in which most numbers of the base's checkpoint are stored.

    `auto` for weights that are stored quantized.

    Raises:
        UserError: the model cannot be found or read.
    """
    sizes: Counter[str] = Counter()
    files = checkpoint_files(Path(find_base(config, "weights")[0]))
    packed = packed_weights(files)
    for file in files:
        shapes = read_shapes(file)
        for name, dtype in read_dtypes(file).items():
            if name in packed:  # bytes, in whatever dtype
                sizes["U8"] += prod(shapes[name]) * int(dtype.lstrip("BFIU")) // 8
            else:
                sizes[dtype] += prod(shapes[name])
    return STORED_DTYPES.get(max(sizes, key=lambda name: sizes[name], default=""), "auto")


class StoredBase(NamedTuple):
    """What a base is whose weights are stored quantized by bitsandbytes."""

    bits: int
    """4 or 8."""
    has_kept: bool
    """Whether the layers that Transformers leaves dense, T5's `wo`, are quantized too."""
    note: str
    """Result of `check_stored`."""


def check_base(config: ModelConfig, folder: str) -> StoredBase | None:
    """Check the base model's checkpoint without loading its weights, as `check_checkpoint` does.

    Args:
        config: the model and its storage format.
        folder: its files.

    Returns:
        How the weights are stored if they are quantized, or None.

    Raises:
        UserError: the model cannot be read, its weights do not fit its config.json, or they are stored
            otherwise than `config` asks for.
    """
    with building(folder, config.as_written), quiet():
        bits = check_checkpoint(folder, config.as_written)
    if bits is None:
        return None
    note = check_stored(config, read_object(Path(folder) / SETTINGS))
    kept = keeps_dense(read_config(folder, config.as_written))
    packed = packed_weights(checkpoint_files(Path(folder)))
    has_kept = any(not kept.isdisjoint(name.split(".")) for name in packed)
    if kept and config.is_quantized and config.quantize_wo and not has_kept:
        raise UserError(
            f"model.quantize_wo=true cannot be combined with {config.as_written}: its weights are stored in "
            f"{bits} bits already, with the layers {few(sorted(kept))} dense, and only a checkpoint before "
            "quantization is quantized while it is loaded: remove model.quantize_wo, or give that checkpoint"
        )
    return StoredBase(bits, has_kept, note)


def check_trainable(config: ModelConfig, stored_bits: int | None) -> None:
    """Refuse full fine-tuning of a checkpoint whose weights are stored quantized.

    Args:
        config: the model.
        stored_bits: in which the weights are stored, or None.

    Raises:
        UserError: they are.
    """
    if stored_bits:
        raise UserError(
            f"{config.as_written}: its weights are stored in {stored_bits} bits and cannot all be trained; "
            "use method lora, or give the checkpoint before quantization"
        )


def _is_adapter(config: ModelConfig, held: dict[str, Any], file: str) -> str:
    base = held.get(RECORDED)
    named = f", {base!r}," if isinstance(base, str) else ""
    return (
        f"{config.as_written} holds an adapter ({file}): give the base that it was trained on{named} "
        "and pass the adapter by --adapter to the commands that take one; in a whole model, remove that file"
    )


def find_base(config: ModelConfig, part: Part, download: bool = True) -> tuple[str, str | None]:
    """Return the folder of a base model; from the Hub, files that are missing here are downloaded.

    Args:
        config: the model.
        part: what is needed: the config alone, the tokenizer too, or the weights too.
        download: whether to download what is missing here.

    Returns:
        The folder, and the commit of a model on the Hub.

    Raises:
        UserError: there is no such model, the Hub cannot be reached, or the place holds an adapter, which
            Transformers would apply if PEFT is installed and ignore otherwise; as `check_files`.
        Unavailable: the Hub cannot be reached, or files are missing here and `download` is false.
    """
    name, commit = locate(config.model_name_or_path, config.name_field), None
    folder = Path(name)
    if not folder.is_dir():
        remedy = REMEDY + _base_hint(config.name_field)
        field = "model.revision" if config.name_field == NAME_FIELD else ""
        folder = fetch_model(
            name,
            config.revision or "main",
            part,
            _not_loaded(config),
            remedy,
            field,
            download,
            lambda folder: check_files(folder, config.as_written),
        )
        commit = folder.name
    elif (folder / RUN_CONFIG).is_file() and (folder / MODEL).is_dir():
        raise UserError(f"{config.as_written} is the directory of a run: give {folder / MODEL}")
    refuse_exported(folder, config.as_written)
    for place in (folder, folder / ADAPTER):
        # A merged model has the manifest too, which holds its prompt, beside its config.json.
        names = (CONFIG_NAME,) if (place / SETTINGS).is_file() else (CONFIG_NAME, MANIFEST_NAME)
        for file in (place / name for name in names):
            if file.is_file():
                raise UserError(_is_adapter(config, read_object(file), file.name))
    check_files(folder, config.as_written)
    return str(folder), commit


def model_type(config: ModelConfig) -> str | None:
    """Return the family of a base model from its config.json; None if that cannot be read."""
    with suppress(UserError, OSError):
        folder, _ = find_base(config, "config")
        kind = read_object(Path(folder) / "config.json").get("model_type")
        return kind if isinstance(kind, str) else None
    return None


@contextmanager
def quiet() -> Iterator[None]:
    """Suppress progress bars, and warnings: an untied head is guarded, and other tensors are checked."""
    logger = logging.getLogger("transformers.modeling_utils")
    bars_were_on = transformers_logging.is_progress_bar_enabled()
    transformers_logging.disable_progress_bar()  # one line per shard for what takes a moment

    def is_shown(record: logging.LogRecord) -> bool:
        text = record.getMessage()
        return "tied weights mapping" not in text and "LOAD REPORT" not in text

    logger.addFilter(is_shown)
    try:
        yield
    finally:
        logger.removeFilter(is_shown)
        if bars_were_on:
            transformers_logging.enable_progress_bar()
