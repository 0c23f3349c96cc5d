"""Keyword arguments of the pools' verbs, for type checkers and editors. Not used at run time.

Sources: Ollama's API for the fields of a request body; `sollol.pool.requests` checks all of them.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, TypedDict

from sollol.core.policy import Hedger
from sollol.core.types import RoutingMode, TaskType

if TYPE_CHECKING:
    from pydantic import BaseModel

Think = bool | Literal["low", "medium", "high", "max"]
Format = Literal["", "json"] | Mapping[str, Any] | type["BaseModel"]
Options = Mapping[str, Any] | Any  # num_ctx, temperature, seed, ...; or the official client's Options
Node = str | Mapping[str, Any]
Image = str | bytes | Path | Any  # base64, a path, bytes, or the official client's Image
Tool = Callable[..., Any] | Mapping[str, Any] | Any  # a function, a schema, or the official client's Tool


class CallKeywords(TypedDict, total=False):
    """Keywords of every inference call; none of them is sent to the node."""

    mode: RoutingMode | str | None
    timeout: float | None  # seconds from the call to its end
    node: Node | Iterable[Node] | None  # only this node, or one of these
    requires_gpu: bool  # only nodes that hold all of the model on a GPU


class SingleKeywords(CallKeywords, total=False):
    """Keywords of a chat or a completion that are not sent to the node."""

    hedge: bool | Hedger | None
    task_type: TaskType | str | None


class EmbedFields(TypedDict, total=False):
    """Fields of `/api/embed`."""

    options: Options | None
    keep_alive: float | str | None  # seconds, or a duration such as "10m"
    truncate: bool | None
    dimensions: int | None


class TextFields(TypedDict, total=False):
    """Fields that `/api/chat` and `/api/generate` share."""

    options: Options | None
    keep_alive: float | str | None
    truncate: bool | None
    shift: bool | None
    format: Format | None  # "json", a JSON schema, or a pydantic class
    think: Think | None
    logprobs: bool | None
    top_logprobs: int | None


class ChatFields(TextFields, total=False):
    """Fields of `/api/chat`."""

    tools: Sequence[Tool] | None


class GenerateFields(TextFields, total=False):
    """Fields of `/api/generate`."""

    suffix: str | None
    system: str | None
    template: str | None
    context: Sequence[int] | None
    raw: bool | None
    images: Sequence[Image] | None
    width: int | None
    height: int | None
    steps: int | None


class ChatKeywords(SingleKeywords, ChatFields, total=False):
    """All keywords of `chat`."""


class GenerateKeywords(SingleKeywords, GenerateFields, total=False):
    """All keywords of `generate`."""


class EmbedKeywords(CallKeywords, EmbedFields, total=False):
    """All keywords of `embed`."""

    hedge: bool | Hedger | None
