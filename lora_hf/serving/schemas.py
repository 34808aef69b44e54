"""JSON bodies of requests and responses."""

from collections.abc import Sequence
from typing import Annotated, Any

from pydantic import AfterValidator, BaseModel, ConfigDict, Field
from pydantic_core import ErrorDetails

from lora_hf.arguments import is_blank
from lora_hf.config.problems import near_choice, phrase_of, shown


def check_letters(text: str) -> str:
    """Refuse an empty text, and one with what paths or UTF-8 cannot have: character 0, lone surrogates."""
    if is_blank(text):
        raise ValueError("is empty")
    if "\0" in text or any("\ud800" <= letter <= "\udfff" for letter in text):
        raise ValueError("has an invalid character")
    return text


Text = Annotated[str, AfterValidator(check_letters)]


class Message(BaseModel):
    """A JSON object; the text below each field is shown on the API page."""

    model_config = ConfigDict(extra="forbid", strict=True, use_attribute_docstrings=True)


class SummarizeRequest(Message):
    """A dialogue to summarize."""

    model_config = ConfigDict(
        json_schema_extra={"example": {"dialogue": "Anna: Lunch at noon?\nBen: Yes.", "adapter": None}}
    )

    dialogue: Text
    """One turn per line, such as `Anna: Lunch at noon?`."""
    adapter: Text | None = None
    """The adapter's name, or null for the base."""
    num_beams: Annotated[int, Field(ge=1)] | None = None
    """1 is greedy search; null takes the number that the adapter was scored with."""
    max_new_tokens: Annotated[int, Field(ge=1)] | None = None
    """The longest summary in tokens; null takes the length that the adapter was trained for."""
    truncate: bool = False
    """Cut a dialogue that is too long for the model instead of refusing it."""
    stream: bool = False
    """Send the summary while it is written, as server-sent events: `{"text": ...}` with what is new, and at
    the end what is the whole response without it."""


class SummarizeResponse(Message):
    """A summary."""

    summary: str
    adapter: str | None
    truncated: bool
    """True if the dialogue was cut."""
    parts: int
    """Parts that a dialogue was divided into because it is too long; 1 for most."""
    seconds: float
    """Time from the request to this response."""


class LoadRequest(Message):
    """An adapter to load."""

    name: Text
    """The name that requests give."""
    path: Text
    """Its folder, below the server's folder of adapters."""


class AdapterInfo(Message):
    """A loaded adapter."""

    name: str
    prompt: str
    """The name of a shipped prompt, or a template."""
    max_source_length: int
    """In tokens, prompt included."""
    max_new_tokens: int


class HealthResponse(Message):
    """The server's state."""

    status: str = "ok"
    base: str
    adapters: list[str]
    waiting: int
    """Requests in the queue."""


class ErrorResponse(Message):
    """Why a request was refused, and what to do."""

    detail: str


def wrong_fields(faults: Sequence[ErrorDetails], schema: type[Message]) -> str:
    """Describe the mistakes in a request, in the same words as a config's; list the known fields once.

    Args:
        faults: errors of pydantic, whose locations begin with `body`.
        schema: the expected body.
    """
    fields, texts, is_lost = list(schema.model_fields), [], False
    missing = [str(fault["loc"][-1]) for fault in faults if fault["type"] == "missing"]
    for fault in faults:
        name = ".".join(map(str, fault["loc"][1:]))
        if fault["type"] == "missing":
            texts.append(f"{name} is missing and required")
            is_lost = True
        elif fault["type"] == "extra_forbidden":
            hint = near_choice(name, missing or fields)  # one of another name is probably what is missing
            texts.append(f"unknown field {shown(name)} (value {_short(fault['input'])}){hint}")
            is_lost = is_lost or not hint
        else:
            texts.append(f"{name}={_short(fault['input'])} {phrase_of(fault)}")
    return "; ".join([*texts, *([f"known fields are {', '.join(fields)}"] if is_lost else [])])


def _short(value: Any) -> str:
    """Show a value; lists and objects are not repeated, because they may be of any depth."""
    if isinstance(value, list):
        return "[...]"
    return "{...}" if isinstance(value, dict) else shown(value)
