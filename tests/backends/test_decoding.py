"""What decoding a JSON text takes in memory is bounded before it is decoded, whatever stands in its texts."""

from __future__ import annotations

import json
import re
import tracemalloc

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sollol.backends import decoding
from sollol.backends.decoding import (
    BLOCK,
    FREE_BYTES,
    OBJECT_BYTES,
    VALUE_BYTES,
    WORTH,
    decoded_bytes,
    fits_decoded,
    may_have_long_number,
    read_any,
)

SIZE = 4_000_000
REFUSED = [b"{},", b"[],", b"1,", b'{"a":1},', b'"ab",', b'{"a":{"b":1}},', b"[[[", b"[1],", b'{"role":"user"},']
TAKEN = {
    "a text of commas": b'"%b",' % (b"," * 100_000),
    "a text of braces": b'"%b",' % (b"{}[]" * 100_000),
    "escaped quotes": b'"%b",' % (b'\\",' * 100_000),
    "backslashes": b'"%b",' % (b"\\\\" * 100_000 + b","),
    "a backslash at the end": b'"%b\\\\",' % (b"{," * 100_000),
    "texts": b'"%b",' % (b"word, " * 20),
    "an image": b'{"images":["%b"]},' % (b"A" * 1_000_000),
}


@pytest.mark.parametrize("unit", REFUSED)
def test_many_values_are_not_worth_it(unit: bytes) -> None:
    assert not fits_decoded(b'{"model":"m","messages":[%b{}]}' % (unit * (SIZE // len(unit))))


@pytest.mark.parametrize("case", TAKEN)
@pytest.mark.parametrize("shift", range(4))
def test_texts_are_worth_it_whatever_they_say(case: str, shift: int) -> None:
    """`shift`: what stands at the border of a block."""
    unit = TAKEN[case]
    body = b'{"x":"%b","messages":[%b{}]}' % (b"y" * shift, unit * max(1, 2 * BLOCK // len(unit), 30))
    json.loads(body)
    assert fits_decoded(body)


@pytest.mark.parametrize("unit", [*REFUSED, *TAKEN.values()])
def test_what_is_worth_it_takes_no_more_than_it_says(unit: bytes) -> None:
    count = FREE_BYTES // 2 // max(decoded_bytes(unit), len(unit)) + 1
    body = b"[%b0]" % (unit * count)
    if not fits_decoded(body):
        return
    try:
        tracemalloc.start()
        msgspec.json.decode(body)
        took = tracemalloc.get_traced_memory()[1]
    except (msgspec.DecodeError, RecursionError):
        return
    finally:
        tracemalloc.stop()
    assert took <= max(FREE_BYTES, WORTH * len(body)) + 2 * len(body)


values = st.recursive(
    st.none() | st.integers(-(2**53), 2**53) | st.text(max_size=30),
    lambda inner: st.lists(inner) | st.dictionaries(st.text(max_size=5), inner),
)


@given(values, st.integers(1, 40))
@settings(max_examples=100, deadline=None)
def test_marks_are_counted_outside_of_texts_alone(value: object, block: int) -> None:
    """Against a reader that looks at each value, with blocks that end anywhere."""

    def marks(part: object) -> int:
        if isinstance(part, dict):
            commas = max(0, len(part) - 1)
            return OBJECT_BYTES + VALUE_BYTES * commas + sum(marks(inner) for inner in part.values())
        if isinstance(part, list):
            return VALUE_BYTES * max(1, len(part)) + sum(marks(inner) for inner in part)
        return 0

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(decoding, "WORTH", 0)
        patch.setattr(decoding, "BLOCK", block)
        for free, wanted in ((marks(value), True), (marks(value) - 1, False)):
            patch.setattr(decoding, "FREE_BYTES", free)
            assert decoding.fits_decoded(json.dumps(value).encode()) is wanted or free < 0


# --- numbers, texts and patterns, a block at a time ---

DIGITS = st.text("0123456789.", min_size=1, max_size=400)
EXPONENTS = st.builds("{}{}{}".format, st.sampled_from(["e", "E", "e+", "E+", "e-"]), st.just("0"), DIGITS)


@given(DIGITS, st.one_of(st.just(""), EXPONENTS), st.integers(0, 12), st.sampled_from([7, 64, BLOCK]))
@settings(max_examples=300, deadline=None)
def test_no_number_that_a_decoder_refuses_is_missed(digits: str, exponent: str, shift: int, block: int) -> None:
    """The number may stand at the border of two blocks."""
    body = b'{"%b":[%b]}' % (b"a" * shift, f"{digits}{exponent}".encode())
    try:
        read_any(body)
    except msgspec.DecodeError as error:
        if "out of range" in str(error):
            with pytest.MonkeyPatch.context() as patch:
                patch.setattr(decoding, "BLOCK", block)
                assert may_have_long_number(body)


def test_numbers_out_of_range_are_found_and_usual_ones_are_not() -> None:
    for number in (b"1e999", b"1E+0400", b"9" * 400, b"-1." + b"0" * 300 + b"e310"):
        assert may_have_long_number(number)
    assert not may_have_long_number(b'{"temperature":1.5e-7,"seed":9007199254740993,"id":"0.3.10","x":1e22}')


@given(st.text(), st.binary(max_size=3), st.integers(1, 9))
@settings(max_examples=300, deadline=None)
def test_texts_are_checked_as_a_whole(text: str, rest: bytes, block: int) -> None:
    body = text.encode("utf-8", "surrogatepass") + rest
    try:
        body.decode()
        wanted = True
    except UnicodeDecodeError:
        wanted = False
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(decoding, "BLOCK", block)
        assert decoding.is_text(body) is wanted


@given(st.integers(0, 30), st.integers(1, 9))
def test_patterns_are_found_across_blocks(place: int, block: int) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(decoding, "BLOCK", block)
        assert decoding.finds(re.compile(rb"\\ud8"), b"a" * place + rb"\ud8" + b"a" * 9, 6)
        assert not decoding.finds(re.compile(rb"\\ud8"), b"a" * place + rb"\ue8", 6)
