"""Check what a key may see and change. Without required keys, everything is open.

A key without admin rights may read only its own application's requests; others do not exist for it.
Models that it may not use are on no list, and their use is refused with the same message whether or not a node has
them.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from typing import Any, Final

from sollol.errors import ResponseError, SollolError
from sollol.http_server.request import Request

_OTHER_MODELS: Final = re.compile(r"; it has [^\n]*")  # in the error of a node that lacks the requested model


def check_admin(request: Request, what: str = "change models or nodes") -> None:
    """Check that the caller's key has admin rights.

    Raises:
        ResponseError: 403, if it has not.
    """
    if request.key is not None and not request.key.admin:
        raise ResponseError(
            f"the key {request.key.name!r} may not {what}; an admin key may (sollol keys add NAME --admin)", 403
        )


def sees_all(request: Request) -> bool:
    """Check whether the caller may see requests of other keys."""
    return request.key is None or request.key.admin


def sees(request: Request, app: str) -> bool:
    """Check whether the caller may see requests of this application."""
    return request.key is None or request.key.admin or request.key.app == app


def check_allowed(request: Request, model: str, name: str) -> None:
    """Check that the caller's key may use the model, requested as `name`.

    Raises:
        ResponseError: 403, if it may not.
    """
    key = request.key
    if key is not None and not key.allows(model):
        raise ResponseError(f"this key may not use the model '{name}'; it may use {', '.join(key.models)}", 403)


def visible(request: Request, rows: Iterable[dict[str, Any]], name: str = "model") -> list[dict[str, Any]]:
    """Return the rows about models that the key may use; `name` is the field with the model."""
    key = request.key
    if key is None or not key.models:
        return list(rows)
    return [without_parent(request, row) for row in rows if key.allows(str(row.get(name)))]


def without_parent(request: Request, row: dict[str, Any]) -> dict[str, Any]:
    """Return a model's row without the name of its parent model, if the key may not use the parent."""
    key, details = request.key, row.get("details")
    parent = details.get("parent_model") if isinstance(details, dict) else None
    if key is None or not parent or key.allows(str(parent)):
        return row
    return {**row, "details": {**details, "parent_model": ""}}  # type: ignore[dict-item]


def without_others(request: Request, value: Any) -> Any:
    """Return a value without the names of a node's other models, if the key is limited to some models."""
    if request.key is None or not request.key.models:
        return value
    if isinstance(value, str):
        return _OTHER_MODELS.sub("", value)
    if isinstance(value, dict):
        return {name: without_others(request, item) for name, item in value.items()}
    return [without_others(request, item) for item in value] if isinstance(value, (list, tuple)) else value


def shown_message(request: Request, error: SollolError) -> str:
    """Return the message of an error, without the models that the key may not use."""
    text: str = without_others(request, error.error if isinstance(error, ResponseError) else str(error))
    return text
