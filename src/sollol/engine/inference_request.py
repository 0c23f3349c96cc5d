"""A validated and encoded call of the inference API."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

from sollol.answers import Answer
from sollol.core.types import Kind, TaskType
from sollol.workload.call_options import CallOptions


class InferenceRequest(NamedTuple):
    """One call of the inference API, ready for scheduling."""

    kind: Kind
    path: str
    model: str
    body: bytes
    cost: int
    stream: bool
    options: str
    tokens_out: int | None
    answer: type[Answer]
    call: CallOptions
    type: TaskType
    prefix: tuple[tuple[int, int], ...]
    fields: Mapping[str, Any]  # the fields of the body
