"""Parse the filter of displays: words, and `model:` `node:` `app:` `kind:` `failed` `late`."""

from __future__ import annotations

from collections.abc import Callable
from typing import Final

from sollol.observe.request_record import RequestRecord

LATE: Final = 1.5  # times the prediction
FIELDS: Final = ("model", "node", "app", "kind")
SEARCHED: Final = (*FIELDS, "error", "outcome")
WORDS_MOST: Final = 20

Matcher = Callable[[RequestRecord], bool]


def matcher(text: str) -> Matcher:
    """Return the check whether a finished request fits all words of a filter."""
    terms = [_term(word) for word in text.lower().split()[:WORDS_MOST]]
    return lambda record: all(term(record) for term in terms)


def _term(word: str) -> Matcher:
    name, colon, value = word.partition(":")
    if colon and name in FIELDS:
        return lambda record: value in getattr(record, name).lower()
    if word == "failed":
        return lambda record: not record.ok
    if word == "late":
        return lambda record: record.predicted_s > 0 and record.actual_s > LATE * record.predicted_s
    return lambda record: word == str(record.id) or any(word in getattr(record, field).lower() for field in SEARCHED)
