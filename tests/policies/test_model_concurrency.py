"""How many models of a node work at once, and which goes first, without a scheduler."""

from __future__ import annotations

from sollol.core.types import SECOND
from sollol.policies.model_concurrency import TRIAL_AFTER, TURNS_HOLD, TURNS_LEAST, ModelConcurrency


def test_a_second_model_is_tried_after_a_wait_and_stays_if_answers_keep_their_rate() -> None:
    models = ModelConcurrency()
    assert not models.try_another(TRIAL_AFTER - 1, 0)
    assert models.try_another(TRIAL_AFTER, 0)
    for _ in range(TURNS_LEAST):
        models.record_overlap(0.95, SECOND)
    assert models.limit == 2


def test_a_trial_that_slows_both_models_ends_and_is_not_repeated_at_once() -> None:
    models = ModelConcurrency()
    assert models.try_another(TRIAL_AFTER, 0)
    for _ in range(TURNS_LEAST):
        models.record_overlap(0.5, SECOND)
    assert models.limit == 1
    assert not models.try_another(TRIAL_AFTER, SECOND + TURNS_HOLD - 1)
    assert models.try_another(TRIAL_AFTER, SECOND + TURNS_HOLD)


def test_at_equal_priority_the_application_and_then_the_model_with_less_time_goes_first() -> None:
    models = ModelConcurrency()
    models.charge(5, "a", "one", 100, 0)
    assert models.goes_before("b", "one", "a", "two")
    assert models.goes_before("a", "two", "a", "one")


def test_a_model_that_must_be_loaded_waits_as_long_as_two_loads() -> None:
    assert ModelConcurrency().waits_for_load(waited_us=19, load_us=10)
    assert not ModelConcurrency().waits_for_load(waited_us=20, load_us=10)
    assert not ModelConcurrency(cold_patience=0).waits_for_load(waited_us=0, load_us=10)
