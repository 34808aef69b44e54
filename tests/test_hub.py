"""Push and pull against a Hub on the loopback address, by processes that find it by HF_ENDPOINT alone."""

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import yaml
from conftest import FEW
from hub_server import HubServer, card_mistakes
from safetensors.torch import load_file, save_file

from lora_hf import cli
from lora_hf.evaluation.rouge import ROUGE_NAMES
from lora_hf.files import checkpoint_fingerprint
from lora_hf.modeling import ASSETS

ROOT = Path(__file__).parents[1]
TOKEN, OTHERS, READER = "hf_AnnasOwnSecretToken01", "hf_BensOwnSecretToken0002", "hf_NobodysToken00000003"
TOKENS = {TOKEN: "anna", OTHERS: "ben"}
REPO = "anna/dialogues"
WEIGHTS = "adapter_model.safetensors"


@pytest.fixture
def hub(tmp_path):
    with HubServer(tmp_path / "hub", TOKENS) as server:
        yield server
    assert server.failures == []


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """A finished LoRA run on the embedded model."""
    folder = tmp_path_factory.mktemp("runs") / "mine"
    file = folder.with_suffix(".yaml")
    file.write_text("lora: {r: 4, lora_alpha: 8}\ntraining: {max_steps: 2, learning_rate: 5.0e-2}\n")
    before = signal.getsignal(signal.SIGTERM)
    assert cli.run(["train", "--config", str(file), *FEW, f"output_dir={folder}"], debug=False) == 0
    signal.signal(signal.SIGTERM, before)
    return folder


class Client:
    """Fresh processes with a home of their own."""

    def __init__(self, home, endpoint):
        self.home, self.heard = home, ""
        self.environment = os.environ | {
            "HF_ENDPOINT": endpoint,
            "HF_HUB_DISABLE_XET": "1",
            "HF_HOME": str(home),
            "HF_HUB_OFFLINE": "0",
            "HF_HUB_DISABLE_TELEMETRY": "1",
            "PYTHONPATH": str(ROOT),
            "OMP_NUM_THREADS": "1",
        }
        self.environment.pop("HF_TOKEN", None)

    def run(self, *commands):
        """Commands in one process, each (words, token): its status, and what it said on both streams."""
        given = json.dumps([[[str(word) for word in words], token] for words, token in commands])
        out, err = self.python(str(ROOT / "tests/hub_client.py"), given=given)
        said = [re.split(r"^=== \d+\n", text, flags=re.MULTILINE) for text in (out, err)]
        statuses = map(int, re.findall(r"^=== (\d+)$", out, re.MULTILINE))
        return [Done(status, o, e) for status, o, e in zip(statuses, *said, strict=False)]

    def python(self, *words, given=None, token=None):
        environment = self.environment | ({"HF_TOKEN": token} if token else {})
        done = subprocess.run(
            [sys.executable, *words], input=given, env=environment, cwd=ROOT, capture_output=True, text=True
        )
        self.heard += done.stdout + done.stderr
        assert done.returncode == 0, done.stderr
        return done.stdout, done.stderr


class Done:
    def __init__(self, status, out, err):
        self.status, self.out, self.err = status, out, err

    @property
    def error(self):
        assert self.status == 2, self.err
        (line,) = [line for line in self.err.splitlines() if line.startswith("error: ")]
        return line


@pytest.fixture
def client(tmp_path, hub):
    made = Client(tmp_path / "home", hub.endpoint)
    yield made
    for secret in (TOKEN, OTHERS, READER):
        assert secret not in made.heard
        for folder in (tmp_path / "home", tmp_path / "hub"):
            assert not [p for p in folder.rglob("*") if p.is_file() and secret.encode() in p.read_bytes()]


def push(adapter, *more, repo=REPO):
    return ["push", "--adapter", adapter, "--repo-id", repo, *more]


def card_of(hub, repo=REPO, revision="main"):
    """A pushed card's metadata and text."""
    _, head, text = hub.store.read(repo, "README.md", revision).decode().split("---\n", 2)
    return yaml.safe_load(head), text


LOGITS = """
import json, sys, torch
from lora_hf.modeling import ASSETS
from lora_hf.runs.saved import load_with_base
from transformers import AutoTokenizer
ids = AutoTokenizer.from_pretrained(ASSETS)("A: Shall we go? B: At noon.", return_tensors="pt").input_ids
found = []
for code in json.loads(sys.argv[1]):
    names = {}
    exec(code, names)
    with torch.no_grad():
        found.append(names["model"].eval()(input_ids=ids, labels=ids).logits)
torch.save(found, sys.argv[2])
"""


def logits_of(client, tmp_path, *codes):
    """What the `model` of each code says, computed in one fresh process."""
    import torch

    client.python("-c", LOGITS, json.dumps(codes), str(tmp_path / "logits.pt"), token=TOKEN)
    return torch.load(tmp_path / "logits.pt", weights_only=True)


def loading(adapter):
    start = "from lora_hf.runs.saved import load_with_base\n"
    return f"{start}model, tokenizer, _ = load_with_base({str(adapter)!r}, None)"


def test_what_was_pushed_gives_the_same_logits_in_a_fresh_process(hub, client, trained, tmp_path):
    import torch

    (done,) = client.run((push(trained / "adapter"), TOKEN))
    assert done.status == 0, done.err
    commit = hub.store.refs(REPO)["main"]
    assert done.out == f"pushed: {hub.endpoint}/{REPO}/commit/{commit}\n"
    blocks = re.findall(r"```python\n(.*?)```", card_of(hub)[1], re.DOTALL)  # ours, and PEFT's
    codes = (loading(trained / "adapter"), loading(f"{REPO}@{commit}"), *blocks)
    own, pulled, by_card, by_peft = logits_of(client, tmp_path, *codes)
    assert torch.equal(pulled, own) and torch.equal(by_card, own)
    torch.testing.assert_close(by_peft, own)


@pytest.mark.slow
def test_the_card_has_every_rouge_figure_and_no_path_goes_up(hub, client, trained):
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


def test_a_mistake_of_who_and_where_is_one_error_without_the_token(hub, client, trained, tmp_path):
    hub.store.create("ben/other", private=False)
    hub.repeats_tokens = True
    broken = "hf_with\x07bell_in_it"
    commands = {
        "there is no token: run `hf auth login`, or set HF_TOKEN": (push(trained), None),
        "cannot push to 'anna/dialogues': the token is not valid": (push(trained), READER),
        "cannot push to 'ben/new': the token has no right to that": (push(trained, repo="ben/new"), TOKEN),
        "cannot push to 'ben/other': the token has no right": (push(trained, repo="ben/other"), TOKEN),
        "has a character that no token has": (push(trained), broken),
        "--repo-id='dialogues' is no name on the Hub: write USER/NAME": (
            push(trained, repo="dialogues"),
            TOKEN,
        ),
        "--repo-id='anna/a--b' is no name on the Hub": (push(trained, repo="anna/a--b"), TOKEN),
        "no such folder": (push(tmp_path / "none"), TOKEN),
        "--base-model './t5' is not USER/NAME": (push(trained, "--base-model", "./t5"), TOKEN),
    }
    for told, done in zip(commands, client.run(*commands.values()), strict=True):
        assert told in done.error
    assert "bell_in_it" not in client.heard
    assert hub.count("PUT", "/upload/") == 0


@pytest.mark.slow
def test_a_repository_of_ones_own_gets_a_new_commit_and_anothers_is_left(hub, client, trained, tmp_path):
    hub.store.seed("anna/t5", ASSETS)
    changed = shutil.copytree(trained, tmp_path / "changed")
    (changed / "adapter" / "lora_hf_start.safetensors").write_bytes(b"of a start on a quantized base")
    first, again, other = client.run(
        (push(changed), TOKEN), (push(changed), TOKEN), (push(trained, repo="anna/t5"), TOKEN)
    )
    assert (first.status, again.status, first.out) == (0, 0, again.out)
    assert len(hub.store.commits(REPO)) == 2 and hub.count("PUT", "/upload/") == 2
    assert "'anna/t5' holds ['README.md', 'config.json'" in other.error and "--overwrite" in other.error
    assert len(hub.store.commits("anna/t5")) == 2
    old = hub.store.refs(REPO)["main"]
    assert "lora_hf_start.safetensors" in hub.store.tree(REPO)
    second, forced = client.run(
        (push(trained, "--samples", "0"), TOKEN), (push(trained, "--overwrite", repo="anna/t5"), TOKEN)
    )
    assert (second.status, forced.status) == (0, 0)
    assert "lora_hf_start.safetensors" not in hub.store.tree(REPO) and len(hub.store.commits(REPO)) == 3
    assert "lora_hf_start.safetensors" in hub.store.tree(REPO, old)
    assert "Samples" in card_of(hub, revision=old)[1] and "Samples" not in card_of(hub)[1]


def test_a_lost_connection_is_tried_again_and_nothing_is_done_twice(hub, client, trained):
    hub.cut("PUT", "/upload/", "upload", after=1000)
    hub.cut("POST", f"/api/models/{REPO}/commit/", "answer")
    (done,) = client.run((push(trained), TOKEN))
    assert done.status == 0, done.err
    assert hub.count("PUT", "/upload/") == 2  # cut half-way, and whole
    assert len(hub.store.commits(REPO)) == 2  # the commit was made, its answer lost, and none made again
    assert hub.store.read(REPO, WEIGHTS) == (trained / "adapter" / WEIGHTS).read_bytes()


@pytest.mark.slow
def test_a_card_that_was_edited_there_stays(hub, client, trained):
    client.run((push(trained), TOKEN))
    tree, card = hub.store.tree(REPO), hub.store.read(REPO, "README.md")
    edited = card.replace(b"## Intended use", b"My own words.\n\n## Intended use")
    hub.store.commit(REPO, "main", "by hand", tree | {"README.md": hub.store.blob(edited)})
    kept, replaced = client.run(
        (push(trained, "--samples", "1"), TOKEN), (push(trained, "--overwrite"), TOKEN)
    )
    assert (kept.status, replaced.status) == (0, 0)
    assert "README.md was edited there, and stays" in kept.err
    assert len(hub.store.commits(REPO)) == 4 and hub.store.read(REPO, "README.md") == card


@pytest.mark.slow
def test_what_is_no_lora_goes_up_and_comes_back_too(hub, client, tmp_path):
    run = tmp_path / "run"
    words = ["train", "--config", "quickstart", *FEW, f"output_dir={run}", "method=bottleneck"]
    words += ["training.max_steps=2", "training.save_strategy='no'"]
    evaluate = ["evaluate", "--config", "quickstart", *FEW, "--json", "--adapter"]
    trained, pushed, scored = client.run((words, None), (push(run), TOKEN), ([*evaluate, REPO], TOKEN))
    assert (trained.status, pushed.status, scored.status) == (0, 0, 0), pushed.err + scored.err
    record = json.loads((run / "results.json").read_text())
    assert json.loads(scored.out)["rouge1"] == record["rouge1"]
    assert "adapter_config.json" not in hub.store.tree(REPO)
    assert "Not with PEFT" in card_of(hub)[1] and card_of(hub)[0]["library_name"] == "lora_hf"


@pytest.mark.slow
def test_a_hub_that_goes_for_good_is_one_error_and_the_next_push_goes_on(hub, client, trained):
    hub.cut("POST", "/commit/", "upload", after=100, times=2)
    lost, done = client.run((push(trained), TOKEN), (push(trained), TOKEN))
    assert "does not answer" in lost.error and "try again" in lost.error
    assert done.status == 0 and hub.count("PUT", "/upload/") == 1  # what was there was not sent again
    assert len(hub.store.commits(REPO)) == 2


@pytest.mark.slow
def test_a_download_that_is_cut_goes_on_where_it_was(hub, client, trained, tmp_path):
    import torch

    client.run((push(trained), TOKEN))
    hub.cut("GET", "/download/", "download", after=5000)
    own, pulled = logits_of(client, tmp_path, loading(trained), loading(REPO))
    assert torch.equal(pulled, own)
    assert hub.count("GET", "/download/") == 2


@pytest.mark.slow
def test_a_private_repository_a_branch_and_a_revision(hub, client, trained, tmp_path):
    (tmp_path / "talk.txt").write_text("A: Hi\nB: Bye")

    def predict(name):
        return ["predict", tmp_path / "talk.txt", "--adapter", name]

    hub.store.create("anna/open", private=False)
    pushed, branch, public, mine, *others, gone = client.run(
        (push(trained, "--private"), TOKEN),
        (push(trained, "--revision", "trial/one", "--license", "mit"), TOKEN),
        (push(trained, "--private", repo="anna/open"), TOKEN),
        (predict(f"{REPO}@trial/one"), TOKEN),
        (predict("anna/none"), OTHERS),
        (predict(REPO + "@none"), OTHERS),
        (predict(f"{REPO}@none"), TOKEN),
    )
    assert (pushed.status, branch.status, mine.status) == (0, 0, 0)
    assert "is there and public, and a private one was asked for" in public.error
    assert json.loads(mine.out)["id"] == "0"
    assert hub.store.meta(REPO)["private"]
    assert (card_of(hub)[0]["license"], card_of(hub, revision="trial/one")[0]["license"]) == (
        "apache-2.0",
        "mit",
    )
    assert f"{REPO}@trial/one" in card_of(hub, revision="trial/one")[1]
    for other in others:
        assert "no such repository, or it is private" in other.error
    assert "there is no such revision" in gone.error


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
    assert "training.push_to_hub=true: a study has several runs" in compared.error
    assert "'full' makes no adapter" in full.error
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
def test_a_dry_run_prints_what_would_go_up_and_asks_for_no_token(hub, client, trained):
    (done,) = client.run((push(trained, "--dry-run"), None))
    assert done.status == 0 and f"{(trained / 'adapter' / WEIGHTS).stat().st_size:,} {WEIGHTS}" in done.out
    card = done.out[done.out.index("---\n") :]
    assert card_mistakes(card) == [] and hub.count("POST", "/") == 0


def refused(capsys, *words, repo=REPO):
    """What a dry run in this process says instead of the card."""
    assert cli.run([*map(str, push(*words, "--dry-run", repo=repo))], debug=False) == 2
    (line,) = [line for line in capsys.readouterr().err.splitlines() if line.startswith("error: ")]
    return line


@pytest.mark.parametrize(
    "name", ["a/b/c", "dialogues", "anna/", "anna/a--b", "anna/.x", "anna/día", "anna/x.git", ""]
)
def test_what_is_no_name_of_a_repository_is_told_what_one_is(trained, capsys, name):
    line = refused(capsys, trained, repo=name)
    assert line.startswith(f"error: --repo-id={name!r} is no name on the Hub: write USER/NAME, such as")
    assert "repo_type" not in line


@pytest.mark.parametrize(
    ("written", "near"),
    [("MIT", "'mit'"), ("Apache 2.0", "'apache-2.0'"), ("gplv3", "'gpl"), ("cc-by-4", "'cc-by-4.0'")],
)
def test_a_licence_is_one_that_the_hub_knows(trained, capsys, written, near):
    line = refused(capsys, trained, "--license", written)
    assert f"--license={written!r} is no licence that the Hub knows. Did you mean {near}" in line
    assert line.endswith("one that is not among them is 'other'")


def test_a_folder_without_an_adapter_is_told_what_one_is(trained, tmp_path, capsys):
    run = shutil.copytree(trained, tmp_path / "run")
    (run / "adapter" / WEIGHTS).unlink()
    line = refused(capsys, run)
    assert f"has no {WEIGHTS}; it holds adapter_config.json, lora_hf.json. An adapter is" in line
    assert line.endswith("give their folder, or the run's that it is in")
    shutil.rmtree(run / "adapter")
    assert "config.yaml" in refused(capsys, run)
    (tmp_path / "empty").mkdir()
    assert f"has no {WEIGHTS}; it holds nothing. An adapter is" in refused(capsys, tmp_path / "empty")


def test_weights_of_another_hash_are_told_with_a_remedy(trained, tmp_path, capsys):
    changed = shutil.copytree(trained / "adapter", tmp_path / "changed")
    manifest = json.loads((changed / "lora_hf.json").read_text())
    (changed / "lora_hf.json").write_text(json.dumps(manifest | {"weights_sha256": "0" * 64}))
    remedy = "it was changed or cut short: save or download the adapter again, all of its files"
    assert remedy in refused(capsys, changed)
    assert cli.run(["serve", "--adapter", f"a={changed}"], debug=False) == 2
    assert remedy in capsys.readouterr().err


def test_a_run_of_full_fine_tuning_is_told_how_a_model_goes_up(trained, tmp_path, capsys):
    run = shutil.copytree(trained, tmp_path / "full")
    (run / "adapter").rename(run / "model")
    line = refused(capsys, run)
    assert (
        f"--adapter {str(run)!r} is a run of full fine-tuning: it holds a whole model and no adapter" in line
    )
    assert f"`hf upload USER/NAME {run / 'model'}`" in line


def test_a_licence_that_the_hub_knows_is_in_the_card(trained, capsys):
    for license in ("other", "openrail++"):
        done = cli.run([*map(str, push(trained, "--dry-run", "--license", license))], debug=False)
        assert done == 0 and f"license: {license}\n" in capsys.readouterr().out


def test_an_adapter_of_broken_numbers_is_not_pushed(tmp_path, trained, capsys):
    shutil.copytree(trained / "adapter", tmp_path / "adapter")
    (tmp_path / "adapter/lora_hf.json").unlink()  # whose hash would tell
    weights = load_file(tmp_path / "adapter" / WEIGHTS)
    next(iter(weights.values()))[0, 0] = float("nan")
    save_file(weights, tmp_path / "adapter" / WEIGHTS)
    words = ["push", "--adapter", str(tmp_path / "adapter"), "--repo-id", REPO, "--dry-run"]
    assert cli.run(words, debug=False) == 2
    assert "is not all finite numbers; `lora-hf doctor" in capsys.readouterr().err


def test_without_a_network_each_command_is_one_error_and_soon(tmp_path, trained):
    client = Client(tmp_path / "home", "http://127.0.0.1:9")
    (tmp_path / "talk.txt").write_text("A: Hi")
    config = tmp_path / "x.yaml"
    config.write_text("model: {model_name_or_path: acme/tiny-t5}\n")
    data = tmp_path / "data.yaml"
    data.write_text("data: {dataset_name: acme/talks}\n")
    start = time.monotonic()
    asked = client.run(
        (push(trained), TOKEN),
        (["predict", tmp_path / "talk.txt", "--adapter", REPO], None),
        (["train", "--config", config, f"output_dir={tmp_path / 'run'}"], None),
        (["train", "--config", data, f"output_dir={tmp_path / 'run'}"], None),
        (["plan", "--config", config], None),
    )
    for done in asked:
        assert "http://127.0.0.1:9 does not answer" in done.error and "Retrying" not in done.err
    assert (
        time.monotonic() - start < 40
    )  # of which the process's own start; with the client's retries minutes


@pytest.mark.slow
def test_a_base_that_was_fetched_before_is_used_without_the_network(tmp_path):
    with HubServer(tmp_path / "hub", TOKENS) as hub:
        hub.store.seed("acme/tiny-t5", ASSETS)
        client = Client(tmp_path / "home", hub.endpoint)
        words = [
            "evaluate",
            "--config",
            "quickstart",
            *FEW,
            "model.model_name_or_path=acme/tiny-t5",
            "--json",
        ]
        (first,) = client.run((words, None))
    (second,) = client.run((words, None))
    assert (first.status, second.status) == (0, 0), first.err + second.err
    scores = [json.loads(done.out)["rouge1"] for done in (first, second)]
    assert scores[0] == scores[1]
    assert "acme/tiny-t5 is read from its local copy" in second.err and "Retrying" not in second.err
