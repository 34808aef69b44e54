"""Errors of the Hub's client as one `UserError` that says what to do, without the token."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from lora_hf.errors import UserError

HIDDEN = "***"
TRANSPORTS = ("httpx", "httpx2", "httpcore", "httpcore2")
"""Libraries whose exceptions mean that no response arrived; the client's version decides which is used."""


@contextmanager
def hub_errors(action: str, remedy: str = "") -> Iterator[None]:
    """Turn the client's exceptions into a `UserError`.

    Args:
        action: what failed, with the name or the option as the user wrote it.
        remedy: an alternative, appended to the message.

    Raises:
        UserError: `action`, the reason, and the remedy. The token appears neither in it nor in its cause.
    """
    check_token()
    try:
        yield
    except UserError:
        raise
    except Exception as error:  # a dozen types, from three libraries
        text = f"{action}: {reason(error)}{remedy}"
        leaks = any(without_token(str(one)) != str(one) for one in causes(error))
        raise UserError(without_token(text)) from (None if leaks else error)


def check_token() -> None:
    """Refuse a token that cannot be sent, before a library does so and prints it.

    Raises:
        UserError: it has a character that is not allowed in a token.
    """
    from huggingface_hub import get_token

    token = get_token() or ""
    if not (token.isascii() and token.isprintable()) or " " in token:
        raise UserError(
            "the Hub's token (HF_TOKEN, or that of `hf auth login`) has a character that no token has"
        )


def without_token(text: str) -> str:
    """Return the text with the user's token hidden: a server may repeat it in its response."""
    from huggingface_hub import get_token

    token = get_token()
    return text.replace(token, HIDDEN) if token else text


def causes(error: BaseException | None) -> list[BaseException]:
    """Return an exception and those it came from."""
    found = []
    while error is not None and error not in found:
        found.append(error)
        error = error.__cause__ or error.__context__
    return found


def is_connection_lost(error: Exception) -> bool:
    """Whether no response arrived: no network, or a connection that broke."""
    from huggingface_hub.errors import HfHubHTTPError

    came_from = causes(error)
    if any(isinstance(one, HfHubHTTPError) for one in came_from):
        return False
    return any(type(one).__module__.partition(".")[0] in TRANSPORTS for one in came_from)


def reason(error: Exception) -> str:
    """Say why a request failed, and what to do, in one line."""
    from huggingface_hub import constants
    from huggingface_hub.errors import HfHubHTTPError, LocalTokenNotFoundError, OfflineModeIsEnabled

    came_from = causes(error)
    if is_connection_lost(error):
        lost = next(one for one in came_from if type(one).__module__.partition(".")[0] in TRANSPORTS)
        return f"{constants.ENDPOINT} does not respond ({_line(lost)}); try again when it can be reached"
    for one in came_from:
        if isinstance(one, HfHubHTTPError):
            return _response(one)
        if isinstance(one, OfflineModeIsEnabled):
            return "HF_HUB_OFFLINE is set, so that only files downloaded before can be used"
        if isinstance(one, LocalTokenNotFoundError):
            return "there is no token: run `hf auth login`, or set HF_TOKEN"
    return _line(error)


def _response(error: Any) -> str:
    """Explain an error response of the Hub."""
    from huggingface_hub.errors import GatedRepoError, RepositoryNotFoundError, RevisionNotFoundError

    status = error.response.status_code
    if isinstance(error, GatedRepoError):
        return "access is restricted: request it on the repository's page, with the account of the token"
    if isinstance(error, RevisionNotFoundError):
        return "there is no such revision: give an existing commit, tag or branch"
    if isinstance(error, RepositoryNotFoundError):
        return "there is no such repository, or it is private and the token has no access"
    if status == 401:
        return "the token is not valid: run `hf auth login`, or set HF_TOKEN to a valid one"
    if status == 403:
        return f"the token has no permission for this ({_line(error)}): use one with write access"
    return f"the Hub responded with {status}: {_line(error)}"


def _line(error: BaseException) -> str:
    return " ".join((getattr(error, "server_message", None) or str(error) or type(error).__name__).split())
