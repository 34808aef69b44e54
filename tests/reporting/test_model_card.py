"""The card: metadata that the Hub takes, every figure, only what is known, equal bytes for equal facts."""

import ast

import pytest
import yaml
from hub.store import card_mistakes
from huggingface_hub import ModelCard

from lora_hf.config import RunConfig
from lora_hf.evaluation.rouge import ROUGE_NAMES
from lora_hf.hub.upload import is_unedited
from lora_hf.reporting.card_facts import Base, CardFacts
from lora_hf.reporting.card_text import training_lines, why_no_peft
from lora_hf.reporting.model_card import model_card

RECORD = {
    "n_examples": 500,
    "trainable_parameters": 25,
    "total_parameters": 1000,
    "train_seconds": 61.2,
    "peak_memory_mib": 2048.0,
    "learning_rate": 1e-3,
    "seed": 1,
    "versions": {"torch": "2.13.0"},
}
for number, name in enumerate(ROUGE_NAMES, start=1):
    RECORD |= {name: number / 8, f"{name}_interval": [number / 16, number / 4], f"{name}_best": number / 5}
SUMMARIZED_DIALOGUE = {
    "id": "7",
    "dialogue": "A: Hi\nB: {{ 7 * 7 }}",
    "references": ["They\ngreet."],
    "prediction": "Greetings.",
}


def facts(**more):
    config = RunConfig.model_validate(
        {"data": {"dataset_name": "knkarthick/dialogsum", "dataset_revision": "d1"}}
    )
    return CardFacts(
        **{
            "repo_id": "anna/dialogues",
            "branch": None,
            "method": "lora",
            "base": Base("google/flan-t5-base", "0" * 40, "f" * 16),
            "adapter": {"r": 8, "lora_alpha": 16, "target_modules": ["q", "v"]},
            "manifest": {"prompt": "tldr", "max_source_length": 512},
            "config": config,
            "dataset": "knkarthick/dialogsum",
            "record": RECORD,
            "samples": [SUMMARIZED_DIALOGUE],
            "license": "apache-2.0",
            **more,
        }
    )


def metadata(card):
    return yaml.safe_load(card.split("---\n")[1])


def test_a_card_of_another_task_has_its_words_metrics_and_task():
    scores = {
        "accuracy": 0.75,
        "accuracy_interval": [0.7, 0.8],
        "macro_f1": 0.5,
        "macro_f1_interval": [0.4, 0.6],
    }
    record = {name: value for name, value in RECORD.items() if not name.startswith("rouge")}
    card = model_card(facts(record=record | scores | {"task": "classification"}))
    data = metadata(card)
    assert data["pipeline_tag"] == "text-classification" and data["metrics"] == ["accuracy", "macro_f1"]
    (result,) = data["model-index"][0]["results"]
    assert {metric["type"]: metric["value"] for metric in result["metrics"]} == {
        "accuracy": 0.75,
        "macro_f1": 0.5,
    }
    assert "for classifying texts" in card and "500 test texts" in card and "| accuracy | 0.7500 |" in card
    assert "ROUGE" not in card and "ummar" not in card.split("# dialogues")[1].split("## Samples")[0]
    assert not card_mistakes(card)
    scores = {"ter": 134.8, "ter_interval": [120.0, 150.0]}
    task = {"metrics": ["ter"], "source": "sentence"}
    card = model_card(facts(record=record | scores | {"task": task}))
    assert "{sentence}\n\nTL;DR" in card and "{dialogue}" not in card
    assert "TER (lower is better), from 0 up, on 500 test sentences" in card and "0 to 100" not in card


def test_every_rouge_figure_is_in_the_model_index_with_its_data_and_interval():
    (result,) = metadata(model_card(facts()))["model-index"][0]["results"]
    assert result["dataset"] == {
        "name": "knkarthick/dialogsum",
        "type": "knkarthick/dialogsum",
        "split": "test",
        "revision": "d1",
    }
    metrics = {metric["config"]: metric for metric in result["metrics"]}
    assert {*metrics} == {*ROUGE_NAMES} | {f"{name}_best" for name in ROUGE_NAMES}
    for name, metric in metrics.items():
        assert (metric["type"], metric["value"]) == ("rouge", RECORD[name])
    assert metrics["rouge2"]["args"] == {"interval_95": [0.125, 0.5]}


def test_the_hubs_own_class_reads_it_back_and_equal_facts_give_equal_bytes():
    text = model_card(facts())
    card = ModelCard(text)
    assert card.data.base_model == "google/flan-t5-base" and len(card.data.eval_results) == 8
    assert str(card) == text == model_card(facts())
    assert card_mistakes(text) == []
    assert is_unedited(text) and not is_unedited(text.replace("Intended", "Other"))


def test_a_card_says_what_is_wrong_with_the_data():
    warning = "36 % of the summaries have tokens that the tokenizer does not know"
    assert f"**Data:** {warning}." in model_card(facts(record=RECORD | {"data_warnings": [warning]}))
    assert "**Data:**" not in model_card(facts())


def test_what_others_wrote_is_data_and_not_a_template():
    assert "> B: {{ 7 * 7 }}" in model_card(facts())


@pytest.mark.parametrize(
    ("base", "absent", "expected"),
    [
        (Base("embedded"), "base_model", "the tiny T5 that comes with lora_hf"),
        (
            Base(None, None, "f" * 16),
            "base_model",
            "no known name on the Hub (fingerprint `ffffffffffffffff`)",
        ),
        (
            Base("google/flan-t5-base", "abc"),
            None,
            "(https://huggingface.co/google/flan-t5-base) at revision `abc`",
        ),
    ],
)
def test_a_base_is_named_as_others_can_find_it(base, absent, expected):
    text = model_card(facts(base=base))
    assert expected in text and absent not in metadata(text)


def test_a_card_without_a_run_has_no_scores_and_data():
    text = model_card(facts(config=None, dataset=None, record={}, samples=[], license=None, manifest={}))
    assert not {"model-index", "metrics", "datasets", "license", "model_name"} & {*metadata(text)}
    for word in ("Scores", "Samples", "config.yaml", "prompt:"):
        assert word not in text


def test_a_card_gives_the_settings_that_the_adapter_was_scored_with():
    assert "options = {" not in model_card(facts())
    manifest = {"prompt": "tldr", "max_new_tokens": 40, "generation": {"num_beams": 2, "length_penalty": 0.5}}
    (line,) = (x for x in model_card(facts(manifest=manifest)).splitlines() if x.startswith("options = "))
    written = {"num_beams": 2, "do_sample": False, "length_penalty": 0.5, "early_stopping": False}
    assert ast.literal_eval(line.removeprefix("options = ")) == written | {"max_new_tokens": 40}


def test_a_card_of_a_multilingual_model_names_its_languages_and_how_peft_gets_them():
    assert "tgt_lang" not in model_card(facts())
    manifest = {"prompt": "plain", "source_language": "ron_Latn", "target_language": "deu_Latn"}
    text = " ".join(model_card(facts(manifest=manifest)).split())
    assert "with the source language `ron_Latn` and the target language `deu_Latn`. lora_hf sets both" in text
    assert "as `forced_bos_token_id` for mBART-50, M2M100 and NLLB" in text
    alone = model_card(facts(manifest={"target_language": "deu_Latn"}))
    assert "with the target language `deu_Latn`. lora_hf sets it by itself" in " ".join(alone.split())


@pytest.mark.parametrize(
    ("more", "why"),
    [
        ({}, ""),
        ({"method": "bottleneck", "adapter": {}}, "it does not read bottleneck layers in this form"),
        ({"adapter": {"layer_replication": [[0, 2]]}}, "it does not replicate"),
        ({"manifest": {"base_formats": ["nf4"]}}, "a base stored as nf4"),
    ],
)
def test_the_card_mentions_peft_only_if_peft_can_load_the_files(more, why):
    found = facts(**more)
    assert why in why_no_peft(found) if why else why_no_peft(found) == ""
    if found.adapter.get("r") or not found.adapter:
        assert ("from peft import" in model_card(found)) == (not why)


@pytest.mark.parametrize(
    ("adapter", "overrides", "words"),
    [
        ({"peft_type": "LORA"}, {}, "LoRA weights"),
        ({"peft_type": "LORA", "use_rslora": True}, {}, "rsLoRA weights"),
        ({"peft_type": "LORA", "use_dora": True, "use_rslora": True}, {}, "DoRA and rsLoRA weights"),
        ({"peft_type": "VERA"}, {"use_vera": True}, "VeRA weights"),
        ({"peft_type": "LORA"}, {"use_lora_fa": True}, "LoRA-FA weights"),
    ],
)
def test_the_method_is_named_by_its_class(adapter: dict, overrides: dict, words: str) -> None:
    config = RunConfig.model_validate({"lora": overrides})
    assert CardFacts("me/run", None, "lora", Base(), adapter=adapter, config=config).weights == words


def test_a_vera_adapter_has_a_rank_and_no_alpha() -> None:
    """PEFT's VERA config has no lora_alpha."""
    adapter = {"peft_type": "VERA", "r": 6, "target_modules": ["q", "v"]}
    config = RunConfig.model_validate({"lora": {"use_vera": True}})
    lines = dict(training_lines(CardFacts("me/run", None, "lora", Base(), adapter=adapter, config=config)))
    assert lines["rank r"] == "6" and "lora_alpha" not in lines
