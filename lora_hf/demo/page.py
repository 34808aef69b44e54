"""The demo's page: a dialogue and the summaries of the chosen models. It loads nothing from other servers."""

import logging
import os
from collections.abc import Iterator
from contextlib import closing
from dataclasses import dataclass
from html import escape
from pathlib import Path

import gradio as gr
from fastapi import FastAPI

from lora_hf.arguments import is_blank
from lora_hf.demo.models import DemoModels
from lora_hf.reporting.highlight import marked
from lora_hf.serving.limits import Limits
from lora_hf.serving.server import listening, run

logger = logging.getLogger(__name__)
GRACE = 10
"""Seconds that an open request has at shutdown."""
STYLE = """
.note { margin: 0 0 .5rem; }
input[role="combobox"] { padding-right: 2rem !important; text-overflow: ellipsis; }
.cards { display: grid; grid-template-columns: repeat(auto-fit, minmax(min(100%, 260px), 1fr)); gap: .8rem; }
.cards section { border: 1px solid var(--border-color-primary); border-radius: 6px; padding: .6rem .9rem; }
.cards h3 { margin: 0 0 .3rem; font-size: 1rem; }
.cards small { font-weight: 400; color: var(--body-text-color); }
.cards mark { background: #fde68a; color: #1c2329; border-radius: 3px; padding: 0 .15em; }
"""
"""Of the summaries; the rest is Gradio's theme, light or dark as the reader's system."""


@dataclass
class Asked:
    """What one visitor last asked about: summaries of another dialogue are no longer written."""

    dialogue: str = ""


def demo(root: Path, host: str, port: int) -> None:
    """Show the page until Ctrl-C or SIGTERM.

    Raises:
        UserError: there is no run with a model, or the address is not available.
    """
    with listening(host, port) as listener:
        logger.info("loading the models of %s", root)
        with closing(DemoModels(root)) as models:
            logger.info("loaded: %s", models.description)
            app = create_app(models, root.resolve().name)
            run(app, listener, "the page is on %s (stop with Ctrl-C)", GRACE, at_end=lambda: None)


def create_app(models: DemoModels, title: str) -> FastAPI:
    """Create the page's ASGI application, with the fonts of the visitor's machine and without telemetry."""
    os.environ["GRADIO_ANALYTICS_ENABLED"] = "False"
    theme = gr.themes.Default(font=["system-ui", "sans-serif"], font_mono=["ui-monospace", "monospace"])
    dark_enough = "*primary_700"  # for white text (WCAG 2: a contrast of 4.5)
    theme.set(button_primary_background_fill=dark_enough, button_primary_background_fill_dark=dark_enough)
    app = FastAPI(docs_url=None, redoc_url=None, openapi_url=None)
    return gr.mount_gradio_app(
        app,
        page(models, title),
        path="",
        theme=theme,
        css=STYLE,
        footer_links=[],
        ssr_mode=False,
        show_error=True,
    )


def page(models: DemoModels, title: str) -> gr.Blocks:
    """Build the page: a dialogue, and below it the summary of each chosen model.

    A dialogue of the test split is chosen and answered when the page opens. Old summaries disappear as soon
    as the dialogue changes.
    """
    first = 0 if models.samples else None
    with gr.Blocks(title=f"lora-hf demo: {title}", analytics_enabled=False) as blocks:
        gr.Markdown(f"# {title}\n\n{models.description}")
        sample = gr.Dropdown(
            _choices(models), value=first, label="Dialogue of the test split", elem_id="sample"
        )
        given, known = _sample(models, first)
        dialogue = gr.Textbox(
            given,
            label="Dialogue (choose one above, or write your own)",
            lines=8,
            max_length=Limits.max_chars,
            elem_id="dialogue",
        )
        reference = gr.Textbox(
            known, label="Reference (written by a person)", interactive=False, elem_id="reference"
        )
        chosen = gr.CheckboxGroup(models.names, value=models.names, label="Models", elem_id="models")
        button = gr.Button("Summarize", variant="primary", elem_id="summarize")
        answers = gr.HTML(_note("Loading the page ..."), elem_id="answers")
        asked = gr.State(Asked())  # one for each visitor, changed in place while summaries are written
        inputs = [asked, dialogue, reference, chosen]

        def summarize(asked: Asked, text: str, reference: str, names: list[str]) -> Iterator[str]:
            asked.dialogue = text
            for html in _summarize(models, text, reference, names):
                if asked.dialogue != text:
                    yield gr.skip()  # at the end, Gradio shows what came last once more
                    return
                yield html

        def change(asked: Asked, text: str) -> tuple[None, str, str]:
            asked.dialogue = text
            return None, "", _note("The dialogue has changed: press Summarize.")

        chose_sample = sample.input(
            lambda number: _sample(models, number), sample, [dialogue, reference], show_progress="hidden"
        )
        for event in (blocks.load, button.click, chosen.input, chose_sample.then):
            # always_last: what is asked while summaries are written is answered after them, not forgotten
            event(summarize, inputs, answers, show_progress="hidden", trigger_mode="always_last")
        outdated = [sample, reference, answers]  # the reference belongs to another dialogue
        dialogue.input(change, [asked, dialogue], outdated, show_progress="hidden")
        dialogue.change(  # Gradio reports no input where the whole text is deleted
            lambda asked, text: gr.skip() if text else change(asked, text),
            [asked, dialogue],
            outdated,
            show_progress="hidden",
        )
    return blocks


def _choices(models: DemoModels) -> list[tuple[str, int]]:
    begins = [row["dialogue"].replace("\n", " ")[:60] for row in models.samples]
    return [(f"{number + 1}: {begin}", number) for number, begin in enumerate(begins)]


def _sample(models: DemoModels, number: int | None) -> tuple[str, str]:
    if number is None:
        return "", ""
    row = models.samples[number]
    return row["dialogue"], row["references"][0]


def _summarize(models: DemoModels, dialogue: str, reference: str, names: list[str]) -> Iterator[str]:
    """Yield the summaries as HTML, again with each that is finished."""
    if is_blank(dialogue):
        yield _note("There is no dialogue yet. Write one above, or choose one of the test split.")
        return
    if not names:
        yield _note("No model is chosen. Choose at least one above.")
        return
    cards = {name: _card(name, "writing ...", "") for name in models.names if name in names}
    legend = '<p class="note">Marked: words that are not in the reference.</p>' if reference else ""
    for name in cards:
        yield f'{legend}<div class="cards">{"".join(cards.values())}</div>'
        output = models.summarize(name, dialogue)
        about = f"{output.seconds:.2f} s" + (", dialogue cut to fit" if output.is_cut else "")
        text = marked(output.summary, [reference], differences=True) if reference else escape(output.summary)
        cards[name] = _card(name, about, text or "<em>(an empty summary)</em>")
    yield f'{legend}<div class="cards">{"".join(cards.values())}</div>'


def _card(name: str, about: str, html: str) -> str:
    name = escape(name)
    return (
        f'<section id="answer-{name}"><h3>{name} <small>{about}</small></h3>'
        f'<p class="summary">{html}</p></section>'
    )


def _note(text: str) -> str:
    return f'<p class="note">{text}</p>'
