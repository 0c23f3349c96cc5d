"""An exception at every step of a call through the gateway: the client has an answer, the slot is free, a log tells.

Every method of the classes on the way raises once, at its first call, while calls of each kind are made.
"""

from __future__ import annotations

import inspect
import logging
from collections.abc import Iterator
from typing import Any

import httpx
import pytest

from sollol.backends import repetition
from sollol.engine import batch_job, jobs, stream_watch
from sollol.engine import node_aliases as aliases
from sollol.engine import resumption as continuation
from sollol.gateway import request_ids
from sollol.gateway.formats import stream_parser
from sollol.gateway.inference import embeddings, relay, single
from sollol.observe import journal, totals
from sollol.observe.attempt_log import AttemptLog
from sollol.sim import ModelSpec, sim_cluster
from sollol.transport import http
from tests.gateway.stage import MODEL, Stage, gateway_over, talker, until
from tests.marks import plain_only

EMBED = "nomic-embed-text"
OWNERS = [
    relay.WholeRelay, relay.StreamRelay, relay.StreamAttempt, relay.WholeAttempt, embeddings.RawBatch,
    single.Inference, jobs.CallJob, jobs.StreamJob, AttemptLog, batch_job.BatchJob, stream_parser.LineParser,
    stream_parser.EventParser, stream_parser.EventSplitter, repetition.Recent, journal.Journal, totals.Totals,
    aliases.Aliases, stream_watch.StreamWatch, continuation.PartialResponse, continuation.ResumeSupport,
    http.Exchange, request_ids.RequestIds,
]  # fmt: skip
LEFT_OUT = {"__repr__", "__eq__", "__hash__"}
METHODS = [
    (owner, name)
    for owner in OWNERS
    for name, member in vars(owner).items()
    if name not in LEFT_OUT and (inspect.isfunction(member) or isinstance(member, property))
]
CHAT = {"model": MODEL, "messages": [{"role": "user", "content": "a"}], "options": {"num_predict": 8}}
CALLS: list[tuple[str, dict[str, Any]]] = [
    ("/api/chat", {**CHAT, "stream": False}),
    ("/api/chat", {**CHAT, "stream": True}),
    ("/v1/chat/completions", {"model": MODEL, "messages": CHAT["messages"], "stream": True, "max_tokens": 8}),
    ("/api/embed", {"model": EMBED, "input": ["a", "b"]}),
    ("/api/embed", {"model": EMBED, "input": [f"text {number}" for number in range(80)]}),
]


class Thrown(Exception):
    """By the test."""


@pytest.fixture(scope="module")
def stage() -> Iterator[Stage]:
    models = (*talker(1).models, ModelSpec(EMBED, "embed"))
    spec = talker(1, 20_000.0, models=models, loaded=(MODEL, EMBED))
    with sim_cluster([spec, spec]) as cluster, gateway_over(cluster.urls) as made:
        yield made


def hooked(owner: type, name: str, original: Any, thrown: list[str]) -> Any:
    called: Any = original.fget if isinstance(original, property) else original

    def check() -> None:
        if not thrown:
            thrown.append(name)
            raise Thrown(f"{owner.__name__}.{name}")

    if inspect.iscoroutinefunction(called):

        async def raising_later(*args: Any, **named: Any) -> Any:
            check()
            return await called(*args, **named)

        return raising_later

    def raising(*args: Any, **named: Any) -> Any:
        check()
        return called(*args, **named)

    return property(raising) if isinstance(original, property) else raising


def is_idle(stage: Stage) -> bool:
    return stage.look(
        lambda gateway: not gateway.engine.scheduler.view().tasks and not gateway.engine.scheduler.view().attempts
    )


@plain_only  # what is compiled cannot be hooked into
@pytest.mark.parametrize(("owner", "name"), METHODS, ids=lambda part: getattr(part, "__name__", part))
def test_a_fault_at_any_step_is_an_answer(
    stage: Stage, owner: type, name: str, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.ERROR), stage.client() as client:
        for path, body in CALLS:
            thrown: list[str] = []
            with monkeypatch.context() as patch:
                patch.setattr(owner, name, hooked(owner, name, owner.__dict__[name], thrown))
                try:
                    answer = client.post(path, json=body)
                    assert answer.status_code in (200, 500, 502), answer.text
                except httpx.RemoteProtocolError:  # a stream that had begun
                    assert thrown
                until(lambda: is_idle(stage))
            if thrown:
                assert any(record.exc_info for record in caplog.records), "nothing in the log"
                caplog.clear()
        assert client.post("/api/chat", json=CALLS[0][1]).status_code == 200
    stage.look(lambda gateway: gateway.engine.scheduler.invariants())


def test_a_request_id_that_cannot_be_used_leaves_no_task_behind(stage: Stage) -> None:
    with stage.client() as client:
        for path, body in CALLS:
            answer = client.post(path, json=body, headers={"X-Sollol-Request-Id": "a b"})
            assert answer.status_code == 400, answer.text
            until(lambda: is_idle(stage))
