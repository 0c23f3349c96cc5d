"""`/v1/chat/completions` and `/v1/completions`, as Ollama speaks them.

What a request becomes is what Ollama's own middleware makes of it (openai/openai.go: FromChatRequest,
FromCompleteRequest), so that the prompt another node renders is the one that the first had read, and the sampling is
the same.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

import msgspec

from sollol.core.types import How, Kind, Outcome, Timing
from sollol.gateway.dialects.reading import EventReader, Sign, data_of
from sollol.gateway.dialects.saying import EventsSaid, event
from sollol.nodes.dialect import decode, error_text, refusal

_MARKS: Final = (b'"finish_reason":"', b"[DONE]", b'"model":""', b'{"error"', b'"usage"')
# Fields under which an answer is plain text going on from its prompt.
_PLAIN: Final = frozenset(
    [
        "model",
        "messages",
        "prompt",
        "stream",
        "stream_options",
        "max_tokens",
        "temperature",
        "top_p",
        "seed",
        "stop",
        "frequency_penalty",
        "presence_penalty",
        "user",
    ]
)
_MESSAGE: Final = frozenset(("role", "content", "name"))


class _Usage(msgspec.Struct):
    prompt_tokens: int = 0
    completion_tokens: int = 0


class _Choice(msgspec.Struct):
    finish_reason: str | None = None


class _Chunk(msgspec.Struct):
    model: str | None = None
    choices: list[_Choice] = []
    usage: _Usage | None = None
    error: Any = None


_chunk = msgspec.json.Decoder(_Chunk).decode


def judge_whole(status: int, body: bytes) -> Outcome:
    if status != 200:
        return refusal(status, body)
    try:
        found = _chunk(body)
    except msgspec.DecodeError as error:
        return Outcome(How.FAILED, f"the answer is not what /v1 gives: {error}", 200)
    if found.error is not None:
        return Outcome(How.FAILED, error_text(body), 200)
    if not found.choices or found.choices[0].finish_reason is None:
        return Outcome(How.FAILED, f"the answer is not complete: {body[:80]!r}", 200)
    return Outcome(How.OK, "", 200, _timing(found.usage))


def _timing(usage: _Usage | None) -> Timing:
    return Timing(prompt_tokens=usage.prompt_tokens, tokens=usage.completion_tokens) if usage else Timing()


def judge_event(found: bytes) -> tuple[Sign, Outcome | None]:
    data = data_of(found)
    if data == b"[DONE]":
        return Sign.ENDED, None
    try:
        chunk = _chunk(data)
    except msgspec.DecodeError as error:
        return Sign.GOES_ON, Outcome(How.FAILED, f"an event of the answer is not JSON: {error}", 200)
    if chunk.error is not None:
        return Sign.GOES_ON, Outcome(How.FAILED, error_text(data), 200)
    if chunk.model == "":  # how Ollama lets a late error show here
        return Sign.GOES_ON, Outcome(How.FAILED, "the node failed in the middle of its answer", 200)
    told = Outcome(How.OK, timing=_timing(chunk.usage)) if chunk.usage else None
    ends = any(choice.finish_reason is not None for choice in chunk.choices) or (chunk.usage and not chunk.choices)
    return Sign.ENDS if ends else Sign.GOES_ON, told


def reader() -> EventReader:
    return EventReader(_MARKS, judge_event, b"data: [DONE]\n\n")


def said(kind: Kind, body: bytes) -> OpenAISaid | None:
    """What is needed to go on with the answer elsewhere; None where that cannot be exact."""
    fields = decode(body)
    ollama = as_ollama(kind, fields) if isinstance(fields, Mapping) else None
    return OpenAISaid(kind, ollama, fields) if ollama is not None else None


def as_ollama(kind: Kind, fields: Mapping[str, Any]) -> dict[str, Any] | None:
    """The request in Ollama's own words, if its answer is plain text."""
    if not all(name in _PLAIN or value in (None, [], False) for name, value in fields.items()):
        return None
    options: dict[str, Any] = {"temperature": fields.get("temperature"), "top_p": fields.get("top_p")}
    options = {name: 1.0 if value is None else value for name, value in options.items()}
    stop = fields.get("stop")
    if stop is not None:
        options["stop"] = [stop] if isinstance(stop, str) else stop
    for theirs, ours in (
        ("max_tokens", "num_predict"),
        ("seed", "seed"),
        ("frequency_penalty", "frequency_penalty"),
        ("presence_penalty", "presence_penalty"),
    ):
        if fields.get(theirs) is not None:
            options[ours] = fields[theirs]
    if kind is Kind.GENERATE:
        prompt = fields.get("prompt")
        if not isinstance(prompt, str) or not prompt:
            return None
        return {"model": fields["model"], "prompt": prompt, "options": options}
    messages = plain_messages(fields.get("messages"))
    return {"model": fields["model"], "messages": messages, "options": options} if messages else None


def plain_messages(messages: Any) -> list[dict[str, Any]] | None:
    """Messages of text alone, each part one of its own as Ollama takes them."""
    found: list[dict[str, Any]] = []
    for message in messages or ():
        if not isinstance(message, Mapping) or any(value for name, value in message.items() if name not in _MESSAGE):
            return None
        content = message.get("content")
        for part in content if isinstance(content, list) else [content]:
            text = part.get("text") if isinstance(part, Mapping) and part.get("type") == "text" else part
            if not isinstance(text, str) or message.get("role") == "tool":
                return None
            found.append({"role": message["role"], "content": text})
    return found or None


class OpenAISaid(EventsSaid):
    """Chunks of `/v1/chat/completions` or `/v1/completions`."""

    def __init__(self, kind: Kind, body: Mapping[str, Any], fields: Mapping[str, Any]) -> None:
        super().__init__(kind, body)
        self._fields = fields
        self._head: dict[str, Any] = {}

    def text_of(self, line: bytes) -> str:
        found = decode(line)
        choices = found.pop("choices", None)
        if not self._head:
            found.pop("usage", None)
            self._head = found
        if not choices:
            return ""
        choice = choices[0]
        return str((choice.get("delta") or {}).get("content") or choice.get("text") or "")

    def part(self, text: str) -> bytes:
        return self._event(text, None)

    def last(self, reason: str, prompt_tokens: int, tokens: int) -> bytes:
        found = self._event("", reason)
        if (self._fields.get("stream_options") or {}).get("include_usage"):
            usage = {
                "prompt_tokens": prompt_tokens,
                "completion_tokens": tokens,
                "total_tokens": prompt_tokens + tokens,
            }
            found += event({**self._head, "choices": [], "usage": usage})
        return found + b"data: [DONE]\n\n"

    def _event(self, text: str, reason: str | None) -> bytes:
        choice: dict[str, Any] = {"index": 0, "finish_reason": reason}
        if self.kind is Kind.GENERATE:
            choice["text"] = text
        else:
            choice["delta"] = {"content": text} if text else {}
        return event({**self._head, "choices": [choice]})
