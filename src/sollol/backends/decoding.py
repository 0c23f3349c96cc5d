"""Read JSON that others have written: whatever is wrong with it, one kind of exception says so.

A decoder meets what no honest sender writes: lists nested a thousand deep, numbers of 400 digits, bytes that are no
text. Each would end in an exception of another kind, and one that nobody expects leaves somebody waiting.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Annotated, Any, Final, TypeVar

import msgspec

# What values take in memory when they are decoded, at least: an object with a field, a list, anything else.
OBJECT_BYTES: Final = 240
VALUE_BYTES: Final = 64
WORTH: Final = 4  # bytes of memory for a byte of JSON: texts of 16 bytes and more take less
FREE_BYTES: Final = 16 * 1024 * 1024  # that any JSON may take
_NO_MARKS: Final = bytes(set(range(256)) - set(b'",[{'))
BLOCK: Final = 128 * 1024  # that is looked at in one go: other threads wait as long

T = TypeVar("T")

INT_MOST: Final = 2**63 - 1  # as in Go, in which Ollama is written
# A whole number as a node can tell it. A larger one is refused before anybody reckons with it.
Int = Annotated[int, msgspec.Meta(ge=-(2**63), le=INT_MOST)]


def json_reader(shape: type[T]) -> Callable[[bytes], T]:
    """Return a function that decodes bytes into `shape`. It raises msgspec.DecodeError, and nothing else."""
    decode = msgspec.json.Decoder(shape if shape is not object else Any).decode

    def read(body: bytes) -> T:
        try:
            found: T = decode(body)
        except (RecursionError, OverflowError, UnicodeError) as error:
            raise msgspec.DecodeError(_told(error)) from None
        return found

    return read


def json_lines(shape: type[T]) -> Callable[[bytes], list[T]]:
    """Return the same for lines of JSON."""
    decode = msgspec.json.Decoder(shape).decode_lines

    def read(body: bytes) -> list[T]:
        try:
            found: list[T] = decode(body)
        except (RecursionError, OverflowError, UnicodeError) as error:
            raise msgspec.DecodeError(_told(error)) from None
        return found

    return read


def _told(error: Exception) -> str:
    if isinstance(error, RecursionError):
        return "it is nested too deep"
    return f"it cannot be read ({type(error).__name__})"


def decoded_bytes(body: bytes) -> int:
    """Return what the values of a JSON text may take in memory, besides its texts: an upper bound, by counting."""
    return VALUE_BYTES * (body.count(b",") + body.count(b"[")) + OBJECT_BYTES * body.count(b"{")


def is_worth_decoding(body: bytes) -> bool:
    """Check that decoding a JSON text takes at most a few times its own size in memory."""
    most = max(FREE_BYTES, WORTH * len(body))
    found = 0
    for place in range(0, len(body), BLOCK):
        found += decoded_bytes(body[place : place + BLOCK])
        if found > most:
            break
    else:
        return True
    place, found, is_inside = 0, 0, 0  # of a text, at the beginning of a block
    while place < len(body) and found <= most:
        block = body[place : place + BLOCK]
        if (len(block) - len(block.rstrip(b"\\"))) % 2:  # what its last backslash escapes belongs to it
            block = body[place : place + BLOCK + 1]
        place += len(block)
        parts = block.replace(b"\\\\", b"").replace(b'\\"', b"").translate(None, _NO_MARKS).split(b'"')
        found += decoded_bytes(b"".join(parts[is_inside::2]))
        is_inside ^= (len(parts) - 1) & 1
    return found <= most


read_any: Final[Callable[[bytes], Any]] = json_reader(Any)


def is_text(body: bytes) -> bool:
    """Check that bytes are UTF-8. What a decoder passes over, it does not look at."""
    if body.isascii():
        return True
    try:
        body.decode()
    except UnicodeDecodeError:
        return False
    return True
