"""How much a key may ask for: token buckets, which let a burst through and hold the mean.

What a call will cost is not known before its end. So it reserves what it is expected to use when it is admitted, and
settles the difference when it ends: many calls at once get no more than the minute's tokens, and what one call uses
beyond its reservation.
"""

from __future__ import annotations

from typing import Final

from sollol.gateway.auth.keys import Key

MINUTE_S = 60.0
UNKNOWN_TOKENS: Final = 4096  # reserved for an answer before any is known: the context that Ollama gives a model
FORGETS: Final = 0.05  # of the longest answer, for each shorter one


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
        """Take an amount; a negative one is given back."""
        self._left = self.left(now_s) - amount
        self._at = now_s

    def wait_s(self, amount: float, now_s: float) -> float:
        """Seconds until it holds so much; 0 if it does."""
        return max(0.0, (amount - self.left(now_s)) * MINUTE_S / self.size)


class Account:
    """The calls of one key so far, and how long its answers are."""

    __slots__ = ("calls", "longest", "open", "reserved", "tokens")

    def __init__(self) -> None:
        self.calls = 0  # settled
        self.tokens = 0  # charged
        self.open = 0  # calls that have not ended
        self.reserved = 0  # tokens of those
        self.longest: float | None = None  # tokens of recent answers to requests that do not bound them

    def learn(self, tokens: int) -> None:
        known = float(tokens) if self.longest is None else self.longest
        self.longest = max(float(tokens), known + FORGETS * (tokens - known))

    def expected(self) -> int:
        """Return the tokens that the next answer may have."""
        return UNKNOWN_TOKENS if self.longest is None else round(self.longest)


class Charge:
    """The reservation of one call. It is settled once; what ends the call afterwards changes nothing."""

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
        """`tokens_out`: the bound of the answer that the request gives; None for no bound."""
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
        """Charge what was used instead of what was reserved. `complete`: the answer came to its own end."""
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
        if bucket is not None:  # the key's bound may have been changed meanwhile: then nothing is reserved there
            bucket.take(tokens - self.reserved if bucket is self._bucket else tokens, now_s)


class Meter:
    """The buckets of all keys, by their hash. `now_s` never goes back."""

    def __init__(self) -> None:
        self._requests: dict[str, Bucket] = {}
        self._tokens: dict[str, Bucket] = {}
        self._accounts: dict[str, tuple[str, Account]] = {}  # by hash: name of the key, and its account

    def admit(self, key: Key, now_s: float) -> float:
        """Seconds to wait, or 0 for a request that is let in, which counts from then on."""
        requests = _bucket(self._requests, key.hash, key.requests_per_minute, now_s)
        wait_s = max(requests.wait_s(1, now_s) if requests else 0.0, self.tokens_wait_s(key, now_s))
        if not wait_s and requests:
            requests.take(1, now_s)
        return wait_s

    def tokens_wait_s(self, key: Key, now_s: float) -> float:
        """Seconds until the key may use a token; 0 if it may."""
        tokens = _bucket(self._tokens, key.hash, key.tokens_per_minute, now_s)
        return tokens.wait_s(1, now_s) if tokens else 0.0

    def reserve(self, key: Key, prompt: int, tokens_out: int | None, now_s: float) -> Charge:
        """Take what a call is expected to use: the tokens of its prompt, and of its answer, which it may bound.

        Without a bound, as long as the longest of this key's recent answers; UNKNOWN_TOKENS before the first."""
        _, account = self._accounts.setdefault(key.hash, (key.name, Account()))
        return Charge(self._tokens, account, key, prompt, tokens_out, now_s)

    def told(self) -> dict[str, dict[str, int]]:
        """Return by the name of each key what its calls were charged, and what those under way have reserved."""
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
