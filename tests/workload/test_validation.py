"""Arguments of callers: the final value, or an error that names the argument, its value and what was expected."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from sollol.core.types import RoutingMode, TaskPriority, TaskType
from sollol.errors import BadInput
from sollol.workload import validation as v

GOOD: list[tuple[Callable[[Any], Any], Any, Any]] = [
    (v.check_model, "llama3.2", "llama3.2"),
    (v.check_priority, TaskPriority.HIGH, 8),
    (v.check_timeout, None, None),
    (v.check_timeout, 2, 2.0),
    (v.check_mode, None, None),
    (v.check_mode, "fast", RoutingMode.FAST),
    (v.check_hedge, True, True),
    (v.check_type, "code", TaskType.CODE),
    (v.check_only, None, None),
    (v.check_only, "10.0.0.5", ("10.0.0.5:11434",)),
    (v.check_only, ["a", {"host": "b", "port": 1}], ("a:11434", "b:1")),
    (v.check_mixed_digests, "one", "one"),
    (v.check_digests, None, {}),
    (v.check_strategy, "fairness", "fairness"),
]
BAD: list[tuple[Callable[[Any], Any], Any, str]] = [
    (v.check_model, " ", "model=' '; expected the name of a model"),
    (v.check_priority, True, "priority=True; expected a whole number from 0"),
    (v.check_priority, 11, "priority=11"),
    (v.check_timeout, 0, "timeout=0; expected seconds above 0"),
    (v.check_timeout, float("nan"), "timeout=nan"),
    (v.check_mode, "quick", "quick"),
    (v.check_hedge, 2, "hedge=2"),
    (v.check_type, "poem", "poem"),
    (v.check_only, [], "node"),
    (v.check_mixed_digests, "two", "two"),
    (v.check_digests, {"m": "xyz"}, "xyz"),
    (v.check_strategy, "best", "best"),
]


@pytest.mark.parametrize(("check", "value", "found"), GOOD)
def test_the_final_value(check: Callable[[Any], Any], value: Any, found: Any) -> None:
    assert check(value) == found


@pytest.mark.parametrize(("check", "value", "message"), BAD)
def test_the_error_names_the_value(check: Callable[[Any], Any], value: Any, message: str) -> None:
    with pytest.raises(BadInput) as caught:
        check(value)
    assert message in str(caught.value)
    assert "expected" in str(caught.value)


def test_named_arguments() -> None:
    assert v.check_count("most", 1) == 1
    assert v.check_flag("on", False) is False
    for check, message in (
        (lambda: v.check_count("most", 0), "most=0"),
        (lambda: v.check_flag("on", 1), "on=1"),
        (lambda: v.check_text("input", 3, 7), "input[3] is 7 (int)"),
    ):
        with pytest.raises(BadInput) as caught:
            check()
        assert message in str(caught.value)


def test_a_long_value_is_cut_in_a_message() -> None:
    assert len(v.short("x" * 10_000)) < 200
