"""HTTP routes, and the form of their errors.

`/summarize` and the routes about adapters have errors of the form `{"detail": "..."}`; the routes below `/v1`
have the requests, responses and errors of OpenAI's API.
"""

import asyncio
import json
import time
from collections.abc import AsyncIterator, Callable
from contextlib import suppress
from typing import Any

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.openapi.docs import get_swagger_ui_html
from fastapi.responses import HTMLResponse, JSONResponse, Response, StreamingResponse
from prometheus_client import CONTENT_TYPE_LATEST
from starlette.exceptions import HTTPException
from starlette.routing import Route
from starlette.staticfiles import StaticFiles
from swagger_ui_bundle import swagger_ui_path

from lora_hf import __version__
from lora_hf.errors import did_you_mean
from lora_hf.serving.bearer import BearerToken
from lora_hf.serving.completions import (
    CompletionError,
    CompletionRequest,
    CompletionResponse,
    ModelInfo,
    ModelList,
    chunks,
    completion,
    models,
)
from lora_hf.serving.refusals import OPENAI, RequestError, refusal, refusal_event
from lora_hf.serving.schemas import (
    AdapterInfo,
    ErrorResponse,
    HealthResponse,
    LoadRequest,
    Message,
    SummarizeRequest,
    SummarizeResponse,
    wrong_fields,
)
from lora_hf.serving.service import Asked, Delta, Output, Service

STATIC = "/docs/static"
OPENAPI = "3.0.3"
"""The latest version that the packaged Swagger UI reads; FastAPI writes 3.1."""
NO_OBJECT = 'body: not a JSON object%s; send one with "Content-Type: application/json", such as %s'
BODIES: dict[str, type[Message]] = {"/summarize": SummarizeRequest, "/v1/completions": CompletionRequest}
"""What is sent to a path; to others, a `LoadRequest`."""
STREAM: dict[str, Any] = {"content": {"text/event-stream": {}}}
MOST_DRAINED = 2**26
"""Bytes of a refused body that are read before the response, because clients send the whole body first."""


STYLE = """<style>
.swagger-ui a, .swagger-ui .info .link { color: #1f6fbf; }
.swagger-ui .info .title small { background: #5c6370; }
.swagger-ui .info .title small.version-stamp { background: #4d7a00; }
.swagger-ui .btn.authorize { border-color: #1a7f4f; color: #1a7f4f; }
.swagger-ui .btn.authorize svg { fill: #1a7f4f; }
.swagger-ui .opblock.opblock-get .opblock-summary-method { background: #1f6fbf; }
.swagger-ui .opblock.opblock-post .opblock-summary-method { background: #1a7f4f; }
.swagger-ui .opblock.opblock-delete .opblock-summary-method { background: #c92a2a; }
@media (prefers-color-scheme: dark) {
  html { background: #fff; filter: invert(0.9) hue-rotate(180deg); }
  body { background: #fff !important; }
  .swagger-ui .microlight { filter: invert(1) hue-rotate(180deg); }
  .swagger-ui .dialog-ux .backdrop-ux { background: rgba(255, 255, 255, 0.7); }
}
</style>
"""
"""Colors of the API page with a contrast of 4.5, and a dark scheme, which it lacks; code is dark in both."""


def create_app(service: Service, token: str | None = None) -> FastAPI:
    """Create the ASGI application of a service.

    Args:
        service: answers the requests.
        token: what clients have to send; None accepts all requests.
    """
    app = FastAPI(title="lora-hf serve", version=__version__, docs_url=None, redoc_url=None)
    app.openapi_version = OPENAPI
    with_null = app.openapi
    app.openapi = lambda: described(with_nullable(with_null()), token)  # type: ignore[method-assign]
    app.state.service = service
    limits = service.limits
    if token:
        app.add_middleware(BearerToken, token=token, static=STATIC, count=service.count_refused)
    app.add_middleware(BodyLimit, most=limits.max_bytes, seconds=limits.timeout, count=service.count_refused)
    app.add_exception_handler(RequestError, _request_error)
    app.add_exception_handler(RequestValidationError, _invalid_body)
    app.add_exception_handler(HTTPException, _http_error)
    app.mount(STATIC, StaticFiles(directory=swagger_ui_path), name="static")
    for add in (_add_summaries, _add_openai, _add_adapters, _add_pages):
        add(app, service)
    return app


def _add_summaries(app: FastAPI, service: Service) -> None:
    @app.post(
        "/summarize",
        tags=["summaries"],
        response_model=SummarizeResponse,
        responses=_errors(404, 411, 413, 422, 503, 504) | {200: STREAM},
    )
    async def summarize(request: SummarizeRequest) -> Any:
        """Summarize one dialogue with an adapter or the base."""
        start = time.perf_counter()
        fields = request.model_dump(exclude={"dialogue", "stream"})
        asked = Asked([request.dialogue], **fields)

        def whole(output: Output) -> SummarizeResponse:
            seconds = round(time.perf_counter() - start, 4)
            return SummarizeResponse(
                summary=output.written.text,
                adapter=request.adapter,
                truncated=output.truncated,
                parts=output.parts,
                seconds=seconds,
            )

        async def events(deltas: AsyncIterator[Delta]) -> AsyncIterator[dict[str, Any]]:
            async for delta in deltas:
                if delta.text:
                    yield {"text": delta.text}
                if delta.output:
                    yield whole(delta.output).model_dump()

        if request.stream:
            return await streamed("/summarize", events(service.stream(asked)))
        return whole((await service.write(asked))[0])


def _add_openai(app: FastAPI, service: Service) -> None:
    @app.post(
        "/v1/completions",
        tags=["OpenAI"],
        response_model=CompletionResponse,
        responses=_errors(400, 404, 503, 504, model=CompletionError) | {200: STREAM},
    )
    async def complete(request: CompletionRequest) -> Any:
        """Summarize texts, as OpenAI's API for completions; the model is an adapter's name, or `base`."""
        try:
            asked = request.asked(service.model(request.model))
        except RequestError as error:
            service.count_refused("/v1/completions", error.status)
            raise
        if request.stream:
            return await streamed("/v1/completions", chunks(request, service.stream(asked)), "[DONE]")
        return completion(request, await service.write(asked))

    @app.get("/v1/models", tags=["OpenAI"])
    async def list_models() -> ModelList:
        """List the base and the loaded adapters, as OpenAI's API."""
        return models(service)

    @app.get("/v1/models/{model}", tags=["OpenAI"])
    async def get_model(model: str) -> ModelInfo:
        """Return one of them."""
        service.model(model)
        return ModelInfo(id=model, created=service.started)


def _add_adapters(app: FastAPI, service: Service) -> None:
    engine = service.engine

    def _info(name: str) -> AdapterInfo:
        settings = engine.adapters[name]
        return AdapterInfo(
            name=name,
            prompt=settings.data.prompt,
            max_source_length=settings.data.max_source_length,
            max_new_tokens=settings.max_new_tokens,
        )

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


def _add_pages(app: FastAPI, service: Service) -> None:
    engine = service.engine

    @app.get("/health", tags=["server"])
    async def health() -> HealthResponse:
        """Return the server's state."""
        return HealthResponse(base=engine.name, adapters=engine.names, waiting=service.batcher.waiting)

    @app.get("/metrics", tags=["server"])
    async def metrics() -> Response:
        """Return the metrics for Prometheus."""
        return Response(service.metrics.text(), media_type=CONTENT_TYPE_LATEST)

    @app.get("/", include_in_schema=False)
    async def root() -> Response:
        text = "lora-hf serves here: open /docs in a browser\n"
        return Response(text, 307, {"Location": "/docs"}, "text/plain")

    @app.get("/docs", include_in_schema=False)
    async def docs() -> HTMLResponse:
        page = get_swagger_ui_html(
            openapi_url="/openapi.json",
            title=app.title,
            swagger_js_url=f"{STATIC}/swagger-ui-bundle.js",
            swagger_css_url=f"{STATIC}/swagger-ui.css",
            swagger_favicon_url=f"{STATIC}/favicon-32x32.png",
        )
        return HTMLResponse(bytes(page.body).decode().replace("</head>", f"{STYLE}</head>"))


async def streamed(path: str, events: AsyncIterator[dict[str, Any]], end: str = "") -> StreamingResponse:
    """Return a response of server-sent events, once the first is there.

    Args:
        path: of the request; what fails in the middle is an event in the form of its errors.
        events: objects.
        end: the data of a last event.

    Raises:
        RequestError: the request is refused before its first event, with its own status.
    """
    first = await anext(events)

    async def lines() -> AsyncIterator[str]:
        yield f"data: {json.dumps(first)}\n\n"
        try:
            async for event in events:
                yield f"data: {json.dumps(event)}\n\n"
            if end:
                yield f"data: {end}\n\n"
        except RequestError as error:
            yield f"data: {json.dumps(refusal_event(path, error))}\n\n"

    headers = {"Cache-Control": "no-cache", "X-Accel-Buffering": "no"}  # proxies wait for more without it
    return StreamingResponse(lines(), media_type="text/event-stream", headers=headers)


def described(schema: dict[str, Any], token: str | None) -> dict[str, Any]:
    """Return an OpenAPI schema with the token that requests need, so that the page /docs asks for it."""
    if token:
        schema["components"]["securitySchemes"] = {"token": {"type": "http", "scheme": "bearer"}}
        schema["security"] = [{"token": []}]
        schema["paths"]["/health"]["get"]["security"] = []
    return schema


def with_nullable(schema: Any) -> Any:
    """Return a schema of OpenAPI 3.1 with its optional types as 3.0 writes them.

    A type or null, `anyOf: [{"type": "string"}, {"type": "null"}]`, becomes the type with `nullable: true`;
    one of several types stays an `anyOf`.
    """
    if isinstance(schema, list):
        return [with_nullable(part) for part in schema]
    if not isinstance(schema, dict):
        return schema
    fields = {key: with_nullable(value) for key, value in schema.items()}
    kinds, null = fields.get("anyOf"), {"type": "null"}
    if isinstance(kinds, list) and null in kinds:
        del fields["anyOf"]
        left = [kind for kind in kinds if kind != null]
        return (left[0] if len(left) == 1 else {"anyOf": left}) | fields | {"nullable": True}
    return fields


def _errors(*statuses: int, model: type[Message] = ErrorResponse) -> dict[int | str, dict[str, Any]]:
    return {status: {"model": model} for status in statuses}


async def _request_error(request: Request, error: Any) -> JSONResponse:
    return refusal(request.url.path, error.status, error.detail, error.headers, error.field)


async def _invalid_body(request: Request, error: Any) -> JSONResponse:
    """Respond with one line that names each wrong field, its value and what is accepted."""
    path, faults = request.url.path, error.errors()
    request.app.state.service.count_refused(path, 422)
    for fault in faults:
        if fault["type"] == "json_invalid":
            return _no_object(request, f" ({_reason(fault)})")
        if fault["loc"] == ("body",):
            return _no_object(request)
    detail = wrong_fields(faults, BODIES.get(path, LoadRequest))
    return refusal(path, 422, detail, field=str(faults[0]["loc"][1]))


def _reason(fault: Any) -> str:
    """Return why a body is not JSON: a text that was pasted into it has line breaks as they are."""
    text, place = fault["ctx"]["error"], f"at character {fault['loc'][1]}"
    remedy = ": write a line break in a text as \\n" if "control character" in text else ""
    return f"{text.removesuffix(' at')} {place}{remedy}"


def _no_object(request: Request, reason: str = "") -> JSONResponse:
    path, encoding = request.url.path, request.headers.get("content-encoding", "identity")
    if encoding.lower() != "identity":
        text = (
            f"body: Content-Encoding {encoding!r} is not decoded; send the JSON as it is, without the header"
        )
        return refusal(path, 422, text)
    example = '{"model": "base", "prompt": "..."}' if path.startswith(OPENAI) else '{"dialogue": "..."}'
    return refusal(path, 422, NO_OBJECT % (reason, example))


async def _http_error(request: Request, error: Any) -> JSONResponse:
    """Unknown route or method; and 400, with which FastAPI refuses some bodies that are not JSON."""
    path = request.url.path
    if error.status_code == 400:
        request.app.state.service.count_refused(path, 422)
        return _no_object(request)
    detail = error.detail
    if error.status_code == 404:
        paths = [route.path for route in request.app.routes if isinstance(route, Route)]
        detail = f"no route {path!r}; the page /docs lists them.{did_you_mean(path, paths)}"
    elif error.status_code == 405:
        detail = f"{request.method} is not possible at {path}: use {(error.headers or {}).get('Allow', '')}"
    return refusal(path, error.status_code, detail, error.headers)


class BodyLimit:
    """Middleware that refuses a body by its length, before it is in memory, and one that arrives too late."""

    def __init__(self, app: Any, most: int, seconds: float, count: Callable[[str, int], None]) -> None:
        self.app, self.most, self.seconds, self.count = app, most, seconds, count

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        headers = dict(scope.get("headers", ()))
        length = int(headers.get(b"content-length", 0))
        if b"transfer-encoding" in headers:
            error = refusal(scope["path"], 411, "send the body with a Content-Length")
        elif length > self.most:
            detail = f"body: {length:,} bytes; at most {self.most:,} are accepted"
            error = refusal(scope["path"], 413, detail)
            receive_in_time = self._in_time(receive)
            with suppress(HTTPException):
                while length <= MOST_DRAINED and (await receive_in_time()).get("more_body"):
                    pass
        else:
            return await self.app(scope, self._in_time(receive), send)
        self.count(scope["path"], 411 if b"transfer-encoding" in headers else 413)
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
