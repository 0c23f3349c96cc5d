"""Write the end of a stream that its node closed without one, from its last events.

Ollama ends an answer at its limit of repeated tokens so. The end is written as for `num_predict`: cut off by a bound.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from sollol.backends.ollama import encode
from sollol.gateway.formats.resume_writer import event


def closing_events(path: str, events: Sequence[Mapping[str, Any]], tokens: int) -> bytes:
    """Return the events that end the answer to a request for `path`; b"" if the last events do not suffice."""
    last: Mapping[str, Any] = events[-1] if events else {}
    if path.startswith("/v1/messages"):
        return _message_end(events, tokens)
    if path.startswith("/v1/responses"):
        return b""
    if path.startswith("/v1/"):
        head = {name: last[name] for name in ("id", "object", "created", "model", "system_fingerprint") if name in last}
        content: dict[str, Any] = {"text": ""} if path == "/v1/completions" else {"delta": {}}
        return event({**head, "choices": [{"index": 0, **content, "finish_reason": "length"}]}) + b"data: [DONE]\n\n"
    head = {name: last[name] for name in ("model", "created_at") if name in last}
    content = {"message": {"role": "assistant", "content": ""}} if "message" in last else {"response": ""}
    return encode({**head, **content, "done": True, "done_reason": "length", "eval_count": tokens})


def _message_end(events: Sequence[Mapping[str, Any]], tokens: int) -> bytes:
    found, place = b"", None
    for each in events:
        if each.get("type") in ("content_block_start", "content_block_delta"):
            place = each.get("index", 0)
        elif each.get("type") == "content_block_stop":
            place = None
    if place is not None:
        found = event({"type": "content_block_stop", "index": place}, "content_block_stop")
    usage = {"output_tokens": tokens}
    delta = {"type": "message_delta", "delta": {"stop_reason": "max_tokens", "stop_sequence": None}, "usage": usage}
    return found + event(delta, "message_delta") + event({"type": "message_stop"}, "message_stop")
