"""Hashes of the prefixes of a conversation: two conversations share a prefix if they share its hash."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Final
from zlib import crc32

PREFIXES: Final = 7  # latest prefixes kept, besides the first message
MESSAGE_COST: Final = 30  # cost units of a message besides its text: role and separators
_crc32: Final[Any] = crc32


def prefix_of(messages: Sequence[Any]) -> tuple[tuple[int, int], ...]:
    """Return (hash, cost units) of the prefixes of a conversation, shortest first.

    A node that has processed one keeps it in its cache and is warm for it.
    """
    prefix_hash: Any = 0  # Any, so that compiled code keeps one object instead of boxing an int
    cost = 0
    prefix_hashes: list[tuple[Any, int]] = []
    for message in messages:
        content = message.get("content")
        text: str = content if isinstance(content, str) else str(content)
        prefix_hash = _crc32(text.encode("utf-8", "surrogatepass"), prefix_hash)
        cost += len(text) + MESSAGE_COST
        prefix_hashes.append((prefix_hash, cost))
    return (
        tuple(prefix_hashes) if len(prefix_hashes) <= PREFIXES else (prefix_hashes[0], *prefix_hashes[1:][-PREFIXES:])
    )
