"""Build errors in the form of the API that was called: Ollama's, OpenAI's or Anthropic's."""

from __future__ import annotations

import math
import re
import secrets
from typing import Any

import msgspec

from sollol.errors import (
    BadInput,
    DeadlineExceeded,
    NoNodeAvailable,
    QueueFull,
    ResponseError,
    SollolError,
)
from sollol.gateway.auth.admission import Unauthorized
from sollol.gateway.auth.rate_limit import RateLimited
from sollol.printable import printable_json

_TYPES = {
    400: "invalid_request_error",
    401: "authentication_error",
    403: "permission_error",
    404: "not_found_error",
    413: "request_too_large",
    429: "rate_limit_error",
    503: "overloaded_error",
}
_PLAIN = re.compile(r"[\w.:/@-]{1,200}", re.ASCII)
_OPENAI = {400, 404, 401, 403, 429}  # others are its "api_error"


class UnknownModel(ResponseError):
    """No node has a model. The message is that of a node's route; the command that brings it is in a header."""

    def __init__(self, path: str, name: str) -> None:
        self.name = name
        super().__init__(unknown_model(path, name), 404)

    @property
    def headers(self) -> tuple[tuple[str, str], ...]:
        """The header with the hint; none for a name that a header cannot have."""
        if not _PLAIN.fullmatch(self.name):
            return ()
        return (("X-Sollol-Hint", f"no node has {self.name}; sollol models pull {self.name}"),)


def unknown_model(path: str, name: str) -> str:
    """Return the message of a node's route for a model that it does not have."""
    if path in ("/api/embed", "/api/embeddings", "/v1/embeddings"):
        return f'model "{name}" not found, try pulling it first'
    return f"model '{name}' not found"


def error_body(path: str, status: int, message: str) -> bytes:
    """Return the body of an error answer for a request to `path`."""
    if status in (404, 405) and not message:
        return b"404 page not found" if status == 404 else b"405 method not allowed"
    if path.startswith("/v1/messages"):
        kind = _TYPES.get(status, "api_error" if status >= 500 else "invalid_request_error")
        body: dict[str, Any] = {
            "type": "error",
            "error": {"type": kind, "message": message},
            "request_id": f"req_{secrets.token_hex(12)}",
        }
    elif path.startswith("/v1/"):
        kind = _TYPES[status] if status in _OPENAI else "api_error" if status >= 500 else "invalid_request_error"
        body = {"error": {"message": message, "type": kind, "param": None, "code": None}}
    else:
        body = {"error": message}
    return printable_json(msgspec.json.encode(body).decode()).encode()


def status_of(error: SollolError) -> tuple[int, tuple[tuple[str, str], ...]]:
    """Return the HTTP status of an error and its headers."""
    match error:
        case RateLimited():
            return error.status_code, (("Retry-After", str(error.retry_after_s)),)
        case Unauthorized():
            return error.status_code, (("WWW-Authenticate", error.challenge),)
        case UnknownModel():
            return 404, error.headers
        case ResponseError():
            return error.status_code if 400 <= error.status_code < 600 else 502, ()
        case BadInput():
            return 400, ()
        case QueueFull():
            return 503, (("Retry-After", str(max(1, round(error.retry_after_s or 1)))),)
        case DeadlineExceeded():
            return 504, ()
        case NoNodeAvailable() if error.retry_after_s is not None:
            return 503, (("Retry-After", str(max(1, math.ceil(error.retry_after_s)))),)
        case NoNodeAvailable():
            return (502, ()) if error.tried else (503, (("Retry-After", "5"),))
    return 502, ()
