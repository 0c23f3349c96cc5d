"""Normalise a JSON request to the reading of a node, and forward only that.

Go's decoder matches a field by its name in any case (`"Model"`, an escaped `model`, also with the letters that Unicode
folds to ASCII), takes the last one, reads invalid Unicode as U+FFFD, and stops after the first value. A gateway with
another reading could check one request and forward a different one.
"""

from __future__ import annotations

import json
import re
from typing import Any, Final, NoReturn

import msgspec

from sollol.backends.decoding import BLOCK, finds, is_text

_fields = msgspec.json.Decoder(dict[str, msgspec.Raw]).decode
_encode = msgspec.json.Encoder().encode

_SURROGATE: Final = re.compile(rb"\\u[dD][89a-fA-F]")
_ESCAPE: Final = re.compile(
    rb"\\(?:u[dD][89abAB][0-9a-fA-F]{2}\\u[dD][c-fC-F][0-9a-fA-F]{2}|(u[dD][89a-fA-F][0-9a-fA-F]{2})|.)", re.DOTALL
)
_REPLACEMENT: Final = b"\\ufffd"  # as long as what it replaces
_TRAILING: Final = re.compile(r"trailing characters \(byte (\d+)\)")
# Unicode folds these two letters to ASCII, and so does Go.
_FOLDED: Final = str.maketrans({"\u017f": "s", "\u212a": "k"})
# Text fields: null keeps their value, but clears other fields.
_TEXTS: Final = frozenset(
    ("model", "name", "prompt", "system", "suffix", "template", "source", "destination", "from", "encoding_format")
)


def normalised(body: bytes) -> bytes:
    """Return the JSON object that a node reads in `body`: names in lower case, each once, in valid UTF-8.

    Raises:
        msgspec.DecodeError: A node cannot read it either, or it is nested too deeply.
    """
    body = valid_text(body)
    try:
        fields = _read(body)
    except RecursionError:
        raise msgspec.DecodeError("it is nested too deeply") from None
    except msgspec.ValidationError:
        if body.strip() == b"null":  # Go reads it as an object without fields
            return b"{}"
        raise
    except msgspec.DecodeError as error:
        trailing = _TRAILING.search(str(error))
        if trailing is None:
            raise
        return normalised(body[: int(trailing[1]) - 1])
    for name in fields:
        if not name.isascii() or name != name.lower():
            return _folded(body)
    return _encode(fields)


def _read(body: bytes) -> dict[str, msgspec.Raw]:
    found: dict[str, msgspec.Raw] = _fields(body)
    return found


def valid_text(body: bytes) -> bytes:
    """Return JSON with U+FFFD for bytes that are not UTF-8, and for halves of surrogate pairs."""
    if not is_text(body):
        body = body.decode("utf-8", "replace").encode()
    if (len(body) > BLOCK or b"\\u" in body) and finds(_SURROGATE, body, 6):
        valid = bytearray(body)  # in place: `sub` would hold an object for each escape
        for found in _ESCAPE.finditer(body):
            if found[1]:
                valid[found.start() : found.end()] = _REPLACEMENT
        body = bytes(valid)
    return body


def fold(name: str) -> str:
    """Return a field's name as Go compares it."""
    return name.translate(_FOLDED).lower()


def _folded(body: bytes) -> bytes:
    """Normalise an object with odd names, reading all fields in their order. Slower."""
    top: list[tuple[str, Any]] = []

    def pairs(found: list[tuple[str, Any]]) -> dict[str, Any]:
        top[:] = found  # the outermost object is complete last
        return dict(found)

    try:
        json.loads(body, object_pairs_hook=pairs, parse_constant=_refuse)
        fields: dict[str, Any] = {}
        for name, value in top:
            key = fold(name)
            if value is None and key in _TEXTS and key in fields:
                continue
            before = fields.get(key)
            fields[key] = {**before, **value} if isinstance(before, dict) and isinstance(value, dict) else value
        return json.dumps(fields, ensure_ascii=False, separators=(",", ":"), allow_nan=False).encode()
    except RecursionError:
        raise msgspec.DecodeError("it is nested too deeply") from None
    except ValueError as error:
        raise msgspec.DecodeError(str(error)) from None


def _refuse(constant: str) -> NoReturn:
    raise ValueError(f"{constant} is not JSON")
