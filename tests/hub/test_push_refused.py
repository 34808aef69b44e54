"""Pushes that are refused, each with one error that names the remedy."""

import json
import shutil
from types import SimpleNamespace

import pytest
from hub.fixtures import REPO, WEIGHTS, push

from lora_hf import cli
from lora_hf.errors import UserError
from lora_hf.hub.upload import Destination
from lora_hf.hub.upload import _prepare as prepare


def refused(capsys, *words, repo=REPO):
    """Return the error of a dry run in this process."""
    assert cli.run([*map(str, push(*words, "--dry-run", repo=repo))], debug=False) == 2
    (line,) = [line for line in capsys.readouterr().err.splitlines() if line.startswith("error: ")]
    return line


@pytest.mark.parametrize(
    "name",
    ["a/b/c", "dialogues", "anna/", "anna/a--b", "anna/.x", "anna/día", "anna/x.git", f"{'a' * 97}/x", ""],
)
def test_an_invalid_repository_name_is_refused_with_the_rules(trained, capsys, name):
    line = refused(capsys, trained, repo=name)
    assert line.startswith(
        f"error: --repo-id={name!r} is not a valid name on the Hub: write USER/NAME, such as"
    )
    assert "repo_type" not in line


@pytest.mark.parametrize("name", ["a b", "a..b", ".a", "a.lock", "a/", "a:b", "día"])
def test_an_invalid_branch_name_is_refused(trained, capsys, name):
    line = refused(capsys, trained, "--revision", name)
    assert line.startswith(f"error: --revision={name!r} is not a valid branch name")


def test_a_folder_without_an_adapter_is_refused_with_the_files_expected(trained, tmp_path, capsys):
    run = shutil.copytree(trained, tmp_path / "run")
    (run / "adapter" / WEIGHTS).unlink()
    line = refused(capsys, run)
    assert f"has no {WEIGHTS}; it holds adapter_config.json, lora_hf.json. An adapter is" in line
    assert line.endswith("give their folder, or the run's that it is in")
    shutil.rmtree(run / "adapter")
    assert "is a finished run without its folder 'adapter'" in refused(capsys, run)
    (tmp_path / "empty").mkdir()
    assert f"has no {WEIGHTS}; it holds nothing. An adapter is" in refused(capsys, tmp_path / "empty")


def test_weights_with_another_hash_are_refused_with_a_remedy(trained, tmp_path, capsys):
    changed = shutil.copytree(trained / "adapter", tmp_path / "changed")
    manifest = json.loads((changed / "lora_hf.json").read_text())
    (changed / "lora_hf.json").write_text(json.dumps(manifest | {"weights_sha256": "0" * 64}))
    remedy = "it was changed or cut short: save or download the adapter again, all of its files"
    assert remedy in refused(capsys, changed)
    assert cli.run(["serve", "--adapter", f"a={changed}"], debug=False) == 2
    assert remedy in capsys.readouterr().err


def test_full_fine_tuning_is_refused_with_the_command_that_uploads_a_model(trained, tmp_path, capsys):
    run = shutil.copytree(trained, tmp_path / "full")
    (run / "adapter").rename(run / "model")
    line = refused(capsys, run)
    assert (
        f"--adapter {str(run)!r} is a run of full fine-tuning: it holds a whole model and no adapter" in line
    )
    assert f"`hf upload USER/NAME {run / 'model'}`" in line
    assert f"`predict --model {run}`" in line


class Hub:
    """Return `huggingface_hub`'s API with a repository of these files and tags."""

    def __init__(self, files, tags):
        siblings = [SimpleNamespace(rfilename=name) for name in files]
        self.info = SimpleNamespace(siblings=siblings, card_data=SimpleNamespace(tags=tags), private=False)

    def create_repo(self, *args, **kwargs):
        pass

    def model_info(self, *args, **kwargs):
        return self.info


def test_a_foreign_repository_is_changed_only_with_overwrite():
    theirs, ours = Hub([".gitattributes", "model.safetensors"], ["t5"]), Hub(["README.md"], ["lora_hf"])
    with pytest.raises(UserError, match="holds \\['model.safetensors'\\], which lora_hf did not push"):
        prepare(theirs, Destination(REPO))
    assert prepare(theirs, Destination(REPO, overwrite=True)) == {".gitattributes", "model.safetensors"}
    assert prepare(ours, Destination(REPO)) == {"README.md"}
    assert prepare(Hub([".gitattributes"], None), Destination(REPO)) == {".gitattributes"}
