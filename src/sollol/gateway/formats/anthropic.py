"""`/v1/messages`, as Ollama speaks it (anthropic/anthropic.go: FromMessagesRequest)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

import msgspec

from sollol.backends.decoding import json_reader
from sollol.backends.ollama import late_error, refusal
from sollol.core.types import Kind, Outcome, Status
from sollol.gateway.formats.resume_writer import EventsSaid, Usage, event, timing_of
from sollol.gateway.formats.stream_parser import EventReader, Sign
from sollol.gateway.formats.to_ollama import Inexact, asked, check, items, numbers, parts, role, texts

_DELTA: Final = b"event: content_block_delta\n"  # an ordinary event begins so
_OPTIONS: Final = {"max_tokens": "num_predict", "temperature": "temperature", "top_p": "top_p", "top_k": "top_k"}
_KNOWN: Final = frozenset([*_OPTIONS, "messages", "system", "stop_sequences"])
_MESSAGE: Final = frozenset(("role", "content"))
_STOP: Final = b'event: message_stop\ndata: {"type":"message_stop"}\n\n'
_REASONS: Final = {"length": "max_tokens", "stop": "end_turn"}


class _Delta(msgspec.Struct):
    type: str = ""
    text: str = ""


class _Message(msgspec.Struct):
    usage: Usage | None = None


class _Block(msgspec.Struct):
    type: str = ""


class _Event(msgspec.Struct):
    type: str = ""
    index: int = 0
    delta: _Delta | None = None
    content_block: _Block | None = None
    message: _Message | None = None
    usage: Usage | None = None
    stop_reason: str | None = None
    error: Any = None


_event = json_reader(_Event)


def judge_whole(status: int, body: bytes) -> Outcome:
    if status != 200:
        return refusal(status, body)
    try:
        found = _event(body)
    except msgspec.DecodeError as error:
        return Outcome(Status.FAILED, f"the answer is not what /v1/messages gives: {error}", 200)
    # Without a reason to stop, a message ran into Ollama's limit of repeated tokens.
    if found.error is not None or (found.stop_reason is None and found.type != "message"):
        return late_error(body, f"the answer is not complete: {body[:80]!r}")
    return Outcome(Status.OK, "", 200, timing_of(found.usage))


def judge_event(data: bytes) -> tuple[Sign, Outcome | None]:
    told = _event(data)
    match told.type:
        case "error":
            return Sign.GOES_ON, late_error(data, "the node failed in its answer")
        case "content_block_stop":  # another block may follow
            return Sign.MAY_END, None
        case "message_delta":
            return Sign.ENDS, Outcome(Status.OK, timing=timing_of(told.usage)) if told.usage else None
        case "message_stop":
            return Sign.ENDED, None
    return Sign.GOES_ON, None


def reader() -> EventReader:
    return EventReader(_DELTA, judge_event, _STOP)


def said(body: bytes) -> AnthropicSaid | None:
    """What is needed to go on with the answer elsewhere; None where that cannot be exact."""
    found = asked(body, as_ollama)
    return AnthropicSaid(Kind.CHAT, found[0]) if found is not None else None


def as_ollama(fields: Mapping[str, Any]) -> dict[str, Any]:
    """Raises Inexact."""
    check(fields, _KNOWN)
    system = "".join(parts(fields.get("system") or ""))
    messages = [{"role": "system", "content": system}] if system else []
    for message in items(fields.get("messages")):
        if any(value for name, value in message.items() if name not in _MESSAGE):
            raise Inexact("messages")
        text = "".join(parts(message.get("content")))
        if text:  # Ollama leaves out what is empty
            messages.append({"role": role(message).lower(), "content": text})
    if not messages:
        raise Inexact("messages")
    stops = texts(fields.get("stop_sequences"))
    return {"messages": messages, "options": {**numbers(fields, _OPTIONS), **({"stop": stops} if stops else {})}}


class AnthropicSaid(EventsSaid):
    """Events of `/v1/messages`: one block of text, open from its first word to the end."""

    def __init__(self, kind: Kind, body: Mapping[str, Any]) -> None:
        super().__init__(kind, body)
        self._open = False
        self._index = 0
        self._estimate = 0  # of the prompt's tokens, as the first event tells it

    def text_of(self, data: bytes) -> str:
        told = _event(data)
        match told.type:
            case "content_block_delta":
                if told.delta is None or told.delta.type != "text_delta":
                    self._exact = False
                    return ""
                return told.delta.text
            case "content_block_start":
                self._open, self._index = True, told.index
                if told.content_block is None or told.content_block.type != "text":
                    self._exact = False
            case "content_block_stop":
                self._open, self._index = False, told.index + 1
            case "message_start" if told.message is not None and told.message.usage is not None:
                self._estimate = told.message.usage.input_tokens
        return ""

    def part(self, text: str) -> bytes:
        block = {"type": "text", "text": ""}
        begin = event(
            {"type": "content_block_start", "index": self._index, "content_block": block}, "content_block_start"
        )
        delta = {"type": "text_delta", "text": text}
        told = event({"type": "content_block_delta", "index": self._index, "delta": delta}, "content_block_delta")
        return told if self._open else begin + told

    def last(self, reason: str, prompt_tokens: int | None, tokens: int, elapsed_us: int) -> bytes:
        stop = event({"type": "content_block_stop", "index": self._index}, "content_block_stop") if self._open else b""
        usage = {
            "input_tokens": self._estimate if prompt_tokens is None else prompt_tokens,
            "output_tokens": tokens,
        }
        told = {"stop_reason": _REASONS.get(reason, "stop_sequence")}
        return stop + event({"type": "message_delta", "delta": told, "usage": usage}, "message_delta") + _STOP
