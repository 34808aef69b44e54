"""The notebook: it runs, it shows what it says, and its outputs are of the shipped model and sample."""

import re
from pathlib import Path

import nbformat
import pytest
from nbclient import NotebookClient
from nbformat import NotebookNode

from lora_hf.data.generator import generate
from lora_hf.files import checkpoint_fingerprint
from lora_hf.modeling import ASSETS

NOTEBOOK = Path(__file__).parents[1] / "notebooks" / "lora.ipynb"
REFRESH = "jupyter execute --inplace notebooks/lora.ipynb"
SAYS = [
    "A and B   4,608 weights = 8 x 512 + 64 x 8, 86% fewer",
    "4,608 of 37,376 weights train\nthe start is the identity: True",
    "equal to the layer by hand: True",
    "the base is as it was: True",
    "merged equals unmerged within rounding: True",
    "unmerged, every weight is bit for bit as before: True",
    "equal logits: True",
]  # that it learns, the notebook asserts itself


def outputs(notebook: NotebookNode) -> list[NotebookNode]:
    return [output for cell in notebook.cells for output in cell.get("outputs", [])]


def shown(notebook: NotebookNode) -> str:
    """All that the cells printed."""
    return "".join(output.text for output in outputs(notebook) if output.output_type == "stream")


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_it_runs_shows_what_it_says_and_leaves_nothing_behind(tmp_path):
    notebook = nbformat.read(NOTEBOOK, as_version=4)
    # The working directory is empty, so the kernel imports the package as installed, as a reader's does.
    NotebookClient(notebook, timeout=500, resources={"metadata": {"path": str(tmp_path)}}).execute()
    text = shown(notebook)
    assert [line for line in SAYS if line not in text] == []
    assert any("image/png" in output.get("data", {}) for output in outputs(notebook))  # the loss
    assert not list(tmp_path.iterdir())


def test_its_outputs_are_of_the_shipped_model_and_sample():
    text = shown(nbformat.read(NOTEBOOK, as_version=4))
    fingerprint = checkpoint_fingerprint(sorted(ASSETS.glob("model*.safetensors")))
    assert f"fingerprint {fingerprint}" in text, f"the model has changed since; run {REFRESH}"
    assert generate("test", 1)[0]["dialogue"] in text, f"the dialogues have changed since; run {REFRESH}"


def test_its_outputs_name_no_machine():
    text = nbformat.writes(nbformat.read(NOTEBOOK, as_version=4))
    places = (r"/home/|/Users/|/tmp/", f"{Path.home()}/", f"{NOTEBOOK.parents[1]}/", "Traceback|Warning")
    assert not re.search("|".join(places), text)
