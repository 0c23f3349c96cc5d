"""How each inference route speaks: which of its fields decide, and what an answer means. No I/O.

Bodies are peeked at, not decoded: only the fields that decide are made into objects, and what goes to the node are
the bytes that came.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, Final

import msgspec

from sollol.backends.ollama import decode, judge
from sollol.core.types import Kind, Outcome, TaskType
from sollol.engine.resumption import PartialResponse, is_plain
from sollol.errors import BadInput
from sollol.gateway.auth.charging import size_of
from sollol.gateway.formats import anthropic, openai, responses
from sollol.gateway.formats.error_responses import error_body
from sollol.gateway.formats.request_fields import Bare, Embedding, read_bare, read_chat, read_embedding, read_openai
from sollol.gateway.formats.stream_parser import LineReader, Reader
from sollol.http_server.request import NDJSON, SSE, type_line
from sollol.workload.classification import type_of
from sollol.workload.cost import item_cost
from sollol.workload.prefix import prefix_of
from sollol.workload.runner_options import runner_key


class Asked:
    """What of a request decides."""

    __slots__ = ("cost", "model", "options", "prefix", "size", "stream", "tokens_out", "type", "unloads")

    def __init__(
        self,
        model: str,
        stream: bool,
        tokens_out: int | None,
        options: str,
        type: TaskType,
        prefix: tuple[tuple[int, int], ...],
        cost: int = 0,
        unloads: bool = False,
        size: int = 0,
    ) -> None:
        self.model = model
        self.stream = stream
        self.tokens_out = tokens_out
        self.options = options
        self.type = type
        self.prefix = prefix
        self.cost = cost
        self.size = size  # bytes of its texts, where they were counted
        self.unloads = unloads  # it only asks to put the model out of memory


def asked_embedding(model: str, options: Any, texts: Sequence[Any]) -> Asked:
    cost = sum(item_cost(text) for text in texts if isinstance(text, str))
    return Asked(
        model, False, None, runner_key(options) if options else "", TaskType.EMBED, (), cost, size=size_of(texts)
    )


class Tongue:
    __slots__ = ("error_event", "judge", "kind", "path", "peek", "reader", "said", "type_line")

    def __init__(
        self,
        path: str,
        kind: Kind,
        peek: Callable[[bytes], Asked],
        judge: Callable[[int, bytes], Outcome],
        reader: Callable[[], Reader],
        said: Callable[[bytes], PartialResponse | None],
        error_event: Callable[[str, str], bytes],
        type_line: bytes,
    ) -> None:
        self.path = path
        self.kind = kind
        self.peek = peek
        self.judge = judge
        self.reader = reader
        self.said = said  # of a body: what is needed to go on elsewhere; None where that cannot be exact
        self.error_event = error_event
        self.type_line = type_line

    def framed(self, line: bytes) -> bytes:
        """A part of a stream with its end."""
        return line if line.endswith(b"\n") or not line else line + b"\n"


_NOW: Final = (0, "0", "0s", "0m", "0h")


def _peek_ollama(body: bytes) -> Asked:
    found = read_chat(body)
    options, messages, prompt, keep_alive = found.options, found.messages, found.prompt, found.keep_alive
    return Asked(
        found.model,
        found.stream is not False,
        bound_of(options.get("num_predict")) if options else None,
        runner_key(options) if options else "",
        type_of(messages, prompt, found.system, found.format, bool(found.suffix)),
        prefix_of(messages) if messages else (),
        unloads=keep_alive is not None and keep_alive in _NOW and not (messages or prompt),
    )


def bound_of(value: Any) -> int | None:
    """Return the bound of an answer in tokens; None for a value that a node takes for no bound, or refuses."""
    return value if type(value) is int and value > 0 else None


def _peek_v1(bound: str, body: bytes) -> Asked:
    """`bound`: the only field in which a node reads the bound of the answer on this route."""
    found = read_openai(body)
    messages = found.messages
    if found.input is not None:
        messages = found.input if isinstance(found.input, list) else [{"role": "user", "content": found.input}]
    system = found.instructions or (found.system if isinstance(found.system, str) else None)
    return Asked(
        found.model,
        bool(found.stream),
        bound_of(found.max_tokens if bound == "max_tokens" else found.max_output_tokens),
        "",
        type_of(messages, found.prompt, system, None, False),
        prefix_of(messages),
    )


def peek_embed(body: bytes) -> Embedding:
    """Raises BadInput for what is not JSON, or lacks a model; a field of another wrong type is left to a node."""
    try:
        return read_embedding(body)
    except msgspec.DecodeError:
        return Embedding(_peek_bare(body).model or "")


def peeked(tongue: Tongue, body: bytes) -> Asked:
    """Raises BadInput for what is not JSON. Where a field has a wrong type, a node is left to say so."""
    try:
        return tongue.peek(body)
    except (msgspec.ValidationError, AttributeError, TypeError):
        found = _peek_bare(body)
    except msgspec.DecodeError as error:
        _peek_bare(body)  # which may know better what is wrong
        raise BadInput(f"the request is not JSON: {error}") from None
    streams = tongue.peek is _peek_ollama if found.stream is None else bool(found.stream)
    return Asked(found.model or "", streams, None, "", TaskType.CHAT, ())


def _peek_bare(body: bytes) -> Bare:
    try:
        return read_bare(body)
    except msgspec.ValidationError as error:
        raise BadInput(f"the request cannot be read: {error}") from None
    except msgspec.DecodeError as error:
        raise BadInput(f"the request is not JSON: {error}" if body else "missing request body") from None


def _judge_as(kind: Kind) -> Callable[[int, bytes], Outcome]:
    return lambda status, body: judge(status, body, kind)


def _said_as(kind: Kind) -> Callable[[bytes], PartialResponse | None]:
    def said(body: bytes) -> PartialResponse | None:
        fields = decode(body)
        return PartialResponse(kind, fields) if is_plain(fields) else None

    return said


def _error_line(path: str, message: str) -> bytes:
    return error_body(path, 502, message) + b"\n"


def _error_event(path: str, message: str) -> bytes:
    """An answer that breaks off says so; the mark of a good end does not follow."""
    named = path in ("/v1/messages", "/v1/responses")
    return (b"event: error\n" if named else b"") + b"data: " + error_body(path, 502, message) + b"\n\n"


_NDJSON: Final = type_line(NDJSON)
_SSE: Final = type_line(SSE)
_UNCACHED_SSE: Final = _SSE + b"Cache-Control: no-cache\r\n"
TONGUES = [
    *(
        Tongue(path, kind, _peek_ollama, _judge_as(kind), LineReader, _said_as(kind), _error_line, _NDJSON)
        for path, kind in (("/api/chat", Kind.CHAT), ("/api/generate", Kind.GENERATE))
    ),
    *(
        Tongue(
            path,
            kind,
            partial(_peek_v1, "max_tokens"),
            openai.judge_whole,
            openai.reader,
            partial(openai.said, kind),
            _error_event,
            _SSE,
        )
        for path, kind in (("/v1/chat/completions", Kind.CHAT), ("/v1/completions", Kind.GENERATE))
    ),
    *(
        Tongue(
            path,
            Kind.CHAT,
            partial(_peek_v1, bound),
            room.judge_whole,
            room.reader,
            room.said,
            _error_event,
            _UNCACHED_SSE,
        )
        for path, room, bound in (
            ("/v1/messages", anthropic, "max_tokens"),
            ("/v1/responses", responses, "max_output_tokens"),
        )
    ),
]


def _no_stream() -> Reader:
    raise AssertionError("embeddings come whole")


EMBED_TONGUES = [
    Tongue(path, Kind.EMBED, _peek_ollama, _judge_as(Kind.EMBED), _no_stream, lambda body: None, _error_line, _NDJSON)
    for path in ("/api/embed", "/v1/embeddings", "/api/embeddings")
]
