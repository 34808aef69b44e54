"""What a model keeps of its base: its score on tasks that were not trained, as a share of the base's.

Fine-tuning may overwrite what the base could do (catastrophic forgetting; Luo et al., arXiv:2308.08747), and
LoRA is reported to forget less than full fine-tuning (Biderman et al. 2024, arXiv:2405.09673). The section
`retention` of a config lists the tasks. A run writes the outputs of its base before training and of the
trained model, so that every comparison of them is paired by example.
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lora_hf.config import RunConfig
from lora_hf.config.schema import DataConfig
from lora_hf.data.examples import Example, data_fingerprint
from lora_hf.data.prepare import encode_test
from lora_hf.data.sources import unpacked
from lora_hf.data.splits import load_split
from lora_hf.data.tokenize import TokenizedDialogues, generation_length
from lora_hf.errors import UserError
from lora_hf.evaluation.evaluate import generate_outputs
from lora_hf.evaluation.metrics import Scoring
from lora_hf.files import write_text
from lora_hf.models.languages import set_language
from lora_hf.models.load import check_run_lengths
from lora_hf.run_records import RetentionRow


@dataclass(frozen=True)
class RetentionTask:
    """A further task with its test split, tokenized."""

    name: str
    data: DataConfig
    scoring: Scoring
    test: list[Example]
    sources: list[list[int]]
    max_new_tokens: int


def load_retention(config: RunConfig, tokenizer: Any) -> list[RetentionTask]:
    """Load and tokenize the test splits of the section `retention`.

    Raises:
        UserError: as `load_split`, a metric needs a package that is missing, or as
            `check_run_lengths` for the longest text; with the task's name.
    """
    found = []
    for name, section in config.retention.items():
        try:
            scoring = Scoring(section.task, section.data.target_language)
            scoring.check()
            data = unpacked(section.data)
            test = load_split(data, "test")
            sources, _ = encode_test(test, tokenizer, data, section.task)
            lengths = TokenizedDialogues(test, tokenizer, data, f"retention.{name}").target_lengths
            length = generation_length(lengths, data.max_target_length)
            used = {"max_source_length": max(map(len, sources)), "max_target_length": length}
            check_run_lengths(config.model_copy(update={"data": data.model_copy(update=used)}))
        except UserError as error:
            raise UserError(f"retention.{name}: {error}") from error
        found.append(RetentionTask(name, data, scoring, test, sources, length))
    return found


def retention_fingerprint(tasks: Sequence[RetentionTask]) -> str:
    """Return a short hash of the texts of all tasks."""
    return data_fingerprint(*(task.test for task in tasks))


def write_outputs(
    config: RunConfig, model: Any, tokenizer: Any, tasks: Sequence[RetentionTask]
) -> dict[str, list[str]]:
    """Return what the model writes for each task, by name; the run's processes share the work."""
    outputs = {}
    for task in tasks:
        set_language(model, tokenizer, task.data)
        outputs[task.name] = generate_outputs(
            config.generation, model, tokenizer, task.sources, task.max_new_tokens, config.fast_paths
        )
    return outputs


def retention_rows(
    tasks: Sequence[RetentionTask], outputs: Mapping[str, list[str]], base: Mapping[str, list[str]]
) -> list[RetentionRow]:
    """Return the rows of retention.jsonl: for each example what the model and its base wrote."""
    return [
        {
            "task": task.name,
            "id": example.id,
            "source": example.dialogue,
            "references": list(example.references),
            "prediction": outputs[task.name][i],
            "base": base[task.name][i],
        }
        for task in tasks
        for i, example in enumerate(task.test)
    ]


def write_retention(file: Path, rows: Sequence[RetentionRow]) -> None:
    """Write retention.jsonl: one JSON object per line."""
    write_text(file, "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows))
