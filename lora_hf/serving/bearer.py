"""The secret that clients send, `Authorization: Bearer SECRET`, if the server has one."""

import os
import re
import secrets
from collections.abc import Callable
from contextlib import suppress
from ipaddress import ip_address
from typing import Any

from starlette.exceptions import HTTPException

from lora_hf.errors import UserError
from lora_hf.serving.refusals import refusal

TOKEN = "LORA_HF_SERVE_TOKEN"
"""The environment variable that holds it."""
OPEN = ("/", "/health", "/docs", "/openapi.json")
"""Paths that need no token: a browser cannot send one when it opens a page, and probes have none."""


def token_of_environment() -> str | None:
    """Return the token; None without the variable, or if it is empty.

    Raises:
        UserError: a header cannot carry the token. The message does not show it.
    """
    token = os.environ.get(TOKEN) or None
    if token and not re.fullmatch("[!-~]+", token):
        raise UserError(
            f"{TOKEN} has a space, a line break or a letter beyond ASCII, which the header of a request "
            "cannot carry: use the output of `openssl rand -hex 32`"
        )
    return token


def check_reachable(host: str, address: str, token: str | None) -> None:
    """Refuse to listen where other machines can connect, unless there is a token.

    Args:
        host: as the user wrote it.
        address: the address that it stands for.
        token: the token, or None.

    Raises:
        UserError: others could use the server.
    """
    if token is None and not ip_address(address.partition("%")[0]).is_loopback:
        raise UserError(
            f"--host {host}: other machines could use the server. Set the environment variable {TOKEN} to a "
            "secret, which clients then send (`Authorization: Bearer SECRET`), or leave out --host to listen "
            "on 127.0.0.1 only"
        )


class BearerToken:
    """Middleware that refuses requests without the token; the pages about the API are open."""

    def __init__(self, app: Any, token: str, static: str, count: Callable[[str, int], None]) -> None:
        self.app, self.token, self.static, self.count = app, token.encode(), f"{static}/", count

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        if scope["type"] != "http":
            return await self.app(scope, receive, send)
        path = scope["path"]
        if path in OPEN or path.startswith(self.static):
            return await self.app(scope, receive, send)
        scheme, _, given = dict(scope["headers"]).get(b"authorization", b"").partition(b" ")
        if scheme.lower() == b"bearer" and secrets.compare_digest(given.strip(), self.token):
            return await self.app(scope, receive, send)
        with suppress(HTTPException):  # clients send the whole body before they read a response
            while (await receive()).get("more_body"):
                pass
        self.count(path, 401)
        detail = "the token is missing or wrong: send the header `Authorization: Bearer TOKEN`"
        headers = {"WWW-Authenticate": "Bearer" + (' error="invalid_token"' if given else "")}
        await refusal(path, 401, detail, headers)(scope, receive, send)
