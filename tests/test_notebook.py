"""The notebooks: they run, they show what they say, and their outputs are those of the code that is here."""

import re
from pathlib import Path

import nbformat
import pytest
from conftest import shared_data
from nbclient import NotebookClient
from nbformat import NotebookNode

from lora_hf.data.generator import generate
from lora_hf.files import checkpoint_fingerprint
from lora_hf.modeling import ASSETS

NOTEBOOKS = Path(__file__).parents[1] / "notebooks"
NOTEBOOK = NOTEBOOKS / "lora.ipynb"
NAMES = ("vision_vit", "vision_conv", "decoder_only", "adapters", "rank_study", "methods")
BEYOND = [NOTEBOOKS / f"{name}.ipynb" for name in NAMES]
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


def executed(path: Path, directory: Path) -> NotebookNode:
    """Run from an empty directory, so that the kernel imports the package as installed."""
    notebook = nbformat.read(path, as_version=4)
    NotebookClient(notebook, timeout=500, resources={"metadata": {"path": str(directory)}}).execute()
    assert not list(directory.iterdir())
    return notebook


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_it_runs_shows_what_it_says_and_leaves_nothing_behind(tmp_path):
    notebook = executed(NOTEBOOK, tmp_path)
    text = shown(notebook)
    assert [line for line in SAYS if line not in text] == []
    assert any("image/png" in output.get("data", {}) for output in outputs(notebook))  # the loss


def results(notebook: NotebookNode, heading: str) -> dict[str, list[float]]:
    """The table whose first line holds `heading`: row name -> its numbers."""
    printed = [
        "".join(o.text for o in cell.get("outputs", []) if o.output_type == "stream")
        for cell in notebook.cells
    ]  # one cell's output can come in pieces
    text = next(text for text in printed if heading in text)
    lines = text.split(heading, 1)[1].splitlines()[1:]
    found = (re.match(r"(\S+(?: \S+)*?) {2,}(.*)", line) for line in lines)
    return {m[1]: [float(n.replace(",", "")) for n in re.findall(r"\d[\d.,]*", m[2])] for m in found if m}


def check_vision(notebook: NotebookNode) -> None:
    """LoRA is near full fine-tuning and above the head alone, with few weights; it merges and reloads."""
    table = {name: row[1:] for name, row in results(notebook, "test accuracy").items()}  # without the rate
    full, lora, head = (table[arm] for arm in ("full", "LoRA", "head alone"))
    assert lora[0] > full[0] - 0.03
    assert lora[1] > head[2]  # the worst seed of LoRA, the best of the head
    assert lora[3] < 0.15 * full[3]
    text = shown(notebook)
    assert "off, its logits are the base's to the last bit: True" in text
    assert "merged equals unmerged within rounding: True" in text
    assert "equal logits: True" in text


def check_decoder(notebook: NotebookNode) -> None:
    """Full is best, LoRA with the head near, without it behind; each adapter is best on its own text."""
    table = results(notebook, "test loss  ")
    full, blocks, both = (table[arm][1] for arm in ("full", "LoRA, blocks", "LoRA, blocks and head"))
    assert full < both < full + 0.2 < blocks < table["base"][0]
    losses = results(notebook, "adapter  ")
    assert [min(losses, key=lambda name: losses[name][i]) for i in range(3)] == ["base", "summaries", "jobs"]
    text = shown(notebook)
    assert "the first adapter is as it was before the second: True" in text
    assert "without adapters, the base: True" in text
    assert "merged equals unmerged within rounding: True" in text


def check_adapters(notebook: NotebookNode) -> None:
    """Each adapter is best at its own task, a batch mixes them, and what is saved is what was trained."""
    table = results(notebook, "adapter    summary")
    base, summary, speakers = (table[name] for name in ("base", "summary", "speakers"))
    assert summary[0] > base[0] + 0.3 and summary[0] > speakers[0] + 0.3
    assert speakers[1] > base[1] + 0.3 and speakers[1] > summary[1] + 0.3
    text = shown(notebook)
    for said in (
        "the first adapter is as it was before the second",
        "as each alone",
        "the sum is the two together",
        "the same summaries from a fresh base",
    ):
        assert f"{said}: True" in text


def check_rank(notebook: NotebookNode) -> None:
    """More rank keeps more of the update; at the smallest, training does better than cutting."""
    table = results(notebook, "rank    energy")
    energy, cut = ([row[i] for row in table.values()] for i in (0, 1))
    assert energy == sorted(energy) and energy[-1] == 1
    assert table["1"][2] > cut[0] + 0.1 and cut[3] > cut[-1] - 0.1
    assert "what is cut needs no less than what is trained: True" in shown(notebook)


def check_methods(notebook: NotebookNode) -> None:
    """Every method starts as the base, learns, and merges into it."""
    starts = results(notebook, "largest difference")
    assert list(starts) == ["LoRA", "rsLoRA", "DoRA", "PiSSA", "OLoRA"]
    found = re.findall(r"^(\w+) +(?:[\d.e-]+ +)?(\d\.\d{3})(?: +(\de-\d\d))?$", shown(notebook), re.MULTILINE)
    scores = {name: float(rouge) for name, rouge, _ in found}
    assert min(scores[name] for name in starts) > scores["base"] + 0.2
    assert all(float(error) < 1e-4 for name, _, error in found if name != "base")


PUBLISHED = NOTEBOOKS / "published.ipynb"


def check_published(notebook: NotebookNode) -> None:
    """The published figures come again, with what they leave unsaid."""
    table = results(notebook, "published   again")
    assert table == {"base": [0.2334, 0.2333], "full": [0.4216, 0.4214], "LoRA": [0.4081, 0.4081]}
    text = shown(notebook)
    assert "one prediction for three rows: True" in text
    assert "full - LoRA: 0.0133 [0.0065, 0.0202]" in text and "LoRA keeps 93% of the gain" in text
    widths = results(notebook, "of rows   of dialogues")
    assert all(of_dialogues > 1.2 * of_rows for of_rows, of_dialogues in widths.values())


@pytest.mark.slow
def test_the_published_predictions_are_scored_again(tmp_path, monkeypatch):
    file = shared_data("flan_t5_predictions") / "dialogue-summary-training-results.csv"
    monkeypatch.setenv("PREDICTIONS", str(file))
    check_published(executed(PUBLISHED, tmp_path))


def test_the_committed_scores_are_those_that_are_published():
    check_published(nbformat.read(PUBLISHED, as_version=4))


CHECKS = {
    "vision_vit": check_vision,
    "vision_conv": check_vision,
    "decoder_only": check_decoder,
    "adapters": check_adapters,
    "rank_study": check_rank,
    "methods": check_methods,
}


@pytest.mark.slow
@pytest.mark.timeout(600)
@pytest.mark.parametrize("path", BEYOND, ids=lambda path: path.stem)
def test_a_notebook_runs_and_shows_what_it_says(path, tmp_path):
    notebook = executed(path, tmp_path)
    assert not [output for output in outputs(notebook) if output.output_type == "error"]
    CHECKS[path.stem](notebook)


@pytest.mark.parametrize("path", BEYOND, ids=lambda path: path.stem)
def test_the_committed_outputs_show_what_is_said(path):
    notebook = nbformat.read(path, as_version=4)
    assert shown(notebook)
    CHECKS[path.stem](notebook)


@pytest.mark.parametrize("path", sorted(NOTEBOOKS.glob("*.ipynb")), ids=lambda path: path.stem)
def test_committed_outputs_are_whole_and_clean(path):
    cells = [cell for cell in nbformat.read(path, as_version=4).cells if cell.cell_type == "code"]
    assert [cell.execution_count for cell in cells] == list(range(1, len(cells) + 1))
    made = [output for cell in cells for output in cell.outputs]
    assert made and not [o for o in made if o.output_type == "error" or o.get("name") == "stderr"]


def test_its_outputs_are_of_the_shipped_model_and_sample():
    text = shown(nbformat.read(NOTEBOOK, as_version=4))
    fingerprint = checkpoint_fingerprint(sorted(ASSETS.glob("model*.safetensors")))
    assert f"fingerprint {fingerprint}" in text, f"the model has changed since; run {REFRESH}"
    assert generate("test", 1)[0]["dialogue"] in text, f"the dialogues have changed since; run {REFRESH}"


@pytest.mark.parametrize("path", sorted(NOTEBOOKS.glob("*.ipynb")), ids=lambda path: path.stem)
def test_its_outputs_name_no_machine(path):
    text = nbformat.writes(nbformat.read(path, as_version=4))
    places = (r"/home/|/Users/|/tmp/", f"{Path.home()}/", f"{NOTEBOOKS.parent}/", "Traceback|Warning")
    assert not re.search("|".join(places), text)
