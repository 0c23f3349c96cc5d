"""Reading a body as Go does takes a few times its memory, whatever its escapes are."""

from __future__ import annotations

import tracemalloc

import pytest

from sollol.backends.go_json import normalised

REPEAT = 100_000


@pytest.mark.parametrize("name", ["prompt", "Prompt"])
@pytest.mark.parametrize("escape", [rb"\u0041", rb"\ud800", rb"\ud83d\ude00", rb"\n", rb"\\", rb"\"", rb"\\ud800"])
def test_escapes_take_a_few_times_the_memory_of_the_body(name: str, escape: bytes) -> None:
    body = b'{"model":"m","%b":"\\ud800%b"}' % (name.encode(), escape * REPEAT)
    tracemalloc.start()
    try:
        found = normalised(body)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert b'"prompt":' in found
    assert peak <= 8 * len(body) + 2**20
