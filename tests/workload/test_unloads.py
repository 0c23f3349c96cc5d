"""Whether a call unloads its model at its end is read as a node reads it, on each route."""

from __future__ import annotations

import json
from typing import Any

import pytest

from sollol.gateway.formats.api_formats import CHAT_FORMATS
from sollol.workload.task import unloads

ZERO: list[Any] = [0, 0.0, 1e-12, "0", "-0", "0s", "0h0m0s", "0.0ms", ".0us", "00m"]
OTHER: list[Any] = [
    None,
    -1,
    1,
    0.5,
    True,
    False,
    "",
    "s",
    "hms",
    ".",
    "0.0",
    "0x",
    "5m",
    "-1",
    "1h0m",
    "0s1ms",
    [],
    {},
]


@pytest.mark.parametrize("value", ZERO, ids=repr)
def test_a_zero_unloads(value: Any) -> None:
    assert unloads(value)


@pytest.mark.parametrize("value", OTHER, ids=repr)
def test_nothing_else_does(value: Any) -> None:
    assert not unloads(value)


@pytest.mark.parametrize("value", [*ZERO, *OTHER], ids=repr)
@pytest.mark.parametrize("api_format", CHAT_FORMATS[:2], ids=lambda api_format: api_format.path)
def test_a_request_of_the_gateway_is_read_alike(api_format: Any, value: Any) -> None:
    fields = {"model": "m", "messages": [{"role": "user", "content": "a"}], "prompt": "a", "keep_alive": value}
    full, bare = (api_format.parse(json.dumps(body).encode()) for body in (fields, {"model": "m", "keep_alive": value}))
    assert (full.repeatable, full.unloads) == (not unloads(value), False)
    assert bare.unloads is unloads(value)
