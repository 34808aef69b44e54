"""The commands that stay: a server, and a page."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated

import typer

from lora_hf.errors import UserError
from lora_hf.serving.limits import Limits

Host = Annotated[str, typer.Option(help="0.0.0.0 lets other machines in.")]


def serve(
    adapter: Annotated[
        list[str] | None, typer.Option(metavar="NAME=DIR", help="One of several; also USER/NAME on the Hub.")
    ] = None,
    base: Annotated[str | None, typer.Option(help="The base model, if not the first adapter's.")] = None,
    host: Host = "127.0.0.1",
    port: Annotated[int, typer.Option(min=0, max=65535, help="0 takes a free one.")] = 8000,
    adapters_dir: Annotated[
        Path | None, typer.Option(help="Where adapters may be loaded from over HTTP.")
    ] = Limits.adapters_dir,
    max_batch: Annotated[int, typer.Option(min=1, help="Dialogues at once.")] = Limits.max_batch,
    max_wait: Annotated[float, typer.Option(min=0, help="Seconds to fill a batch.")] = Limits.max_wait,
    max_queue: Annotated[
        int, typer.Option(min=1, help="Requests that may wait; then 503.")
    ] = Limits.max_queue,
    timeout: Annotated[
        float, typer.Option(min=0.001, help="Seconds for a request; then 504.")
    ] = Limits.timeout,
    max_chars: Annotated[int, typer.Option(min=1, help="Of a dialogue; then 413.")] = Limits.max_chars,
    max_new_tokens: Annotated[int, typer.Option(min=1, help="Of a summary.")] = Limits.max_new_tokens,
    max_beams: Annotated[int, typer.Option(min=1, help="That may be asked for.")] = Limits.max_beams,
) -> None:
    """Serve one base and many adapters over HTTP, requests for different adapters in one batch.

    [dim]lora-hf serve --base google/flan-t5-base --adapter brief=runs/brief --adapter long=runs/long[/dim]
    """
    limits = Limits(
        max_chars=max_chars,
        max_new_tokens=max_new_tokens,
        max_beams=max_beams,
        max_queue=max_queue,
        max_batch=max_batch,
        max_wait=max_wait,
        timeout=timeout,
        adapters_dir=adapters_dir,
    )
    with needing("serve"):
        from lora_hf.serving.server import serve as serve_adapters
    serve_adapters(base, adapter or [], host, port, limits)


def demo(
    run: Annotated[Path, typer.Argument(help="A run's directory, or a folder of several: a comparison's.")],
    host: Host = "127.0.0.1",
    port: Annotated[int, typer.Option(min=0, max=65535, help="0 takes a free one.")] = 7860,
) -> None:
    """Show a page that summarizes by base, full fine-tuning and each adapter, side by side.

    [dim]lora-hf demo runs/quickstart[/dim]
    """
    with needing("demo"):
        from lora_hf.demo.page import demo as show
    show(run, host, port)


@contextmanager
def needing(extra: str) -> Iterator[None]:
    """A package that is not installed as one message with the remedy."""
    try:
        yield
    except ModuleNotFoundError as error:
        raise UserError(f"{extra} needs {error.name}: pip install 'lora_hf[{extra}]'") from None
