"""The page: a dialogue, and what each side makes of it. Nothing of it comes from another server."""

import os
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

os.environ["GRADIO_ANALYTICS_ENABLED"] = "False"  # read when gradio is imported, and when a page is made

import gradio as gr
from fastapi import FastAPI

from lora_hf.demo.models import BASE, Sides
from lora_hf.serving.limits import Limits
from lora_hf.serving.server import listening, run

GRACE = 10
"""Seconds that a summary which is being written has at the end."""


def demo(root: Path, host: str, port: int) -> None:
    """Show the page until Ctrl-C or SIGTERM.

    Raises:
        UserError: no run is there that has something to show, or the address cannot be had.
    """
    with listening(host, port) as listener, closing(Sides(root)) as sides:
        run(create_app(sides, root.resolve().name), listener, "the page is on %s", GRACE, at_end=lambda: None)


def create_app(sides: Sides, title: str) -> FastAPI:
    """The page as an application, with the fonts of the machine that it is shown on."""
    theme = gr.themes.Default(font=["system-ui", "sans-serif"], font_mono=["ui-monospace", "monospace"])
    app = FastAPI(docs_url=None, redoc_url=None, openapi_url=None)
    return gr.mount_gradio_app(
        app, page(sides, title), path="", theme=theme, footer_links=[], ssr_mode=False, show_error=True
    )


def page(sides: Sides, title: str) -> gr.Blocks:
    """A dialogue; what all sides make of it, side by side; and one adapter after another on the one base."""
    with gr.Blocks(title=f"lora-hf demo: {title}", analytics_enabled=False) as blocks:
        gr.Markdown(f"# {title}")
        sample = gr.Dropdown(
            _choices(sides), value=None, label="A dialogue of the test split", elem_id="sample"
        )
        dialogue = gr.Textbox(label="Dialogue", lines=8, max_length=Limits.max_chars, elem_id="dialogue")
        reference = gr.Textbox(label="What a person wrote", interactive=False, elem_id="reference")
        button = gr.Button("Summarize by all", variant="primary", elem_id="all")
        with gr.Row():
            answers = [_answer_box(name, f"answer-{name}") for name in sides.names]
        live = gr.Radio([BASE, *sides.adapters], label="Switch adapters on the one base", elem_id="live")
        live_answer = _answer_box(BASE, "live-answer")
        sample.change(lambda number: _sample(sides, number), sample, [dialogue, reference])
        dialogue.input(lambda: "", None, reference)  # another dialogue than the person's
        button.click(lambda text: (yield from _write_all(sides, text)), dialogue, answers)
        live.change(lambda name, text: _write(sides, name, text), [live, dialogue], live_answer)
    return blocks


def _answer_box(name: str, elem_id: str) -> gr.Textbox:
    return gr.Textbox(label=name, lines=3, interactive=False, elem_id=elem_id)


def _choices(sides: Sides) -> list[tuple[str, int]]:
    begins = [row["dialogue"].replace("\n", " ")[:60] for row in sides.samples]
    return [(f"{number + 1}: {begin}", number) for number, begin in enumerate(begins)]


def _sample(sides: Sides, number: int | None) -> tuple[str, str]:
    if number is None:
        return "", ""
    row = sides.samples[number]
    return row["dialogue"], row["references"][0]


def _write_all(sides: Sides, dialogue: str) -> Iterator[list[Any]]:
    """Each side's answer as soon as it is there."""
    updates: list[Any] = [gr.skip()] * len(sides.names)
    for number, name in enumerate(sides.names):
        updates[number] = _write(sides, name, dialogue)
        yield updates


def _write(sides: Sides, name: str, dialogue: str) -> Any:
    """The answer, its time beside its name."""
    if not dialogue.strip():
        raise gr.Error("Write a dialogue, or take one of the test split.", print_exception=False)
    written = sides.write(name, dialogue)
    cut = ", of a dialogue that was cut" if written.is_cut else ""
    return gr.update(value=written.summary, label=f"{name} \u00b7 {written.seconds:.2f} s{cut}")
