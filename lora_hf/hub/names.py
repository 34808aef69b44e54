"""Names of repositories and branches on the Hub."""

import re

from lora_hf.errors import UserError

BRANCH = re.compile(r"[A-Za-z0-9_](?:[\w./-]*[A-Za-z0-9_-])?", re.ASCII)
COMMIT = 40
"""Length of a commit's name."""
REPO_ID = (
    "USER/NAME, such as anna/dialogues: two parts of 1 to 96 ASCII letters, digits, '-', '_' or '.', "
    "neither with '-' or '.' at an end, and no '--', '..' or final '.git' anywhere"
)
"""The rule of `huggingface_hub`, whose own message is about its arguments."""
PART = re.compile(r"[A-Za-z0-9._-]{1,96}")


def split_name(name: str) -> tuple[str, str | None]:
    """Split `USER/NAME@REVISION` into name and revision (a commit, a tag or a branch; None without `@`)."""
    repo_id, at, revision = name.partition("@")
    return repo_id, revision if at else None


ADDRESS = re.compile(
    r"(?:(?:https?://)?(?:www\.)?(?:huggingface\.co|hf\.co)/|hf://)(?:models/|datasets/)?"
    r"(?P<name>[^/@?#]+(?:/[^/@?#]+)?)(?:(?:/(?:tree|blob|resolve)/|@)(?P<revision>[^/?#]+))?"
)
PINNED = re.compile(r"(?P<name>[\w.-]+(?:/[\w.-]+)?)@(?P<revision>[\w./-]+)")


def refuse_address(name: str, field: str, revision_field: str) -> None:
    """Refuse the address of a page of the Hub, and NAME@REVISION, in place of a name.

    Args:
        name: the name as the user wrote it.
        field: the field or option in which it was written.
        revision_field: the field of the revision, or an empty text if there is none.

    Raises:
        UserError: it is one of these; the message has the name and the revision apart.
    """
    if not (found := ADDRESS.match(name) or PINNED.fullmatch(name)):
        return
    revision = found["revision"]
    pinned = f", with {revision_field}={revision}" if revision and revision_field else ""
    raise UserError(f"{field}={name!r} is not a name on the Hub: write {found['name']}{pinned}")


def check_repo_id(repo_id: str, field: str) -> None:
    """Refuse a name that cannot be a repository's.

    Args:
        repo_id: the name.
        field: the option or the field it was written in.

    Raises:
        UserError: it is not USER/NAME.
    """
    if repo_id.count("/") != 1 or not is_hub_name(repo_id):
        raise UserError(f"{field}={repo_id!r} is not a valid name on the Hub: write {REPO_ID}")


def check_branch(branch: str, field: str) -> None:
    """Refuse a name that git does not accept for a branch.

    Args:
        branch: the name.
        field: the option it was written in.

    Raises:
        UserError: git would refuse it.
    """
    if not BRANCH.fullmatch(branch) or ".." in branch or "//" in branch or branch.endswith((".", ".lock")):
        raise UserError(
            f"{field}={branch!r} is not a valid branch name: use letters, digits, and - _ . / between them"
        )


def is_hub_name(name: str) -> bool:
    """Return whether this can be a name on the Hub; a path of one or two parts can be one too."""
    from huggingface_hub.utils import HFValidationError, validate_repo_id

    # Version 1.16 of the client accepts non-ASCII letters, an owner of any length, and a line break.
    if not all(PART.fullmatch(part) for part in name.split("/")):
        return False
    try:
        validate_repo_id(name)
    except HFValidationError:
        return False
    return True
