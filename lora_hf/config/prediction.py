"""Settings with which a trained model writes as it was scored: prompt, lengths, generation.

They are part of every saved adapter, of a merged folder and of a model that was trained whole, in the
manifest `lora_hf.json`.
"""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Self

from pydantic import ValidationError
from pydantic_core import ErrorDetails

from lora_hf.config.problems import phrase_of, shown
from lora_hf.config.schema import DataConfig, GenerationConfig, RunConfig
from lora_hf.config.task import SUMMARIZATION, Task, task_of
from lora_hf.errors import UserError, did_you_mean

NEW_TOKENS = 128
"""Length of a summary where neither a run nor a manifest gives one."""
PROMPT_FIELDS = ("prompt", "max_source_length", "source_language", "target_language")
"""Fields of `data` in the manifest; those that are null are left out."""
COLUMN_FIELDS = ("dialogue_column", "summary_column", "id_column", "turn_template", "explode")
"""Fields of `data` by which texts are read; the manifest has those that are not the default."""
RECORDED = {"prompt", "max_source_length", "max_new_tokens", "generation"}
"""Entries that every manifest of the present version has."""
BEAM_FIELDS = ("length_penalty", "early_stopping")
"""Fields of `generation` that mean something with several beams only."""
AGAIN = "correct it there, or save or download the adapter again"
SPEED_FIELDS = {"batch_size", "batch_tokens"}
"""Fields of `generation` that do not shape a summary."""


@dataclass(frozen=True)
class PredictionSettings:
    """The form in which a model reads texts, and its generation settings."""

    data: DataConfig = DataConfig()
    """Its `prompt` and `max_source_length` are used."""
    max_new_tokens: int = NEW_TOKENS
    generation: GenerationConfig = GenerationConfig()
    task: Task = SUMMARIZATION

    @classmethod
    def of_run(cls, config: RunConfig, max_new_tokens: int) -> Self:
        """Return the settings that a run scores its model with."""
        return cls(config.data, max_new_tokens, config.generation, config.task)

    @classmethod
    def read(cls, manifest: Mapping[str, Any], file: Path, **data: Any) -> Self:
        """Return the settings in a manifest; an entry that it lacks has its default.

        Args:
            manifest: the content of `lora_hf.json`.
            file: where it was read, for errors.
            data: further fields of `data`.

        Raises:
            UserError: a value is not valid.
        """
        prompt = {name: manifest[name] for name in PROMPT_FIELDS + COLUMN_FIELDS if name in manifest}
        length, own = manifest.get("max_new_tokens") or NEW_TOKENS, manifest.get("generation") or {}
        try:
            if not isinstance(own, dict):
                raise UserError(f"{file}: generation={shown(own)} is not an object; {AGAIN}")
            # null says that nobody set the length: it may be lowered to what a model can take
            generation = GenerationConfig.model_validate(
                own | {"max_new_tokens": manifest.get("max_new_tokens") or None}
            )
            asked = DataConfig.model_validate(prompt | data)
            return cls(asked, length, generation, _task_in(manifest, file))
        except ValidationError as error:
            raise UserError(f"{file}: {'; '.join(map(_wrong_field, error.errors()))}; {AGAIN}") from None

    def manifest(self) -> dict[str, Any]:
        """Return the entries of `lora_hf.json`."""
        shaping = self.generation.model_dump(mode="json", exclude={*SPEED_FIELDS, "max_new_tokens"})
        prompt = self.data.model_dump(include={*PROMPT_FIELDS}, exclude_none=True)
        columns = self.data.model_dump(include={*COLUMN_FIELDS}, exclude_defaults=True)
        task = {} if self.task == SUMMARIZATION else {"task": self.task.written()}
        return task | prompt | columns | {"max_new_tokens": self.max_new_tokens, "generation": shaping}

    def changed(self, where: str, changes: Mapping[str, Any]) -> Self:
        """Return the settings with other fields of `generation`.

        Args:
            where: who asks, for errors, such as `generate`.
            changes: names of fields and their values; null as `max_new_tokens` keeps the length.

        Raises:
            UserError: an unknown field, a wrong value, or one that has no effect.
        """
        own = self.generation.model_dump() | {"max_new_tokens": self.max_new_tokens}
        given = {key: value for key, value in changes.items() if (key, value) != ("max_new_tokens", None)}
        if given.get("num_beams") == 1:
            own = {key: value for key, value in own.items() if key not in BEAM_FIELDS}
        try:
            generation = GenerationConfig.model_validate(own | given)
        except ValidationError as error:
            raise UserError(f"{where}: {'; '.join(map(_wrong_field, error.errors()))}") from None
        for name in BEAM_FIELDS if generation.num_beams == 1 else ():
            if getattr(generation, name) != GenerationConfig.model_fields[name].default and name in given:
                raise UserError(f"{where}: {name}={shown(given[name])} has no effect with num_beams=1")
        length = generation.max_new_tokens or self.max_new_tokens
        return replace(self, generation=generation, max_new_tokens=length)


def _task_in(manifest: Mapping[str, Any], file: Path) -> Task:
    try:
        return task_of(manifest)
    except ValueError:
        raise UserError(
            f"{file}: task={shown(manifest['task'])} is neither a known task nor its fields; {AGAIN}"
        ) from None


def _wrong_field(fault: ErrorDetails) -> str:
    """Describe a wrong field, in the words of a config's mistakes."""
    if fault["type"] == "together":
        name = fault["ctx"]["path"][-1]
        return f"{name}={shown(fault['input'][name])} {fault['msg']}"
    name, value = str(fault["loc"][0]), fault["input"]
    if fault["type"] == "extra_forbidden":
        known = list(GenerationConfig.model_fields)
        hint = did_you_mean(name, known) or f" Known are {', '.join(known)}."
        return f"unknown option {name}={shown(value)}.{hint}"
    return f"{name}={shown(value)} {phrase_of(fault)}"
