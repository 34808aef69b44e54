"""The table: every figure in its column, for the terminal and for Markdown."""

import io

import pytest
from rich.console import Console
from support.records import make_comparison

from lora_hf.evaluation.rouge import ROUGE_NAMES
from lora_hf.reporting.comparison_table import (
    best_places,
    comparison_lines,
    comparison_markdown,
    comparison_notes,
    comparison_terminal,
)


def lines_of(comparison):
    return {line[0]: line[1:] for line in comparison_lines(comparison)}


def test_every_figure_is_in_its_run_s_column():
    lines = lines_of(make_comparison())
    assert lines[""] == ["base", "full", "LoRA"]
    cells = ["0.200 [0.180, 0.230]", "0.400 [0.370, 0.420]", "0.350 [0.320, 0.370]"]
    assert lines["ROUGE-1"] == cells
    assert lines["gain in ROUGE-1"] == ["–", "+0.200", "+0.150 (75%)"]
    assert lines["words"] == ["19.0"] * 3
    assert lines["weights trained"] == ["0 (0.00%)", "250,000 (100.00%)", "3,500 (1.40%)"]
    assert lines["on disk"] == ["–", "3.0 GiB", "14.2 KiB"]
    assert lines["learning rate"] == ["–", "0.0001", "0.001"]
    assert lines["training"] == ["–", "3,661 s", "61 s"]
    assert lines["scoring"] == ["3.2 s"] * 3  # not "3 s", nor "0 s" for what took some
    assert lines["peak memory"] == ["1,234 MiB"] * 3


def test_metrics_are_listed_in_one_order():
    names = [line[0] for line in comparison_lines(make_comparison())]
    assert names[1:5] == ["ROUGE-1", "ROUGE-2", "ROUGE-L", "ROUGE-Lsum"]


def test_no_share_is_shown_if_full_fine_tuning_gained_nothing():
    comparison = make_comparison()
    comparison["gains"] = {"full": -0.01, "lora": 0.15, "lora_share_of_full": None}
    assert lines_of(comparison)["gain in ROUGE-1"] == ["–", "-0.010", "+0.150"]
    comparison = make_comparison()
    comparison["paired_test"]["p_value"] = 0.71  # a share of a gain that does not differ is noise
    assert lines_of(comparison)["gain in ROUGE-1"] == ["–", "+0.200", "+0.150"]


def test_the_best_value_of_each_score_is_bold():
    comparison = make_comparison()
    for arm in comparison["arms"].values():
        arm["rouge2"] = 0.1  # none is better than another
        arm["rougeL"] = 0.3
    comparison["arms"]["base"]["rougeL"] = 0.2
    best = best_places(comparison)
    assert {(1, 2), (3, 2), (3, 3)} <= best and not {(1, 1), (1, 3), (2, 1), (2, 2), (2, 3), (3, 1)} & best
    text = comparison_markdown(comparison, "")
    assert "| ROUGE-1 | 0.200 [0.180, 0.230] | **0.400 [0.370, 0.420]** | 0.350 [0.320, 0.370] |" in text
    alone = make_comparison()
    alone["arms"] = {"lora": alone["arms"]["lora"]}
    del alone["gains"]
    assert best_places(alone) == set()


def test_best_references_and_deviations_are_shown_where_known():
    plain = lines_of(make_comparison())
    assert "best reference" not in plain and "deviation over seeds" not in plain
    several = make_comparison(spread=dict.fromkeys(ROUGE_NAMES, 0.0123), seeds=[1, 2])
    for arm in several["arms"].values():
        arm.update({f"{name}_best": 0.5 for name in ROUGE_NAMES})
    lines = lines_of(several)
    assert lines["deviation over seeds"] == ["–", "–", "0.012"]
    assert lines["best reference"] == ["0.500"] * 3
    assert "1,500 test dialogues, means of 2 seeds;" in " ".join(comparison_notes(several))


def test_notes_give_trivial_summaries_and_the_machine():
    trivial, words, sample, machine = comparison_notes(make_comparison())
    assert words == "Words: the mean per summary; references have 21.5."
    assert trivial == "ROUGE-1 of trivial summaries: first line 0.150."
    assert sample.startswith("1,500 test dialogues; 95 % intervals")
    assert machine == "tiny in float32 on cpu x86_64, 1 thread."


def test_notes_say_what_is_wrong_with_the_data():
    warned = make_comparison() | {"data_warnings": ["47 dialogues of validation are also in train"]}
    assert "Data: 47 dialogues of validation are also in train." in comparison_notes(warned)


def test_the_notes_begin_with_what_was_left_out() -> None:
    notes = comparison_notes(make_comparison() | {"diverged": ["r-64"]})
    assert notes[0] == "Left out, because the training diverged: r-64."


def test_markdown_has_one_row_a_line_and_as_many_cells_in_each():
    text = comparison_markdown(make_comparison(), "Base, full fine-tuning and LoRA")
    rows = [line for line in text.split("\n") if line.startswith("|")]
    assert {row.count("|") for row in rows} == {5}
    assert rows[1] == "| --- | ---: | ---: | ---: |"
    assert rows[2].startswith("| ROUGE-1 | 0.200 [0.180, 0.230] | ")
    assert len(rows) == len(comparison_lines(make_comparison())) + 1


def test_samples_keep_the_dialogues_lines_and_one_line_for_each_arm():
    text = comparison_markdown(make_comparison(), "Base, full fine-tuning and LoRA").split("## Samples")[1]
    assert "### test_0\n\n> #Tom#: Hi  \n> #Anna#: Bye  \n\n- reference: They part.\n- base: \n" in text
    assert "\n- full: Tom goes. Anna too.\n- LoRA: Tom | Anna\n" in text


@pytest.mark.parametrize("width", [80, 140])
def test_the_terminals_table_shows_the_same_figures_and_fits(width):
    stream = io.StringIO()
    Console(file=stream, width=width).print(comparison_terminal(make_comparison()))
    text = stream.getvalue()
    assert max(map(len, text.splitlines())) <= width
    for figure in ("0.350 [0.320, 0.370]", "+0.200", "1,234 MiB", "250,000 (100.00%)"):
        assert figure in text  # none is broken
