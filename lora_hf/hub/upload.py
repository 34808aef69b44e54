"""What is sent to the Hub: one commit with a parcel of files, whole or not at all, and safe to repeat."""

import hashlib
import logging
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from lora_hf.errors import UserError
from lora_hf.hub.errors import is_lost, told

TAG = "lora_hf"
"""In the card of everything that is sent: by it a later push knows its own."""
CARD = "README.md"
INITIAL = {".gitattributes"}
"""What the Hub itself puts into a new repository."""
Parcel = Mapping[str, Path | bytes | None]
"""Name in the repository -> a file, its bytes, or None: a file of that name there is out of date."""
SEAL = "\n<!-- lora_hf "
logger = logging.getLogger(__name__)


def sealed(card: str) -> str:
    """The card with a comment below it that tells whether somebody has edited it since."""
    return f"{card}{SEAL}{hashlib.sha256(card.encode()).hexdigest()[:16]} -->\n"


def is_sealed(card: str) -> bool:
    """Whether it is as it was sent."""
    return sealed(card.rpartition(SEAL)[0]) == card


@dataclass(frozen=True)
class Destination:
    """Where a parcel goes."""

    repo_id: str
    """USER/NAME; made if it is not there."""
    branch: str | None = None
    """None is `main`; made if it is not there."""
    private: bool | None = None
    """Of a new repository; None is the owner's own default."""
    overwrite: bool = False
    """Also over what was not sent from here, and over a card that was edited there."""

    @property
    def name(self) -> str:
        """USER/NAME@BRANCH."""
        return f"{self.repo_id}@{self.branch}" if self.branch else self.repo_id


def check_login(destination: Destination) -> str:
    """The user whose token it is: asked before hours of training, not after.

    Raises:
        UserError: no token, one that is not valid, or no answer.
    """
    from huggingface_hub import HfApi

    with told(f"cannot push to {destination.name!r}"):
        user: str = HfApi().whoami()["name"]
    return user


def send(parcel: Parcel, destination: Destination, message: str) -> str:
    """Put the files there in one commit; where they are there already, none is made.

    Args:
        parcel: what goes up.
        destination: where to.
        message: of the commit.

    Returns:
        The commit's address.

    Raises:
        UserError: no right, a repository that holds other things, or a connection that stays lost; what was
            uploaded by then is not uploaded again by the next try.
    """
    from huggingface_hub import HfApi, get_token
    from huggingface_hub.errors import LocalTokenNotFoundError

    with told(f"cannot push to {destination.name!r}"):
        if get_token() is None:
            raise LocalTokenNotFoundError
        api = HfApi()
        present = _prepare(api, destination)
        parcel = _without_edited(api, parcel, present, destination)
        _twice(api, destination, partial(_upload, api, parcel, destination))
        commit = partial(_commit, api, parcel, present, destination, message)
        return str(_twice(api, destination, commit))


def _twice(api: Any, destination: Destination, step: Callable[[], Any]) -> Any:
    """What a step returns; once more where the connection was lost, if the Hub answers by then.

    The client's 2.4 tries an upload again and 1.16 does not, and neither the commit: its answer may be lost.
    """
    try:
        return step()
    except Exception as error:
        if not is_lost(error):
            raise
        logger.warning("the connection was lost; once more")
        api.model_info(destination.repo_id)  # at once an error where the Hub is gone for good
        return step()


def _prepare(api: Any, destination: Destination) -> set[str]:
    """Make repository and branch where they are missing; the files that are there."""
    repo_id, branch = destination.repo_id, destination.branch
    api.create_repo(repo_id, private=destination.private, exist_ok=True)
    info = _info(api, destination)
    if destination.private and not info.private:
        raise UserError(f"{repo_id!r} is there and public, and a private one was asked for")
    present = {sibling.rfilename for sibling in info.siblings or []}
    tags = (info.card_data.tags if info.card_data else None) or []
    if present - INITIAL and TAG not in tags and not destination.overwrite:
        raise UserError(
            f"{destination.name!r} holds {sorted(present - INITIAL)[:5]}, which was not pushed from here; "
            "choose another --repo-id or --revision, or add --overwrite (what is there stays in its history)"
        )
    if branch:
        api.create_branch(repo_id, branch=branch, exist_ok=True)
    return present


def _without_edited(api: Any, parcel: Parcel, present: set[str], destination: Destination) -> Parcel:
    """What is sent, but for a card that somebody has edited there."""
    if CARD not in present or destination.overwrite:
        return parcel
    card = api.hf_hub_download(destination.repo_id, CARD, revision=destination.branch)
    if is_sealed(Path(card).read_text(encoding="utf-8")):
        return parcel
    logger.warning("%s: %s was edited there, and stays; --overwrite replaces it", destination.name, CARD)
    return {name: content for name, content in parcel.items() if name != CARD}


def _info(api: Any, destination: Destination) -> Any:
    """Of the branch, or of `main`, from which a new branch begins."""
    from huggingface_hub.errors import RevisionNotFoundError

    try:
        return api.model_info(destination.repo_id, revision=destination.branch)
    except RevisionNotFoundError:
        return api.model_info(destination.repo_id)


def _upload(api: Any, parcel: Parcel, destination: Destination) -> None:
    """The large files, before the commit; what is there already is not sent."""
    api.preupload_lfs_files(destination.repo_id, _additions(parcel), revision=destination.branch)


def _commit(api: Any, parcel: Parcel, present: set[str], destination: Destination, message: str) -> str:
    from huggingface_hub import CommitOperationDelete

    outdated = [name for name, content in parcel.items() if content is None and name in present]
    operations = [*_additions(parcel), *map(CommitOperationDelete, outdated)]
    commit = api.create_commit(
        destination.repo_id, operations, commit_message=message, revision=destination.branch
    )
    return str(commit.commit_url)


def _additions(parcel: Parcel) -> list[Any]:
    """New ones for each try: they remember what was there at their first, and would be committed twice."""
    from huggingface_hub import CommitOperationAdd

    return [
        CommitOperationAdd(name, str(content) if isinstance(content, Path) else content)
        for name, content in parcel.items()
        if content is not None
    ]
