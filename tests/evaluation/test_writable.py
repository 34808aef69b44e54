"""References that a tokenizer cannot write are named before training, by the main score that they cost."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
from support.inputs import FEW
from support.letters import letters
from tokenizers import normalizers

from lora_hf import cli
from lora_hf.config import DataConfig, ModelConfig
from lora_hf.config.model import ASSETS
from lora_hf.config.task import TASKS
from lora_hf.evaluation.metrics import Scoring
from lora_hf.evaluation.writable import unwritable
from lora_hf.models.load import load_tokenizer


def uncased() -> Any:
    tokenizer = letters()
    tokenizer.backend_tokenizer.normalizer = normalizers.Lowercase()
    return tokenizer


@pytest.mark.parametrize(
    ("task", "references", "says"),
    [
        (
            "classification",
            [["Yes"], ["no"], ["No"]],
            "2 of 3 test labels cannot be written by this tokenizer, such as 'Yes', which becomes 'yes': the "
            "best possible accuracy on them is 0.0000",
        ),
        ("classification", [["yes"], ["no"], []], ""),
        ("classification", [["Yes", "yes"]], ""),  # another reference can be written
        ("summarization", [["Anna Comes."]], ""),  # ROUGE compares lower case
        ("question_answering", [["Paris"]], ""),
        (
            "translation",
            [[f"{'so ' * 300}weit Herr Maier{' und so' * 300}."]],
            "1 of 1 test translations cannot be written by this tokenizer, such as 'so so so so so weit Herr",
        ),
    ],
)
def test_what_an_uncased_tokenizer_loses_counts_by_the_main_score(
    task: str, references: list[list[str]], says: str
) -> None:
    found = unwritable(Scoring(TASKS[task]), references, uncased(), DataConfig())
    assert found.text.startswith(says) and bool(found.text) == bool(says) == found.is_fault


def test_a_cased_tokenizer_that_keeps_every_text_is_silent() -> None:
    references = [["Yes  and\tno"], ["½"]]
    scoring, tokenizer = Scoring(TASKS["classification"]), load_tokenizer(ModelConfig())
    assert not unwritable(scoring, references, tokenizer, DataConfig()).text


def test_the_doctor_and_the_run_name_them(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    shutil.copytree(ASSETS, tmp_path / "base")
    file = tmp_path / "base" / "tokenizer.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | {"normalizer": {"type": "Lowercase"}}))
    for split in ("train", "validation", "test"):
        rows = [{"text": f"{split} {n} is good", "label": ("Yes", "No")[n % 2]} for n in range(40)]
        (tmp_path / f"{split}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    words = ["--config", "quickstart", *FEW, "task=classification", f"data.dataset_name={tmp_path}"]
    words += [f"model.model_name_or_path={tmp_path / 'base'}", f"output_dir={tmp_path / 'run'}"]
    words += ["data.prompt={dialogue}", "method=base"]
    says = "test labels cannot be written by this tokenizer, such as 'Yes', which becomes 'yes'"
    assert cli.run(["doctor", *words], debug=False) == 1
    assert says in " ".join(capsys.readouterr().out.split())
    assert cli.run(["train", *words], debug=False) == 0
    assert says in " ".join(capsys.readouterr().err.split())
    warnings = json.loads((tmp_path / "run" / "results.json").read_text())["data_warnings"]
    assert [warning for warning in warnings if says in warning]
