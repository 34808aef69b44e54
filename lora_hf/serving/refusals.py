"""Refused requests: one sentence that says why and what to do, in the form of the route's API."""

import json
from typing import Any

from fastapi.responses import JSONResponse

OPENAI = "/v1/"
"""Routes with the requests, responses and errors of OpenAI's API begin with it."""


class RequestError(Exception):
    """A refused request; `detail` says why and what to do."""

    def __init__(
        self, status: int, detail: str, headers: dict[str, str] | None = None, field: str | None = None
    ) -> None:
        super().__init__(detail)
        self.status, self.detail, self.headers, self.field = status, detail, headers, field


def refusal(
    path: str, status: int, detail: str, headers: Any = None, field: str | None = None
) -> JSONResponse:
    """Return the response of a refused request.

    Args:
        path: of the request. Below `OPENAI`, the error is an object as OpenAI's API has it, and what is wrong
            with a request has status 400, and a body over the limit of bytes 413.
        status: the HTTP status.
        detail: why, and what to do.
        headers: further ones.
        field: the field of the request that is wrong.
    """
    if not path.startswith(OPENAI):
        return JSONResponse({"detail": detail}, status, headers)
    code = {401: "invalid_api_key", 413: "context_length_exceeded"}.get(status)
    is_large = status == 413 and field is None  # the body itself, which nobody has read
    if is_large:
        code = "request_too_large"
    if status == 404 and field == "model":
        code = "model_not_found"
    kind = "invalid_request_error" if status < 500 else "server_error"
    error = {"message": detail, "type": kind, "param": field, "code": code}
    is_bad = status in (411, 413, 422) and not is_large
    return JSONResponse({"error": error}, 400 if is_bad else status, headers)


def refusal_event(path: str, error: RequestError) -> dict[str, Any]:
    """Return the body of a refusal, for a response whose status has been sent already."""
    body: dict[str, Any] = json.loads(
        bytes(refusal(path, error.status, error.detail, None, error.field).body)
    )
    return body
