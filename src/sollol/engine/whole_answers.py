"""Receive a whole answer as a stream, to detect its first part, and join the parts.

A node with one slot accepts a second call silently and lets it wait. A whole answer does not show whether it waits or
is being generated; the first part of a stream does. The parts are joined as Ollama joins them where `stream` is false:
the last line with the text, the thoughts, the tool calls and the log probabilities of all lines.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import aclosing
from typing import Any, Final

import msgspec

from sollol.backends.ollama import WHOLE_MOST, Lines, decode, encode
from sollol.backends.ollama_answers import read_inputs
from sollol.backends.refusals import refusal
from sollol.core.endpoint import Endpoint
from sollol.core.types import Outcome, Status
from sollol.core.value import replaced
from sollol.transport.base import Call, Transport

OBSERVABLE: Final = frozenset(["/api/chat", "/api/generate"])


async def send_observed(
    transport: Transport, node: Endpoint, call: Call, started: Callable[[bool], None]
) -> tuple[bytes, int, Mapping[str, str]]:
    """Send a call as a stream and call `started` at its first part; return body, status and headers.

    The body equals that of a whole answer. A request that cannot be decoded here is sent unchanged: its node may read
    it, or refuse it with its own message.

    Raises:
        TransportFault: No answer arrived.
    """
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
    """Return the same call as a stream, None if its body is no readable object."""
    assert isinstance(call.body, bytes)
    try:
        fields = decode(call.body)
    except msgspec.DecodeError:
        return None
    if not isinstance(fields, dict):
        return None
    return replaced(call, body=encode({**fields, "stream": True}), stream=True)


class Parts:
    """The lines of a stream of /api/chat or /api/generate."""

    def __init__(self) -> None:
        self._last: dict[str, Any] = {}
        self._texts: dict[str, list[str]] = {}
        self._lists: dict[str, list[Any]] = {}
        self._error_line = b""  # first malformed line or error, by which the answer is judged

    def add(self, line: bytes) -> None:
        """Add a line."""
        try:
            found = decode(line)
        except msgspec.DecodeError:
            self._error_line = self._error_line or line
            return
        if not isinstance(found, dict) or "error" in found:
            self._error_line = self._error_line or line
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
        """Return the whole answer as JSON, or the first malformed line or error unchanged."""
        if self._error_line:
            return self._error_line
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
    """Return the outcome of an answer with a status other than 200, for this call."""
    outcome = refusal(status, body, headers)
    if outcome.status is Status.MISSING and call.path == "/api/embeddings" and isinstance(call.body, bytes):
        written = read_inputs(call.body).model
        # This route of Ollama needs the exact spelling of its model list: the node does have the model.
        if written not in (model, model.removesuffix(":latest")):
            return replaced(outcome, status=Status.REFUSED)
    return outcome
