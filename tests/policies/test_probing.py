"""The intervals between probes, without a scheduler."""

from __future__ import annotations

from sollol.core.types import SECOND
from sollol.policies.probing import RETRY, RETRY_MAX, ProbeSchedule


def test_a_node_is_probed_more_often_while_there_is_work() -> None:
    schedule = ProbeSchedule(every_us=5 * SECOND, every_idle_us=60 * SECOND)
    assert (schedule.every_us(idle=False), schedule.every_us(idle=True)) == (5 * SECOND, 60 * SECOND)


def test_the_pause_of_a_node_that_is_down_doubles_up_to_a_bound() -> None:
    schedule, pauses = ProbeSchedule(), [0]
    for _ in range(6):
        pauses.append(schedule.pause_us(pauses[-1]))
    assert pauses[1:] == [RETRY, 2 * RETRY, 4 * RETRY, 8 * RETRY, RETRY_MAX, RETRY_MAX]


def test_one_silent_probe_is_no_evidence() -> None:
    assert not ProbeSchedule().is_down(1)
    assert ProbeSchedule().is_down(2)
    assert ProbeSchedule(silences=1).is_down(1)
