"""The report of a batch, by node and in total."""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

from sollol.core.types import Micros


class NodeShare(NamedTuple):
    """The work of one node for a batch."""

    items: int
    share: float
    items_per_s: float
    requests: int
    failed: int
    overtaken: int
    error: str = ""  # error of the last failed request


class BatchReport(NamedTuple):
    """The report of a batch.

    `fluid_bound_s` is the time that the nodes would have needed if all had been busy, at the rates measured in this
    run, until the same last moment; `efficiency` is that bound ÷ the seconds of the batch.
    """

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
    digest: str = ""  # version of the model for all vectors; "" if no node sends one
    left_out: Mapping[str, str] = {}  # node -> its version, for nodes with another version
    errors: Mapping[int, str] = {}  # position -> error, of the first failed items
    id: int = 0  # for `pool.explain`


class NodeWork:
    """Counters of one node during a batch."""

    __slots__ = ("busy_us", "error", "failed", "items", "last_end", "overtaken", "requests")

    def __init__(self) -> None:
        self.items = 0
        self.requests = 0
        self.failed = 0
        self.error = ""
        self.overtaken = 0
        self.busy_us = 0
        self.last_end: Micros = 0
