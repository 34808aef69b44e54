"""Messages for mistakes in a config: the key as written, its value, what is accepted, the nearest name.

Pydantic finds the mistakes; here each of its error types gets a short phrase that follows `key=value`.
"""

import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from difflib import get_close_matches
from typing import Any, NamedTuple

import yaml
from pydantic import ValidationError
from pydantic_core import ErrorDetails

from lora_hf.config.schema import METHOD_CHOICES, RunConfig, Section
from lora_hf.config.sweep import SPACE, Range
from lora_hf.config.task import Task
from lora_hf.config.training_fields import DROPPED, ELSEWHERE, FIXED, training_fields
from lora_hf.errors import UserError

KeyPath = tuple[str | int, ...]
TRAINING = "training"
TOKEN = re.compile(r"\bhf_[A-Za-z0-9]{16,}")
"""A token of the Hub. One in the wrong place must not end up in a log."""


class Mistake(NamedTuple):
    """One mistake: its place in the config, and its message."""

    path: KeyPath
    text: str


PHRASES = {
    "int_type": "is not an integer",
    "float_type": "is not a number",
    "finite_number": "is not a finite number",
    "bool_type": "is not true or false",
    "string_type": "is not text",
    "string_too_short": "is empty",
    "too_short": "is empty",
    "tuple_type": "is not a list",
    "dict_type": "is not a section of keys",
    "model_type": "is not a section of keys",
    "greater_than_equal": "must be at least {ge}",
    "greater_than": "must be above {gt}",
    "less_than": "must be below {lt}",
    "less_than_equal": "must be at most {le}",
    "literal_error": "is not {expected}",
    "value_error": "{error}",
}
# Common other names, too different in spelling for the nearest match to find.
OTHER_NAMES = {
    "lr": "training.learning_rate",
    "epochs": "training.num_train_epochs",
    "evaluation_strategy": "training.eval_strategy",
    "group_by_length": "training.train_sampling_strategy",
    "warmup_ratio": "training.warmup_steps",
    "overwrite_output_dir": "overwrite",
    "no_cuda": "training.use_cpu",
    "rank": "lora.r",
    "torch_dtype": "model.dtype",
    "quantization": "model.load_in_4bit",
    "batch_size": "training.per_device_train_batch_size",
    "train_batch_size": "training.per_device_train_batch_size",
    "base_model": "model.model_name_or_path",
    "model_name": "model.model_name_or_path",
    "base": "model.model_name_or_path",
    "dataset": "data.dataset_name",
    "steps": "training.max_steps",
    "beams": "generation.num_beams",
    "max_length": "generation.max_new_tokens",
    "grad_accum": "training.gradient_accumulation_steps",
    "gradient_clipping": "training.max_grad_norm",
    "scheduler": "training.lr_scheduler_type",
    "quantization_config": "model.load_in_4bit",
    "source_prefix": "data.prompt",
    "prompt_template": "data.prompt",
    "text_column": "data.dialogue_column",
    "path": "data.dataset_name",
    "data_path": "data.dataset_name",
    "dataset_path": "data.dataset_name",
    "file": "data.dataset_name",
    "train_file": "data.data_files",
    "validation_file": "data.data_files",
    "test_file": "data.data_files",
    "cutoff_len": "data.max_source_length",
    "max_seq_length": "data.max_source_length",
    "max_input_length": "data.max_source_length",
    "max_source_len": "data.max_source_length",
    "max_target_len": "data.max_target_length",
    "max_output_length": "data.max_target_length",
    "per_device_batch_size": "training.per_device_train_batch_size",
    "sequence_len": "data.max_source_length",
    "source_lang": "data.source_language",
    "target_lang": "data.target_language",
    "model_revision": "model.revision",
    "lora_r": "lora.r",
    "lora_rank": "lora.r",
    "lora_target": "lora.target_modules",
    "micro_batch_size": "training.per_device_train_batch_size",
    "num_epochs": "training.num_train_epochs",
    "optimizer": "training.optim",
    "prefix": "data.prompt",
}
_BY_PEFT = "it is in PEFT's files and has no use in a config: remove it"
_BY_TOKENIZER = "the tokenizer is read from the model's folder: remove it"
_BY_COLLATOR = "a batch is padded to its longest row, and the loss leaves padding out: remove it"
_BY_SEARCH = "nothing is sampled, so that a run can be repeated: remove it, or set generation.num_beams"
NO_FIELDS: dict[str, str] = {
    **dict.fromkeys(["bias", "task_type", "peft_type", "inference_mode", "fan_in_fan_out"], _BY_PEFT),
    **dict.fromkeys(["tokenizer_name", "use_fast_tokenizer"], _BY_TOKENIZER),
    **dict.fromkeys(["padding", "pad_to_max_length", "ignore_pad_token_for_loss"], _BY_COLLATOR),
    **dict.fromkeys(["do_sample", "temperature", "top_p", "top_k"], _BY_SEARCH),
    "device_map": "a model is loaded onto one device, which PyTorch chooses: remove it",
    "trust_remote_code": "code of a repository is never run: remove it",
    "token": f"it {ELSEWHERE['hub_token']}",
    "cache_dir": "set the environment variable HF_HOME",
    "packing": "rows are not joined, as an encoder would read one as part of another: remove it",
    "shuffle": "training rows are shuffled by `seed`: remove it",
}
"""Fields of other tools that have no equivalent here, and the reason."""


OTHER_METHODS = {
    "qlora": "method: lora, with model.load_in_4bit: true",
    "dora": "method: lora, with lora.use_dora: true",
    "rslora": "method: lora, with lora.use_rslora: true",
    "qalora": "method: lora, with lora.use_qalora: true",
    "pissa": "method: lora, with lora.init_lora_weights: pissa",
    "loftq": "method: lora, with lora.init_lora_weights: loftq and model.load_in_4bit: true",
    "adapter": "method: bottleneck",
    "adapters": "method: bottleneck",
    "prompt": "method: prompt_tuning",
    "prefix": "method: prompt_tuning",
    "prefix_tuning": "method: prompt_tuning",
    "finetune": "method: full",
    "full_finetuning": "method: full",
    "full_fine_tuning": "method: full",
    "fine_tuning": "method: full",
    "finetuning": "method: full",
    "fft": "method: full",
    "sft": "method: full, or method: lora",
    "none": "method: base",
}
"""Common names of methods, and how they are chosen here."""
MAIN_FIELDS = {"model": "model_name_or_path", "data": "dataset_name"}
"""The field of a section that its name alone stands for in other tools."""


@contextmanager
def field_of_section(section: str) -> Iterator[None]:
    """Name the field of a `UserError` from below the config as the YAML does: `lora.r`, not `r`."""
    try:
        yield
    except UserError as error:
        raise error.in_section(section) from error


def dotted(path: KeyPath) -> str:
    """Return a key as the command line writes it: `lora.r`, `seeds[1]`."""
    name = ""
    for part in path:
        name += f"[{part}]" if isinstance(part, int) else f".{part}" if name else part
    return name


def shown(value: Any) -> str:
    """Return a value as short YAML on one line. Tokens are hidden."""
    if value is None or isinstance(value, bool):
        return {None: "null", True: "true", False: "false"}[value]
    if isinstance(value, (dict, list, tuple)):
        plain = list(value) if isinstance(value, tuple) else value
        try:
            text = yaml.safe_dump(plain, default_flow_style=True, width=10_000, sort_keys=False).strip()
        except yaml.YAMLError:  # it holds an object, such as a logits processor
            text = repr(value)
    else:
        text = repr(value)
    text = TOKEN.sub("hf_***", text)
    return text if len(text) <= 80 else f"{text[:77]}..."


def shown_at(path: KeyPath, value: Any) -> str:
    """Return the value of a key as `shown`; whatever is named a token is hidden."""
    return "'***'" if value and str(path[-1]).lower().endswith("token") else shown(value)


def wrong_value(path: KeyPath, value: Any, phrase: str) -> Mistake:
    """Return a mistake such as `lora.r='eight' is not an integer`."""
    return Mistake(path, f"{dotted(path)}={shown_at(path, value)} {phrase}")


def near_choice(value: Any, choices: Sequence[str]) -> str:
    """Return `; did you mean 'lora'?`, or an empty text if no choice is near."""
    if not isinstance(value, str) or not value:
        return ""
    lower = value.lower()
    longer = [choice for choice in choices if choice.startswith(lower)]  # adam: adamw_torch
    near = longer or get_close_matches(lower, choices, n=1, cutoff=0.5)
    return f"; did you mean {near[0]!r}?" if near else ""


def unknown_key(path: KeyPath, value: Any) -> Mistake:
    """Return `unknown key 'lora.alpha' (value 16); did you mean 'lora.lora_alpha'?`."""
    text = f"unknown key {dotted(path)!r} (value {shown_at(path, value)})"
    if isinstance(path[-1], str) and "." in path[-1]:
        section, _, leaf = path[-1].rpartition(".")
        nested = f"{section}: {{{leaf}: {shown_at(path, value)}}}"
        return Mistake(path, f"{text}; in a file, keys are nested: `{nested}`")
    if reason := NO_FIELDS.get(str(path[-1])) or _reason_of_training(str(path[-1]), value):
        return Mistake(path, f"{text}; {reason}")
    near = " or ".join(map(repr, _right_names(path)))
    return Mistake(path, f"{text}; did you mean {near}?" if near else text)


def _reason_of_training(name: str, value: Any) -> str:
    """Return why a field of the Trainer would be refused in `training:` too, or an empty text."""
    if name in OTHER_NAMES or _same_leaf(name, list(section_fields())):
        return ""
    if name in FIXED and value != FIXED[name][0]:
        return f"{TRAINING}.{name} {FIXED[name][1]}"
    if name in ELSEWHERE:
        return f"it {ELSEWHERE[name]}"
    return f"it is no longer a field of Transformers: {DROPPED[name]}" if name in DROPPED else ""


def mistakes_of(error: ValidationError, data: Any) -> list[Mistake]:
    """Return Pydantic's errors as mistakes, one per key."""
    return _mistakes(error.errors(), data)


def _mistakes(errors: Sequence[Any], data: Any) -> list[Mistake]:
    return list({mistake.path: mistake for mistake in (_mistake(error, data) for error in errors)}.values())


def of_call(section: type[Section], error: ValidationError, fields: dict[str, Any]) -> UserError:
    """Return the error of a section that was made in Python, in the words of `load_config`."""
    homes: dict[Any, KeyPath] = {field.annotation: (name,) for name, field in RunConfig.model_fields.items()}
    at = (homes | {Task: ("task",), Range: SPACE}).get(section, ())
    data: Any = {key: one.model_dump() if isinstance(one, Section) else one for key, one in fields.items()}
    for part in reversed(at):
        data = {part: data}
    mistakes = _mistakes([one | {"loc": (*at, *one["loc"])} for one in error.errors()], data)
    return UserError("\n".join(mistake.text for mistake in mistakes))


def phrase_of(error: ErrorDetails) -> str:
    """Return the phrase that follows a field and its value, such as `is not an integer`."""
    return PHRASES[error["type"]].format(**error.get("ctx", {})) if error["type"] in PHRASES else error["msg"]


def _value_at(data: Any, path: KeyPath) -> Any:
    """Return what a config writes at a place, or else the default there."""
    try:
        for part in path:
            data = data[part]
    except KeyError:
        data = RunConfig()
        for part in path:
            data = getattr(data, str(part))
    return data


def _mistake(error: ErrorDetails, data: Any) -> Mistake:
    path: KeyPath = error["loc"]
    value, context = error["input"], error.get("ctx", {})
    if error["type"] == "extra_forbidden":
        return unknown_key(path, value)
    if error["type"] == "missing":
        return Mistake(path, f"{dotted(path)} is missing")
    if path and path[-1] == "[key]":  # a key of `arms`, or a key that is not text
        return unknown_key(path[:-1], _value_at(data, path[:-1]))
    if error["type"] == "together":  # two fields that do not go together; the error names the one to change
        return wrong_value(context["path"], _value_at(data, context["path"]), error["msg"])
    cause = context.get("error")
    if isinstance(cause, UserError) and cause.field:  # raised below the config, which knows no sections
        return Mistake((*path, re.split(r"\W", cause.field)[0]), str(cause.in_section(dotted(path))))
    phrase = phrase_of(error)
    if error["type"] == "string_type" and isinstance(value, (int, float)):
        phrase += f"; put it in quotes: {str(shown(value))!r}"
    if error["type"] == "string_type" and value is None:
        phrase += "; for no prompt, write plain" if path[-1] == "prompt" else '; for an empty text, write ""'
    phrase += _hint(path, value, error["type"])
    if error["type"] == "literal_error":
        choices = re.findall(r"'([^']*)'", context["expected"])
        near = "" if path == ("method",) and "; write" in phrase else near_choice(value, choices)
        phrase = phrase.replace("True", "true") + near
    return wrong_value(path, value, phrase)


def _hint(path: KeyPath, value: Any, kind: str) -> str:
    """Return what would do in place of a value of a wrong form, or an empty text."""
    if path == ("method",) and (other := _other_method(str(value))):
        return f"; write {other}"
    if kind == "model_type" and isinstance(value, str) and dotted(path) in MAIN_FIELDS:
        return f"; write {dotted(path)}: {{{MAIN_FIELDS[dotted(path)]}: {value}}}"
    if (
        kind == "string_type" and isinstance(value, dict) and [*value.values()] == [None]
    ):  # prompt: {dialogue}
        return f"; text in braces needs quotes: '{{{next(iter(value))}}}'"
    if kind == "tuple_type" and isinstance(value, str | int) and "," not in str(value):
        return f"; write [{value}]"
    if not isinstance(value, str) or "," not in value:
        return ""
    if kind == "tuple_type":
        return f"; write [{', '.join(part.strip() for part in value.split(','))}]"
    if kind in ("int_type", "float_type"):
        return "; a run takes one value: `lora-hf sweep` and sweep.space train with several"
    return ""


def _other_method(value: str) -> str:
    """Return how a method is chosen that is written in another way; empty if none is known."""
    name = re.sub(r"[\s-]+", "_", value.strip().lower())
    return f"method: {name}" if name in METHOD_CHOICES else OTHER_METHODS.get(name, "")


def section_fields(model: type[Section] = RunConfig, prefix: str = "") -> dict[str, Any]:
    """Return every dotted key of the models with its annotation: `{'lora.r': int, ...}`."""
    fields: dict[str, Any] = {}
    for name, field in model.model_fields.items():
        fields[prefix + name] = field.annotation
        if isinstance(field.annotation, type) and issubclass(field.annotation, Section):
            fields |= section_fields(field.annotation, f"{prefix}{name}.")
    return fields


def _right_names(path: KeyPath) -> list[str]:
    """Return dotted names that the user may have meant: the key elsewhere, its other name, or a near one."""
    leaf, section = str(path[-1]), dotted(path[:-1])
    if path[0] == "arms" and len(path) <= 3:
        keys = METHOD_CHOICES if len(path) == 2 else [TRAINING]
        return [f"{section}.{key}" for key in get_close_matches(leaf, keys, n=1, cutoff=0.5)]
    if leaf in OTHER_NAMES:
        return [OTHER_NAMES[leaf]]
    ours = list(section_fields())
    return _same_leaf(leaf, ours) or _near_names(leaf, section, [*ours, *training_names()])


def meant_by(key: str, sections: tuple[str, ...]) -> str:
    """Return `did you mean 'generation.num_beams'?` for a key that some sections have, or an empty text."""
    near = [name for name in _right_names((key,)) if name.startswith(sections)]
    return f"did you mean {near[0]!r}?" if near else ""


def training_names() -> list[str]:
    """Return the fields of `training:` as `training.<name>`."""
    return [f"{TRAINING}.{name}" for name in training_fields()]


def _leaf(name: str) -> str:
    return name.rpartition(".")[2]


def _same_leaf(leaf: str, names: list[str]) -> list[str]:
    return [name for name in names if _leaf(name) == leaf]


def _near_names(leaf: str, section: str, names: list[str]) -> list[str]:
    """Return the same key in `training`, a near one of this section, one with the word, or a near one."""
    if exact := _same_leaf(leaf, names):
        return exact
    home = TRAINING if section.endswith(f".{TRAINING}") else section  # arms.full.training has training's keys
    siblings = {_leaf(name): _leaf(name) for name in names if name.rpartition(".")[0] == home}
    # `lora.alfa` is nearer to alpha than to lora_alpha
    siblings |= {name.removeprefix(f"{home}_"): name for name in siblings}
    if near := get_close_matches(leaf, siblings, n=1, cutoff=0.5):
        return [f"{section}.{siblings[near[0]]}" if section else siblings[near[0]]]
    holding = [name for name in names if len(leaf) > 3 and f"_{leaf}_" in f"_{_leaf(name)}_"]
    leaves = {_leaf(name): name for name in names}
    return holding[:2] or [leaves[near] for near in get_close_matches(leaf, leaves, n=1, cutoff=0.8)]
