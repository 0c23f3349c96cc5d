"""Models of one node take turns, unless they turn out not to be in each other's way."""

from __future__ import annotations

from sollol.core.turns import TURNS_HOLD, TURNS_LEAST, TURNS_MOST, Turns
from sollol.core.types import SECOND


def beside(turns: Turns, ratio: float, at: int = 0, answers: int = TURNS_LEAST) -> Turns:
    """So many answers that were written at `ratio` of the usual rate while models overlapped."""
    for _ in range(answers):
        turns.beside(ratio, at)
    return turns


def test_models_that_share_a_gpu_go_back_to_taking_turns() -> None:
    turns = Turns()
    assert turns.try_beside(0)
    assert turns.at_once == 2
    assert beside(turns, 0.5).at_once == 1
    assert not turns.try_beside(TURNS_HOLD - 1)
    assert turns.try_beside(TURNS_HOLD)
    assert beside(turns, 0.5, TURNS_HOLD).at_once == 1
    assert not turns.try_beside(4 * TURNS_HOLD), "the next trial waits longer"


def test_one_trial_at_a_time() -> None:
    turns = Turns()
    assert turns.try_beside(0)
    assert not turns.try_beside(0)


def test_models_on_two_gpus_are_found_to_work_side_by_side() -> None:
    turns = Turns()
    turns.try_beside(0)
    assert beside(turns, 0.97).at_once == 2
    assert beside(turns, 0.97, answers=100).at_once == TURNS_MOST


def test_the_model_that_was_given_less_goes_first() -> None:
    turns = Turns()
    turns.served(5, "app", "a", 3 * SECOND, 0)
    assert turns.goes_before("app", "b", "app", "a")
    assert not turns.goes_before("app", "a", "app", "b")
    turns.served(5, "app", "b", SECOND, 1)
    assert turns.goes_before("app", "b", "app", "a"), "a had three seconds, b one"
    turns.served(5, "app", "b", 3 * SECOND, 2)
    assert turns.goes_before("app", "a", "app", "b")


def test_the_application_counts_before_the_model() -> None:
    turns = Turns()
    for number in range(3):
        turns.served(5, "greedy", f"model {number}", SECOND, number)
    assert turns.goes_before("modest", "m", "greedy", "a model that was never served")


def test_one_that_was_away_has_no_credit() -> None:
    turns = Turns()
    for number in range(100):
        turns.served(5, "app", "a", SECOND, number)
    turns.served(5, "app", "b", 2 * SECOND, 100)
    assert turns.goes_before("app", "a", "app", "b"), "b does not catch up on a hundred seconds"
