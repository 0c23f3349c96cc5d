"""The waiting line against a naive model, and what it promises: priority, ageing, fairness."""

from __future__ import annotations

from hypothesis import given, settings
from hypothesis import strategies as st

from sollol.core.state.queue import AGEING_INTERVAL, FairShares, WaitQueue

FIXED = settings(derandomize=True, deadline=None, max_examples=150)
STEP = st.tuples(
    st.sampled_from(["push", "serve", "remove", "again"]),
    st.integers(0, 10),
    st.sampled_from("abc"),
    st.integers(0, 99),
)


def drain(line: WaitQueue, at: int) -> list[int]:
    order = []
    while (task := line.peek(at)) is not None:
        order.append(task)
        line.charge(task, at)
    return order


@FIXED
@given(st.lists(STEP, max_size=80))
def test_every_task_that_was_pushed_is_served_once_or_removed(steps: list[tuple[str, int, str, int]]) -> None:
    line = WaitQueue(FairShares())
    waiting: set[int] = set()
    served: list[int] = []
    for at, (what, priority, app, pick) in enumerate(steps):
        chosen = sorted(waiting)[pick % len(waiting)] if waiting else None
        if what == "push":
            line.push(at, priority, at, at, app, pick + 1.0)
            waiting.add(at)
        elif what == "again" and chosen is not None:
            line.push(chosen, priority, 0, at, app)
        elif what == "remove" and chosen is not None:
            line.remove(chosen)
            waiting.remove(chosen)
        elif what == "serve":
            head = line.peek(at)
            assert (head is None) == (not waiting)
            if head is not None:
                line.charge(head, at)
                waiting.remove(head)
                served.append(head)
        assert len(line) == len(waiting)
        assert all(task in line for task in waiting)
    assert sorted(drain(line, 10**9)) == sorted(waiting)
    assert len(served) == len(set(served))


@FIXED
@given(st.lists(st.tuples(st.integers(0, 10), st.sampled_from("ab"), st.floats(1, 50)), min_size=1, max_size=30))
def test_what_is_foretold_is_what_is_served_while_no_time_passes(tasks: list[tuple[int, str, float]]) -> None:
    line = WaitQueue(FairShares())
    for number, (priority, app, tokens) in enumerate(tasks):
        line.push(number, priority, number, 0, app, tokens)
    foretold = line.first(len(tasks), 0)
    assert foretold[0] == line.peek(0)
    assert sorted(foretold) == list(range(len(tasks)))
    levels = [tasks[task][0] for task in foretold]
    assert levels == sorted(levels, reverse=True)


@FIXED
@given(st.lists(st.integers(0, 10), min_size=1, max_size=40))
def test_without_waiting_higher_priority_goes_first_and_equals_in_order_of_arrival(priorities: list[int]) -> None:
    line = WaitQueue(FairShares())
    for number, priority in enumerate(priorities):
        line.push(number, priority, number, 0)
    assert drain(line, 0) == sorted(range(len(priorities)), key=lambda i: (-priorities[i], i))


def test_a_low_task_is_served_under_an_endless_flood_of_urgent_ones() -> None:
    line = WaitQueue(FairShares())
    line.push(0, 2, 0, 0)
    number = 1
    for at in range(0, 60 * AGEING_INTERVAL // 5, AGEING_INTERVAL // 5):
        line.push(number, 8, at, at)
        number += 1
        task = line.peek(at)
        assert task is not None
        line.charge(task, at)
        if task == 0:
            assert at <= 7 * AGEING_INTERVAL
            return
    raise AssertionError("it starved")


def test_a_flood_of_old_low_tasks_does_not_bar_an_urgent_one() -> None:
    line = WaitQueue(FairShares())
    for number in range(100):
        line.push(number, 2, 0, 0)
    at = 20 * AGEING_INTERVAL
    task = line.peek(at)
    assert task is not None
    line.charge(task, at)  # the level was served: its age is spent
    line.push(1_000, 9, at, at)
    assert line.peek(at) == 1_000


def test_applications_share_by_tokens_while_both_wait() -> None:
    shares = FairShares()
    line = WaitQueue(shares)
    number = 0
    for _ in range(400):
        line.push(number, 5, number, 0, "loud", 10.0)
        number += 1
    for _ in range(40):
        line.push(number, 5, number, 0, "quiet", 30.0)
        number += 1
    given_to = {"loud": 0.0, "quiet": 0.0}
    for at in range(120):
        task = line.peek(at)
        assert task is not None
        app, tokens = ("loud", 10.0) if task < 400 else ("quiet", 30.0)
        given_to[app] += tokens
        line.charge(task, at)
    a, b = given_to.values()
    assert (a + b) ** 2 / (2 * (a * a + b * b)) >= 0.99


def test_an_application_that_was_away_gets_no_credit_for_it() -> None:
    line = WaitQueue(FairShares())
    for number in range(50):
        line.push(number, 5, number, 0, "old", 10.0)
    for at in range(40):
        task = line.peek(at)
        assert task is not None
        line.charge(task, at)
    for number in range(100, 110):
        line.push(number, 5, number, 40, "new", 10.0)
    first = line.first(6, 40)
    assert sum(task < 100 for task in first) == 3
