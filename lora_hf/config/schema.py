"""What a run is made of: the fields of the YAML, their defaults and their bounds.

Models are frozen, forbid unknown keys and are strict: `true` is not the integer 1, and "8" is not 8. Two
things are forgiven, because YAML readers disagree on them: `5e-4` or "5e-4" where a number is meant, and
yes/no/on/off where true/false is meant. `training` is a plain dict here: its fields are those of
`Seq2SeqTrainingArguments` and are checked by `config.training`, so that this module imports no torch.
"""

from typing import Annotated, Any, Literal, Self, get_args

from pydantic import Field, field_validator, model_validator
from pydantic_core import PydanticCustomError

from lora_hf.config.baselines import BottleneckSection, PromptTuningSection
from lora_hf.config.lora import LoraSection
from lora_hf.config.model import DENSE, ModelConfig
from lora_hf.config.sweep import SweepSection
from lora_hf.config.types import Count, Flag, Integer, Items, Number, Place, Section, Seed, Text
from lora_hf.data.prompts import prompt_template

Method = Literal["base", "full", "lora", "bottleneck", "prompt_tuning"]
METHOD_CHOICES: tuple[Method, ...] = get_args(Method)
SECTIONS = "model lora bottleneck prompt_tuning data training generation arms variants sweep".split()


class DataConfig(Section):
    """The dialogues, their summaries and the prompt around them."""

    dataset_name: Place = "embedded"
    """`embedded` (the package's sample), a Hub name, or a file or folder of jsonl, json, csv or parquet."""
    dataset_revision: Text | None = None
    """Commit, tag or branch on the Hub."""
    streaming: bool = False
    """Read the training split while it is trained on, 4,096 rows in memory: for more than memory holds."""
    dataset_config: Text | None = None
    """The dataset's configuration, where it has several."""
    dialogue_column: Text = "dialogue"
    """What is summarized."""
    summary_column: Text = "summary"
    """The reference; rows with the same dialogue are several references of it."""
    id_column: Text = "id"
    """Copied to predictions.jsonl; the row's number where there is no such column."""
    prompt: str = "summarize_dialogue"
    """A shipped prompt's name, or a template that holds `{dialogue}`."""
    max_source_length: Count = 512
    """Tokens of the prompt with its dialogue; what is longer is cut. FLAN-T5 was trained at 512."""
    max_target_length: Count = 128
    """Tokens of a training summary; what is longer is cut."""
    max_train_samples: Count | None = None
    """Dialogues, not rows; null takes all."""
    max_eval_samples: Count | None = None
    """Dialogues of the validation split; null takes all."""
    max_test_samples: Count | None = None
    """Dialogues of the test split; null takes all."""

    @field_validator("prompt")
    @classmethod
    def _check_prompt(cls, value: str) -> str:
        prompt_template(value)
        return value


class GenerationConfig(Section):
    """How summaries are written, the same for every arm."""

    num_beams: Annotated[Count, Field(le=1024)] = 1
    """1 is greedy; more is slower and usually a little better."""
    max_new_tokens: Count | None = None
    """Longest summary in tokens; null: long enough for the references."""
    batch_size: Count = 64
    """The most dialogues at once while scoring."""
    batch_tokens: Count = 16384
    """The most tokens of dialogue at once, padding and beams included: 32 dialogues of 512."""
    length_penalty: Number = 1.0
    """With beams: above 1 favors longer summaries."""
    no_repeat_ngram_size: Annotated[Integer, Field(ge=0)] = 0
    """Forbid to repeat any n-gram of this size; 0 allows it."""


class ArmOverride(Section):
    """What one arm of a comparison does differently."""

    training: dict[str, Any] = {}
    """Laid over the common `training`, key by key."""

    _empty = field_validator("training", mode="before")(lambda value: {} if value is None else value)


class RunConfig(Section):
    """One run, or (with `seeds` and `arms`, or `variants`) several side by side."""

    method: Method = "lora"
    """base (no training), full fine-tuning, lora, or what it is compared with: bottleneck, prompt_tuning."""
    model: ModelConfig = ModelConfig()
    lora: LoraSection = LoraSection()
    bottleneck: BottleneckSection = BottleneckSection()
    prompt_tuning: PromptTuningSection = PromptTuningSection()
    data: DataConfig = DataConfig()
    training: dict[str, Any] = {}
    """Goes whole to `transformers.Seq2SeqTrainingArguments`, under its own names."""
    generation: GenerationConfig = GenerationConfig()
    arms: dict[Method, ArmOverride] = {}
    """By method: what that arm of a comparison does differently."""
    variants: dict[str, dict[str, Any]] = {}
    """For a study of methods: name -> what that run lays over the rest, nested as the rest is."""
    sweep: SweepSection = SweepSection()
    """For a sweep: the fields that take several values."""
    output_dir: Place = "runs/run"
    """The run directory; runs/<name of the config> where a file does not say."""
    seed: Seed = 42
    """Of the order of the data, of dropout and of the adapters' start."""
    loraplus_lr_ratio: Annotated[Number, Field(ge=1)] | None = None
    """LoRA+ (arXiv:2402.12354): B learns at training.learning_rate times this (the paper: 16), A without."""
    fast_paths: Flag = True
    """Faster ways to the same sums, in less memory; the log says where there are none."""
    early_stopping_patience: Count | None = None
    """Stop after so many evaluations without a better one; needs training.load_best_model_at_end."""
    seeds: Annotated[Items[Seed], Field(min_length=1)] | None = None
    """For a comparison or a study: every arm once for each of them."""
    overwrite: Flag = False
    """Compute again what a run directory holds from other inputs."""

    @field_validator(*SECTIONS, mode="before")
    @classmethod
    def _allow_empty_section(cls, value: Any) -> Any:
        """`lora:` with every key below it commented out is null to YAML and a section to whoever wrote it."""
        return {} if value is None else value

    @model_validator(mode="after")
    def _check_together(self) -> Self:
        if self.method == "full" and self.model.is_quantized:
            switch = "load_in_8bit" if self.model.load_in_8bit else "load_in_4bit"
            remedy = f"cannot be trained in full (method='full'): use method: lora, or {switch}: false"
            raise PydanticCustomError("together", remedy, {"path": ("model", switch)})
        if self.early_stopping_patience and not self.training.get("load_best_model_at_end"):
            remedy = "needs training.load_best_model_at_end: true, and an eval_strategy"
            raise PydanticCustomError("together", remedy, {"path": ("early_stopping_patience",)})
        if self.loraplus_lr_ratio and self.method != "lora":
            remedy = f"is for method: lora alone (method={self.method!r}): no other has a matrix B"
            raise PydanticCustomError("together", remedy, {"path": ("loraplus_lr_ratio",)})
        if self.seeds and len(set(self.seeds)) < len(self.seeds):
            raise PydanticCustomError("together", "names a seed twice", {"path": ("seeds",)})
        return self

    def for_arm(self, method: Method, seed: int, output_dir: str) -> "RunConfig":
        """One arm of the comparison as a run of its own: its training merged, no arms and no seeds left.

        The full arm of a quantized comparison trains dense weights, since quantized ones cannot be.
        """
        arm = self.arms.get(method, ArmOverride())
        dense = self.model.model_copy(update=DENSE)
        return self.model_copy(
            update={
                "method": method,
                "model": dense if method == "full" else self.model,
                "training": {**self.training, **arm.training},
                "loraplus_lr_ratio": self.loraplus_lr_ratio if method == "lora" else None,
                "arms": {},
                "variants": {},
                "sweep": SweepSection(),
                "output_dir": output_dir,
                "seed": seed,
                "seeds": None,
            }
        )
