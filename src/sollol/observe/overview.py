"""Define what the dashboard shows: a snapshot with a verdict, findings, events, and the work of the last seconds."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from msgspec import Struct

from sollol.observe.cluster_events import ClusterEvent
from sollol.observe.findings import ERROR, INFO, WARNING, Finding, duration
from sollol.observe.rows import Snapshot


class Verdict(Struct):
    """Report one sentence about the cluster, and its severity."""

    severity: str  # "ok", or that of the worst finding
    text: str


class Overview(Snapshot, kw_only=True):
    """Report a snapshot with its verdict, findings and events.

    Attributes:
        latest: The work of the last intervals as columns; None where none is measured.
        spans: The spans of `pool.series`.
        applications: Sums and processes of the applications that share a Redis; None without one.
    """

    verdict: Verdict
    findings: list[Finding]
    events: list[ClusterEvent]
    latest: dict[str, Any] | None
    spans: list[str]
    applications: dict[str, Any] | None = None


def verdict(snapshot: Snapshot, found: Sequence[Finding], first_token_s: float | None) -> Verdict:
    """Return one sentence about the cluster, and its severity."""
    starts = "" if first_token_s is None else f" A new chat starts in {_short(first_token_s)}."
    worst = [finding for finding in found if finding.severity == ERROR] or [f for f in found if f.severity == WARNING]
    if worst:
        more = len(worst) - 1
        others = f" And {more} more like it." if more else ""
        return Verdict(worst[0].severity, worst[0].summary + others + starts)
    up = sum(node.state == "up" for node in snapshot.nodes)
    if not up:
        return Verdict(INFO, "The nodes have not answered yet.")
    return Verdict("ok", f"All well: {up} {'node' if up == 1 else 'nodes'} up.{starts}")


def _short(seconds: float) -> str:
    return f"{seconds * 1000:.0f} ms" if seconds < 1 else f"{seconds:.1f} s" if seconds < 10 else duration(seconds)
