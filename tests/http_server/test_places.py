"""Places for clients, and the line of connections in virtual time: pipelined requests take only a share of it."""

from __future__ import annotations

import asyncio

import pytest

from sollol.http_server.places import (
    A_TURN,
    AHEAD_BURST_S,
    AHEAD_SHARE,
    OTHER_FILES,
    Line,
    backlog_within,
    places_within,
)
from sollol.sim import run

TURN_S = 0.002


class Work:
    """Count the seconds of all turns, which pass beside those of the loop."""

    def __init__(self) -> None:
        self.done_s = 0.0

    def now(self) -> float:
        return asyncio.get_running_loop().time() + self.done_s


class InLine:
    """A connection in line, whose turn takes two milliseconds."""

    def __init__(self, line: Line, work: Work, stands: bool) -> None:
        self.line, self.work, self.stands = line, work, stands
        self.turns = 0

    def take_turn(self) -> None:
        self.work.done_s += TURN_S
        self.turns += 1
        if self.stands:  # it has another request
            self.line.stand(self)  # type: ignore[arg-type]


def test_pipelined_requests_take_a_share_of_the_time_and_new_connections_pass_them() -> None:
    async def main() -> None:
        work = Work()
        line = Line(asyncio.get_running_loop(), work.now)
        began = work.now()
        ahead = [InLine(line, work, stands=True) for _ in range(3)]
        for connection in ahead:
            line.stand(connection)  # type: ignore[arg-type]
        while work.now() < began + 10.0:
            await asyncio.sleep(0.01)
            new = [InLine(line, work, stands=False) for _ in range(2 * A_TURN)]
            passed = [line.admit(connection) for connection in new]  # type: ignore[arg-type]
            for _ in range(4):  # turns of the loop
                await asyncio.sleep(0)
            assert all(passed[at] or one.turns for at, one in enumerate(new))
        spent_s = TURN_S * sum(connection.turns for connection in ahead)
        share_s = AHEAD_BURST_S + AHEAD_SHARE * (work.now() - began)
        assert 0.8 * share_s < spent_s <= share_s + A_TURN * TURN_S
        for connection in ahead:
            connection.stands = False

    run(main())


@pytest.mark.parametrize("files", [128, 256, 1024, 20_000, 10**9])
def test_descriptors_are_kept_for_nodes(files: int) -> None:
    places = places_within(files)
    assert places >= 1
    assert files <= 256 or 2 * places + OTHER_FILES <= files
    assert files <= 256 or places + backlog_within(files) + OTHER_FILES < files
