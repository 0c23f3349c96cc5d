"""What is written at the end of a turn of the loop: in order, once, and never to a connection that has gone."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine
from typing import Any

from sollol.transport.outbox import Outbox, Writer
from tests.transport.raw_server import run as run_on


def on_loop(test: Callable[[], Coroutine[Any, Any, None]]) -> Callable[[], None]:
    def run() -> None:
        run_on(asyncio.new_event_loop, test())

    return run


class Wire:
    def __init__(self, told: list[tuple[str, bytes]], name: str) -> None:
        self._told = told
        self._name = name

    def write(self, data: bytes) -> None:
        self._told.append((self._name, data))


def writers(told: list[tuple[str, bytes]], *names: str) -> list[Writer]:
    loop = asyncio.get_running_loop()
    outbox, made = Outbox(loop), []
    for name in names:
        writer = Writer(loop, outbox)
        writer._transport = Wire(told, name)
        made.append(writer)
    return made


@on_loop
async def test_what_is_put_off_is_written_when_the_turn_ends() -> None:
    told: list[tuple[str, bytes]] = []
    first, second = writers(told, "first", "second")
    first.defer_write(b"1")
    second.defer_write(b"2")
    assert told == []
    assert first.outbox.waiting
    await asyncio.sleep(0)
    assert told == [("first", b"1"), ("second", b"2")]
    assert not first.outbox.waiting
    await asyncio.sleep(0)
    assert len(told) == 2


@on_loop
async def test_one_connection_keeps_its_order() -> None:
    told: list[tuple[str, bytes]] = []
    (writer,) = writers(told, "only")
    writer.defer_write(b"1")
    writer.defer_write(b"2")  # the answer to a request that was sent ahead, say
    assert told == [("only", b"1")]
    writer.flush()
    assert told == [("only", b"1"), ("only", b"2")]
    await asyncio.sleep(0)
    assert len(told) == 2


@on_loop
async def test_nothing_is_written_to_a_connection_that_has_gone() -> None:
    told: list[tuple[str, bytes]] = []
    gone, here = writers(told, "gone", "here")
    gone.defer_write(b"1")
    here.defer_write(b"2")
    transport: Any = None
    gone._transport = transport
    await asyncio.sleep(0)
    assert told == [("here", b"2")]
