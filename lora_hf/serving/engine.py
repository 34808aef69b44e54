"""One base model and many adapters: run a batch of requests, load and unload adapters in between.

The model belongs to one thread: `generate_batch`, `add_adapter` and `remove_adapter` are called one after
another. By torch, adapters are never merged, because the next batch has others; the base's packed weights and
the stacks of adapters that were used together are kept for as long as the adapters stay the same. By
CTranslate2, a batch has one adapter, and the last adapters stay merged.
"""

import contextvars
import copy
import logging
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, nullcontext
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from lora_hf.adapters import adapter_rows, delete_adapter, set_adapter
from lora_hf.adapters.mixed_batch import KeptStacks
from lora_hf.adapters.saved_adapter import SavedAdapter
from lora_hf.arguments import MAX_MERGED
from lora_hf.config import DataConfig, ModelConfig
from lora_hf.config.prediction import PredictionSettings
from lora_hf.data.familiar import count_far, far_note
from lora_hf.data.parts import divided
from lora_hf.data.tokenize import encode_sources
from lora_hf.errors import UserError
from lora_hf.evaluation.generate import Observer, fast_generation, generate_summaries
from lora_hf.models.exported import ExportedModel
from lora_hf.models.languages import decode, language_start
from lora_hf.saved.inference import InferenceModel, not_shareable

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Job:
    """A dialogue to summarize, as token ids."""

    adapter: str | None
    """None is the base model."""
    ids: list[int]
    settings: PredictionSettings
    """Its generation settings and largest length are used."""
    on_text: Callable[[str], None] | None = field(default=None, compare=False)
    """Called on the batch's thread with the text so far, after each token of a greedy search. If a batch
    fails and its jobs run again, the text begins again."""


@dataclass(frozen=True)
class Written:
    """What a model wrote."""

    text: str
    tokens: int
    """Their number, with the end token where the engine writes it."""
    is_whole: bool
    """False where `max_new_tokens` ended the text."""


def joined(parts: Sequence[Written]) -> Written:
    """Return the outputs of the parts of a text as one."""
    text = " ".join(part.text for part in parts if part.text)
    return Written(text, sum(part.tokens for part in parts), all(part.is_whole for part in parts))


class _BatchObserver(Observer):
    """Counts the tokens of each job, and passes on the texts of those that want to see them grow."""

    def __init__(self, jobs: list[Job], tokenizer: Any) -> None:
        self.jobs, self.tokenizer = jobs, tokenizer
        self.wants_tokens = any(job.on_text for job in jobs)
        self.so_far: list[list[int]] = [[] for _ in jobs]
        self.outputs: list[list[int]] = [[] for _ in jobs]

    def token(self, source: int, token: int) -> None:
        job, tokens = self.jobs[source], self.so_far[source]
        if job.on_text and len(tokens) < job.settings.max_new_tokens:
            tokens.append(token)
            job.on_text(decode(self.tokenizer, [tokens])[0].strip())

    def output(self, source: int, tokens: list[int]) -> None:
        self.outputs[source] = tokens

    def written(self, texts: list[str], ends: Sequence[int]) -> list[Written]:
        return [
            Written(
                text,
                len(tokens),
                len(tokens) < job.settings.max_new_tokens or (bool(tokens) and tokens[-1] in ends),
            )
            for job, text, tokens in zip(self.jobs, texts, self.outputs, strict=True)
        ]


class Engine(InferenceModel):
    """An `InferenceModel` that mixes adapters within a batch and keeps its fast paths between batches.

    An exported model has neither; its requests are batched in the same way, as are those of one adapter that
    is merged for CTranslate2.
    """

    def __init__(
        self,
        base: ModelConfig,
        adapters: Mapping[str, SavedAdapter],
        base_settings: PredictionSettings | None = None,
        quantization: str | None = None,
        engine: str | None = None,
        max_merged: int = MAX_MERGED,
    ) -> None:
        """Load the base and its first adapters, or an exported model; arguments of `InferenceModel`.

        Raises:
            UserError: the base cannot be loaded, quantized or converted, or an adapter does not fit.
        """
        super().__init__(base, base_settings, False, quantization, engine, max_merged)
        # `tokenizer` encodes in another thread meanwhile
        self._decoder, self._own_decoders = copy.deepcopy(self.tokenizer), dict[str | None, Any]()
        self._starts: dict[tuple[str | None, ...], dict[str, int]] = {}  # `language_start` by languages
        self._has_named_far = False
        self._mixes = True  # rows of a batch can have adapters of their own
        self._fast, self._stacks = ExitStack(), KeptStacks()
        self._context = contextvars.copy_context()  # fast paths set context variables, whatever the thread
        try:
            with self._reference_path():
                for name, saved in adapters.items():
                    super().add_adapter(saved, name)
            for settings in self.adapters.values():
                self._options(settings)
            for each in [*self.names, *([] if self.base_problem else [None])]:
                self._convert(each)
            if self._converted and len(self.adapters) > self._converted.most:
                logger.warning(
                    "%d of %d adapters, the base among them, are kept merged (--max-merged): a request for "
                    "another one waits until it is merged",
                    self._converted.most,
                    len(self.adapters),
                )
        except BaseException:
            self.close()
            raise

    def add_adapter(
        self,
        adapter: str | Path | SavedAdapter,
        name: str = "default",
        settings: PredictionSettings | None = None,
    ) -> None:
        """Load one more adapter.

        Raises:
            UserError: as `InferenceModel.add_adapter`, or it cannot be mixed with others in a batch.
        """
        with self._reference_path():
            super().add_adapter(adapter, name, settings)
        self._options(self.adapters[name])
        self._convert(name)

    def _convert(self, name: str | None) -> None:
        """Convert an adapter while there is room for it, so that its first request need not wait."""
        if self._converted and len(self._converted.names) < self._converted.most:
            self._converted.of(name, self._start(self.adapters[name]))

    def remove_adapter(self, name: str) -> None:
        """Remove an adapter's weights; its name has been taken out of `adapters` before."""
        if self._converted:
            self._converted.forget(name)
        self._keep_tokenizer(name, None)
        with self._reference_path():
            delete_adapter(self.model, name)
            if not self._mixes and len(self.names) == 1:  # a batch of the only adapter does not activate it
                set_adapter(self.model, self.names[0])

    def _keep_tokenizer(self, name: str, own: Any) -> None:
        super()._keep_tokenizer(name, own)
        self._own_decoders.pop(name, None)
        if own:
            self._own_decoders[name] = copy.deepcopy(own)

    def encode(
        self, data: DataConfig, dialogue: str, long: str = "cut", adapter: str | None = None
    ) -> tuple[list[list[int]], bool]:
        """Tokenize a dialogue in its prompt, by an adapter's tokenizer; from one thread only.

        Returns:
            The token ids of each part, of which there are several only with `long="split"`, and whether
            anything was cut.
        """
        tokenizer = self.tokenizer_of(adapter)
        if not self._has_named_far and count_far([dialogue], tokenizer):
            self._has_named_far = True
            logger.warning("a request: %s (further requests are not named)", far_note(1, 1))
        parts = divided([dialogue], tokenizer, data)[0] if long == "split" else [dialogue]
        sources = encode_sources(parts, tokenizer, data)
        return sources.ids, bool(sources.cut)

    def batch_key(self, job: Job) -> Any:
        """Return a key that is equal for jobs that can share a batch.

        A greedy summary begins the same whatever length is allowed. Beam search does not, nor does one whose
        last token is forced.
        """
        options = self._options(job.settings)
        is_free = options["num_beams"] == 1 and "forced_eos_token_id" not in options
        length = None if is_free else job.settings.max_new_tokens
        # one tokenizer decodes a batch
        is_alone = self._converted or not self._mixes or job.adapter in self._own_decoders
        return tuple(options.items()), length, job.adapter if is_alone else None

    def generate_batch(self, jobs: list[Job]) -> list[Written]:
        """Generate the summaries of jobs with the same batch key, in their order."""
        first = jobs[0]
        decoder = self._own_decoders.get(first.adapter, self._decoder)
        observer = _BatchObserver(jobs, decoder)
        is_whole = self._converted or not self._mixes  # one adapter for all rows
        rows: dict[str, Any] = {"adapters": [job.adapter for job in jobs], "stacks": self._stacks}
        with (
            self._only(first.adapter, self._start(first.settings)) if is_whole else nullcontext(self.model)
        ) as model:
            texts = self._context.run(
                generate_summaries,
                model,
                decoder,
                [job.ids for job in jobs],
                [job.settings.max_new_tokens for job in jobs],
                batch_size=len(jobs),
                observer=observer,
                **({"kept": self._kept} if is_whole else rows),
                **self._options(first.settings),
            )
        ends = self.model.generation_config.eos_token_id
        return observer.written(texts, ends if isinstance(ends, list) else [ends])

    def _options(self, settings: PredictionSettings) -> dict[str, Any]:
        """Return what shapes a summary, its language included, as keywords of `generate`.

        An adapter's languages are looked up while it is added, because jobs are grouped in another thread.
        """
        return self._start(settings) | settings.generation.options()

    def _start(self, settings: PredictionSettings) -> dict[str, int]:
        """Return `language_start` of an adapter's languages."""
        data = settings.data
        key = data.source_language, data.target_language
        if key not in self._starts:
            self._starts[key] = language_start(self.model, self._decoder, data)
        return self._starts[key]

    def close(self) -> None:
        """Restore the model's modules."""
        self._context.run(self._fast.close)

    def _inject(self, saved: SavedAdapter, name: str) -> None:
        if problem := not_shareable(saved):
            raise UserError(problem)
        super()._inject(saved, name)
        if self._converted:
            return
        try:
            with adapter_rows(self.model, [*self.names, name, None]):
                pass
        except UserError as error:
            if self._mixes:
                why = str(error).partition("; ")[0]  # what follows is a remedy for Python
                logger.info("each batch is of one adapter: %r cannot share one: %s", name, why)
            self._mixes = False

    @contextmanager
    def _reference_path(self) -> Iterator[None]:
        """Inside the block the model has its own modules, which adapters need; after it the fast paths'."""
        if isinstance(self.model, ExportedModel) or self._converted:
            yield
            return
        self._stacks.clear()
        self._context.run(self._fast.close)
        try:
            yield
        finally:
            if self._mixes:  # else each batch enters it with its adapter
                self._context.run(self._fast.enter_context, fast_generation(self.model, False, self._kept))
