"""When to stop listening."""

from sollol.discovery.stop_policy import PASS_MOST_S, SILENCE_S, SearchProgress, silence, stop_at

DEADLINE = 10.0


def test_silence_is_measured_against_the_slowest_answer() -> None:
    assert silence(0.0) == SILENCE_S
    assert silence(0.001) == SILENCE_S
    assert silence(0.2) == 0.2 * 3


def test_when_everybody_answered_the_search_is_over() -> None:
    assert stop_at(SearchProgress(found=2), DEADLINE) == 0.0
    assert stop_at(SearchProgress(found=0), DEADLINE) == 0.0


def test_silent_addresses_cost_one_wait() -> None:
    assert stop_at(SearchProgress(listening=250, found=2, last_sent=1.0), DEADLINE) == 1.0 + SILENCE_S
    assert stop_at(SearchProgress(listening=250, found=2, last_sent=1.0, slowest_s=0.5), DEADLINE) == 2.5


def test_named_nodes_likely_nodes_and_untried_addresses_are_waited_for() -> None:
    assert stop_at(SearchProgress(held=1, found=2), DEADLINE) == DEADLINE
    assert stop_at(SearchProgress(unsent=True, found=2), DEADLINE) == DEADLINE


def test_who_found_nothing_listens_to_the_end() -> None:
    assert stop_at(SearchProgress(listening=250), DEADLINE) == DEADLINE


def test_the_deadline_bounds_everything() -> None:
    assert stop_at(SearchProgress(listening=1, found=1, last_sent=9.9, slowest_s=5.0), DEADLINE) == DEADLINE


def test_one_pass_over_the_nearest_addresses_is_made_in_any_case() -> None:
    most = DEADLINE + PASS_MOST_S
    assert stop_at(SearchProgress(unsent=True, pass_sent=None), DEADLINE) == most
    late = SearchProgress(listening=3, found=1, last_sent=DEADLINE + 1, pass_sent=DEADLINE + 1)
    assert stop_at(late, DEADLINE) == DEADLINE + 1 + SILENCE_S
    assert stop_at(SearchProgress(held=1, pass_sent=DEADLINE + 1, likely_until=DEADLINE + 2), DEADLINE) == DEADLINE + 2
    assert stop_at(SearchProgress(held=1, pass_sent=DEADLINE + 9, likely_until=DEADLINE + 9), DEADLINE) == most
    assert stop_at(SearchProgress(unsent=True, pass_sent=1.0), DEADLINE) == DEADLINE
