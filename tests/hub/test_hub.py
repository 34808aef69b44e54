"""Push and pull against a Hub on the loopback address, by processes that find it by HF_ENDPOINT alone."""

import json
import re
import shutil

import pytest
from hub.fixtures import (
    OTHERS,
    READER,
    REPO,
    TOKEN,
    TOKENS,
    WEIGHTS,
    card_of,
    loading,
    logits_of,
    push,
)
from hub.server import HubServer
from support.inputs import FEW

from lora_hf.models.load import ASSETS


@pytest.mark.slow
def test_what_was_pushed_gives_the_same_logits_in_a_fresh_process(hub, client, trained, tmp_path):
    import torch

    (done,) = client.run((push(trained / "adapter"), TOKEN))
    assert done.status == 0, done.err
    commit = hub.store.refs(REPO)["main"]
    assert done.out == f"pushed: {hub.endpoint}/{REPO}/commit/{commit}\n"
    ours, with_peft, options = re.findall(r"```python\n(.*?)```", card_of(hub)[1], re.DOTALL)
    assert options.startswith("options = {")
    codes = (loading(trained / "adapter"), loading(f"{REPO}@{commit}"), ours, with_peft)
    own, pulled, by_card, by_peft = logits_of(client, tmp_path, *codes)
    assert torch.equal(pulled, own) and torch.equal(by_card, own)
    torch.testing.assert_close(by_peft, own)


def test_a_wrong_token_or_repository_is_one_error_that_does_not_show_the_token(
    hub, client, trained, tmp_path
):
    hub.store.create("ben/other", private=False)
    hub.repeats_tokens = True
    broken = "hf_with\x07bell_in_it"
    commands = {
        "there is no token: run `hf auth login`, or set HF_TOKEN": (push(trained), None),
        "cannot push to 'anna/dialogues': the token is not valid": (push(trained), READER),
        "cannot push to 'ben/new': the token has no permission": (
            push(trained, repo="ben/new"),
            TOKEN,
        ),
        "cannot push to 'ben/other': the token has no permission": (push(trained, repo="ben/other"), TOKEN),
        "contains a character that cannot occur in a token": (push(trained), broken),
        "--repo-id='dialogues' is not a valid name on the Hub: write USER/NAME": (
            push(trained, repo="dialogues"),
            TOKEN,
        ),
        "--repo-id='anna/a--b' is not a valid name on the Hub": (push(trained, repo="anna/a--b"), TOKEN),
        "no such folder": (push(tmp_path / "none"), TOKEN),
        "--base-model './t5' is not USER/NAME": (push(trained, "--base-model", "./t5"), TOKEN),
    }
    for expected, done in zip(commands, client.run(*commands.values()), strict=True):
        assert expected in done.error
    assert "bell_in_it" not in client.heard
    assert hub.count("PUT", "/upload/") == 0


def test_the_hub_decides_which_licenses_there_are_before_anything_is_uploaded(hub, client, trained):
    near = {"MIT": "'mit'", "Apache 2.0": "'apache-2.0'", "gplv3": "'gpl", "cc-by-4": "'cc-by-4.0'"}
    refused = client.run(*((push(trained, "--license", written), TOKEN) for written in near))
    for done, (written, name) in zip(refused, near.items(), strict=True):
        assert f"license {written!r}: the Hub has no such identifier. Did you mean {name}" in done.error
        assert "with --license, or 'other'" in done.error
    assert hub.count("PUT", "/upload/") == 0 and not hub.store.exists(REPO)
    (pushed,) = client.run((push(trained, "--license", "openrail++"), TOKEN))
    assert pushed.status == 0 and card_of(hub)[0]["license"] == "openrail++"


@pytest.mark.slow
def test_a_repository_pushed_before_gets_a_new_commit_and_others_are_unchanged(
    hub, client, trained, tmp_path
):
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
    assert done.status == 0 and done.slept > 0, done.err
    assert hub.count("PUT", "/upload/") == 2  # cut half-way, and whole
    assert len(hub.store.commits(REPO)) == 2  # the commit was made, its answer lost, and none made again
    assert hub.store.read(REPO, WEIGHTS) == (trained / "adapter" / WEIGHTS).read_bytes()


@pytest.mark.slow
def test_a_card_edited_on_the_hub_is_kept(hub, client, trained):
    client.run((push(trained), TOKEN))
    tree, card = hub.store.tree(REPO), hub.store.read(REPO, "README.md")
    edited = card.replace(b"## Intended use", b"My own words.\n\n## Intended use")
    hub.store.commit(REPO, "main", "by hand", tree | {"README.md": hub.store.blob(edited)})
    kept, replaced = client.run(
        (push(trained, "--samples", "1"), TOKEN), (push(trained, "--overwrite"), TOKEN)
    )
    assert (kept.status, replaced.status) == (0, 0)
    assert "README.md was edited on the Hub and is kept" in kept.err
    assert len(hub.store.commits(REPO)) == 4 and hub.store.read(REPO, "README.md") == card


@pytest.mark.slow
def test_a_lost_hub_is_one_error_and_the_next_push_resumes(hub, client, trained):
    hub.cut("POST", "/commit/", "upload", after=100, times=2)
    lost, done = client.run((push(trained), TOKEN), (push(trained), TOKEN))
    assert "was interrupted" in lost.error and "are not transferred again" in lost.error
    assert done.status == 0 and hub.count("PUT", "/upload/") == 1  # what was there was not sent again
    assert len(hub.store.commits(REPO)) == 2


@pytest.mark.slow
def test_an_interrupted_download_is_resumed(hub, client, trained, tmp_path):
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
    assert "exists and is public, and --private was given" in public.error
    assert json.loads(mine.out)["id"] == "0"
    assert hub.store.meta(REPO)["private"]
    assert (card_of(hub)[0]["license"], card_of(hub, revision="trial/one")[0]["license"]) == (
        "apache-2.0",
        "mit",
    )
    assert f"{REPO}@trial/one" in card_of(hub, revision="trial/one")[1]
    for other in others:
        assert "no such repository, it was renamed, or it is private" in other.error
    assert "there is no such revision" in gone.error


def test_without_a_network_each_command_fails_at_once_with_one_error(client, port, tmp_path, trained):
    (tmp_path / "talk.txt").write_text("A: Hi")
    config = tmp_path / "x.yaml"
    config.write_text("model: {model_name_or_path: acme/tiny-t5}\n")
    data = tmp_path / "data.yaml"
    data.write_text("data: {dataset_name: acme/talks}\n")
    asked = client.run(
        (push(trained), TOKEN),
        (["predict", tmp_path / "talk.txt", "--adapter", REPO], None),
        (["train", "--config", config, f"output_dir={tmp_path / 'run'}"], None),
        (["train", "--config", data, f"output_dir={tmp_path / 'run'}"], None),
        (["plan", "--config", config], None),
    )
    for done in asked:
        assert f"http://127.0.0.1:{port} does not respond" in done.error and "Retrying" not in done.err
        assert done.slept == 0  # the client itself would wait between tries, for minutes in all


@pytest.mark.slow
def test_a_base_that_was_fetched_before_is_used_without_the_network(client, port, tmp_path):
    with HubServer(tmp_path / "hub", TOKENS, port=port) as hub:
        hub.store.seed("acme/tiny-t5", ASSETS)
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
