"""How late is late, in multiples of the prediction, without a scheduler."""

from __future__ import annotations

from sollol.core.types import SECOND
from sollol.policies.lateness import (
    HUNG_LEAST,
    HUNG_TIMES,
    LATE_LEAST,
    OVERDUE_LEAST,
    OVERDUE_TIMES,
    PATIENT,
    RESUMED_LEAST,
    SLOT_BELIEVED,
    SLOT_LEAST,
    SLOT_TIMES,
    STALL_LEAST,
    STALL_TIMES,
    SUSPECT_LEAST,
    SUSPECT_TIMES,
    LatenessByPrediction,
    StallByGap,
)

LATENESS = LatenessByPrediction()
LONG = 100 * SECOND  # a prediction beside which all least times are small


def test_a_node_is_probed_when_its_request_is_late_by_half_of_its_prediction() -> None:
    assert not LATENESS.probes(LONG // 2, LONG, LONG)
    assert LATENESS.probes(LONG // 2 + 1, LONG, LONG)
    assert not LATENESS.probes(LONG // 2 + 1, LONG, LATE_LEAST)  # it was probed just before


def test_a_request_hangs_after_many_times_its_prediction_and_not_before_a_minute() -> None:
    first_us = HUNG_LEAST
    assert LATENESS.hangs(HUNG_TIMES * first_us + 1, first_us, HUNG_LEAST + 1, resumed=False)
    assert not LATENESS.hangs(HUNG_TIMES * first_us, first_us, HUNG_LEAST + 1, resumed=False)
    assert not LATENESS.hangs(HUNG_LEAST, 1, HUNG_LEAST, resumed=False)
    assert LATENESS.hangs(HUNG_LEAST, 1, RESUMED_LEAST + 1, resumed=True)


def test_a_caller_who_left_soon_is_no_evidence_against_the_node() -> None:
    assert not LATENESS.suspects(SUSPECT_LEAST, 1, stream=True)
    assert LATENESS.suspects(SUSPECT_TIMES * LONG + 1, LONG, stream=True)
    assert not LATENESS.suspects(SUSPECT_TIMES * LONG + 1, LONG, stream=False)


def test_a_request_waits_for_a_slot_when_its_answer_is_late_to_begin() -> None:
    assert LATENESS.slot_wait_us(SECOND, LONG, trial=True) == SLOT_LEAST + SLOT_TIMES * SECOND
    assert LATENESS.slot_wait_us(SECOND, LONG, trial=False) == LONG // 2
    assert LATENESS.slot_wait_us(1, 1, trial=False) == SLOT_BELIEVED


def test_a_chunk_is_given_up_after_a_multiple_of_its_prediction_and_a_least_time() -> None:
    assert not LATENESS.is_given_up(OVERDUE_LEAST, 1)
    assert LATENESS.is_given_up(OVERDUE_LEAST + 1, 1)
    assert not LATENESS.is_given_up(OVERDUE_TIMES * LONG, LONG)


def test_a_silent_stream_is_waited_for_longer_while_its_runner_works() -> None:
    stalls = StallByGap()
    assert stalls.patience_us(1, patient=False) == STALL_LEAST
    assert stalls.patience_us(SECOND, patient=False) == STALL_TIMES * SECOND
    assert stalls.patience_us(SECOND, patient=True) == PATIENT * STALL_TIMES * SECOND


def test_the_knobs_decide() -> None:
    assert LatenessByPrediction(late_least_us=1).is_late(102, 100)
    assert not LATENESS.is_late(102, 100)
    assert StallByGap(times=2, least_us=0).patience_us(5, patient=False) == 10
