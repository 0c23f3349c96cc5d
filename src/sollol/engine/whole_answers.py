"""Ask for a whole answer as a stream, to learn when the node begins it, and put the parts together again.

A node with one slot takes a second call without a word and lets it wait. A whole answer does not tell whether it waits
or is being written; the first part of a stream does. The parts are joined as Ollama joins them where `stream` is false:
the last line with the text, the thoughts, the tool calls and the log probabilities of all lines.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import aclosing
from typing import Any, Final

import msgspec

from sollol.backends.ollama import Lines, decode, encode, refusal
from sollol.backends.ollama_answers import read_inputs
from sollol.core.endpoint import Endpoint
from sollol.core.types import Outcome, Status
from sollol.core.value import replaced
from sollol.transport.base import Call, Transport

OBSERVABLE: Final = frozenset(["/api/chat", "/api/generate"])
WHOLE_MOST: Final = 64 * 2**20  # bytes of parts that are put together


async def observed(
    transport: Transport, node: Endpoint, call: Call, started: Callable[[bool], None]
) -> tuple[bytes, int, Mapping[str, str]]:
    """Send a call as a stream; call `started` at its first part. Returns body, status and headers.

    The body is as if it had come whole. A request that cannot be read here is sent as it is: its node may read it, or
    refuse it in its own words. Raises TransportFault."""
    streamed = as_stream(call)
    async with aclosing(await transport.send(node, streamed or call)) as reply:
        if reply.status != 200 or streamed is None:
            return await reply.read(), reply.status, reply.headers
        lines, parts, size = Lines(), Parts(), 0
        async for piece in reply:
            if not size:
                started(False)
            size += len(piece)
            if size > WHOLE_MOST:
                return b"", 200, reply.headers
            for line in lines.feed(piece):
                parts.add(line)
        rest = lines.rest()
        if rest:
            parts.add(rest)
        return parts.joined(), 200, reply.headers


def as_stream(call: Call) -> Call | None:
    """Return the call that asks for the same as a stream; None where its body is no object that can be read here."""
    assert isinstance(call.body, bytes)
    try:
        asked = decode(call.body)
    except msgspec.DecodeError:
        return None
    if not isinstance(asked, dict):
        return None
    return replaced(call, body=encode({**asked, "stream": True}), stream=True)


class Parts:
    """The lines of a stream of /api/chat or /api/generate."""

    def __init__(self) -> None:
        self._last: dict[str, Any] = {}
        self._texts: dict[str, list[str]] = {}
        self._lists: dict[str, list[Any]] = {}
        self._odd = b""  # a line that is none of Ollama's, or an error: the answer is judged by it

    def add(self, line: bytes) -> None:
        try:
            found = decode(line)
        except msgspec.DecodeError:
            self._odd = self._odd or line
            return
        if not isinstance(found, dict) or "error" in found:
            self._odd = self._odd or line
            return
        self._last = found
        message = found.get("message")
        if isinstance(message, dict):
            self._collect(message, ("content", "thinking"), ("tool_calls",), "message.")
        self._collect(found, ("response", "thinking"), ("tool_calls", "logprobs"), "")

    def _collect(self, found: dict[str, Any], texts: tuple[str, ...], lists: tuple[str, ...], prefix: str) -> None:
        for name in texts:
            if isinstance(text := found.get(name), str):
                self._texts.setdefault(prefix + name, []).append(text)
        for name in lists:
            if isinstance(items := found.get(name), list):
                self._lists.setdefault(prefix + name, []).extend(items)

    def joined(self) -> bytes:
        """Return the whole answer as JSON; a line that is an error instead of it, as it came."""
        if self._odd:
            return self._odd
        whole = dict(self._last)
        collected = {name: "".join(texts) for name, texts in self._texts.items()} | self._lists
        message = whole.get("message")
        if isinstance(message, dict):
            whole["message"] = message = dict(message)
        for name, value in collected.items():
            if not value and name not in ("message.content", "response"):
                continue
            if not name.startswith("message."):
                whole[name] = value
            elif isinstance(message, dict):
                message[name.removeprefix("message.")] = value
        return encode(whole)


def refusal_of(call: Call, model: str, status: int, body: bytes, headers: Mapping[str, str] | None) -> Outcome:
    """Return what an answer with another status than 200 means for this call of a model."""
    outcome = refusal(status, body, headers)
    if outcome.status is Status.MISSING and call.path == "/api/embeddings" and isinstance(call.body, bytes):
        written = read_inputs(call.body).model
        # This one route of Ollama's wants the very spelling of its list: the node does have the model.
        if written not in (model, model.removesuffix(":latest")):
            return replaced(outcome, status=Status.REFUSED)
    return outcome
