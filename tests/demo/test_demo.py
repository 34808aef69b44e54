"""The demo's page in a real browser: what it writes, and that it asks no other server for anything."""

import os
import re
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest
from support.inputs import FEW

from lora_hf import cli
from lora_hf.demo.models import DemoModels, find_runs
from lora_hf.errors import UserError
from lora_hf.run_records import read_predictions

CHROMIUM, DRIVER = Path("/usr/bin/chromium"), Path("/usr/bin/chromedriver")
FLAGS = """--headless=new --no-sandbox --disable-gpu --disable-quic --no-first-run
--disable-background-networking --disable-component-update --disable-sync""".split()
ALL_LOADED = "return performance.getEntriesByType('resource').map(entry => entry.name)"


@pytest.fixture(scope="module")
def comparison(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Runs as a comparison leaves them: base, full, lora, and lora with another seed."""
    before = signal.getsignal(signal.SIGTERM)
    root = tmp_path_factory.mktemp("runs") / "comparison"
    config = root.parent / "tiny.yaml"
    config.write_text("lora: {r: 4, lora_alpha: 8}\ntraining: {max_steps: 3, learning_rate: 5.0e-2}\n")
    for name, *own in (
        ("base", "method=base"),
        ("full", "method=full", "training.learning_rate=1.0e-3"),
        ("lora",),
        ("lora-seed-2", "seed=2"),
    ):
        words = ["train", "--config", str(config), *FEW, "generation.max_new_tokens=9", *own]
        assert cli.run([*words, f"output_dir={root / name}"], debug=False) == 0
    signal.signal(signal.SIGTERM, before)
    return root


def test_a_folder_without_a_run_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="is not a run: neither it nor a folder in it has a config.yaml"):
        find_runs(tmp_path)
    with pytest.raises(UserError, match="no such folder"):
        find_runs(tmp_path / "nowhere")
    (tmp_path / "config.yaml").write_text("lora: {rank: 3}")
    with pytest.raises(UserError, match="config.yaml is not readable"):
        find_runs(tmp_path)


@pytest.mark.slow
def test_each_model_of_the_demo_repeats_the_summaries_of_its_run(comparison: Path) -> None:
    models = DemoModels(comparison)
    assert (models.names, models.adapters) == (["base", "full", "lora"], ["lora"])
    for name, (folder, _) in find_runs(comparison).items():
        rows = read_predictions(folder)
        assert [models.summarize(name, row["dialogue"]).summary for row in rows] == [
            r["prediction"] for r in rows
        ]
    models.close()
    alone = DemoModels(comparison / "lora")
    assert (alone.names, alone.adapters) == (["base", "lora"], ["lora"])
    alone.close()


@pytest.fixture(scope="module")
def address(comparison: Path) -> Iterator[str]:
    command = [sys.executable, "-m", "lora_hf", "demo", str(comparison), "--port", "0"]
    process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True)
    assert process.stderr
    found = next((m for line in process.stderr if (m := re.search(r"the page is on (\S+)", line))), None)
    assert found
    yield found[1]
    process.send_signal(signal.SIGTERM)
    assert process.wait(30) == 0


@pytest.fixture
def browser(tmp_path: Path) -> Iterator[Any]:
    if not CHROMIUM.exists() or not DRIVER.exists():
        pytest.skip("no browser at hand: Debian's packages chromium and chromium-driver")
    webdriver = pytest.importorskip("selenium.webdriver")
    options = webdriver.ChromeOptions()
    options.binary_location = str(CHROMIUM)
    for flag in (*FLAGS, f"--user-data-dir={tmp_path / 'profile'}", "--window-size=1400,1600"):
        options.add_argument(flag)
    driver = webdriver.Chrome(options, webdriver.ChromeService(str(DRIVER)))
    yield driver
    driver.quit()


@pytest.mark.slow
def test_the_page_in_a_browser(browser: Any, address: str, comparison: Path) -> None:
    from selenium.webdriver.common.by import By
    from selenium.webdriver.support.ui import WebDriverWait

    wait = WebDriverWait(browser, 60)
    expected = {name: read_predictions(folder) for name, (folder, _) in find_runs(comparison).items()}

    def value(elem_id: str) -> str:
        return browser.find_element(By.CSS_SELECTOR, f"#{elem_id} textarea").get_attribute("value")

    def label(elem_id: str) -> str:
        return browser.find_element(By.CSS_SELECTOR, f"#{elem_id} label").text

    def click(selector: str) -> None:
        wait.until(lambda _: browser.find_elements(By.CSS_SELECTOR, selector))[0].click()

    def all_until(condition: Callable[[], bool]) -> None:
        def pressed(_: Any) -> bool:
            click("#all")  # again: a click is lost while the page still works, or moves the button
            return condition()

        wait.until(pressed)

    browser.get(address)
    click("#sample input")
    click("[role=option]:nth-of-type(2)")
    row = expected["lora"][1]
    wait.until(lambda _: value("dialogue") == row["dialogue"])
    wait.until(lambda _: value("reference") == row["references"][0])
    for name, rows in expected.items():
        all_until(lambda name=name, text=rows[1]["prediction"]: value(f"answer-{name}") == text)
        assert re.match(rf"{name} · \d+\.\d\d s", label(f"answer-{name}"))
    for name in ("lora", "base"):  # on one base, live
        click(f"#live input[value='{name}']")
        wait.until(lambda _, name=name: label("live-answer").startswith(f"{name} · "))
        assert value("live-answer") == expected[name][1]["prediction"]
    box = browser.find_element(By.CSS_SELECTOR, "#dialogue textarea")
    pasted = expected["lora"][0]["dialogue"][:40]
    with closing(DemoModels(comparison / "lora")) as alone:
        summary = alone.summarize("lora", pasted).summary
    assert summary != row["prediction"]
    box.clear()
    box.send_keys(pasted)
    all_until(lambda: value("answer-lora") == summary)
    box.clear()
    box.send_keys(" ")
    all_until(lambda: "Write a dialogue, or choose one" in browser.find_element(By.TAG_NAME, "body").text)
    loaded = browser.execute_script(ALL_LOADED)
    assert loaded and all(name.startswith((address, "data:", "blob:")) for name in loaded), loaded
    if where := os.environ.get("LORA_HF_SCREENSHOT"):
        browser.save_screenshot(where)
