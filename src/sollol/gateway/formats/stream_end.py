"""End a stream that its node closed without an end, where no more is known of it than its last events.

For an answer that ran into Ollama's limit of repeated tokens, and is more than plain text. As for one that ran
into `num_predict`: cut off by a bound.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from sollol.backends.ollama import encode
from sollol.gateway.formats.resume_writer import event


def closing(path: str, events: Sequence[Mapping[str, Any]], tokens: int) -> bytes:
    """Return the events that end the answer to a request for `path`; b"" where they would need more than is known."""
    last: Mapping[str, Any] = events[-1] if events else {}
    if path.startswith("/v1/messages"):
        return _message_end(events, tokens)
    if path.startswith("/v1/responses"):
        return b""
    if path.startswith("/v1/"):
        head = {name: last[name] for name in ("id", "object", "created", "model", "system_fingerprint") if name in last}
        said: dict[str, Any] = {"text": ""} if path == "/v1/completions" else {"delta": {}}
        return event({**head, "choices": [{"index": 0, **said, "finish_reason": "length"}]}) + b"data: [DONE]\n\n"
    head = {name: last[name] for name in ("model", "created_at") if name in last}
    said = {"message": {"role": "assistant", "content": ""}} if "message" in last else {"response": ""}
    return encode({**head, **said, "done": True, "done_reason": "length", "eval_count": tokens})


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
