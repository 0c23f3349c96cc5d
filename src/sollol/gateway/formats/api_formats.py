"""Describe each inference route: the fields that decide, and the meaning of an answer. No I/O.

Only the deciding fields of a body are decoded. The node receives the client's bytes.
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
from sollol.gateway.formats.request_fields import (
    EmbeddingFields,
    MinimalFields,
    read_embedding,
    read_minimal,
    read_ollama,
    read_openai,
)
from sollol.gateway.formats.stream_parser import LineParser, StreamParser
from sollol.http_server.request import NDJSON, SSE, type_line
from sollol.workload.classification import type_of
from sollol.workload.cost import item_cost
from sollol.workload.prefix import prefix_of
from sollol.workload.runner_options import runner_key
from sollol.workload.task import unloads


class ParsedRequest:
    """The properties of a request that decide how it is scheduled and answered."""

    __slots__ = ("cost", "model", "options", "prefix", "repeatable", "size", "stream", "tokens_out", "type", "unloads")

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
        repeatable: bool = True,
    ) -> None:
        self.model = model
        self.stream = stream
        self.tokens_out = tokens_out
        self.options = options
        self.type = type
        self.prefix = prefix
        self.cost = cost
        self.repeatable = repeatable  # it does not unload the model at its end
        self.size = size  # bytes of its texts; 0 if they were not counted
        self.unloads = unloads  # it has no prompt and removes the model from memory


def parsed_embedding(model: str, options: Any, texts: Sequence[Any], keep_alive: Any) -> ParsedRequest:
    """Return the properties of a request to embed these texts."""
    cost = sum(item_cost(text) for text in texts if isinstance(text, str))
    return ParsedRequest(
        model,
        False,
        None,
        runner_key(options) if options else "",
        TaskType.EMBED,
        (),
        cost,
        size=size_of(texts),
        repeatable=not unloads(keep_alive),
    )


class ApiFormat:
    """One inference route: how its requests are parsed and its answers judged."""

    __slots__ = ("error_event", "judge", "kind", "new_parser", "parse", "partial_response", "path", "type_line")

    def __init__(
        self,
        path: str,
        kind: Kind,
        parse: Callable[[bytes], ParsedRequest],
        judge: Callable[[int, bytes], Outcome],
        new_parser: Callable[[], StreamParser],
        partial_response: Callable[[bytes], PartialResponse | None],
        error_event: Callable[[str, str], bytes],
        type_line: bytes,
    ) -> None:
        self.path = path
        self.kind = kind
        self.parse = parse
        self.judge = judge  # of a whole answer
        self.new_parser = new_parser  # of a streamed answer
        self.partial_response = partial_response  # of a request: None if another node cannot resume its answer
        self.error_event = error_event
        self.type_line = type_line  # the Content-Type of a stream

    def framed(self, line: bytes) -> bytes:
        """Return a part of a stream with its line end."""
        return line if line.endswith(b"\n") or not line else line + b"\n"


def _parse_ollama(body: bytes) -> ParsedRequest:
    found = read_ollama(body)
    options, messages, prompt, keep_alive = found.options, found.messages, found.prompt, found.keep_alive
    return ParsedRequest(
        found.model,
        found.stream is not False,
        bound_of(options.get("num_predict")) if options else None,
        runner_key(options, found.shift) if options or found.shift is not None else "",
        type_of(messages, prompt, found.system, found.format, bool(found.suffix)),
        prefix_of(messages) if messages else (),
        unloads=(at_end := unloads(keep_alive)) and not (messages or prompt),
        repeatable=not at_end,
    )


def bound_of(value: Any) -> int | None:
    """Return the bound of an answer in tokens; None for a value that a node ignores or refuses."""
    return value if type(value) is int and value > 0 else None


def _parse_v1(bound: str, body: bytes) -> ParsedRequest:
    """Parse a request to `/v1`. `bound`: the only field in which a node reads the bound of the answer."""
    found = read_openai(body)
    messages = found.messages
    if found.input is not None:
        messages = found.input if isinstance(found.input, list) else [{"role": "user", "content": found.input}]
    system = found.instructions or (found.system if isinstance(found.system, str) else None)
    return ParsedRequest(
        found.model,
        bool(found.stream),
        bound_of(found.max_tokens if bound == "max_tokens" else found.max_output_tokens),
        "",
        type_of(messages, found.prompt, system, None, False),
        prefix_of(messages),
    )


def parse_embedding(body: bytes) -> EmbeddingFields:
    """Return the fields of an embedding request; one of a wrong type is left to a node to refuse.

    Raises:
        BadInput: The body is not JSON.
    """
    try:
        return read_embedding(body)
    except msgspec.DecodeError:
        return EmbeddingFields(_parse_minimal(body).model or "")


def parse_request(api_format: ApiFormat, body: bytes) -> ParsedRequest:
    """Return the properties of a request; a field of a wrong type is left to a node to refuse.

    Raises:
        BadInput: The body is not JSON.
    """
    try:
        return api_format.parse(body)
    except (msgspec.ValidationError, AttributeError, TypeError):
        found = _parse_minimal(body)
    except msgspec.DecodeError as error:
        _parse_minimal(body)  # which may have a more exact message
        raise BadInput(f"the request is not JSON: {error}") from None
    streams = api_format.parse is _parse_ollama if found.stream is None else bool(found.stream)
    return ParsedRequest(found.model or "", streams, None, "", TaskType.CHAT, ())


def _parse_minimal(body: bytes) -> MinimalFields:
    try:
        return read_minimal(body)
    except msgspec.ValidationError as error:
        raise BadInput(f"the request cannot be read: {error}") from None
    except msgspec.DecodeError as error:
        raise BadInput(f"the request is not JSON: {error}" if body else "missing request body") from None


def _judge_as(kind: Kind) -> Callable[[int, bytes], Outcome]:
    return lambda status, body: judge(status, body, kind)


def _partial_response_of(kind: Kind) -> Callable[[bytes], PartialResponse | None]:
    def partial_response(body: bytes) -> PartialResponse | None:
        fields = decode(body)
        return PartialResponse(kind, fields) if is_plain(fields) else None

    return partial_response


def _error_line(path: str, message: str) -> bytes:
    return error_body(path, 502, message) + b"\n"


def _error_event(path: str, message: str) -> bytes:
    """Return the last event of an answer that breaks off; the mark of a good end does not follow."""
    named = path in ("/v1/messages", "/v1/responses")
    return (b"event: error\n" if named else b"") + b"data: " + error_body(path, 502, message) + b"\n\n"


_NDJSON: Final = type_line(NDJSON)
_SSE: Final = type_line(SSE)
_UNCACHED_SSE: Final = _SSE + b"Cache-Control: no-cache\r\n"
CHAT_FORMATS = [
    *(
        ApiFormat(
            path, kind, _parse_ollama, _judge_as(kind), LineParser, _partial_response_of(kind), _error_line, _NDJSON
        )
        for path, kind in (("/api/chat", Kind.CHAT), ("/api/generate", Kind.GENERATE))
    ),
    *(
        ApiFormat(
            path,
            kind,
            partial(_parse_v1, "max_tokens"),
            openai.judge_whole,
            openai.new_parser,
            partial(openai.partial_response, kind),
            _error_event,
            _SSE,
        )
        for path, kind in (("/v1/chat/completions", Kind.CHAT), ("/v1/completions", Kind.GENERATE))
    ),
    *(
        ApiFormat(
            path,
            Kind.CHAT,
            partial(_parse_v1, bound),
            module.judge_whole,
            module.new_parser,
            module.partial_response,
            _error_event,
            _UNCACHED_SSE,
        )
        for path, module, bound in (
            ("/v1/messages", anthropic, "max_tokens"),
            ("/v1/responses", responses, "max_output_tokens"),
        )
    ),
]


def _no_stream() -> StreamParser:
    raise AssertionError("embeddings are not streamed")


EMBED_FORMATS = [
    ApiFormat(
        path, Kind.EMBED, _parse_ollama, _judge_as(Kind.EMBED), _no_stream, lambda body: None, _error_line, _NDJSON
    )
    for path in ("/api/embed", "/v1/embeddings", "/api/embeddings")
]
