"""The fields of the YAML, with their defaults and bounds.

Models are frozen, forbid unknown keys and are strict: `true` is not the integer 1, and "8" is not 8. Two
exceptions exist because YAML readers disagree on them: `5e-4` or "5e-4" for a number, and yes/no/on/off for
true/false. `training` is a plain dict here: its fields are those of
`Seq2SeqTrainingArguments` and are checked by `config.training`, so that this module imports no torch.
"""

import re
from typing import Annotated, Any, Literal, Self, get_args

from pydantic import AfterValidator, BeforeValidator, Field, PlainSerializer, field_validator, model_validator
from pydantic_core import PydanticCustomError

from lora_hf.config.baselines import BottleneckSection, PromptTuningSection
from lora_hf.config.lora import LoraSection
from lora_hf.config.model import DENSE, EMBEDDED, ModelConfig, Source
from lora_hf.config.sweep import SweepSection, fields_of
from lora_hf.config.task import SUMMARIZATION, TASKS, Task, TaskName, embedded_retention, read_task, with_task
from lora_hf.config.types import Count, Flag, Folder, Integer, Items, Number, Section, Seed, Text
from lora_hf.data.prompts import prompt_template
from lora_hf.data.split_names import NAMES

Method = Literal["base", "full", "lora", "bottleneck", "prompt_tuning"]
METHOD_CHOICES: tuple[Method, ...] = get_args(Method)
SECTIONS = "model lora bottleneck prompt_tuning data training generation arms variants sweep".split()


TaskField = Annotated[
    Task, BeforeValidator(read_task, json_schema_input_type=TaskName | Task), PlainSerializer(Task.written)
]


def _check_columns(value: Any) -> Any:
    names = list(value) if isinstance(value, list | tuple) else [value]
    if not names or not all(isinstance(name, str) and name for name in names):
        raise ValueError("is neither the name of a column nor a list of names")
    return value


def _check_encoding(value: str) -> str:
    try:
        "".encode(value)
    except LookupError:
        known = "utf-8, utf-16, cp1252 (Windows, Western Europe), cp949 (Korean), gb18030 (Chinese), cp932"
        raise ValueError(f"is not a text encoding that Python knows, such as {known} (Japanese)") from None
    return value


def _check_mark(value: str) -> str:
    value = value.replace("\\t", "\t")  # as a shell passes it
    if len(value) != 1 or value in '"\r\n':
        raise ValueError("is not one character, such as ';' or '\\t'")
    return value


def _check_turn(value: str) -> str:
    if not re.search(r"\{\w+\}", value):
        raise ValueError("names no key of a turn in braces, such as '{speaker}: {text}'")
    return value


def _check_files(value: Any) -> Any:
    """Check the names of splits, and read lists as tuples."""
    if value is None:
        return None
    if isinstance(value, dict):
        if wrong := [name for name in value if name not in NAMES]:
            known = ", ".join(NAMES)
            raise ValueError(f"names the split {wrong[0]!r}; known are {known}")
        if len({NAMES[name] for name in value}) < len(value):
            raise ValueError("names a split twice")
        return {name: _check_files(files) for name, files in value.items()}
    files = [value] if isinstance(value, str) else value
    if not isinstance(files, list | tuple) or not files or not all(f and isinstance(f, str) for f in files):
        raise ValueError("must be a file, a list of files, or these by split: {train: a.csv, test: b.csv}")
    return value if isinstance(value, str) else tuple(files)


WHOLE_DATASET = re.compile(r"hf://datasets/(?P<name>[^/@]+/[^/@]+)(?:@(?P<revision>[^/]+))?/?")
Files = Text | Items[Text]
Share = Annotated[Number, Field(gt=0, lt=1)]
Mark = Annotated[str, AfterValidator(_check_mark)]


class DataConfig(Section):
    """The dialogues, their summaries and the prompt."""

    dataset_name: Source = "embedded"
    """`embedded` (the package's sample: 10,000, 500 and 500 dialogues), a name on the Hub, or a file or
    folder of csv, tsv, jsonl, json, parquet or arrow; `https://` and `hf://` files too (docs/data.md)."""
    data_files: Annotated[dict[str, Files] | Files | None, BeforeValidator(_check_files)] = None
    """Files by split, `{train: a.csv, validation: [b.csv, c.csv]}`, or files to train on: paths, patterns
    with `*`, or addresses; relative to the folder or dataset that `dataset_name` names, if it does."""
    dataset_revision: Text | None = None
    """Commit, tag or branch on the Hub."""
    streaming: bool = False
    """Read the training split during training, 4,096 rows at a time, for data larger than memory."""
    dataset_config: Text | None = None
    """Name of the dataset's configuration, if it has several."""
    encoding: Annotated[Text, AfterValidator(_check_encoding)] | None = None
    """Encoding of csv, json and text files, such as cp1252 or cp949. Null: UTF-8, or UTF-16 by its mark."""
    delimiter: Mark | None = None
    """Character between the cells of csv files. Null: the comma, tab, semicolon or bar of the header."""
    escapechar: Mark | None = None
    """Character before quotes inside the cells of csv files, such as a backslash. Null: they are doubled."""
    column_names: Annotated[Items[Text], Field(min_length=1)] | None = None
    """Names of the columns of csv files that have no header, in order. Null: the first line has them."""
    json_field: Text | None = None
    """Key of a json file that holds the list of rows; `a.b` is the key b inside a."""
    explode: Text | None = None
    """Column with a list of objects, each of which becomes a row beside the other columns: for the questions
    about a meeting, `queries.answer` is then one's answer. `a.b` is the list b in the objects of a."""
    parallel_files: Annotated[Items[Text], Field(min_length=2)] | None = None
    """Endings of text files, source first: with `[de, en]`, line n of `train.en` is the target of line n of
    `train.de`. The columns are `source` and `target`."""
    dialogue_column: Text = "dialogue"
    """Column of the input, whatever the task: the dialogue, or the sentence to translate. It holds text or a
    list of turns; `a.b` is the field b of the objects in a. Where the columns of the default names are
    missing, known pairs of names are taken (docs/data.md)."""
    summary_column: Annotated[Text | Items[Text], BeforeValidator(_check_columns)] = "summary"
    """Column of the target, whatever the task: the reference summary, or the translation. A list of columns
    gives one reference each. Rows with the same dialogue are several references of it, and so are the texts
    of a list in a cell."""
    id_column: Text = "id"
    """Column copied to predictions.jsonl; `fname` where there is no `id`. Without both, the row number."""
    on_bad_row: Literal["error", "skip"] = "error"
    """What to do with rows whose dialogue or summary is empty or not text: refuse the data (error), or leave
    them out and list them in the log (skip)."""
    split_seed: Seed = 0
    """Seed of the hash that divides one file into splits, and that takes a missing validation or test split
    from the training dialogues."""
    validation_share: Share = 0.1
    """Share of the dialogues that a missing validation split takes; the rest is for training."""
    test_share: Share = 0.1
    """Share of the dialogues that a missing test split takes."""
    turn_template: Annotated[str, AfterValidator(_check_turn)] = "{speaker}: {text}"
    """How a turn becomes a line, where the dialogue is a list of objects: `{speaker}` and `{text}` stand for
    the usual names of these keys, any other name for the key itself."""
    prompt: str = "summarize_dialogue"
    """Name of a shipped prompt, or a template that contains `{dialogue}`."""
    source_language: Text | None = None
    """Language of the dialogues, for a multilingual model (mBART, NLLB, M2M100, PLBart, Seamless): a code of
    its tokenizer, such as `eng_Latn`. Null takes the tokenizer's own."""
    target_language: Text | None = None
    """Language of the summaries: their labels and all that the model writes. Null takes the tokenizer's."""
    max_source_length: Count = 512
    """Largest number of input tokens, prompt included; longer dialogues are cut. FLAN-T5 used 512."""
    max_target_length: Count = 128
    """Largest number of tokens in a training summary. Longer ones are cut."""
    max_train_samples: Count | None = None
    """Largest number of training dialogues (not rows); null takes all."""
    max_eval_samples: Count | None = None
    """Largest number of validation dialogues; null takes all."""
    max_test_samples: Count | None = None
    """Largest number of test dialogues; null takes all."""

    @model_validator(mode="before")
    @classmethod
    def _read_place(cls, fields: Any) -> Any:
        """Read `hf://datasets/USER/NAME@REVISION` as name and revision; `data_files` alone are found here."""
        if not isinstance(fields, dict):
            return fields
        name = fields.get("dataset_name", EMBEDDED)
        if fields.get("data_files") is not None and name == EMBEDDED:
            return fields | {"dataset_name": "."}
        if isinstance(name, str) and (found := WHOLE_DATASET.fullmatch(name)):
            pinned = {"dataset_revision": found["revision"]} if found["revision"] else {}
            return pinned | fields | {"dataset_name": found["name"]}
        return fields

    @model_validator(mode="after")
    def _check_shares(self) -> Self:
        if self.validation_share + self.test_share >= 1:
            remedy = f"and data.test_share={self.test_share} leave nothing for training: lower one of them"
            raise PydanticCustomError("together", remedy, {"path": ("data", "validation_share")})
        return self

    @field_validator("parallel_files")
    @classmethod
    def _check_endings(cls, value: tuple[str, ...] | None) -> tuple[str, ...] | None:
        endings = tuple(ending.removeprefix(".").lower() for ending in value or ())
        if len({*endings}) < len(endings):
            raise ValueError("names an ending twice")
        return endings or None

    @field_validator("prompt")
    @classmethod
    def _check_prompt(cls, value: str) -> str:
        prompt_template(value)
        return value


class GenerationConfig(Section):
    """How summaries are generated: in evaluations, scoring, `predict`, serving and merged folders.

    A checkpoint's own settings are not used, but for what its family needs to work (`models.generation`).
    """

    num_beams: Annotated[Count, Field(le=1024)] = 1
    """Number of beams. 1 is greedy decoding; more beams are slower and usually a little better."""
    max_new_tokens: Count | None = None
    """Largest number of tokens in a summary; null chooses it from the references."""
    min_new_tokens: Annotated[Integer, Field(ge=0)] = 0
    """Smallest number of tokens in a summary."""
    batch_size: Count = 64
    """Largest number of dialogues per batch while scoring."""
    batch_tokens: Count = 16384
    """Largest number of input tokens per batch while scoring, padding and beams included."""
    length_penalty: Number = 1.0
    """A value above 1 favors longer summaries; needs num_beams above 1."""
    early_stopping: Flag = False
    """Stop as soon as there are as many finished summaries as beams; needs num_beams above 1."""
    no_repeat_ngram_size: Annotated[Integer, Field(ge=0)] = 0
    """Size of n-grams that may not be repeated in a summary; 0 allows all."""
    repetition_penalty: Annotated[Number, Field(gt=0)] = 1.0
    """Above 1, tokens that the summary already contains become less likely."""
    forced_bos_token_id: Annotated[Integer, Field(ge=0)] | None = None
    """First token of every summary; null keeps the checkpoint's, which is a multilingual model's language."""
    forced_eos_token_id: Annotated[Integer, Field(ge=0)] | None = None
    """Last token of a summary that reaches its largest length; null forces none."""

    @model_validator(mode="after")
    def _check_lengths(self) -> Self:
        if self.max_new_tokens is not None and self.min_new_tokens > self.max_new_tokens:
            remedy = f"is more than generation.max_new_tokens={self.max_new_tokens}"
            raise PydanticCustomError("together", remedy, {"path": ("generation", "min_new_tokens")})
        return self

    def options(self) -> dict[str, Any]:
        """Return what shapes a summary as keywords of Transformers' `generate`, the lengths left out."""
        options: dict[str, Any] = {"num_beams": self.num_beams, "do_sample": False}
        if self.num_beams > 1:  # Transformers warns of them otherwise
            options |= {"length_penalty": self.length_penalty, "early_stopping": self.early_stopping}
        neutral: dict[str, Any] = {"min_new_tokens": 0, "no_repeat_ngram_size": 0, "repetition_penalty": 1.0}
        neutral |= {"forced_bos_token_id": None, "forced_eos_token_id": None}
        own = {name: getattr(self, name) for name in neutral}
        return options | {name: value for name, value in own.items() if value != neutral[name]}


class RetentionSection(Section):
    """A further task on which a model is scored before and after training."""

    task: TaskField = TASKS["text_to_text"]
    """Name or fields of the task, as the top level's `task`: prompt, metrics, main score."""
    data: DataConfig = DataConfig()
    """Where its test split is, with the fields of the top level's `data`."""

    @model_validator(mode="before")
    @classmethod
    def _fill_from_task(cls, data: Any) -> Any:
        return with_task({"task": "text_to_text"} | data) if isinstance(data, dict) else data


def _read_retention(value: Any) -> Any:
    """Return the tasks of a name; leave anything else to the checks of the fields."""
    if isinstance(value, str):
        if value != EMBEDDED:
            raise ValueError(f"is neither {EMBEDDED} nor a mapping of names to tasks")
        return embedded_retention()
    if isinstance(value, dict) and (wrong := [n for n in value if not re.fullmatch(r"[\w-]{1,64}", str(n))]):
        raise ValueError(f"has the name {wrong[0]!r}; names consist of 1 to 64 letters, digits, '_' and '-'")
    return {} if value is None else value


def _written_retention(value: dict[str, RetentionSection]) -> str | dict[str, Any]:
    """Return the tasks as a YAML has them: by the name of all, or each with its fields."""
    known = {name: RetentionSection.model_validate(of) for name, of in embedded_retention().items()}
    return EMBEDDED if value == known else {n: of.model_dump(mode="json") for n, of in value.items()}


class ArmOverride(Section):
    """Fields of one run of a comparison that differ from the common ones."""

    training: dict[str, Any] = {}
    """Fields that replace those of the common `training`."""

    _empty = field_validator("training", mode="before")(lambda value: {} if value is None else value)


class RunConfig(Section):
    """One run, or several with `seeds`, `arms`, `variants` or `sweep`."""

    task: TaskField = SUMMARIZATION
    """What is learned: summarization, translation, question_answering, classification, text_to_text, or a
    mapping of the fields of a task of your own (docs/tasks.md)."""
    method: Method = "lora"
    """base (no training), full (full fine-tuning), lora, bottleneck or prompt_tuning."""
    model: ModelConfig = ModelConfig()
    lora: LoraSection = LoraSection()
    bottleneck: BottleneckSection = BottleneckSection()
    prompt_tuning: PromptTuningSection = PromptTuningSection()
    data: DataConfig = DataConfig()
    training: dict[str, Any] = {}
    """Fields of `transformers.Seq2SeqTrainingArguments`, under their own names."""
    generation: GenerationConfig = GenerationConfig()
    retention: Annotated[
        dict[str, RetentionSection],
        BeforeValidator(
            _read_retention, json_schema_input_type=Literal["embedded"] | dict[str, RetentionSection]
        ),
        PlainSerializer(_written_retention),
    ] = {}
    """Further tasks on which the model is scored before and after training, to measure what it forgets, by
    name: `task` and `data` each (docs/tasks.md). `embedded` takes those that the embedded model was made
    with."""
    arms: dict[Method, ArmOverride] = {}
    """For `compare`: by method, the fields that only this run of the comparison has (in trials, the runs that
    are compared are called arms)."""
    variants: dict[str, dict[str, Any]] = {}
    """For a study of methods: by name, the fields that replace the common ones, nested like them."""
    sweep: SweepSection = SweepSection()
    """For a sweep: the fields that take several values."""
    output_dir: Folder = "runs/run"
    """Run directory. Default for a config file: runs/<name of the file>."""
    seed: Seed = 42
    """Random seed for data order, dropout and adapter initialization."""
    loraplus_lr_ratio: Annotated[Number, Field(ge=1)] | None = None
    """LoRA+ (arXiv:2402.12354): ratio of the learning rate of B to that of A. The paper uses 16."""
    fast_paths: Flag = True
    """Use faster implementations that need less memory. The log says which layers have none."""
    early_stopping_patience: Count | None = None
    """Number of evaluations without improvement after which training stops; needs
    training.load_best_model_at_end."""
    seeds: Annotated[Items[Seed], Field(min_length=1)] | None = None
    """For a comparison or a study: repeat every run with each of these seeds."""
    overwrite: Flag = False
    """Overwrite results in `output_dir` that came from different inputs."""

    @model_validator(mode="before")
    @classmethod
    def _fill_from_task(cls, data: Any) -> Any:
        """Give the section `data` the columns and the prompt of the task where it has none."""
        return with_task(data) if isinstance(data, dict) and data.get("task") is not None else data

    @field_validator(*SECTIONS, mode="before")
    @classmethod
    def _allow_empty_section(cls, value: Any) -> Any:
        """Read a section whose keys are all commented out, which is null in YAML, as an empty section."""
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
            remedy = f"needs method: lora (method={self.method!r}): no other method has a matrix B"
            raise PydanticCustomError("together", remedy, {"path": ("loraplus_lr_ratio",)})
        if self.seeds and len(set(self.seeds)) < len(self.seeds):
            raise PydanticCustomError("together", "names a seed twice", {"path": ("seeds",)})
        if self.sweep.trials:
            self._check_search()
        return self

    def _check_search(self) -> None:
        """Refuse a search whose trials could not be judged; each is by its last evaluation."""
        if self.seeds:
            remedy = (
                "has no effect on a search (sweep.trials), which trains each trial with one seed: set seed "
                "instead, or remove sweep.trials to run every combination with each seed"
            )
            raise PydanticCustomError("together", remedy, {"path": ("seeds",)})
        varied = {field for axis, values in self.sweep.space.items() for field in fields_of(axis, values)}
        get, last = self.training.get, self.training.get("max_steps", -1)
        is_late = get("eval_strategy") == "steps" and 0 < last < (get("eval_steps") or 0)
        for field, is_wrong, remedy in (
            ("eval_strategy", get("eval_strategy", "no") == "no", "steps or epoch"),
            ("prediction_loss_only", get("prediction_loss_only"), "false"),
            (
                "eval_steps",
                is_late and "training.max_steps" not in varied,
                f"at most training.max_steps={last}",
            ),
        ):
            if is_wrong and f"training.{field}" not in varied:
                text = (
                    f"judges each trial by the {self.task.main} of its last evaluation during the training, "
                    f"and there is none: set training.{field} to {remedy}"
                )
                raise PydanticCustomError("together", text, {"path": ("sweep", "trials")})

    def listed_runs(self) -> dict[str, tuple[list[Any], str]]:
        """Return the fields that ask for several runs: what each lists, and the command that makes these."""
        listed: dict[str, tuple[list[Any], str]] = {
            "variants": (sorted(self.variants), "methods"),
            "sweep.space": (sorted(self.sweep.space), "sweep"),
            "seeds": (list(self.seeds or ()), "compare"),
        }
        return {field: found for field, found in listed.items() if found[0]}

    def for_run(self, method: Method, seed: int, output_dir: str) -> "RunConfig":
        """Return one run of the comparison: `training` merged, without the fields that describe several runs.

        Full fine-tuning always trains dense weights: quantized ones cannot be trained.
        """
        own = self.arms.get(method, ArmOverride())
        dense = self.model.model_copy(update=DENSE)
        return self.model_copy(
            update={
                "method": method,
                "model": dense if method == "full" else self.model,
                "training": {**self.training, **own.training},
                "loraplus_lr_ratio": self.loraplus_lr_ratio if method == "lora" else None,
                "arms": {},
                "variants": {},
                "sweep": SweepSection(),
                "output_dir": output_dir,
                "seed": seed,
                "seeds": None,
            }
        )
