"""The facts of a model card, as plain values."""

from dataclasses import dataclass, field
from typing import Any

from lora_hf.adapters.methods import ADAPTER_METHODS
from lora_hf.adapters.peft_format import method_of
from lora_hf.config import RunConfig
from lora_hf.config.model import EMBEDDED
from lora_hf.evaluation.metrics import Scoring
from lora_hf.run_records import Prediction, RunResult

WEIGHTS = {"bottleneck": "Bottleneck layers", "prompt_tuning": "A tuned prompt"}
Fields = dict[str, Any]


@dataclass(frozen=True)
class Base:
    """The base model as others can find it."""

    name: str | None = None
    """Name on the Hub, or `embedded`; None if there is no name that others could use."""
    revision: str | None = None
    fingerprint: str | None = None

    @property
    def on_hub(self) -> str | None:
        """Return its name on the Hub, if it has one."""
        return None if self.name == EMBEDDED else self.name

    def __str__(self) -> str:
        if self.name == EMBEDDED:
            return "the tiny T5 that comes with lora_hf (`embedded`)"
        if self.name:
            at = f" at revision `{self.revision}`" if self.revision else ""
            return f"[{self.name}](https://huggingface.co/{self.name}){at}"
        known_by = f" (fingerprint `{self.fingerprint}`)" if self.fingerprint else ""
        return f"a base model that has no known name on the Hub{known_by}"


@dataclass(frozen=True)
class CardFacts:
    """Everything that a card states."""

    repo_id: str
    """USER/NAME."""
    branch: str | None
    method: str
    base: Base
    adapter: Fields = field(default_factory=dict)
    """PEFT's config; empty for other methods than LoRA."""
    manifest: Fields = field(default_factory=dict)
    """The content of `lora_hf.json`."""
    config: RunConfig | None = None
    """The run's; None if only the adapter is available."""
    dataset: str | None = None
    """Name on the Hub, or `embedded`; None if it is local or unknown."""
    record: RunResult = field(default_factory=RunResult)
    """The content of `results.json`."""
    samples: list[Prediction] = field(default_factory=list)
    """Rows of predictions.jsonl."""
    license: str | None = None

    @property
    def scoring(self) -> Scoring:
        """Return how the run was scored."""
        return Scoring.of_result(self.record or self.manifest)

    @property
    def name(self) -> str:
        """Return NAME of USER/NAME."""
        return self.repo_id.split("/")[1]

    @property
    def weights(self) -> str:
        """Return what was trained: `DoRA weights`, `A tuned prompt`."""
        if self.method in WEIGHTS:
            return WEIGHTS[self.method]
        key = method_of(self.adapter)
        if key == "lora" and self.config is not None:  # such as LoRA-FA, whose files are plain LoRA
            key = self.config.lora.to_config().method
        title = ADAPTER_METHODS[key].title
        if self.adapter.get("use_rslora"):
            title = "rsLoRA" if key == "lora" else f"{title} and rsLoRA"
        return f"{title} weights"

    @property
    def data_name(self) -> str:
        """Return how a sentence names the data."""
        if self.config is None:
            return "data that are not recorded"
        if self.dataset == EMBEDDED:
            return "the synthetic dialogues that come with lora_hf"
        return self.dataset or "local data"
