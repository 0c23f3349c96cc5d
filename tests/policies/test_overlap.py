"""When a request starts beside others, without a scheduler."""

from __future__ import annotations

from sollol.policies.overlap import WAITS_LONG, OverlapShort

POLICY = OverlapShort()


def test_a_request_shorter_than_its_wait_starts_beside_a_long_answer() -> None:
    assert POLICY.overlaps(service_us=100, wait_us=100, running=0, priority=5, highest=5)
    assert not POLICY.overlaps(service_us=101, wait_us=100, running=0, priority=5, highest=5)
    assert not POLICY.overlaps(service_us=100, wait_us=199, running=1, priority=5, highest=5)


def test_it_slows_nothing_of_a_higher_priority() -> None:
    assert not POLICY.overlaps(service_us=1, wait_us=100, running=0, priority=5, highest=8)


def test_a_slot_is_tried_for_a_wait_far_longer_than_the_request() -> None:
    assert POLICY.tries_slot(service_us=WAITS_LONG, wait_us=2 * WAITS_LONG)
    assert not POLICY.tries_slot(service_us=WAITS_LONG, wait_us=2 * WAITS_LONG - 1)
    assert not POLICY.tries_slot(service_us=0, wait_us=WAITS_LONG - 1)
    assert OverlapShort(waits_long_us=0, waits_times=0).tries_slot(service_us=100, wait_us=0)
