"""Publish lines in a Redis from a thread of its own. If Redis is absent, lines are lost, and nothing waits."""

from __future__ import annotations

import json
import logging
import threading
from collections import deque
from typing import Any, Final

from sollol.duties import in_thread

KEPT: Final = 1_000  # lines that wait
STREAM_MOST: Final = 10_000  # entries of a stream
log: Final = logging.getLogger("sollol.redis_lines")


class RedisLines:
    """Send JSON objects to a channel and a stream of Redis, in order. `available`: the last attempt succeeded."""

    def __init__(self, client: Any, channel: str, stream: str | None) -> None:
        self.available = True
        self.lost = 0
        self._client = client
        self._channel = channel
        self._stream = stream
        self._lines: deque[str] = deque()
        self._wake = threading.Condition()
        self._ended = False
        in_thread("sollol-redis-lines", self._run)

    def put(self, line: dict[str, Any]) -> None:
        """Queue an object; the oldest is lost when the queue is full."""
        with self._wake:
            if len(self._lines) >= KEPT:
                self._lines.popleft()
                self.lost += 1
            self._lines.append(json.dumps(line, default=str))
            self._wake.notify()

    def end(self) -> None:
        """End the thread; waiting lines are lost."""
        with self._wake:
            self._ended = True
            self._wake.notify()

    def _run(self) -> None:
        while True:
            with self._wake:
                self._wake.wait_for(lambda: self._lines or self._ended)
                if self._ended:
                    return
                line = self._lines.popleft()
            try:
                self._client.publish(self._channel, line)
                if self._stream is not None:
                    self._client.xadd(self._stream, {"data": line}, maxlen=STREAM_MOST, approximate=True)
                self.available = True
            except Exception as error:
                self.lost += 1
                if self.available:
                    self.available = False
                    log.warning("lines for Redis are lost until it answers again: %s", error)
