"""Read JSON that others have written: whatever is wrong with it, one kind of exception says so.

A decoder meets what no honest sender writes: lists nested a thousand deep, numbers of 400 digits, bytes that are no
text. Each would end in an exception of another kind, and one that nobody expects leaves somebody waiting.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Annotated, Any, Final, TypeVar

import msgspec

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
