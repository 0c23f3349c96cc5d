"""Serve `/v1/messages`: the same answers in Anthropic's protocol."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import msgspec

from sollol.sim.generation import AnswerEnd, GenerationRequest, SimAnswer, generate
from sollol.sim.openai_routes import plain_content, plain_messages, sampling, text_model
from sollol.sim.reply import PLAIN_JSON, SSE, SimReply
from sollol.sim.request import Refusal, SimRequest, encode
from sollol.sim.text_routes import registry_name, tool_call
from sollol.sim.words import render

if TYPE_CHECKING:
    from sollol.sim.node import SimNode

_TYPES = {400: "invalid_request_error", 404: "not_found_error", 503: "overloaded_error"}
_REQUEST = "req_ee922247f1847abfc32e0350"


def anthropic_error(refusal: Refusal) -> SimReply:
    """Return a refusal as Ollama sends it on this route."""
    kind = _TYPES.get(refusal.status, "api_error")
    body = {"type": "error", "error": {"type": kind, "message": refusal.message}, "request_id": _REQUEST}
    return SimReply.of(refusal.status, encode(body) + b"\n", PLAIN_JSON)


def _event(kind: str, **fields: Any) -> bytes:
    return f"event: {kind}\ndata: ".encode() + encode({"type": kind, **fields}) + b"\n\n"


class SimMessagesWriter:
    """Write blocks: thinking, text, then tools. Each is opened, filled and closed."""

    stream_type = SSE
    stream_headers = {"cache_control": "no-cache", "connection": "keep-alive"}  # noqa: RUF012 - never written
    events_apart = True

    def __init__(self, node: SimNode, model: str, estimate: int) -> None:
        self._id = f"msg_{node.dice.getrandbits(96):024x}"
        self._model = model
        self._estimate = estimate
        self._block = -1
        self._kind = ""
        self._began = False

    def _begin(self) -> bytes:
        if self._began:
            return b""
        self._began = True
        message = {
            "id": self._id,
            "type": "message",
            "role": "assistant",
            "model": self._model,
            "content": [],
            "usage": {"input_tokens": self._estimate, "output_tokens": 0},
        }
        return _event("message_start", message=message)

    def _open(self, kind: str, block: dict[str, Any]) -> bytes:
        found = self._begin()
        if self._kind == kind:
            return found
        found += self._close()
        self._block, self._kind = self._block + 1, kind
        return found + _event("content_block_start", index=self._block, content_block=block)

    def _close(self) -> bytes:
        return _event("content_block_stop", index=self._block) if self._kind else b""

    def _delta(self, **delta: Any) -> bytes:
        return _event("content_block_delta", index=self._block, delta=delta)

    def piece(self, text: str, *, thinking: bool = False) -> bytes:
        """Return the bytes of one token."""
        if thinking:
            head = self._open("thinking", {"type": "thinking", "thinking": ""})
            return head + self._delta(type="thinking_delta", thinking=text)
        return self._open("text", {"type": "text", "text": ""}) + self._delta(type="text_delta", text=text)

    def last(self, answer: SimAnswer, end: AnswerEnd) -> bytes:
        """Return the bytes that end a stream."""
        found = self._begin()
        for call in answer.tool_calls:
            block = _tool_use(call)
            found += self._open(call["id"], block | {"input": {}})
            found += self._delta(type="input_json_delta", partial_json=msgspec.json.encode(block["input"]).decode())
        usage = {"input_tokens": end.prompt_tokens, "output_tokens": end.tokens}
        found += self._close() + _event("message_delta", delta={"stop_reason": _reason(answer, end)}, usage=usage)
        return found + _event("message_stop")

    def whole(self, answer: SimAnswer, end: AnswerEnd) -> SimReply:
        """Return an answer that is not streamed."""
        content: list[dict[str, Any]] = []
        if answer.thoughts:
            content.append({"type": "thinking", "thinking": answer.thinking})
        if answer.tokens:
            content.append({"type": "text", "text": answer.text})
        content += [_tool_use(call) for call in answer.tool_calls]
        body = {
            "id": self._id,
            "type": "message",
            "role": "assistant",
            "model": self._model,
            "content": content,
            "stop_reason": _reason(answer, end),
            "usage": {"input_tokens": end.prompt_tokens, "output_tokens": end.tokens},
        }
        return SimReply.of(200, encode(body) + b"\n", PLAIN_JSON)

    def broken(self, message: str) -> bytes:
        """Return the bytes of an error inside a stream."""
        return _event("error", error={"type": "api_error", "message": message})

    def refused(self, refusal: Refusal) -> SimReply:
        """Return the answer to a request that fails before its first byte."""
        return anthropic_error(refusal)


def _tool_use(call: dict[str, Any]) -> dict[str, Any]:
    function = call["function"]
    return {"type": "tool_use", "id": call["id"], "name": function["name"], "input": function["arguments"]}


def _reason(answer: SimAnswer, end: AnswerEnd) -> str:
    if answer.tool_calls:
        return "tool_use"
    return "max_tokens" if end.reason == "length" else "end_turn"


async def messages(node: SimNode, request: SimRequest) -> SimReply:
    """Serve `/v1/messages`."""
    request.read_json("OpenAI")
    request.field_of("stream", bool, "MessagesRequest", "bool", None)
    request.field_of("tools", list, "MessagesRequest", "[]anthropic.Tool", None)
    data, name = request.data, str(request.data.get("model") or "")
    turns = request.messages_of("MessagesRequest", "anthropic.MessageParam")
    if not name:
        raise Refusal(400, "model is required")
    if not turns:
        raise Refusal(400, "messages is required")
    if not data.get("max_tokens"):
        raise Refusal(400, "max_tokens is required and must be positive")
    model = text_model(node, name)
    tools = [_ollama_tool(tool) for tool in data.get("tools") or () if isinstance(tool, dict)]
    if tools and not model.tools:
        raise Refusal(400, f"{registry_name(model)} does not support tools")
    plain = plain_messages(turns)
    if data.get("system"):
        plain.insert(0, {"role": "system", "content": plain_content(data["system"])})
    options = sampling({"stop": data.get("stop_sequences"), **data}, "max_tokens")
    estimate = sum(len(m["content"]) for m in plain) // 4 + 1
    writer = SimMessagesWriter(node, name, estimate)
    generation = GenerationRequest(model, render(model, plain, tools), options, None, writer, bool(data.get("stream")))
    if tools and plain[-1].get("role") == "user" and not _has_tool_result(turns[-1]):
        generation.tools = [tool_call(node, tools[0])]
    return await generate(node, generation)


def _ollama_tool(tool: dict[str, Any]) -> dict[str, Any]:
    function = {"name": tool.get("name", ""), "parameters": tool.get("input_schema", {})}
    return {"type": "function", "function": function}


def _has_tool_result(message: dict[str, Any]) -> bool:
    content = message.get("content")
    return isinstance(content, list) and any(
        isinstance(part, dict) and part.get("type") == "tool_result" for part in content
    )
