"""Continue a stream of events with the text of another node.

The next events depend on those that the client has received: their ids, their numbers, and the open parts. So the
result of `translate` must be added before its next call.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import msgspec

from sollol.backends.decoding import Int
from sollol.backends.ollama import decode, encode
from sollol.core.types import Timing
from sollol.engine.resumption import PartialResponse
from sollol.gateway.formats.stream_parser import data_of


def event(data: Mapping[str, Any], name: str = "") -> bytes:
    """Return a server-sent event."""
    # Some clients treat these two characters as line ends, so Ollama escapes them.
    text = encode(data).replace(b"\xe2\x80\xa8", b"\\u2028").replace(b"\xe2\x80\xa9", b"\\u2029")
    return b"event: %s\ndata: %s\n\n" % (name.encode(), text) if name else b"data: %s\n\n" % text


class Usage(msgspec.Struct):
    """Token counts in Anthropic's and OpenAI's newer events."""

    input_tokens: Int = 0
    output_tokens: Int = 0


def timing_of(usage: Usage | None) -> Timing:
    """Return the token counts as a timing."""
    return Timing(prompt_tokens=usage.input_tokens, tokens=usage.output_tokens) if usage else Timing()


class ResumeWriter(PartialResponse):
    """The received part of a stream of events, and the writer of further ones.

    A subclass for each API has `text_of`, `part` and `last`.
    """

    def texts_of(self, pieces: list[bytes]) -> list[str]:
        """Return the texts in pieces of a stream."""
        found = []
        for each in b"".join(pieces).split(b"\n\n"):
            data = data_of(each)
            if data.startswith(b"{"):
                found.append(self.text_of(data))
        return found

    def translate(self, line: bytes, before: int, elapsed_us: int) -> bytes:
        """Return the events for a line of the resuming node. `before`: the tokens received before."""
        self.read()
        found = decode(line)
        text = str(found.get("response") or "")
        events = self.part(text) if text else b""
        if not found.get("done"):
            return events
        if events:
            self.add(events)
            self.read()
        tokens = before + int(found.get("eval_count") or 0)
        prompt = max(0, int(found.get("prompt_eval_count") or 0) - before)
        return events + self.last(str(found.get("done_reason") or "stop"), prompt, tokens, elapsed_us)

    def finished(self, elapsed_us: int) -> bytes:
        """Return the events that end an answer at its limit of tokens."""
        self.read()
        return self.last("length", None, self.tokens, elapsed_us)

    # --- for each API ---

    def text_of(self, data: bytes) -> str:
        """Return the text in an event, and keep what later events must repeat. Raises DecodeError."""
        raise NotImplementedError

    def part(self, text: str) -> bytes:
        """Return an event with more text."""
        raise NotImplementedError

    def last(self, reason: str, prompt_tokens: int | None, tokens: int, elapsed_us: int) -> bytes:
        """Return the events that end the answer. `reason`: Ollama's done_reason. `prompt_tokens`: None if unknown."""
        raise NotImplementedError
