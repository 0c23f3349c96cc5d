"""Validate the rows of a node's model lists; malformed rows are left out."""

from __future__ import annotations

from typing import Any, Final

import msgspec

from sollol.backends.decoding import INT_MOST

_SIZES: Final = ("size", "size_vram", "context_length")
_TEXTS: Final = ("name", "model", "digest", "expires_at", "modified_at")
NAME_MOST: Final = 1024  # characters of a model's name


def valid_rows(value: Any) -> tuple[list[dict[str, Any]], int]:
    """Return the valid rows of a decoded /api/tags or /api/ps, and the number of the others.

    Raises:
        msgspec.DecodeError: There is no list.
    """
    models = value.get("models", []) if isinstance(value, dict) else value
    if models is None:
        return [], 0
    if not isinstance(models, list):
        raise msgspec.DecodeError(f"models is {str(models)[:40]!r}; expected a list")
    good = [row for row in models if _is_row(row)]
    return good, len(models) - len(good)


def _is_row(row: Any) -> bool:
    if not isinstance(row, dict):
        return False
    for name in _SIZES:
        size = row.get(name)
        if size is not None and (type(size) is not int or not 0 <= size <= INT_MOST):
            return False
    for name in _TEXTS:
        text = row.get(name)
        if text is not None and (not isinstance(text, str) or len(text) > NAME_MOST):
            return False
    return bool(row.get("model") or row.get("name")) and isinstance(row.get("details") or {}, dict)
