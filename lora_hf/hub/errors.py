"""Names on the Hub, and whatever its client raises as one error of the user's that says what to do."""

import re
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from lora_hf.errors import UserError

BRANCH = re.compile(r"[A-Za-z0-9_](?:[\w./-]*[A-Za-z0-9_-])?", re.ASCII)
HIDDEN = "***"
REPO_ID = (
    "USER/NAME, such as anna/dialogues: two parts of 1 to 96 ASCII letters, digits, '-', '_' or '.', "
    "neither with '-' or '.' at an end, and no '--', '..' or final '.git' anywhere"
)
"""What `huggingface_hub` takes, whose own words are about its arguments."""
PART = re.compile(r"[A-Za-z0-9._-]{1,96}")
TRANSPORTS = ("httpx", "httpx2", "httpcore", "httpcore2")
"""The libraries whose exceptions mean that no answer came; which of them depends on the client's version."""


def split_name(name: str) -> tuple[str, str | None]:
    """`USER/NAME` and None, or of `USER/NAME@REVISION` both: a commit, a tag or a branch."""
    repo_id, at, revision = name.partition("@")
    return repo_id, revision if at else None


def check_repo_id(repo_id: str, field: str) -> None:
    """Refuse what is no USER/NAME.

    Args:
        repo_id: as it was written.
        field: the option or the field it was written in.

    Raises:
        UserError: it is none.
    """
    if repo_id.count("/") != 1 or not is_hub_name(repo_id):
        raise UserError(f"{field}={repo_id!r} is no name on the Hub: write {REPO_ID}")


def check_branch(branch: str, field: str) -> None:
    """Refuse what git takes for no branch.

    Args:
        branch: as it was written.
        field: the option it was written in.

    Raises:
        UserError: it is none.
    """
    if not BRANCH.fullmatch(branch) or ".." in branch or "//" in branch or branch.endswith((".", ".lock")):
        raise UserError(f"{field}={branch!r} is no name of a branch: letters, digits, and - _ . / between")


def is_hub_name(name: str) -> bool:
    """Whether it can be a name on the Hub; a path of one or two parts can, too."""
    from huggingface_hub.utils import HFValidationError, validate_repo_id

    # The client's 1.16 lets through other letters, an owner of any length, and a line's end.
    if not all(PART.fullmatch(part) for part in name.split("/")):
        return False
    try:
        validate_repo_id(name)
    except HFValidationError:
        return False
    return True


@contextmanager
def told(what: str, remedy: str = "") -> Iterator[None]:
    """Turn the client's errors into one.

    Args:
        what: could not be done, with the name or the option as the user wrote it.
        remedy: what else would do.

    Raises:
        UserError: `what`, why, and the remedy; the token is in no part of it, nor in what it came from.
    """
    check_token()
    try:
        yield
    except UserError:
        raise
    except Exception as error:  # a dozen kinds, of three libraries
        text = f"{what}: {reason(error)}{remedy}"
        leaks = any(without_token(str(one)) != str(one) for one in chain(error))
        raise UserError(without_token(text)) from (None if leaks else error)


def check_token() -> None:
    """Refuse a token that cannot be sent, before a library says so and shows it.

    Raises:
        UserError: it has a character that no token has.
    """
    from huggingface_hub import get_token

    token = get_token() or ""
    if not (token.isascii() and token.isprintable()) or " " in token:
        raise UserError("the Hub's token (HF_TOKEN, or that of the login) has a character that no token has")


def without_token(text: str) -> str:
    """The text with the user's token hidden: a server may repeat it in what it refuses."""
    from huggingface_hub import get_token

    token = get_token()
    return text.replace(token, HIDDEN) if token else text


def chain(error: BaseException | None) -> list[BaseException]:
    """An exception and those it came from."""
    found = []
    while error is not None and error not in found:
        found.append(error)
        error = error.__cause__ or error.__context__
    return found


def is_lost(error: Exception) -> bool:
    """Whether no answer came at all: no network, or a connection that ended half-way."""
    from huggingface_hub.errors import HfHubHTTPError

    came_from = chain(error)
    if any(isinstance(one, HfHubHTTPError) for one in came_from):
        return False
    return any(type(one).__module__.partition(".")[0] in TRANSPORTS for one in came_from)


def reason(error: Exception) -> str:
    """Why it did not work, and what to do, in one line."""
    from huggingface_hub import constants
    from huggingface_hub.errors import HfHubHTTPError, LocalTokenNotFoundError, OfflineModeIsEnabled

    came_from = chain(error)
    if is_lost(error):
        lost = next(one for one in came_from if type(one).__module__.partition(".")[0] in TRANSPORTS)
        return f"{constants.ENDPOINT} does not answer ({_line(lost)}); try again when it can be reached"
    for one in came_from:
        if isinstance(one, HfHubHTTPError):
            return _answer(one)
        if isinstance(one, OfflineModeIsEnabled):
            return "HF_HUB_OFFLINE is set, so that only what was fetched before can be had"
        if isinstance(one, LocalTokenNotFoundError):
            return "there is no token: run `hf auth login`, or set HF_TOKEN"
    return _line(error)


def _answer(error: Any) -> str:
    """What an error that the Hub sent means to the user."""
    from huggingface_hub.errors import GatedRepoError, RepositoryNotFoundError, RevisionNotFoundError

    status = error.response.status_code
    if isinstance(error, GatedRepoError):
        return "its owner asks for a consent first: give it on its page, with the account of the token"
    if isinstance(error, RevisionNotFoundError):
        return "there is no such revision: give a commit, a tag or a branch that is there"
    if isinstance(error, RepositoryNotFoundError):
        return "there is no such repository, or it is private and the token may not see it"
    if status == 401:
        return "the token is not valid: run `hf auth login`, or set HF_TOKEN to one that is"
    if status == 403:
        return f"the token has no right to that ({_line(error)}): use one with write access there"
    return f"the Hub answered {status}: {_line(error)}"


def _line(error: BaseException) -> str:
    return " ".join((getattr(error, "server_message", None) or str(error) or type(error).__name__).split())
