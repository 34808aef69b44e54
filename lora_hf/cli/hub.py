"""The command `push`."""

from pathlib import Path
from typing import Annotated

import typer

from lora_hf.cli.next_steps import show_next, with_options


def push(
    adapter: Annotated[str, typer.Option(help="Folder of the adapter or of its run.")],
    repo_id: Annotated[
        str, typer.Option(help="Repository on the Hub, USER/NAME. Created if it does not exist.")
    ],
    revision: Annotated[str | None, typer.Option(help="Branch. Created if it does not exist.")] = None,
    private: Annotated[bool, typer.Option("--private", help="Create the repository as private.")] = False,
    base_model: Annotated[
        str | None,
        typer.Option(help="Name of a local base model on the Hub, USER/NAME or USER/NAME@REVISION."),
    ] = None,
    license: Annotated[
        str | None,
        typer.Option(help="License identifier, such as apache-2.0. Default: the base model's license."),
    ] = None,
    samples: Annotated[
        int | None,
        typer.Option(
            min=0, help="Number of test dialogues in the model card. Default: 3 for public data, else 0."
        ),
    ] = None,
    overwrite: Annotated[
        bool, typer.Option("--overwrite", help="Replace other content or an edited model card.")
    ] = False,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="List the files and print the model card without pushing.")
    ] = False,
) -> None:
    """Push an adapter, the results of its run and a model card to the Hub.

    The token comes from HF_TOKEN or from `hf auth login`.

    See it first: [dim]lora-hf push --adapter runs/quickstart/lora --repo-id USER/NAME --dry-run[/dim]
    """
    from lora_hf.hub.upload import CARD, Destination
    from lora_hf.saved import push as pushing

    destination = Destination(repo_id, revision, private or None, overwrite)
    options = pushing.CardOptions(base_model, license, samples)
    if not dry_run:
        print(f"pushed: {pushing.push(adapter, destination, options)}")
        show_next("push", repository=with_options(f"{repo_id}@{revision}" if revision else repo_id))
        return
    files = pushing.prepare_push(adapter, destination, options).files
    for name, content in files.items():
        if content is not None:
            size = content.stat().st_size if isinstance(content, Path) else len(content)
            print(f"{size:>12,} {name}")
    card = files[CARD]
    print(f"\n{card.decode()}" if isinstance(card, bytes) else "", end="")
    typed = with_options(
        repo_id,
        revision=revision,
        private=private,
        base_model=base_model,
        license=license,
        samples=samples,
        overwrite=overwrite,
    )
    show_next("preview", adapter=with_options(adapter), repository=typed)
