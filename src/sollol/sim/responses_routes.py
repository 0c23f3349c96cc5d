"""Serve `/v1/responses`, OpenAI's newer protocol, with text only.

The keys of a whole answer stand in one order, those of events in alphabetical order (there they are Go maps).
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from sollol.sim.generation import AnswerEnd, GenerationRequest, SimAnswer, generate
from sollol.sim.openai_routes import openai_error, plain_content, text_model
from sollol.sim.reply import PLAIN_JSON, SSE, SimReply
from sollol.sim.request import Refusal, SimRequest, encode
from sollol.sim.words import render

if TYPE_CHECKING:
    from sollol.sim.node import SimNode


class SimResponsesWriter:
    """Write the answers of `/v1/responses`."""

    stream_type = SSE
    stream_headers = {"cache_control": "no-cache", "connection": "keep-alive"}  # noqa: RUF012 - never written
    events_apart = True

    def __init__(self, node: SimNode, data: dict[str, Any]) -> None:
        self._node = node
        self._data = data
        self._created = int(node.now_s())
        self._id = f"resp_{node.dice.randrange(1_000_000)}"
        self._item_id = f"msg_{node.dice.randrange(1_000_000)}"
        self._sequence = -1
        self._text = ""

    def _event(self, kind: str, **fields: Any) -> bytes:
        self._sequence += 1
        body = dict(sorted({**fields, "sequence_number": self._sequence, "type": kind}.items()))
        return f"event: {kind}\ndata: ".encode() + encode(body) + b"\n\n"

    def _response(self, status: str, output: list[Any], usage: dict[str, Any] | None) -> dict[str, Any]:
        done = int(self._node.now_s()) if status == "completed" else None
        data = self._data
        return {
            "id": self._id,
            "object": "response",
            "created_at": self._created,
            "completed_at": done,
            "status": status,
            "incomplete_details": None,
            "model": data.get("model"),
            "previous_response_id": None,
            "instructions": data.get("instructions"),
            "output": output,
            "error": None,
            "tools": [],
            "tool_choice": "auto",
            "truncation": "disabled",
            "parallel_tool_calls": True,
            "text": {"format": {"type": "text"}},
            "top_p": data.get("top_p", 1),
            "presence_penalty": 0,
            "frequency_penalty": 0,
            "top_logprobs": 0,
            "temperature": data.get("temperature", 1),
            "reasoning": None,
            "usage": usage,
            "max_output_tokens": data.get("max_output_tokens"),
            "max_tool_calls": None,
            "store": False,
            "background": False,
            "service_tier": "default",
            "metadata": {},
            "safety_identifier": None,
            "prompt_cache_key": None,
        }

    def _item(self, status: str, text: str | None) -> dict[str, Any]:
        content = [] if text is None else [_part(text)]
        return {"id": self._item_id, "type": "message", "status": status, "role": "assistant", "content": content}

    def _begin(self) -> bytes:
        if self._sequence >= 0:
            return b""
        response = dict(sorted(self._response("in_progress", [], None).items()))
        return (
            self._event("response.created", response=response)
            + self._event("response.in_progress", response=response)
            + self._event(
                "response.output_item.added", item=_sorted(self._item("in_progress", None)), output_index=0
            )
            + self._event(
                "response.content_part.added",
                content_index=0, item_id=self._item_id, output_index=0, part=_sorted(_part("")),
            )
        )  # fmt: skip

    def piece(self, text: str, *, thinking: bool = False) -> bytes:
        """Return the bytes of one token."""
        head = self._begin()
        if thinking:
            return head
        self._text += text
        return head + self._event(
            "response.output_text.delta",
            content_index=0, delta=text, item_id=self._item_id, logprobs=[], output_index=0,
        )  # fmt: skip

    def last(self, answer: SimAnswer, end: AnswerEnd) -> bytes:
        """Return the bytes that end a stream."""
        place = {"content_index": 0, "item_id": self._item_id, "output_index": 0}
        item = _sorted(self._item("completed", answer.text))
        response = _sorted(self._response("completed", [item], _usage(end)))
        return (
            self._begin()
            + self._event("response.output_text.done", **place, logprobs=[], text=answer.text)
            + self._event("response.content_part.done", **place, part=_sorted(_part(answer.text)))
            + self._event("response.output_item.done", item=item, output_index=0)
            + self._event("response.completed", response=response)
        )

    def whole(self, answer: SimAnswer, end: AnswerEnd) -> SimReply:
        """Return an answer that is not streamed."""
        body = self._response("completed", [self._item("completed", answer.text)], _usage(end))
        return SimReply.of(200, encode(body) + b"\n", PLAIN_JSON)

    def broken(self, message: str) -> bytes:
        """Return nothing: Ollama sends no error here."""
        return b""

    def refused(self, refusal: Refusal) -> SimReply:
        """Return the answer to a request that fails before its first byte."""
        return openai_error(refusal)


def _part(text: str) -> dict[str, Any]:
    return {"type": "output_text", "text": text, "annotations": [], "logprobs": []}


def _sorted(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _sorted(value[key]) for key in sorted(value)}
    return [_sorted(part) for part in value] if isinstance(value, list) else value


def _usage(end: AnswerEnd) -> dict[str, Any]:
    return {
        "input_tokens": end.prompt_tokens,
        "output_tokens": end.tokens,
        "total_tokens": end.prompt_tokens + end.tokens,
        "input_tokens_details": {"cached_tokens": 0},
        "output_tokens_details": {"reasoning_tokens": 0},
    }


async def responses(node: SimNode, request: SimRequest) -> SimReply:
    """Serve `/v1/responses`."""
    request.read_json("OpenAI")
    request.field_of("stream", bool, "ResponsesRequest", "bool", None)
    data, name = request.data, str(request.data.get("model") or "")
    model = text_model(node, name)
    turns = _turns(data.get("input"))
    if not turns:
        raise Refusal(400, "input is required", early=True)
    if data.get("instructions"):
        turns.insert(0, {"role": "system", "content": str(data["instructions"])})
    limit = data.get("max_output_tokens")
    options = {"num_predict": limit} if isinstance(limit, int) else {}
    writer = SimResponsesWriter(node, data)
    return await generate(
        node, GenerationRequest(model, render(model, turns), options, None, writer, bool(data.get("stream")))
    )


def _turns(wanted: Any) -> list[dict[str, Any]]:
    if isinstance(wanted, str):
        return [{"role": "user", "content": wanted}] if wanted else []
    if not isinstance(wanted, list):
        return []
    return [
        {"role": m.get("role", "user"), "content": plain_content(m.get("content"))}
        for m in wanted
        if isinstance(m, dict)
    ]
