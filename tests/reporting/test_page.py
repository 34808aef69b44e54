"""The page in a real browser: it sorts, it finds, it fits a phone, it is dark where the screen is."""

from pathlib import Path
from typing import Any

import pytest
from support.browser import CONTRASTS, errors_of, set_scheme, set_width
from support.records import WRITTEN, write_run

from lora_hf.experiments.report import report
from lora_hf.files import read_object, write_json
from lora_hf.reporting.figures import COLORS, MORE_COLORS, OTHER_VARIANT


@pytest.fixture(scope="module")
def page(browser: Any, tmp_path_factory: pytest.TempPathFactory) -> Any:
    root: Path = tmp_path_factory.mktemp("compared")
    for method in WRITTEN:
        write_run(root, method)
    results = root / "full" / "results.json"
    write_json(results, read_object(results) | {"rougeL": 0.45})
    browser.get((report(root)[2]).as_uri())
    return browser


def ids(page: Any) -> list[str]:
    return [node.text for node in page.find_elements("css selector", "article h3")]


def choose(page: Any, label: str) -> None:
    for option in page.find_elements("css selector", "#order option"):
        if option.text == label:
            option.click()


def test_dialogues_are_in_the_test_s_order_until_another_is_chosen(page: Any) -> None:
    assert ids(page) == ["t0", "t1", "t2"]
    choose(page, "largest gap: |full − base|")
    assert ids(page)[0] == "t1"  # 0.7 = (1 + 0.4) / 2 against nothing; elsewhere 2/3
    choose(page, "largest gap: |LoRA − full|")
    assert ids(page)[0] == "t0"  # the only one in which they differ, and LoRA is the worse
    choose(page, "ROUGE-1 of full")
    assert ids(page)[0] == "t0"
    page.find_element("id", "reverse").click()
    assert ids(page)[-1] == "t0"
    choose(page, "as in the test set")
    assert ids(page) == ["t2", "t1", "t0"]
    page.find_element("id", "reverse").click()


def test_the_page_opens_with_the_verdict_and_marks_the_best(page: Any) -> None:
    first = page.find_element("css selector", "h1 + *").text.splitlines()
    assert first[0].startswith("LoRA vs full: ") and first[1].startswith("LoRA vs base: ")
    names = [node.text for node in page.find_elements("css selector", ".basis dt")]
    assert names == ["data", "model", "seed", "finished", "folder"]
    rows = page.find_elements("css selector", "#scores tbody tr")
    bold = [len(row.find_elements("css selector", "strong")) for row in rows]
    assert bold[:5] == [0, 0, 1, 0, 0]  # of the other scores, all three have the same


def test_a_word_is_found_and_shared_words_are_marked(page: Any) -> None:
    find = page.find_element("id", "find")
    find.send_keys("agrees")
    assert ids(page) == ["t1"]
    assert page.find_element("id", "count").text == "1 of 3 found"
    assert "Anna says yes" in [mark.text for mark in page.find_elements("css selector", "article mark")]
    find.clear()
    find.send_keys("zebra")
    none = page.find_element("id", "none")
    assert ids(page) == [] and none.text == "No dialogue with “zebra”. Show all"
    page.find_element("id", "clear").click()
    assert len(ids(page)) == 3 and not none.is_displayed()


def test_model_output_is_not_executed_and_the_page_has_no_errors(page: Any) -> None:
    assert "alert(1)" in page.find_element("id", "examples").text
    assert errors_of(page) == []
    assert page.execute_script("return performance.getEntriesByType('resource').length") == 0


@pytest.mark.parametrize("width", [320, 390, 1100])
def test_the_page_fits_the_screen(page: Any, width: int) -> None:
    set_width(page, width)
    wide = page.execute_script("return document.documentElement.scrollWidth")
    assert wide <= width
    set_width(page, 0)


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_every_text_stands_out_from_what_is_behind_it(page: Any, scheme: str) -> None:
    set_scheme(page, scheme)
    found = page.execute_script(CONTRASTS, "main *")
    assert len(found) > 100
    assert [what for ratio, what in found if ratio < 4.5] == []
    script = "return getComputedStyle(document.body).backgroundColor.match(/\\d+/g).map(Number)"
    paper = page.execute_script(script)
    assert all(contrast(color, paper) >= 3 for color in (*COLORS.values(), *MORE_COLORS, OTHER_VARIANT))


def contrast(color: str, paper: list[int]) -> float:
    """Return the contrast of a chart's color (WCAG 2, 1.4.11 asks for 3)."""

    def light(rgb: list[int]) -> float:
        parts = [v / 255 / 12.92 if v <= 10 else ((v / 255 + 0.055) / 1.055) ** 2.4 for v in rgb]
        return sum(part * share for part, share in zip(parts, (0.2126, 0.7152, 0.0722), strict=True))

    dark, bright = sorted((light([*bytes.fromhex(color[1:])]), light(paper[:3])))
    return (bright + 0.05) / (dark + 0.05)


def test_the_page_follows_the_reader_s_dark_mode(page: Any) -> None:
    def lightness(scheme: str) -> tuple[int, int]:
        set_scheme(page, scheme)
        script = "return getComputedStyle({})[{!r}].match(/\\d+/g).slice(0, 3).map(Number)"
        paper = page.execute_script(script.format("document.body", "backgroundColor"))
        ink = page.execute_script(script.format("document.querySelector('svg text')", "fill"))
        return sum(paper), sum(ink)

    (light_paper, light_ink), (dark_paper, dark_ink) = lightness("light"), lightness("dark")
    assert light_paper > 700 > 300 > light_ink
    assert dark_paper < 150 < 500 < dark_ink
