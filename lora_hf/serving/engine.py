"""One base and many adapters: what a batch of dialogues goes through, and how an adapter comes and goes.

The model belongs to one thread: `write`, `load` and `unload` are called one after another. Adapters are
never merged, for the next batch has others; the base is packed for as long as they stay the same.
"""

import copy
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lora_hf.adapters import adapter_rows, delete_adapter, load_adapter
from lora_hf.adapters.checkpoint_io import read_manifest
from lora_hf.adapters.peft_format import read_peft_config
from lora_hf.config import DataConfig, ModelConfig
from lora_hf.data.tokenize import encode_sources
from lora_hf.errors import UserError
from lora_hf.evaluation.generate import fast_generation, generate_summaries
from lora_hf.models.load import load_model, load_tokenizer
from lora_hf.saved.adapter import NEW_TOKENS, prompt_config
from lora_hf.system import pick_device
from lora_hf.training.registry import saved_method


@dataclass(frozen=True)
class Served:
    """How dialogues are put to an adapter, or to the base."""

    data: DataConfig
    max_new_tokens: int
    folder: Path | None = None


@dataclass(frozen=True)
class Job:
    """A dialogue to be summarized, as the model takes it."""

    adapter: str | None
    ids: list[int]
    max_new_tokens: int
    num_beams: int = 1


class Engine:
    """A base model and its adapters.

    Attributes:
        name: the base's.
        adapters: what is served, by name; None is the base.
    """

    def __init__(
        self, base: ModelConfig, adapters: Mapping[str, Path], as_base: Served | None = None
    ) -> None:
        """Load the base and its first adapters; `as_base` says how dialogues are put to the base itself.

        Raises:
            UserError: the base cannot be loaded, or an adapter does not fit.
        """
        self.name = base.model_name_or_path
        self.model = load_model(base, pick_device())
        self.tokenizer = load_tokenizer(base)
        self._own_tokenizer = copy.deepcopy(self.tokenizer)  # the other one encodes meanwhile, in its thread
        self.adapters: dict[str | None, Served] = {None: as_base or Served(DataConfig(), NEW_TOKENS)}
        self._fast = ExitStack()
        with self._plain():
            for name, folder in adapters.items():
                self._add(name, folder)

    @property
    def names(self) -> list[str]:
        """The adapters', in order."""
        return sorted(name for name in self.adapters if name is not None)

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
            self._own_tokenizer,
            [job.ids for job in jobs],
            [job.max_new_tokens for job in jobs],
            batch_size=len(jobs),
            adapters=[job.adapter for job in jobs],
            num_beams=jobs[0].num_beams,
        )

    def load(self, name: str, folder: Path) -> None:
        """Add an adapter.

        Raises:
            UserError: it is none, was trained on another base, or cannot be one of several in a batch.
        """
        with self._plain():
            self._add(name, folder)

    def unload(self, name: str) -> None:
        """Take an adapter off the model; it is no longer in `adapters` by then."""
        with self._plain():
            delete_adapter(self.model, name)

    def close(self) -> None:
        """Put the model's modules back as they were."""
        self._fast.close()

    def _add(self, name: str, folder: Path) -> None:
        _refuse_others(folder)
        load_adapter(self.model, folder, name)
        try:
            with adapter_rows(self.model, [*self.names, name, None]):
                pass
        except UserError:
            delete_adapter(self.model, name)
            raise
        manifest = read_manifest(folder)
        served = Served(prompt_config(folder), manifest.get("max_new_tokens", NEW_TOKENS), folder)
        self.adapters[name] = served

    @contextmanager
    def _plain(self) -> Iterator[None]:
        """Inside the block the model's modules are those that adapters know; afterwards the faster ones."""
        self._fast.close()
        try:
            yield
        finally:
            self._fast.enter_context(fast_generation(self.model, merged=False))


def _refuse_others(folder: Path) -> None:
    """Raise where a folder holds what changes the base for every row of a batch."""
    if (method := saved_method(folder)) != "lora":
        raise UserError(f"{folder} holds a {method}: only LoRA adapters are served beside others")
    config, _ = read_peft_config(folder)
    if config.layer_replication:
        raise UserError(
            f"{folder} replicates layers of the base, which all adapters share; merge it and serve the result"
        )
