"""Token buckets: no more than the rate over time, a burst of a minute, and a wait that is enough."""

from __future__ import annotations

import random
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sollol.gateway.auth.keys import Key
from sollol.gateway.auth.rate_limit import MINUTE_S, UNKNOWN_TOKENS, Bucket, Charge, RateLimiter

SIZES = st.integers(1, 100_000)
TIMES = st.floats(0, 1e6)


@given(SIZES, st.lists(st.tuples(st.floats(0, 100), st.floats(0, 1)), max_size=50))
def test_a_bucket_never_lets_more_through_than_its_rate(size: int, steps: list[tuple[float, float]]) -> None:
    bucket, now, taken = Bucket(size, 0.0), 0.0, 0.0
    for wait, share in steps:
        now, amount = now + wait, share * size
        if not bucket.wait_s(amount, now):
            bucket.take(amount, now)
            taken += amount
    assert taken <= size * (1 + now / MINUTE_S) * (1 + 1e-9)


@given(SIZES, TIMES, st.integers(0, 10_000_000))
def test_who_waits_as_long_as_told_is_let_in(size: int, now: float, used: int) -> None:
    limiter, key = RateLimiter(), Key("a", "h", tokens_per_minute=size)
    limiter.reserve(key, 0, 0, now).settle(used, now)
    wait_s = limiter.admit(key, now)
    assert wait_s >= 0
    assert limiter.admit(key, now + wait_s * (1 + 1e-6) + 1e-3) == 0.0
    if wait_s > 0.1:
        assert limiter.admit(key, now + wait_s / 2) > 0.0


@given(st.integers(1, 200), TIMES)
def test_a_minute_of_requests_may_come_at_once_and_no_more(size: int, now: float) -> None:
    limiter, key = RateLimiter(), Key("a", "h", requests_per_minute=size)
    assert [limiter.admit(key, now) for _ in range(size)] == [0.0] * size
    assert limiter.admit(key, now) == pytest.approx(MINUTE_S / size)


def test_a_request_that_is_not_let_in_costs_nothing() -> None:
    limiter, key = RateLimiter(), Key("a", "h", requests_per_minute=1)
    assert limiter.admit(key, 0.0) == 0.0
    waits = [limiter.admit(key, 30.0) for _ in range(5)]
    assert waits == [pytest.approx(30.0)] * 5
    assert limiter.admit(key, 60.0) == 0.0


def test_tokens_are_charged_afterwards_and_then_waited_for() -> None:
    limiter, key = RateLimiter(), Key("a", "h", tokens_per_minute=60)
    assert limiter.admit(key, 0.0) == 0.0
    limiter.reserve(key, 0, 0, 0.0).settle(180, 0.0)
    assert limiter.admit(key, 0.0) == pytest.approx(121.0)
    assert limiter.admit(key, 122.0) == 0.0


def test_keys_do_not_share_and_a_key_without_bounds_has_none() -> None:
    limiter = RateLimiter()
    one, two, free = (Key(n, n, requests_per_minute=1) for n in "ab"), Key("c", "c"), Key("d", "d")
    assert [limiter.admit(key, 0.0) for key in one] == [0.0, 0.0]
    for key in (two, free):
        limiter.reserve(key, 0, 0, 0.0).settle(10**9, 0.0)
        assert {limiter.admit(key, 0.0) for _ in range(1000)} == {0.0}


def test_a_bound_that_was_changed_holds_at_once() -> None:
    limiter = RateLimiter()
    assert limiter.admit(Key("a", "h", requests_per_minute=1), 0.0) == 0.0
    assert limiter.admit(Key("a", "h", requests_per_minute=1), 0.0) > 0.0
    assert limiter.admit(Key("a", "h", requests_per_minute=2), 0.0) == 0.0


CALLS = st.lists(
    st.tuples(st.integers(1, 200), st.one_of(st.none(), st.integers(1, 400)), st.integers(0, 600), st.floats(0, 5)),
    min_size=1,
    max_size=60,
)


@given(st.integers(600, 3000), CALLS, st.randoms(use_true_random=False))
def test_calls_at_once_get_the_minute_and_one_more_call(size: int, calls: list[Any], rng: random.Random) -> None:
    """Whatever they ask for, if they use what they reserve at most; and the books are right at the end."""
    limiter, key, now = RateLimiter(), Key("a", "h", tokens_per_minute=size), 0.0
    open_calls: list[tuple[Charge, int]] = []
    used, largest = 0, 0
    for prompt, tokens_out, wanted, wait in calls:
        now += wait
        if not limiter.admit(key, now):
            charge = limiter.reserve(key, prompt, tokens_out, now)
            tokens = prompt + min(wanted, 400 if tokens_out is None else tokens_out)
            open_calls.append((charge, tokens))
            used += tokens
            largest = max(largest, tokens)
    assert used <= size * (1 + now / MINUTE_S) + largest
    rng.shuffle(open_calls)
    for charge, tokens in open_calls:
        charge.settle(tokens, now)
        charge.settle(10**6, now)  # another end of the same call
    told = limiter.usage().get("a", {"calls": 0, "tokens": 0, "running": 0, "reserved": 0})
    assert told == {"calls": len(open_calls), "tokens": used, "running": 0, "reserved": 0}


def test_forty_calls_at_once_get_no_more_than_the_minute_and_one_call() -> None:
    limiter, key = RateLimiter(), Key("a", "h", tokens_per_minute=1000)
    for _ in range(3):  # it knows that answers are about 100 tokens long
        limiter.reserve(key, 10, None, 0.0).settle(110, 0.0, complete=True)
    now = 120.0
    charges = [limiter.reserve(key, 10, None, now) for _ in range(40) if not limiter.admit(key, now)]
    assert len(charges) == 10
    assert sum(charge.reserved for charge in charges) <= 1110


def test_before_an_answer_is_known_a_whole_context_is_reserved() -> None:
    limiter, key = RateLimiter(), Key("a", "h", tokens_per_minute=10_000)
    charges = [limiter.reserve(key, 10, None, 0.0) for _ in range(5) if not limiter.admit(key, 0.0)]
    assert [charge.reserved for charge in charges] == [10 + UNKNOWN_TOKENS] * 3


def test_a_bound_that_changes_while_a_call_runs_is_charged_the_whole_call() -> None:
    limiter = RateLimiter()
    charge = limiter.reserve(Key("a", "h", tokens_per_minute=100), 10, 10, 0.0)
    changed = Key("a", "h", tokens_per_minute=1000)
    assert limiter.admit(changed, 0.0) == 0.0
    charge.settle(1000, 0.0)
    assert limiter.admit(changed, 0.0) == pytest.approx(0.06)
