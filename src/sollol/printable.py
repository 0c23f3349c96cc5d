"""Show text that others wrote: what would command a terminal is shown as an escape, and commands nothing."""

from __future__ import annotations

from typing import Final

# Halves of surrogate pairs cannot be written at all; Python holds bytes of file names that are not UTF-8 as such.
_HALVES: Final = {
    **{code: f"\\u{code:04x}" for code in range(0xD800, 0xE000)},
    **{code: f"\\x{code - 0xDC00:02x}" for code in range(0xDC80, 0xDD00)},
}
# C0, DEL and C1, but for the ends of lines and tabs; marks that turn the direction of text around.
_COMMANDS: Final = {
    **{code: f"\\x{code:02x}" for code in (*range(32), *range(127, 160)) if chr(code) not in "\n\t"},
    **_HALVES,
    **{code: f"\\u{code:04x}" for code in (0x061C, 0x200E, 0x200F, *range(0x202A, 0x202F), *range(0x2066, 0x206A))},
}
_IN_JSON: Final = {code: f"\\u{code:04x}" for code in _COMMANDS if code >= 127}


def printable(text: object) -> str:
    """Return text with every character that would command a terminal written as an escape."""
    return str(text).translate(_COMMANDS)


def one_line(text: object) -> str:
    """Return text as `printable` does, on one line: the name of a file may have ends of lines in it."""
    return printable(text).replace("\n", "\\n").replace("\t", "\\t")


def printable_json(text: str) -> str:
    """Return JSON, as `json.dumps` writes it, with those characters as JSON's own escapes."""
    return text.translate(_IN_JSON)
