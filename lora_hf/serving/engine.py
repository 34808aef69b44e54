"""One base and many adapters: what a batch of dialogues goes through, and how an adapter comes and goes.

The model belongs to one thread: `write`, `load` and `unload` are called one after another. Adapters are
never merged, for the next batch has others; the base is packed for as long as they stay the same.
"""

import copy
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any

from lora_hf.adapters import adapter_rows, delete_adapter
from lora_hf.adapters.saved_adapter import SavedAdapter
from lora_hf.config import ModelConfig
from lora_hf.data.tokenize import encode_sources
from lora_hf.errors import UserError
from lora_hf.evaluation.generate import fast_generation, generate_summaries
from lora_hf.saved.inference import InferenceModel, PromptSettings, not_shareable


@dataclass(frozen=True)
class Job:
    """A dialogue to be summarized, as the model takes it."""

    adapter: str | None
    ids: list[int]
    max_new_tokens: int
    num_beams: int = 1


class Engine(InferenceModel):
    """An `InferenceModel` that mixes adapters within a batch and keeps its fast paths between batches."""

    def __init__(
        self,
        base: ModelConfig,
        adapters: Mapping[str, SavedAdapter],
        base_settings: PromptSettings | None = None,
    ) -> None:
        """Load the base and its first adapters.

        Raises:
            UserError: the base cannot be loaded, or an adapter does not fit.
        """
        super().__init__(base, base_settings)
        self._decoder = copy.deepcopy(self.tokenizer)  # the other one encodes meanwhile, in another thread
        self._fast = ExitStack()
        with self._slow_path():
            for name, saved in adapters.items():
                self._add(name, saved)

    def encode(self, adapter: str | None, dialogue: str) -> tuple[list[int], bool]:
        """A dialogue's tokens in the prompt of its adapter, and whether it was cut; from one thread only."""
        sources = encode_sources([dialogue], self.tokenizer, self.adapters[adapter].data)
        return sources.ids[0], bool(sources.cut)

    def alike(self, job: Job) -> Any:
        """Jobs of which this is equal can be in one batch.

        A greedy summary begins the same whatever length is allowed; a search does not, and a model that ends
        every summary by force has its end in another place.
        """
        is_free = job.num_beams == 1 and self.model.generation_config.forced_eos_token_id is None
        return job.num_beams, None if is_free else job.max_new_tokens

    def write(self, jobs: list[Job]) -> list[str]:
        """The summaries of jobs that are alike, in their order."""
        return generate_summaries(
            self.model,
            self._decoder,
            [job.ids for job in jobs],
            [job.max_new_tokens for job in jobs],
            batch_size=len(jobs),
            adapters=[job.adapter for job in jobs],
            num_beams=jobs[0].num_beams,
        )

    def load(self, name: str, saved: SavedAdapter) -> None:
        """Add an adapter.

        Raises:
            UserError: it is none, was trained on another base, or cannot be one of several in a batch.
        """
        with self._slow_path():
            self._add(name, saved)

    def unload(self, name: str) -> None:
        """Take an adapter off the model; it is no longer in `adapters` by then."""
        with self._slow_path():
            delete_adapter(self.model, name)

    def close(self) -> None:
        """Put the model's modules back as they were."""
        self._fast.close()

    def _add(self, name: str, saved: SavedAdapter) -> None:
        if problem := not_shareable(saved):
            raise UserError(problem)
        self.add_adapter(saved, name)
        try:
            with adapter_rows(self.model, [*self.names, None]):
                pass
        except UserError:
            del self.adapters[name]
            delete_adapter(self.model, name)
            raise

    @contextmanager
    def _slow_path(self) -> Iterator[None]:
        """Inside the block the model's modules are those that adapters know; afterwards the faster ones."""
        self._fast.close()
        try:
            yield
        finally:
            self._fast.enter_context(fast_generation(self.model, merged=False))
