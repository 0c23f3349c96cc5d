"""Limit the requests and tokens of a key by token buckets, which permit bursts and hold the mean.

The use of a call is not known before its end. It reserves its expected use when it is admitted, and settles the
difference when it ends. So many calls at once get at most the minute's tokens, and the excess of one call beyond its
reservation.
"""

from __future__ import annotations

import math
from typing import Final

from sollol.errors import ResponseError
from sollol.gateway.auth.keys import Key

MINUTE_S = 60.0
UNKNOWN_TOKENS: Final = 4096  # reserved for a key's first answer: Ollama's default context
DECAY: Final = 0.05  # of the longest answer, for each shorter one


class RateLimited(ResponseError):
    """A key has used its requests or tokens of a minute."""

    def __init__(self, key: Key, wait_s: float) -> None:
        super().__init__(
            f"the key {key.name!r} has used its requests or tokens of this minute; try again in {wait_s:.0f} s", 429
        )
        self.retry_after_s = max(1, math.ceil(wait_s))


class Bucket:
    """Hold the amount of one minute, and refill at that rate. It may be overdrawn."""

    __slots__ = ("_at", "_left", "size")

    def __init__(self, size: int, now_s: float) -> None:
        self.size = size
        self._left = float(size)
        self._at = now_s

    def left(self, now_s: float) -> float:
        """Return the amount, negative when overdrawn."""
        return min(self.size, self._left + (now_s - self._at) * self.size / MINUTE_S)

    def take(self, amount: float, now_s: float) -> None:
        """Take an amount; a negative one is returned to the bucket."""
        self._left = self.left(now_s) - amount
        self._at = now_s

    def wait_s(self, amount: float, now_s: float) -> float:
        """Return the seconds until it holds the amount, 0 if it does."""
        return max(0.0, (amount - self.left(now_s)) * MINUTE_S / self.size)


class Account:
    """The calls of one key so far, and the length of its answers."""

    __slots__ = ("calls", "longest", "open", "reserved", "tokens")

    def __init__(self) -> None:
        self.calls = 0  # settled
        self.tokens = 0  # charged
        self.open = 0  # calls that have not ended
        self.reserved = 0  # tokens of those
        self.longest: float | None = None  # tokens of recent answers to requests without a bound

    def learn(self, tokens: int) -> None:
        """Record the length of an answer without a bound."""
        last = float(tokens) if self.longest is None else self.longest
        self.longest = max(float(tokens), last + DECAY * (tokens - last))

    def expected(self) -> int:
        """Return the tokens that the next answer may have."""
        return UNKNOWN_TOKENS if self.longest is None else round(self.longest)


class Charge:
    """The reservation of one call. It is settled once; later calls of `settle` have no effect."""

    __slots__ = ("_account", "_bucket", "_buckets", "_key", "_learns", "_prompt", "is_settled", "reserved")

    def __init__(
        self,
        buckets: dict[str, Bucket],
        account: Account,
        key: Key,
        prompt: int,
        tokens_out: int | None,
        now_s: float,
    ) -> None:
        """Reserve the tokens. `tokens_out`: the request's bound of the answer; None for no bound."""
        self._buckets = buckets
        self._account = account
        self._key = key.hash
        self._prompt = prompt
        self._learns = tokens_out is None
        self.is_settled = False
        expected = prompt + (account.expected() if tokens_out is None else max(0, tokens_out))
        self._bucket = _bucket(buckets, key.hash, key.tokens_per_minute, now_s)
        self.reserved = min(expected, self._bucket.size) if self._bucket is not None else 0
        if self._bucket is not None:
            self._bucket.take(self.reserved, now_s)
        account.open += 1
        account.reserved += self.reserved

    def settle(self, tokens: int, now_s: float, *, complete: bool = False) -> None:
        """Charge the used tokens instead of the reserved ones. `complete`: the answer came to its own end."""
        if self.is_settled:
            return
        self.is_settled = True
        account = self._account
        account.open -= 1
        account.reserved -= self.reserved
        account.calls += 1
        account.tokens += tokens
        if complete and self._learns:
            account.learn(max(0, tokens - self._prompt))
        bucket = self._buckets.get(self._key)
        if bucket is not None:  # a new bucket, after a change of the key's limit, holds no reservation
            bucket.take(tokens - self.reserved if bucket is self._bucket else tokens, now_s)


class RateLimiter:
    """The buckets and accounts of all keys, by their hash. `now_s` is a clock that never goes back."""

    def __init__(self) -> None:
        self._requests: dict[str, Bucket] = {}
        self._tokens: dict[str, Bucket] = {}
        self._accounts: dict[str, tuple[str, Account]] = {}  # hash -> (name of the key, its account)

    def admit(self, key: Key, now_s: float) -> float:
        """Count a request and return 0; or return the seconds to wait for one."""
        requests = _bucket(self._requests, key.hash, key.requests_per_minute, now_s)
        wait_s = max(requests.wait_s(1, now_s) if requests else 0.0, self.tokens_wait_s(key, now_s))
        if not wait_s and requests:
            requests.take(1, now_s)
        return wait_s

    def tokens_wait_s(self, key: Key, now_s: float) -> float:
        """Return the seconds until the key may use a token, 0 if it may."""
        tokens = _bucket(self._tokens, key.hash, key.tokens_per_minute, now_s)
        return tokens.wait_s(1, now_s) if tokens else 0.0

    def reserve(self, key: Key, prompt: int, tokens_out: int | None, now_s: float) -> Charge:
        """Reserve the expected tokens of a call: those of its prompt, and of its answer.

        An answer without a bound counts as the longest of the key's recent ones, the first as UNKNOWN_TOKENS.
        """
        _, account = self._accounts.setdefault(key.hash, (key.name, Account()))
        return Charge(self._tokens, account, key, prompt, tokens_out, now_s)

    def usage(self) -> dict[str, dict[str, int]]:
        """Return key name -> its calls, the charged tokens, and the reservations of running calls."""
        return {
            name: {
                "calls": account.calls,
                "tokens": account.tokens,
                "running": account.open,
                "reserved": account.reserved,
            }
            for name, account in self._accounts.values()
        }


def _bucket(buckets: dict[str, Bucket], name: str, size: int | None, now_s: float) -> Bucket | None:
    if size is None:
        return None
    bucket = buckets.get(name)
    if bucket is None or bucket.size != size:
        bucket = buckets[name] = Bucket(size, now_s)
    return bucket
