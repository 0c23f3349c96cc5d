"""When to stop listening."""

from sollol.discovery.patience import SILENCE_S, Progress, silence, stop_at

DEADLINE = 10.0


def test_silence_is_measured_against_the_slowest_answer():
    assert silence(0.0) == SILENCE_S
    assert silence(0.001) == SILENCE_S
    assert silence(0.2) == 0.2 * 3


def test_when_everybody_answered_the_search_is_over():
    assert stop_at(Progress(found=2), DEADLINE) == 0.0
    assert stop_at(Progress(found=0), DEADLINE) == 0.0


def test_silent_addresses_cost_one_wait():
    assert stop_at(Progress(listening=250, found=2, last_sent=1.0), DEADLINE) == 1.0 + SILENCE_S
    assert stop_at(Progress(listening=250, found=2, last_sent=1.0, slowest_s=0.5), DEADLINE) == 2.5


def test_named_nodes_likely_nodes_and_untried_addresses_are_waited_for():
    assert stop_at(Progress(held=1, found=2), DEADLINE) == DEADLINE
    assert stop_at(Progress(unsent=True, found=2), DEADLINE) == DEADLINE


def test_who_found_nothing_listens_to_the_end():
    assert stop_at(Progress(listening=250), DEADLINE) == DEADLINE


def test_the_deadline_bounds_everything():
    assert stop_at(Progress(listening=1, found=1, last_sent=9.9, slowest_s=5.0), DEADLINE) == DEADLINE
