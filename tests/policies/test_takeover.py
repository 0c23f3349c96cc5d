"""When an idle node takes over at the end of a batch, without a scheduler."""

from __future__ import annotations

from sollol.policies.takeover import LOOK_AGAIN, MARGIN, STUCK, TRIES_MOST, TakeoverIfSooner

POLICY = TakeoverIfSooner()


def test_an_idle_node_must_be_clearly_sooner() -> None:
    assert POLICY.pays(cost=80_000 - MARGIN, rate=1.0, startup_us=0, remaining_us=100_000)
    assert not POLICY.pays(cost=90_000 - MARGIN, rate=1.0, startup_us=0, remaining_us=100_000)
    assert not POLICY.pays(cost=80_000 - MARGIN, rate=1.0, startup_us=10_000, remaining_us=100_000)


def test_a_node_that_failed_the_items_tries_them_again_only_when_they_are_stuck() -> None:
    assert POLICY.repeats(STUCK, tries=TRIES_MOST - 1)
    assert not POLICY.repeats(STUCK - 1, tries=1)
    assert not POLICY.repeats(STUCK, tries=TRIES_MOST)


def test_the_next_look_is_due_when_an_attempt_is_late_by_a_tenth() -> None:
    assert POLICY.look_again_us(left_us=200_000, predicted_us=300_000) == 230_000
    assert POLICY.look_again_us(left_us=-500_000, predicted_us=300_000) == LOOK_AGAIN
