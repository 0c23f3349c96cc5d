"""Recognise an answer that Ollama ended because of repeated tokens.

After 30 equal tokens in a row Ollama closes the stream normally, without a last line, a reason, or an error. Every node
does so, so no other node should resume it: the received text is the whole answer. Bodies of all API formats are read
here, since only the text of each event matters.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any, Final

import msgspec

from sollol.backends.decoding import read_any

REPEATS: Final = 30
KEPT: Final = 4 * REPEATS  # pieces kept, since some hold no text
PIECE_BYTES: Final = 16_384  # a larger piece holds many tokens

_decode = read_any


class Recent:
    """The last pieces of a stream, as bytes."""

    __slots__ = ("_pieces",)

    def __init__(self) -> None:
        self._pieces: list[bytes] = []

    def add(self, piece: bytes) -> None:
        """Keep a piece; drop old ones."""
        pieces = self._pieces
        if len(piece) > PIECE_BYTES:
            pieces.clear()
            return
        pieces.append(piece)
        if len(pieces) >= 2 * KEPT:
            del pieces[:KEPT]

    def events(self) -> list[Mapping[str, Any]]:
        """Return the JSON objects in the pieces, from lines or server-sent events."""
        return list(_objects(b"".join(self._pieces)))


def _objects(body: bytes) -> Iterable[Mapping[str, Any]]:
    for line in body.split(b"\n"):
        text = line.removeprefix(b"data:").strip()
        if text.startswith(b"{"):
            try:
                found = _decode(text)
            except msgspec.DecodeError:  # the first one may be cut
                continue
            if isinstance(found, dict):
                yield found


def repeats(events: Iterable[Mapping[str, Any]]) -> bool:
    """Check that the texts of the last REPEATS events are equal, apart from surrounding space."""
    texts = [text.strip() for text in map(_text, events) if text]
    last = texts[-REPEATS:]
    return len(last) == REPEATS and len(set(last)) == 1


def _text(event: Mapping[str, Any]) -> str:
    """Return the text that an event adds, in any API format; "" for none."""
    choices = event.get("choices")
    choice = choices[0] if isinstance(choices, list) and choices and isinstance(choices[0], dict) else {}
    for holder in (event.get("message"), event, choice.get("delta"), choice, event.get("delta")):
        if isinstance(holder, str):  # /v1/responses: the delta is the text
            return holder
        if isinstance(holder, dict):
            for name in ("content", "thinking", "reasoning", "response", "text", "partial_json"):
                if isinstance(found := holder.get(name), str) and found:
                    return found
    return ""
