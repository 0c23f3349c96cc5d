"""Requests at the same time share one query to the nodes, and a slow node keeps its last list."""

from __future__ import annotations

import asyncio

import pytest

from sollol.gateway.shared_queries import SharedQueries
from sollol.transport.base import Fault, TransportFault


def test_a_query_under_way_is_shared_and_the_next_one_is_new() -> None:
    async def main() -> None:
        queries, sent, go = SharedQueries(), [0], asyncio.Event()

        async def query() -> int:
            sent[0] += 1
            await go.wait()
            return sent[0]

        waiting = [asyncio.create_task(queries.run("tags", query)) for _ in range(3)]
        await asyncio.sleep(0)
        waiting[0].cancel()  # a client that leaves
        go.set()
        assert await asyncio.gather(*waiting[1:]) == [1, 1]
        assert await queries.run("tags", query) == 2

    asyncio.run(main())


def test_its_error_reaches_everybody_who_waits() -> None:
    async def main() -> None:
        async def query() -> int:
            raise TransportFault(Fault.CONNECT, "no node")

        queries = SharedQueries()
        found = await asyncio.gather(*(queries.run("tags", query) for _ in range(3)), return_exceptions=True)
        assert [str(each) for each in found] == ["no node"] * 3

    asyncio.run(main())


LATE = TransportFault(Fault.IDLE_TIMEOUT, "late")
REFUSED = TransportFault(Fault.CONNECT, "refused")


@pytest.mark.parametrize(
    ("path", "second", "expected"),
    [
        ("/api/tags", LATE, {"models": 1}),
        ("/v1/models", LATE, {"models": 1}),
        ("/api/tags", REFUSED, REFUSED),
        ("/api/ps", LATE, LATE),  # not read from a disk
        ("/api/tags", {"models": 2}, {"models": 2}),
    ],
)
def test_a_node_that_is_too_slow_keeps_its_last_list(path: str, second: object, expected: object) -> None:
    queries = SharedQueries()
    queries.with_last_lists(path, {"a": {"models": 1}})
    assert queries.with_last_lists(path, {"a": second}) == {"a": expected}
