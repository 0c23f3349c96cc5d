"""Answers with items and attributes, as in the official client: `r["message"]["content"]`, `r.message.content`.

They are Ollama's dicts, not validated models: decoding is cheap, and fields of newer versions of Ollama are available
at once. Optional fields that are absent read as None.
"""

from __future__ import annotations

import json
import warnings
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

# Optional in Ollama's answers: absent reads as None, while a typo still raises.
_OPTIONAL = frozenset(
    [
        "done",
        "done_reason",
        "total_duration",
        "load_duration",
        "prompt_eval_count",
        "prompt_eval_duration",
        "eval_count",
        "eval_duration",
        "created_at",
        "context",
        "thinking",
        "images",
        "tool_calls",
        "tool_name",
        "logprobs",
        "completed",
        "total",
        "digest",
        "status",
        "model",
        "content",
        "modified_at",
        "size",
        "size_vram",
        "expires_at",
        "context_length",
        "details",
        "capabilities",
        "template",
        "modelfile",
        "license",
        "parameters",
        "parent_model",
        "format",
        "family",
        "families",
        "parameter_size",
        "quantization_level",
        "name",
    ]
)


class Answer(dict[str, Any]):
    """A JSON object whose keys are attributes too."""

    __slots__ = ()

    def __getattr__(self, name: str) -> Any:
        try:
            return self[name]
        except KeyError:
            if name in _OPTIONAL:
                return None
            raise AttributeError(f"{type(self).__name__} has no field {name!r}; it has {', '.join(self)}") from None

    def __getitem__(self, key: str) -> Any:
        value = super().__getitem__(key)
        if type(value) is dict:
            value = Answer(value)
            self[key] = value
        elif type(value) is list and value and type(value[0]) is dict:
            value = [Answer(item) if type(item) is dict else item for item in value]
            self[key] = value
        return value

    def get(self, key: str, default: Any = None) -> Any:
        """Return a field, or `default` if it is absent."""
        return self[key] if key in self else default  # noqa: SIM401 - dict.get would not wrap

    @property
    def routing(self) -> Answer:
        """The routing record: node, reasons, predicted_ms, actual_ms, queue_ms, attempts."""
        found: Answer = self.get("_sollol_routing", Answer())
        return found

    if not TYPE_CHECKING:  # for programs of SOLLOL's fork for Hydra, which await a synchronous pool

        def __await__(self) -> Iterator[Any]:
            """Return the answer; the call before it has blocked the event loop."""
            warnings.warn(
                "an answer of OllamaPool is awaited: its call has blocked the event loop; use chat_async, "
                "generate_async, embed_async, or AsyncOllamaPool",
                stacklevel=2,
            )
            yield from ()
            return self

    def __repr__(self) -> str:
        """Return Ollama's fields without the routing record, which does not belong in a text."""
        return repr(self.model_dump())

    def model_dump_json(self, *, indent: int | None = None, **_: Any) -> str:
        """Return `model_dump()` as JSON (a name of pydantic's, too)."""
        return json.dumps(self.model_dump(), indent=indent, ensure_ascii=False)

    def model_dump(self, **_: Any) -> dict[str, Any]:
        """Return a plain dict without the routing record (named as in pydantic)."""
        return {key: value for key, value in self.items() if key != "_sollol_routing"}


class Function(Answer):
    """The function of a tool call."""

    __slots__ = ()
    if TYPE_CHECKING:
        name: str
        arguments: dict[str, Any]


class ToolCall(Answer):
    """One call of a tool that the model requests."""

    __slots__ = ()
    if TYPE_CHECKING:
        function: Function


class Message(Answer):
    """A message of a chat: `.role`, `.content`, `.thinking`, `.tool_calls`."""

    __slots__ = ()
    if TYPE_CHECKING:
        role: str
        content: str
        thinking: str | None
        images: list[str] | None
        tool_calls: list[ToolCall] | None
        tool_name: str | None


class _Timed(Answer):
    __slots__ = ()
    if TYPE_CHECKING:
        model: str | None
        created_at: str | None
        total_duration: int | None  # nanoseconds, as all durations
        load_duration: int | None
        prompt_eval_count: int | None  # tokens


class _Text(_Timed):
    __slots__ = ()
    if TYPE_CHECKING:
        done: bool | None
        done_reason: str | None
        prompt_eval_duration: int | None
        eval_count: int | None
        eval_duration: int | None
        logprobs: list[Answer] | None


class ChatResponse(_Text):
    """`/api/chat`: `.message.content`, `.done_reason`, counts and durations in nanoseconds."""

    __slots__ = ()
    if TYPE_CHECKING:
        message: Message


class GenerateResponse(_Text):
    """`/api/generate`: `.response`, `.context`, counts and durations in nanoseconds."""

    __slots__ = ()
    if TYPE_CHECKING:
        response: str
        thinking: str | None
        context: list[int] | None


class EmbedResponse(_Timed):
    """`/api/embed`: `.embeddings`, one list of floats an input, L2-normalised."""

    __slots__ = ()
    if TYPE_CHECKING:
        embeddings: list[list[float]]


class EmbeddingsResponse(Answer):
    """`/api/embeddings`: `.embedding`, one list of floats, not normalised."""

    __slots__ = ()
    if TYPE_CHECKING:
        embedding: list[float]
