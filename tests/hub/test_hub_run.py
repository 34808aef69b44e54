"""The files of a run that are pushed, with public names and no local paths."""

import json
import shutil

import pytest
import yaml
from hub.fixtures import (
    READER,
    REPO,
    TOKEN,
    WEIGHTS,
    card_of,
    push,
)
from hub.store import card_mistakes
from safetensors.torch import load_file, save_file
from support.inputs import FEW

from lora_hf import cli
from lora_hf.evaluation.rouge import ROUGE_NAMES
from lora_hf.files import checkpoint_fingerprint
from lora_hf.models.load import ASSETS


@pytest.mark.slow
def test_the_card_has_every_rouge_figure_and_no_local_path(hub, client, trained):
    client.run((push(trained), TOKEN))
    data, text = card_of(hub)
    record = json.loads((trained / "results.json").read_text())
    (index,) = data["model-index"]
    (result,) = index["results"]
    assert (index["name"], result["dataset"]["split"]) == ("dialogues", "test")
    figures = {metric["config"]: metric["value"] for metric in result["metrics"]}
    assert figures == {name: record[name] for name in ROUGE_NAMES}
    assert "base_model" not in data and data["license"] == "apache-2.0" and "lora_hf" in data["tags"]
    assert json.loads(hub.store.read(REPO, "adapter_config.json"))["base_model_name_or_path"] is None
    assert json.loads(hub.store.read(REPO, "lora_hf.json"))["base_model_name_or_path"] == "embedded"
    rows = [json.loads(line) for line in (trained / "predictions.jsonl").read_text().splitlines()]
    assert [" ".join(row["references"][0].split()) in text for row in rows] == [True, True, True, False]
    for name in hub.store.tree(REPO):
        assert str(trained.parent).encode() not in hub.store.read(REPO, name)
    assert {*hub.store.tree(REPO)} == {
        *(".gitattributes", "README.md", "adapter_config.json", WEIGHTS, "lora_hf.json"),
        *("config.yaml", "results.json"),
    }


@pytest.mark.slow
def test_baselines_are_pushed_and_loaded_too(hub, client, tmp_path):
    run = tmp_path / "run"
    words = ["train", "--config", "quickstart", *FEW, f"output_dir={run}", "method=bottleneck"]
    words += ["training.max_steps=2", "training.save_strategy='no'"]
    evaluate = ["evaluate", "--config", "quickstart", *FEW, "--json", "--adapter"]
    trained, pushed, scored = client.run((words, None), (push(run), TOKEN), ([*evaluate, REPO], TOKEN))
    assert (trained.status, pushed.status, scored.status) == (0, 0, 0), pushed.err + scored.err
    record = json.loads((run / "results.json").read_text())
    assert json.loads(scored.out)["rouge1"] == record["rouge1"]
    assert "adapter_config.json" not in hub.store.tree(REPO)
    assert "Not with PEFT, because" in card_of(hub)[1] and card_of(hub)[0]["library_name"] == "lora_hf"


@pytest.mark.slow
def test_a_run_with_push_to_hub_is_pushed_once_with_its_base_and_licence(hub, client, tmp_path):
    base = hub.store.seed("acme/tiny-t5", ASSETS)
    tree = hub.store.tree("acme/tiny-t5")
    hub.store.commit("acme/tiny-t5", "main", "gone", {"config.json": tree["config.json"]})
    run = tmp_path / "run"
    file = tmp_path / "run.yaml"
    file.write_text(
        "lora: {r: 4, lora_alpha: 8}\ntraining: {max_steps: 2, learning_rate: 5.0e-2, save_steps: 1}\n"
    )
    words = ["--config", file, *FEW, f"output_dir={run}", "model.model_name_or_path=acme/tiny-t5"]
    words += [f"model.revision={base}"]  # and not what `main` is by now
    words += ["training.push_to_hub=true", "training.hub_model_id=anna/run", "training.save_strategy=steps"]
    (tmp_path / "talk.txt").write_text("A: Hi\nB: Bye")
    refused, compared, full, done, again, predicted = client.run(
        (["train", *words], READER),
        (["compare", *words], TOKEN),
        (["train", *words, "method=full"], TOKEN),
        (["train", *words], TOKEN),
        (["train", *words], TOKEN),
        (["predict", tmp_path / "talk.txt", "--adapter", "anna/run"], TOKEN),
    )
    assert "the token is not valid" in refused.error
    assert "training.push_to_hub=true: an experiment has several runs" in compared.error
    assert "'full' trains no adapter" in full.error
    assert done.status == 0, done.err
    assert (again.status, predicted.status) == (0, 0)
    assert hub.store.commits("anna/run")[1:] == ["initial commit"]
    data, text = card_of(hub, "anna/run")
    assert (data["base_model"], data["license"]) == ("acme/tiny-t5", "apache-2.0")
    config = json.loads(hub.store.read("anna/run", "adapter_config.json"))
    assert (config["base_model_name_or_path"], config["revision"]) == ("acme/tiny-t5", base)
    assert f'from_pretrained("acme/tiny-t5", revision="{base}")' in text
    ours = checkpoint_fingerprint([ASSETS / "model.safetensors"])
    assert json.loads(hub.store.read("anna/run", "lora_hf.json"))["base_fingerprint"] == ours
    kept = yaml.safe_load(hub.store.read("anna/run", "config.yaml"))
    assert (kept["model"]["revision"], kept["output_dir"]) == (base, "runs/run")
    assert "push_to_hub" not in kept["training"] and "hub_model_id" not in kept["training"]
    secrets = [p for p in run.rglob("*") if p.is_file() and TOKEN.encode() in p.read_bytes()]
    assert not secrets


@pytest.mark.slow
def test_a_base_from_a_folder_is_named_only_by_who_knows_its_name(hub, client, tmp_path):
    base = hub.store.seed("acme/tiny-t5", ASSETS)
    local = shutil.copytree(ASSETS, tmp_path / "models" / "t5")
    data = tmp_path / "calls.jsonl"
    rows = [{"dialogue": f"A: Call {n}. B: Fine.", "summary": f"Call {n} is fine."} for n in range(60)]
    data.write_text("".join(json.dumps(row) + "\n" for row in rows))
    run = tmp_path / "run"
    words = [
        "train",
        "--config",
        "quickstart",
        *FEW,
        f"output_dir={run}",
        f"model.model_name_or_path={local}",
    ]
    words += [f"data.dataset_name={data}", "training.max_steps=2", "training.save_strategy='no'"]
    run_done, unnamed = client.run((words, TOKEN), (push(run), TOKEN))
    assert (run_done.status, unnamed.status) == (0, 0), run_done.err + unnamed.err
    assert "the base" in unnamed.err and "--base-model" in unnamed.err
    card, text = card_of(hub)
    assert not {"base_model", "datasets", "license"} & {*card} and "Samples" not in text
    config = yaml.safe_load(hub.store.read(REPO, "config.yaml"))
    assert (config["model"]["model_name_or_path"], config["data"]["dataset_name"]) == (None, None)
    for name in hub.store.tree(REPO):
        assert str(tmp_path).encode() not in hub.store.read(REPO, name), name
    named, predicted = client.run(
        (push(run, "--base-model", f"acme/tiny-t5@{base}", "--samples", "1"), TOKEN),
        (["predict", data, "--adapter", REPO], TOKEN),
    )
    assert (named.status, predicted.status) == (0, 0), named.err + predicted.err
    card, text = card_of(hub)
    assert (card["base_model"], card["license"]) == ("acme/tiny-t5", "apache-2.0") and "Call" in text
    assert json.loads(hub.store.read(REPO, "adapter_config.json"))["revision"] == base


@pytest.mark.slow
def test_a_dry_run_prints_the_files_and_needs_no_token(hub, client, trained):
    (done,) = client.run((push(trained, "--dry-run"), None))
    assert done.status == 0 and f"{(trained / 'adapter' / WEIGHTS).stat().st_size:,} {WEIGHTS}" in done.out
    card = done.out[done.out.index("---\n") :]
    assert card_mistakes(card) == [] and hub.count("POST", "/") == 0


def test_an_adapter_with_nan_is_not_pushed(tmp_path, trained, capsys):
    shutil.copytree(trained / "adapter", tmp_path / "adapter")
    (tmp_path / "adapter/lora_hf.json").unlink()  # whose hash would tell
    weights = load_file(tmp_path / "adapter" / WEIGHTS)
    next(iter(weights.values()))[0, 0] = float("nan")
    save_file(weights, tmp_path / "adapter" / WEIGHTS)
    words = ["push", "--adapter", str(tmp_path / "adapter"), "--repo-id", REPO, "--dry-run"]
    assert cli.run(words, debug=False) == 2
    assert "has NaN or infinite values: its training diverged" in capsys.readouterr().err
