"""Models of one node take turns, unless they turn out not to be in each other's way."""

from __future__ import annotations

from sollol.core.types import SECOND
from sollol.policies.model_concurrency import TRIAL_AFTER, TURNS_HOLD, TURNS_LEAST, TURNS_MOST, ModelConcurrency


def beside(concurrency: ModelConcurrency, ratio: float, at: int = 0, answers: int = TURNS_LEAST) -> ModelConcurrency:
    """So many answers that were written at `ratio` of the usual rate while models overlapped."""
    for _ in range(answers):
        concurrency.record_overlap(ratio, at)
    return concurrency


def test_models_that_share_a_gpu_go_back_to_taking_turns() -> None:
    concurrency = ModelConcurrency()
    assert concurrency.try_another(TRIAL_AFTER, 0)
    assert concurrency.limit == 2
    assert beside(concurrency, 0.5).limit == 1
    assert not concurrency.try_another(TRIAL_AFTER, TURNS_HOLD - 1)
    assert concurrency.try_another(TRIAL_AFTER, TURNS_HOLD)
    assert beside(concurrency, 0.5, TURNS_HOLD).limit == 1
    assert not concurrency.try_another(TRIAL_AFTER, 4 * TURNS_HOLD), "the next trial waits longer"


def test_one_trial_at_a_time() -> None:
    concurrency = ModelConcurrency()
    assert concurrency.try_another(TRIAL_AFTER, 0)
    assert not concurrency.try_another(TRIAL_AFTER, 0)


def test_models_on_two_gpus_are_found_to_work_side_by_side() -> None:
    concurrency = ModelConcurrency()
    concurrency.try_another(TRIAL_AFTER, 0)
    assert beside(concurrency, 0.97).limit == 2
    assert beside(concurrency, 0.97, answers=100).limit == TURNS_MOST


def test_the_model_that_was_given_less_goes_first() -> None:
    concurrency = ModelConcurrency()
    concurrency.charge(5, "app", "a", 3 * SECOND, 0)
    assert concurrency.goes_before("app", "b", "app", "a")
    assert not concurrency.goes_before("app", "a", "app", "b")
    concurrency.charge(5, "app", "b", SECOND, 1)
    assert concurrency.goes_before("app", "b", "app", "a"), "a had three seconds, b one"
    concurrency.charge(5, "app", "b", 3 * SECOND, 2)
    assert concurrency.goes_before("app", "a", "app", "b")


def test_the_application_counts_before_the_model() -> None:
    concurrency = ModelConcurrency()
    for number in range(3):
        concurrency.charge(5, "greedy", f"model {number}", SECOND, number)
    assert concurrency.goes_before("modest", "m", "greedy", "a model that was never served")


def test_one_that_was_away_has_no_credit() -> None:
    concurrency = ModelConcurrency()
    for number in range(100):
        concurrency.charge(5, "app", "a", SECOND, number)
    concurrency.charge(5, "app", "b", 2 * SECOND, 100)
    assert concurrency.goes_before("app", "a", "app", "b"), "b does not catch up on a hundred seconds"
