"""Simulated time: what it does with timers, and what it refuses."""

from __future__ import annotations

import asyncio
import socket
import time

import pytest

from sollol.sim import OutsideSimulation, SimLoop, SimulationDeadlock, run

CENTURY_S = 100 * 365.25 * 86400.0


def test_a_century_takes_no_time() -> None:
    async def main() -> float:
        await asyncio.sleep(CENTURY_S)
        return asyncio.get_running_loop().time()

    assert run(main()) == CENTURY_S


def test_the_clock_is_whole_microseconds() -> None:
    async def main() -> None:
        loop = asyncio.get_running_loop()
        assert isinstance(loop, SimLoop)
        for _ in range(1000):
            await asyncio.sleep(0.1)
            assert loop.time() * 1e6 == pytest.approx(loop.now_us, abs=1e-3)
        assert loop.now_us == 100_000_000  # the float sum of a thousand tenths is not 100

    run(main())


@pytest.mark.parametrize("count", [10, 5000])
def test_timers_of_one_microsecond_run_in_the_order_they_were_set(count: int) -> None:
    async def main() -> list[int]:
        loop = asyncio.get_running_loop()
        found: list[int] = []
        for i in range(count):
            loop.call_later(0.5, found.append, i)
        await asyncio.sleep(1)
        return found

    assert run(main()) == list(range(count))


def test_a_seed_draws_another_order_and_always_the_same() -> None:
    async def main() -> list[int]:
        loop = asyncio.get_running_loop()
        found: list[int] = []
        for i in range(10):
            loop.call_later(0.5, found.append, i)
        await asyncio.sleep(1)
        return found

    assert run(main(), seed=1) == run(main(), seed=1)
    assert run(main(), seed=1) != run(main(), seed=2)
    assert sorted(run(main(), seed=1)) == list(range(10))


def test_a_timer_never_runs_early_nor_in_another_microsecond() -> None:
    async def main() -> None:
        loop = asyncio.get_running_loop()
        assert isinstance(loop, SimLoop)
        seen: list[tuple[int, int]] = []
        for us in (1, 2, 3, 1000, 999_999, 1_000_000, 123_456_789, 86_400_000_000 * 3):
            loop.call_at(us / 1e6, lambda us=us: seen.append((us, loop.now_us)))
        await asyncio.sleep(86_400 * 4)
        assert len(seen) == 8
        assert all(wanted == got for wanted, got in seen)

    run(main())


def test_what_is_due_in_the_past_runs_now() -> None:
    async def main() -> None:
        loop = asyncio.get_running_loop()
        await asyncio.sleep(5)
        done = asyncio.Event()
        loop.call_at(1.0, done.set)
        await done.wait()
        assert loop.time() == 5.0

    run(main())


def test_asyncio_timeouts_work() -> None:
    async def main() -> float:
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(2.5):
                await asyncio.sleep(10)
        with pytest.raises(TimeoutError):
            await asyncio.wait_for(asyncio.Event().wait(), 1)
        return asyncio.get_running_loop().time()

    assert run(main()) == 3.5


def test_a_wait_that_nothing_ends_is_a_deadlock_with_names() -> None:
    async def stuck() -> None:
        await asyncio.get_running_loop().create_future()

    async def main() -> None:
        await asyncio.sleep(1)
        await asyncio.create_task(stuck(), name="the-stuck-one")

    with pytest.raises(SimulationDeadlock, match=r"t=1\.000000s: 2 tasks.*the-stuck-one"):
        run(main())


def test_the_outside_world_refuses() -> None:
    async def main() -> None:
        loop = asyncio.get_running_loop()
        with pytest.raises(OutsideSimulation, match="run_in_executor"):
            await asyncio.to_thread(time.monotonic)
        with pytest.raises(OutsideSimulation, match="getaddrinfo"):
            await loop.getaddrinfo("localhost", 80)
        with pytest.raises(OutsideSimulation, match="create_connection"):
            await asyncio.open_connection("127.0.0.1", 80)
        with pytest.raises(OutsideSimulation, match="create_server"):
            await asyncio.start_server(lambda r, w: None, "127.0.0.1", 0)
        with socket.socket() as plain, pytest.raises(OutsideSimulation, match="sock_connect"):
            await loop.sock_connect(plain, ("127.0.0.1", 80))
        with pytest.raises(OutsideSimulation, match="subprocess_exec"):
            await asyncio.create_subprocess_exec("true")

    run(main())


def test_what_is_left_running_is_cancelled() -> None:
    async def main() -> asyncio.Task[None]:
        return asyncio.create_task(asyncio.sleep(1e9))

    assert run(main()).cancelled()
