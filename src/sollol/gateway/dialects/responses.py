"""`/v1/responses`, as Ollama speaks it (openai/responses.go: FromResponsesRequest)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

import msgspec

from sollol.core.types import How, Kind, Outcome, Timing
from sollol.gateway.dialects.openai import plain_messages
from sollol.gateway.dialects.reading import EventReader, Sign, data_of
from sollol.gateway.dialects.saying import EventsSaid, event
from sollol.nodes.dialect import decode, error_text, refusal

_MARKS: Final = (
    b"output_text.done",
    b"content_part.done",
    b"output_item.done",
    b"response.completed",
    b"response.incomplete",
    b"response.failed",
    b"event: error",
)
_PLAIN: Final = frozenset(
    [
        "model",
        "input",
        "instructions",
        "stream",
        "max_output_tokens",
        "temperature",
        "top_p",
        "metadata",
        "user",
    ]
)


class _Usage(msgspec.Struct):
    input_tokens: int = 0
    output_tokens: int = 0


class _Response(msgspec.Struct):
    status: str | None = None
    usage: _Usage | None = None
    error: Any = None


class _Event(msgspec.Struct):
    type: str = ""
    response: _Response | None = None


_response = msgspec.json.Decoder(_Response).decode
_event = msgspec.json.Decoder(_Event).decode


def judge_whole(status: int, body: bytes) -> Outcome:
    if status != 200:
        return refusal(status, body)
    try:
        found = _response(body)
    except msgspec.DecodeError as error:
        return Outcome(How.FAILED, f"the answer is not what /v1/responses gives: {error}", 200)
    if found.error is not None or found.status not in ("completed", "incomplete"):
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
    if told.type in ("response.completed", "response.incomplete"):
        return Sign.ENDED, Outcome(How.OK, timing=_timing(told.response.usage if told.response else None))
    if told.type in ("response.failed", "error"):
        return Sign.GOES_ON, Outcome(How.FAILED, error_text(data) or "the node failed in its answer", 200)
    if told.type.endswith(".done"):  # another part may follow
        return Sign.MAY_END, None
    return Sign.GOES_ON, None


def reader() -> EventReader:
    return EventReader(_MARKS, judge_event, b"")


def said(body: bytes) -> ResponsesSaid | None:
    """What is needed to go on with the answer elsewhere; None where that cannot be exact."""
    fields = decode(body)
    ollama = as_ollama(fields) if isinstance(fields, Mapping) else None
    return ResponsesSaid(Kind.CHAT, ollama) if ollama is not None else None


def as_ollama(fields: Mapping[str, Any]) -> dict[str, Any] | None:
    """The request in Ollama's own words, if its answer is plain text."""
    if not all(name in _PLAIN or not value for name, value in fields.items()):
        return None
    given = fields.get("input")
    messages = [{"role": "user", "content": given}] if isinstance(given, str) else _messages(given)
    if not messages:
        return None
    if fields.get("instructions"):
        messages = [{"role": "system", "content": fields["instructions"]}, *messages]
    options = {"temperature": 1.0 if fields.get("temperature") is None else fields["temperature"]}
    if fields.get("top_p") is not None:
        options["top_p"] = fields["top_p"]
    if fields.get("max_output_tokens") is not None:
        options["num_predict"] = fields["max_output_tokens"]
    return {"model": fields["model"], "messages": messages, "options": options}


def _messages(items: Any) -> list[dict[str, Any]] | None:
    """Items of one text each; how several parts are joined is not ours to guess."""
    found: list[dict[str, Any]] = []
    for item in items or ():
        if not isinstance(item, Mapping) or item.get("type", "message") != "message":
            return None
        content = item.get("content")
        if isinstance(content, list):
            if len(content) != 1 or not isinstance(content[0], Mapping):
                return None
            content = content[0].get("text")
        message = plain_messages([{"role": item.get("role", "user"), "content": content}])
        if message is None:
            return None
        found += message
    return found or None


class ResponsesSaid(EventsSaid):
    """Events of `/v1/responses`, numbered; the last of them repeats the whole response."""

    def __init__(self, kind: Kind, body: Mapping[str, Any]) -> None:
        super().__init__(kind, body)
        self._response: dict[str, Any] = {}
        self._item = ""
        self._number = 0

    def text_of(self, line: bytes) -> str:
        found = decode(line)
        self._number = max(self._number, int(found.get("sequence_number", 0)))
        match found.get("type"):
            case "response.created":
                self._response = found.get("response") or {}
            case "response.output_item.added":
                self._item = str((found.get("item") or {}).get("id", ""))
            case "response.output_text.delta":
                return str(found.get("delta") or "")
        return ""

    def part(self, text: str) -> bytes:
        return self._event("response.output_text.delta", delta=text, logprobs=[], item_id=self._item, content_index=0)

    def last(self, reason: str, prompt_tokens: int, tokens: int) -> bytes:
        text = self.text
        part = {"type": "output_text", "text": text, "annotations": [], "logprobs": []}
        item = {"id": self._item, "type": "message", "role": "assistant", "status": "completed", "content": [part]}
        created = self._response.get("created_at")
        usage = {
            "input_tokens": prompt_tokens,
            "output_tokens": tokens,
            "total_tokens": prompt_tokens + tokens,
            "input_tokens_details": {"cached_tokens": 0},
            "output_tokens_details": {"reasoning_tokens": 0},
        }
        whole = {**self._response, "status": "completed", "completed_at": created, "output": [item], "usage": usage}
        return (
            self._event("response.output_text.done", text=text, logprobs=[], item_id=self._item, content_index=0)
            + self._event("response.content_part.done", part=part, item_id=self._item, content_index=0)
            + self._event("response.output_item.done", item=item)
            + self._event("response.completed", whole=whole)
        )

    def _event(self, name: str, whole: dict[str, Any] | None = None, **more: Any) -> bytes:
        self._read()
        self._number += 1
        told = {"response": whole} if whole is not None else {**more, "output_index": 0}
        return event({**told, "sequence_number": self._number, "type": name}, name)
