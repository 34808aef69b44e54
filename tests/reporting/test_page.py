"""The page in a real browser: it sorts, it finds, it fits a phone, it is dark where the screen is."""

from pathlib import Path
from typing import Any

import pytest
from support.browser import errors_of, set_scheme, set_width
from support.records import WRITTEN, write_run

from lora_hf.experiments.report import report


@pytest.fixture(scope="module")
def page(browser: Any, tmp_path_factory: pytest.TempPathFactory) -> Any:
    root: Path = tmp_path_factory.mktemp("compared")
    for method in WRITTEN:
        write_run(root, method)
    browser.get((report(root)[2]).as_uri())
    return browser


def ids(page: Any) -> list[str]:
    return [node.text for node in page.find_elements("css selector", "article h3")]


def choose(page: Any, label: str) -> None:
    for option in page.find_elements("css selector", "#order option"):
        if option.text == label:
            option.click()


def test_dialogues_are_sorted_by_the_chosen_gap(page: Any) -> None:
    assert sorted(ids(page)) == ["t0", "t1", "t2"]
    choose(page, "full − base")
    assert ids(page)[0] == "t1"  # 0.7 = (1 + 0.4) / 2 against nothing; elsewhere 2/3
    choose(page, "as in the test set")
    assert ids(page) == ["t0", "t1", "t2"]
    page.find_element("id", "reverse").click()
    assert ids(page) == ["t2", "t1", "t0"]
    page.find_element("id", "reverse").click()


def test_a_word_is_found_and_shared_words_are_marked(page: Any) -> None:
    find = page.find_element("id", "find")
    find.send_keys("agrees")
    assert ids(page) == ["t1"]
    assert page.find_element("id", "count").text == "1 of 1"
    assert "Anna says yes" in [mark.text for mark in page.find_elements("css selector", "article mark")]
    find.clear()
    find.send_keys(" ")
    find.clear()


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
