"""OpenAI's API for completions, as far as a summary needs it, for clients that speak it.

A model is an adapter, or `base`; the prompt is the text to summarize, around which the server puts the
prompt that the adapter was trained with. Sampling does not exist here, so that a request for it is refused.
"""

import secrets
import time
from collections.abc import AsyncIterator, Sequence
from typing import Annotated, Any

from pydantic import AfterValidator, BeforeValidator, ConfigDict, Field

from lora_hf.saved.inference import BASE
from lora_hf.serving.schemas import Message, Text, check_letters
from lora_hf.serving.service import Asked, Delta, Output, Service

GREEDY = "the server writes the most likely text it finds, and does not sample"
ONE = "there is one output for each prompt"
PLAIN = "the server does not have this"


def _prompt(value: Any) -> Any:
    """Refuse what is neither a text nor a list of texts."""
    texts = value if isinstance(value, list) else [value]
    if not texts:
        raise ValueError("is empty")
    if any(not isinstance(text, str) for text in texts):
        raise ValueError("must be a text or a list of texts: token ids are not accepted")
    return value


def _letters(value: str | list[str]) -> str | list[str]:
    for text in [value] if isinstance(value, str) else value:
        check_letters(text)
    return value


def _only(accepted: Any, because: str) -> BeforeValidator:
    """Accept null and one value, with which a field changes nothing."""

    def check(value: Any) -> Any:
        if value is not None and value != accepted:
            shown = "left out" if accepted is None else f"{accepted!r} or left out".lower()
            raise ValueError(f"must be {shown}: {because}")
        return value

    return BeforeValidator(check)


class StreamOptions(Message):
    """What a stream has beside the text."""

    include_usage: bool = False
    """Send one more event, with the numbers of tokens."""


class CompletionRequest(Message):
    """Texts to summarize, as a request of OpenAI's API."""

    model_config = ConfigDict(
        json_schema_extra={"example": {"model": BASE, "prompt": "Anna: Lunch at noon?\nBen: Yes."}}
    )

    model: Text
    """An adapter's name, or `base`."""
    prompt: Annotated[str | list[str], BeforeValidator(_prompt), AfterValidator(_letters)]
    """A text, or several; without the adapter's prompt, which the server adds."""
    max_tokens: Annotated[int, Field(ge=1)] | None = None
    """The longest output; null takes the length that the adapter was trained for."""
    stream: bool | None = False
    """Send the text while it is written, as server-sent events."""
    stream_options: StreamOptions | None = None
    temperature: Annotated[float | None, _only(0, GREEDY)] = None
    """Only 0."""
    top_p: Annotated[float | None, _only(1, GREEDY)] = None
    n: Annotated[int | None, _only(1, ONE)] = None
    best_of: Annotated[int | None, _only(1, ONE)] = None
    presence_penalty: Annotated[float | None, _only(0, PLAIN)] = None
    frequency_penalty: Annotated[float | None, _only(0, PLAIN)] = None
    logit_bias: Annotated[dict[str, float] | None, _only({}, PLAIN)] = None
    logprobs: Annotated[int | None, _only(None, PLAIN)] = None
    stop: Annotated[list[str] | None, _only([], PLAIN)] = None
    suffix: Annotated[str | None, _only("", PLAIN)] = None
    echo: Annotated[bool | None, _only(False, PLAIN)] = None
    seed: int | None = None
    """Not used: the same request has the same output."""
    user: str | None = None
    """Not used."""

    @property
    def texts(self) -> list[str]:
        """The prompts as a list."""
        return [self.prompt] if isinstance(self.prompt, str) else self.prompt

    def asked(self, adapter: str | None) -> Asked:
        """Return what is asked of an adapter, with the fields' names of this API."""
        return Asked(
            self.texts,
            adapter,
            max_new_tokens=self.max_tokens,
            text_field="prompt",
            length_field="max_tokens",
            adapter_field="model",
        )


class ErrorObject(Message):
    """Why a request was refused, and what to do."""

    message: str
    type: str
    """`invalid_request_error`, or `server_error` where the same request may succeed later."""
    param: str | None
    """The field that is wrong."""
    code: str | None


class CompletionError(Message):
    """An error, as OpenAI's API has it."""

    error: ErrorObject


class Choice(Message):
    """What was written for one prompt."""

    text: str
    index: int
    logprobs: dict[str, Any] | None = None
    finish_reason: str | None
    """`stop` at the model's own end, `length` where `max_tokens` ended the text."""


class Usage(Message):
    """Numbers of tokens."""

    prompt_tokens: int
    """The adapter's prompt included."""
    completion_tokens: int
    total_tokens: int


class CompletionResponse(Message):
    """The outputs, in the order of the prompts."""

    id: str
    object: str = "text_completion"
    created: int
    """Seconds since 1970."""
    model: str
    choices: list[Choice]
    usage: Usage


class ModelInfo(Message):
    """An adapter, or the base."""

    id: str
    object: str = "model"
    created: int
    """When the server was started, in seconds since 1970."""
    owned_by: str = "lora_hf"


class ModelList(Message):
    """The base and the loaded adapters."""

    object: str = "list"
    data: list[ModelInfo]


def models(service: Service) -> ModelList:
    """Return the base and the adapters of a server."""
    return ModelList(data=[ModelInfo(id=name, created=service.started) for name in service.models()])


def _usage(outputs: Sequence[Output]) -> Usage:
    read = sum(output.prompt_tokens for output in outputs)
    written = sum(output.written.tokens for output in outputs)
    return Usage(prompt_tokens=read, completion_tokens=written, total_tokens=read + written)


def _choice(index: int, text: str, output: Output | None) -> Choice:
    reason = None if output is None else "stop" if output.written.is_whole else "length"
    return Choice(text=text, index=index, finish_reason=reason)


def _head(model: str) -> dict[str, Any]:
    return {"id": f"cmpl-{secrets.token_hex(12)}", "created": int(time.time()), "model": model}


def completion(request: CompletionRequest, outputs: Sequence[Output]) -> CompletionResponse:
    """Return the response of a request that was answered at once."""
    choices = [_choice(index, output.written.text, output) for index, output in enumerate(outputs)]
    return CompletionResponse(**_head(request.model), choices=choices, usage=_usage(outputs))


async def chunks(request: CompletionRequest, deltas: AsyncIterator[Delta]) -> AsyncIterator[dict[str, Any]]:
    """Yield the events of a response that is streamed; the last one, `[DONE]`, is not among them."""
    head = _head(request.model) | {"object": "text_completion"}
    wants_usage = bool(request.stream_options and request.stream_options.include_usage)
    usage: dict[str, Any] = {"usage": None} if wants_usage else {}
    outputs: list[Output] = []
    async for delta in deltas:
        choice = _choice(delta.index, delta.text, delta.output).model_dump()
        yield head | {"choices": [choice]} | usage
        outputs += [delta.output] if delta.output else []
    if wants_usage:
        yield head | {"choices": [], "usage": _usage(outputs).model_dump()}
