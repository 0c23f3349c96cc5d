"""One HTTP request to a node."""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import NamedTuple

from sollol.core.value import Value


class Timeouts(NamedTuple):
    """Time limits in seconds; None means no limit.

    They are separate because they mean different things: a node that cannot be reached, one that works for long (load,
    prefill), and one that fell silent inside its answer.
    """

    connect_s: float | None = 3.0
    first_byte_s: float | None = 600.0
    idle_s: float | None = 120.0


UNBOUNDED = Timeouts(first_byte_s=None, idle_s=None)  # for work without a time limit, such as a load


class Call(Value):
    """One HTTP request.

    `path` begins with "/" and may have a query. With `stream` the reply is returned after its head, without it after
    its body. `most` is the limit of the body in bytes (0: the transport's limit).
    """

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
