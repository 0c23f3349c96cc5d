"""Convert requests of other APIs into Ollama's format, if their answer is plain text that continues the prompt.

Only such an answer can be resumed exactly by another node, from the same rendered prompt with the same sampling. Each
field is converted as Ollama's middleware does it (openai/openai.go, openai/responses.go and anthropic/anthropic.go in
ollama/ollama), defaults included. A field that the middleware ignores may have an effect in another version, so it
counts as inexact, unless it can never change the text.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from typing import Any, Final

import msgspec

from sollol.backends.ollama import decode

# Fields that never change the text of an answer.
NEUTRAL: Final = frozenset(
    ["model", "stream", "user", "metadata", "store", "service_tier", "parallel_tool_calls", "safety_identifier",
     "prompt_cache_key", "prompt_cache_retention"]
)  # fmt: skip
# Values with which a field has no effect.
NO_EFFECT: Final[Mapping[str, tuple[Any, ...]]] = {
    "n": (1,),
    "tool_choice": ("none", "auto"),
    "response_format": ({"type": "text"},),
    "text": ({"format": {"type": "text"}},),
    "truncation": ("disabled",),
}


class Inexact(Exception):
    """A request has no plain text as its answer, or cannot be read."""


def convert(body: bytes, as_ollama: Callable[[Mapping[str, Any]], dict[str, Any]]) -> tuple[dict[str, Any], Any] | None:
    """Return a request in Ollama's format, and its own fields; None if its answer cannot be resumed."""
    try:
        fields = decode(body)
        if not isinstance(fields, dict) or not isinstance(fields.get("model"), str):
            return None
        return {"model": fields["model"], **as_ollama(fields)}, fields
    except (Inexact, msgspec.DecodeError):
        return None


def check_fields(fields: Mapping[str, Any], known: Collection[str]) -> None:
    """Check that each field is one of `known`, or has no effect.

    Raises:
        Inexact: A field may have an effect.
    """
    for name, value in fields.items():
        if value and name not in known and name not in NEUTRAL and value not in NO_EFFECT.get(name, ()):
            raise Inexact(name)


def numbers(fields: Mapping[str, Any], names: Mapping[str, str]) -> dict[str, Any]:
    """Return the numeric options. `names`: the field's name -> Ollama's.

    Raises:
        Inexact: A value is no number.
    """
    found = {}
    for name, option in names.items():
        value = fields.get(name)
        if value is not None:
            if isinstance(value, bool) or not isinstance(value, (int, float)):
                raise Inexact(name)
            found[option] = value
    return found


def texts(value: Any) -> list[str]:
    """Return a list of texts, empty for None.

    Raises:
        Inexact: It is no list of texts.
    """
    if value is None:
        return []
    if not isinstance(value, list) or not all(isinstance(text, str) for text in value):
        raise Inexact("texts")
    return value


def parts(content: Any, kinds: Collection[str] = ("text",)) -> list[str]:
    """Return the texts of a content, which is a text or a list of parts of these kinds.

    Raises:
        Inexact: It has other parts.
    """
    if isinstance(content, str):
        return [content]
    if not isinstance(content, list):
        raise Inexact("content")
    found = []
    for part in content:
        if not isinstance(part, dict) or part.get("type") not in kinds or not isinstance(part.get("text"), str):
            raise Inexact("content")
        found.append(part["text"])
    return found


def items(value: Any) -> list[dict[str, Any]]:
    """Return a list of messages.

    Raises:
        Inexact: It is no list of objects.
    """
    if not isinstance(value, list) or not all(isinstance(item, dict) for item in value):
        raise Inexact("messages")
    return value


def role(message: Mapping[str, Any]) -> str:
    """Return the role of a message.

    Raises:
        Inexact: It has none, or it is a tool's.
    """
    found = message.get("role")
    if not isinstance(found, str) or found.lower() == "tool":
        raise Inexact("role")
    return found
