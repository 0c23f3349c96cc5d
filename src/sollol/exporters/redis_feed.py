"""Publish finished requests and presence in a Redis that applications share, from a thread of its own.

A request pays for one entry of a bounded queue. While Redis is slow, full, frozen or away, records wait in that queue;
the oldest are lost and counted. After a failure only the presence is sent until it succeeds, so that an attempt loses
no records; those of the failed message itself are counted as lost, because it is not known whether they arrived.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable
from typing import Any, Final

import msgspec

from sollol.config.problems import without_secrets
from sollol.duties import in_thread
from sollol.exporters.applications import (
    EXPIRES_S,
    MEMBER,
    MEMBERS,
    REQUESTS,
    CannotConnect,
    Identity,
    Member,
    connect,
    read_members,
    sums_by_app,
)
from sollol.observe.recorder import Recorder

log: Final = logging.getLogger("sollol")
EVERY_S: Final = 0.5
PRESENT_EVERY_S: Final = 2.0
READ_FOR_S: Final = 60.0  # after the last look at the other applications
MESSAGE_MOST: Final = 2_000  # records in one pipeline
ENTRY_MOST: Final = 20  # records in one entry of the stream
ENTRIES_MOST: Final = 1_000  # of the stream: at most about 20 MB
KEPT_S: Final = 86_400  # seconds; an entry that is not renewed is removed then
SHOWN: Final = 100  # processes in a frame of a display
PAUSE_MOST_S: Final = 8.0
PROBLEM_MOST: Final = 300  # characters


class RedisFeed:
    """Publish the records of one engine, and read what other applications publish.

    Args:
        url: The URL of the Redis.
        identity: The description of this process.
        recorder: The source of finished requests.
        present: Return nodes, running and waiting requests, on the engine's loop.
        on_loop: Run a function on the engine's loop, from any thread.
        notify: Show a sentence to the operator, on the engine's loop.
    """

    def __init__(
        self,
        url: str,
        identity: Identity,
        recorder: Recorder,
        present: Callable[[], tuple[int, int, int]],
        on_loop: Callable[..., None],
        notify: Callable[[str], None],
    ) -> None:
        self.identity = identity
        self.address = without_secrets(url)
        self.problem = ""
        self._url = url
        self._recorder = recorder
        self._records = recorder.subscribe("redis")
        self._present = present
        self._counts = present()
        self._on_loop = on_loop
        self._notify = notify
        self._client: Any = None
        self._is_connected = False
        self._failures = 0
        self._lost_before = 0
        self._presented = float("-inf")
        self._members: list[Member] = []
        self._members_at = 0.0
        self._read_until = 0.0
        self._wake = threading.Event()
        self._is_ending = False
        self._thread = in_thread("sollol-redis", self._run)

    # --- for readers, on any thread ---

    def applications(self) -> dict[str, Any]:
        """Return the state of the connection, and all applications as they were when they were read last."""
        now = time.monotonic()
        if now > self._read_until:
            self._wake.set()
        self._read_until = now + READ_FOR_S
        members = self._members
        return {
            "redis": self.address,
            "connected": self._is_connected,
            "problem": self.problem,
            "lost": self._records.lost,
            "queued": len(self._records),
            "age_s": round(now - self._members_at, 1) if self._members_at else None,
            "processes": [msgspec.to_builtins(member) for member in members[:SHOWN]],
            "apps": sums_by_app(members),
        }

    def metrics(self) -> dict[str, dict[tuple[str, ...], float]]:
        """Return the values of the families of shared applications."""
        found: dict[str, dict[tuple[str, ...], float]] = {"sollol_redis_up": {(): int(self._is_connected)}}
        apps = self.applications()["apps"] if self._is_connected else {}
        for family, name in (
            ("sollol_application_processes", "processes"),
            ("sollol_application_requests_per_second", "requests_per_s"),
            ("sollol_application_failed_per_second", "failed_per_s"),
            ("sollol_application_running", "running"),
            ("sollol_application_waiting", "waiting"),
        ):
            found[family] = {(app,): sums[name] for app, sums in apps.items()}
        return found

    def end(self) -> None:
        """Publish the rest and remove the presence, without waiting for it."""
        self._is_ending = True
        self._wake.set()

    def join(self, timeout_s: float) -> None:
        """Wait for the end, at most `timeout_s` seconds."""
        self._thread.join(timeout_s)

    # --- in the thread ---

    def _run(self) -> None:
        while not self._is_ending:
            self._wake.wait(self._turn())
            self._wake.clear()
        if self._is_connected:
            self._attempt(self._leave)
        if self._client is not None:
            self._client.close()

    def _turn(self) -> float:
        """Publish once; return the seconds until the next turn."""
        if not self._attempt(self._publish):
            return float(min(PAUSE_MOST_S, EVERY_S * 2.0 ** min(self._failures - 1, 10)))
        return 0.0 if len(self._records) >= MESSAGE_MOST else EVERY_S

    def _attempt(self, work: Callable[[], None]) -> bool:
        try:
            if self._client is None:
                self._client = connect(self._url)
            work()
        except CannotConnect as error:
            self._is_ending = True
            self._on_loop(self._recorder.unsubscribe, self._records)
            self._fail(str(error))
            return False
        except Exception as error:
            if not is_redis_error(error):
                log.error("in the Redis feed: %s: %s", type(error).__name__, error, exc_info=error)
            self._fail(str(error) or type(error).__name__)
            return False
        return True

    def _publish(self) -> None:
        now = time.monotonic()
        if not self._is_connected or now - self._presented >= PRESENT_EVERY_S:
            self._send_presence()
            self._presented = now
            self._recover()
        self._send_records()
        if now < self._read_until:
            self._members, self._members_at = read_members(self._client), time.monotonic()

    def _send_presence(self) -> None:
        id = self.identity.id
        member = self.identity.present(self._recorder.metrics.by_app(), *self._counts, self._records.lost)
        self._on_loop(self._count)  # for the next time
        pipeline = self._client.pipeline(transaction=False)
        pipeline.set(MEMBER + id, msgspec.json.encode(member), ex=EXPIRES_S)
        pipeline.sadd(MEMBERS, id)
        pipeline.expire(MEMBERS, KEPT_S)
        pipeline.execute()

    def _send_records(self) -> None:
        records = self._records.take(MESSAGE_MOST)
        if not records:
            return
        sent = 0
        try:
            pipeline = self._client.pipeline(transaction=False)
            entries = [records[at : at + ENTRY_MOST] for at in range(0, len(records), ENTRY_MOST)]
            for entry in entries:
                fields = {"member": self.identity.id, "records": msgspec.json.encode(entry)}
                pipeline.xadd(REQUESTS, fields, maxlen=ENTRIES_MOST, approximate=True)
            pipeline.expire(REQUESTS, KEPT_S)
            answers = pipeline.execute(raise_on_error=False)[: len(entries)]
            failed = [answer for answer in answers if isinstance(answer, Exception)]
            sent = sum(
                len(entry) for entry, answer in zip(entries, answers, strict=True) if not isinstance(answer, Exception)
            )
            if failed:
                raise failed[0]
        finally:
            if sent < len(records):
                self._on_loop(self._lose, len(records) - sent)

    def _leave(self) -> None:
        self._send_records()
        pipeline = self._client.pipeline(transaction=False)
        pipeline.delete(MEMBER + self.identity.id)
        pipeline.srem(MEMBERS, self.identity.id)
        pipeline.execute()

    def _count(self) -> None:
        self._counts = self._present()

    def _lose(self, number: int) -> None:
        self._records.lost += number

    def _fail(self, problem: str) -> None:
        self._failures += 1
        first = not self.problem
        self.problem, self._is_connected = problem[:PROBLEM_MOST], False
        if first:
            self._lost_before = self._records.lost
            self._on_loop(
                self._notify,
                f"Redis at {self.address} cannot be used ({self.problem}); requests go on, and other applications "
                "do not see them until it can",
            )

    def _recover(self) -> None:
        if self.problem:
            lost = self._records.lost - self._lost_before
            gap = f"records lost meanwhile: {lost:,}" if lost else "no record was lost"
            self._on_loop(self._notify, f"Redis at {self.address} answers again; {gap}")
        self.problem, self._failures, self._is_connected = "", 0, True


def is_redis_error(error: Exception) -> bool:
    """Check whether an exception is an expected failure of a server or of the network."""
    from redis.exceptions import RedisError

    return isinstance(error, (RedisError, OSError))
