"""What a load takes, and what it puts out."""

from __future__ import annotations

import pytest

from sollol.core.state.loading import UNKNOWN, LoadTimeEstimator, MemoryFit
from sollol.core.types import SECOND

MB, GB = 10**6, 10**9


def test_before_any_load_the_prediction_is_sane() -> None:
    time = LoadTimeEstimator()
    assert time.predict(90 * MB) < SECOND
    assert 2 * SECOND < time.predict(4 * GB) < 10 * SECOND


def test_a_tiny_model_says_nothing_of_the_bandwidth() -> None:
    time = LoadTimeEstimator()
    time.add(460_000, 262_000)
    assert time.predict(90 * MB) == pytest.approx(0.35 * SECOND, rel=0.1)
    assert time.predict(460_000) == pytest.approx(262_000, rel=0.02)


@pytest.mark.parametrize(("fixed_s", "bytes_per_us"), [(0.25, 2000.0), (2.0, 100.0), (0.5, 3000.0), (0.1, 500.0)])
def test_both_parts_are_learned(fixed_s: float, bytes_per_us: float) -> None:
    time = LoadTimeEstimator()
    sizes = [int(0.3 * GB), 4 * GB, 1 * GB, 8 * GB, 2 * GB, int(0.05 * GB)]
    for size in sizes * 4:
        time.add(size, round(fixed_s * SECOND + size / bytes_per_us))
    for size in (10 * MB, GB, 20 * GB):
        assert time.predict(size) == pytest.approx(fixed_s * SECOND + size / bytes_per_us, rel=0.3, abs=0.1 * SECOND)


def test_a_slow_disk_is_seen_in_one_large_load() -> None:
    time = LoadTimeEstimator()
    time.add(4 * GB, 60 * SECOND)
    assert time.predict(4 * GB) == pytest.approx(60 * SECOND, rel=0.3)


def test_what_went_when_another_came_did_not_fit() -> None:
    memory = MemoryFit()
    assert memory.risk({"a": 6 * GB}, 6 * GB) == UNKNOWN, "nothing is known yet"
    memory.seen({"a": 6 * GB}, {"a": 6 * GB}, {"b": 6 * GB}, {}, frozenset("a"))
    assert memory.risk({"a": 6 * GB}, 6 * GB) == 1.0
    assert memory.risk({"a": 6 * GB}, 8 * GB) == 1.0
    assert memory.risk({"a": 6 * GB}, 1 * GB) == UNKNOWN, "less than what did not fit"
    assert memory.risk({}, 12 * GB) == 0.0


def test_a_model_that_nobody_used_has_expired() -> None:
    memory = MemoryFit()
    memory.seen({"a": 6 * GB}, {"a": 6 * GB}, {"b": 6 * GB}, {}, frozenset())
    assert memory.risk({"a": 6 * GB}, 6 * GB) < 1.0


def test_a_node_takes_as_many_models_as_were_seen_and_three_before() -> None:
    memory = MemoryFit()
    assert memory.most_models(10 * GB) == 3
    memory.seen({}, {}, dict.fromkeys("abcd", MB), {}, frozenset())
    assert memory.most_models(10 * GB) == 4
    memory.note(3, 12 * GB)
    assert memory.most_models(10 * GB) == 4, "those were too large"
    memory.note(3, 3 * MB)
    assert memory.most_models(10 * GB) == 2, "it was their number"


def test_what_is_seen_together_fits() -> None:
    memory = MemoryFit()
    memory.seen({"a": 6 * GB}, {"a": 6 * GB}, {"b": 6 * GB}, {}, frozenset("a"))
    memory.seen({"b": 6 * GB}, {"b": 6 * GB}, {"a": 6 * GB, "b": 6 * GB}, {}, frozenset("b"))
    assert memory.risk({"a": 6 * GB}, 6 * GB) < 1.0


def test_a_count_of_models_is_learned() -> None:
    memory = MemoryFit()
    memory.seen(
        {"a": MB, "b": MB, "c": MB}, {"a": MB, "b": MB, "c": MB}, {"d": MB, "b": MB, "c": MB}, {}, frozenset("abc")
    )
    assert memory.risk({"b": MB, "c": MB, "d": MB}, MB) == 1.0
    assert memory.risk({"b": MB, "c": MB}, MB) < 1.0


def test_a_model_that_was_unloaded_beside_another_says_nothing() -> None:
    memory = MemoryFit()
    memory.seen({"a": GB, "b": GB}, {"a": GB, "b": GB}, {"b": GB}, {}, frozenset("ab"))
    assert memory.risk({"b": GB}, GB) < 1.0


def test_a_model_that_only_answered_counts_as_in_memory() -> None:
    memory = MemoryFit()
    memory.seen({}, {"a": GB, "b": GB}, {"b": GB}, {}, frozenset("ab"))
    assert memory.risk({"b": GB}, GB) == 1.0


def test_what_is_being_loaded_is_not_listed_yet() -> None:
    memory = MemoryFit()
    memory.seen({"a": GB}, {"a": GB}, {}, {"b": GB}, frozenset("a"))
    assert memory.risk({"a": GB}, GB) == 1.0
