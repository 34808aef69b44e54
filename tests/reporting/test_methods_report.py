"""The study's table and picture: every figure in its place, for one variant and for many."""

import io

import pytest
from matplotlib.figure import Figure
from matplotlib.image import imread
from rich.console import Console
from support.records import record

from lora_hf.reporting.comparison_table import comparison_lines, comparison_markdown, comparison_terminal
from lora_hf.reporting.figures import draw_picture


def make_study(**others):
    """A base of 0.2, a LoRA of 0.35 and others by name: ROUGE-1 and weights."""
    scores = {"base": (0.2, 0), "lora": (0.35, 3_500)} | others
    variants = {
        name: record(rouge1, weights, train_seconds=float(bool(weights)) * 61, n_examples=1500)
        for name, (rouge1, weights) in scores.items()
    }
    test = {"metric": "rouge1", "difference": -0.15, "interval": [-0.2, -0.1], "p_value": 0.0001, "n": 1500}
    return {
        "variants": variants,
        "order": list(variants),
        "intervals": {name: {"rouge1": [v[0] - 0.03, v[0] + 0.02]} for name, v in scores.items()},
        "against_lora": {name: test for name in variants if name != "lora"},
        "eval_ratio": dict.fromkeys(variants, 1.25),
    }


def test_every_figure_stands_in_its_column():
    header, base, lora = comparison_lines(make_study())
    assert len(header) == len(base) == len(lora)
    assert base[1:4] == ["0.200 [0.170, 0.220]", "-0.150", "0.0001"]
    assert base[4:] == ["0", "–", "1,234", "1.25"]
    assert lora[:5] == ["lora", "0.350 [0.320, 0.370]", "–", "–", "3,500"]
    assert lora[5] == "61 s"


def test_markdown_and_the_terminal_say_the_same():
    study = make_study(prompt_tuning=(0.36, 4_000), full=(0.4, 1_234_567))
    text = comparison_markdown(study, "Methods side by side")
    assert (
        "| prompt_tuning | 0.360 [0.330, 0.380] |" in text
        and "| full | **0.400 [0.370, 0.420]** |" in text
        and "1,500 test dialogues" in text
    )
    out = io.StringIO()
    Console(file=out, width=80).print(comparison_terminal(study))
    for line in comparison_lines(study)[1:]:
        assert all(cell in out.getvalue() for cell in line)  # none is broken


@pytest.fixture
def drawn(monkeypatch, tmp_path):
    figures = []
    save = Figure.savefig
    monkeypatch.setattr(Figure, "savefig", lambda self, *a, **k: (figures.append(self), save(self, *a, **k)))

    def draw(study):
        draw_picture(study, tmp_path / "methods.png")
        return figures[-1], imread(tmp_path / "methods.png")

    return draw


def test_points_and_intervals_are_the_scores_and_beside_them_the_weights(drawn):
    study = make_study(dora=(0.36, 4_000), full=(0.37, 250_000))
    figure, pixels = drawn(study)
    scores, weights = figure.axes
    assert pixels.shape[1] == 1350 and pixels[..., :3].std() > 0.05
    assert [label.get_text() for label in scores.get_yticklabels()] == study["order"]
    for place, (name, container) in enumerate(zip(study["order"], scores.containers, strict=True)):
        point, _, (reach,) = container.lines
        assert point.get_xydata().tolist() == [[study["variants"][name]["rouge1"], place]]
        assert reach.get_segments()[0][:, 0].tolist() == pytest.approx(study["intervals"][name]["rouge1"])
    points = [[3_500, 1], [4_000, 2], [250_000, 3]]  # the base trains none
    assert [line.get_xydata().tolist() for line in weights.lines] == [[point] for point in points]
    assert [text.get_text() for text in weights.texts] == ["0", "3,500", "4,000", "250,000"]


@pytest.mark.parametrize("score", [0.0, 1.0])
def test_scores_at_the_ends_are_drawn(drawn, score):
    study = make_study(base=(score, 0), lora=(score, 0))
    for ends in study["intervals"].values():
        ends["rouge1"] = [score + 1e-12, score - 1e-12]
    scores = drawn(study)[0].axes[0]
    assert [container.lines[0].get_xdata()[0] for container in scores.containers] == [score] * 2
    assert scores.get_xlim()[0] < score < scores.get_xlim()[1]
