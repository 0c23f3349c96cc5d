"""Judge, convert and resume `/v1/messages`, as Ollama does it (anthropic/anthropic.go: FromMessagesRequest)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

import msgspec

from sollol.backends.decoding import json_reader
from sollol.backends.refusals import late_error, refusal
from sollol.core.types import Kind, Outcome, Status
from sollol.gateway.formats.resume_writer import ResumeWriter, Usage, event, timing_of
from sollol.gateway.formats.stream_parser import EventKind, EventParser
from sollol.gateway.formats.to_ollama import Inexact, check_fields, convert, items, numbers, parts, role, texts

_DELTA: Final = b"event: content_block_delta\n"  # the beginning of an ordinary event
_OPTIONS: Final = {"max_tokens": "num_predict", "temperature": "temperature", "top_p": "top_p", "top_k": "top_k"}
_KNOWN: Final = frozenset([*_OPTIONS, "messages", "system", "stop_sequences"])
_MESSAGE: Final = frozenset(("role", "content"))
_STOP: Final = b'event: message_stop\ndata: {"type":"message_stop"}\n\n'
_REASONS: Final = {"length": "max_tokens", "stop": "end_turn"}


class _BlockDelta(msgspec.Struct):
    type: str = ""
    text: str = ""


class _Message(msgspec.Struct):
    usage: Usage | None = None


class _Block(msgspec.Struct):
    type: str = ""


class _MessageEvent(msgspec.Struct):
    type: str = ""
    index: int = 0
    delta: _BlockDelta | None = None
    content_block: _Block | None = None
    message: _Message | None = None
    usage: Usage | None = None
    stop_reason: str | None = None
    error: Any = None


_event = json_reader(_MessageEvent)


def judge_whole(status: int, body: bytes) -> Outcome:
    """Return the outcome of a whole answer."""
    if status != 200:
        return refusal(status, body)
    try:
        found = _event(body)
    except msgspec.DecodeError as error:
        return Outcome(Status.FAILED, f"the answer is not in the format of /v1/messages: {error}", 200)
    # A message without a reason to stop reached Ollama's limit of repeated tokens.
    if found.error is not None or (found.stop_reason is None and found.type != "message"):
        return late_error(body, f"the answer is not complete: {body[:80]!r}")
    return Outcome(Status.OK, "", 200, timing_of(found.usage))


def judge_event(data: bytes) -> tuple[EventKind, Outcome | None]:
    """Return the kind of an event, and an outcome if it has counts or an error."""
    found = _event(data)
    match found.type:
        case "error":
            return EventKind.CONTINUES, late_error(data, "the node failed in its answer")
        case "content_block_stop":  # another block may follow
            return EventKind.MAY_END, None
        case "message_delta":
            return EventKind.ENDS, Outcome(Status.OK, timing=timing_of(found.usage)) if found.usage else None
        case "message_stop":
            return EventKind.ENDED, None
    return EventKind.CONTINUES, None


def new_parser() -> EventParser:
    """Return a parser of a stream."""
    return EventParser(_DELTA, judge_event, _STOP)


def partial_response(body: bytes) -> AnthropicWriter | None:
    """Return the writer that resumes the answer to a request; None if that cannot be exact."""
    found = convert(body, as_ollama)
    return AnthropicWriter(Kind.CHAT, found[0]) if found is not None else None


def as_ollama(fields: Mapping[str, Any]) -> dict[str, Any]:
    """Return a request in Ollama's format, without its model.

    Raises:
        Inexact: Its answer cannot be resumed.
    """
    check_fields(fields, _KNOWN)
    system = "".join(parts(fields.get("system") or ""))
    messages = [{"role": "system", "content": system}] if system else []
    for message in items(fields.get("messages")):
        if any(value for name, value in message.items() if name not in _MESSAGE):
            raise Inexact("messages")
        text = "".join(parts(message.get("content")))
        if text:  # Ollama drops empty messages
            messages.append({"role": role(message).lower(), "content": text})
    if not messages:
        raise Inexact("messages")
    stops = texts(fields.get("stop_sequences"))
    return {"messages": messages, "options": {**numbers(fields, _OPTIONS), **({"stop": stops} if stops else {})}}


class AnthropicWriter(ResumeWriter):
    """Write events of `/v1/messages`: one block of text, open from its first word to the end."""

    def __init__(self, kind: Kind, body: Mapping[str, Any]) -> None:
        super().__init__(kind, body)
        self._open = False
        self._index = 0
        self._estimate = 0  # tokens of the prompt, from the first event

    def text_of(self, data: bytes) -> str:
        """Return the text of an event."""
        found = _event(data)
        match found.type:
            case "content_block_delta":
                if found.delta is None or found.delta.type != "text_delta":
                    self._exact = False
                    return ""
                return found.delta.text
            case "content_block_start":
                self._open, self._index = True, found.index
                if found.content_block is None or found.content_block.type != "text":
                    self._exact = False
            case "content_block_stop":
                self._open, self._index = False, found.index + 1
            case "message_start" if found.message is not None and found.message.usage is not None:
                self._estimate = found.message.usage.input_tokens
        return ""

    def part(self, text: str) -> bytes:
        """Return events with more text."""
        block = {"type": "text", "text": ""}
        begin = event(
            {"type": "content_block_start", "index": self._index, "content_block": block}, "content_block_start"
        )
        delta = {"type": "text_delta", "text": text}
        events = event({"type": "content_block_delta", "index": self._index, "delta": delta}, "content_block_delta")
        return events if self._open else begin + events

    def last(self, reason: str, prompt_tokens: int | None, tokens: int, elapsed_us: int) -> bytes:
        """Return the last events."""
        stop = event({"type": "content_block_stop", "index": self._index}, "content_block_stop") if self._open else b""
        usage = {
            "input_tokens": self._estimate if prompt_tokens is None else prompt_tokens,
            "output_tokens": tokens,
        }
        stopped = {"stop_reason": _REASONS.get(reason, "stop_sequence")}
        return stop + event({"type": "message_delta", "delta": stopped, "usage": usage}, "message_delta") + _STOP
