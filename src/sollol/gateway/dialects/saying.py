"""What a client has received of a stream of events, and how another node's words become further events."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from sollol.gateway.dialects.reading import data_of
from sollol.nodes.dialect import decode, encode
from sollol.pool.continuation import Said


def event(data: Mapping[str, Any], name: str = "") -> bytes:
    head = f"event: {name}\n".encode() if name else b""
    return head + b"data: " + encode(data) + b"\n\n"


class EventsSaid(Said):
    """Of a dialect whose streams are events: says `text_of`, `part` and `last`."""

    def _read(self) -> None:
        unread, self._unread = self._unread, []
        for found in b"".join(unread).split(b"\n\n"):
            data = data_of(found)
            if data.startswith(b"{") and (text := self.text_of(data)):
                self._parts.append(text)
                self._tokens += 1

    def translate(self, line: bytes, before: int, elapsed_us: int) -> bytes:
        found = decode(line)
        text = str(found.get("response") or "")
        if not found.get("done"):
            return self.part(text)
        self._read()
        tokens = before + int(found.get("eval_count") or 0)
        prompt = max(0, int(found.get("prompt_eval_count") or 0) - before)
        return (self.part(text) if text else b"") + self.last(str(found.get("done_reason") or "stop"), prompt, tokens)

    def finished(self, elapsed_us: int) -> bytes:
        return self.last("length", 0, self.tokens)

    # --- the dialect ---

    def text_of(self, line: bytes) -> str:
        """The text in an event's data; takes note of what the events to come must repeat."""
        raise NotImplementedError

    def part(self, text: str) -> bytes:
        """An event with more text."""
        raise NotImplementedError

    def last(self, reason: str, prompt_tokens: int, tokens: int) -> bytes:
        """The events that end the answer. `reason`: Ollama's done_reason."""
        raise NotImplementedError
