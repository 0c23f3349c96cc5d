"""How a batch went, by node and as a whole."""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

from sollol.core.types import Micros


class NodeShare(NamedTuple):
    """What one node did for a batch."""

    items: int
    share: float
    items_per_s: float
    requests: int
    failed: int
    overtaken: int
    error: str = ""  # of its last failed request


class BatchReport(NamedTuple):
    """How a batch went. `fluid_bound_s` is the time that the nodes would have needed if all had been busy, at the
    rates measured in this run, until the same last moment; `efficiency` is that bound ÷ the seconds it took."""

    items: int
    failed: int
    seconds: float
    items_per_s: float
    nodes: dict[str, NodeShare]
    requests: int
    retries: int
    takeovers: int
    fluid_bound_s: float
    efficiency: float
    digest: str = ""  # the version of the model that all vectors come from; "" where no node tells
    left_out: Mapping[str, str] = {}  # node that has another version -> that version
    errors: Mapping[int, str] = {}  # of the first failed items, by position
    id: int = 0  # for `pool.explain`


class NodeWork:
    __slots__ = ("busy_us", "error", "failed", "items", "last_end", "overtaken", "requests")

    def __init__(self) -> None:
        self.items = 0
        self.requests = 0
        self.failed = 0
        self.error = ""
        self.overtaken = 0
        self.busy_us = 0
        self.last_end: Micros = 0
