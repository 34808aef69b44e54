"""HTTP routes, and one format for every error: `{"detail": "..."}`."""

import asyncio
import time
from collections.abc import Callable
from contextlib import suppress
from typing import Any

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.openapi.docs import get_swagger_ui_html
from fastapi.responses import HTMLResponse, JSONResponse, RedirectResponse, Response
from prometheus_client import CONTENT_TYPE_LATEST
from starlette.exceptions import HTTPException
from starlette.staticfiles import StaticFiles
from swagger_ui_bundle import swagger_ui_path

from lora_hf import __version__
from lora_hf.serving.schemas import (
    AdapterInfo,
    ErrorResponse,
    HealthResponse,
    LoadRequest,
    SummarizeRequest,
    SummarizeResponse,
    wrong_fields,
)
from lora_hf.serving.service import RequestError, Service

STATIC = "/docs/static"
OPENAPI = "3.0.3"
"""The latest version that the packaged Swagger UI reads; FastAPI writes 3.1."""
NO_OBJECT = (
    'body: not a JSON object; send one with "Content-Type: application/json", such as {"dialogue": "..."}'
)
MOST_DRAINED = 2**26
"""Bytes of a refused body that are read before the response, because clients send the whole body first."""


def create_app(service: Service) -> FastAPI:
    """Create the ASGI application of a service."""
    app = FastAPI(title="lora-hf serve", version=__version__, docs_url=None, redoc_url=None)
    app.openapi_version = OPENAPI
    with_null = app.openapi
    app.openapi = lambda: with_nullable(with_null())  # type: ignore[method-assign]
    app.state.service = service
    limits = service.limits
    app.add_middleware(BodyLimit, most=limits.max_bytes, seconds=limits.timeout, count=service.count_refused)
    app.add_exception_handler(RequestError, _request_error)
    app.add_exception_handler(RequestValidationError, _invalid_body)
    app.add_exception_handler(HTTPException, _http_error)
    app.mount(STATIC, StaticFiles(directory=swagger_ui_path), name="static")
    _add_routes(app, service)
    return app


def _add_routes(app: FastAPI, service: Service) -> None:
    engine = service.engine

    @app.post("/summarize", tags=["summaries"], responses=_errors(404, 411, 413, 422, 503, 504))
    async def summarize(request: SummarizeRequest) -> SummarizeResponse:
        """Summarize one dialogue with an adapter or the base."""
        return await service.summarize(request)

    @app.get("/adapters", tags=["adapters"])
    async def adapters() -> list[AdapterInfo]:
        """List the loaded adapters."""
        return [_info(name) for name in engine.names]

    @app.post("/adapters", tags=["adapters"], status_code=201, responses=_errors(403, 409, 422))
    async def load(request: LoadRequest) -> AdapterInfo:
        """Load an adapter from a folder below the server's folder of adapters."""
        await service.load(request.name, request.path)
        return _info(request.name)

    @app.delete("/adapters/{name}", tags=["adapters"], status_code=204, responses=_errors(404))
    async def unload(name: str) -> None:
        """Unload an adapter after the requests that wait for it."""
        await service.unload(name)

    @app.get("/health", tags=["server"])
    async def health() -> HealthResponse:
        """Return the server's state."""
        return HealthResponse(base=engine.name, adapters=engine.names, waiting=service.batcher.waiting)

    @app.get("/metrics", tags=["server"])
    async def metrics() -> Response:
        """Return the metrics for Prometheus."""
        return Response(service.metrics.text(), media_type=CONTENT_TYPE_LATEST)

    @app.get("/", include_in_schema=False)
    async def root() -> RedirectResponse:
        return RedirectResponse("/docs")

    @app.get("/docs", include_in_schema=False)
    async def docs() -> HTMLResponse:
        return get_swagger_ui_html(
            openapi_url="/openapi.json",
            title=app.title,
            swagger_js_url=f"{STATIC}/swagger-ui-bundle.js",
            swagger_css_url=f"{STATIC}/swagger-ui.css",
            swagger_favicon_url=f"{STATIC}/favicon-32x32.png",
        )

    def _info(name: str) -> AdapterInfo:
        settings = engine.adapters[name]
        return AdapterInfo(
            name=name,
            prompt=settings.data.prompt,
            max_source_length=settings.data.max_source_length,
            max_new_tokens=settings.max_new_tokens,
        )


def with_nullable(schema: Any) -> Any:
    """Return a schema of OpenAPI 3.1 with its optional types as 3.0 writes them.

    A type or null, `anyOf: [{"type": "string"}, {"type": "null"}]`, becomes the type with `nullable: true`.
    """
    if isinstance(schema, list):
        return [with_nullable(part) for part in schema]
    if not isinstance(schema, dict):
        return schema
    fields = {key: with_nullable(value) for key, value in schema.items()}
    match fields.get("anyOf"):
        case [{**kind}, {"type": "null"}]:
            del fields["anyOf"]
            return kind | fields | {"nullable": True}
    return fields


def _errors(*statuses: int) -> dict[int | str, dict[str, Any]]:
    return {status: {"model": ErrorResponse} for status in statuses}


async def _request_error(request: Request, error: Any) -> JSONResponse:
    return JSONResponse({"detail": error.detail}, error.status, error.headers)


async def _invalid_body(request: Request, error: Any) -> JSONResponse:
    """Respond with one line that names each wrong field, its value and what is accepted."""
    request.app.state.service.count_refused(request.url.path, 422)
    if any(fault["type"] == "json_invalid" or fault["loc"] == ("body",) for fault in error.errors()):
        return JSONResponse({"detail": NO_OBJECT}, 422)
    schema = SummarizeRequest if request.url.path == "/summarize" else LoadRequest
    return JSONResponse({"detail": wrong_fields(error.errors(), schema)}, 422)


async def _http_error(request: Request, error: Any) -> JSONResponse:
    """Unknown route or method; and 400, with which FastAPI refuses some bodies that are not JSON."""
    if error.status_code == 400:
        request.app.state.service.count_refused(request.url.path, 422)
        return JSONResponse({"detail": NO_OBJECT}, 422)
    return JSONResponse({"detail": error.detail}, error.status_code, error.headers)


class BodyLimit:
    """Middleware that refuses a body by its length, before it is in memory, and one that arrives too late."""

    def __init__(self, app: Any, most: int, seconds: float, count: Callable[[str, int], None]) -> None:
        self.app, self.most, self.seconds, self.count = app, most, seconds, count

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        headers = dict(scope.get("headers", ()))
        length = int(headers.get(b"content-length", 0))
        if b"transfer-encoding" in headers:
            error = JSONResponse({"detail": "send the body with a Content-Length"}, 411)
        elif length > self.most:
            error = JSONResponse(
                {"detail": f"body: {length:,} bytes; at most {self.most:,} are accepted"}, 413
            )
            receive_in_time = self._in_time(receive)
            with suppress(HTTPException):
                while length <= MOST_DRAINED and (await receive_in_time()).get("more_body"):
                    pass
        else:
            return await self.app(scope, self._in_time(receive), send)
        self.count(scope["path"], error.status_code)
        await error(scope, receive, send)

    def _in_time(self, receive: Any) -> Any:
        """Wrap `receive`: wait for the body for as long as a request may take, and after it without limit."""
        whole, end = False, time.monotonic() + self.seconds

        async def in_time() -> Any:
            nonlocal whole
            if whole:
                return await receive()
            try:
                message = await asyncio.wait_for(receive(), end - time.monotonic())
            except TimeoutError:
                raise HTTPException(408, f"the body did not arrive within {self.seconds:g} s") from None
            whole = not message.get("more_body")
            return message

        return in_time
