"""Commands that run until they are stopped: `serve` and `demo`."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated

import typer

from lora_hf.arguments import MAX_MERGED
from lora_hf.cli.options import Engine, Quantization
from lora_hf.errors import UserError
from lora_hf.serving.limits import Limits

Host = Annotated[str, typer.Option(help="Address to listen on. 0.0.0.0 accepts other machines.")]


def serve(
    adapter: Annotated[
        list[str] | None,
        typer.Option(
            metavar="NAME=DIR",
            help="Adapter to serve, from a folder or USER/NAME on the Hub. Repeat for several.",
        ),
    ] = None,
    base: Annotated[
        str | None,
        typer.Option(
            help="Base model to load the adapters on, or a whole model to serve alone: a merged, fully "
            "fine-tuned or exported folder. Default: the first adapter's base model."
        ),
    ] = None,
    host: Annotated[
        str,
        typer.Option(
            help="Address to listen on. 0.0.0.0 accepts other machines, and needs a token for them in the "
            "environment variable LORA_HF_SERVE_TOKEN."
        ),
    ] = "127.0.0.1",
    port: Annotated[
        int, typer.Option(min=0, max=65535, help="Port to listen on. 0 takes a free one.")
    ] = 8000,
    adapters_dir: Annotated[
        Path | None, typer.Option(help="Folder from which clients may load adapters over HTTP.")
    ] = Limits.adapters_dir,
    max_batch: Annotated[
        int, typer.Option(min=1, help="Largest number of dialogues per batch.")
    ] = Limits.max_batch,
    max_wait: Annotated[
        float, typer.Option(min=0, help="Seconds to wait for a full batch.")
    ] = Limits.max_wait,
    max_queue: Annotated[
        int, typer.Option(min=1, help="Largest number of waiting requests. Beyond it: status 503.")
    ] = Limits.max_queue,
    timeout: Annotated[
        float, typer.Option(min=0.001, help="Seconds before a request is answered by status 504.")
    ] = Limits.timeout,
    max_chars: Annotated[
        int, typer.Option(min=1, help="Longest dialogue in characters. Beyond it: status 413.")
    ] = Limits.max_chars,
    max_new_tokens: Annotated[
        int, typer.Option(min=1, help="Largest number of tokens in a summary.")
    ] = Limits.max_new_tokens,
    max_beams: Annotated[
        int, typer.Option(min=1, help="Largest number of beams that a request may ask for.")
    ] = Limits.max_beams,
    long: Annotated[
        str,
        typer.Option(
            help="Dialogues that are too long: cut refuses them, or cuts them on request; split summarizes "
            "them in parts."
        ),
    ] = Limits.long,
    quantization: Quantization = None,
    engine: Engine = None,
    max_merged: Annotated[
        int,
        typer.Option(
            min=1,
            help="With --engine ctranslate2: adapters that are kept merged, each with the memory of a whole "
            "model. A request for another one waits until it is merged.",
        ),
    ] = MAX_MERGED,
) -> None:
    """Serve a base model and its adapters over HTTP.

    Ask it by POST /summarize with {"dialogue": "...", "adapter": "NAME"}; its page /docs has all requests.
    Requests for different adapters share a batch. With --engine ctranslate2, those for the same adapter do.

    One adapter: [dim]lora-hf serve --adapter brief=runs/quickstart/lora[/dim]

    Several: [dim]lora-hf serve --base google/flan-t5-base --adapter brief=runs/a --adapter long=runs/b[/dim]

    A merged or exported folder: [dim]lora-hf serve --base merged[/dim]
    """
    limits = Limits(
        max_chars=max_chars,
        max_new_tokens=max_new_tokens,
        max_beams=max_beams,
        max_queue=max_queue,
        max_batch=max_batch,
        max_wait=max_wait,
        timeout=timeout,
        long=long,
        adapters_dir=adapters_dir,
    )
    with needing("serve"):
        from lora_hf.serving.server import serve as serve_adapters
    serve_adapters(base, adapter or [], host, port, limits, quantization, engine, max_merged)


def demo(
    run: Annotated[
        Path,
        typer.Argument(
            metavar="RUN", help="Output directory of a run or a comparison, or an exported folder."
        ),
    ],
    host: Host = "127.0.0.1",
    port: Annotated[
        int, typer.Option(min=0, max=65535, help="Port to listen on. 0 takes a free one.")
    ] = 7860,
) -> None:
    """Show the summaries of the base model and of trained models side by side, on a web page.

    Of a comparison: [dim]lora-hf demo runs/quickstart[/dim]
    """
    with needing("demo"):
        from lora_hf.demo.page import demo as show
    show(run, host, port)


@contextmanager
def needing(extra: str) -> Iterator[None]:
    """Turn a missing package into one message with the command that installs it."""
    try:
        yield
    except ModuleNotFoundError as error:
        raise UserError(f"{extra} needs the package {error.name}: pip install 'lora_hf[{extra}]'") from None
