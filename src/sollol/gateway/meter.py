"""How much a key may ask for: token buckets, which let a burst through and hold the mean."""

from __future__ import annotations

from sollol.gateway.keys import Key

MINUTE_S = 60.0


class Bucket:
    """Holds a minute's worth, and fills at that rate. Below zero, it is waited for."""

    __slots__ = ("_at", "_left", "size")

    def __init__(self, size: int, now_s: float) -> None:
        self.size = size
        self._left = float(size)
        self._at = now_s

    def left(self, now_s: float) -> float:
        return min(self.size, self._left + (now_s - self._at) * self.size / MINUTE_S)

    def take(self, amount: float, now_s: float) -> None:
        self._left = self.left(now_s) - amount
        self._at = now_s

    def wait_s(self, amount: float, now_s: float) -> float:
        """Seconds until it holds so much; 0 if it does."""
        return max(0.0, (amount - self.left(now_s)) * MINUTE_S / self.size)


class Meter:
    """The buckets of all keys, by their hash. `now_s` never goes back."""

    def __init__(self) -> None:
        self._requests: dict[str, Bucket] = {}
        self._tokens: dict[str, Bucket] = {}

    def admit(self, key: Key, now_s: float) -> float:
        """Seconds to wait, or 0 for a request that is let in, which counts from then on.

        What an answer will cost is not known before it is there: tokens are charged afterwards, and the next request
        waits until the bucket has recovered."""
        requests = _bucket(self._requests, key.hash, key.requests_per_minute, now_s)
        tokens = _bucket(self._tokens, key.hash, key.tokens_per_minute, now_s)
        wait_s = max(requests.wait_s(1, now_s) if requests else 0.0, tokens.wait_s(1, now_s) if tokens else 0.0)
        if not wait_s and requests:
            requests.take(1, now_s)
        return wait_s

    def charge(self, key: Key, tokens: int, now_s: float) -> None:
        bucket = _bucket(self._tokens, key.hash, key.tokens_per_minute, now_s)
        if bucket:
            bucket.take(tokens, now_s)


def _bucket(buckets: dict[str, Bucket], name: str, size: int | None, now_s: float) -> Bucket | None:
    if size is None:
        return None
    bucket = buckets.get(name)
    if bucket is None or bucket.size != size:
        bucket = buckets[name] = Bucket(size, now_s)
    return bucket
