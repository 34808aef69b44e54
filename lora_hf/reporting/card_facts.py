"""What a model card tells, gathered before it is written: plain values, and names for them."""

from dataclasses import dataclass, field
from typing import Any

from lora_hf.config import RunConfig
from lora_hf.config.model import EMBEDDED
from lora_hf.run_records import Prediction, RunResult

WEIGHTS = {"bottleneck": "Bottleneck layers", "prompt_tuning": "A tuned prompt"}
KINDS = {"use_dora": "DoRA", "use_qalora": "QA-LoRA", "use_rslora": "rsLoRA"}
Record = dict[str, Any]


@dataclass(frozen=True)
class Base:
    """The base model as others can find it."""

    name: str | None = None
    """On the Hub, or `embedded`; None where it has no name that others could use."""
    revision: str | None = None
    fingerprint: str | None = None

    @property
    def on_hub(self) -> str | None:
        """Its name on the Hub, if it has one."""
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
    """All that a card tells."""

    repo_id: str
    """USER/NAME."""
    branch: str | None
    method: str
    base: Base
    adapter: Record = field(default_factory=dict)
    """PEFT's config; empty for what is no LoRA."""
    manifest: Record = field(default_factory=dict)
    """What `lora_hf.json` holds."""
    config: RunConfig | None = None
    """Of the run; None where only the adapter is at hand."""
    dataset: str | None = None
    """Its name on the Hub, or `embedded`; None where it is local, or not known."""
    record: RunResult = field(default_factory=RunResult)
    """What `results.json` holds."""
    samples: list[Prediction] = field(default_factory=list)
    """Rows of predictions.jsonl."""
    license: str | None = None

    @property
    def name(self) -> str:
        """NAME of USER/NAME."""
        return self.repo_id.split("/")[1]

    @property
    def weights(self) -> str:
        """`DoRA weights`, `A tuned prompt`: what was trained."""
        found = [name for key, name in KINDS.items() if self.adapter.get(key)]
        return WEIGHTS.get(self.method, f"{' and '.join(found) or 'LoRA'} weights")

    @property
    def data_name(self) -> str:
        """What the data are called in a sentence."""
        if self.config is None:
            return "data that are not recorded"
        if self.dataset == EMBEDDED:
            return "the invented dialogues of lora_hf"
        return self.dataset or "local data"
