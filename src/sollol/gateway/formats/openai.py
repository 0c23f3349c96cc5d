"""`/v1/chat/completions` and `/v1/completions`, as Ollama speaks them.

What a request becomes is what Ollama's own middleware makes of it (openai/openai.go: FromChatRequest,
FromCompleteRequest), so that the prompt another node renders is the one that the first had read, and the sampling is
the same. `max_completion_tokens` is passed over as there (ollama/ollama#7125).
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

import msgspec

from sollol.backends.decoding import Int, json_lines, json_reader
from sollol.backends.ollama import late_error, refusal
from sollol.core.types import Kind, Outcome, Status, Timing
from sollol.gateway.formats.resume_writer import EventsSaid, event
from sollol.gateway.formats.stream_parser import EventReader, Sign
from sollol.gateway.formats.to_ollama import Inexact, asked, check, items, numbers, parts, role, texts

_GOES_ON: Final = b'"finish_reason":null'
_LATE_ERROR: Final = b'"model":""'  # how Ollama lets a late error show here
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


class _Delta(msgspec.Struct, gc=False):
    content: str | None = None
    reasoning: str | None = None
    tool_calls: list[Any] | None = None


class _Choice(msgspec.Struct, gc=False):
    finish_reason: str | None = None
    text: str | None = None
    delta: _Delta | None = None


class _Chunk(msgspec.Struct, gc=False):
    model: str | None = None
    choices: list[_Choice] = []
    usage: _Usage | None = None
    error: Any = None


class _Words(msgspec.Struct, gc=False):
    """What a chunk says."""

    choices: list[_Choice] = []


class _Head(msgspec.Struct):
    """What each chunk of a stream repeats."""

    id: str = ""
    object: str = ""
    created: int = 0
    model: str = ""
    system_fingerprint: str = ""


_chunk = json_reader(_Chunk)
_words, _all_words = json_reader(_Words), json_lines(_Words)
_head = json_reader(_Head)


def judge_whole(status: int, body: bytes) -> Outcome:
    if status != 200:
        return refusal(status, body)
    try:
        found = _chunk(body)
    except msgspec.DecodeError as error:
        return Outcome(Status.FAILED, f"the answer is not what /v1 gives: {error}", 200)
    if found.error is not None:
        return late_error(body, "error without a text")
    if not found.choices:  # without a reason to end, it ran into Ollama's limit of repeated tokens
        return Outcome(Status.FAILED, f"the answer is not complete: {body[:80]!r}", 200)
    return Outcome(Status.OK, "", 200, _timing(found.usage))


def _timing(usage: _Usage | None) -> Timing:
    return Timing(prompt_tokens=usage.prompt_tokens, tokens=usage.completion_tokens) if usage else Timing()


def judge_event(data: bytes) -> tuple[Sign, Outcome | None]:
    if data == b"[DONE]":
        return Sign.ENDED, None
    chunk = _chunk(data)
    if chunk.error is not None:
        return Sign.GOES_ON, late_error(data, "error without a text")
    if chunk.model == "":
        return Sign.GOES_ON, Outcome(Status.FAILED, "the node failed in the middle of its answer", 200)
    # With `include_usage`, completions have a usage of zeros in each chunk but the last.
    told = Outcome(Status.OK, timing=_timing(chunk.usage)) if chunk.usage and not chunk.choices else None
    ends = told is not None or any(choice.finish_reason is not None for choice in chunk.choices)
    return Sign.ENDS if ends else Sign.GOES_ON, told


def reader() -> EventReader:
    return EventReader(b"data: {", judge_event, _DONE, _GOES_ON, _LATE_ERROR, b'"choices":')


def said(kind: Kind, body: bytes) -> OpenAISaid | None:
    """What is needed to go on with the answer elsewhere; None where that cannot be exact."""
    found = asked(body, completion_as_ollama if kind is Kind.GENERATE else chat_as_ollama)
    if found is None:
        return None
    usage = (found[1].get("stream_options") or {}).get("include_usage") is True
    return OpenAISaid(kind, found[0], usage)


def chat_as_ollama(fields: Mapping[str, Any]) -> dict[str, Any]:
    """`prompt` is none of it, the options are those of a request to Ollama. Raises Inexact."""
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
    """Raises Inexact."""
    prompt = fields.get("prompt")
    if not isinstance(prompt, str) or not prompt:
        raise Inexact("prompt")
    # Numbers without a pointer in Ollama: these are always sent, whatever the model's own parameters are.
    options = {"temperature": 1.0, "frequency_penalty": 0.0, "presence_penalty": 0.0, **_options(fields)}
    return {"prompt": prompt, "options": {**options, "top_p": options.get("top_p") or 1.0}}


def _options(fields: Mapping[str, Any]) -> dict[str, Any]:
    check(fields, _KNOWN)
    if not isinstance(fields.get("stream_options") or {}, dict):
        raise Inexact("stream_options")
    stop = fields.get("stop")
    stops = [stop] if isinstance(stop, str) else texts(stop)
    return {**numbers(fields, _OPTIONS), **({"stop": stops} if stops else {})}


class OpenAISaid(EventsSaid):
    """Chunks of `/v1/chat/completions` or `/v1/completions`. `usage`: the client asked for the counts at the end."""

    def __init__(self, kind: Kind, body: Mapping[str, Any], usage: bool) -> None:
        super().__init__(kind, body)
        self._usage = usage
        self._head: dict[str, Any] | None = None

    def texts_of(self, pieces: list[bytes]) -> list[str]:
        told = b"".join(pieces)
        if not told.startswith(b"data: {"):
            return super().texts_of([told])
        lines = told[6:].replace(b"\n\ndata: ", b"\n")  # no text has such a line end in it: JSON escapes them
        try:
            chunks = _all_words(lines)
        except msgspec.DecodeError:  # there is more than data, as in a comment
            return super().texts_of([told])
        if self._head is None:
            self._head = msgspec.structs.asdict(_head(lines.partition(b"\n")[0]))
        return [self._text(chunk) for chunk in chunks]

    def text_of(self, data: bytes) -> str:
        if self._head is None:
            self._head = msgspec.structs.asdict(_head(data))
        return self._text(_words(data))

    def _text(self, chunk: _Words) -> str:
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
        return self._event(text, None)

    def last(self, reason: str, prompt_tokens: int | None, tokens: int, elapsed_us: int) -> bytes:
        found = self._event("", reason)
        if self._usage and prompt_tokens is not None:  # else it may be missing, as OpenAI says of streams broken off
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
