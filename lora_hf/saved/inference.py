"""A model and its adapters, ready to generate: prompt, lengths, device and batches are taken care of.

`predict`, `serve` and `demo` use the same object as `lora_hf.load`. The engine that computes is found by the
files: torch for a Transformers folder, CTranslate2 or onnxruntime for an exported one. On request,
CTranslate2 runs a Transformers folder too, each adapter merged into a converted copy of the base.
"""

import logging
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import wraps
from pathlib import Path
from typing import Any, Concatenate, ParamSpec, TypeVar

import torch
from pydantic import ValidationError

from lora_hf.adapters import disable_adapters, load_adapter, set_adapter
from lora_hf.adapters.kept import KeptWeights
from lora_hf.adapters.model_state import model_state
from lora_hf.adapters.saved_adapter import SavedAdapter
from lora_hf.arguments import MAX_MERGED, check_list, check_not_blank, check_place, check_text
from lora_hf.config import DataConfig, ModelConfig
from lora_hf.config.prediction import PredictionSettings
from lora_hf.config.problems import phrase_of
from lora_hf.data.familiar import count_far, far_note
from lora_hf.data.parts import Division, check_long, divided
from lora_hf.data.tokenize import Truncation, encode_sources
from lora_hf.data.unknown_tokens import UnknownTokens
from lora_hf.errors import UserError, did_you_mean
from lora_hf.evaluation.evaluate import summarize
from lora_hf.exporting.ctranslate2 import QUANTIZATIONS as OF_CTRANSLATE2
from lora_hf.exporting.engines import EXPORTERS, check_model, open_exported
from lora_hf.exporting.merged import MergedModels
from lora_hf.fast.int8 import quantize_for_generation
from lora_hf.models.exported import ExportedModel, engine_of
from lora_hf.models.languages import language_start
from lora_hf.models.load import load_model, load_tokenizer
from lora_hf.models.positions import check_positions, within_positions
from lora_hf.saved.find_adapter import (
    base_config,
    find_adapter,
    own_tokenizer,
    run_directory,
    settings_of,
    warn_of_other_storage,
    warn_of_unscored,
)
from lora_hf.saved.source import Source, find_source, settings_beside
from lora_hf.system import device_name, pick_device
from lora_hf.training.registry import load_saved, saved_method

QUANTIZATIONS = {"torch": ("int8",), "ctranslate2": OF_CTRANSLATE2}
"""Engine -> what it can do with the linear layers of a model."""
DEFAULT = "int8"
"""Quantization by CTranslate2 if none is asked for."""
CPU = torch.device("cpu")
BASE = "base"
"""The name under which `generate` uses the base model itself."""
P = ParamSpec("P")
R = TypeVar("R")
logger = logging.getLogger(__name__)


def _in_turn(
    method: Callable[Concatenate["InferenceModel", P], R],
) -> Callable[Concatenate["InferenceModel", P], R]:
    """Let a method wait until no other thread uses the model, whose weights and modules it changes."""

    @wraps(method)
    def call(self: "InferenceModel", *args: P.args, **kwargs: P.kwargs) -> R:
        with self._turns.lock:
            return method(self, *args, **kwargs)

    return call


class _Turns:
    """A lock that its owner's thread may take again; a copy of it, also in another process, is a new one."""

    def __init__(self) -> None:
        self.lock = threading.RLock()

    def __reduce__(self) -> tuple[type["_Turns"], tuple[()]]:
        return _Turns, ()


class InferenceModel:
    """A base model and any number of adapters on it; `load` makes one.

    Threads may share it: their calls take turns.

    Attributes:
        name: the base model's name.
        model: the Transformers model, with the adapters; or an exported one, which takes none.
        tokenizer: its tokenizer; `tokenizer_of` is that of an adapter.
        adapters: the settings of each adapter by name, and of the base model under None.
        base_problem: why the model cannot write as its base does, because an adapter has changed it; or None.
    """

    def __init__(
        self,
        base: ModelConfig,
        base_settings: PredictionSettings | None = None,
        report_lengths: bool = False,
        quantization: str | None = None,
        engine: str | None = None,
        max_merged: int = MAX_MERGED,
    ) -> None:
        """Load the base model, or the model in an exported folder.

        Args:
            base: which model, and in which storage format.
            base_settings: prompt, lengths and generation settings for the base model itself; None takes those
                beside a merged model, or the defaults.
            report_lengths: log which of the defaults are beyond the model's positions and lowered to them.
            quantization: `int8` for linear layers in int8, on the CPU (`fast.int8`); None for the model as it
                is, or `int8` by CTranslate2.
            engine: `ctranslate2` merges each adapter into a copy of the base when it is first used, and
                converts it; None is `torch`, or the engine of an exported folder.
            max_merged: the most converted copies in memory.

        Raises:
            UserError: the model cannot be loaded, quantized or converted.
        """
        check_engine(engine, quantization, base, max_merged)
        self._turns = _Turns()
        is_converted = engine == "ctranslate2"
        self.name, self._base = base.model_name_or_path, base
        folder = Path(base.model_name_or_path).expanduser()
        base_settings = base_settings or settings_beside(folder)
        if is_converted:
            base = base.model_copy(update={"dtype": "float32"})
        device = CPU if quantization or is_converted else pick_device()
        self.model: Any = (
            open_exported(folder)
            if engine_of(folder)
            else load_model(base, device, report_generation=base_settings is None)
        )
        if quantization and not is_converted:
            quantize_for_generation(self.model)
        self.tokenizer = load_tokenizer(base)
        self._own_tokenizers = dict[str | None, Any]()
        self._converted = (
            MergedModels(self.model, self.tokenizer, quantization or DEFAULT, max_merged)
            if is_converted
            else None
        )
        settings = base_settings or PredictionSettings()
        settings = within_positions(settings, self.model.config, self.name, report=report_lengths)
        self.adapters: dict[str | None, PredictionSettings] = {None: settings}
        self._is_int8 = quantization is not None and not is_converted
        self._kept = KeptWeights() if self.model.device == CPU else None  # a GPU's memory is for batches
        self._first: str | None = None
        self.base_problem: str | None = None

    @property
    def description(self) -> str:
        """The base model with its dtype, its engine and its device, for the log."""
        if isinstance(self.model, ExportedModel):
            return f"{self.name} in {self.model.description} on {device_name(self.model.device)}"
        if self._converted:
            how = f"{self._converted.quantization} by ctranslate2, for each adapter on its own"
            return f"{self.name} in {how}; the last {self._converted.most} are kept"
        dtype = str(self.model.dtype).removeprefix("torch.") + ", linear layers in int8" * self._is_int8
        return f"{self.name} in {dtype} on {device_name(self.model.device)}"

    @property
    def names(self) -> list[str]:
        """The names of the adapters, sorted."""
        return sorted(name for name in self.adapters if name is not None)

    @_in_turn
    def add_adapter(
        self,
        adapter: str | Path | SavedAdapter,
        name: str = "default",
        settings: PredictionSettings | None = None,
    ) -> None:
        """Load one more adapter of the same base.

        Args:
            adapter: a folder, a run directory, or USER/NAME[@REVISION] on the Hub.
            name: what `generate` calls it; `base` is reserved for the base model.
            settings: prompt, lengths and generation settings; None takes those that the adapter records.

        Raises:
            UserError: no such adapter, it does not fit the base, it cannot share the base with others, or its
                name is reserved.
        """
        if check_text("name", name) == BASE:
            raise UserError(f"name={name!r} is reserved for the base model: give the adapter another name")
        check_takes_adapters(self.name)
        saved = (
            adapter
            if isinstance(adapter, SavedAdapter)
            else find_adapter(check_place("adapter", adapter), "adapter")
        )
        problem = not_shareable(saved)
        if self._converted and problem:
            raise UserError(f"engine='ctranslate2': {saved.folder} {_not_mergeable(saved)}")
        if self.names and (problem or self.base_problem):
            raise UserError(problem or self.base_problem or "")
        settings, recorded = settings or settings_of(saved), base_config(saved, self.name).dtype
        warn_of_unscored(run_directory(saved))
        own = own_tokenizer(saved, self._base, self.tokenizer)
        if self._converted and own:
            raise UserError(
                f"engine='ctranslate2': {saved.folder} has a tokenizer of its own: merge and export it first"
            )
        warn_of_other_storage(self._base, saved)
        self._inject(saved, name)
        settings = within_positions(settings, self.model.config, self.name, self._virtual_tokens)
        here = str(self.model.dtype).removeprefix("torch.")
        if recorded not in ("auto", here) and not self._converted:
            logger.warning(
                "%s was trained on a base in %s, and this one is in %s: it can write other summaries",
                *(saved.folder, recorded, here),
            )
        self._keep_tokenizer(name, own)
        self.adapters[name] = settings
        if model_state(self.model).has_own_embeddings:
            problem = f"{saved.folder} has embeddings of its own, which have replaced those of the base"
        self.base_problem = problem
        self._first = self._first or name

    def _keep_tokenizer(self, name: str, own: Any) -> None:
        self._own_tokenizers.pop(name, None)
        if own:
            self._own_tokenizers[name] = own

    def tokenizer_of(self, name: str | None) -> Any:
        """Return the tokenizer of an adapter's texts, or that of the base model (None)."""
        return self._own_tokenizers.get(name, self.tokenizer)

    def _inject(self, saved: SavedAdapter, name: str) -> None:
        if self._converted:
            self._converted.forget(name)
        if saved_method(saved) == "lora":
            load_adapter(self.model, saved, name)
        else:
            load_saved(self.model, saved)

    @_in_turn
    def generate(
        self,
        texts: Sequence[str],
        adapter: str | None = None,
        *,
        num_beams: int | None = None,
        max_new_tokens: int | None = None,
        batch_size: int = 64,
        prompt: str | None = None,
        long: str = "cut",
        **options: Any,
    ) -> list[str]:
        """Generate one text for each text, in the order given.

        The longest texts are processed first, in batches of similar length. What does not fit into the
        source length that the adapter was trained with is cut or split, and the log says so.

        Args:
            texts: dialogues.
            adapter: the name of a loaded adapter, or `base`; None is the adapter that `load` was given.
            num_beams: 1 is greedy search; None takes the number that the adapter was scored with.
            max_new_tokens: the longest output; None takes the length that the adapter was trained for.
            batch_size: the most texts of one batch.
            prompt: another prompt than the adapter's: a shipped one's name, or a template with `{dialogue}`.
            long: what is done with texts that are too long. `cut` drops their end; `split` divides them at
                the speakers' turns, generates for each part, and joins the outputs with spaces.
            options: further fields of the config's section `generation`, such as `length_penalty`, in the
                place of those that the adapter was scored with.

        Raises:
            UserError: `texts` is not a list of texts, one of them is empty, the adapter is unknown, or an
                option has a wrong value.
        """
        texts = [check_not_blank(f"texts[{i}]", text) for i, text in enumerate(check_list("texts", texts))]
        long = check_long(long)
        name = self._named(adapter)
        options |= {"batch_size": batch_size, "max_new_tokens": max_new_tokens}
        if num_beams is not None:
            options["num_beams"] = num_beams
        settings = self.adapters[name].changed("generate", options)
        data = settings.data if prompt is None else self._with_prompt(settings.data, prompt)
        if not texts:
            return []
        check_positions(
            *(self.model.config, data, settings.generation, self.name, self._virtual_tokens),
            has_labels=False,
        )
        tokenizer = self.tokenizer_of(name)
        parts = divided(texts, tokenizer, data) if long == "split" else [[text] for text in texts]
        division = Division.of(parts, data.max_source_length)
        sources = encode_sources([part for text in parts for part in text], tokenizer, data)
        start: dict[str, Any] = language_start(self.model, tokenizer, data)
        if division.divided:
            logger.info("%s", division)
        if sources.cut:
            cut = Truncation("input", len(texts), sources.cut, sources.long, data.max_source_length)
            logger.warning("%s", cut)
        if unknown := UnknownTokens("input", sources.unknown):
            logger.warning("%s", unknown)
        if far := far_note(count_far(texts, tokenizer), len(texts)):
            logger.warning("%s", far)
        with self._only(name, start) as model:
            written = iter(
                summarize(
                    settings.generation,
                    model,
                    tokenizer,
                    sources.ids,
                    settings.max_new_tokens,
                    kept=self._kept,
                    **start,
                )
            )
        return [" ".join(filter(None, [next(written) for _ in text])) for text in parts]

    @property
    def _virtual_tokens(self) -> int:
        baseline = None if isinstance(self.model, ExportedModel) else model_state(self.model).baseline
        return baseline.settings.get("num_virtual_tokens", 0) if baseline else 0

    def summarize(self, dialogue: str, adapter: str | None = None, **options: Any) -> str:
        """Summarize one dialogue; the arguments are those of `generate`."""
        return self.generate([check_not_blank("dialogue", dialogue)], adapter, **options)[0]

    @staticmethod
    def _with_prompt(data: DataConfig, prompt: str) -> DataConfig:
        try:
            return DataConfig.model_validate(data.model_dump(exclude_unset=True) | {"prompt": prompt})
        except ValidationError as error:
            raise UserError(f"generate: prompt={prompt!r} {phrase_of(error.errors()[0])}") from None

    def _named(self, adapter: str | None) -> str | None:
        """The key in `adapters` of what the caller asks for."""
        if adapter is None:
            return self._first
        if check_text("adapter", adapter) in self.adapters:
            return adapter
        if adapter == BASE:
            return None
        known = [*self.names, BASE]
        raise UserError(
            f"adapter={adapter!r} is not loaded; known are {known}.{did_you_mean(adapter, known)}"
        )

    @contextmanager
    def _only(self, name: str | None, start: Mapping[str, int]) -> Iterator[Any]:
        """Yield a model that is the base with this adapter alone; `start` is that of its language."""
        if name is None and self.base_problem:
            raise UserError(f"adapter={BASE!r}: {self.base_problem}")
        if self._converted:
            yield self._converted.of(name, start)
            return
        if name is None and self.names:
            with disable_adapters(self.model):
                yield self.model
            return
        if name is not None and len(self.names) > 1:
            set_adapter(self.model, name)
        yield self.model


def check_engine(
    engine: str | None, quantization: str | None, base: ModelConfig, max_merged: int = MAX_MERGED
) -> None:
    """Refuse an engine or a quantization that does not exist, or that this model cannot have.

    Raises:
        UserError: it is one of these.
    """
    if engine not in (None, *QUANTIZATIONS):
        raise UserError(
            f"engine={engine!r} is not one of {', '.join(QUANTIZATIONS)}; leave it out for the engine of the "
            f"files, such as a folder that `lora-hf export --to onnx` wrote."
            f"{did_you_mean(str(engine), QUANTIZATIONS)}"
        )
    if isinstance(max_merged, bool) or not isinstance(max_merged, int) or max_merged < 1:
        raise UserError(f"max_merged={max_merged!r} must be a whole number of at least 1")
    if engine != "ctranslate2" and max_merged != MAX_MERGED:
        raise UserError(
            f"max_merged={max_merged!r} is for engine='ctranslate2', which merges adapters: leave it out"
        )
    if engine and (own := engine_of(base.model_name_or_path)):
        raise UserError(
            f"engine={engine!r}: {base.model_name_or_path} was exported to {own}, which runs it: leave it out"
        )
    known = QUANTIZATIONS[engine or "torch"]
    asked = f"quantization={quantization!r}"
    if quantization not in (None, *known):
        default = f"{DEFAULT}, the default" if engine == "ctranslate2" else "none"
        raise UserError(f"{asked} is not one of {', '.join(known)}; leave it out for {default}")
    if engine == "ctranslate2":
        EXPORTERS["ctranslate2"].check()
        check_model("ctranslate2", base)
    elif quantization and (own := engine_of(base.model_name_or_path)):
        raise UserError(
            f"{asked}: {base.model_name_or_path} was exported to {own}, which has its own: give "
            "--quantization to lora-hf export"
        )
    elif quantization and base.is_quantized:
        raise UserError(
            f"{asked}: the base {base.model_name_or_path} is stored in {base.storage} already, the format of "
            "the adapter's training; leave it out"
        )


def check_takes_adapters(model: str) -> None:
    """Refuse adapters on an exported model.

    Raises:
        UserError: the model is one.
    """
    if engine := engine_of(model):
        raise UserError(
            f"{model} was exported to {engine}, and no adapter can be loaded on an exported model: export "
            "the run of the adapter, or load the adapter on its own base"
        )


def not_shareable(saved: SavedAdapter) -> str | None:
    """Return why an adapter cannot share its base with others or be switched off; None where it can."""
    if (method := saved_method(saved)) != "lora":
        return f"{saved.folder} holds a {method}: only LoRA adapters share a base model"
    if saved.config.layer_replication:
        return f"{saved.folder} replicates layers of the base, which all adapters share; merge it first"
    return None


def _not_mergeable(saved: SavedAdapter) -> str:
    """Return why an adapter that cannot share its base is not merged for CTranslate2, and what to do."""
    if (method := saved_method(saved)) != "lora":
        return f"holds a {method}, which does not change weights and cannot be merged: leave out the engine"
    return "replicates layers of the base: merge it first (`lora-hf merge`), and load that folder"


def load(
    source: str | Path,
    base: str | None = None,
    quantization: str | None = None,
    engine: str | None = None,
    max_merged: int = MAX_MERGED,
) -> InferenceModel:
    """Load a trained adapter with its base model, a finished run, a model, or an exported folder.

    Args:
        source: an adapter's folder, a run directory, a model's folder (merged, or trained whole), a folder
            that `lora-hf export` wrote, `embedded`, or USER/NAME[@REVISION] on the Hub.
        base: the base model, if not the one that the adapter names; for an adapter only.
        quantization: `int8` stores the linear layers in int8 and runs on the CPU: faster, with outputs that
            can differ from those of training (docs/engines.md). Adapters stay as they are. With
            `engine="ctranslate2"` it is `int8` (the default), `int8_bfloat16` or `float32`.
        engine: `ctranslate2` converts the model to CTranslate2's format in memory, each adapter merged when
            it is first used: the fastest on a CPU. None takes torch, or the engine of an exported folder.
        max_merged: by CTranslate2, the most adapters that are kept converted; each takes the memory of a
            whole model.

    Returns:
        An object whose `generate` and `summarize` use the prompt and the lengths of training.

    Raises:
        UserError: no such adapter, run or model, one that cannot be loaded, quantized or converted, or `base`
            without an adapter.
    """
    name = check_place("source", source)
    base = None if base is None else check_place("base", base)
    found = find_source(name, base, "source")
    return load_source(found, None, quantization, engine, max_merged)


def load_source(
    source: Source,
    settings: PredictionSettings | None = None,
    quantization: str | None = None,
    engine: str | None = None,
    max_merged: int = MAX_MERGED,
) -> InferenceModel:
    """Load what `find_source` found.

    Args:
        source: the model or the adapter.
        settings: of its outputs; None takes those that it records.
        quantization: of the linear layers, as `load` has it.
        engine: as `load` has it.
        max_merged: as `load` has it.

    Raises:
        UserError: it cannot be loaded.
    """
    if source.adapter is None:
        warn_of_unscored(source.run)
        settings = settings or source.settings
        return InferenceModel(source.model, settings, True, quantization, engine, max_merged)
    model = InferenceModel(source.model, None, False, quantization, engine, max_merged)
    model.add_adapter(source.adapter, settings=settings)
    return model
