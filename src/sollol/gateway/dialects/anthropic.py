"""`/v1/messages`, as Ollama speaks it (anthropic/anthropic.go: FromMessagesRequest)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

import msgspec

from sollol.core.types import How, Kind, Outcome, Timing
from sollol.gateway.dialects.reading import EventReader, Sign, data_of
from sollol.gateway.dialects.saying import EventsSaid, event
from sollol.nodes.dialect import decode, error_text, refusal

_MARKS: Final = (b"content_block_stop", b"message_delta", b"message_stop", b"event: error", b'"type":"error"')
_PLAIN: Final = frozenset(
    [
        "model",
        "messages",
        "system",
        "stream",
        "max_tokens",
        "temperature",
        "top_p",
        "top_k",
        "stop_sequences",
        "metadata",
    ]
)
_STOP: Final = b'event: message_stop\ndata: {"type":"message_stop"}\n\n'
_REASONS: Final = {"length": "max_tokens", "stop": "end_turn"}


class _Usage(msgspec.Struct):
    input_tokens: int = 0
    output_tokens: int = 0


class _Event(msgspec.Struct):
    type: str = ""
    usage: _Usage | None = None
    stop_reason: str | None = None
    error: Any = None


_event = msgspec.json.Decoder(_Event).decode


def judge_whole(status: int, body: bytes) -> Outcome:
    if status != 200:
        return refusal(status, body)
    try:
        found = _event(body)
    except msgspec.DecodeError as error:
        return Outcome(How.FAILED, f"the answer is not what /v1/messages gives: {error}", 200)
    if found.error is not None or found.stop_reason is None:
        return Outcome(How.FAILED, error_text(body) or f"the answer is not complete: {body[:80]!r}", 200)
    return Outcome(How.OK, "", 200, _timing(found.usage))


def _timing(usage: _Usage | None) -> Timing:
    return Timing(prompt_tokens=usage.input_tokens, tokens=usage.output_tokens) if usage else Timing()


def judge_event(found: bytes) -> tuple[Sign, Outcome | None]:
    data = data_of(found)
    try:
        told = _event(data)
    except msgspec.DecodeError as error:
        return Sign.GOES_ON, Outcome(How.FAILED, f"an event of the answer is not JSON: {error}", 200)
    match told.type:
        case "error":
            return Sign.GOES_ON, Outcome(How.FAILED, error_text(data) or "the node failed in its answer", 200)
        case "content_block_stop":  # another block may follow
            return Sign.MAY_END, None
        case "message_delta":
            return Sign.ENDS, Outcome(How.OK, timing=_timing(told.usage))
        case "message_stop":
            return Sign.ENDED, None
    return Sign.GOES_ON, None


def reader() -> EventReader:
    return EventReader(_MARKS, judge_event, _STOP)


def said(body: bytes) -> AnthropicSaid | None:
    """What is needed to go on with the answer elsewhere; None where that cannot be exact."""
    fields = decode(body)
    ollama = as_ollama(fields) if isinstance(fields, Mapping) else None
    return AnthropicSaid(Kind.CHAT, ollama) if ollama is not None else None


def as_ollama(fields: Mapping[str, Any]) -> dict[str, Any] | None:
    """The request in Ollama's own words, if its answer is plain text."""
    if not all(name in _PLAIN or not value for name, value in fields.items()):
        return None
    messages: list[dict[str, Any]] = []
    system = _text(fields.get("system") or "")
    if system is None:
        return None
    if system:
        messages.append({"role": "system", "content": system})
    for message in fields.get("messages") or ():
        text = _text(message.get("content")) if isinstance(message, Mapping) else None
        if text is None:
            return None
        messages.append({"role": str(message.get("role", "")).lower(), "content": text})
    options: dict[str, Any] = {"num_predict": fields.get("max_tokens")}
    for theirs, ours in (
        ("temperature", "temperature"),
        ("top_p", "top_p"),
        ("top_k", "top_k"),
        ("stop_sequences", "stop"),
    ):
        if fields.get(theirs) is not None:
            options[ours] = fields[theirs]
    return {"model": fields["model"], "messages": messages, "options": options} if fields.get("messages") else None


def _text(content: Any) -> str | None:
    """Text, or blocks of text in one; None for anything else."""
    if isinstance(content, str):
        return content
    texts = []
    for block in content or ():
        if not isinstance(block, Mapping) or block.get("type") != "text" or not isinstance(block.get("text"), str):
            return None
        texts.append(block["text"])
    return "".join(texts)


class AnthropicSaid(EventsSaid):
    """Events of `/v1/messages`: one block of text, open since its beginning."""

    def text_of(self, line: bytes) -> str:
        delta = decode(line).get("delta")
        return str(delta.get("text") or "") if isinstance(delta, dict) else ""

    def part(self, text: str) -> bytes:
        delta = {"type": "text_delta", "text": text}
        return event({"type": "content_block_delta", "index": 0, "delta": delta}, "content_block_delta")

    def last(self, reason: str, prompt_tokens: int, tokens: int) -> bytes:
        usage = {"input_tokens": prompt_tokens, "output_tokens": tokens}
        told = {"stop_reason": _REASONS.get(reason, "end_turn")}
        return (
            event({"type": "content_block_stop", "index": 0}, "content_block_stop")
            + event({"type": "message_delta", "delta": told, "usage": usage}, "message_delta")
            + _STOP
        )
