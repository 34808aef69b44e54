"""The command that publishes."""

from pathlib import Path
from typing import Annotated

import typer


def push(
    adapter: Annotated[str, typer.Option(help="The adapter's folder, or its run's.")],
    repo_id: Annotated[str, typer.Option(help="USER/NAME on the Hub; made if it is not there.")],
    revision: Annotated[str | None, typer.Option(help="A branch; made if it is not there.")] = None,
    private: Annotated[bool, typer.Option("--private", help="Make the repository a private one.")] = False,
    base_model: Annotated[
        str | None, typer.Option(help="Of a base from a folder: USER/NAME or USER/NAME@REVISION.")
    ] = None,
    license: Annotated[
        str | None, typer.Option(help="The Hub's identifier, such as apache-2.0; else the base model's.")
    ] = None,
    samples: Annotated[
        int | None, typer.Option(min=0, help="Test dialogues in the card; else 3, of public data only.")
    ] = None,
    overwrite: Annotated[
        bool, typer.Option("--overwrite", help="Also over other things, or a card edited there.")
    ] = False,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Push nothing; list the files and print the card.")
    ] = False,
) -> None:
    """Push an adapter with the record of its run and a model card; the token is HF_TOKEN's or the login's.

    [dim]lora-hf push --adapter runs/quickstart/lora/adapter --repo-id USER/NAME --dry-run[/dim]
    """
    from lora_hf.hub.upload import CARD, Destination
    from lora_hf.saved import push as pushing

    destination = Destination(repo_id, revision, private or None, overwrite)
    options = pushing.CardOptions(base_model, license, samples)
    if not dry_run:
        print(f"pushed: {pushing.push(adapter, destination, options)}")
        return
    files = pushing.prepare_push(adapter, destination, options).files
    for name, content in files.items():
        if content is not None:
            size = content.stat().st_size if isinstance(content, Path) else len(content)
            print(f"{size:>12,} {name}")
    card = files[CARD]
    print(f"\n{card.decode()}" if isinstance(card, bytes) else "", end="")
