"""Errors of the Hub's client as one `UserError` that says what to do, without the token."""

import errno
import re
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from lora_hf.errors import NotWritten, Unavailable, UserError, first_line

HIDDEN = "***"
TRANSPORTS = ("httpx", "httpx2", "httpcore", "httpcore2")
"""Libraries whose exceptions mean that no response arrived; the client's version decides which is used."""

INTERRUPTED = ("RemoteProtocolError", "ReadError", "WriteError")
"""Exceptions of the transports after the connection was made."""
NO_SPACE = (errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EACCES)
"""The system's numbers for: the disk or quota is full, the place is not writable."""
OFFLINE = "HF_HUB_OFFLINE is set, so that only files downloaded before can be used; unset it to reach the Hub"
AGAIN = "rerun the command: files that are complete are not transferred again"


@contextmanager
def hub_errors(action: str, remedy: str = "", revision_field: str = "") -> Iterator[None]:
    """Turn the client's exceptions into a `UserError`.

    Args:
        action: what failed, with the name or the option as the user wrote it.
        remedy: an alternative, appended to the message unless the reason says what to do instead.
        revision_field: the field that names the revision, if it can be changed. A config that pins a
            commit of one repository keeps it when only the name is overridden.

    Raises:
        UserError: `action`, the reason, and the remedy. The token appears neither in it nor in its cause.
        Unavailable: the same, if the Hub cannot be reached.
        NotWritten: the disk is full, or the place for downloads is not writable.
    """
    from huggingface_hub import constants
    from huggingface_hub.errors import RevisionNotFoundError

    check_token()
    try:
        yield
    except UserError:
        raise
    except Exception as error:  # a dozen types, from three libraries
        for one in causes(error):
            if isinstance(one, OSError) and one.errno in NO_SPACE:
                raise NotWritten(one.errno, one.strerror, one.filename or constants.HF_HUB_CACHE) from error
        text = f"{action}: {reason(error)}{'' if has_own_remedy(error) else remedy}"
        if revision_field and any(isinstance(one, RevisionNotFoundError) for one in causes(error)):
            text += f", or {revision_field}=main for its main branch"
        leaks = any(without_token(str(one)) != str(one) for one in causes(error))
        kind = Unavailable if is_out_of_reach(error) else UserError
        raise kind(without_token(text)) from (None if leaks else error)


def check_token() -> None:
    """Refuse a token that cannot be sent, before a library does so and prints it.

    Raises:
        UserError: it has a character that is not allowed in a token.
    """
    from huggingface_hub import get_token

    token = get_token() or ""
    if not (token.isascii() and token.isprintable()) or " " in token:
        raise UserError(
            "the Hub's token (HF_TOKEN, or that of `hf auth login`) contains a character that cannot occur "
            "in a token"
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
    """Return whether no response arrived: no network, or a connection that broke."""
    from huggingface_hub.errors import HfHubHTTPError

    came_from = causes(error)
    if any(isinstance(one, HfHubHTTPError) for one in came_from):
        return False
    return any(type(one).__module__.partition(".")[0] in TRANSPORTS for one in came_from)


def is_out_of_reach(error: Exception) -> bool:
    """Return whether the Hub could not be reached: no network, interrupted, offline mode, its own fault."""
    from huggingface_hub.errors import HfHubHTTPError, LocalEntryNotFoundError, OfflineModeIsEnabled

    return is_connection_lost(error) or any(
        isinstance(one, OfflineModeIsEnabled | LocalEntryNotFoundError)
        or (isinstance(one, HfHubHTTPError) and one.response.status_code >= 500)
        for one in causes(error)
    )


def has_own_remedy(error: Exception) -> bool:
    """Return whether `reason` says what to do: about an interruption, access, a revision or a token."""
    from huggingface_hub.errors import GatedRepoError, HfHubHTTPError, RevisionNotFoundError

    for one in causes(error):
        if isinstance(one, GatedRepoError | RevisionNotFoundError) or type(one).__name__ in INTERRUPTED:
            return True
        if isinstance(one, HfHubHTTPError):
            return one.response.status_code == 403
    return False


def reason(error: Exception) -> str:
    """Return why a request failed, and the remedy, in one line."""
    from huggingface_hub import constants
    from huggingface_hub.errors import HfHubHTTPError, LocalTokenNotFoundError, OfflineModeIsEnabled

    came_from = causes(error)
    if is_connection_lost(error):
        lost = next(one for one in came_from if type(one).__module__.partition(".")[0] in TRANSPORTS)
        if type(lost).__name__ in INTERRUPTED:
            return f"the connection to {constants.ENDPOINT} was interrupted ({_line(lost)}); {AGAIN}"
        return f"{constants.ENDPOINT} does not respond ({_line(lost)}); try again when it can be reached"
    for one in came_from:
        if isinstance(one, HfHubHTTPError):
            return _response(one)
        if isinstance(one, OfflineModeIsEnabled):
            return OFFLINE
        if isinstance(one, LocalTokenNotFoundError):
            return "there is no token: run `hf auth login`, or set HF_TOKEN"
        if "Consistency check failed" in str(one):  # the download ended early, and no error said so
            return f"a file from {constants.ENDPOINT} is not complete; {AGAIN}"
    return first_line(error)


def _response(error: Any) -> str:
    """Explain an error response of the Hub."""
    from huggingface_hub import get_token
    from huggingface_hub.errors import GatedRepoError, RepositoryNotFoundError, RevisionNotFoundError

    status = error.response.status_code
    if isinstance(error, GatedRepoError):
        page = re.sub(r"/api/models|/api(?=/datasets)|/(resolve/.*|auth-check)$", "", str(error.response.url))
        if status == 401:
            return f"access is restricted: request it on {page}, then run `hf auth login` or set HF_TOKEN"
        return f"access is restricted: request it on {page} with the account of the token"
    if isinstance(error, RevisionNotFoundError):
        return "there is no such revision: give an existing commit, tag or branch"
    if isinstance(error, RepositoryNotFoundError):
        login = " and the token has no access" if get_token() else ": run `hf auth login`, or set HF_TOKEN"
        return f"there is no such repository, it was renamed, or it is private{login}"
    if status == 401:
        return "the token is not valid: run `hf auth login`, or set HF_TOKEN to a valid one"
    if status == 403:
        return f"the token has no permission for this ({_line(error)}): use one with write access"
    return f"the Hub responded with {status}: {_line(error)}"


def _line(error: BaseException) -> str:
    return " ".join((getattr(error, "server_message", None) or str(error) or type(error).__name__).split())
