"""Streams of the dialects: what goes through, how it ends, and how another node goes on with it."""

from __future__ import annotations

import json
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sollol.backends.ollama import judge
from sollol.core.types import Kind, Status
from sollol.engine.resumption import PartialResponse
from sollol.gateway.formats import anthropic, openai, responses
from sollol.gateway.formats.stream_parser import LineParser, StreamParser, data_of

TRANSCRIPTS = Path(__file__).parents[2] / "fixtures" / "ollama-transcripts"
READERS: dict[str, Callable[[], StreamParser]] = {
    "chat-stream": LineParser,
    "generate-stream": LineParser,
    "v1-chat-stream": openai.new_parser,
    "v1-chat-stream-usage": openai.new_parser,
    "v1-completions-stream": openai.new_parser,
    "v1-messages-stream": anthropic.new_parser,
    "v1-responses-stream": responses.new_parser,
}


def transcript(case: str) -> tuple[Any, list[bytes]]:
    found = json.loads((TRANSCRIPTS / f"{case}.json").read_text())
    return found["request"]["body"], [text.encode() for _, text in found["chunks"]]


def said_of(case: str) -> PartialResponse:
    body, _ = transcript(case)
    raw = json.dumps(body).encode()
    found: PartialResponse | None
    if case.startswith("v1-chat"):
        found = openai.partial_response(Kind.CHAT, raw)
    elif case.startswith("v1-completions"):
        found = openai.partial_response(Kind.GENERATE, raw)
    elif case.startswith("v1-messages"):
        found = anthropic.partial_response(raw)
    elif case.startswith("v1-responses"):
        found = responses.partial_response(raw)
    else:
        found = PartialResponse(Kind.CHAT if case.startswith("chat") else Kind.GENERATE, body)
    assert found is not None
    return found


def read(reader: StreamParser, pieces: list[bytes]) -> bytes:
    return b"".join(reader.feed(piece) for piece in pieces)


def spoken(case: str, stream: bytes) -> str:
    """The text of a stream, read by hand."""
    texts = []
    for line in stream.split(b"\n"):
        if not line.startswith(b"{" if not case.startswith("v1") else b"data: {"):
            continue
        found = json.loads(line.removeprefix(b"data: "))
        texts += [(c.get("delta") or {}).get("content") or c.get("text") or "" for c in found.get("choices") or ()]
        delta = found.get("delta")
        if isinstance(delta, str):
            texts.append(delta)
        elif isinstance(delta, dict):
            texts.append(delta.get("text") or "")
        texts.append(found["response"] if isinstance(found.get("response"), str) else "")
        texts.append(
            (found.get("message") or {}).get("content") if "message" in found and case == "chat-stream" else ""
        )
    return "".join(text for text in texts if isinstance(text, str))


@pytest.mark.parametrize("case", READERS)
def test_a_whole_answer_goes_through_byte_for_byte_wherever_it_is_cut(case: str) -> None:
    _, chunks = transcript(case)
    whole = b"".join(chunks)
    for cut in range(len(whole) + 1):
        reader = READERS[case]()
        passed = read(reader, [whole[:cut], whole[cut:]])
        assert reader.close().status is Status.OK
        assert passed + reader.tail == whole
    reader = READERS[case]()
    passed = read(reader, chunks)
    assert reader.ended is not None
    assert reader.ended.status is Status.OK
    assert passed + reader.tail == whole


@pytest.mark.parametrize("case", READERS)
@given(cuts=st.lists(st.integers(0, 4000), max_size=30))
@settings(max_examples=30, deadline=None)
def test_random_cuttings_change_nothing(case: str, cuts: list[int]) -> None:
    whole = b"".join(transcript(case)[1])
    places = sorted({0, len(whole), *(cut % len(whole) for cut in cuts)})
    reader = READERS[case]()
    passed = read(reader, [whole[a:b] for a, b in pairwise(places)])
    assert passed + reader.tail == whole
    assert reader.close().status is Status.OK


@pytest.mark.parametrize("case", READERS)
def test_an_answer_that_is_cut_off_has_failed_unless_all_was_said(case: str) -> None:
    whole = b"".join(transcript(case)[1])
    text = spoken(case, whole)
    for cut in range(len(whole)):
        reader = READERS[case]()
        passed = reader.feed(whole[:cut])
        if reader.close().status is Status.OK:
            assert spoken(case, passed + reader.tail) == text
        else:
            assert whole.startswith(passed)


def test_lines_that_never_say_done_are_whole_if_they_end_in_good_form() -> None:
    line = b'{"model":"m","message":{"role":"assistant","content":"a \\"done\\" b"}}\n'
    for cut in range(len(line)):
        reader = LineParser()
        assert read(reader, [line[:cut], line[cut:], line]) == 2 * line
        assert reader.close(clean=True).status is Status.OK
        assert reader.tail == b""
    broken, empty, ollamas = LineParser(), LineParser(), LineParser()
    broken.feed(line)
    ollamas.feed(line.replace(b"}}", b'},"done":false}'))
    assert broken.close(clean=False).status is Status.FAILED
    assert empty.close(clean=True).status is Status.FAILED
    assert ollamas.close(clean=True).status is Status.FAILED


def test_a_line_of_ollama_in_two_pieces_still_says_that_more_has_to_come() -> None:
    line = b'{"model":"m","message":{"role":"assistant","content":"a"},"done":false}\n'
    for cut in range(len(line)):
        reader = LineParser()
        read(reader, [line[:cut], line[cut:]])
        assert reader.close(clean=True).status is Status.FAILED


def test_a_last_line_without_its_end_is_passed_on() -> None:
    line = b'{"model":"m","message":{"role":"assistant","content":"a"}}'
    reader = LineParser()
    passed = read(reader, [line + b"\n", line])
    assert reader.close(clean=True).status is Status.OK
    assert passed + reader.tail == line + b"\n" + line


def test_a_whole_answer_that_does_not_say_done_is_one() -> None:
    body = b'{"model":"m","message":{"role":"assistant","content":"a"}}'
    assert judge(200, body, Kind.CHAT).status is Status.OK
    assert judge(200, body[:-1] + b',"done":false}', Kind.CHAT).status is Status.OK
    assert judge(200, b'{"model":"m","done":false}', Kind.CHAT).status is Status.FAILED
    assert judge(200, b"{}", Kind.CHAT).status is Status.FAILED
    assert judge(200, b'{"model":"m"}', Kind.GENERATE).status is Status.FAILED


def test_a_whole_answer_without_a_reason_to_end_is_one() -> None:
    """Ollama's limit of repeated tokens."""
    choice = b'{"index":0,"message":{"role":"assistant","content":"a a a"},"finish_reason":null}'
    assert openai.judge_whole(200, b'{"model":"m","choices":[' + choice + b"]}").status is Status.OK
    assert openai.judge_whole(200, b'{"model":"m","choices":[]}').status is Status.FAILED
    message = b'{"type":"message","role":"assistant","content":[{"type":"text","text":"a a a"}]'
    assert anthropic.judge_whole(200, message + b"}").status is Status.OK
    assert anthropic.judge_whole(200, message + b',"error":{"message":"x"}}').status is Status.FAILED
    assert anthropic.judge_whole(200, b'{"role":"assistant"}').status is Status.FAILED


def test_the_end_in_good_form_after_a_late_error_is_none() -> None:
    _, chunks = transcript("late-error-v1")
    reader = openai.new_parser()
    passed = read(reader, chunks)
    assert reader.close().status is Status.FAILED
    assert passed == b"".join(chunks[:-1])


@pytest.mark.parametrize("case", READERS)
def test_another_node_goes_on_at_every_event_without_a_lost_or_doubled_character(case: str) -> None:
    _, chunks = transcript(case)
    whole = b"".join(chunks)
    end = b"\n\n" if case.startswith("v1") else b"\n"
    text = spoken(case, whole)
    events = [event + end for event in whole.split(end) if event]
    for place in range(1, len(events)):
        reader, said = READERS[case](), said_of(case)
        passed = reader.feed(b"".join(events[:place]))
        if reader.close().status is Status.OK:
            continue
        said.add(passed)
        assert said.text == spoken(case, passed)
        rest, before = text[len(said.text) :], said.tokens
        raw = [{"model": "m", "response": rest, "done": False}] if rest else []
        raw.append({"model": "m", "response": "", "done": True, "done_reason": "length", "eval_count": 3})
        raw[-1]["prompt_eval_count"] = 20 + before
        further = []
        for line in raw:
            translated = said.translate(json.dumps(line).encode(), before, 1000)
            said.add(translated)
            further.append(translated if case.startswith("v1") else translated + b"\n")
        answer = passed + b"".join(further)
        assert spoken(case, answer) == text
        check_marks(case, answer, before + 3)


def check_marks(case: str, answer: bytes, tokens: int) -> None:
    """The end is in good form, the counts are sums, the numbers go on."""
    if not case.startswith("v1"):
        last = json.loads(answer.splitlines()[-1])
        assert (last["done"], last["eval_count"], last["prompt_eval_count"]) == (True, tokens, 20)
        return
    events = [json.loads(data) for found in answer.split(b"\n\n") if (data := data_of(found)).startswith(b"{")]
    if case.startswith(("v1-chat", "v1-completions")):
        assert answer.endswith(b"data: [DONE]\n\n")
        assert len({event["id"] for event in events}) == 1
        reasons = [choice["finish_reason"] for event in events for choice in event["choices"]]
        assert reasons[-1] == "length"
        assert not any(reasons[:-1])
        if case.endswith("usage"):
            assert events[-1]["usage"] == {
                "prompt_tokens": 20, "completion_tokens": tokens, "total_tokens": tokens + 20
            }  # fmt: skip
    elif case == "v1-messages-stream":
        assert [event["type"] for event in events[-3:]] == ["content_block_stop", "message_delta", "message_stop"]
        assert events[-2]["usage"]["output_tokens"] == tokens
    else:
        assert [event["sequence_number"] for event in events] == list(range(len(events)))
        assert events[-1]["response"]["usage"]["output_tokens"] == tokens
        assert events[-1]["response"]["output"][0]["content"][0]["text"] == spoken(case, answer)


@pytest.mark.parametrize(
    "body",
    [
        {"model": "m", "messages": [{"role": "user", "content": "x"}], "tools": [{"type": "function"}]},
        {"model": "m", "messages": [{"role": "user", "content": "x"}], "response_format": {"type": "json_object"}},
        {"model": "m", "messages": [{"role": "user", "content": [{"type": "image_url", "image_url": "data:"}]}]},
        {"model": "m", "messages": [{"role": "tool", "content": "x"}]},
        {"model": "m", "messages": [{"role": "user", "content": "x"}], "logprobs": True},
        {"model": "m", "messages": []},
    ],
)
def test_what_is_not_plain_text_is_not_gone_on_with(body: dict[str, Any]) -> None:
    assert openai.partial_response(Kind.CHAT, json.dumps(body).encode()) is None


def test_openai_requests_become_what_ollama_makes_of_them() -> None:
    body = {
        "model": "m",
        "messages": [
            {"role": "system", "content": "s"},
            {"role": "user", "content": [{"type": "text", "text": "a"}, {"type": "text", "text": "b"}]},
        ],
        "stop": "x",
        "max_tokens": 9,
    }
    said = openai.partial_response(Kind.CHAT, json.dumps(body).encode())
    assert said is not None
    assert said.body == {
        "model": "m",
        "messages": [
            {"role": "system", "content": "s"}, {"role": "user", "content": "a"}, {"role": "user", "content": "b"}
        ],
        "options": {"temperature": 1.0, "top_p": 1.0, "stop": ["x"], "num_predict": 9},
    }  # fmt: skip
