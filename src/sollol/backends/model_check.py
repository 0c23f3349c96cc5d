"""Check that an answer is one to what was asked, where it names its model.

A node, or what stands before it, may send two answers to one question on a connection that is kept. The second would be
taken for the answer to the next question, perhaps another client's.
"""

from __future__ import annotations

import re
from typing import Final

import msgspec

from sollol.backends.decoding import read_any
from sollol.core.types import Outcome, Status, canonical_model

HEAD: Final = 4096  # bytes in which a model is named, if it is
# Inside of a text the quotes would be escaped: only a field is found.
_MODEL: Final = re.compile(rb'"model"\s*:\s*("(?:[^"\\]|\\.){0,1100}")')
_TELLING: Final = frozenset(
    ("/api/chat", "/api/generate", "/api/embed", "/v1/chat/completions", "/v1/completions", "/v1/embeddings")
)


def of_another(body: bytes, model: str, path: str) -> Outcome | None:
    """Return the failure that an answer is which names another model than the one asked for; else None."""
    found = _MODEL.search(body, 0, HEAD) if path in _TELLING else None
    if found is None:
        return None
    try:
        name = str(read_any(found.group(1)))
    except msgspec.DecodeError:
        return None
    if canonical_model(name).casefold() == model.casefold():
        return None
    return Outcome(Status.FAILED, f"it answers for {name[:100]!r}, which was not asked for", 200)
