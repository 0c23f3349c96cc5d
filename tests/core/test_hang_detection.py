"""A runner that hangs for good, behind a node that answers every probe, and callers who do not wait to the end."""

from __future__ import annotations

import pytest

from sollol.core.actions import Start
from sollol.core.events import Cancelled, NodeLost
from sollol.core.types import SECOND
from tests.core.virtual import VirtualCluster

FAST, SLOW = "10.0.0.1:11434", "10.0.0.2:11434"


class Desk(VirtualCluster):
    """A fast and a slow node, of speeds that are learned."""

    def __init__(self) -> None:
        super().__init__()
        for key in (FAST, SLOW):
            self.add(key.partition(":")[0])
        self.now = SECOND

    def begin(self, stream: bool = False) -> str:
        """Submit a request. Return the node of its first attempt."""
        self.submit(stream=stream)
        return next(start.node for start in self.actions if isinstance(start, Start))

    def answer(self, node: str) -> None:
        self.finish(self.serial, after=SECOND // 10 if node == FAST else SECOND // 4, node=node)

    def leave_after(self, seconds: float) -> None:
        self.now += round(seconds * SECOND)
        self.feed(Cancelled(self.serial))
        self.now += SECOND // 10


@pytest.fixture
def desk() -> Desk:
    """Both nodes are known, and the fast one is chosen."""
    desk = Desk()
    for _ in range(20):
        desk.answer(desk.begin())
    assert desk.begin() == FAST
    desk.leave_after(0.01)
    return desk


def test_a_node_that_lets_callers_wait_in_vain_is_left_alone(desk: Desk) -> None:
    tried = 0
    while desk.begin() == FAST:
        tried += 1
        assert tried < 6, "it is asked for ever"
        desk.leave_after(12.0)
    assert tried == 4


def test_callers_who_leave_early_say_nothing_of_a_node(desk: Desk) -> None:
    for _ in range(20):
        assert desk.begin() == FAST
        desk.leave_after(1.0)


def test_a_node_whose_probes_hang_with_its_runner_does_not_get_every_second_call(desk: Desk) -> None:
    """Ollama waits for a hanging runner before it answers `/api/ps`, and answers again when our request is gone."""
    hung = 0
    for _ in range(60):
        if (node := desk.begin()) == FAST:
            hung += 1
            desk.now += 3 * SECOND
            desk.feed(NodeLost(FAST, "silent", False))
            node = SLOW
        desk.answer(node)
        desk.see(FAST)
    assert 1 <= hung <= 8, "one, and then a trial after each pause, which grows; each has a second attempt"


def test_one_call_lost_with_a_silent_node_is_held_against_it_for_a_moment(desk: Desk) -> None:
    assert desk.begin() == FAST
    for _ in range(2):
        desk.now += 3 * SECOND
        desk.feed(NodeLost(FAST, "silent", False))
    desk.see(FAST)
    desk.now += 3 * SECOND
    assert desk.begin() == FAST
