"""What a key may see and do besides asking models. Where none is asked for and none was sent, everything is open.

A key without admin rights sees its own application's requests and no others: that another one exists is told by no
status and no word, so what it may not see is answered as what is not there. Models that it may not use are on no list;
who names one is refused with the same words whether or not a node has it.
"""

from __future__ import annotations

import base64
import re
from collections.abc import Iterable
from typing import Any, Final

from sollol.errors import ResponseError, SollolError
from sollol.http_server.request import Request

_OTHER_MODELS: Final = re.compile(r"; it has [^\n]*")  # of a node that lacks the one that was asked for


def password(scheme: str, credentials: str) -> str:
    """The key in a URL (`http://any:KEY@host`), which clients send as Basic authentication; "" if there is none."""
    if scheme.lower() != "basic":
        return ""
    try:
        return base64.b64decode(credentials, validate=True).decode().partition(":")[2]
    except ValueError:
        return ""


def admin(request: Request, what: str = "change models or nodes") -> None:
    """Raises ResponseError (403) for a key that may not."""
    if request.key is not None and not request.key.admin:
        raise ResponseError(
            f"the key {request.key.name!r} may not {what}; an admin key may (sollol keys add NAME --admin)", 403
        )


def sees_all(request: Request) -> bool:
    """May it be told of requests that others made?"""
    return request.key is None or request.key.admin


def sees(request: Request, app: str) -> bool:
    """May it be told of a request of this application?"""
    return request.key is None or request.key.admin or request.key.app == app


def check_allowed(request: Request, model: str, name: str) -> None:
    """Raises ResponseError (403) if the caller's key may not use the model, which was asked for as `name`."""
    key = request.key
    if key is not None and not key.allows(model):
        raise ResponseError(f"this key may not use the model '{name}'; it may use {', '.join(key.models)}", 403)


def visible(request: Request, rows: Iterable[dict[str, Any]], name: str = "model") -> list[dict[str, Any]]:
    """Rows about models, those that the key may use. `name`: the field with the model."""
    key = request.key
    if key is None or not key.models:
        return list(rows)
    return [without_parent(request, row) for row in rows if key.allows(str(row.get(name)))]


def without_parent(request: Request, row: dict[str, Any]) -> dict[str, Any]:
    """Return what a node says of a model, without the name of the one it was made of, if the key may not use that."""
    key, details = request.key, row.get("details")
    parent = details.get("parent_model") if isinstance(details, dict) else None
    if key is None or not parent or key.allows(str(parent)):
        return row
    return {**row, "details": {**details, "parent_model": ""}}  # type: ignore[dict-item]


def without_others(request: Request, value: Any) -> Any:
    """Return a value without what its texts tell of the models that nodes have besides, if the key is for some only."""
    if request.key is None or not request.key.models:
        return value
    if isinstance(value, str):
        return _OTHER_MODELS.sub("", value)
    if isinstance(value, dict):
        return {name: without_others(request, item) for name, item in value.items()}
    return [without_others(request, item) for item in value] if isinstance(value, (list, tuple)) else value


def words(request: Request, error: SollolError) -> str:
    """What is told of an error. Where a model is missing, errors name those that a node has."""
    text: str = without_others(request, error.error if isinstance(error, ResponseError) else str(error))
    return text
