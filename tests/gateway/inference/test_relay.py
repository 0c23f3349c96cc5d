"""Streams through the gateway whose node dies in the middle, in every dialect: each word arrives once."""

from __future__ import annotations

import json
import math
import threading
from typing import Any

import pytest

from sollol.engine import engine, stream_watch
from sollol.policies.lateness import StallByGap
from sollol.sim import ModelSpec, NodeSpec
from sollol.sim.serve import Cluster, sim_cluster
from tests.gateway.formats.test_stream_transcripts import spoken
from tests.gateway.stage import MODEL, Stage, gateway_over, talker
from tests.marks import plain_only

WORDS = 20
QUESTION = "the small node sends the ready model and waits for it"
MESSAGES = [{"role": "user", "content": QUESTION}]
ROUTES: dict[str, tuple[str, dict[str, Any]]] = {
    "chat-stream": ("/api/chat", {"messages": MESSAGES, "options": {"num_predict": WORDS}}),
    "generate-stream": ("/api/generate", {"prompt": QUESTION, "options": {"num_predict": WORDS}}),
    "v1-chat-stream": (
        "/v1/chat/completions",
        {"messages": MESSAGES, "max_tokens": WORDS, "stream_options": {"include_usage": True}},
    ),
    "v1-completions-stream": ("/v1/completions", {"prompt": QUESTION, "max_tokens": WORDS}),
    "v1-messages-stream": ("/v1/messages", {"messages": MESSAGES, "max_tokens": WORDS}),
    "v1-responses-stream": ("/v1/responses", {"input": QUESTION, "max_output_tokens": WORDS}),
}
ENDINGS = {
    "chat-stream": b'"done":true',
    "generate-stream": b'"done":true',
    "v1-chat-stream": b"data: [DONE]\n\n",
    "v1-completions-stream": b"data: [DONE]\n\n",
    "v1-messages-stream": b"message_stop",
    "v1-responses-stream": b"response.completed",
}


def ask(stage: Stage, case: str) -> bytes:
    path, body = ROUTES[case]
    with stage.client() as client:
        answer = client.post(path, json={"model": MODEL, "stream": True, **body})
    assert answer.status_code == 200, answer.text
    return answer.content


def unbroken(case: str, continues: bool) -> str:
    with sim_cluster([talker(1, continues=continues)]) as nodes, gateway_over(nodes.urls) as stage:
        return spoken(case, ask(stage, case))


def break_all(nodes: Cluster, place: int, fault: str, after: int) -> None:
    def switch(found: list[Any]) -> None:
        getattr(found[place], fault)(after)

    nodes.do(switch)


@pytest.mark.parametrize("continues", [False, True])
@pytest.mark.parametrize("fault", ["cut_after", "late_error_after"])
@pytest.mark.parametrize("case", ROUTES)
def test_another_node_goes_on(case: str, fault: str, continues: bool) -> None:
    right = unbroken(case, continues)
    # The faster node is asked first, and fails in the middle.
    specs = [talker(1, 400.0, continues=continues), talker(2, 100.0, continues=continues)]
    with sim_cluster(specs) as nodes, gateway_over(nodes.urls) as stage:
        for after in (1, 7, WORDS - 1, WORDS):
            break_all(nodes, 0, fault, after)
            answer = ask(stage, case)
            assert spoken(case, answer) == right
            assert ENDINGS[case] in answer
            if case in ("chat-stream", "generate-stream"):
                assert json.loads(answer.splitlines()[-1])["eval_count"] == WORDS
        moved = stage.look(
            lambda gateway: [row for row in gateway.engine.recorder.history.recent() if row.attempts > 1]
        )
        assert moved


@pytest.mark.parametrize("case", ROUTES)
def test_an_answer_that_cannot_go_on_ends_as_an_error(case: str) -> None:
    with sim_cluster([talker(1)]) as nodes, gateway_over(nodes.urls) as stage:
        break_all(nodes, 0, "cut_after", 7)
        answer = ask(stage, case)
        assert ENDINGS[case] not in answer
        assert b"error" in answer


def test_before_the_first_byte_a_failure_is_not_seen() -> None:
    with sim_cluster([talker(1, 400.0), talker(2, 100.0)]) as nodes, gateway_over(nodes.urls) as stage:
        nodes.do(lambda found: found[0].error_rate(1.0))
        for case in ROUTES:
            assert ENDINGS[case] in ask(stage, case)
        assert not stage.look(lambda gateway: gateway.pool.get_stats()["failed_requests"])


TOOL = {"name": "look", "description": "", "parameters": {"type": "object", "properties": {}}}
TOOLS: dict[str, dict[str, Any]] = {
    "chat-stream": {"tools": [{"type": "function", "function": TOOL}]},
    "v1-chat-stream": {"tools": [{"type": "function", "function": TOOL}]},
    "v1-messages-stream": {"tools": [{"name": "look", "input_schema": {"type": "object"}}]},
    "v1-responses-stream": {"tools": [{"type": "function", **TOOL}]},
}


@pytest.fixture
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(engine, "StallByGap", lambda: StallByGap(least_us=300_000))
    monkeypatch.setattr(stream_watch, "LEAST_S", 0.3)
    monkeypatch.setattr(stream_watch, "LOOK_S", 0.1)


def ask_with_a_pause(nodes: Cluster, stage: Stage, case: str, **more: Any) -> bytes:
    """The nodes fall silent after three words, for four times as long as a stream is trusted."""
    nodes.do(lambda found: [node.stall_after(3) for node in found])
    healing = threading.Timer(1.2, lambda: nodes.do(lambda found: [node.heal() for node in found]))
    healing.start()
    path, body = ROUTES[case]
    with stage.client() as client:
        answer = client.post(path, json={"model": MODEL, "stream": True, **body, **more})
    healing.join()
    assert answer.status_code == 200, answer.text
    return answer.content


@plain_only
@pytest.mark.usefixtures("impatient")
@pytest.mark.parametrize("case", ROUTES)
def test_silence_on_the_only_node_is_waited_for(case: str) -> None:
    right = unbroken(case, False)
    with sim_cluster([talker(1)]) as nodes, gateway_over(nodes.urls) as stage:
        answer = ask_with_a_pause(nodes, stage, case)
        assert spoken(case, answer) == right
        assert ENDINGS[case] in answer


@plain_only
@pytest.mark.usefixtures("impatient")
@pytest.mark.parametrize("case", TOOLS)
def test_silence_while_a_tool_call_is_composed_is_waited_for(case: str) -> None:
    with sim_cluster([talker(1), talker(2)]) as nodes, gateway_over(nodes.urls) as stage:
        answer = ask_with_a_pause(nodes, stage, case, **TOOLS[case])
        assert ENDINGS[case] in answer
        assert stage.look(lambda gateway: gateway.engine.recorder.history.recent()[-1].attempts) == 1


@plain_only
@pytest.mark.usefixtures("impatient")
@pytest.mark.parametrize("case", ROUTES)
def test_a_silent_stream_is_gone_on_with_elsewhere(case: str) -> None:
    right = unbroken(case, False)
    with sim_cluster([talker(1, 400.0), talker(2, 100.0)]) as nodes, gateway_over(nodes.urls) as stage:
        break_all(nodes, 0, "stall_after", 3)
        answer = ask(stage, case)
        assert spoken(case, answer) == right
        assert ENDINGS[case] in answer


# --- answers that only repeat themselves -----------------------------------------------------------------------------

LENGTH = {
    "chat-stream": b'"done_reason":"length"',
    "generate-stream": b'"done_reason":"length"',
    "v1-chat-stream": b'"finish_reason":"length"',
    "v1-completions-stream": b'"finish_reason":"length"',
    "v1-messages-stream": b'"stop_reason":"max_tokens"',
    "v1-responses-stream": b'"status":"completed"',
}
ENDLESS: dict[str, dict[str, Any]] = {
    "chat-stream": {"options": {}},
    "generate-stream": {"options": {}},
    "v1-chat-stream": {"max_tokens": None},
    "v1-completions-stream": {"max_tokens": None},
    "v1-messages-stream": {"max_tokens": 1000},
    "v1-responses-stream": {"max_output_tokens": None},
}


def repeater(number: int) -> NodeSpec:
    model = ModelSpec(MODEL, size_bytes=2_000_000_000, tools=True, mean_words=math.inf, words=(".",))
    return talker(number, 3000.0, models=(model,))


@pytest.mark.parametrize("more", [{}, {"a_field_to_come": 1}], ids=["plain", "no other node could go on"])
@pytest.mark.parametrize("case", ROUTES)
def test_an_answer_that_only_repeats_itself_is_an_end(case: str, more: dict[str, Any]) -> None:
    path, body = ROUTES[case]
    more = {**ENDLESS[case], **more}
    with sim_cluster([repeater(1), repeater(2)]) as nodes, gateway_over(nodes.urls) as stage:
        for _ in range(25):  # more than the budget of retries
            with stage.client() as client:
                answer = client.post(path, json={"model": MODEL, "stream": True, **body, **more}).content
            assert spoken(case, answer).endswith("." * 30)
            if case != "v1-responses-stream" or "a_field_to_come" not in more:  # its end repeats all of its parts
                assert ENDINGS[case] in answer
                assert LENGTH[case] in answer
            assert b'"error":{' not in answer
            assert b'{"error"' not in answer
        assert stage.look(lambda gateway: {row.attempts for row in gateway.engine.recorder.history.recent()}) == {1}
        assert not stage.look(lambda gateway: gateway.pool.get_stats()["failed_requests"])
