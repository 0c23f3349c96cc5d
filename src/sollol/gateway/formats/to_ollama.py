"""What a request of another API is in Ollama's own words, where its answer is plain text going on from its prompt.

Only then can another node go on with it exactly: the same prompt has to be rendered, the same sampling asked for. What
each field becomes is what Ollama's middleware makes of it (openai/openai.go, openai/responses.go and
anthropic/anthropic.go in ollama/ollama), defaults included. A field that it does not know changes nothing there, but
might in another version: it counts as inexact unless it is among those that can never matter.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from typing import Any, Final

import msgspec

from sollol.backends.ollama import decode

# Fields that say nothing of the answer's text.
FREE: Final = frozenset(
    ["model", "stream", "user", "metadata", "store", "service_tier", "parallel_tool_calls", "safety_identifier",
     "prompt_cache_key", "prompt_cache_retention"]
)  # fmt: skip
# Values under which a field that would matter does not.
IDLE: Final[Mapping[str, tuple[Any, ...]]] = {
    "n": (1,),
    "tool_choice": ("none", "auto"),
    "response_format": ({"type": "text"},),
    "text": ({"format": {"type": "text"}},),
    "truncation": ("disabled",),
}


class Inexact(Exception):
    """The answer to this request is more than text that goes on from its prompt, or the request is not right."""


def asked(body: bytes, as_ollama: Callable[[Mapping[str, Any]], dict[str, Any]]) -> tuple[dict[str, Any], Any] | None:
    """A request in Ollama's words, and its fields; None where its answer could not be gone on with."""
    try:
        fields = decode(body)
        if not isinstance(fields, dict) or not isinstance(fields.get("model"), str):
            return None
        return {"model": fields["model"], **as_ollama(fields)}, fields
    except (Inexact, msgspec.DecodeError):
        return None


def check(fields: Mapping[str, Any], known: Collection[str]) -> None:
    """Raises Inexact for a field that might matter and is none of `known`."""
    for name, value in fields.items():
        if value and name not in known and name not in FREE and value not in IDLE.get(name, ()):
            raise Inexact(name)


def numbers(fields: Mapping[str, Any], names: Mapping[str, str]) -> dict[str, Any]:
    """The options among the fields: theirs -> ours."""
    found = {}
    for theirs, ours in names.items():
        value = fields.get(theirs)
        if value is not None:
            if isinstance(value, bool) or not isinstance(value, (int, float)):
                raise Inexact(theirs)
            found[ours] = value
    return found


def texts(value: Any) -> list[str]:
    """A list of texts; empty for none."""
    if value is None:
        return []
    if not isinstance(value, list) or not all(isinstance(text, str) for text in value):
        raise Inexact("texts")
    return value


def parts(content: Any, kinds: Collection[str] = ("text",)) -> list[str]:
    """The texts of a content: a text, or parts of these kinds."""
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
    """A list of messages."""
    if not isinstance(value, list) or not all(isinstance(item, dict) for item in value):
        raise Inexact("messages")
    return value


def role(message: Mapping[str, Any]) -> str:
    found = message.get("role")
    if not isinstance(found, str) or found.lower() == "tool":
        raise Inexact("role")
    return found
