"""What a stream may not get away with, and what a reader may not do to a good one."""

from __future__ import annotations

import json
from itertools import pairwise

import pytest

from sollol.backends.ollama import BLANKS_BEFORE, BLANKS_BETWEEN
from sollol.core.types import Kind, Status
from sollol.engine.resumption import PartialResponse
from sollol.gateway.formats import anthropic, openai, responses
from sollol.gateway.formats.stream_parser import HELD_BYTES, EventParser, EventSplitter, LineParser, data_of
from sollol.transport.base import Timeouts
from tests.gateway.formats.test_stream_transcripts import READERS, said_of, transcript

EVENTS = {case: make for case, make in READERS.items() if case.startswith("v1")}


def part_of(case: str) -> bytes:
    """An ordinary part of the answer."""
    return transcript(case)[1][5]


@pytest.mark.parametrize("case", READERS)
def test_parts_are_counted_however_they_come(case: str) -> None:
    part = part_of(case)
    for size in (1, 7, len(part), len(part) + 9, 3 * len(part)):
        reader, whole = READERS[case](), 6 * part
        cuts = [*range(0, len(whole), size), len(whole)]
        assert b"".join(reader.feed(whole[a:b]) for a, b in pairwise(cuts)) == whole
        assert reader.count == 6
        assert reader.ended is None


@pytest.mark.parametrize("case", READERS)
def test_half_a_part_is_not_passed_on(case: str) -> None:
    part = part_of(case)
    for cut in range(1, len(part)):
        reader = READERS[case]()
        assert reader.feed(part + part[:cut]) == part
        assert reader.close().status is Status.FAILED


@pytest.mark.parametrize("case", EVENTS)
@pytest.mark.parametrize("broken", [b"nonsense\n\n", b'data: {"id":\n\n', b"event: x\n\n", b"data: []\n\n"])
def test_a_broken_event_is_a_failure(case: str, broken: bytes) -> None:
    reader = EVENTS[case]()
    assert reader.feed(part_of(case) + broken + part_of(case)) == part_of(case)
    assert reader.ended is not None
    assert reader.ended.status is Status.FAILED
    assert reader.close() is reader.ended


@pytest.mark.parametrize("case", READERS)
def test_nothing_follows_an_end(case: str) -> None:
    reader = READERS[case]()
    whole = b"".join(transcript(case)[1])
    passed = reader.feed(whole)
    assert passed + reader.tail == whole
    assert reader.feed(part_of(case)) == b""
    assert passed + reader.tail == whole
    failed = READERS[case]()
    failed.feed(b'{"error":"x"}\n' if case in ("chat-stream", "generate-stream") else b"nonsense\n\n")
    assert failed.feed(part_of(case)) == b""


@pytest.mark.parametrize(
    ("reader", "case", "end"),
    [
        (openai.new_parser, "v1-chat-stream", b"data: [DONE]\n\n"),
        (anthropic.new_parser, "v1-messages-stream", b'event: message_stop\ndata: {"type":"message_stop"}\n\n'),
    ],
)
def test_an_end_without_a_reason_is_none(reader: type[EventParser], case: str, end: bytes) -> None:
    found = reader()  # type: ignore[call-arg]
    assert found.feed(part_of(case) + end) == part_of(case)
    assert found.close().status is Status.FAILED


@pytest.mark.parametrize("case", READERS)
def test_the_counts_are_those_the_node_told(case: str) -> None:
    reader = READERS[case]()
    whole = b"".join(transcript(case)[1])
    reader.feed(whole)
    timing = reader.close().timing
    if case in ("v1-chat-stream", "v1-completions-stream"):  # without `include_usage` none are told
        assert (timing.prompt_tokens, timing.tokens) == (0, reader.count)
    else:
        told = json.loads(whole.splitlines()[-1]) if not case.startswith("v1") else {}
        tokens = told.get("eval_count") or (6 if case == "v1-responses-stream" else 8)
        assert timing.prompt_tokens > 0
        assert timing.tokens == tokens


def test_where_no_line_says_whether_it_is_the_last_a_clean_end_is_the_end() -> None:
    """So do servers that only resemble Ollama."""
    lines = b'{"message":{"content":"a"}}\n{"message":{"content":"b"}}'
    for clean in (True, False):
        reader = LineParser()
        passed = reader.feed(lines)
        found = reader.close(clean)
        assert (found.status is Status.OK) == clean
        if clean:
            assert passed + reader.tail == lines
        assert LineParser().close(clean).status is Status.FAILED  # nothing at all is no answer


def test_zeros_in_each_chunk_are_no_counts() -> None:
    """What Ollama's completions say with `include_usage`, but for their last chunk."""
    zeros = b'"usage":{"prompt_tokens":0,"completion_tokens":0,"total_tokens":0}}\n\n'
    part = b'data: {"id":"a","choices":[{"text":"x","index":0,"finish_reason":null}],"model":"m",' + zeros
    reader = openai.new_parser()
    assert reader.feed(part) == part
    assert reader.feed(part.replace(b"null", b'"stop"')) == b""
    assert reader.close().timing.tokens == 1
    assert reader.tail.endswith(b"data: [DONE]\n\n")


@pytest.mark.parametrize("case", EVENTS)
def test_comments_and_blank_lines_go_through(case: str) -> None:
    reader, part = EVENTS[case](), part_of(case)
    for between in (b": still here\n\n", b"\n\n"):
        assert reader.feed(part + between + part) == part + between + part
    assert reader.count == 4


IDLES = [b"\n", b"\r\n", b" \n", b" ", b"\t\r\n"]
COMMENTS = [b": ping\n\n", b":\n\n", b": a\n: b\n\n", b"\n\n"]


def idles_of(case: str) -> list[bytes]:
    return IDLES + COMMENTS if case in EVENTS else IDLES


@pytest.mark.parametrize("case", READERS)
@pytest.mark.parametrize("shift", [0, 1, 3])
def test_blanks_and_comments_before_the_first_part_are_bounded(case: str, shift: int) -> None:
    for idle in idles_of(case):
        flood = (idle * 200_000)[shift if not idle.startswith(b":") else 0 :]
        reader, came = READERS[case](), 0
        for at in range(0, len(flood), 10_007):  # pieces end anywhere
            if reader.ended is not None:
                break
            assert reader.feed(flood[at : at + 10_007]) == b""
            came += 10_007
        assert reader.ended is not None, idle
        assert reader.ended.status is Status.FAILED
        assert came <= BLANKS_BEFORE + 2 * 10_007, idle


@pytest.mark.parametrize("case", READERS)
def test_blanks_and_comments_between_parts_are_bounded(case: str) -> None:
    part = part_of(case)
    for idle in idles_of(case):
        reader = READERS[case]()
        flood = idle * (BLANKS_BETWEEN // len(idle) // 4)
        for _ in range(6):  # in a row, not altogether
            reader.feed(part)
            for at in range(0, len(flood), 10_007):
                reader.feed(flood[at : at + 10_007])
            assert reader.ended is None, idle
        for _ in range(5):
            reader.feed(flood)
        assert reader.ended is not None, idle
        assert reader.ended.status is Status.FAILED


@pytest.mark.parametrize("case", READERS)
def test_parts_among_blanks_and_comments_are_all_read(case: str) -> None:
    part = part_of(case)
    for idle in idles_of(case):
        whole = idle * 3 + part + idle * 5 + part + part + idle + part
        if idle.endswith(b" ") and case in EVENTS:  # spaces before the name of a field make another field
            continue
        for size in (1, 7, len(whole)):
            reader = READERS[case]()
            passed = b"".join(reader.feed(whole[at : at + size]) for at in range(0, len(whole), size))
            assert reader.count == 4, (idle, size)
            assert passed.count(part.strip()) == 4


def test_a_block_may_follow_a_block() -> None:
    stop = b'event: content_block_stop\ndata: {"type":"content_block_stop","index":0}\n\n'
    start = b'event: content_block_start\ndata: {"type":"content_block_start","index":1,"content_block":{}}\n\n'
    reader = anthropic.new_parser()
    assert reader.feed(stop) == b""
    assert reader.feed(start) == stop + start
    assert reader.feed(part_of("v1-messages-stream")) == part_of("v1-messages-stream")


@pytest.mark.parametrize(
    ("stream", "why"),
    [
        (b'event: error\ndata: {"code":null,"message":"went away","param":null,"type":"error"}\n\n', "went away"),
        (b'event: response.failed\ndata: {"response":{"error":{"code":"x","message":"went away"}},'
         b'"type":"response.failed"}\n\n', "went away"),
        (b'event: error\ndata: {"error":{"message":"went away"},"type":"error"}\n\n', "went away"),
    ],
)  # fmt: skip
def test_responses_tell_their_failure(stream: bytes, why: str) -> None:
    reader = responses.new_parser()
    assert reader.feed(stream) == b""
    assert reader.ended is not None
    assert (reader.ended.status, reader.ended.message) == (Status.FAILED, why)


def test_a_message_tells_its_failure() -> None:
    reader = anthropic.new_parser()
    reader.feed(b'event: error\ndata: {"type":"error","error":{"type":"api_error","message":"went away"}}\n\n')
    assert reader.ended is not None
    assert (reader.ended.status, reader.ended.message) == (Status.FAILED, "went away")


@pytest.mark.parametrize("make", [openai.new_parser, LineParser])
def test_a_part_without_an_end_is_bounded(make: type[LineParser]) -> None:
    reader = make()
    piece = b"x" * (1 << 20)
    for _ in range(HELD_BYTES // len(piece) + 1):
        assert reader.ended is None
        assert reader.feed(piece) == b""
    assert reader.ended is not None
    assert reader.ended.status is Status.FAILED


def test_an_end_that_is_held_back_is_bounded() -> None:
    reader = openai.new_parser()
    end = b'data: {"id":"a","choices":[{"text":"","index":0,"finish_reason":"stop"}],"model":"m"}\n\n'
    more = b'data: {"id":"%s","choices":[]}\n\n' % (b"x" * (1 << 20))
    reader.feed(end)
    for _ in range(HELD_BYTES // len(more) + 1):
        assert reader.feed(more) == b""
    assert reader.ended is not None
    assert reader.ended.status is Status.FAILED


def test_a_long_part_in_small_pieces_is_put_together_once() -> None:
    splitter = EventSplitter(b"\n\n")
    for _ in range(10_000):
        assert splitter.split(b"y\n") == []
        assert splitter.split(b"z") == []
    assert splitter.size == 30_000
    assert splitter.split(b"\n") == []
    assert splitter.split(b"\nq") == [b"y\nz" * 10_000 + b"\n\n"]
    assert splitter.rest() == b"q"


def test_the_data_of_events() -> None:
    assert data_of(b"data: {}\n\n") == b"{}"
    assert data_of(b'event: x\ndata: {"a":"data: b"}\n\n') == b'{"a":"data: b"}'
    assert data_of(b'id: 5\ndata: {"a":\ndata: 1}\n\n') == b'{"a":\n1}'
    assert data_of(b": data: x\n\n") == b""


# --- what was heard ---


def heard(case: str, *pieces: bytes) -> PartialResponse:
    said = said_of(case)
    said.add(transcript(case)[1][0])
    for piece in pieces:
        said.add(piece)
    return said


@pytest.mark.parametrize(
    ("case", "piece"),
    [
        ("chat-stream", b'{"message":{"role":"assistant","content":"","thinking":"hm"},"done":false}\n'),
        ("chat-stream", b'{"message":{"role":"assistant","content":"","tool_calls":[{"id":"x"}]},"done":false}\n'),
        ("generate-stream", b'{"response":"","thinking":"hm","done":false}\n'),
        ("generate-stream", b'{"response":5,"done":false}\n'),
        ("v1-chat-stream", b'data: {"choices":[{"index":0,"delta":{"content":"","reasoning":"hm"}}]}\n\n'),
        ("v1-chat-stream", b'data: {"choices":[{"index":0,"delta":{"tool_calls":[{"id":"x"}]}}]}\n\n'),
        ("v1-chat-stream", b'data: {"choices":[5]}\n\n'),
        ("v1-messages-stream", b'event: content_block_start\ndata: {"type":"content_block_start","index":0,'
                               b'"content_block":{"type":"thinking","thinking":""}}\n\n'),
        ("v1-messages-stream", b'event: content_block_delta\ndata: {"type":"content_block_delta","index":0,'
                               b'"delta":{"type":"input_json_delta","partial_json":"{}"}}\n\n'),
        ("v1-responses-stream", b'event: response.output_item.added\ndata: {"item":{"id":"fc_1",'
                                b'"type":"function_call"},"type":"response.output_item.added"}\n\n'),
    ],
)  # fmt: skip
def test_nobody_goes_on_from_what_is_more_than_text(case: str, piece: bytes) -> None:
    said = heard(case)
    assert said.is_exact
    said = heard(case, *[piece] * 70)  # hearing never raises
    assert not said.is_exact
    assert not said.is_complete
    with pytest.raises(ValueError, match="plain text"):
        said.call("prompt", Timeouts())


def test_events_are_heard_together_and_one_by_one_alike() -> None:
    """What stands between them, as a comment may, makes no difference; nor does a text that looks like an event."""
    event = b'data: {"id":"c","choices":[{"index":0,"delta":{"content":"%b"},"finish_reason":null}]}\n\n'
    texts = [b"one ", b"\\n\\ndata: {} ", b"data: [DONE] ", b"", b"two"]
    whole = "one \n\ndata: {} data: [DONE] two"
    for between in (b"", b": still here\n\n", b"event: x\ndata: {}\n\n"):
        said = heard("v1-chat-stream", *[event % text + between for text in texts])
        assert said.is_exact
        assert said.text.endswith(whole)
        assert said.tokens == heard("v1-chat-stream").tokens + 4


def test_the_call_that_goes_on_is_ollamas() -> None:
    said = heard("v1-chat-stream", *transcript("v1-chat-stream")[1][1:3])
    call = said.call("<user>x<assistant>", Timeouts())
    assert call.path == "/api/generate"
    assert isinstance(call.body, bytes)
    assert json.loads(call.body) == {
        "model": "tiny-chat",
        "prompt": "<user>x<assistant> drops takes to",
        "raw": True,
        "stream": True,
        "truncate": False,
        "options": {"temperature": 0, "top_p": 1.0, "num_predict": 5},
    }


# --- answers given whole ---

WHOLE = {
    "v1-chat": openai.judge_whole,
    "v1-completions": openai.judge_whole,
    "v1-messages": anthropic.judge_whole,
    "v1-responses": responses.judge_whole,
}


@pytest.mark.parametrize("case", WHOLE)
def test_a_whole_answer(case: str) -> None:
    body = b"".join(transcript(case)[1])
    found = WHOLE[case](200, body)
    assert (found.status, found.http_status) == (Status.OK, 200)
    assert (found.timing.prompt_tokens, found.timing.tokens) == {
        "v1-chat": (54, 8), "v1-completions": (49, 6), "v1-messages": (54, 8), "v1-responses": (49, 6)
    }[case]  # fmt: skip
    for broken in (body[:-20], b"", b"{}", b"[]", b'{"error":{"message":"x"}}', b"<html>"):
        assert WHOLE[case](200, broken).status is Status.FAILED


@pytest.mark.parametrize(
    ("case", "status", "how"),
    [
        ("v1-chat-missing", 404, Status.MISSING),
        ("v1-messages-missing", 404, Status.MISSING),
        ("v1-chat-bad", 400, Status.REFUSED),
        ("v1-chat-bad-json", 400, Status.REFUSED),
    ],
)
def test_a_refusal(case: str, status: int, how: Status) -> None:
    body = b"".join(transcript(case)[1])
    for judge_whole in WHOLE.values():
        found = judge_whole(status, body)
        assert (found.status, found.http_status) == (how, status)
        assert json.loads(body)["error"]["message"] == found.message


def test_kinds() -> None:
    assert said_of("v1-completions-stream").kind is Kind.GENERATE
    assert said_of("v1-messages-stream").kind is Kind.CHAT
