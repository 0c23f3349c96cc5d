"""When a sleeping node is woken, without a scheduler."""

from __future__ import annotations

from sollol.core.types import SECOND
from sollol.policies.waking import PAUSE, WakeWhenSlower


def test_a_node_is_woken_once_a_task_would_wait_longer_than_the_boot() -> None:
    policy = WakeWhenSlower()
    assert not policy.wakes(wait_us=30 * SECOND, boot_us=30 * SECOND, since_failure_us=PAUSE + 1)
    assert policy.wakes(wait_us=30 * SECOND + 1, boot_us=30 * SECOND, since_failure_us=PAUSE + 1)


def test_a_node_that_was_woken_in_vain_is_left_alone_for_a_while() -> None:
    policy = WakeWhenSlower(pause_us=60 * SECOND)
    assert not policy.wakes(wait_us=500 * SECOND, boot_us=30 * SECOND, since_failure_us=60 * SECOND)
    assert policy.wakes(wait_us=500 * SECOND, boot_us=30 * SECOND, since_failure_us=61 * SECOND)


def test_the_number_of_boots_is_a_knob() -> None:
    policy = WakeWhenSlower(times=3.0)
    assert not policy.wakes(wait_us=90 * SECOND, boot_us=30 * SECOND, since_failure_us=PAUSE + 1)
    assert policy.wakes(wait_us=91 * SECOND, boot_us=30 * SECOND, since_failure_us=PAUSE + 1)
