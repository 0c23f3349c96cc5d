"""A task holds values only: it can be written down and read again."""

from __future__ import annotations

import json

from hypothesis import given
from hypothesis import strategies as st

from sollol.core.types import Kind, RoutingMode, Task, TaskType, task_from_values, task_to_values

TASKS = st.builds(
    Task,
    st.integers(0, 2**53),
    st.sampled_from(Kind),
    st.text(),
    cost=st.integers(0, 2**31),
    priority=st.integers(0, 10),
    app=st.text(),
    tokens_out=st.none() | st.integers(-2, 2**33),
    options=st.text(),
    deadline_us=st.none() | st.integers(0, 2**53),
    batch=st.booleans(),
    width=st.none() | st.integers(1, 64),
    type=st.sampled_from(TaskType),
    mode=st.none() | st.sampled_from(RoutingMode),
    hedge=st.none() | st.booleans() | st.text(),
    stream=st.booleans(),
    prefix=st.lists(st.tuples(st.integers(0, 2**32), st.integers(0, 2**31)), max_size=8).map(tuple),
    only=st.none() | st.lists(st.text(), max_size=3).map(tuple),
    gpu=st.booleans(),
    route=st.text(),
    observable=st.booleans(),
)


@given(TASKS)
def test_a_task_survives_json(task: Task) -> None:
    assert task_from_values(json.loads(json.dumps(task_to_values(task)))) == task
