"""The demo's page in a real browser: what it writes, and that it asks no other server for anything."""

import queue
import re
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import closing
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, cast

import pytest
from support.browser import LOADED, errors_of, set_width
from support.inputs import FEW

import lora_hf
from lora_hf import cli
from lora_hf.demo.models import DemoModels, Output, find_runs
from lora_hf.errors import UserError
from lora_hf.run_records import read_predictions
from lora_hf.saved.export import export
from lora_hf.saved.source import find_source
from lora_hf.serving.server import listening

CARDS = """return [...document.querySelectorAll("#answers section")]
  .map((card) => [card.id, card.querySelector(".summary").innerText])"""
"""Summaries on the page by the ids of their cards, read at one moment."""


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
    (tmp_path / "config.json").write_text("{}")
    with pytest.raises(UserError, match="a whole model is shown once it is exported"):
        find_runs(tmp_path)
    (tmp_path / "config.yaml").write_text("lora: {rank: 3}")
    with pytest.raises(UserError, match="config.yaml is not readable"):
        find_runs(tmp_path)


def test_other_seeds_are_left_out_beside_the_first_one_alone(tmp_path: Path) -> None:
    for name in ("lora", "lora-seed-2", "new-seed-3"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "config.yaml").write_text("method: base\noutput_dir: run\n")
    assert [*find_runs(tmp_path)] == ["lora", "new-seed-3"]
    for name in ("lora-seed-2", "new-seed-3"):
        assert [*find_runs(tmp_path / name)] == [name]


def test_a_run_that_cannot_be_shown_is_named_with_the_reason(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    reasons = {
        "bottleneck": ("bottleneck", None, r"predict --adapter \S*/bottleneck` generates with it"),
        "unfinished": ("lora", None, "its training has not ended"),
        "base": ("full", "model", "rename the folder"),
    }
    for name, (method, model, why) in reasons.items():
        (tmp_path / name / (model or "")).mkdir(parents=True)
        (tmp_path / name / "config.yaml").write_text(f"method: {method}\noutput_dir: run\n")
        with pytest.raises(UserError, match=f"{name}: .*{why}"):
            DemoModels(tmp_path / name)
    with pytest.raises(UserError, match="bottleneck.*; .*unfinished"):
        DemoModels(tmp_path)
    (tmp_path / "untrained").mkdir()
    (tmp_path / "untrained/config.yaml").write_text("method: base\noutput_dir: run\n")
    with closing(DemoModels(tmp_path)) as models:
        assert models.names == ["base"]
    assert all(re.search(f"{name} is left out: .*{why}", caplog.text) for name, (*_, why) in reasons.items())


def test_exported_models_are_shown_alone_and_beside_runs(tmp_path: Path) -> None:
    pytest.importorskip("ctranslate2", reason="the package ctranslate2 is not installed")
    folder, text = tmp_path / "runs/ct2", "Anna: Lunch at noon?\nBen: Yes."
    export(find_source("embedded"), folder, "ctranslate2", "int8", examples=1)
    expected = lora_hf.load(folder).summarize(text)
    with closing(DemoModels(folder)) as models:
        assert (models.names, models.adapters, models.samples) == (["ct2"], [], [])
        assert models.description.startswith("Exported: ") and "int8 by ctranslate2" in models.description
        assert models.summarize("ct2", text).summary == expected
    (tmp_path / "runs/base").mkdir()
    (tmp_path / "runs/base/config.yaml").write_text("method: base\noutput_dir: runs/base\n")
    with closing(DemoModels(tmp_path / "runs")) as models:
        assert models.names == ["base", "ct2"] and "; Exported: " in models.description
        assert models.summarize("ct2", text).summary == expected
    (folder / "model.bin").write_bytes(b"no model")
    with pytest.raises(UserError, match="is not the file that was exported from embedded"):
        DemoModels(folder)


@dataclass
class OneAtATime:
    """In the place of `DemoModels`: a model writes its summary once the test has allowed it."""

    names: list[str]
    allowed: queue.Queue[None] = field(default_factory=queue.Queue)
    written: list[tuple[str, str]] = field(default_factory=list)
    samples: tuple[()] = ()
    description: str = "two models"

    def summarize(self, name: str, dialogue: str) -> Output:
        self.allowed.get(timeout=60)
        self.written.append((name, dialogue))
        return Output(f"{name} of {dialogue}", 0.0, False)


@pytest.mark.slow
def test_summaries_of_a_dialogue_that_has_changed_are_not_written() -> None:
    gradio_client = pytest.importorskip("gradio_client", reason="the package gradio is not installed")
    import uvicorn

    from lora_hf.demo.page import create_app

    models = OneAtATime(["base", "lora"])
    app = create_app(cast(DemoModels, models), "runs")
    server = uvicorn.Server(uvicorn.Config(app, log_level="error", timeout_graceful_shutdown=1))
    with listening("127.0.0.1", 0) as listener:
        listener.listen()
        thread = threading.Thread(target=server.run, args=([listener],))
        thread.start()
        try:
            port = listener.getsockname()[1]
            client = gradio_client.Client(f"http://127.0.0.1:{port}", verbose=False)
            job = client.submit("old", "", models.names, api_name="/summarize")
            assert "writing ..." in next(job)
            assert "has changed" in client.predict("new", api_name="/change")[2]
            models.allowed.put(None)
            job.result(60)
            assert models.written == [("base", "old")]
            assert "writing" not in str(job.outputs()[-1])  # the note stays
            for _ in models.names:
                models.allowed.put(None)
            assert "lora of new" in client.predict("new", "", models.names, api_name="/summarize")
        finally:
            server.should_exit = True
            thread.join()


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


@pytest.mark.slow
def test_the_page_in_a_browser(browser: Any, address: str, comparison: Path) -> None:
    from selenium.webdriver.support.ui import WebDriverWait

    wait = WebDriverWait(browser, 60)
    expected = {name: read_predictions(folder) for name, (folder, _) in find_runs(comparison).items()}

    def first(selector: str) -> Any:
        return wait.until(lambda _: browser.find_elements("css selector", selector), f"no {selector}")[0]

    def value(elem_id: str, field: str = "textarea") -> str:
        return first(f"#{elem_id} {field}").get_attribute("value")

    def wait_for(texts: dict[str, str]) -> None:
        """Wait until the page shows these summaries, and no others."""

        def shown(_: Any) -> bool:
            return dict(browser.execute_script(CARDS)) == {f"answer-{n}": text for n, text in texts.items()}

        wait.until(shown, f"not shown: {texts}")

    def wait_for_note(text: str) -> None:
        read = "return document.getElementById('answers').innerText"
        wait.until(lambda _: text in browser.execute_script(read), f"not shown: {text}")

    errors_of(browser)
    browser.get(address)
    row = expected["lora"][0]  # chosen and answered when the page opens
    wait_for({name: rows[0]["prediction"] for name, rows in expected.items()})
    assert (value("dialogue"), value("reference")) == (row["dialogue"], row["references"][0])
    assert re.match(r"lora \d+\.\d\d s", first("#answer-lora h3").text)
    marks = [mark.text for mark in browser.find_elements("css selector", "#answer-lora mark")]
    text, words = first("#answer-lora .summary").text, row["references"][0]
    assert marks and all(mark in text and mark not in words for mark in marks)
    first("#models input[name='full']").click()  # other models in the same place
    wait_for({name: expected[name][0]["prediction"] for name in ("base", "lora")})
    first("#sample input").click()
    first("[role=option]:nth-of-type(2)").click()
    wait_for({name: expected[name][1]["prediction"] for name in ("base", "lora")})
    assert value("dialogue") == expected["lora"][1]["dialogue"]
    box, pasted = first("#dialogue textarea"), row["dialogue"][:40]
    box.clear()
    box.send_keys(pasted)
    wait_for_note("The dialogue has changed")
    assert not browser.find_elements("css selector", "#answers section")
    wait.until(lambda _: value("reference") == value("sample", "input") == "")
    with closing(DemoModels(comparison / "lora")) as alone:
        summaries = {name: alone.summarize(name, pasted).summary for name in ("base", "lora")}
    first("#summarize").click()
    wait_for(summaries)
    assert not browser.find_elements("css selector", "#answers mark")  # nothing to compare with
    for _ in range(3):  # faster than the page answers
        first("#summarize").click()
        box.send_keys("!")
        first("#summarize").click()
        pasted += "!"
        with closing(DemoModels(comparison / "lora")) as alone:
            summaries = {name: alone.summarize(name, pasted).summary for name in ("base", "lora")}
        wait_for(summaries)
    from selenium.webdriver.common.keys import Keys

    box.send_keys(Keys.CONTROL, "a")
    box.send_keys(Keys.DELETE)
    wait_for_note("The dialogue has changed")
    box.send_keys(" ")
    first("#summarize").click()
    wait_for_note("There is no dialogue yet. Write one above")
    loaded = browser.execute_script(LOADED)
    assert loaded and all(name.startswith((address, "data:", "blob:")) for name in loaded), loaded
    for width in (390, 0):
        set_width(browser, width)
        assert browser.execute_script("return document.documentElement.scrollWidth") <= (width or 1280)
    assert errors_of(browser) == []
