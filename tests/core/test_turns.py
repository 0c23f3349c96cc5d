"""Models of one node take turns, unless they turn out not to be in each other's way."""

from __future__ import annotations

from sollol.core.turns import TURNS_HOLD, TURNS_LEAST, TURNS_MOST, Turns


def after(turns: Turns, answers: int, ratio: float, wanted: bool = True) -> Turns:
    """So many answers; those beside another model's are written at `ratio` of the usual rate."""
    for _ in range(answers):
        if turns.at_once > 1:
            turns.beside(ratio)
        turns.answered(wanted)
    return turns


def test_it_tries_nothing_while_no_other_model_is_waited_for() -> None:
    assert after(Turns(), 10 * TURNS_HOLD, 1.0, wanted=False).at_once == 1


def test_models_that_share_a_gpu_go_back_to_taking_turns() -> None:
    turns = after(Turns(), TURNS_HOLD, 0.5)
    assert turns.at_once == 2, "the trial"
    assert after(turns, TURNS_LEAST, 0.5).at_once == 1
    assert after(turns, 2 * TURNS_HOLD, 0.5).at_once == 1, "the next trial waits longer"


def test_models_on_two_gpus_are_found_to_work_side_by_side() -> None:
    turns = after(Turns(), TURNS_HOLD + TURNS_LEAST, 0.97)
    assert turns.at_once == 2
    assert after(turns, 100 * TURNS_HOLD, 0.97).at_once == TURNS_MOST
