"""Parse forms with files (`multipart/form-data`) strictly, and write them anew for the node.

So the node reads the same fields as the gateway; two parsers may read an unusual form differently.
"""

from __future__ import annotations

import re
import secrets
from typing import Final, NamedTuple

from sollol.errors import BadInput

PARTS: Final = 64
_TYPE: Final = re.compile(
    r'multipart/form-data\s*;\s*boundary=("?)([0-9A-Za-z\'()+_,./:=? -]{1,70})\1\s*', re.IGNORECASE
)
_DISPOSITION: Final = re.compile(r'form-data;\s*name="([^"\\\r\n]{1,200})"(?:;\s*filename="([^"\\\r\n]{0,500})")?\s*')
_KIND: Final = re.compile(r"[\x20-\x7e]{1,200}")


class Part(NamedTuple):
    """One field of a form. `filename`: None for a field that is no file."""

    name: str
    filename: str | None
    kind: str
    value: bytes


def is_form(content_type: str) -> bool:
    """Check for the content type of a form with files."""
    return content_type.strip().lower().startswith("multipart/")


def read_form(content_type: str, body: bytes) -> list[Part]:
    """Return the parts of a form.

    Raises:
        BadInput: It cannot be parsed.
    """
    found = _TYPE.fullmatch(content_type.strip())
    if found is None:
        raise BadInput(f"Content-Type: {content_type[:120]!r}; expected 'multipart/form-data; boundary=...'")
    mark = b"--" + found[2].encode()
    first, *rest = (b"\r\n" + body).split(b"\r\n" + mark)
    if first or not rest or rest[-1].rstrip(b"\r\n") != b"--" or len(rest) > PARTS:
        raise BadInput(f"the form cannot be read; expected up to {PARTS} parts between lines with its boundary")
    return [_part(piece) for piece in rest[:-1]]


def _part(piece: bytes) -> Part:
    head, empty_line, value = piece.partition(b"\r\n\r\n")
    lines = head.decode("utf-8", "replace").split("\r\n")
    headers = [line.partition(":") for line in lines[1:]]
    fields = {name.strip().lower(): text.strip() for name, _, text in headers}
    disposition = _DISPOSITION.fullmatch(fields.get("content-disposition", ""))
    kind = fields.get("content-type", "")
    known = set(fields) <= {"content-disposition", "content-type", "content-length"}
    if lines[0].strip() or not empty_line or disposition is None or not known or len(fields) != len(headers):
        raise BadInput(f"a part of the form cannot be read: {head[:120]!r}; expected a Content-Disposition with a name")
    if kind and not _KIND.fullmatch(kind):
        raise BadInput(f"a part of the form has the Content-Type {kind[:80]!r}; expected ASCII")
    return Part(disposition[1], disposition[2], kind, value)


def text_of(parts: list[Part], name: str) -> str:
    """Return the only field of this name, "" if there is none.

    Raises:
        BadInput: There are several, or it is a file.
    """
    found = [part for part in parts if part.name == name]
    if len(found) > 1 or any(part.filename is not None for part in found):
        raise BadInput(f"the form's field {name!r} is a file, or came twice; expected one text")
    return found[0].value.decode("utf-8", "replace").strip() if found else ""


def write_form(parts: list[Part]) -> tuple[str, bytes]:
    """Return the content type and the body of a form with these parts."""
    boundary = secrets.token_hex(16)
    pieces = []
    for part in parts:
        file = f'; filename="{part.filename}"' if part.filename is not None else ""
        kind = f"\r\nContent-Type: {part.kind}" if part.kind else ""
        head = f'--{boundary}\r\nContent-Disposition: form-data; name="{part.name}"{file}{kind}\r\n\r\n'
        pieces += [head.encode(), part.value, b"\r\n"]
    pieces.append(f"--{boundary}--\r\n".encode())
    return f"multipart/form-data; boundary={boundary}", b"".join(pieces)
