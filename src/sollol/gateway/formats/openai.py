"""Judge, convert and resume `/v1/chat/completions` and `/v1/completions`.

Requests are converted as Ollama's middleware does it (openai/openai.go: FromChatRequest, FromCompleteRequest), so that
another node renders the same prompt and samples alike. `max_completion_tokens` is ignored as there
(ollama/ollama#7125).
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

import msgspec

from sollol.backends.decoding import Int, json_lines, json_reader
from sollol.backends.refusals import late_error, refusal
from sollol.core.types import Kind, Outcome, Status, Timing
from sollol.gateway.formats.resume_writer import ResumeWriter, event
from sollol.gateway.formats.stream_parser import EventKind, EventParser
from sollol.gateway.formats.to_ollama import Inexact, check_fields, convert, items, numbers, parts, role, texts

_CONTINUES: Final = b'"finish_reason":null'
_LATE_ERROR: Final = b'"model":""'  # Ollama's mark of a late error
_DONE: Final = b"data: [DONE]\n\n"
_OPTIONS: Final = {
    "max_tokens": "num_predict",
    "temperature": "temperature",
    "top_p": "top_p",
    "seed": "seed",
    "frequency_penalty": "frequency_penalty",
    "presence_penalty": "presence_penalty",
}
_KNOWN: Final = frozenset([*_OPTIONS, "messages", "prompt", "stream_options", "stop", "max_completion_tokens"])
_MESSAGE: Final = frozenset(("role", "content", "name", "refusal", "annotations"))


class _Usage(msgspec.Struct, gc=False):
    prompt_tokens: Int = 0
    completion_tokens: Int = 0


class _ChunkDelta(msgspec.Struct, gc=False):
    content: str | None = None
    reasoning: str | None = None
    tool_calls: list[Any] | None = None


class _Choice(msgspec.Struct, gc=False):
    finish_reason: str | None = None
    text: str | None = None
    delta: _ChunkDelta | None = None


class _Chunk(msgspec.Struct, gc=False):
    model: str | None = None
    choices: list[_Choice] = []
    usage: _Usage | None = None
    error: Any = None


class _ChunkText(msgspec.Struct, gc=False):
    """The text of a chunk."""

    choices: list[_Choice] = []


class _Head(msgspec.Struct):
    """The fields that each chunk of a stream repeats."""

    id: str = ""
    object: str = ""
    created: int = 0
    model: str = ""
    system_fingerprint: str = ""


_chunk = json_reader(_Chunk)
_read_text, _read_texts = json_reader(_ChunkText), json_lines(_ChunkText)
_head = json_reader(_Head)


def judge_whole(status: int, body: bytes) -> Outcome:
    """Return the outcome of a whole answer."""
    if status != 200:
        return refusal(status, body)
    try:
        found = _chunk(body)
    except msgspec.DecodeError as error:
        return Outcome(Status.FAILED, f"the answer is not in the format of /v1: {error}", 200)
    if found.error is not None:
        return late_error(body, "error without a text")
    if not found.choices:  # without a reason to end, it ran into Ollama's limit of repeated tokens
        return Outcome(Status.FAILED, f"the answer is not complete: {body[:80]!r}", 200)
    return Outcome(Status.OK, "", 200, _timing(found.usage))


def _timing(usage: _Usage | None) -> Timing:
    return Timing(prompt_tokens=usage.prompt_tokens, tokens=usage.completion_tokens) if usage else Timing()


def judge_event(data: bytes) -> tuple[EventKind, Outcome | None]:
    """Return the kind of a chunk, and an outcome if it has counts or an error."""
    if data == b"[DONE]":
        return EventKind.ENDED, None
    chunk = _chunk(data)
    if chunk.error is not None:
        return EventKind.CONTINUES, late_error(data, "error without a text")
    if chunk.model == "":
        return EventKind.CONTINUES, Outcome(Status.FAILED, "the node failed in the middle of its answer", 200)
    # With `include_usage`, completions have a usage of zeros in each chunk but the last.
    counts = Outcome(Status.OK, timing=_timing(chunk.usage)) if chunk.usage and not chunk.choices else None
    ends = counts is not None or any(choice.finish_reason is not None for choice in chunk.choices)
    return EventKind.ENDS if ends else EventKind.CONTINUES, counts


def new_parser() -> EventParser:
    """Return a parser of a stream."""
    return EventParser(b"data: {", judge_event, _DONE, _CONTINUES, _LATE_ERROR, b'"choices":')


def partial_response(kind: Kind, body: bytes) -> OpenAIWriter | None:
    """Return the writer that resumes the answer to a request; None if that cannot be exact."""
    found = convert(body, completion_as_ollama if kind is Kind.GENERATE else chat_as_ollama)
    if found is None:
        return None
    usage = (found[1].get("stream_options") or {}).get("include_usage") is True
    return OpenAIWriter(kind, found[0], usage)


def chat_as_ollama(fields: Mapping[str, Any]) -> dict[str, Any]:
    """Return a request for a chat in Ollama's format, without its model.

    Raises:
        Inexact: Its answer cannot be resumed.
    """
    messages: list[dict[str, Any]] = []
    for message in items(fields.get("messages")):
        if any(value for name, value in message.items() if name not in _MESSAGE):
            raise Inexact("messages")
        # Each part becomes a message of its own.
        messages += ({"role": role(message), "content": text} for text in parts(message.get("content")))
    if not messages:
        raise Inexact("messages")
    return {"messages": messages, "options": {"temperature": 1.0, "top_p": 1.0, **_options(fields)}}


def completion_as_ollama(fields: Mapping[str, Any]) -> dict[str, Any]:
    """Return a request for a text in Ollama's format, without its model.

    Raises:
        Inexact: Its answer cannot be resumed.
    """
    prompt = fields.get("prompt")
    if not isinstance(prompt, str) or not prompt:
        raise Inexact("prompt")
    # Ollama always sets these, whatever the model's own parameters are.
    options = {"temperature": 1.0, "frequency_penalty": 0.0, "presence_penalty": 0.0, **_options(fields)}
    return {"prompt": prompt, "options": {**options, "top_p": options.get("top_p") or 1.0}}


def _options(fields: Mapping[str, Any]) -> dict[str, Any]:
    check_fields(fields, _KNOWN)
    if not isinstance(fields.get("stream_options") or {}, dict):
        raise Inexact("stream_options")
    stop = fields.get("stop")
    stops = [stop] if isinstance(stop, str) else texts(stop)
    return {**numbers(fields, _OPTIONS), **({"stop": stops} if stops else {})}


class OpenAIWriter(ResumeWriter):
    """Write chunks of `/v1/chat/completions` or `/v1/completions`. `usage`: with token counts at the end."""

    def __init__(self, kind: Kind, body: Mapping[str, Any], usage: bool) -> None:
        super().__init__(kind, body)
        self._usage = usage
        self._head: dict[str, Any] | None = None

    def texts_of(self, pieces: list[bytes]) -> list[str]:
        """Return the texts of chunks."""
        joined = b"".join(pieces)
        if not joined.startswith(b"data: {"):
            return super().texts_of([joined])
        lines = joined[6:].replace(b"\n\ndata: ", b"\n")  # JSON escapes line ends, so no text contains this
        try:
            chunks = _read_texts(lines)
        except msgspec.DecodeError:  # comments, or fields other than data
            return super().texts_of([joined])
        if self._head is None:
            self._head = msgspec.structs.asdict(_head(lines.partition(b"\n")[0]))
        return [self._text(chunk) for chunk in chunks]

    def text_of(self, data: bytes) -> str:
        """Return the text of a chunk."""
        if self._head is None:
            self._head = msgspec.structs.asdict(_head(data))
        return self._text(_read_text(data))

    def _text(self, chunk: _ChunkText) -> str:
        if not chunk.choices:
            return ""
        choice = chunk.choices[0]
        delta = choice.delta
        if delta is None:
            return choice.text or ""
        if delta.reasoning or delta.tool_calls:
            self._exact = False
        return delta.content or ""

    def part(self, text: str) -> bytes:
        """Return a chunk with more text."""
        return self._event(text, None)

    def last(self, reason: str, prompt_tokens: int | None, tokens: int, elapsed_us: int) -> bytes:
        """Return the last chunks."""
        found = self._event("", reason)
        if self._usage and prompt_tokens is not None:  # OpenAI permits its absence in an interrupted stream
            usage = {
                "prompt_tokens": prompt_tokens,
                "completion_tokens": tokens,
                "total_tokens": prompt_tokens + tokens,
            }
            found += event({**(self._head or {}), "choices": [], "usage": usage})
        return found + _DONE

    def _event(self, text: str, reason: str | None) -> bytes:
        choice: dict[str, Any] = {"index": 0, "finish_reason": reason}
        if self.kind is Kind.GENERATE:
            choice["text"] = text
        else:
            choice["delta"] = {"content": text} if text else {}
        chunk = {**(self._head or {}), "choices": [choice]}
        if self._usage and self.kind is Kind.GENERATE:
            chunk["usage"] = {"prompt_tokens": 0, "completion_tokens": 0, "total_tokens": 0}
        return event(chunk)
