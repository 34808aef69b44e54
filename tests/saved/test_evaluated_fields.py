"""Every field that is typed for `evaluate` changes what is scored, is refused, or is said to have no effect.

A new field of the config fails here until it is in the table.
"""

import json
from pathlib import Path
from typing import Any

import pytest

from lora_hf.config import DataConfig, GenerationConfig, ModelConfig, RunConfig
from lora_hf.config.load import load_config
from lora_hf.errors import UserError
from lora_hf.models.load import load_model, load_tokenizer
from lora_hf.saved import evaluate as evaluating
from lora_hf.system import pick_device

NAMED = {
    *("method", "lora.r", "bottleneck.bottleneck_dim", "prompt_tuning.num_virtual_tokens"),
    *("training.max_steps", "retention", "arms", "variants", "sweep.space", "output_dir", "seed", "seeds"),
    *("overwrite", "loraplus_lr_ratio", "data.streaming", "data.split_seed", "data.validation_share"),
    *("data.max_train_samples", "data.max_eval_samples", "data.max_target_length"),
}
"""Fields that are said to have no effect where the config or the model has the length of outputs."""
# field: (value, what it needs beside it to have an effect)
TYPED: dict[str, tuple[str, str]] = {
    "task": ("text_to_text", ""),
    "method": ("full", ""),
    "lora.r": ("3", ""),
    "bottleneck.bottleneck_dim": ("3", ""),
    "prompt_tuning.num_virtual_tokens": ("3", ""),
    "training.max_steps": ("3", ""),
    "retention": ("embedded", ""),
    "arms": ("{full: {training: {learning_rate: 1e-4}}}", ""),
    "variants": ("{wide: {lora: {r: 16}}}", ""),
    "sweep.space": ("{lora.r: [2, 4]}", ""),
    "output_dir": ("elsewhere", ""),
    "seed": ("5", ""),
    "loraplus_lr_ratio": ("4", ""),
    "fast_paths": ("false", ""),
    "early_stopping_patience": ("2", ""),
    "seeds": ("[1, 2]", ""),
    "overwrite": ("true", ""),
    "data.dataset_name": ("OTHER", ""),
    "data.data_files": ("{train: train.jsonl, test: train.jsonl}", ""),
    "data.dataset_revision": ("v1", ""),
    "data.streaming": ("true", ""),
    "data.dataset_config": ("small", ""),
    "data.encoding": ("utf-16", ""),
    "data.delimiter": (";", ""),
    "data.escapechar": ("X", ""),
    "data.column_names": ("[a, b]", ""),
    "data.json_field": ("rows", ""),
    "data.explode": ("asked", ""),
    "data.parallel_files": ("[de, en]", ""),
    "data.dialogue_column": ("q", ""),
    "data.summary_column": ("a", ""),
    "data.id_column": ("ticket", ""),
    "data.on_bad_row": ("skip", "data.dialogue_column=sparse"),
    "data.split_seed": ("3", ""),
    "data.validation_share": ("0.2", ""),
    "data.test_share": ("0.2", ""),
    "data.turn_template": ("{speaker} - {text}", ""),
    "data.prompt": ("plain", ""),
    "data.source_language": ("de", ""),
    "data.target_language": ("de", ""),
    "data.max_source_length": ("16", ""),
    "data.max_target_length": ("3", ""),
    "data.max_train_samples": ("1", ""),
    "data.max_eval_samples": ("1", ""),
    "data.max_test_samples": ("1", ""),
    "generation.num_beams": ("2", ""),
    "generation.max_new_tokens": ("5", ""),
    "generation.min_new_tokens": ("2", ""),
    "generation.batch_size": ("2", ""),
    "generation.batch_tokens": ("99", ""),
    "generation.length_penalty": ("2.0", ""),
    "generation.early_stopping": ("true", ""),
    "generation.no_repeat_ngram_size": ("2", ""),
    "generation.repetition_penalty": ("1.5", ""),
    "generation.forced_bos_token_id": ("3", ""),
    "generation.forced_eos_token_id": ("3", ""),
}


@pytest.fixture
def scored(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> Any:
    """A function of overrides that returns what is scored by them, or the error, and what is said."""
    for folder, splits in (("data", ("train", "test")), ("other", ("train", "validation", "test"))):
        (tmp_path / folder).mkdir()
        for split in splits:
            rows = [
                {
                    "dialogue": f"{folder} {split}: shall we meet at {number}? " * 4,
                    "summary": f"They meet at {number}.",
                    **{"q": f"When, {number}?", "a": f"At {number}.", "ticket": f"T-{number}"},
                    **{"sparse": "Hi" * number, "asked": [{"one": "1"}, {"one": "2"}]},
                }
                for number in range(20)
            ]
            text = "".join(json.dumps(row) + "\n" for row in rows)
            (tmp_path / folder / f"{split}.jsonl").write_text(text)
    model, tokenizer = load_model(ModelConfig(), pick_device()), load_tokenizer(ModelConfig())
    monkeypatch.setattr(evaluating, "load_model", lambda *args: model)
    monkeypatch.setattr(evaluating, "load_tokenizer", lambda config: tokenizer)

    def score(overrides: list[str], generation: dict[str, Any]) -> tuple[str, str]:
        seen: list[str] = []

        def noted(config: GenerationConfig, model: Any, tokenizer: Any, *rest: Any) -> Any:
            seen.append(repr((config, rest)))
            return {}, []

        monkeypatch.setattr(evaluating, "score_model", noted)
        caplog.clear()
        data = {"dataset_name": str(tmp_path / "data")}
        overrides = [one.replace("OTHER", str(tmp_path / "other")) for one in overrides]
        try:
            config = load_config({"data": data, "generation": generation}, overrides)
            evaluating.report_unread(overrides, None, config)
            evaluating.evaluate(config, None)
        except UserError as error:
            seen.append(str(error))
        warnings = [one.getMessage() for one in caplog.records if one.levelname == "WARNING"]
        unread = "; ".join(one for one in warnings if "no effect here" in one)
        return repr((seen, [one for one in warnings if "no effect here" not in one])), unread

    return score


def test_every_field_of_the_config_is_in_the_table() -> None:
    sections = {"data": DataConfig, "generation": GenerationConfig}
    fields = {f"{name}.{field}" for name, section in sections.items() for field in section.model_fields}
    assert {name for name in TYPED if name.partition(".")[0] in sections} == fields
    assert {name.partition(".")[0] for name in TYPED} == {*RunConfig.model_fields} - {"model"}
    assert NAMED < {*TYPED}


def test_every_field_has_an_effect_or_is_said_to_have_none(scored: Any) -> None:
    known = {"max_new_tokens": 4}
    plain, _ = scored([], known)
    wrong = {}
    for field, (value, beside) in TYPED.items():
        before = scored([beside], known)[0] if beside else plain
        found, unread = scored([*filter(None, [beside]), f"{field}={value}"], known)
        if (found == before, field in unread) != (field in NAMED, field in NAMED):
            wrong[field] = (found == before, unread, found[-300:])
    assert not wrong


def test_the_length_of_outputs_may_follow_from_the_references_of_other_splits(scored: Any) -> None:
    for field in sorted(NAMED):
        if field.startswith("data."):
            assert scored([f"{field}={TYPED[field][0]}"], {})[1] == "", field
