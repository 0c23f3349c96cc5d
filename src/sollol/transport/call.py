"""What is said to a node: one HTTP request."""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import NamedTuple

from sollol.core.value import Value


class Timeouts(NamedTuple):
    """Seconds; None means no bound. They are apart because they mean different things:
    a node that cannot be reached, one that thinks long (load, prefill), one that fell silent mid-answer."""

    connect_s: float | None = 3.0
    first_byte_s: float | None = 600.0
    idle_s: float | None = 120.0


UNBOUNDED = Timeouts(first_byte_s=None, idle_s=None)  # for work that takes as long as it takes, such as a load


class Call(Value):
    """One HTTP request. `path` begins with "/" and may carry a query. With `stream` the reply is returned as
    soon as its head is there; without, when its body is complete, of up to
    `most` bytes (0: as the transport bounds it)."""

    __slots__ = ("body", "content_type", "headers", "method", "most", "path", "stream", "timeouts")

    def __init__(
        self,
        method: str,
        path: str,
        body: bytes | AsyncIterator[bytes] = b"",
        content_type: str = "application/json",
        headers: tuple[tuple[str, str], ...] = (),
        stream: bool = False,
        timeouts: Timeouts = Timeouts(),
        most: int = 0,
    ) -> None:
        self.most = most
        self.method = method
        self.path = path
        self.body = body
        self.content_type = content_type
        self.headers = headers
        self.stream = stream
        self.timeouts = timeouts
