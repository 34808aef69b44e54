"""The demo's page: a dialogue and each model's summary. It loads nothing from other servers."""

import os
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import gradio as gr
from fastapi import FastAPI

from lora_hf.demo.models import BASE, DemoModels
from lora_hf.serving.limits import Limits
from lora_hf.serving.server import listening, run

GRACE = 10
"""Seconds that an open request has at shutdown."""


def demo(root: Path, host: str, port: int) -> None:
    """Show the page until Ctrl-C or SIGTERM.

    Raises:
        UserError: there is no run with a model, or the address is not available.
    """
    with listening(host, port) as listener, closing(DemoModels(root)) as models:
        run(
            create_app(models, root.resolve().name), listener, "the page is on %s", GRACE, at_end=lambda: None
        )


def create_app(models: DemoModels, title: str) -> FastAPI:
    """Create the page's ASGI application, with the fonts of the visitor's machine and without telemetry."""
    os.environ["GRADIO_ANALYTICS_ENABLED"] = "False"
    theme = gr.themes.Default(font=["system-ui", "sans-serif"], font_mono=["ui-monospace", "monospace"])
    app = FastAPI(docs_url=None, redoc_url=None, openapi_url=None)
    return gr.mount_gradio_app(
        app, page(models, title), path="", theme=theme, footer_links=[], ssr_mode=False, show_error=True
    )


def page(models: DemoModels, title: str) -> gr.Blocks:
    """Build the page: a dialogue, all models' summaries side by side, and a switch of adapters."""
    with gr.Blocks(title=f"lora-hf demo: {title}", analytics_enabled=False) as blocks:
        gr.Markdown(f"# {title}")
        sample = gr.Dropdown(
            _choices(models), value=None, label="Dialogue of the test split", elem_id="sample"
        )
        dialogue = gr.Textbox(label="Dialogue", lines=8, max_length=Limits.max_chars, elem_id="dialogue")
        reference = gr.Textbox(
            label="Reference (written by a person)", interactive=False, elem_id="reference"
        )
        button = gr.Button("Summarize with all models", variant="primary", elem_id="all")
        with gr.Row():
            outputs = [_output_box(name, f"answer-{name}") for name in models.names]
        live = gr.Radio([BASE, *models.adapters], label="Switch adapters on the one base", elem_id="live")
        live_output = _output_box(BASE, "live-answer")
        sample.change(lambda number: _sample(models, number), sample, [dialogue, reference])
        dialogue.input(lambda: "", None, reference)  # the reference belongs to another dialogue
        button.click(lambda text: (yield from _summarize_all(models, text)), dialogue, outputs)
        live.change(lambda name, text: _summarize(models, name, text), [live, dialogue], live_output)
    return blocks


def _output_box(name: str, elem_id: str) -> gr.Textbox:
    return gr.Textbox(label=name, lines=3, interactive=False, elem_id=elem_id)


def _choices(models: DemoModels) -> list[tuple[str, int]]:
    begins = [row["dialogue"].replace("\n", " ")[:60] for row in models.samples]
    return [(f"{number + 1}: {begin}", number) for number, begin in enumerate(begins)]


def _sample(models: DemoModels, number: int | None) -> tuple[str, str]:
    if number is None:
        return "", ""
    row = models.samples[number]
    return row["dialogue"], row["references"][0]


def _summarize_all(models: DemoModels, dialogue: str) -> Iterator[list[Any]]:
    """Yield each model's summary as soon as it is there."""
    updates: list[Any] = [gr.skip()] * len(models.names)
    for number, name in enumerate(models.names):
        updates[number] = _summarize(models, name, dialogue)
        yield updates


def _summarize(models: DemoModels, name: str, dialogue: str) -> Any:
    """Return the summary, with its time beside the model's name."""
    if not dialogue.strip():
        raise gr.Error("Write a dialogue, or choose one of the test split.", print_exception=False)
    output = models.summarize(name, dialogue)
    cut = ", dialogue cut to fit" if output.is_cut else ""
    return gr.update(value=output.summary, label=f"{name} \u00b7 {output.seconds:.2f} s{cut}")
