"""Decode foreign JSON with one kind of exception for all its faults.

Hostile or broken senders produce lists nested a thousand deep, numbers of 400 digits, bytes that are not text. Each
raises another exception in a decoder, and an unexpected one would leave a caller waiting.
"""

from __future__ import annotations

import codecs
import re
from collections.abc import Callable
from typing import Annotated, Any, Final, TypeVar

import msgspec

# Least memory of decoded values: an object with a field, a list, anything else.
OBJECT_BYTES: Final = 240
VALUE_BYTES: Final = 64
WORTH: Final = 4  # permitted bytes of memory per byte of JSON: texts of 16 bytes and more need less
FREE_BYTES: Final = 16 * 1024 * 1024  # permitted for any JSON
_NO_MARKS: Final = bytes(set(range(256)) - set(b'",[{'))
BLOCK: Final = 128 * 1024  # bytes scanned at once: other threads wait as long
# Digits and points as 0, the letter of an exponent as e, all else as a space.
_NUMBERS: Final = bytes(48 if byte in b"0123456789." else 101 if byte in b"eE" else 32 for byte in range(256))
_LONG_NUMBERS: Final = (b"0" * 200, b"0e000")  # of so many digits; with such an exponent
_LONG_NUMBER: Final = 200  # bytes that two blocks share, so that none of these is cut

T = TypeVar("T")

INT_MOST: Final = 2**63 - 1  # int64 of Go, in which Ollama is written
# An integer of a node. A larger one raises before any calculation.
Int = Annotated[int, msgspec.Meta(ge=-(2**63), le=INT_MOST)]


def json_reader(shape: type[T]) -> Callable[[bytes], T]:
    """Return a function that decodes bytes into `shape`, and raises only msgspec.DecodeError."""
    decode = msgspec.json.Decoder(shape if shape is not object else Any).decode

    def read(body: bytes) -> T:
        try:
            found: T = decode(body)
        except (RecursionError, OverflowError, UnicodeError) as error:
            raise msgspec.DecodeError(_message(error)) from None
        return found

    return read


def json_lines(shape: type[T]) -> Callable[[bytes], list[T]]:
    """Return a function that decodes lines of JSON into `shape`, and raises only msgspec.DecodeError."""
    decode = msgspec.json.Decoder(shape).decode_lines

    def read(body: bytes) -> list[T]:
        try:
            found: list[T] = decode(body)
        except (RecursionError, OverflowError, UnicodeError) as error:
            raise msgspec.DecodeError(_message(error)) from None
        return found

    return read


def _message(error: Exception) -> str:
    if isinstance(error, RecursionError):
        return "it is nested too deep"
    return f"it cannot be read ({type(error).__name__})"


def decoded_bytes(body: bytes) -> int:
    """Return an upper bound of the memory of a JSON text's values in bytes, without its texts, by counting."""
    return VALUE_BYTES * (body.count(b",") + body.count(b"[")) + OBJECT_BYTES * body.count(b"{")


def fits_decoded(body: bytes) -> bool:
    """Check that the decoded values take at most a few times the memory of their JSON."""
    most = max(FREE_BYTES, WORTH * len(body))
    found = 0
    for place in range(0, len(body), BLOCK):
        found += decoded_bytes(body[place : place + BLOCK])
        if found > most:
            break
    else:
        return True
    place, found, is_inside = 0, 0, 0  # `is_inside`: the block begins inside a text
    while place < len(body) and found <= most:
        block = body[place : place + BLOCK]
        if (len(block) - len(block.rstrip(b"\\"))) % 2:  # keep an escaped character with its backslash
            block = body[place : place + BLOCK + 1]
        place += len(block)
        parts = block.replace(b"\\\\", b"").replace(b'\\"', b"").translate(None, _NO_MARKS).split(b'"')
        found += decoded_bytes(b"".join(parts[is_inside::2]))
        is_inside ^= (len(parts) - 1) & 1
    return found <= most


read_any: Final[Callable[[bytes], Any]] = json_reader(Any)


def is_text(body: bytes) -> bool:
    """Check for UTF-8. A decoder does not check the values that it skips."""
    if body.isascii():
        return True
    decode = codecs.getincrementaldecoder("utf-8")().decode
    try:
        for place in range(0, len(body), BLOCK):
            decode(body[place : place + BLOCK], place + BLOCK >= len(body))
    except UnicodeDecodeError:
        return False
    return True


def finds(pattern: re.Pattern[bytes], body: bytes, longest: int) -> bool:
    """Search for a pattern that matches at most `longest` bytes, a block at a time."""
    return any(pattern.search(body, place, place + BLOCK + longest) for place in range(0, len(body), BLOCK))


def may_have_long_number(body: bytes) -> bool:
    """Check for numbers that may be out of range: of 200 digits, or with an exponent of three.

    Texts may contain such digits, too. A regular expression takes ten times as long.
    """
    for place in range(0, len(body), BLOCK):
        numbers = body[place : place + BLOCK + _LONG_NUMBER].translate(_NUMBERS, b"+")
        if any(number in numbers for number in _LONG_NUMBERS):
            return True
    return False
