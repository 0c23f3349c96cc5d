"""Take the measurements of `sollol bench` through a pool, on one node or on all.

A rate is that of one batch of the given duration. Its items are found by batches that grow until one is long enough;
the pool has then measured the node's speed, and the model is loaded. All passages are equally long, so that the rates
of slow and fast nodes are comparable.
"""

from __future__ import annotations

import contextlib
import statistics
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from sollol.cli import fleet
from sollol.core.endpoint import Endpoint
from sollol.core.types import LoadedModel, canonical_model

if TYPE_CHECKING:
    from sollol.observe.batch_report import BatchReport

PASSAGE_WORDS = 120
_STEP = 7  # words from one passage to the next
_GROWTH = 8  # at most, from one batch to the next
_LONG_ENOUGH = 0.7  # share of the given duration
_WARM_UP = 0.15  # share of it, before all nodes together are measured
_PATIENCE_S = 60.0  # least timeout of a batch; else ten times the given duration
_CALLS, _CALLS_LEAST, _CALLS_S = 200, 5, 1.0
_TOKENS = 128
_TASK = "Summarise this in three sentences:"


class Plan(NamedTuple):
    """Hold the seconds of each measurement, and the most items in it."""

    seconds: float
    items: int

    @property
    def patience_s(self) -> float:
        """Return the timeout of a batch in seconds."""
        return max(_PATIENCE_S, 10 * self.seconds)

    def count(self, rate: float, least: int = 1) -> int:
        """Return the number of items that take `seconds` at a rate in items/s."""
        return min(self.items, max(least, round(rate * self.seconds)))


class Alone(NamedTuple):
    """Hold the results of one node alone.

    `load_s`: seconds until the model was in memory. `runs_on`: "GPU", "CPU", parts of both, or "unknown".
    """

    load_s: float
    report: BatchReport
    runs_on: str


class Talk(NamedTuple):
    """Hold the times of a streamed answer; None if not measured."""

    load_s: float
    first_token_s: float | None
    tokens_per_s: float | None


class CallCost(NamedTuple):
    """Hold the medians in seconds of the same call, through the pool and without it."""

    pool_s: float
    raw_s: float
    calls: int


def passages(count: int) -> list[str]:
    """Return `count` passages, always the same: windows of PASSAGE_WORDS words over the demo's texts."""
    files = sorted((Path(__file__).parent / "demo_texts").glob("*.md"))
    words = [word for file in files for word in file.read_text(encoding="utf-8").split()]
    last = len(words) - PASSAGE_WORDS
    starts = (number * _STEP % last for number in range(count))
    return [" ".join(words[start : start + PASSAGE_WORDS]) for start in starts]


def alone(endpoint: Endpoint, model: str, plan: Plan) -> Alone:
    """Measure one node alone.

    Raises:
        SollolError: The node failed.
    """
    with fleet.open_pool((endpoint,)) as pool:
        load_s = _load(pool, model)
        return Alone(load_s, _long_batch(pool, model, plan), _runs_on(pool, model))


def together(endpoints: tuple[Endpoint, ...], model: str, rate: float, plan: Plan) -> BatchReport:
    """Measure one batch over all nodes; `rate` is the expected rate in items/s.

    Raises:
        SollolError: The batch failed.
    """
    with fleet.open_pool(endpoints) as pool:
        pool.wait_ready()
        each_twice = 2 * len(endpoints)
        _batch(pool, model, max(each_twice, round(_WARM_UP * plan.count(rate))), plan)
        return _batch(pool, model, plan.count(rate, each_twice), plan)


def talk(endpoint: Endpoint, model: str, plan: Plan) -> Talk:
    """Measure a streamed answer to a question about a passage, and stop it after the given duration.

    Raises:
        SollolError: The node failed.
    """
    with fleet.open_pool((endpoint,)) as pool:
        load_s = _load(pool, model)
        pool.generate(model, "Hello", options={"num_predict": 1}, timeout=plan.patience_s)  # the first answer is slower
        return Talk(load_s, *_listen(pool, model, plan))


def call_cost(endpoint: Endpoint, model: str) -> CallCost:
    """Measure a call without inputs, by turns through the pool and directly to the node."""
    import asyncio

    from sollol.backends.ollama import encode
    from sollol.transport.base import Call
    from sollol.transport.event_loop import new_loop
    from sollol.transport.http import HttpTransport

    call = Call("POST", "/api/embed", encode({"model": model, "input": []}))
    ours: list[float] = []
    raw: list[float] = []
    with fleet.open_pool((endpoint,)) as pool, asyncio.Runner(loop_factory=new_loop) as runner:
        transport = HttpTransport()

        async def straight() -> None:
            await (await transport.send(endpoint, call)).read()

        try:
            pool.embed(model, [])
            runner.run(straight())  # both have their connection now
            began = time.perf_counter()
            while len(raw) < _CALLS_LEAST or (len(raw) < _CALLS and time.perf_counter() - began < _CALLS_S):
                marks = [time.perf_counter()]
                pool.embed(model, [])
                marks.append(time.perf_counter())
                runner.run(straight())
                marks.append(time.perf_counter())
                ours.append(marks[1] - marks[0])
                raw.append(marks[2] - marks[1])
        finally:
            runner.run(transport.aclose())
    return CallCost(statistics.median(ours), statistics.median(raw), len(raw))


def _load(pool: Any, model: str) -> float:
    """Load the model on every node of the pool, and return the seconds."""
    began = time.monotonic()
    pool.warm_model(model)
    return time.monotonic() - began


def _long_batch(pool: Any, model: str, plan: Plan) -> BatchReport:
    _batch(pool, model, 1, plan)
    count = 1
    while True:
        report = _batch(pool, model, count, plan)
        if report.seconds >= _LONG_ENOUGH * plan.seconds or count == plan.items:
            return report
        count = min(plan.count(report.items_per_s, count + 1), _GROWTH * count)


def _batch(pool: Any, model: str, count: int, plan: Plan) -> BatchReport:
    report: BatchReport = pool.embed_batch(model, passages(count), timeout=plan.patience_s).report
    return report


def _runs_on(pool: Any, model: str) -> str:
    for row in pool.ps()["models"]:
        if canonical_model(str(row["model"])) == canonical_model(model):
            return LoadedModel(row.get("size") or 0, row.get("size_vram") or 0).processor
    return "unknown"


def _listen(pool: Any, model: str, plan: Plan) -> tuple[float | None, float | None]:
    """Return the seconds to the first token, and the tokens/s after it."""
    # The number at the start is new, so that the node's prompt cache does not hold the question.
    messages = [{"role": "user", "content": f"{time.time_ns()} {_TASK} {passages(1)[0]}"}]
    began = time.monotonic()
    first = last = None
    parts = 0
    stream = pool.chat(model, messages, stream=True, options={"num_predict": _TOKENS}, timeout=plan.patience_s)
    with contextlib.closing(stream):
        for part in stream:
            now = time.monotonic()
            if part.eval_count and part.eval_duration:  # the last part has the node's exact counts
                return (first or now) - began, part.eval_count / (part.eval_duration / 1e9)
            if part.message.content or part.message.thinking:
                first, last, parts = first or now, now, parts + 1
            if first and now - first > plan.seconds:
                break
    if first is None or last is None:
        return None, None
    return first - began, (parts - 1) / (last - first) if last > first else None
