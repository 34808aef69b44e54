"""Imports before there is work to do: help, mistakes and finished runs do not wait for PyTorch."""

import json
import subprocess
import sys
from importlib.machinery import PathFinder
from pathlib import Path
from typing import Any

import pytest

from lora_hf import cli
from lora_hf.config import training, training_fields
from lora_hf.config.load import load_config
from lora_hf.errors import UserError

ROOT = Path(__file__).parents[2]
HEAVY = {"torch", "transformers", "accelerate", "datasets", "evaluate", "matplotlib", "nltk", "rouge_score"}
MISTAKES = {
    "lora.rnk=4": "did you mean 'lora.r'",
    "training.lr=3": "did you mean 'training.learning_rate'",
    "training.learning_rat=3": "did you mean 'training.learning_rate'",
    "training.learning_rate=fast": "is not a number",
    "training.optim=adamm": "is not one of",
    "training.torch_compile_backend=fast": "is not one of",
    "training.fp16_full_eval=true": "overflows in T5",
    "training.num_train_epochs=-1": "must be at least 0",
    "model.dtype=half": "is not 'auto', 'float32'",
    "data.prompt=nothing": "prompt",
    "no_section={a: 1}": "unknown key 'no_section'",
}
"""One of each kind of mistake that a config can have by itself, and what is said of it."""


def in_a_process(code: str) -> Any:
    """Return the JSON in the last line of a fresh interpreter with every extra installed."""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout.splitlines()[-1]) | {"stderr": done.stderr}


def test_nothing_heavy_is_imported_for_the_package_for_help_or_for_a_mistake_in_a_config() -> None:
    verbs = [verb.__name__ for verb in cli.VERBS]
    seen = in_a_process(f"""
import contextlib, io, json, sys
heavy, seen = set({sorted(HEAVY)}), {{}}
def look(what):
    seen[what] = sorted(heavy & set(sys.modules))
import lora_hf
look("import lora_hf")
from lora_hf import cli
with contextlib.redirect_stdout(io.StringIO()):
    for verb in {verbs}:
        assert cli.run([verb, "--help"], debug=False) == 0, verb
        look(verb)
for mistake in {list(MISTAKES)}:
    for verb in ("train", "compare", "plan"):
        assert cli.run([verb, "--config", "quickstart", mistake], debug=False) == 2, mistake
        look(verb + " " + mistake)
print(json.dumps({{"seen": seen}}))
""")
    assert len(seen["seen"]) == 1 + len(verbs) + 3 * len(MISTAKES)
    assert {what: found for what, found in seen["seen"].items() if found} == {}
    errors = [line for line in seen["stderr"].splitlines() if line.startswith("error: ")]
    expected = [said for said in MISTAKES.values() for _ in range(3)]
    assert len(errors) == len(expected)
    assert all(said in error for said, error in zip(expected, errors, strict=True))


@pytest.mark.slow
def test_a_command_hides_packages_that_it_does_not_use_and_reveals_a_quantizer_where_it_is_needed() -> None:
    """This environment has PEFT, HQQ, torchao and scikit-learn, and Transformers imports what it finds."""
    seen = in_a_process("""
import json, sys
from lora_hf import cli
try:
    cli.main(["train", "--config", "nowhere"])
except SystemExit as end:
    status = end.code
from transformers.utils.import_utils import is_hqq_available, is_peft_available
from transformers.utils.import_utils import is_sklearn_available, is_torchao_available
found = [is_peft_available(), is_hqq_available(), is_torchao_available(), is_sklearn_available()]
from lora_hf.models.storage import STORAGE_FORMATS
assert not {"hqq", "torchao"} & {name for name, module in sys.modules.items() if module is not None}
for name in ("affine4", "torchao_int8"):
    STORAGE_FORMATS[name].check_package()
import hqq, torchao
print(json.dumps({"status": status, "found": found, "shown": [hqq.__name__, torchao.__name__]}))
""")
    assert (seen["status"], seen["found"], seen["shown"]) == (2, [False] * 4, ["hqq", "torchao"])
    assert all(PathFinder.find_spec(name) for name in cli.HIDDEN)  # or the test above is empty


def test_the_packaged_fields_are_those_of_the_versions_they_name(monkeypatch: pytest.MonkeyPatch) -> None:
    """With other versions installed the library itself is asked, and a field that is new in it is taken."""
    packaged = training_fields.training_fields()
    monkeypatch.setattr(training_fields, "library_versions", lambda: "fields of others")
    installed = training_fields.training_fields()
    assert installed is training_fields.installed_fields() and installed is not packaged
    new = {"anyOf": [{"type": "integer"}]}
    monkeypatch.setattr(training, "training_fields", lambda: installed | {"brand_new": new})
    config = load_config("quickstart", ["training.learning_rate=5e-4"])
    assert config.training["learning_rate"] == 5e-4
    assert training.check_training({"brand_new": 3}) == ({"brand_new": 3}, [])
    with pytest.raises(UserError, match="training.optim='adamm' is not one of"):
        load_config("quickstart", ["training.optim=adamm"])
