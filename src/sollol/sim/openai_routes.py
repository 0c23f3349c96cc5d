"""Serve `/v1`: the same answers in OpenAI's protocol, as Ollama's translation layer writes them.

An error after the first byte is lost there: it sends an empty chunk with `"model":""`, then the end in good form,
without a finish_reason and without `[DONE]`. `keep_alive` and runner options cannot be set here.
"""

from __future__ import annotations

import base64
import struct
from typing import TYPE_CHECKING, Any

import msgspec

from sollol.sim.embed_routes import embed, read_input
from sollol.sim.generation import AnswerEnd, GenerationRequest, SimAnswer, generate
from sollol.sim.models import ModelSpec, full_name
from sollol.sim.reply import JSON, PLAIN_JSON, SSE, SimReply
from sollol.sim.request import Refusal, SimRequest, encode
from sollol.sim.text_routes import registry_name, tool_call
from sollol.sim.words import render

if TYPE_CHECKING:
    from sollol.sim.node import SimNode

_TYPES = {400: "invalid_request_error", 404: "not_found_error"}


def openai_error(refusal: Refusal) -> SimReply:
    """Return a refusal. Errors of parsing have another type and no newline, since another layer writes them."""
    kind = _TYPES.get(refusal.status, "api_error")
    body = encode({"error": {"message": refusal.message, "type": kind, "param": None, "code": None}})
    if refusal.early:
        return SimReply.of(refusal.status, body, JSON)
    return SimReply.of(refusal.status, body + b"\n", PLAIN_JSON)


def event(value: Any) -> bytes:
    """Return a server-sent event."""
    return b"data: " + encode(value) + b"\n\n"


class SimOpenAIWriter:
    """Write the parts that chats and completions share."""

    stream_type = SSE
    stream_headers: dict[str, str] = {}  # noqa: RUF012 - never written
    events_apart = False

    def __init__(self, node: SimNode, model: str, *, usage: bool = False) -> None:
        self._created = int(node.now_s())
        self._number = node.dice.randrange(1000)
        self._model = model
        self._usage = usage
        self._spoke = False

    def _chunk(self, text: str | None, reason: str | None, thinking: bool = False) -> dict[str, Any]:
        raise NotImplementedError

    def piece(self, text: str, *, thinking: bool = False) -> bytes:
        """Return the bytes of one token."""
        found = event(self._chunk(text, None, thinking))
        self._spoke = True
        return found

    def last(self, answer: SimAnswer, end: AnswerEnd) -> bytes:
        """Return the bytes that end a stream."""
        calls = event(self._calls(answer)) if answer.tool_calls else b""
        found = calls + event(self._chunk(None, self._reason(answer, end)))
        if self._usage:
            found += event(self._chunk(None, None) | {"choices": [], "usage": usage(end)})
        return found + b"data: [DONE]\n\n"

    def _calls(self, answer: SimAnswer) -> dict[str, Any]:
        chunk = self._chunk("", None)
        chunk["choices"][0]["delta"] = {"role": "assistant", "content": "", "tool_calls": openai_calls(answer)}
        return chunk

    def _reason(self, answer: SimAnswer, end: AnswerEnd) -> str:
        return "tool_calls" if answer.tool_calls else end.reason

    def broken(self, message: str) -> bytes:
        """Return the bytes that Ollama sends instead of an error."""
        self._model = ""
        return event(self._chunk("", None))

    def refused(self, refusal: Refusal) -> SimReply:
        """Return the answer to a request that fails before its first byte."""
        return openai_error(refusal)


class SimOpenAIChatWriter(SimOpenAIWriter):
    """Write the answers of `/v1/chat/completions`."""

    def _head(self, kind: str) -> dict[str, Any]:
        return {
            "id": f"chatcmpl-{self._number}",
            "object": kind,
            "created": self._created,
            "model": self._model,
            "system_fingerprint": "fp_ollama",
        }

    def _chunk(self, text: str | None, reason: str | None, thinking: bool = False) -> dict[str, Any]:
        delta: dict[str, Any] = {} if text is None else {"content": "" if thinking else text}
        if thinking:
            delta["reasoning"] = text
        if text is not None and not self._spoke:
            delta = {"role": "assistant", **delta}
        choice = {"index": 0, "delta": delta, "finish_reason": reason}
        return self._head("chat.completion.chunk") | {"choices": [choice]}

    def whole(self, answer: SimAnswer, end: AnswerEnd) -> SimReply:
        """Return an answer that is not streamed."""
        message: dict[str, Any] = {"role": "assistant", "content": answer.text}
        if answer.thoughts:
            message["reasoning"] = answer.thinking
        if answer.tool_calls:
            message["tool_calls"] = openai_calls(answer)
        choice = {"index": 0, "message": message, "finish_reason": self._reason(answer, end)}
        body = self._head("chat.completion") | {"choices": [choice], "usage": usage(end)}
        return SimReply.of(200, encode(body) + b"\n", PLAIN_JSON)


class SimOpenAICompletionWriter(SimOpenAIWriter):
    """Write the answers of `/v1/completions`."""

    def _chunk(self, text: str | None, reason: str | None, thinking: bool = False) -> dict[str, Any]:
        return {
            "id": f"cmpl-{self._number}",
            "object": "text_completion",
            "created": self._created,
            "choices": [{"text": text or "", "index": 0, "finish_reason": reason}],
            "model": self._model,
            "system_fingerprint": "fp_ollama",
        }

    def whole(self, answer: SimAnswer, end: AnswerEnd) -> SimReply:
        """Return an answer that is not streamed."""
        body = {
            "id": f"cmpl-{self._number}",
            "object": "text_completion",
            "created": self._created,
            "model": self._model,
            "system_fingerprint": "fp_ollama",
            "choices": [{"text": answer.text, "index": 0, "finish_reason": end.reason}],
            "usage": usage(end),
        }
        return SimReply.of(200, encode(body) + b"\n", PLAIN_JSON)


def usage(end: AnswerEnd) -> dict[str, int]:
    """Return the token counts of an answer."""
    total = end.prompt_tokens + end.tokens
    return {"prompt_tokens": end.prompt_tokens, "completion_tokens": end.tokens, "total_tokens": total}


def openai_calls(answer: SimAnswer) -> list[dict[str, Any]]:
    """Return the tool calls of an answer."""
    return [
        {
            "id": call["id"],
            "index": place,
            "type": "function",
            "function": {
                "name": call["function"]["name"],
                "arguments": msgspec.json.encode(call["function"]["arguments"]).decode(),
            },
        }
        for place, call in enumerate(answer.tool_calls)
    ]


def plain_messages(messages: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Return messages with their contents as texts."""
    return [m | {"content": plain_content(m.get("content"))} for m in messages]


def plain_content(content: Any) -> str:
    """Return a content as a text. Of a list of parts, the texts are joined."""
    if isinstance(content, list):
        parts = (part.get("text", "") if isinstance(part, dict) else "" for part in content)
        return "".join(part for part in parts if isinstance(part, str))
    return content if isinstance(content, str) else ""


def text_model(node: SimNode, name: str, must_name: bool = True) -> ModelSpec:
    """Return a model that generates text. Raises Refusal otherwise."""
    model = node.model(name, "model '{}' not found", must_name)
    if model.is_embed:
        raise Refusal(400, f'"{name}" does not support chat')
    return model


def sampling(data: dict[str, Any], limit: str) -> dict[str, Any]:
    """Return the options that exist here. `max_completion_tokens` is none of them (ollama/ollama#7125)."""
    names = {limit: "num_predict", "seed": "seed", "stop": "stop"}
    return {ours: data[theirs] for theirs, ours in names.items() if data.get(theirs) is not None}


async def chat(node: SimNode, request: SimRequest) -> SimReply:
    """Serve `/v1/chat/completions`."""
    request.read_json("OpenAI")
    request.field_of("stream", bool, "ChatCompletionRequest", "bool", None)
    request.field_of("tools", list, "ChatCompletionRequest", "[]api.Tool", None)
    data = request.data
    messages = request.messages_of("ChatCompletionRequest", "openai.Message")
    if not messages:
        raise Refusal(400, "[] is too short - 'messages'", early=True)
    name = str(data.get("model") or "")
    model, tools = text_model(node, name), data.get("tools")
    if tools and not model.tools:
        raise Refusal(400, f"{registry_name(model)} does not support tools")
    plain = plain_messages(messages)
    writer = SimOpenAIChatWriter(node, name, usage=bool((data.get("stream_options") or {}).get("include_usage")))
    generation = GenerationRequest(
        model, render(model, plain, tools), sampling(data, "max_tokens"), None, writer,
        bool(data.get("stream")), format=_format(data.get("response_format")), think=model.thinking,
    )  # fmt: skip
    if tools and plain and plain[-1].get("role") == "user":
        generation.tools = [tool_call(node, tools[0])]
    return await generate(node, generation)


def _format(wanted: Any) -> Any:
    if not isinstance(wanted, dict):
        return None
    if wanted.get("type") == "json_schema":
        return (wanted.get("json_schema") or {}).get("schema")
    return "json" if wanted.get("type") == "json_object" else None


async def completions(node: SimNode, request: SimRequest) -> SimReply:
    """Serve `/v1/completions`."""
    request.read_json("OpenAI")
    request.field_of("stream", bool, "CompletionRequest", "bool", None)
    data = request.data
    name, prompt = str(data.get("model") or ""), str(data.get("prompt") or "")
    model = text_model(node, name, must_name=False)
    if data.get("suffix"):
        raise Refusal(400, f"{registry_name(model)} does not support insert")
    writer = SimOpenAICompletionWriter(node, name, usage=bool((data.get("stream_options") or {}).get("include_usage")))
    turns = render(model, [{"role": "user", "content": prompt}])
    generation = GenerationRequest(model, turns, sampling(data, "max_tokens"), None, writer, bool(data.get("stream")))
    return await generate(node, generation)


async def embeddings(node: SimNode, request: SimRequest) -> SimReply:
    """Serve `/v1/embeddings`."""
    request.read_json("OpenAI")
    data, name = request.data, str(request.data.get("model") or "")
    texts = read_input(data.get("input"))
    if not texts:
        raise Refusal(400, "invalid input", early=True)
    form = request.field_of("encoding_format", str, "EmbedRequest", "string", "")
    if form.lower() not in ("", "float", "base64"):
        words = f"Invalid value for 'encoding_format' = {form}. Supported values: ['float', 'base64']."
        raise Refusal(400, words, early=True)
    model = node.model(name, 'model "{}" not found, try pulling it first', must_name=False)
    wanted = {key: data[key] for key in ("dimensions",) if key in data}
    found = await embed(node, model, texts, wanted, None)
    fragments = [_base64(f) for f in found.fragments] if form.lower() == "base64" else found.fragments
    items = b",".join(
        b'{"object":"embedding","embedding":%s,"index":%d}' % (fragment, place)
        for place, fragment in enumerate(fragments)
    )
    tail = b'],"model":%s,"usage":{"prompt_tokens":%d,"total_tokens":%d}}\n' % (
        encode(name),
        found.tokens,
        found.tokens,
    )
    return SimReply.of(200, b'{"object":"list","data":[' + items + tail, PLAIN_JSON)


def _base64(fragment: bytes) -> bytes:
    numbers = msgspec.json.decode(fragment)
    return b'"' + base64.b64encode(struct.pack(f"<{len(numbers)}f", *(n or 0.0 for n in numbers))) + b'"'


async def transcriptions(node: SimNode, request: SimRequest) -> SimReply:
    """Serve `/v1/audio/transcriptions`, which simulated models cannot do."""
    raise Refusal(400, "this node has no model for sound")


def _entry(node: SimNode, name: str) -> dict[str, Any]:
    return {"id": name, "object": "model", "created": 1_767_225_600, "owned_by": "library"}


async def models(node: SimNode, request: SimRequest) -> SimReply:
    """Serve `/v1/models`."""
    data = [_entry(node, name) for name in node.disk]
    return SimReply.of(200, encode({"object": "list", "data": data}) + b"\n", PLAIN_JSON)


async def model(node: SimNode, request: SimRequest) -> SimReply:
    """Serve `/v1/models/NAME`."""
    if node.find(request.rest) is None:
        raise Refusal(404, f"model '{full_name(request.rest)}' not found")
    return SimReply.of(200, encode(_entry(node, request.rest)) + b"\n", PLAIN_JSON)
