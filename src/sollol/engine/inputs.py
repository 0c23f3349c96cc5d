"""Read and validate the texts of a batch."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from itertools import islice

from sollol.errors import BadInput
from sollol.workload.validation import check_text

FEED_SLICE = 4096  # texts read at once from an iterator


def take_texts(source: Iterator[str], count: int, fed: int) -> tuple[list[str], bool]:
    """Return up to `count` more texts, and True if the source has ended.

    Raises:
        BadInput: An item is no text.
    """
    size = min(count, FEED_SLICE)
    texts = list(islice(source, size))
    for index, text in enumerate(texts, fed):
        check_text("inputs", index, text)
    return texts, len(texts) < size


def as_sequence(inputs: Iterable[str]) -> Sequence[str] | None:
    """Validate and return inputs that are a list or a tuple; None for an iterator.

    Raises:
        BadInput: The inputs are one text, or an item is no text.
    """
    if isinstance(inputs, (str, bytes)):
        raise BadInput(f"inputs={inputs[:40]!r}; expected a list of strings: [text] for one text")
    if not isinstance(inputs, (list, tuple)):
        return None
    for index, text in enumerate(inputs):
        check_text("inputs", index, text)
    return inputs
