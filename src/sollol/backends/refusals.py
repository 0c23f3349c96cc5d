"""Judge the errors of nodes: faults of the node, of the caller, or of a proxy before the node. No I/O.

An error is a status, a text of several kinds, or a last line `{"error": ...}` under status 200.
"""

from __future__ import annotations

import re
import time
from collections.abc import Mapping
from email.utils import parsedate_to_datetime
from typing import Final

import msgspec

from sollol.backends.decoding import read_any as decode
from sollol.core.types import SECOND, Micros, Outcome, Status
from sollol.transport.base import Fault, TransportFault

RETRY_AFTER_MOST_S: Final = 3_600  # a longer pause is implausible, and read as none
# Of a model that does not fit, even alone. An error without both sizes may be of this moment only.
_NO_MEMORY: Final = re.compile(r"requires more (system )?memory .+ than is available")

_FAULTS: Final = {
    Fault.CONNECT: Status.UNREACHABLE,
    Fault.LOCAL: Status.NOT_SENT,
    Fault.CONNECT_TIMEOUT: Status.UNREACHABLE,
    Fault.FIRST_BYTE_TIMEOUT: Status.TIMEOUT,
    Fault.IDLE_TIMEOUT: Status.TIMEOUT,
}


def refusal(status: int, body: bytes, headers: Mapping[str, str] | None = None) -> Outcome:
    """Return the outcome of an answer with a status other than 200. `headers`: names in lower case.

    Only Ollama's own refusals can be the caller's fault: 400, 404, 501 and some 500 with a JSON error. A refusal of
    anything else (a proxy, an older version, a page) means only that this node does not serve the call.
    """
    text, own = _own_error(body)
    text = text or f"status {status}"
    if status in (429, 503):
        return Outcome(Status.BUSY, text, status, retry_us=retry_after_us(headers))
    if status == 404 and own and "model" in text:
        return Outcome(Status.MISSING, text, status)
    if own and status in (400, 404, 422, 501):
        return Outcome(Status.REFUSED, text, status)
    if status == 500 and own and text.startswith('option "'):  # a fault of the caller with a server's status
        return Outcome(Status.REFUSED, text, status)
    if status in (401, 403, 407) and not own:
        return Outcome(Status.LOCKED, f"needs a key, or refuses this one: status {status} {_short(text)}", status)
    if 300 <= status < 400:
        where = (headers or {}).get("location", "")[:200]
        return Outcome(
            Status.UNSUITED, f"redirects{' to ' + where if where else ''} (status {status}): set its address", 502
        )
    if 400 <= status < 500 or status == 501:
        return Outcome(Status.UNSUITED, text if own else f"status {status}: {_short(text)}", status)
    return Outcome(
        Status.TOO_LARGE if status == 500 and own and _NO_MEMORY.search(text) else Status.FAILED, text, status
    )


def _short(text: str) -> str:
    return " ".join(text.split())[:120]


def retry_after_us(headers: Mapping[str, str] | None) -> Micros | None:
    """Return the requested pause in microseconds (seconds or a date in the header), None without a readable one."""
    text = (headers or {}).get("retry-after", "").strip()
    if text.isdecimal() and text.isascii():
        seconds = int(text[:9])
        return seconds * SECOND if seconds <= RETRY_AFTER_MOST_S else None
    if not text:
        return None
    try:
        until = parsedate_to_datetime(text).timestamp()
    except (ValueError, TypeError, OverflowError):
        return None
    try:  # compared with the node's own clock if it sends a date
        now = parsedate_to_datetime((headers or {}).get("date", "")).timestamp()
    except (ValueError, TypeError, OverflowError):
        now = time.time()
    return round(max(until - now, 0) * SECOND) if until - now <= RETRY_AFTER_MOST_S else None


def _own_error(body: bytes) -> tuple[str, bool]:
    """Return the message of an error body, and True if it has the shape of Ollama's errors."""
    try:
        value = decode(body)
    except msgspec.DecodeError:
        return error_text(body), False
    error = value.get("error") if isinstance(value, dict) else None
    if isinstance(error, dict):
        error = error.get("message")
    return error_text(body), isinstance(error, str) and bool(error)


def error_text(body: bytes) -> str:
    """Return the message of an error body.

    It may be Ollama's {"error": "..."}, OpenAI's {"error": {"message": ...}}, or plain text.
    """
    try:
        value = decode(body)
    except msgspec.DecodeError:
        return body[:500].decode("utf-8", "replace").strip()
    if not isinstance(value, dict):
        return ""
    response = value.get("response")  # of /v1/responses
    error = value.get("error") or (response.get("error") if isinstance(response, dict) else None)
    if isinstance(error, dict):
        error = error.get("message")
    if not error and value.get("type") == "error":
        error = value.get("message")
    return str(error) if error else ""


# Codes and types of errors, and phrases of Ollama's, that blame the request or the account, not the node.
_CALLERS_CODES: Final = frozenset(
    (
        "invalid_request_error",
        "invalid_prompt",
        "invalid_value",
        "not_found_error",
        "context_length_exceeded",
        "exceed_context_size_error",
        "request_too_large",
        "authentication_error",
        "permission_error",
        "rate_limit_exceeded",
        "rate_limit_error",
    )
)
_CALLERS_WORDS: Final = ("does not support ", "exceeds the available context", "exceeds the context length", 'option "')


def late_error(body: bytes, missing: str) -> Outcome:
    """Return the outcome of an error under status 200; its code or its words identify a fault of the caller.

    `missing`: the message of an error without a text.
    """
    message, codes = error_text(body), _codes(body)
    if codes & _CALLERS_CODES or any(words in message for words in _CALLERS_WORDS):
        return Outcome(Status.REFUSED, message or missing, 400)
    return Outcome(Status.FAILED, message or missing, 200)


def _codes(body: bytes) -> set[str]:
    """Return the codes and types of an error, in the places of all API formats."""
    try:
        value = decode(body)
    except msgspec.DecodeError:
        return set()
    found: set[str] = set()
    response = value.get("response") if isinstance(value, dict) else None
    for place in (value, response):
        error = place.get("error") if isinstance(place, dict) else None
        for holder in (error, place if place is value else None):
            if isinstance(holder, dict):
                found |= {code for name in ("code", "type") if isinstance(code := holder.get(name), str)}
    return found


def outcome_of(fault: TransportFault) -> Outcome:
    """Return the outcome of a call without an answer."""
    return Outcome(_FAULTS.get(fault.fault, Status.FAILED), str(fault))
