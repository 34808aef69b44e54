"""The HTTP face: routes, and one form for every refusal, `{"detail": "..."}`."""

import asyncio
import time
from collections.abc import Callable
from contextlib import suppress
from typing import Any

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.openapi.docs import get_swagger_ui_html
from fastapi.responses import HTMLResponse, JSONResponse, Response
from prometheus_client import CONTENT_TYPE_LATEST
from starlette.exceptions import HTTPException
from starlette.staticfiles import StaticFiles
from swagger_ui_bundle import swagger_ui_path

from lora_hf import __version__
from lora_hf.serving.schemas import Answer, Ask, Fault, Health, Loaded, Source, wrong_field
from lora_hf.serving.service import Refused, Service

STATIC = "/docs/static"
NO_OBJECT = (
    'body: no JSON object; send one, with "Content-Type: application/json", such as {"dialogue": "..."}'
)
MOST_DRAINED = 2**26
"""Bytes of a refused body that are read before the refusal, so that its sender comes to reading it."""


def create_app(service: Service) -> FastAPI:
    """The application of a service."""
    app = FastAPI(title="lora-hf serve", version=__version__, docs_url=None, redoc_url=None)
    app.state.service = service
    limits = service.limits
    app.add_middleware(BodyLimit, most=limits.max_bytes, seconds=limits.timeout, refused=service.refused)
    app.add_exception_handler(Refused, _refused)
    app.add_exception_handler(RequestValidationError, _not_valid)
    app.add_exception_handler(HTTPException, _http_fault)
    app.mount(STATIC, StaticFiles(directory=swagger_ui_path), name="static")
    _add_routes(app, service)
    return app


def _add_routes(app: FastAPI, service: Service) -> None:
    engine = service.engine

    @app.post("/summarize", responses=_faults(404, 411, 413, 422, 503, 504))
    async def summarize(ask: Ask) -> Answer:
        """Summarize one dialogue, by an adapter or by the base."""
        return await service.summarize(ask)

    @app.get("/adapters")
    async def adapters() -> list[Loaded]:
        """The adapters that can be asked for."""
        return [_loaded(name) for name in engine.names]

    @app.post("/adapters", status_code=201, responses=_faults(403, 409, 422))
    async def load(source: Source) -> Loaded:
        """Load an adapter from a folder below the server's folder of adapters."""
        await service.load(source.name, source.path)
        return _loaded(source.name)

    @app.delete("/adapters/{name}", status_code=204, responses=_faults(404))
    async def unload(name: str) -> None:
        """Unload an adapter once the requests that wait for it are answered."""
        await service.unload(name)

    @app.get("/health")
    async def health() -> Health:
        """Whether the server runs, and what it has."""
        return Health(base=engine.name, adapters=engine.names, waiting=service.batcher.waiting)

    @app.get("/metrics")
    async def metrics() -> Response:
        """Figures for Prometheus."""
        return Response(service.metrics.text(), media_type=CONTENT_TYPE_LATEST)

    @app.get("/docs", include_in_schema=False)
    async def docs() -> HTMLResponse:
        return get_swagger_ui_html(
            openapi_url="/openapi.json",
            title=app.title,
            swagger_js_url=f"{STATIC}/swagger-ui-bundle.js",
            swagger_css_url=f"{STATIC}/swagger-ui.css",
            swagger_favicon_url=f"{STATIC}/favicon-32x32.png",
        )

    def _loaded(name: str) -> Loaded:
        served = engine.adapters[name]
        return Loaded(
            name=name,
            prompt=served.data.prompt,
            max_source_length=served.data.max_source_length,
            max_new_tokens=served.max_new_tokens,
        )


def _faults(*statuses: int) -> dict[int | str, dict[str, Any]]:
    return {status: {"model": Fault} for status in statuses}


async def _refused(request: Request, refused: Any) -> JSONResponse:
    return JSONResponse({"detail": refused.detail}, refused.status, refused.headers)


async def _not_valid(request: Request, error: Any) -> JSONResponse:
    """One line that names each field, its value and what is accepted."""
    request.app.state.service.refused(request.url.path, 422)
    if any(fault["type"] == "json_invalid" or fault["loc"] == ("body",) for fault in error.errors()):
        return JSONResponse({"detail": NO_OBJECT}, 422)
    asked = Ask if request.url.path == "/summarize" else Source
    return JSONResponse({"detail": "; ".join(wrong_field(fault, asked) for fault in error.errors())}, 422)


async def _http_fault(request: Request, error: Any) -> JSONResponse:
    """Another address or way; and 400, which FastAPI says of some bodies that are no JSON."""
    if error.status_code == 400:
        request.app.state.service.refused(request.url.path, 422)
        return JSONResponse({"detail": NO_OBJECT}, 422)
    return JSONResponse({"detail": error.detail}, error.status_code, error.headers)


class BodyLimit:
    """Refuses a body by its length, before it is read into memory, and one that does not come."""

    def __init__(self, app: Any, most: int, seconds: float, refused: Callable[[str, int], None]) -> None:
        self.app, self.most, self.seconds, self.refused = app, most, seconds, refused

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        headers = dict(scope.get("headers", ()))
        length = int(headers.get(b"content-length", 0))
        if b"transfer-encoding" in headers:
            fault = JSONResponse({"detail": "send the body with a Content-Length"}, 411)
        elif length > self.most:
            fault = JSONResponse({"detail": f"body: {length:,} bytes, of {self.most:,} at most"}, 413)
            receive_in_time = self._in_time(receive)
            with suppress(HTTPException):
                while length <= MOST_DRAINED and (await receive_in_time()).get("more_body"):
                    pass
        else:
            return await self.app(scope, self._in_time(receive), send)
        self.refused(scope["path"], fault.status_code)
        await fault(scope, receive, send)

    def _in_time(self, receive: Any) -> Any:
        """The same, which waits for a body as long as a request may take; after it, for ever."""
        whole, end = False, time.monotonic() + self.seconds

        async def in_time() -> Any:
            nonlocal whole
            if whole:
                return await receive()
            try:
                message = await asyncio.wait_for(receive(), end - time.monotonic())
            except TimeoutError:
                raise HTTPException(408, f"the body did not come within {self.seconds:g} s") from None
            whole = not message.get("more_body")
            return message

        return in_time
