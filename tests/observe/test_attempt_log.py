"""The record of attempts: each that did not answer has a reason in words."""

from __future__ import annotations

import pytest

from sollol.core.actions import Start
from sollol.core.types import OK, Decision, Kind, Outcome, Status, Task
from sollol.observe.attempt_log import AttemptLog


@pytest.mark.parametrize(
    ("first", "last", "why"),
    [
        (Outcome(Status.LEFT), Outcome(OK), "another node answered first"),
        (Outcome(Status.FAILED, "refused the connection"), Outcome(OK), "refused the connection"),
        (Outcome(Status.LEFT), Outcome(Status.LEFT), ""),  # the caller left; the task has that as its error
    ],
)
def test_an_attempt_that_lost_to_another_node_tells_so(first: Outcome, last: Outcome, why: str) -> None:
    log = AttemptLog(Task(1, Kind.CHAT, "llama3.2:latest"))
    for number, (node, outcome) in enumerate([("a:11434", first), ("b:11434", last)]):
        start = Start(number, 1, node, Decision(node, 1000, "finishes first of 2"))
        log.attempts.append((start, outcome, 0, 1000 * (number + 1)))
    assert log.record(1)["tried"][0]["why"] == why
