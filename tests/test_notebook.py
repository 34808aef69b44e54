"""The notebooks: they run, they show what they say, and their outputs are those of the code that is here.

The slow tests run a short training of each, and check what holds at any length. What only the whole training
shows is checked on the committed outputs, and by `make notebooks`, which runs all of it.
"""

import os
import re
import subprocess
from pathlib import Path

import nbformat
import pytest
from jupyter_client.manager import AsyncKernelManager
from nbclient import NotebookClient
from nbformat import NotebookNode
from support.inputs import shared_data
from support.warm_python import WarmPython

from lora_hf.config import DataConfig
from lora_hf.data.splits import load_split
from lora_hf.files import checkpoint_fingerprint
from lora_hf.models.load import ASSETS

NOTEBOOKS = Path(__file__).parents[1] / "notebooks"
NOTEBOOK = NOTEBOOKS / "lora.ipynb"
REFRESH = "jupyter execute --inplace notebooks/lora.ipynb"
SHARE = os.environ.get("LORA_HF_NOTEBOOK_SHARE", "0.15")
"""Share of its training that each notebook runs; `make notebooks` sets it to 1."""
SAYS = {
    "lora": [
        "A and B   4,608 weights = 8 x 512 + 64 x 8, 86% fewer\nthe start is the identity: True",
        "4,608 of 37,376 weights train\nthe start is the identity: True",
        "equal to the layer by hand: True",
        "the base is as it was: True",
        "merged equals unmerged within rounding: True",
        "unmerged, every weight is bit for bit as before: True",
        "equal logits: True",
    ],
    "vision_vit": [
        "off, its logits are the base's to the last bit: True",
        "merged equals unmerged within rounding: True",
        "unmerged, the logits are as before: True",
        "equal logits: True",
    ],
    "vision_conv": [
        "off, its logits are the base's to the last bit: True",
        "merged equals unmerged within rounding: True",
        "unmerged, every bit of it is back: True",
        "equal logits: True",
    ],
    "decoder_only": [
        "the first adapter is as it was before the second: True",
        "without adapters, the base: True",
        "merged equals unmerged within rounding: True",
        "unmerged, the logits are as before: True",
    ],
    "adapters": [
        "the first adapter is as it was before the second: True",
        "as each alone: True",
        "the sum is the two together: True",
        "the same summaries from a fresh base: True",
    ],
    "rank_study": [],
    "methods": [],
}
"""Text that each notebook prints, however long it trains."""
LORA_SCORES = f"{'base':>22}{'LoRA':>22}"
TABLES = {
    "lora": [LORA_SCORES],
    "vision_vit": ["validation accuracy at", "test accuracy"],
    "vision_conv": ["validation accuracy at", "test accuracy"],
    "decoder_only": ["validation loss at", "test loss  ", "adapter  "],
    "adapters": ["adapter    summary"],
    "rank_study": ["rank    energy"],
    "methods": ["largest difference", "merged differs by"],
}
"""A part of each table's first line."""


def committed(name: str) -> NotebookNode:
    return nbformat.read(NOTEBOOKS / f"{name}.ipynb", as_version=4)


def outputs(notebook: NotebookNode) -> list[NotebookNode]:
    return [output for cell in notebook.cells for output in cell.get("outputs", [])]


def shown(notebook: NotebookNode) -> str:
    """All that the cells printed."""
    return "".join(output.text for output in outputs(notebook) if output.output_type == "stream")


def pictures(notebook: NotebookNode) -> list[int]:
    """Number of figures that each cell shows."""
    return [
        sum("image/png" in output.get("data", {}) for output in cell.get("outputs", []))
        for cell in notebook.cells
    ]


KERNEL = """import sys
del sys.modules["sklearn"]  # hidden from commands
from ipykernel.kernelapp import launch_new_instance
launch_new_instance()"""


class Started(AsyncKernelManager):
    """A manager of a kernel that is started and ended elsewhere."""

    has_kernel = True
    owns_kernel = False


def executed(path: Path, directory: Path, warm_python: WarmPython | None = None) -> NotebookNode:
    """Run, without a time limit, from an empty directory.

    The kernel imports the package as installed, or is a fork of an interpreter that has imported it.
    """
    notebook = nbformat.read(path, as_version=4)
    if warm_python:
        manager = Started()
        manager.write_connection_file()
        kernel = warm_python.start(
            ["-c", KERNEL, "-f", manager.connection_file],
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            cwd=directory,
            env={name: os.environ[name] for name in ("LORA_HF_NOTEBOOK_SHARE", "OMP_NUM_THREADS")},
        )
        try:
            NotebookClient(notebook, timeout=None, km=manager).execute(cleanup_kc=True)
        finally:
            kernel.kill()
            kernel.wait()
    else:
        NotebookClient(notebook, timeout=None, resources={"metadata": {"path": str(directory)}}).execute()
    assert not list(directory.iterdir())
    return notebook


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


def vision_table(notebook: NotebookNode) -> list[list[float]]:
    """Results of full, LoRA and the head alone: mean, lowest and highest accuracy, trained weights, share."""
    table = results(notebook, "test accuracy")
    return [table[arm][1:] for arm in ("full", "LoRA", "head alone")]  # without the rate


def check_lora(notebook: NotebookNode) -> None:
    """It learns: LoRA's interval is above the base's."""
    _, _, base_high, _, lora_low, _ = results(notebook, LORA_SCORES)["rouge1"]
    assert lora_low > base_high


def check_vision(notebook: NotebookNode) -> None:
    """LoRA trains few weights, and with them learns: five digits are one in five by chance."""
    full, lora, _ = vision_table(notebook)
    assert lora[3] < 0.15 * full[3]
    assert lora[0] > 0.4


def check_decoder(notebook: NotebookNode) -> None:
    """Each adapter is better on its own text than the base and than the other."""
    losses = results(notebook, "adapter  ")
    base, summaries, jobs = (losses[name] for name in ("base", "summaries", "jobs"))
    assert summaries[1] < min(base[1], jobs[1]) - 0.3
    assert jobs[2] < min(base[2], summaries[2]) - 0.3


def check_adapters(notebook: NotebookNode) -> None:
    """Each adapter is better at its own task than the base and than the other."""
    table = results(notebook, "adapter    summary")
    base, summary, speakers = (table[name] for name in ("base", "summary", "speakers"))
    assert summary[0] > max(base[0], speakers[0]) + 0.15
    assert speakers[1] > max(base[1], summary[1]) + 0.15


def check_rank(notebook: NotebookNode) -> None:
    """More rank keeps more of the update, the whole rank all; it learns, for the base's ROUGE-1 is 0.2."""
    table = results(notebook, "rank    energy")
    energy = [row[0] for row in table.values()]
    assert energy == sorted(energy) and energy[-1] == 1
    assert table["16"][1] == table["16"][2] > 0.35


def method_scores(notebook: NotebookNode) -> dict[str, float]:
    """ROUGE-1 of each method and of the base."""
    rows = results(notebook, "merged differs by").items()
    return {name: row[0] if name == "base" else row[1] for name, row in rows}


def check_methods(notebook: NotebookNode) -> None:
    """Every method starts as the base, learns, and merges into it."""
    starts = results(notebook, "largest difference")
    assert list(starts) == ["LoRA", "rsLoRA", "DoRA", "PiSSA", "OLoRA"]
    assert all(row[:2] == [0, 0] for row in starts.values())  # 0.0e+00
    scores = method_scores(notebook)
    assert min(scores[name] for name in starts) > scores["base"] + 0.1
    errors = re.findall(r" (\de[+-]\d\d)$", shown(notebook), re.MULTILINE)
    assert len(errors) == len(starts) and max(map(float, errors)) < 1e-4


def lora_figures(notebook: NotebookNode) -> None:
    """LoRA gains far more than the noise."""
    base, _, _, lora, _, _ = results(notebook, LORA_SCORES)["rouge1"]
    assert lora > base + 0.4


def vision_figures(notebook: NotebookNode) -> None:
    """LoRA is near full fine-tuning and above the head alone."""
    full, lora, head = vision_table(notebook)
    assert lora[0] > full[0] - 0.03
    assert lora[1] > head[2]  # the worst seed of LoRA, the best of the head


def decoder_figures(notebook: NotebookNode) -> None:
    """Full is best, LoRA with the head near, without it behind; on dialogues the base stays best."""
    table = results(notebook, "test loss  ")
    full, blocks, both = (table[arm][1] for arm in ("full", "LoRA, blocks", "LoRA, blocks and head"))
    assert full < both < full + 0.2 < blocks < table["base"][0]
    losses = results(notebook, "adapter  ")
    assert [min(losses, key=lambda name: losses[name][i]) for i in range(3)] == ["base", "summaries", "jobs"]


def adapters_figures(notebook: NotebookNode) -> None:
    """Each adapter is far better at its own task."""
    table = results(notebook, "adapter    summary")
    base, summary, speakers = (table[name] for name in ("base", "summary", "speakers"))
    assert summary[0] > max(base[0], speakers[0]) + 0.3
    assert speakers[1] > max(base[1], summary[1]) + 0.3


def rank_figures(notebook: NotebookNode) -> None:
    """At the smallest rank, training does better than cutting; half the rank is nearly as good as all."""
    table = results(notebook, "rank    energy")
    cut = [row[1] for row in table.values()]
    assert table["1"][2] > cut[0] + 0.1 and cut[3] > cut[-1] - 0.1
    assert "what is cut needs no less than what is trained: True" in shown(notebook)


def methods_figures(notebook: NotebookNode) -> None:
    """Every method learns much."""
    scores = method_scores(notebook)
    base = scores.pop("base")
    assert min(scores.values()) > base + 0.2


CHECKS = {
    "lora": (check_lora, lora_figures),
    "vision_vit": (check_vision, vision_figures),
    "vision_conv": (check_vision, vision_figures),
    "decoder_only": (check_decoder, decoder_figures),
    "adapters": (check_adapters, adapters_figures),
    "rank_study": (check_rank, rank_figures),
    "methods": (check_methods, methods_figures),
}
"""Statements that hold however long it trains, and those that hold after the whole training alone."""


def check(name: str, notebook: NotebookNode, whole: bool) -> None:
    """Its sentences, pictures and tables are there, and what they say holds."""
    text = shown(notebook)
    assert [line for line in SAYS[name] if line not in text] == []
    assert pictures(notebook) == pictures(committed(name))
    for heading in TABLES[name]:
        ours, theirs = (results(one, heading) for one in (notebook, committed(name)))
        assert {row: len(of) for row, of in ours.items()} == {row: len(of) for row, of in theirs.items()}
    CHECKS[name][0](notebook)
    if whole:
        CHECKS[name][1](notebook)


@pytest.mark.slow
@pytest.mark.parametrize("name", CHECKS)
def test_a_notebook_runs_and_its_outputs_support_its_text(name, tmp_path, monkeypatch, warm_python):
    monkeypatch.setenv("LORA_HF_NOTEBOOK_SHARE", SHARE)
    monkeypatch.setenv("OMP_NUM_THREADS", "1")  # models this small gain nothing from more
    check(name, executed(NOTEBOOKS / f"{name}.ipynb", tmp_path, warm_python), whole=float(SHARE) == 1)


@pytest.mark.parametrize("name", CHECKS)
def test_the_committed_outputs_support_the_text(name):
    check(name, committed(name), whole=True)


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
    assert load_split(DataConfig(max_test_samples=1), "test")[0].dialogue in text, (
        f"the dialogues have changed since; run {REFRESH}"
    )


@pytest.mark.parametrize("path", sorted(NOTEBOOKS.glob("*.ipynb")), ids=lambda path: path.stem)
def test_its_outputs_name_no_machine(path):
    text = nbformat.writes(nbformat.read(path, as_version=4))
    places = (r"/home/|/Users/|/tmp/", f"{Path.home()}/", f"{NOTEBOOKS.parent}/", "Traceback|Warning")
    assert not re.search("|".join(places), text)
