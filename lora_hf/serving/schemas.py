"""What is asked and answered, as JSON."""

from typing import Annotated, Any

from pydantic import AfterValidator, BaseModel, ConfigDict, Field
from pydantic_core import ErrorDetails

from lora_hf.config.problems import near_choice, phrase_of, shown


def _text(text: str) -> str:
    """JSON can hold halves of characters, which are no text, and the character 0, which is none in a path."""
    if not text.strip():
        raise ValueError("is empty")
    if "\0" in text or any("\ud800" <= letter <= "\udfff" for letter in text):
        raise ValueError("holds what is no character")
    return text


Text = Annotated[str, AfterValidator(_text)]


class Message(BaseModel):
    """A JSON object; what is written below a field is said on the API page."""

    model_config = ConfigDict(extra="forbid", strict=True, use_attribute_docstrings=True)


class Ask(Message):
    """A dialogue to be summarized."""

    dialogue: Text
    """One turn a line, such as `Anna: Lunch at noon?`."""
    adapter: Text | None = None
    """Its name, or null for the base."""
    num_beams: Annotated[int, Field(ge=1)] = 1
    """1 is greedy."""
    max_new_tokens: Annotated[int, Field(ge=1)] | None = None
    """The most tokens of the summary; null: as many as the adapter was trained for."""
    truncate: bool = False
    """Cut a dialogue that is too long for the model; otherwise it is refused."""


class Answer(Message):
    """The summary."""

    summary: str
    adapter: str | None
    truncated: bool
    """Whether the dialogue was cut."""
    seconds: float
    """From the request to this."""


class Source(Message):
    """An adapter to be loaded."""

    name: Text
    """What requests will call it."""
    path: Text
    """Its folder, below the server's folder of adapters."""


class Loaded(Message):
    """An adapter that is served."""

    name: str
    prompt: str
    """A shipped prompt's name, or the text around each dialogue."""
    max_source_length: int
    """Tokens, prompt included."""
    max_new_tokens: int


class Health(Message):
    """That the server runs, and what it has."""

    status: str = "ok"
    base: str
    adapters: list[str]
    waiting: int
    """Requests in the queue."""


class Fault(Message):
    """Why a request was not answered."""

    detail: str


def wrong_field(fault: ErrorDetails, asked: type[Message]) -> str:
    """One mistake in what was sent, in the words that a config's mistakes have.

    Args:
        fault: one of pydantic's, whose place begins with `body`.
        asked: what should have been sent.
    """
    name, fields = ".".join(map(str, fault["loc"][1:])), list(asked.model_fields)
    if fault["type"] == "missing":
        return f"{name} is missing, and must be sent; known are {', '.join(fields)}"
    if fault["type"] == "extra_forbidden":
        hint = near_choice(name, fields) or f"; known are {', '.join(fields)}"
        return f"unknown field {shown(name)} (value {_short(fault['input'])}){hint}"
    return f"{name}={_short(fault['input'])} {phrase_of(fault)}"


def _short(value: Any) -> str:
    """What was sent; a list or an object is not repeated, for it may be of any depth."""
    if isinstance(value, list):
        return "[...]"
    return "{...}" if isinstance(value, dict) else shown(value)
