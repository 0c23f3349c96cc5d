"""Take the texts of a batch from whatever its caller gave, checked."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from itertools import islice

from sollol.errors import BadInput
from sollol.workload.validation import check_text

FEED_SLICE = 4096  # texts handed over at once from an iterator


def take(source: Iterator[str], count: int, fed: int) -> tuple[list[str], bool]:
    """Up to `count` more texts, checked, and whether the source has ended."""
    wanted = min(count, FEED_SLICE)
    texts = list(islice(source, wanted))
    for index, text in enumerate(texts, fed):
        check_text("inputs", index, text)
    return texts, len(texts) < wanted


def as_sequence(inputs: Iterable[str]) -> Sequence[str] | None:
    """The inputs as they are if they are all there already, checked; None for an iterator."""
    if isinstance(inputs, (str, bytes)):
        raise BadInput(f"inputs={inputs[:40]!r}; expected a list of strings: [text] for one text")
    if not isinstance(inputs, (list, tuple)):
        return None
    for index, text in enumerate(inputs):
        check_text("inputs", index, text)
    return inputs
