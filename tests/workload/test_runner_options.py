"""The options that make a node load a model again, as one text."""

from __future__ import annotations

from typing import Any

import pytest

from sollol.workload.runner_options import runner_key


def test_the_order_of_the_options_does_not_matter() -> None:
    assert runner_key({"num_gpu": 1, "num_ctx": 8192}) == runner_key({"num_ctx": 8192, "num_gpu": 1}) != ""


def test_options_of_sampling_do_not_count() -> None:
    assert runner_key({"temperature": 0.5, "seed": 1, "num_predict": 5}) == ""


@pytest.mark.parametrize("options", [None, "num_ctx", [], {"num_ctx": None}, {"num_ctx": [1]}, {"num_ctx": 2**64}])
def test_values_that_a_node_refuses_do_not_count(options: Any) -> None:
    assert runner_key(options) == ""


def test_the_shift_of_contexts_counts_beside_the_options() -> None:
    assert runner_key({"num_ctx": 4096}, True) == "num_ctx=4096,shift=True"
    assert runner_key(None, False) == "shift=False"
    assert runner_key({"shift": True}, "yes") == "", "a node ignores one and refuses the other"


def test_a_long_value_is_cut() -> None:
    assert len(runner_key({"num_ctx": "9" * 1000})) < 60
