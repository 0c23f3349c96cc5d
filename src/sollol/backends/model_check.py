"""Check that an answer belongs to its request, by the name of the model in it.

A node, or a proxy in front of it, may send two answers to one request on a kept connection. The second would be taken
for the answer to the next request, perhaps of another client.
"""

from __future__ import annotations

import re
from functools import lru_cache
from typing import Final

import msgspec

from sollol.backends.decoding import read_any
from sollol.core.types import Outcome, Status, canonical_model

_FIELD: Final = b'"model"'
HEAD: Final = 4096  # bytes searched for the name of a model
# Quotes inside a text are escaped, so only a field matches.
_MODEL: Final = re.compile(rb'"model"\s*:\s*("(?:[^"\\]|\\.){0,1100}")')
_ROUTES: Final = frozenset(
    ("/api/chat", "/api/generate", "/api/embed", "/v1/chat/completions", "/v1/completions", "/v1/embeddings")
)


@lru_cache(256)
def _usual_fields(model: str) -> tuple[bytes, ...]:
    """Return the field in which a node names this model, with and without the default tag, as nodes write it."""
    names = (model, model.removesuffix(":latest"))
    return tuple(_FIELD + b":" + msgspec.json.encode(name) for name in names)


def wrong_model(body: bytes, model: str, path: str) -> Outcome | None:
    """Return the failure of an answer that names another model than the request, else None."""
    if path not in _ROUTES or body.startswith(_usual_fields(model), body.find(_FIELD)):
        return None
    found = _MODEL.search(body, 0, HEAD)
    if found is None:
        return None
    try:
        name = str(read_any(found.group(1)))
    except msgspec.DecodeError:
        return None
    if canonical_model(name).casefold() == model.casefold():
        return None
    return Outcome(Status.FAILED, f"it answers for model {name[:100]!r}; expected {model!r}", 200)
