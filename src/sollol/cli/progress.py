"""Show the progress of `sollol embed`: a live table on a terminal, else a line every few seconds.

Documents are read while others are embedded, so the total is an estimate until all are read. It is marked with "about"
until then. Table and lines use the same snapshot.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Mapping
from types import TracebackType
from typing import Any, NamedTuple

from rich.console import Group, RenderableType
from rich.live import Live
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from sollol.cli.console import note, plural, seconds, stderr, table

_WINDOW_S = 10.0  # the rate is that of the last seconds, so that it follows changes of the nodes
_PLAIN_EVERY_S = 5.0
_LIVE_HZ = 5.0
LOOKS = 50  # samples of the recent length of passages: ten seconds of a live table


class Count(NamedTuple):
    """Hold the passages done and in total (an estimate unless `exact`), and the vectors received."""

    done: int
    total: float
    exact: bool
    embedded: int
    done_cost: float = 0.0  # in cost units, to which time is proportional
    total_cost: float = 0.0  # an estimate as well; 0: unknown


class NodeRow(NamedTuple):
    """Hold the row of a node in a table of progress."""

    node: str
    items: int
    share: float  # of all items, 0 to 1
    items_per_s: float
    state: str


def node_rows(stats: Mapping[str, Any]) -> list[NodeRow]:
    """Return the rows of `pool.get_stats()`, the busiest node first."""
    nodes: Mapping[str, Mapping[str, Any]] = stats.get("node_performance", {})
    whole = sum(int(node.get("items", 0)) for node in nodes.values()) or 1
    rows = [
        NodeRow(
            name,
            int(node.get("items", 0)),
            int(node.get("items", 0)) / whole,
            float(node.get("batch_throughput") or 0.0),
            _state(node),
        )
        for name, node in nodes.items()
    ]
    return sorted(rows, key=lambda row: (-row.items, row.node))


def _state(node: Mapping[str, Any]) -> str:
    if not node.get("available", True):
        return "down"
    return "working" if node.get("active_requests") else "idle"


def node_table(rows: list[NodeRow]) -> Table:
    """Return the rows as a table."""
    made = table("node", "items", "share", "items/s", "state", right=("items", "share", "items/s"))
    for row in rows:
        rate = f"{row.items_per_s:,.1f}" if row.items_per_s else "-"
        style = "red" if row.state == "down" else None
        made.add_row(row.node, f"{row.items:,}", f"{row.share:.0%}", rate, row.state, style=style)
    return made


class Progress:
    """Show the progress of a run, as a context manager; call `tick()` after each result."""

    def __init__(self, count: Callable[[], Count], stats: Callable[[], Mapping[str, Any]]) -> None:
        self._count, self._stats = count, stats
        self._started = time.monotonic()
        self._marks: deque[tuple[float, int]] = deque([(self._started, 0)])
        self._lengths: deque[tuple[int, float]] = deque()  # passages and cost done, of the last looks
        self._share = 0.0
        self._share_done = 0
        self._noted_at = self._started
        console = stderr()
        self._live = (
            Live(console=console, get_renderable=self._picture, refresh_per_second=_LIVE_HZ, transient=True)
            if console.is_terminal
            else None
        )

    def __enter__(self) -> Progress:
        if self._live:
            self._live.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._live:
            self._live.stop()

    @property
    def elapsed_s(self) -> float:
        """Return the seconds since the start."""
        return time.monotonic() - self._started

    def tick(self) -> None:
        """Print a line if there is no live table and the last line is old enough."""
        now = time.monotonic()
        if self._live is None and now - self._noted_at >= _PLAIN_EVERY_S:
            self._noted_at = now
            rows = node_rows(self._stats())
            nodes = ", ".join(f"{r.node} {r.share:.0%} ({r.state})" for r in rows)
            note(f"{self._sentence(self._count())}; {nodes}")

    def _rate(self, embedded: int) -> float:
        now = time.monotonic()
        self._marks.append((now, embedded))
        while len(self._marks) > 2 and self._marks[1][0] < now - _WINDOW_S:
            self._marks.popleft()
        (then, before), span = self._marks[0], now - self._marks[0][0]
        return (embedded - before) / span if span > 0 and then < now else 0.0

    def _shown_share(self, count: Count) -> float:
        """Return the share that is done, 0 to 1, never less than before.

        After the estimate has grown, the rest of the bar covers the rest of the work.
        """
        raw = count.done / count.total
        left_before = count.total - self._share_done
        if raw < self._share and left_before > 0:
            step = (count.done - self._share_done) / left_before
            raw = self._share + (1.0 - self._share) * min(1.0, max(0.0, step))
        self._share_done = count.done
        self._share = max(self._share, min(raw, 1.0))
        return self._share

    def _left_s(self, count: Count, rate: float) -> float:
        """Return the seconds that are left, by the recent length of passages."""
        left = max(0.0, count.total - count.done)
        self._lengths.append((count.done, count.done_cost))
        if len(self._lengths) > LOOKS:
            self._lengths.popleft()
        (before, cost), (done, now) = self._lengths[0], self._lengths[-1]
        if count.total_cost and done > before and now > cost:
            usual = (now - cost) / (done - before)
            left = max(0.0, count.total_cost - count.done_cost) / usual
        return left / rate

    def _sentence(self, count: Count) -> str:
        rate = self._rate(count.embedded)
        about = "" if count.exact else "about "
        share = f" ({_percent(self._shown_share(count))})" if count.total else ""
        left = f", {seconds(self._left_s(count, rate))} left" if rate and count.total else ""
        total = f"{about}{plural(round(count.total), 'passage')}" if count.total else "? passages"
        return f"{count.done:,} of {total}{share}, {rate:,.1f}/s{left}"

    def _picture(self) -> RenderableType:
        count = self._count()
        sentence = self._sentence(count)
        bar = ProgressBar(total=1.0, completed=self._share, width=40)
        line = Table.grid(padding=(0, 1))
        line.add_row(bar, Text(sentence))
        return Group(line, node_table(node_rows(self._stats())))


def _percent(share: float) -> str:
    return f"{share:.0%}" if share >= 1.0 else f"{min(share, 0.99):.0%}"


class Steps:
    """Show the present step of a run, as a context manager.

    On a terminal one line changes; elsewhere each step is a line.
    """

    def __init__(self) -> None:
        console = stderr()
        self._status = console.status("") if console.is_terminal else None

    def __enter__(self) -> Steps:
        if self._status:
            self._status.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._status:
            self._status.stop()

    def say(self, step: str) -> None:
        """Show a step."""
        if self._status:
            self._status.update(Text(step))
        else:
            note(step)
