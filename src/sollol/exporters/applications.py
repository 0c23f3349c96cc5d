"""Applications that share a Redis: what each process publishes of itself, and how a reader sums it up.

Keys: `sollol:members` is a set of ids, `sollol:member:ID` a JSON object that expires soon after its process has ended,
`sollol:requests` a bounded stream of JSON lists of finished requests.
"""

from __future__ import annotations

import os
import secrets
import socket
import time
from collections import deque
from collections.abc import Iterable, Mapping
from typing import Any, Final

import msgspec

from sollol.errors import SollolError
from sollol.observe.metrics import APPS_MOST, OTHER
from sollol.observe.request_record import RequestRecord

MEMBERS: Final = "sollol:members"
MEMBER: Final = "sollol:member:"
REQUESTS: Final = "sollol:requests"
EXPIRES_S: Final = 10  # after its last message, a process counts as gone
MEMBERS_MOST: Final = 1_000  # processes that a reader takes in
SPAN_S: Final = 10.0  # over which rates are taken
RECENT: Final = 20  # finished requests that a reader shows
TIMEOUT_S: Final = 1.0


class CannotConnect(SollolError):
    """Report that the shared Redis cannot be used with these settings."""


Totals = Mapping[str, tuple[int, int, int]]  # requests, failed and tokens by application


class AppWork(msgspec.Struct, frozen=True):
    """Count the finished requests of one application in one process, since its start and per second."""

    requests: int = 0
    failed: int = 0
    tokens: int = 0
    requests_per_s: float = 0.0
    failed_per_s: float = 0.0


class Member(msgspec.Struct, frozen=True):
    """Describe a process for other applications. `started_at`: seconds since 1970, by its own clock."""

    id: str
    app: str
    kind: str
    host: str
    pid: int
    version: str
    started_at: float
    uptime_s: float
    nodes: int
    running: int
    waiting: int
    lost: int
    work: dict[str, AppWork]


class Identity:
    """Describe this process, and measure its rates."""

    def __init__(self, app: str, version: str) -> None:
        self.id = f"{socket.gethostname()}:{os.getpid()}:{secrets.token_hex(4)}"
        self.app = app
        self.kind = "pool"  # the gateway sets its own
        self._version = version
        self._started_at = time.time()
        self._started = time.monotonic()
        self._past: deque[tuple[float, Totals]] = deque()

    def present(self, totals: Totals, nodes: int, running: int, waiting: int, lost: int) -> Member:
        """Return what to publish now."""
        now = time.monotonic()
        while len(self._past) > 1 and now - self._past[1][0] >= SPAN_S:
            self._past.popleft()
        at, before = self._past[0] if self._past else (self._started, {})
        self._past.append((now, totals))
        span_s = max(1.0, now - at)
        work = {self.app: AppWork()}
        for app, (requests, failed, tokens) in totals.items():
            old_requests, old_failed, _ = before.get(app, (0, 0, 0))
            rates = (requests - old_requests) / span_s, (failed - old_failed) / span_s
            work[app] = AppWork(requests, failed, tokens, round(rates[0], 3), round(rates[1], 3))
        host, pid = socket.gethostname(), os.getpid()
        uptime_s = now - self._started
        return Member(
            self.id, self.app, self.kind, host, pid, self._version, self._started_at, uptime_s,
            nodes, running, waiting, lost, work,
        )  # fmt: skip


def read_members(client: Any) -> list[Member]:
    """Return the processes that are there, and remove those that are gone from the index."""
    ids = sorted(client.smembers(MEMBERS))[:MEMBERS_MOST]
    if not ids:
        return []
    values = client.mget([MEMBER.encode() + id for id in ids])
    gone = [id for id, value in zip(ids, values, strict=True) if value is None]
    if gone:
        client.srem(MEMBERS, *gone)
    return [member for value in values if value is not None and (member := _decoded(value, Member)) is not None]


def read_recent(client: Any) -> list[RequestRecord]:
    """Return the last finished requests of all applications, the newest first."""
    found: list[RequestRecord] = []
    for _, fields in client.xrevrange(REQUESTS, count=RECENT):
        found += reversed(_decoded(fields.get(b"records", b""), list[RequestRecord]) or [])
    return sorted(found, key=lambda record: -record.at)[:RECENT]


def _decoded(value: bytes, kind: Any) -> Any:
    """Return a decoded value, None for that of another version or of a stranger."""
    try:
        return msgspec.json.decode(value, type=kind)
    except msgspec.DecodeError:
        return None


def sums_by_app(members: Iterable[Member]) -> dict[str, dict[str, float]]:
    """Return the numbers of each application over its processes; those beyond APPS_MOST as `other`."""
    found: dict[str, dict[str, float]] = {}

    def of(app: str) -> dict[str, float]:
        name = app if app in found or len(found) < APPS_MOST else OTHER
        names = ("processes", "requests", "failed", "tokens", "requests_per_s", "failed_per_s", "running", "waiting")
        return found.setdefault(name, dict.fromkeys(names, 0))

    for member in members:
        own = of(member.app)
        own["processes"] += 1
        own["running"] += member.running
        own["waiting"] += member.waiting
        for app, work in member.work.items():
            sums = of(app)
            for name in ("requests", "failed", "tokens", "requests_per_s", "failed_per_s"):
                sums[name] += getattr(work, name)
    return found


def connect(url: str) -> Any:
    """Return a client whose calls fail after TIMEOUT_S, without a second try.

    Raises:
        CannotConnect: The package redis is not installed, or the URL cannot be used.
    """
    try:
        import redis
        from redis.backoff import NoBackoff
        from redis.retry import Retry
    except ImportError:
        raise CannotConnect("the package redis is not installed; pip install '.[redis]' in the checkout") from None
    try:
        return redis.Redis.from_url(
            url,
            socket_timeout=TIMEOUT_S,
            socket_connect_timeout=TIMEOUT_S,
            retry=Retry(NoBackoff(), 0),
            client_name="sollol",
        )
    except (ValueError, TypeError):  # whose text may have the password
        raise CannotConnect("the URL is not valid; expected redis://[user:password@]host[:port][/number]") from None
