"""Send one request to more than one node: the first answer wins, the others are cancelled.

For calls of a pool use `AdaptiveHedging`: the pool compares a call with its prediction, and sends a hedge when the call
is late (`policies.hedging`). For other requests, `HedgingStrategy` races any function.

Hedges compete with other requests for nodes. So one is sent only after the p95 of earlier requests, and for 5 % of them
at most: hedging helps against a node that is slow once, and not against a full cluster (Dean and Barroso 2013, "The
tail at scale"). A failed request moves to the next node at once, and needs no budget.

Over 400 lines, because a program of 0.9 may use its policies, its racing of functions and its statistics.
"""

from __future__ import annotations

import asyncio
import contextvars
import inspect
import threading
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

from sollol.compat.background import check_number, wait_for
from sollol.compat.http_calls import call_async
from sollol.core.policy import Hedger
from sollol.core.state.estimators import Quantile
from sollol.core.types import Decision, Micros, Task
from sollol.duties import future_of
from sollol.errors import BadInput, DeadlineExceeded, NoNodeAvailable
from sollol.policies.hedging import BUDGET, LATE_TIMES, QUANTILE, RESERVE, SAMPLES_LEAST
from sollol.pool.keywords import accept_old, warn_once
from sollol.workload.validation import short

TIMEOUT_MS = 30_000.0
LOAD_MOST = 0.8  # share of a busy cluster, above which second attempts would delay others
URGENT_LEAST = 7
COMPLEX_LEAST = 8
LONG_MS = 1_000.0


class HedgeResult(NamedTuple):
    """The first good answer.

    `latency_ms` is the time from the request to it, `cancelled_nodes` those whose answers were cancelled, and `tried`
    has (node, reason) for each earlier failure.
    """

    winner_node: Any
    response: Any
    latency_ms: float
    num_requests_sent: int
    num_responses_received: int
    cancelled_nodes: list[Any]
    tried: list[tuple[Any, str]]


class HedgingStrategy:
    """A race of up to `num_hedges` requests at once. Can be shared by threads and tasks; learns from all of them.

    `hedge_delay_ms`: time before the next request is sent. None: the p95 of the times so far, within the budget (and at
    once with fewer than 20 times). 0: always at once. A number disables the budget. `budget`: the share of requests
    with a hedge.
    """

    def __init__(
        self,
        num_hedges: int = 2,
        hedge_delay_ms: float | None = None,
        *,
        budget: float = BUDGET,
        **old: Any,
    ) -> None:
        if isinstance(num_hedges, bool) or not isinstance(num_hedges, int) or num_hedges < 1:
            raise BadInput(f"num_hedges={short(num_hedges)}; expected how many requests may run at once, 1 or more")
        accept_old("HedgingStrategy", old, frozenset(["enable_cancellation"]))
        self.num_hedges = num_hedges
        self.hedge_delay_ms = None if hedge_delay_ms is None else check_number("hedge_delay_ms", hedge_delay_ms, 0)
        self.budget = check_number("budget", budget, 0, 1)
        self._times_s = Quantile()
        self._tokens = RESERVE
        self._lock = threading.Lock()
        self._requests = self._sent = 0

    def hedge_request(
        self,
        nodes: Sequence[Any],
        request_fn: Callable[..., Any],
        request_args: Mapping[str, Any] | None = None,
        timeout_ms: float | None = TIMEOUT_MS,
    ) -> HedgeResult:
        """Call `request_fn(node, **request_args)` for the first of `nodes`, for others when it is late or fails.

        A plain function runs in threads, which cannot be stopped: its late answers are dropped, and if it has an
        argument `cancelled`, it gets a threading.Event that is set when its answer is no longer needed. A coroutine
        function is cancelled. Blocks; inside an event loop use `hedge_request_async`.

        Raises:
            NoNodeAvailable: All nodes failed.
            DeadlineExceeded: `timeout_ms` passed (None: no limit).
        """
        return wait_for(self.hedge_request_async(nodes, request_fn, request_args, timeout_ms))

    async def hedge_request_async(
        self,
        nodes: Sequence[Any],
        request_fn: Callable[..., Any],
        request_args: Mapping[str, Any] | None = None,
        timeout_ms: float | None = TIMEOUT_MS,
    ) -> HedgeResult:
        """Run `hedge_request` on the running event loop; cancelling it cancels every request."""
        if isinstance(nodes, (str, bytes, Mapping)) or not isinstance(nodes, Sequence) or not nodes:
            raise BadInput(
                f"nodes={short(nodes)}; expected a list of one node or more, such as ['http://10.0.0.5:11434']"
            )
        if not callable(request_fn):
            raise BadInput(f"request_fn={short(request_fn)}; expected a function that is called with a node")
        if request_args is not None and not isinstance(request_args, Mapping):
            raise BadInput(f"request_args={short(request_args)}; expected a dict of keyword arguments, or None")
        timeout_s = None if timeout_ms is None else check_number("timeout_ms", timeout_ms, 1e-3) / 1000
        call = _caller(request_fn, dict(request_args or {}))
        race = _Race(list(nodes), call, timeout_s, self)
        try:
            return await race.run()
        finally:
            with self._lock:
                self._requests += 1
                self._sent += race.sent

    def get_stats(self) -> dict[str, Any]:
        """Return counts of requests and hedges, and the present delay.

        The keys are `total_requests`, `total_hedge_requests` (sent in all), `total_wasted_requests`,
        `waste_percentage`, `hedge_delay_ms` (None while unknown) and `num_hedges_per_request`.
        """
        with self._lock:
            requests, sent = self._requests, self._sent
            delay_s = (
                self._delay_s() if len(self._times_s) >= SAMPLES_LEAST or self.hedge_delay_ms is not None else None
            )
        return {
            "total_requests": requests,
            "total_hedge_requests": sent,
            "total_wasted_requests": sent - requests,
            "waste_percentage": 100.0 * (sent - requests) / sent if sent else 0.0,
            "hedge_delay_ms": None if delay_s is None else 1000 * delay_s,
            "num_hedges_per_request": self.num_hedges,
        }

    def _delay_s(self) -> float:
        if self.hedge_delay_ms is not None:
            return self.hedge_delay_ms / 1000
        late_s = self._times_s.read(QUANTILE) if len(self._times_s) >= SAMPLES_LEAST else None
        return 0.0 if late_s is None else LATE_TIMES * late_s

    def _begin(self) -> float:
        """Count a request; return the seconds after which a hedge may be sent."""
        with self._lock:
            self._tokens = min(self._tokens + self.budget, max(RESERVE, 100 * self.budget))
            return self._delay_s()

    def _withdraw(self) -> bool:
        """Take a hedge from the budget; return False if it is empty."""
        with self._lock:
            if self.hedge_delay_ms is not None:
                return True
            if self._tokens < 1:
                return False
            self._tokens -= 1
            return True

    def _learn(self, elapsed_s: float) -> None:
        """Record the seconds of an answer."""
        with self._lock:
            self._times_s.add(elapsed_s)


class AdaptiveHedging:
    """Hedging of a pool's calls. `num_hedges` 2: a late call gets a hedge; 1: no call does.

    Or a HedgingStrategy: its `hedge_delay_ms` is the time before the hedge; without one, the pool decides by its
    learned times and its budget.
    """

    def __init__(
        self,
        num_hedges: int | HedgingStrategy = 2,
        *,
        strategy: HedgingStrategy | None = None,
        base_strategy: HedgingStrategy | None = None,
    ) -> None:
        given = strategy or base_strategy or num_hedges
        self.strategy = given if isinstance(given, HedgingStrategy) else HedgingStrategy(given)
        self.num_hedges = self.strategy.num_hedges

    def request_with_hedging(
        self,
        pool: Any,
        model: str,
        messages: Sequence[Any] | None = None,
        *,
        prompt: str | None = None,
        **more: Any,
    ) -> Any:
        """Call `pool.chat(model, messages, hedge=...)`, or `pool.generate` with a `prompt`; return its answer.

        An AsyncOllamaPool returns an awaitable. Other keywords go to the pool.
        """
        pool = getattr(pool, "pool", pool)  # an IntelligentRouter has one
        if not callable(getattr(pool, "chat", None)) or not callable(getattr(pool, "generate", None)):
            raise BadInput(f"pool={short(pool)}; expected an OllamaPool or an AsyncOllamaPool")
        if (messages is None) == (prompt is None):
            raise BadInput("request_with_hedging(): expected either messages or a prompt")
        more.setdefault("hedge", self._hedge())
        if messages is None:
            return pool.generate(model, prompt, **more)
        return pool.chat(model, messages, **more)

    def should_hedge(self, task_context: Any, estimated_latency_ms: float, cluster_load: float) -> bool:
        """Return whether a request of your own is worth a second attempt.

        It is with a priority of 7 or more, if it should take a second or longer, or is complex, unless the cluster is
        more than 80 % busy. A pool compares each call with its prediction instead.
        """
        if self.num_hedges < 2 or cluster_load > LOAD_MOST:
            return False
        complexity = getattr(task_context, "complexity", None)
        complex_ = complexity == "complex" or (isinstance(complexity, int) and complexity >= COMPLEX_LEAST)
        urgent = getattr(task_context, "priority", 0) >= URGENT_LEAST
        return urgent or complex_ or (estimated_latency_ms or 0) >= LONG_MS

    def _hedge(self) -> bool | Hedger:
        if self.num_hedges > 2:
            warn_once(f"num_hedges={self.num_hedges}: a pool sends at most two copies at once; 2 is used")
        if self.num_hedges == 1:
            return False
        delay_ms = self.strategy.hedge_delay_ms
        return True if delay_ms is None else _FixedDelay(round(delay_ms * 1000))


class _FixedDelay:
    """A Hedger with the same delay for every call."""

    def __init__(self, delay_us: Micros) -> None:
        self._delay_us = delay_us

    def deposit(self, task: Task) -> None:
        """Ignore: there is no budget."""
        ...

    def learn(self, task: Task, decision: Decision, elapsed_us: Micros) -> None:
        """Ignore: the delay is fixed."""
        ...

    def after(self, task: Task, decision: Decision) -> Micros | None:
        """Return the delay in µs."""
        return self._delay_us

    def withdraw(self) -> bool:
        """Permit every hedge."""
        return True


class _Race:
    """One request and its hedges."""

    def __init__(
        self, nodes: list[Any], call: Callable[[Any], Any], timeout_s: float | None, strategy: HedgingStrategy
    ) -> None:
        self._nodes = nodes[::-1]
        self._call = call
        self._timeout_s = timeout_s
        self._strategy = strategy
        self._loop = asyncio.get_running_loop()
        self._running: dict[asyncio.Task[Any], tuple[Any, float]] = {}
        self._tried: list[tuple[Any, str]] = []
        self._next_at = 0.0
        self.sent = 0

    async def run(self) -> HedgeResult:
        began = self._loop.time()
        ends_at = began + self._timeout_s if self._timeout_s is not None else float("inf")
        delay_s = self._strategy._begin()
        self._launch(delay_s)
        try:
            while self._running:
                now = self._loop.time()
                room = self._nodes and len(self._running) < self._strategy.num_hedges
                until = min(ends_at, self._next_at) if room else ends_at
                wait_s = None if until == float("inf") else max(0.0, until - now)
                await asyncio.wait(self._running, timeout=wait_s, return_when=asyncio.FIRST_COMPLETED)
                won = self._winner()
                if won is not None:
                    return self._result(*won, began)
                now = self._loop.time()
                if now >= ends_at:
                    raise DeadlineExceeded(f"no answer in {1000 * (now - began):.0f} ms from {self._names()}")
                self._launch_next(now, delay_s)
            raise NoNodeAvailable(
                f"all {len(self._tried)} nodes failed", [(str(node), why) for node, why in self._tried]
            )
        finally:
            await self._cancel_all()

    def _launch(self, delay_s: float) -> None:
        node = self._nodes.pop()
        now = self._loop.time()
        self._running[self._loop.create_task(self._call(node))] = (node, now)
        self.sent += 1
        self._next_at = now + delay_s

    def _winner(self) -> tuple[asyncio.Task[Any], Any, float] | None:
        """Return the good answer that was sent first, None without one; record failures."""
        for task, (node, since) in list(self._running.items()):
            if not task.done():
                continue
            del self._running[task]
            error = asyncio.CancelledError("cancelled") if task.cancelled() else task.exception()
            if error is None:
                return task, node, since
            self._tried.append((node, f"{type(error).__name__}: {error}"))
        return None

    def _launch_next(self, now: float, delay_s: float) -> None:
        """Send to the next node if none runs after a failure, or if the running ones are late."""
        if not self._running and self._nodes:
            self._launch(delay_s)
        elif now >= self._next_at and self._nodes and len(self._running) < self._strategy.num_hedges:
            if self._strategy._withdraw():
                self._launch(delay_s)
            else:
                self._next_at = float("inf")

    def _result(self, task: asyncio.Task[Any], node: Any, since: float, began: float) -> HedgeResult:
        now = self._loop.time()
        self._strategy._learn(now - since)
        for _, other in self._running.values():
            if other < since:  # it took longer than the winner, which is a measurement, too
                self._strategy._learn(now - other)
        latency_ms = 1000 * (now - began)
        left = [other for other, _ in self._running.values()]
        return HedgeResult(node, task.result(), latency_ms, self.sent, len(self._tried) + 1, left, self._tried)

    async def _cancel_all(self) -> None:
        for task in self._running:
            task.cancel()
            task.add_done_callback(_forget)
        if self._running:
            await asyncio.sleep(0)  # they receive the cancellation now; their ends are not awaited

    def _names(self) -> str:
        return ", ".join(str(node) for node, _ in self._running.values()) or "any node"


def _forget(task: asyncio.Task[Any]) -> None:
    if not task.cancelled():
        task.exception()  # read, so that asyncio logs no warning


def _caller(function: Callable[..., Any], arguments: dict[str, Any]) -> Callable[[Any], Any]:
    """Return one coroutine function for plain and for coroutine functions."""
    if inspect.iscoroutinefunction(function):

        async def call(node: Any) -> Any:
            return await function(node, **arguments)

        return call

    async def call_in_thread(node: Any) -> Any:
        answer = await _in_thread(function, node, arguments)
        return await answer if inspect.isawaitable(answer) else answer

    return call_in_thread


async def _in_thread(function: Callable[..., Any], node: Any, arguments: dict[str, Any]) -> Any:
    """Run a function in a daemon thread, which blocks neither the loop nor the exit."""
    cancelled = threading.Event()
    if "cancelled" not in arguments and _takes_cancelled(function):
        arguments = {**arguments, "cancelled": cancelled}
    context = contextvars.copy_context()

    def work() -> Any:
        try:
            return context.run(function, node, **arguments)
        except BaseException as problem:
            if isinstance(problem, Exception) and not isinstance(problem, StopIteration):
                raise
            raise RuntimeError(f"{type(problem).__name__}: {problem}") from problem

    try:
        return await asyncio.wrap_future(future_of("sollol-hedge", work))
    finally:
        cancelled.set()


def _takes_cancelled(function: Callable[..., Any]) -> bool:
    try:
        return "cancelled" in inspect.signature(function).parameters
    except (TypeError, ValueError):  # builtins have none
        return False


def create_hedge_request_wrapper(
    base_url: str, endpoint: str, payload: Mapping[str, Any], timeout: float = 30
) -> Callable[[Any], Any]:
    """Return a function that sends a payload to a path of the node that it is called with.

    `base_url` is not used; `timeout` in seconds.
    """

    async def request(node: Any) -> Any:
        return await call_async(node, endpoint, dict(payload), timeout)

    return request


def hedge_embed_request(nodes: Sequence[Any], model: str, text: str, num_hedges: int = 2) -> HedgeResult:
    """Race an embedding over nodes; `response` of the result is Ollama's answer.

    Raises:
        NoNodeAvailable: All nodes failed.
    """
    request = create_hedge_request_wrapper("", "/api/embed", {"model": model, "input": text})
    return HedgingStrategy(num_hedges).hedge_request(nodes, request)


def hedge_chat_request(
    nodes: Sequence[Any], model: str, messages: Sequence[Mapping[str, Any]], num_hedges: int = 2
) -> HedgeResult:
    """Race a chat over nodes; `response` of the result is Ollama's answer.

    Raises:
        NoNodeAvailable: All nodes failed.
    """
    body = {"model": model, "messages": list(messages), "stream": False}
    return HedgingStrategy(num_hedges).hedge_request(nodes, create_hedge_request_wrapper("", "/api/chat", body))
