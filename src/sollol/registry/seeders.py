"""Choose the seeder of each part of a blob, and sign the links to it. Pure.

A seeder is a node whose agent sends blobs itself. A link is valid for one blob and a bounded time, so the agent's key
never passes through a node's client.
"""

from __future__ import annotations

import hashlib
import hmac
from typing import Final, NamedTuple

LINK_S: Final = 6 * 3600  # life of a link
PARTS_MOST: Final = 10_000  # parts whose seeders are remembered


def signature(key: str, digest: str, until: int) -> str:
    """Return the signature of a link to a blob that is valid until a time in seconds since 1970."""
    return hmac.new(key.encode(), f"{digest} {until}".encode(), hashlib.sha256).hexdigest()


def is_signed(key: str, digest: str, until: str, sent: str, now: float) -> bool:
    """Check the signature of a link in constant time, and its end."""
    if not (until.isascii() and until.isdigit() and len(until) < 15) or int(until) < now:
        return False
    return hmac.compare_digest(signature(key, digest, int(until)).encode(), sent.encode())


class Seeder(NamedTuple):
    """A node that sends blobs: the URL of its agent, and its key."""

    url: str
    key: str

    def link(self, digest: str, now: float) -> str:
        """Return a signed link to a blob."""
        until = int(now) + LINK_S
        return f"{self.url}/blobs/{digest}?until={until}&signature={signature(self.key, digest, until)}"

    def __repr__(self) -> str:
        return f"<Seeder {self.url}>"


class SeederChoice:
    """Send each part to the seeder with the fewest bytes to send, and a repeated part to another one."""

    def __init__(self) -> None:
        self._blobs: dict[str, list[Seeder]] = {}
        self._bytes: dict[Seeder, int] = {}
        self._tried: dict[tuple[str, str, int], list[Seeder]] = {}

    def add(self, seeder: Seeder, digests: list[str]) -> None:
        """Record that a seeder has blobs."""
        self._bytes.setdefault(seeder, 0)
        for digest in digests:
            if seeder not in self._blobs.setdefault(digest, []):
                self._blobs[digest].append(seeder)

    def drop(self, seeder: Seeder) -> None:
        """Forget a seeder."""
        for seeders in self._blobs.values():
            if seeder in seeders:
                seeders.remove(seeder)

    def has(self, digest: str) -> bool:
        """Check that a seeder has a blob."""
        return bool(self._blobs.get(digest))

    def choose(self, digest: str, client: str, start: int, stop: int, *, alone: bool) -> Seeder | None:
        """Return the seeder of a part; None if there is none, or if the registry is to send it itself.

        A client that repeats a part sends its end again, while its start may have advanced. Several clients may have
        one address, so a part that was sent to every seeder begins with the first again.

        Args:
            digest: The blob.
            client: The address of the client.
            start: The first byte of the part.
            stop: The byte behind its last.
            alone: Only seeders have the blob.
        """
        part = (client, digest, stop)
        tried = self._tried.get(part, [])
        seeders = self._blobs.get(digest, [])
        left = [seeder for seeder in seeders if seeder not in tried]
        if not left:
            self._tried.pop(part, None)
            if not alone or not seeders:
                return None
            tried, left = [], seeders
        chosen = min(left, key=lambda seeder: (self._bytes[seeder], seeder))
        self._bytes[chosen] += stop - start
        if len(self._tried) >= PARTS_MOST:
            self._tried.clear()
        self._tried[part] = [*tried, chosen]
        return chosen
