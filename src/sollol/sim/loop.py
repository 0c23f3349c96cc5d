"""Run asyncio in virtual time, through its public interface: the selector is the clock.

A test of a scheduler that waits five minutes must not take five minutes, and must do the same thing every time. asyncio
waits for t seconds in its selector; this selector returns at once and advances its clock by t. Nothing is patched, so
all production code (tasks, timeouts, queues) runs unchanged.

Time is an integer of microseconds, because sums of floats drift apart between runs of different shape. asyncio compares
floats, so a timer for microsecond u is filed a little before u, by its turn. A clock that stands at u then finds
everything of u due at once, in the order in which it was set, or in an order drawn from the seed (which shows code that
depends on ties). The little is 2^-18 of a microsecond, so the order is exact for the first 100,000 timers of a
microsecond and the first nine hours; later it is still the same every time.

Threads, name look-up, sockets, signals and subprocesses raise OutsideSimulation. A wait that no timer can end raises
SimulationDeadlock with the names of the waiting tasks.
"""

from __future__ import annotations

import asyncio
import math
import random
import selectors
from collections.abc import Callable, Coroutine
from contextvars import Context
from typing import Any, NoReturn, TypeVar

T = TypeVar("T")

_STEP = 2.0**-18  # of a microsecond, between two timers of the same microsecond
_EARLY = 0.45  # how much before its microsecond the first of them is filed
_TURNS = int(0.4 / _STEP)
_SHOWN_TASKS = 8


class SimulationDeadlock(RuntimeError):
    """Every task waits and no timer is pending, so none can wake."""


class OutsideSimulation(RuntimeError):
    """Code under simulated time has used a thread, a socket or another real resource."""


class _ClockSelector(selectors.SelectSelector):
    """Advance the clock instead of waiting. `waiting_tasks` describes a deadlock."""

    def __init__(self, waiting_tasks: Callable[[], str]) -> None:
        super().__init__()
        self.now_us = 0
        self._waiting_tasks = waiting_tasks

    def select(self, timeout: float | None = None) -> list[tuple[selectors.SelectorKey, int]]:
        if timeout is None:
            raise SimulationDeadlock(f"deadlock at t={self.now_us / 1e6:.6f}s: {self._waiting_tasks()}")
        if timeout > 0:
            self.now_us += max(1, math.ceil(timeout * 1e6 - 0.02))
        return []


class SimLoop(asyncio.SelectorEventLoop):
    """Run an event loop on which a simulated hour takes as long as its callbacks.

    `seed` draws the order of timers that are due in the same microsecond; None keeps the order they were set in.
    """

    def __init__(self, seed: int | None = None) -> None:
        self._clock = _ClockSelector(self._waiting_tasks)
        super().__init__(self._clock)
        self._dice = None if seed is None else random.Random(seed)
        self._turns: dict[int, int] = {}

    @property
    def now_us(self) -> int:
        """Return the virtual microseconds since the loop was made."""
        return self._clock.now_us

    def time(self) -> float:
        """Return the virtual seconds since the loop was made."""
        return self._clock.now_us / 1e6

    def call_at(  # type: ignore[override]  # the stub has a TypeVarTuple
        self, when: float, callback: Callable[..., object], *args: Any, context: Context | None = None
    ) -> asyncio.TimerHandle:
        """Call back at a virtual time, rounded to a microsecond."""
        at_us = max(round(when * 1e6), self._clock.now_us)
        filed = (at_us - _EARLY + self._turn(at_us)) / 1e6
        return super().call_at(filed, callback, *args, context=context)

    def _turn(self, at_us: int) -> float:
        if self._dice is not None:
            return self._dice.random() * 0.4
        turn = self._turns.get(at_us, 0)
        self._turns[at_us] = turn + 1
        if len(self._turns) > 200_000:
            self._forget_past()
        return min(turn, _TURNS) * _STEP

    def _forget_past(self) -> None:
        now = self._clock.now_us
        self._turns = {at: turn for at, turn in self._turns.items() if at >= now}

    def _waiting_tasks(self) -> str:
        names = sorted(
            f"{task.get_name()} ({getattr(task.get_coro(), '__qualname__', '?')})" for task in asyncio.all_tasks(self)
        )
        more = f" and {len(names) - _SHOWN_TASKS} more" if len(names) > _SHOWN_TASKS else ""
        return f"{len(names)} tasks wait and no timer is set: {', '.join(names[:_SHOWN_TASKS])}{more}"


def _refusal(name: str) -> Callable[..., NoReturn]:
    def refuse(self: SimLoop, *args: Any, **kwargs: Any) -> NoReturn:
        raise OutsideSimulation(f"loop.{name}() does not exist in simulated time; use the simulated transport")

    refuse.__name__ = name
    return refuse


_OUTSIDE = """
    run_in_executor getaddrinfo getnameinfo create_connection create_server create_datagram_endpoint
    create_unix_connection create_unix_server connect_accepted_socket connect_read_pipe connect_write_pipe
    sock_recv sock_recv_into sock_recvfrom sock_sendall sock_sendto sock_connect sock_accept sock_sendfile
    sendfile start_tls subprocess_shell subprocess_exec add_reader add_writer add_signal_handler
"""
for _name in _OUTSIDE.split():
    setattr(SimLoop, _name, _refusal(_name))


def run(main: Coroutine[Any, Any, T], *, seed: int | None = None) -> T:
    """Run `main` in simulated time from t=0 and return its result. Tasks left running are cancelled."""
    with asyncio.Runner(loop_factory=lambda: SimLoop(seed)) as runner:
        return runner.run(main)
