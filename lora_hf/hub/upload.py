"""Upload files to the Hub in one commit: all or nothing, and safe to repeat."""

import hashlib
import logging
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from lora_hf.errors import UserError, did_you_mean
from lora_hf.hub.errors import hub_errors, is_connection_lost

TAG = "lora_hf"
"""A tag in every uploaded card, by which a later push recognizes its own repository."""
CARD = "README.md"
INITIAL = {".gitattributes"}
"""The files that the Hub itself puts into a new repository."""
Upload = Mapping[str, Path | bytes | None]
"""Name in the repository -> a local file, its bytes, or None: a file of that name there is outdated."""
CHECKSUM = "\n<!-- lora_hf "
LICENSE_LIST = re.compile(r'license\\*" must be one of \[([^\]]*)\]')
"""List of license identifiers in the Hub's refusal of another one."""
logger = logging.getLogger(__name__)


def with_checksum(card: str) -> str:
    """Return the card with a comment at its end that tells whether it was edited since."""
    return f"{card}{CHECKSUM}{hashlib.sha256(card.encode()).hexdigest()[:16]} -->\n"


def is_unedited(card: str) -> bool:
    """Return whether a card is unchanged since it was uploaded."""
    return with_checksum(card.rpartition(CHECKSUM)[0]) == card


@dataclass(frozen=True)
class Destination:
    """The repository and branch of an upload."""

    repo_id: str
    """USER/NAME; created if missing."""
    branch: str | None = None
    """None is `main`; created if missing."""
    private: bool | None = None
    """Visibility of a new repository; None is the owner's default."""
    overwrite: bool = False
    """Also replace files that were not uploaded from here, and a card that was edited on the Hub."""

    @property
    def name(self) -> str:
        """USER/NAME@BRANCH."""
        return f"{self.repo_id}@{self.branch}" if self.branch else self.repo_id


def check_login(destination: Destination) -> str:
    """Return the user of the token, with a request before hours of training and not after.

    Raises:
        UserError: no token, an invalid one, or no response.
    """
    from huggingface_hub import HfApi

    with hub_errors(f"cannot push to {destination.name!r}"):
        user: str = HfApi().whoami()["name"]
    return user


def check_card(card: str, license: str | None, destination: Destination) -> None:
    """Have the Hub validate a card's metadata before anything is uploaded.

    Args:
        card: README.md.
        license: the license in it, for the error.
        destination: where the card goes, for the error.

    Raises:
        UserError: the Hub refuses the metadata, or does not respond.
    """
    from huggingface_hub import ModelCard

    with hub_errors(f"cannot push to {destination.name!r}"):
        try:
            ModelCard(card, ignore_metadata_errors=True).validate(repo_type="model")
        except ValueError as error:
            known = LICENSE_LIST.search(str(error))
            if license is None or not known:
                raise
            near = did_you_mean(license.lower(), known[1].split(", "), most=3)
            raise UserError(
                f"license {license!r}: the Hub has no such identifier.{near} Give one of "
                "huggingface.co/docs/hub/repositories-licenses with --license, or 'other'"
            ) from None


def send(upload: Upload, destination: Destination, message: str) -> str:
    """Upload the files in one commit; none is made if the repository holds them already.

    Args:
        upload: the files by name.
        destination: the repository and branch.
        message: the commit's message.

    Returns:
        The commit's address.

    Raises:
        UserError: no permission, a repository that holds other files, or a lost connection. Files uploaded
            before it was lost are not uploaded again by the next push.
    """
    from huggingface_hub import HfApi, get_token
    from huggingface_hub.errors import LocalTokenNotFoundError

    with hub_errors(f"cannot push to {destination.name!r}"):
        if get_token() is None:
            raise LocalTokenNotFoundError
        api = HfApi()
        present = _prepare(api, destination)
        upload = _without_edited(api, upload, present, destination)
        _with_retry(api, destination, partial(_preupload, api, upload, destination))
        commit = partial(_commit, api, upload, present, destination, message)
        return str(_with_retry(api, destination, commit))


def _with_retry(api: Any, destination: Destination, step: Callable[[], Any]) -> Any:
    """Run a step, a second time if the connection was lost and the Hub responds again.

    Version 2.4 of the client retries an upload and 1.16 does not; neither retries the commit, whose response
    may be lost.
    """
    try:
        return step()
    except Exception as error:
        if not is_connection_lost(error):
            raise
        logger.warning("the connection was lost; retrying")
        api.model_info(destination.repo_id)  # raises at once where the Hub is still unreachable
        return step()


def _prepare(api: Any, destination: Destination) -> set[str]:
    """Create repository and branch where they are missing; return the names of the files there."""
    repo_id, branch = destination.repo_id, destination.branch
    api.create_repo(repo_id, private=destination.private, exist_ok=True)
    info = _info(api, destination)
    if destination.private and not info.private:
        raise UserError(f"{repo_id!r} exists and is public, and --private was given: choose another")
    present = {sibling.rfilename for sibling in info.siblings or []}
    tags = (info.card_data.tags if info.card_data else None) or []
    if present - INITIAL and TAG not in tags and not destination.overwrite:
        raise UserError(
            f"{destination.name!r} holds {sorted(present - INITIAL)[:5]}, which lora_hf did not push; "
            "choose another --repo-id or --revision, or add --overwrite (its history keeps the old files)"
        )
    if branch:
        api.create_branch(repo_id, branch=branch, exist_ok=True)
    return present


def _without_edited(api: Any, upload: Upload, present: set[str], destination: Destination) -> Upload:
    """Leave the card out of the upload if somebody has edited it on the Hub."""
    if CARD not in present or destination.overwrite:
        return upload
    card = api.hf_hub_download(destination.repo_id, CARD, revision=destination.branch)
    if is_unedited(Path(card).read_text(encoding="utf-8")):
        return upload
    logger.warning("%s: %s was edited on the Hub and is kept; see --overwrite", destination.name, CARD)
    return {name: content for name, content in upload.items() if name != CARD}


def _info(api: Any, destination: Destination) -> Any:
    """Return the record of the branch, or of `main`, from which a new branch starts."""
    from huggingface_hub.errors import RevisionNotFoundError

    try:
        return api.model_info(destination.repo_id, revision=destination.branch)
    except RevisionNotFoundError:
        return api.model_info(destination.repo_id)


def _preupload(api: Any, upload: Upload, destination: Destination) -> None:
    """Upload the large files before the commit, except those that the Hub has."""
    api.preupload_lfs_files(destination.repo_id, _additions(upload), revision=destination.branch)


def _commit(api: Any, upload: Upload, present: set[str], destination: Destination, message: str) -> str:
    from huggingface_hub import CommitOperationDelete

    outdated = [name for name, content in upload.items() if content is None and name in present]
    operations = [*_additions(upload), *map(CommitOperationDelete, outdated)]
    commit = api.create_commit(
        destination.repo_id, operations, commit_message=message, revision=destination.branch
    )
    return str(commit.commit_url)


def _additions(upload: Upload) -> list[Any]:
    """Make the operations anew for each try: they remember the first try, and would be committed twice."""
    from huggingface_hub import CommitOperationAdd

    return [
        CommitOperationAdd(name, str(content) if isinstance(content, Path) else content)
        for name, content in upload.items()
        if content is not None
    ]
