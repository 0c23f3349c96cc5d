"""How long a slot stays taken after its caller left, without a scheduler."""

from __future__ import annotations

from sollol.core.types import SECOND
from sollol.policies.prefill import PREFILL_BATCH, PROBE_LEAST, AbandonedPrefill

RATE = PREFILL_BATCH / SECOND  # a batch takes a second
POLICY = AbandonedPrefill()


def test_a_node_that_reads_on_keeps_its_slot_until_the_prompt_is_read() -> None:
    assert POLICY.taken_us(60 * SECOND, RATE, reads_on=True) == 60 * SECOND


def test_a_node_that_stops_frees_its_slot_after_a_batch_at_most() -> None:
    assert POLICY.taken_us(60 * SECOND, RATE, reads_on=False) == SECOND
    assert POLICY.taken_us(SECOND // 2, RATE, reads_on=False) == SECOND // 2


def test_an_untested_node_is_tested_where_enough_can_be_gained() -> None:
    assert POLICY.taken_us(SECOND + PROBE_LEAST, RATE, reads_on=None) == SECOND
    assert POLICY.taken_us(SECOND + PROBE_LEAST - 1, RATE, reads_on=None) == SECOND + PROBE_LEAST - 1
    assert AbandonedPrefill(probe_least_us=0).taken_us(2 * SECOND, RATE, reads_on=None) == SECOND
