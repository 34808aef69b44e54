"""Published descriptions of a run contain names on the Hub, and no path of this machine."""

import pytest
import yaml

from lora_hf.config import RunConfig
from lora_hf.config.load import load_config
from lora_hf.errors import UserError
from lora_hf.reporting.card_facts import Base
from lora_hf.saved.public_names import public_base, public_config, public_dataset

COMMIT = "0123456789abcdef0123456789abcdef01234567"
OURS = {"base_fingerprint": "f" * 16, "base_model_revision": None}


@pytest.mark.parametrize(
    ("name", "manifest", "given", "public"),
    [
        (
            "google/flan-t5-base",
            OURS | {"base_model_revision": COMMIT},
            None,
            ("google/flan-t5-base", COMMIT),
        ),
        ("t5-small", {"base_model_revision": COMMIT}, None, ("t5-small", COMMIT)),
        ("google/flan-t5-base", {}, None, (None, None)),  # as in PEFT's files, while the Hub cannot be asked
        ("embedded", OURS, None, ("embedded", None)),
        ("models/t5", OURS, None, (None, None)),  # no commit, and not seen on the Hub: a folder, somewhere
        ("/home/anna/t5", OURS, None, (None, None)),
        ("./t5", {}, None, (None, None)),
        ("~/t5", {}, None, (None, None)),
        (r"C:\models\t5", {}, None, (None, None)),
        (None, {}, None, (None, None)),
        (f"/c/models--google--flan-t5-base/snapshots/{COMMIT}", OURS, None, ("google/flan-t5-base", COMMIT)),
        (f"/c/models--t5-small/snapshots/{COMMIT}", OURS, None, ("t5-small", COMMIT)),
        ("/home/anna/t5", OURS, "acme/t5", ("acme/t5", None)),
        ("/home/anna/t5", OURS, "acme/t5@v2", ("acme/t5", "v2")),
    ],
)
def test_a_base_has_the_name_that_others_know_it_by_or_none(name, manifest, given, public):
    base = public_base(name, manifest, given)
    assert (base.name, base.revision) == public
    assert base.fingerprint == manifest.get("base_fingerprint")


def test_a_name_that_is_a_folder_here_is_none_on_the_hub(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "models" / "t5").mkdir(parents=True)
    assert public_base("models/t5", {}, None) == Base(None, None, None)


@pytest.mark.parametrize("given", ["./t5", "/home/anna/t5", "a/b/c", "a--b"])
def test_a_given_base_is_a_name_on_the_hub(given):
    with pytest.raises(UserError, match="--base-model"):
        public_base("embedded", {}, given)


def test_data_of_a_file_have_no_public_name(tmp_path):
    file = tmp_path / "calls.jsonl"
    file.write_text("{}")
    assert public_dataset(str(file)) is None and public_dataset("/no/such.csv") is None
    assert public_dataset("embedded") == "embedded"


def test_the_public_config_is_the_runs_own_without_this_machine(tmp_path):
    run = {
        "model": {"model_name_or_path": "/home/anna/t5", "dtype": "float32"},
        "data": {"dataset_name": "/home/anna", "data_files": {"train": "/home/anna/calls.jsonl"}},
        "training": {
            "max_steps": 3,
            "push_to_hub": True,
            "hub_model_id": "anna/x",
            "logging_dir": "/home/anna/log",
        },
        "output_dir": "/home/anna/runs/x",
    }
    text = public_config(RunConfig.model_validate(run), Base("acme/t5", COMMIT), None, "x")
    kept = yaml.safe_load(text)
    assert "anna" not in text
    assert kept["training"] == {"max_steps": 3} and kept["output_dir"] == "runs/x"
    assert (kept["model"]["model_name_or_path"], kept["model"]["revision"]) == ("acme/t5", COMMIT)
    (tmp_path / "c.yaml").write_text(text)
    with pytest.raises(
        UserError, match="data.dataset_name=null is not text"
    ):  # an error when the run is repeated
        load_config(tmp_path / "c.yaml")
    (tmp_path / "c.yaml").write_text(text)
    assert load_config(tmp_path / "c.yaml", ["data.dataset_name=embedded"]).model.dtype == "float32"
