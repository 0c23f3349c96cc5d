"""Judge, convert and resume `/v1/responses`, as Ollama does it (openai/responses.go: FromResponsesRequest)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

import msgspec

from sollol.backends.decoding import json_reader
from sollol.backends.ollama import decode
from sollol.backends.refusals import late_error, refusal
from sollol.core.types import Kind, Outcome, Status
from sollol.gateway.formats.resume_writer import ResumeWriter, Usage, event, timing_of
from sollol.gateway.formats.stream_parser import EventKind, EventParser
from sollol.gateway.formats.to_ollama import Inexact, check_fields, convert, items, numbers, parts, role

_DELTA: Final = b"event: response.output_text.delta\n"  # the beginning of an ordinary event
_OPTIONS: Final = {"max_output_tokens": "num_predict", "temperature": "temperature", "top_p": "top_p"}
_KNOWN: Final = frozenset([*_OPTIONS, "input", "instructions", "include"])
_ITEM: Final = frozenset(("type", "role", "content", "id", "status"))
_TEXTS: Final = ("input_text", "output_text")


class _Response(msgspec.Struct):
    status: str | None = None
    usage: Usage | None = None
    error: Any = None


class _ResponseEvent(msgspec.Struct):
    type: str = ""
    response: _Response | None = None


class _Item(msgspec.Struct):
    id: str = ""
    type: str = ""


class _Sent(msgspec.Struct):
    """The fields of a relayed event that later events depend on."""

    type: str = ""
    sequence_number: int = 0
    output_index: int = 0
    delta: str = ""
    item: _Item | None = None


_response = json_reader(_Response)
_event = json_reader(_ResponseEvent)
_sent = json_reader(_Sent)


def judge_whole(status: int, body: bytes) -> Outcome:
    """Return the outcome of a whole answer."""
    if status != 200:
        return refusal(status, body)
    try:
        found = _response(body)
    except msgspec.DecodeError as error:
        return Outcome(Status.FAILED, f"the answer is not in the format of /v1/responses: {error}", 200)
    if found.error is not None or found.status not in ("completed", "incomplete"):
        return late_error(body, f"the answer is not complete: {body[:80]!r}")
    return Outcome(Status.OK, "", 200, timing_of(found.usage))


def judge_event(data: bytes) -> tuple[EventKind, Outcome | None]:
    """Return the kind of an event, and an outcome if it has counts or an error."""
    found = _event(data)
    if found.type in ("response.completed", "response.incomplete"):
        return EventKind.ENDED, Outcome(Status.OK, timing=timing_of(found.response.usage if found.response else None))
    if found.type in ("response.failed", "error"):
        return EventKind.CONTINUES, late_error(data, "the node failed in its answer")
    if found.type.endswith(".done"):  # another part may follow
        return EventKind.MAY_END, None
    return EventKind.CONTINUES, None


def new_parser() -> EventParser:
    """Return a parser of a stream."""
    return EventParser(_DELTA, judge_event, b"")


def partial_response(body: bytes) -> ResponsesWriter | None:
    """Return the writer that resumes the answer to a request; None if that cannot be exact."""
    found = convert(body, as_ollama)
    return ResponsesWriter(Kind.CHAT, found[0]) if found is not None else None


def as_ollama(fields: Mapping[str, Any]) -> dict[str, Any]:
    """Return a request in Ollama's format, without its model.

    Raises:
        Inexact: Its answer cannot be resumed.
    """
    check_fields(fields, _KNOWN)
    given, system = fields.get("input"), fields.get("instructions") or ""
    if not isinstance(system, str):
        raise Inexact("instructions")
    messages = [{"role": "system", "content": system}] if system else []
    if isinstance(given, str):
        messages += [{"role": "user", "content": given}] if given else []
    else:
        messages += [_message(item) for item in items(given)]
    if not messages:
        raise Inexact("input")
    return {"messages": messages, "options": {"temperature": 1.0, **numbers(fields, _OPTIONS)}}


def _message(item: Mapping[str, Any]) -> dict[str, str]:
    if item.get("type", "message") != "message" or any(value for name, value in item.items() if name not in _ITEM):
        raise Inexact("input")
    return {"role": role(item), "content": "".join(parts(item.get("content"), _TEXTS))}


class ResponsesWriter(ResumeWriter):
    """Write numbered events of `/v1/responses`: one message, whose end repeats it and the whole response."""

    def __init__(self, kind: Kind, body: Mapping[str, Any]) -> None:
        super().__init__(kind, body)
        self._response: dict[str, Any] = {}
        self._item = ""  # id of the open message
        self._has_part = False
        self._index = 0
        self._number = -1

    def text_of(self, data: bytes) -> str:
        """Return the text of an event."""
        found = _sent(data)
        self._number = found.sequence_number
        match found.type:
            case "response.output_text.delta":
                return found.delta
            case "response.created":
                response = decode(data).get("response")
                self._response = response if isinstance(response, dict) else {}
            case "response.in_progress":
                pass
            case "response.output_item.added" if found.item is not None and found.item.type == "message":
                self._item, self._index = found.item.id, found.output_index
            case "response.content_part.added":
                self._has_part = True
            case _:
                self._exact = False
        return ""

    def part(self, text: str) -> bytes:
        """Return events with more text."""
        return self._opening() + self._event("response.output_text.delta", {"delta": text, "logprobs": []})

    def _opening(self) -> bytes:
        """Return the events before the first word that the failed node has not sent."""
        found = b""
        if not self._item:
            self._item = "msg_" + str(self._response.get("id", "")).removeprefix("resp_")
            found += self._event("response.output_item.added", {}, self._message("in_progress", []))
        if not self._has_part:
            found += self._event("response.content_part.added", {"part": _part("")})
        return found

    def last(self, reason: str, prompt_tokens: int | None, tokens: int, elapsed_us: int) -> bytes:
        """Return the last events."""
        text = self.text
        part = _part(text)
        usage = {
            "input_tokens": prompt_tokens,
            "output_tokens": tokens,
            "total_tokens": (prompt_tokens or 0) + tokens,
            "input_tokens_details": {"cached_tokens": 0},
            "output_tokens_details": {"reasoning_tokens": 0},
        }
        found = b""
        message = self._message("completed", [part])
        if self._item:
            found = (
                self._event("response.output_text.done", {"text": text, "logprobs": []})
                + self._event("response.content_part.done", {"part": part})
                + self._event("response.output_item.done", {}, message)
            )
        whole = {
            **self._response,
            "status": "completed",  # Ollama's status for all reasons
            "completed_at": int(self._response.get("created_at") or 0) + elapsed_us // 1_000_000,
            "output": [message] if self._item else [],
            "usage": usage if prompt_tokens is not None else None,
        }
        return found + self._numbered("response.completed", {"response": whole})

    def _message(self, status: str, content: list[dict[str, Any]]) -> dict[str, Any]:
        return {"id": self._item, "type": "message", "status": status, "role": "assistant", "content": content}

    def _event(self, name: str, fields: dict[str, Any], item: dict[str, Any] | None = None) -> bytes:
        """Return an event about the message, or about a part of it."""
        place = {"item_id": self._item, "content_index": 0} if item is None else {"item": item}
        return self._numbered(name, {**fields, **place, "output_index": self._index})

    def _numbered(self, name: str, fields: dict[str, Any]) -> bytes:
        self._number += 1
        return event({**fields, "sequence_number": self._number, "type": name}, name)


def _part(text: str) -> dict[str, Any]:
    return {"type": "output_text", "text": text, "annotations": [], "logprobs": []}
