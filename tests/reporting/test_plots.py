"""The picture: its size, what it draws, and that it needs no window."""

import subprocess
import sys

import pytest
from matplotlib.figure import Figure
from matplotlib.image import imread
from support.records import make_comparison

from lora_hf.reporting.figures import draw_picture

BARS = ("rouge1", "rouge2", "rougeL")


@pytest.fixture
def drawn(monkeypatch, tmp_path):
    """Draw a comparison and get the figure as well as the file."""
    figures = []
    save = Figure.savefig
    monkeypatch.setattr(Figure, "savefig", lambda self, *a, **k: (figures.append(self), save(self, *a, **k)))

    def draw(comparison):
        draw_picture(comparison, tmp_path / "picture.png")
        return figures[-1], imread(tmp_path / "picture.png")

    return draw


def test_the_picture_is_1200_by_675_and_not_empty(drawn):
    _, pixels = drawn(make_comparison())
    assert pixels.shape[:2] == (675, 1200)
    assert pixels[..., :3].std() > 0.05


def test_bars_are_as_high_as_the_scores_and_whiskers_reach_the_intervals(drawn):
    comparison = make_comparison()
    figure, _ = drawn(comparison)
    (axes,) = figure.axes
    bars = [container for container in axes.containers if hasattr(container, "patches")]
    for method, container in zip(("base", "full", "lora"), bars, strict=True):
        arm = comparison["arms"][method]
        assert [patch.get_height() for patch in container.patches] == [arm[name] for name in BARS]
    whiskers = [c for c in axes.containers if not hasattr(c, "patches")]
    for method, whisker in zip(("base", "full", "lora"), whiskers, strict=True):
        segment = whisker.lines[2][0].get_segments()[0]
        assert segment[:, 1].tolist() == pytest.approx(comparison["intervals"][method]["rouge1"])
    assert axes.get_title(loc="left") == "tiny: ROUGE on 1,500 test dialogues"
    assert axes.get_ylim()[0] == 0


def test_the_legend_names_each_arm_once_and_says_how_much_lora_trains(drawn):
    figure, _ = drawn(make_comparison())
    labels = [text.get_text() for text in figure.legends[0].get_texts()]
    assert sorted(labels) == sorted(
        ["base", "full", "LoRA (1.4% of the weights)", "best trivial summary (first lines)"]
    )


@pytest.mark.parametrize("score", [0.0, 1.0, 0.3])
def test_scores_at_the_ends_and_intervals_that_miss_them_by_rounding_are_drawn(drawn, score):
    comparison = make_comparison()
    for method in ("base", "full", "lora"):
        comparison["arms"][method].update(dict.fromkeys(BARS, score))
        comparison["intervals"][method] = dict.fromkeys(BARS, [score + 1e-17, score + 1e-17])
        comparison["intervals"][method]["rouge2"] = [score + 1e-12, score - 1e-12]
    comparison["trivial"]["first line"] = dict.fromkeys(BARS, score)
    figure, _ = drawn(comparison)
    bars = [patch for c in figure.axes[0].containers if hasattr(c, "patches") for patch in c.patches]
    assert len(bars) == 9 and {bar.get_height() for bar in bars} == {score}


@pytest.mark.slow
def test_drawing_does_not_ask_for_a_window_system():
    code = "import sys, lora_hf.reporting.figures; print('matplotlib.pyplot' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "False"
