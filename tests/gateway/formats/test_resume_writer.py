"""Streams that went from one node to another, read by the clients themselves: they must not notice.

The answer of one node is broken off at every event, and what follows is said by `translate` or `finished`. The real
`openai` client reads it over a socket; for Anthropic's dialect, whose client is not among our tools, a reader that is
as strict about the order of events as theirs.
"""

from __future__ import annotations

import asyncio
import json
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, HTTPServer
from typing import Any

import openai
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sollol.core.types import Kind, Status
from sollol.engine.resumption import PartialResponse
from sollol.gateway.formats import anthropic, responses
from sollol.gateway.formats import openai as v1
from sollol.gateway.formats.stream_parser import StreamParser
from sollol.sim import SimNode
from sollol.sim.anthropic_routes import SimMessagesWriter
from sollol.sim.generation import AnswerEnd, SimAnswer
from sollol.sim.openai_routes import SimOpenAIChatWriter, SimOpenAICompletionWriter
from sollol.sim.responses_routes import SimResponsesWriter
from tests.gateway.formats.test_stream_transcripts import READERS, said_of, spoken, transcript

CASES = [case for case in READERS if case.startswith("v1")]
PROMPT_TOKENS = 20


class Speaker:
    """A server that answers every request with the stream at hand."""

    stream = b""
    url = ""


@pytest.fixture(scope="module")
def speaker() -> Iterator[Speaker]:
    found = Speaker()

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            self.rfile.read(int(self.headers["Content-Length"]))
            self.send_response(200)
            self.send_header("Content-Type", "text/event-stream")
            self.end_headers()
            self.wfile.write(found.stream)

        def log_message(self, *_: Any) -> None: ...

    with HTTPServer(("127.0.0.1", 0), Handler) as server:
        found.url = f"http://127.0.0.1:{server.server_port}/v1"
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        yield found
        server.shutdown()
        thread.join()


@contextmanager
def client_of(speaker: Speaker, stream: bytes) -> Iterator[openai.OpenAI]:
    speaker.stream = stream
    with openai.OpenAI(base_url=speaker.url, api_key="x", max_retries=0, timeout=10) as client:
        yield client


def heard_by_client(speaker: Speaker, case: str, stream: bytes) -> tuple[str, str | None, tuple[int, int] | None]:
    """Text, reason and (prompt, answer) tokens, as the client has them."""
    if case.startswith("v1-messages"):
        return read_messages(stream)
    with client_of(speaker, stream) as client:
        if case.startswith("v1-responses"):
            with client.responses.stream(model="m", input="x") as events:
                response = events.get_final_response()
            usage = response.usage
            assert response.status == "completed"
            return response.output_text, None, (usage.input_tokens, usage.output_tokens) if usage else None
        if case.startswith("v1-completions"):
            chunks = list(client.completions.create(model="m", prompt="x", stream=True))
            text = "".join(chunk.choices[0].text for chunk in chunks if chunk.choices)
            [reason] = [c.choices[0].finish_reason for c in chunks if c.choices and c.choices[0].finish_reason]
            assert len({(chunk.id, chunk.model) for chunk in chunks}) == 1
            told = [chunk.usage for chunk in chunks if chunk.usage and not chunk.choices]
            return text, reason, (told[0].prompt_tokens, told[0].completion_tokens) if told else None
        with client.chat.completions.stream(model="m", messages=[{"role": "user", "content": "x"}]) as found:
            try:
                whole: Any = found.get_final_completion()
            except openai.LengthFinishReasonError as short:  # how this helper tells that reason
                whole = short.completion
        choice, chat_usage = whole.choices[0], whole.usage
        assert choice.message.role == "assistant"
        usage_told = chat_usage and (chat_usage.prompt_tokens, chat_usage.completion_tokens)
        return choice.message.content or "", choice.finish_reason, usage_told


def read_messages(stream: bytes) -> tuple[str, str, tuple[int, int]]:
    """Blocks are begun before they are filled and ended, in order; the message begins first and ends last."""
    assert stream.endswith(b"\n\n")
    blocks: list[Any] = []
    state, last = "", {}
    for told in stream.decode().split("\n\n")[:-1]:
        name, data = told.split("\n")
        event = json.loads(data.removeprefix("data: "))
        assert name == f"event: {event['type']}"
        match event["type"]:
            case "message_start":
                assert state == ""
                state = "between"
            case "content_block_start":
                assert (state, event["index"]) == ("between", len(blocks))
                blocks.append(event["content_block"]["text"])
                state = "inside"
            case "content_block_delta":
                assert (state, event["index"]) == ("inside", len(blocks) - 1)
                blocks[-1] += event["delta"]["text"]
            case "content_block_stop":
                assert (state, event["index"]) == ("inside", len(blocks) - 1)
                state = "between"
            case "message_delta":
                assert state == "between"
                last, state = event, "told"
            case "message_stop":
                assert state == "told"
                state = "ended"
    assert state == "ended"
    usage = last["usage"]
    return "".join(blocks), last["delta"]["stop_reason"], (usage["input_tokens"], usage["output_tokens"])


def gone_on(said: PartialResponse, tokens: list[str], reason: str) -> bytes:
    """The rest of an answer, as another node's raw generate says it."""
    before = said.tokens
    lines: list[dict[str, Any]] = [{"model": "m", "response": token, "done": False} for token in tokens]
    counts = {"prompt_eval_count": PROMPT_TOKENS + before, "eval_count": len(tokens)}
    lines.append({"model": "m", "response": "", "done": True, "done_reason": reason, **counts})
    further = []
    for line in lines:
        further.append(said.translate(json.dumps(line).encode(), before, 1_500_000))
        said.add(further[-1])
    return b"".join(further)


REASONS = {"v1-messages-stream": "max_tokens", "v1-responses-stream": None}


@pytest.mark.parametrize("case", CASES)
def test_a_client_reads_an_answer_that_went_on_at_any_event(speaker: Speaker, case: str) -> None:
    events = [event + b"\n\n" for event in b"".join(transcript(case)[1]).split(b"\n\n")[:-1]]
    text = spoken(case, b"".join(events))
    gone = 0
    for place in range(1, len(events)):
        reader, said = READERS[case](), said_of(case)
        passed = reader.feed(b"".join(events[:place]))
        said.add(passed)
        if reader.close().status is Status.OK:
            assert heard_by_client(speaker, case, passed + reader.tail)[0] == text
            continue
        rest = text[len(said.text) :]
        answer = passed + gone_on(said, [rest] if rest else [], "length")
        found, reason, usage = heard_by_client(speaker, case, answer)
        assert found == text
        assert reason == REASONS.get(case, "length")
        if case not in ("v1-chat-stream", "v1-completions-stream"):  # which did not ask for it
            assert usage == (PROMPT_TOKENS, said.tokens)
        gone += 1
    assert gone >= len(text.split())


@pytest.mark.parametrize("case", CASES)
def test_a_client_reads_an_answer_whose_last_mark_we_set(speaker: Speaker, case: str) -> None:
    """The node died after the last token allowed: nobody is asked again."""
    events = [event + b"\n\n" for event in b"".join(transcript(case)[1]).split(b"\n\n")[:-1]]
    text = spoken(case, b"".join(events))
    said, passed = said_of(case), b""
    for event in events:
        said.add(event)
        passed += event
        if said.is_complete:
            break
    found, reason, usage = heard_by_client(speaker, case, passed + said.finished(1_500_000))
    assert (found, reason) == (text, REASONS.get(case, "length"))
    # Nobody told the length of the prompt: it is left out, or what the first event had told stays.
    assert usage == ((10, said.tokens) if case == "v1-messages-stream" else None)


def voiced(dialect: str, tokens: list[str], reason: str) -> tuple[list[bytes], PartialResponse, StreamParser]:
    """A node's stream of these tokens, what keeps it, and what reads it."""

    async def speak() -> list[bytes]:
        node, model = SimNode(), "m"
        voices: dict[str, Callable[[], Any]] = {
            "v1-chat": lambda: SimOpenAIChatWriter(node, model, usage=True),
            "v1-completions": lambda: SimOpenAICompletionWriter(node, model),
            "v1-messages": lambda: SimMessagesWriter(node, model, 4),
            "v1-responses": lambda: SimResponsesWriter(node, {"model": model}),
        }
        voice = voices[dialect]()
        end = AnswerEnd(reason, PROMPT_TOKENS, len(tokens), 9, 1, 2, 3)
        return [*(voice.piece(token) for token in tokens), voice.last(SimAnswer(tokens), end)]

    body = {"model": "m", "stream": True}
    user = [{"role": "user", "content": "x"}]
    dialects: dict[str, tuple[dict[str, Any], Callable[[bytes], Any], Callable[[], StreamParser]]] = {
        "v1-chat": (
            {"messages": user, "stream_options": {"include_usage": True}},
            lambda raw: v1.partial_response(Kind.CHAT, raw), v1.new_parser),
        "v1-completions": (
            {"prompt": "x"}, lambda raw: v1.partial_response(Kind.GENERATE, raw), v1.new_parser),
        "v1-messages": ({"messages": user, "max_tokens": 99}, anthropic.partial_response, anthropic.new_parser),
        "v1-responses": ({"input": "x"}, responses.partial_response, responses.new_parser),
    }  # fmt: skip
    fields, said_by, reader = dialects[dialect]
    said = said_by(json.dumps({**body, **fields}).encode())
    assert said is not None
    return asyncio.run(speak()), said, reader()


# Text that looks like what an event is known by, or that a client might cut at.
LIKE_MARKS = st.sampled_from(
    ['"finish_reason":"stop"', '"finish_reason":null', '"model":""', "\n\ndata: [DONE]\n\n", "event: message_stop\n",
     '{"error":{"message":"x"}}', "\u2028", "\u2029", "\x85", "\r\n\r\n", '"done":true', "\\", "data: ", "}\n\n", "😀"]
)  # fmt: skip
TOKENS = st.lists(st.text(min_size=1, max_size=4) | LIKE_MARKS, min_size=1, max_size=6)
ENDS = {"stop": "end_turn", "length": "max_tokens"}


@pytest.mark.parametrize("dialect", ["v1-chat", "v1-completions", "v1-messages", "v1-responses"])
@given(data=st.data(), tokens=TOKENS, reason=st.sampled_from(list(ENDS)))
@settings(max_examples=25, deadline=None)
def test_any_text_cut_anyhow_and_broken_off_anywhere(
    speaker: Speaker, dialect: str, data: st.DataObject, tokens: list[str], reason: str
) -> None:
    pieces, said, reader = voiced(dialect, tokens, reason)
    whole = b"".join(pieces)
    broken = data.draw(st.integers(0, len(whole)), "broken")
    cuts = sorted(data.draw(st.lists(st.integers(0, broken), max_size=8), "cuts"))
    passed = b""
    for begin, end in zip([0, *cuts], [*cuts, broken], strict=True):
        passed += (piece := reader.feed(whole[begin:end]))
        if piece:
            said.add(piece)
    text = "".join(tokens)
    assert text.startswith(said.text)
    if reader.close().status is Status.OK:
        answer = passed + reader.tail
        assert broken < len(whole) or answer == whole
    elif not passed:  # nothing has been said: another node is asked the same
        return
    else:
        assert said.is_exact
        answer = passed + gone_on(said, tokens[said.tokens :], reason)
    found, told, usage = heard_by_client(speaker, dialect, answer)
    assert found == text
    assert told == {"v1-messages": ENDS[reason], "v1-responses": None}.get(dialect, reason)
    if dialect != "v1-completions" and (usage is not None or broken == len(whole)):
        assert usage == (PROMPT_TOKENS, len(tokens))


@pytest.mark.parametrize("case", ["v1-chat-stream", "v1-completions-stream"])
def test_the_client_raises_what_an_error_event_tells(speaker: Speaker, case: str) -> None:
    passed = transcript(case)[1][0]
    stream = passed + b'data: {"error":{"message":"went away","type":"api_error","param":null,"code":null}}\n\n'
    reader = READERS[case]()
    assert reader.feed(stream) == passed
    assert reader.ended is not None
    assert reader.ended.message == "went away"
    with pytest.raises(openai.APIError, match="went away"):
        heard_by_client(speaker, case, stream)
