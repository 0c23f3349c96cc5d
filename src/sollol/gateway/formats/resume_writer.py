"""What a client has received of a stream of events, and how another node's words become further events.

The events to come depend on those that the client has: their ids, their numbers, which parts are open. So what
`translate` gives has to be heard before it is asked again.
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
    # Some clients take these two for line ends, so Ollama escapes them.
    told = encode(data).replace(b"\xe2\x80\xa8", b"\\u2028").replace(b"\xe2\x80\xa9", b"\\u2029")
    return b"event: %s\ndata: %s\n\n" % (name.encode(), told) if name else b"data: %s\n\n" % told


class Usage(msgspec.Struct):
    """The counts of tokens, as Anthropic's and OpenAI's newer events name them."""

    input_tokens: Int = 0
    output_tokens: Int = 0


def timing_of(usage: Usage | None) -> Timing:
    return Timing(prompt_tokens=usage.input_tokens, tokens=usage.output_tokens) if usage else Timing()


class EventsSaid(PartialResponse):
    """Of a dialect whose streams are events: says `text_of`, `part` and `last`."""

    def texts_of(self, pieces: list[bytes]) -> list[str]:
        found = []
        for told in b"".join(pieces).split(b"\n\n"):
            data = data_of(told)
            if data.startswith(b"{"):
                found.append(self.text_of(data))
        return found

    def translate(self, line: bytes, before: int, elapsed_us: int) -> bytes:
        self.read()
        found = decode(line)
        text = str(found.get("response") or "")
        said = self.part(text) if text else b""
        if not found.get("done"):
            return said
        if said:
            self.add(said)
            self.read()
        tokens = before + int(found.get("eval_count") or 0)
        prompt = max(0, int(found.get("prompt_eval_count") or 0) - before)
        return said + self.last(str(found.get("done_reason") or "stop"), prompt, tokens, elapsed_us)

    def finished(self, elapsed_us: int) -> bytes:
        self.read()
        return self.last("length", None, self.tokens, elapsed_us)

    # --- the dialect ---

    def text_of(self, data: bytes) -> str:
        """The text in an event; takes note of what the events to come must repeat. Raises DecodeError."""
        raise NotImplementedError

    def part(self, text: str) -> bytes:
        """An event with more text."""
        raise NotImplementedError

    def last(self, reason: str, prompt_tokens: int | None, tokens: int, elapsed_us: int) -> bytes:
        """The events that end the answer. `reason`: Ollama's done_reason. `prompt_tokens`: None where no node told."""
        raise NotImplementedError
