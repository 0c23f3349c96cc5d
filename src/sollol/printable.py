"""Escape the terminal commands in foreign text before it is shown."""

from __future__ import annotations

import re
from typing import Final

# Halves of surrogate pairs cannot be encoded; Python uses them for bytes of file names that are not UTF-8.
_HALVES: Final = {
    **{code: f"\\u{code:04x}" for code in range(0xD800, 0xE000)},
    **{code: f"\\x{code - 0xDC00:02x}" for code in range(0xDC80, 0xDD00)},
}
# C0, DEL and C1 without line ends and tabs; marks that change the direction of text.
_COMMANDS: Final = {
    **{code: f"\\x{code:02x}" for code in (*range(32), *range(127, 160)) if chr(code) not in "\n\t"},
    **_HALVES,
    **{code: f"\\u{code:04x}" for code in (0x061C, 0x200E, 0x200F, *range(0x202A, 0x202F), *range(0x2066, 0x206A))},
}
_SUSPECT: Final = re.compile(rb"[^\t\n\r -~]")  # with letters of other languages, which stay
_IN_JSON: Final = {code: f"\\u{code:04x}" for code in _COMMANDS if code != 13}  # which may end a line of JSON


def printable(text: object) -> str:
    """Return text with escapes for all characters that would command a terminal."""
    return str(text).translate(_COMMANDS)


def one_line(text: object) -> str:
    """Return text as `printable`, with escapes for line ends, which names of files may contain."""
    return printable(text).replace("\n", "\\n").replace("\t", "\\t")


def printable_json(text: str) -> str:
    """Return JSON with JSON escapes for those characters."""
    return text.translate(_IN_JSON)


def printable_body(body: bytes) -> bytes:
    """Return the body of a node's error with escapes for those characters; valid JSON stays valid."""
    if not _SUSPECT.search(body):
        return body
    text = body.decode("utf-8", "replace")
    return (printable_json(text) if text.lstrip()[:1] in ("{", "[") else printable(text)).encode()
