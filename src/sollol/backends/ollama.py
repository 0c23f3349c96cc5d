"""Ollama's API: encode requests, judge answers. No I/O."""

from __future__ import annotations

import json
import re
from array import array
from collections.abc import Mapping, Sequence
from itertools import chain
from typing import Any, Final

import msgspec

from sollol.backends.decoding import json_reader, read_any
from sollol.backends.ollama_answers import Timings, read_embed_answer, read_inputs, read_timings, read_vector_answer
from sollol.backends.refusals import late_error, refusal
from sollol.core.actions import RETEST_TOKENS
from sollol.core.types import EMBED, OK, Kind, Outcome, Status, Timing
from sollol.core.value import replaced
from sollol.transport.base import Call, Timeouts
from sollol.transport.call import UNBOUNDED

RETEST_TIMEOUTS: Final = Timeouts(3.0, 60.0, 60.0)
WHOLE_MOST: Final = 64 * 2**20  # bytes of a whole answer that is a text, or of the joined parts of one
VECTOR_MOST: Final = 512 * 1024  # bytes of a vector: 20,000 numbers of 25 digits; at most one input for each comma
LINE_MOST: Final = 16 * 2**20  # bytes of a line or event of a stream
# Blank lines and comments in a row: a node that sends nothing else is not answering.
BLANKS_BEFORE: Final = 64 * 1024  # bytes before the first part
BLANKS_BETWEEN: Final = 2**20  # bytes between two parts
_BLANKS: Final = re.compile(rb"\n[ \t\r\n]+")


def _encode_other(value: Any) -> Any:
    """Convert objects of other libraries: pydantic models (the official client's messages and tools), numpy scalars."""
    for method in ("model_dump", "tolist"):
        convert = getattr(value, method, None)
        if convert is not None:
            return convert(exclude_none=True) if method == "model_dump" else convert()
    raise NotImplementedError(f"{type(value).__name__} cannot be sent as JSON")


_read_raw: Final = json_reader(dict[str, msgspec.Raw])
_ENCODER: Final = msgspec.json.Encoder(enc_hook=_encode_other)


def encode(value: Any) -> bytes:
    """Return the value as JSON. Half of a surrogate pair (a cut emoji) is escaped, which a node can read."""
    try:
        found: bytes = _ENCODER.encode(value)
    except UnicodeEncodeError:
        return json.dumps(value, default=_encode_other, separators=(",", ":")).encode()
    return found


decode: Final = read_any


def load_call(kind: Kind, model: str, options: str, keep_alive: int | str | None = None) -> Call:
    """Return the request that only loads a model with the options of a `runner_key`, or sets its `keep_alive`."""
    body: dict[str, Any] = {"model": model, "stream": False, **_fields_of(options)}
    if keep_alive is not None:
        body["keep_alive"] = keep_alive
    if kind is EMBED:
        return Call("POST", "/api/embed", encode({**body, "input": []}), timeouts=UNBOUNDED)
    return Call("POST", "/api/generate", encode(body), timeouts=UNBOUNDED)


def fields_with_num_ctx(fields: Mapping[str, Any], num_ctx: int) -> Mapping[str, Any]:
    """Return the fields of a request with another context; 0 leaves them as they are."""
    return {**fields, "options": {**(fields.get("options") or {}), "num_ctx": num_ctx}} if num_ctx else fields


def with_num_ctx(call: Call, num_ctx: int) -> Call:
    """Return the call with another context; unchanged if its body cannot be read, which its node will refuse."""
    assert isinstance(call.body, bytes)
    try:
        fields = _read_raw(call.body)
        options = decode(bytes(fields["options"])) if "options" in fields else None
    except msgspec.DecodeError:
        return call
    if options is not None and not isinstance(options, dict):
        return call
    return replaced(call, body=encode(fields_with_num_ctx({**fields, "options": options}, num_ctx)))


def retest_call(kind: Kind, model: str, options: str, texts: Sequence[str]) -> Call:
    """Return the request that embeds texts or writes RETEST_TOKENS tokens, with the options of a `runner_key`."""
    if kind is EMBED:
        inputs = {"model": model, "input": texts, **_fields_of(options)}
        return Call("POST", "/api/embed", encode(inputs), timeouts=RETEST_TIMEOUTS, most=len(texts) * VECTOR_MOST)
    body = {
        "model": model,
        "prompt": "Count from one to ten in words.",
        "stream": False,
        **_fields_of(options, num_predict=RETEST_TOKENS),
    }
    return Call("POST", "/api/generate", encode(body), timeouts=RETEST_TIMEOUTS, most=WHOLE_MOST)


def _fields_of(options: str, **more: int) -> dict[str, Any]:
    """Return the fields of a request for the options of a `runner_key`, and `more` options."""
    pairs = (pair.partition("=") for pair in options.split(",") if pair)
    given = {name: _number(value) for name, _, value in pairs}
    fields = {"shift": given.pop("shift")} if "shift" in given else {}
    return {**fields, "options": {**given, **more}}


def _number(text: str) -> Any:
    try:
        return decode(text.lower().encode())
    except msgspec.DecodeError:
        return text


TOKENS_A_PART: Final = 8  # upper bound: some tokens have no text, or get one with the next token


def with_part_count(outcome: Outcome, parts: int) -> Outcome:
    """Return the outcome of a stream of `parts` parts, with the tokens that they hold at most."""
    return with_token_limit(outcome, TOKENS_A_PART * parts)


def with_token_limit(outcome: Outcome, tokens: int) -> Outcome:
    """Return an outcome with the number of tokens that the received answer can hold at most."""
    t = outcome.timing  # built directly: `replaced` takes ten times as long, for every answer
    timing = Timing(t.load_us, t.prompt_tokens, t.prompt_us, t.tokens, t.decode_us, t.total_us, max(1, tokens))
    return Outcome(outcome.status, outcome.message, outcome.http_status, timing, outcome.retry_us)


def _timing(t: Timings) -> Timing:
    return Timing(
        t.load_duration // 1000,
        t.prompt_tokens(),
        t.prompt_eval_duration // 1000,
        t.eval_count,
        t.eval_duration // 1000,
        t.total_duration // 1000,
    )


_RENDERED: Final = b'"_debug_info":'  # an answer with the rendered prompt only


def answer_most(kind: Kind, body: bytes) -> int:
    """Return the limit in bytes of a whole answer to the request `body`."""
    return VECTOR_MOST * (body.count(b",") + 2) if kind is EMBED else WHOLE_MOST


def judge(status: int, body: bytes, kind: Kind) -> Outcome:
    """Return the outcome of a complete answer."""
    if status != 200:
        return refusal(status, body)
    # An error under status 200 begins so; checking it first saves a second decode.
    if body.startswith(b'{"error"'):
        return late_error(body, "error without a text")
    try:
        found = read_timings(body)
    except msgspec.DecodeError as error:
        return Outcome(Status.FAILED, f"the answer is not in the format of Ollama: {error}", 200)
    if found.error is not None:  # in any spelling
        return late_error(body, "error without a text")
    # A whole answer without `done` ran into Ollama's limit of repeated tokens, and is complete.
    if not (found.done or _has_answer(kind, body)):
        return Outcome(Status.FAILED, f"the answer is not complete: {body[:80]!r}", 200)
    return Outcome(OK, "", 200, _timing(found))


def judge_vectors(path: str, request: bytes, body: bytes) -> Outcome | None:
    """Return the fault of an answer's vectors, None if there is one per input and all have one length."""
    try:
        given = read_inputs(request)
        answer = read_vector_answer(body)
    except msgspec.DecodeError as error:
        return Outcome(Status.FAILED, f"the answer has no readable vectors: {error}", 200)
    widths = answer.widths(path)
    if widths is None:
        return Outcome(Status.FAILED, f"the answer has no vectors: {body[:80]!r}", 200)
    if path == "/api/embeddings":
        if not given.prompt:
            return None
        flaw = "the vector is empty" if widths == [0] else vector_fault([answer.embedding or []])
        return Outcome(Status.FAILED, flaw, 200) if flaw else None
    texts = given.input
    # A list of numbers is one input, as tokens.
    whole = isinstance(texts, list) and not any(isinstance(text, int) for text in texts)
    expected = len(texts) if whole else 1 if texts else len(widths)
    if len(widths) != expected:
        return Outcome(Status.FAILED, f"{len(widths)} vectors for {expected} inputs", 200)
    if len(set(widths)) > 1 or 0 in widths:
        return Outcome(Status.FAILED, f"vectors of dimension {sorted(set(widths))}, expected one", 200)
    flaw = vector_fault(answer.rows())
    return Outcome(Status.FAILED, flaw, 200) if flaw else None


def _has_answer(kind: Kind, body: bytes) -> bool:
    """Check for the fields of an answer of this kind."""
    if kind is EMBED:
        return b'"embedding' in body
    return b'"message"' in body or b'"response"' in body or _RENDERED in body


def without_blanks(piece: bytes) -> bytes:
    """Return lines without blank ones among them, in one step however many there are."""
    return _BLANKS.sub(b"\n", piece)


def are_too_many(blanks: int, parts: int) -> bool:
    """Check the bytes of blank lines and comments in a row, after so many parts of an answer."""
    return blanks > (BLANKS_BETWEEN if parts else BLANKS_BEFORE)


class Lines:
    """Split NDJSON pieces of any size into lines."""

    __slots__ = ("_blanks", "_count", "_rest", "_size")

    def __init__(self) -> None:
        self._blanks = 0  # bytes of blank lines since the last line
        self._count = 0
        self._rest: list[bytes] = []  # pieces of an incomplete line: joined once, in linear time
        self._size = 0

    def feed(self, piece: bytes) -> list[bytes]:
        """Return the lines that are complete with this piece.

        Raises:
            msgspec.DecodeError: A line is longer than LINE_MOST, or too many blank ones came.
        """
        if not self._size:
            size = len(piece)
            piece = piece.lstrip()
            self._blanks += size - len(piece)
            if are_too_many(self._blanks, self._count):
                raise msgspec.DecodeError(f"{self._blanks} bytes of blank lines came in a row")
            if not piece:
                return []
        if b"\n" not in piece:
            self._keep(piece)
            return []
        whole = b"".join([*self._rest, piece]) if self._rest else piece
        self._rest, self._size = [], 0
        lines = without_blanks(whole).split(b"\n")
        last = lines.pop()
        if last:
            self._keep(last)
        self._blanks = 0
        self._count += len(lines)
        return [line for line in lines if line.strip()]

    def _keep(self, piece: bytes) -> None:
        self._rest.append(piece)
        self._size += len(piece)
        if self._size > LINE_MOST:
            raise msgspec.DecodeError(f"a line is longer than {LINE_MOST} bytes")

    def rest(self) -> bytes:
        """Return the bytes after the last line end: the last line may lack its own."""
        rest, self._rest, self._size = b"".join(self._rest), [], 0
        return rest.strip()


def judge_line(line: bytes) -> Outcome | None:
    """Return the outcome of a stream's error or last line, None for a part of the answer."""
    if line.startswith(b'{"error"'):
        return late_error(line, "error without a text")
    if not line.startswith(b"{") and not line.lstrip().startswith(b"{"):
        return Outcome(Status.FAILED, f"a line of the answer is not JSON: {line[:80]!r}", 200)
    if b'"done":true' in line or b'"done": true' in line or b'"error"' in line:
        try:
            found = read_timings(line)
        except msgspec.DecodeError as error:
            return Outcome(Status.FAILED, f"a line of the answer is not JSON: {error}", 200)
        if found.error is not None:
            return late_error(line, "error without a text")
        if found.done:
            return Outcome(OK, "", 200, _timing(found))
    if _RENDERED in line:
        return Outcome(OK, "", 200)
    return None


FLOAT32_MOST: Final = 3.4028235e38


def vector_fault(rows: Sequence[Sequence[float]]) -> str:
    """Return the fault of the numbers of vectors, "" for none."""
    for row in rows:
        if not any(row):
            return "a vector is all zero"
        if max(row) > FLOAT32_MOST or min(row) < -FLOAT32_MOST:
            return "a vector has numbers beyond 32 bits"
    return ""


class Vectors:
    """Vectors of one embedding request: one flat float32 buffer of `count` rows of `dim`."""

    __slots__ = ("count", "dim", "flat", "tokens")

    def __init__(self, flat: array[float], count: int, dim: int, tokens: int) -> None:
        self.flat = flat
        self.count = count
        self.dim = dim
        self.tokens = tokens


def read_vectors(body: bytes, expected: int, dim: int) -> tuple[Outcome, Vectors | None]:
    """Decode an /api/embed answer and check it: one vector an item, all of one dimension (`dim`, if not 0)."""
    try:
        answer = read_embed_answer(body)
    except msgspec.DecodeError as error:
        return Outcome(Status.FAILED, f"the answer is not in the format of /api/embed: {error}", 200), None
    rows = answer.embeddings
    if len(rows) != expected:
        return Outcome(Status.FAILED, f"{len(rows)} vectors for {expected} inputs", 200), None
    width = dim or (len(rows[0]) if rows else 0)
    if any(len(row) != width for row in rows) or (rows and width == 0):
        found = sorted({len(row) for row in rows})
        return Outcome(Status.FAILED, f"vectors of dimension {found}, expected {width}", 200), None
    flaw = vector_fault(rows)
    if flaw:
        return Outcome(Status.FAILED, flaw, 200), None
    timing = Timing(answer.load_duration // 1000, answer.prompt_eval_count, total_us=answer.total_duration // 1000)
    flat = array("f", chain.from_iterable(rows))
    return Outcome(OK, "", 200, timing), Vectors(flat, len(rows), width, answer.prompt_eval_count)
