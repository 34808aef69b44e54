"""Texts that are far from what the embedded model knows are named, for that model alone."""

import json
from pathlib import Path

import pytest
from support.inputs import FEW, shared_data
from support.letters import letters
from support.server_process import save_adapters

import lora_hf
from lora_hf import cli
from lora_hf.config import DataConfig, ModelConfig
from lora_hf.data.familiar import count_far, far_note
from lora_hf.data.splits import load_split
from lora_hf.models.load import load_tokenizer
from lora_hf.saved.find_adapter import find_adapter
from lora_hf.saved.merge import merge
from lora_hf.serving.engine import Engine

PARCEL = "Customer: My parcel has not arrived.\nAgent: Sorry, I will send a new one tomorrow."
RIVER = "Heute ist der Schiffsverkehr auf der Donau wegen Hochwasser gesperrt."
NOTE = "far from the invented dialogues that the embedded model knows"


def test_the_embedded_sample_is_near_and_other_texts_are_far() -> None:
    tokenizer = load_tokenizer(ModelConfig())
    sample = [example.dialogue for example in load_split(DataConfig(), "test")]
    assert count_far(sample, tokenizer) <= len(sample) // 100
    assert count_far([PARCEL, RIVER, "A: Lunch at noon?\nB: Yes."], tokenizer) == 3
    assert count_far([RIVER], letters()) == count_far([], tokenizer) == 0
    assert far_note(0, 3) == ""


def test_real_dialogues_are_far() -> None:
    lines = (shared_data("dialogsum") / "test.jsonl").read_text().splitlines()
    real = [json.loads(line)["dialogue"] for line in lines[::3]]  # three references of each
    assert len(real) == 500 and count_far(real, load_tokenizer(ModelConfig())) >= 0.99 * len(real)


def test_predictions_and_a_server_say_so_and_near_texts_are_not_named(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    adapter = save_adapters(tmp_path) / "a"
    near = [example.dialogue for example in load_split(DataConfig(max_test_samples=3), "test")]
    model = lora_hf.load(adapter)
    model.generate(near, max_new_tokens=1)
    assert NOTE not in caplog.text
    model.generate([*near, PARCEL], max_new_tokens=1)
    assert f"1 of 4 texts are {NOTE}" in caplog.text
    caplog.clear()
    merge(str(adapter), tmp_path / "merged", None, None)
    lora_hf.load(tmp_path / "merged").generate([PARCEL], max_new_tokens=1)
    assert f"the text is {NOTE}" in caplog.text
    assert "a toy that knows invented dialogues alone" in (tmp_path / "merged" / "README.md").read_text()
    caplog.clear()
    engine = Engine(ModelConfig(), {"a": find_adapter(str(adapter))})
    for text in (*near, PARCEL, RIVER):
        engine.encode(engine.adapters["a"].data, text, adapter="a")
    engine.close()
    assert [one for one in caplog.messages if NOTE in one] == [
        f"a request: {far_note(1, 1)} (further requests are not named)"
    ]


def test_a_run_of_the_embedded_model_on_other_texts_says_what_it_is_good_for(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    rows = [{"dialogue": f"{PARCEL} Order {n}.", "summary": f"Parcel {n} is late."} for n in range(30)]
    (tmp_path / "talks.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    words = ["train", "--config", "quickstart", *FEW, "method=base", "data.max_test_samples=20"]
    for data in (f"data.dataset_name={tmp_path / 'talks.jsonl'}", "data.dataset_name=embedded"):
        assert cli.run([*words, data, f"output_dir={tmp_path / data[-8:]}"], debug=False) == 0
        said = " ".join(capsys.readouterr().err.split())
        assert ("warning: the score rests on" in said) == ("talks" in data)
        assert (f"most test dialogues are {NOTE}: it can show how" in said) == ("talks" in data)
        assert cli.run(["doctor", *words[1:], data], debug=False) in (0, 1)
        assert (NOTE in " ".join(capsys.readouterr().out.split())) == ("talks" in data)
