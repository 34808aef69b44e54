"""The main job as it is published: FLAN-T5 and DialogSum from the Hub, three runs, a page, a push, a pull.

The base has FLAN-T5-small's shape and names, with random weights; the dataset has DialogSum's files and
columns, and three references for each dialogue of its test split. A Hub on the loopback address has both
under the names that the shipped config gives, and the base at its commit: overrides only make runs short.
"""

import csv
import io
import json
import os
import shlex
import subprocess
import sys
from pathlib import Path

import pytest
import yaml
from hub.fixtures import REPO, TOKEN, card_of, push
from support.inputs import SHARED_DATA
from support.warm_python import ROOT

from lora_hf.evaluation.rouge import ROUGE_NAMES
from lora_hf.experiments.reproduce import PUBLISHED
from lora_hf.models.flan_t5 import random_flan_t5
from lora_hf.models.load import ASSETS

CONFIG = "configs/flan_t5_small_dialogsum_lora.yaml"
BASE, DATASET = "google/flan-t5-small", "knkarthick/dialogsum"
COMMIT = yaml.safe_load((ROOT / CONFIG).read_text(encoding="utf-8"))["model"]["revision"]
ROWS = {"train": 24, "validation": 3, "test": 9}
WEIGHTS = 76_961_152
"""Number of weights of FLAN-T5-small."""
GENERATION = {
    **{"pad_token_id": 0, "eos_token_id": 1, "decoder_start_token_id": 0},
    **{"min_length": 56, "num_beams": 4, "no_repeat_ngram_size": 3, "length_penalty": 2.0},
}
"""The base's own settings, those of a news summarizer among them: with these, each summary has many words."""
MAX_TOKENS = 8
SHORT = [
    "data.max_source_length=96",
    "data.max_target_length=32",
    f"generation.max_new_tokens={MAX_TOKENS}",
    "training.max_steps=4",
    "training.per_device_train_batch_size=4",
    "training.learning_rate=0.01",  # random weights learn the summaries' first words in four steps
    "training.disable_tqdm=true",
]

NO_CHECKPOINTS = ["training.save_strategy='no'", "training.load_best_model_at_end=false"]


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    """Return the folder of a base with FLAN-T5-small's shape, and the real tokenizer where it is at hand."""
    folder = tmp_path_factory.mktemp("base")
    model = random_flan_t5("small")
    assert model.num_parameters() == WEIGHTS
    model.save_pretrained(folder)
    real = SHARED_DATA / "t5_tokenizer"
    for file in (real if real.exists() else ASSETS).iterdir():
        if "token" in file.name:
            (folder / file.name).write_bytes(file.read_bytes())
    (folder / "generation_config.json").write_text(json.dumps(GENERATION))
    (folder / "README.md").write_text("---\nlicense: apache-2.0\n---\n\n# FLAN-T5\n")
    return folder


def dialogsum():
    """Return the files of a dataset as the Hub has DialogSum: a csv for each split, beside the card."""
    files = {"README.md": b"---\nlanguage: [en]\nlicense: cc-by-nc-sa-4.0\n---\n\n# DialogSum\n"}
    for split, count in ROWS.items():
        text = io.StringIO()
        table = csv.writer(text)
        table.writerow(["id", "dialogue", "summary", "topic"])
        for n in range(count):
            hour, reference = (n // 3, n % 3 + 1) if split == "test" else (n, 1)
            dialogue = (
                f'#Person1#: Shall we "meet", say, at {hour} for the {split}?\n#Person2#: Yes, in the park.'
            )
            summary = f"They will meet at {hour}{',' * reference} in the park."
            table.writerow([f"{split}_{hour}_{reference}", dialogue, summary, "meeting"])
        files[f"{split}.csv"] = text.getvalue().encode()
    return files


@pytest.fixture
def published(hub, base):
    """Return a Hub with the dataset, and with the base at the shipped config's commit; and the dataset's."""
    hub.store.seed(BASE, base, commit=COMMIT)
    return hub, hub.store.seed(f"datasets/{DATASET}", **dialogsum())


def read_lines(file):
    return [json.loads(line) for line in file.read_text(encoding="utf-8").splitlines()]


def predictions(folder):
    return [row["prediction"] for row in read_lines(folder / "predictions.jsonl")]


def check_comparison(folder):
    """Check three finished runs and their page; return the results of each."""
    page = (folder / "comparison.html").read_text(encoding="utf-8")
    results = {name: json.loads((folder / name / "results.json").read_text()) for name in PUBLISHED}
    for name, result in results.items():
        rows = read_lines(folder / name / "predictions.jsonl")
        assert result["n_examples"] == 3 and [len(row["references"]) for row in rows] == [3, 3, 3]
        assert all(
            len(row["prediction"].split()) <= MAX_TOKENS for row in rows
        )  # not the base's own settings
        assert f"{result['rouge1']:.3f}" in page
    assert 0.1 < results["lora"]["rouge1"] <= 1
    assert predictions(folder / "lora") != predictions(folder / "base")
    return results


def check_card(hub, record, dataset_commit):
    """Check a pushed card: the run's scores, base and dataset as the Hub knows them."""
    card, text = card_of(hub)
    assert (card["base_model"], card["datasets"], card["license"]) == (BASE, [DATASET], "apache-2.0")
    assert f"[{BASE}](https://huggingface.co/{BASE}) at revision `{COMMIT}`" in text
    assert f'from_pretrained("{BASE}", revision="{COMMIT}")' in text
    assert f"'max_new_tokens': {MAX_TOKENS}" in text and "min_length" not in text
    (index,) = card["model-index"]
    (result,) = index["results"]
    data = result["dataset"]
    assert (data["type"], data["split"], data.get("revision")) == (DATASET, "test", dataset_commit)
    figures = {metric["config"]: metric["value"] for metric in result["metrics"]}
    assert {name: figures[name] for name in ROUGE_NAMES} == {name: record[name] for name in ROUGE_NAMES}
    for name in ROUGE_NAMES:
        assert f"| {record[name]:.4f} | " in text
    config = yaml.safe_load(hub.store.read(REPO, "config.yaml"))
    assert (config["model"]["model_name_or_path"], config["model"]["revision"]) == (BASE, COMMIT)
    assert config["data"]["dataset_name"] == DATASET
    adapter = json.loads(hub.store.read(REPO, "adapter_config.json"))
    assert (adapter["base_model_name_or_path"], adapter["revision"]) == (BASE, COMMIT)


def check_nothing_local(hub, *folders):
    for name in hub.store.tree(REPO):
        content = hub.store.read(REPO, name)
        assert not [folder for folder in folders if str(folder).encode() in content], name


def check_pulled(client, run, overrides, tmp_path):
    """Check that a machine that has downloaded nothing gets the run's predictions by the adapter's name."""
    client.forget()
    rows = read_lines(run / "predictions.jsonl")
    talks = tmp_path / "talks.jsonl"
    talks.write_text("".join(json.dumps({"dialogue": row["dialogue"]}) + "\n" for row in rows))
    again = tmp_path / "again"
    evaluate = ["evaluate", "--config", CONFIG, *overrides, "--adapter", REPO, "--output", again]
    predicted, evaluated = client.run(
        (["predict", talks, "--adapter", REPO], TOKEN),
        (evaluate, TOKEN),
    )
    assert (predicted.status, evaluated.status) == (0, 0), predicted.err + evaluated.err
    assert [json.loads(line)["prediction"] for line in predicted.out.splitlines()] == predictions(run)
    assert read_lines(again / "predictions.jsonl") == rows


@pytest.mark.slow
def test_the_shipped_config_is_compared_pushed_and_pulled_by_name(published, client, tmp_path):
    hub, data_commit = published
    out = tmp_path / "runs"
    short = [*SHORT, f"data.dataset_revision={data_commit}"]
    for name in (BASE, f"datasets/{DATASET}"):  # the runs stay at the commits that are given
        hub.store.commit(name, "main", "everything is gone", {})
    compared, pushed = client.run(
        (["compare", "--config", CONFIG, *short, f"output_dir={out}"], None),
        (push(out / "lora"), TOKEN),
    )
    assert (compared.status, pushed.status) == (0, 0), compared.err + pushed.err
    (said,) = {line for line in compared.err.splitlines() if "generation settings that are not used" in line}
    assert BASE in said and "min_length=56" in said
    results = check_comparison(out)
    check_card(hub, results["lora"], data_commit)
    check_nothing_local(hub, tmp_path, client.home, ROOT)
    check_pulled(client, out / "lora", short, tmp_path)


@pytest.mark.slow
def test_make_reproduce_runs_from_the_hub_with_another_model(published, client, tmp_path):
    hub, _ = published
    out = tmp_path / "runs"
    base = f"model.model_name_or_path={BASE}"

    def make(*overrides, options=()):
        """Run `make reproduce` with the interpreter of the tests, whose environment is installed."""
        folder = Path(sys.executable).parent
        command = ["make", *options, f"BIN={folder}", "-o", ".venv/.installed", "reproduce"]
        arguments = shlex.join([base, *overrides, *NO_CHECKPOINTS, f"output_dir={out}", *SHORT])
        known = {name: value for name, value in os.environ.items() if name != "HF_TOKEN"}
        known |= client.environment | {"PYTHONPATH": str(ROOT)}
        return subprocess.run(
            [*command, f"ARGS={arguments}"], cwd=ROOT, env=known, capture_output=True, text=True
        )

    kept = make()  # the pinned commit is that of another model
    assert kept.returncode != 0 and not out.exists()
    (error,) = [line for line in kept.stderr.splitlines() if line.startswith("error: ")]
    assert f"{base.partition('=')[0]}='{BASE}' at model.revision='7bcac" in error
    assert error.endswith("or model.revision=main for its main branch")

    printed = make("model.revision=main", options=["--dry-run", "--no-print-directory"]).stdout
    program, *words = shlex.split(printed)
    assert Path(program) == Path(sys.executable).parent / "python"
    done = client.python.run(words)
    assert done.returncode == 0, done.stdout + done.stderr
    results = check_comparison(out)
    comparison = json.loads((out / "comparison.json").read_text())
    assert comparison["command"].startswith(f"lora-hf reproduce {base} model.revision=main")
    page = (out / "comparison.html").read_text(encoding="utf-8")
    for text in (*map(str, PUBLISHED.values()), "Not a repetition", BASE):
        assert text in page and text in done.stdout

    (pushed,) = client.run((push(out / "lora"), TOKEN))
    assert pushed.status == 0, pushed.err
    check_card(hub, results["lora"], None)
    check_nothing_local(hub, tmp_path, client.home, ROOT)
