"""Whole runs of five families: `train`, `merge`, and the merged folder in plain Transformers.

They differ in what has gone wrong: ties and begin tokens (T5Gemma), languages (NLLB), bytes without a file of
a vocabulary (ByT5), experts (Switch), and a scale that depends on ties (UMT5).
"""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from support.matrix_models import EXAMPLES, Case
from transformers import AutoModelForSeq2SeqLM, AutoTokenizer

from lora_hf import cli
from lora_hf.run_records import read_predictions

SHORT = """training.max_steps=12 training.per_device_train_batch_size=3 training.learning_rate=0.02
training.disable_tqdm=true generation.max_new_tokens=6 generation.min_new_tokens=4 lora.r=4 lora.lora_alpha=8
lora.target_modules=all-linear data.max_source_length=32
data.max_target_length=16 data.prompt={dialogue}""".split()


def written_by_transformers(model: Any, tokenizer: Any, dialogues: list[str]) -> list[str]:
    """Return the summary of each dialogue alone."""
    texts = []
    for dialogue in dialogues:
        inputs = tokenizer(dialogue, return_tensors="pt", return_token_type_ids=False)
        with torch.no_grad():
            tokens = model.eval().generate(**inputs)
        texts += [text.strip() for text in tokenizer.batch_decode(tokens, skip_special_tokens=True)]
    return texts


@pytest.mark.slow
@pytest.mark.parametrize("row", ["T5Gemma", "NLLB", "ByT5", "Switch", "UMT5"])
def test_a_merged_folder_writes_the_summaries_of_the_run_in_plain_transformers(
    row: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, case_of: Callable[[str], Case]
) -> None:
    monkeypatch.chdir(tmp_path)
    case = case_of(row)
    for split in ("train", "validation", "test"):
        rows = [{"id": x.id, "dialogue": x.dialogue, "summary": x.references[0]} for x in EXAMPLES]
        Path(f"{split}.jsonl").write_text("".join(json.dumps(one) + "\n" for one in rows))
    fields = [f"model.model_name_or_path={case.base}", "data.dataset_name=.", "output_dir=run", *SHORT]
    if case.row.languages:
        source, target = case.row.languages
        fields += [f"data.source_language={source}", f"data.target_language={target}"]
    Path("run.yaml").write_text("method: lora\n")
    assert cli.run(["train", "--config", "run.yaml", *fields], debug=True) == 0
    assert cli.run(["merge", "--adapter", "run", "--output", "merged"], debug=True) == 0
    predictions = read_predictions(Path("run"))
    summaries = [prediction["prediction"] for prediction in predictions]
    dialogues = [prediction["dialogue"] for prediction in predictions]
    merged, tokenizer = (
        AutoModelForSeq2SeqLM.from_pretrained("merged"),
        AutoTokenizer.from_pretrained("merged"),
    )
    assert written_by_transformers(merged, tokenizer, dialogues) == summaries
    base = case.plain()
    base.generation_config = merged.generation_config
    assert any(summaries) and written_by_transformers(base, tokenizer, dialogues) != summaries
