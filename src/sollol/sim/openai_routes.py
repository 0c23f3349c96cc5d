"""`/v1`: the same answers in OpenAI's words, as Ollama's translation layer writes them, its habits included.

An error after the first byte is swallowed there: an empty chunk with `"model":""`, then the end in good
form, without a finish_reason and without `[DONE]`. `keep_alive` and runner options cannot be set here.
"""

from __future__ import annotations

import base64
import struct
from typing import TYPE_CHECKING, Any

import msgspec

from sollol.sim.ask import Ask, Refusal, encode
from sollol.sim.embed_routes import embed, read_input
from sollol.sim.generation import Answer, End, Wish, generate
from sollol.sim.models import ModelSpec, full_name
from sollol.sim.reply import JSON, PLAIN_JSON, SSE, SimReply
from sollol.sim.text_routes import registry_name, tool_call
from sollol.sim.words import render

if TYPE_CHECKING:
    from sollol.sim.node import SimNode

_TYPES = {400: "invalid_request_error", 404: "not_found_error"}


def openai_error(refusal: Refusal) -> SimReply:
    """Errors found in reading come from another layer than the others; it shows in type and newline."""
    kind = _TYPES.get(refusal.status, "api_error")
    body = encode({"error": {"message": refusal.message, "type": kind, "param": None, "code": None}})
    if refusal.early:
        return SimReply.of(refusal.status, body, JSON)
    return SimReply.of(refusal.status, body + b"\n", PLAIN_JSON)


def event(value: Any) -> bytes:
    return b"data: " + encode(value) + b"\n\n"


class OpenAIVoice:
    """What chat and completions share."""

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
        found = event(self._chunk(text, None, thinking))
        self._spoke = True
        return found

    def last(self, answer: Answer, end: End) -> bytes:
        calls = event(self._calls(answer)) if answer.tool_calls else b""
        found = calls + event(self._chunk(None, self._reason(answer, end)))
        if self._usage:
            found += event(self._chunk(None, None) | {"choices": [], "usage": usage(end)})
        return found + b"data: [DONE]\n\n"

    def _calls(self, answer: Answer) -> dict[str, Any]:
        chunk = self._chunk("", None)
        chunk["choices"][0]["delta"] = {"role": "assistant", "content": "", "tool_calls": openai_calls(answer)}
        return chunk

    def _reason(self, answer: Answer, end: End) -> str:
        return "tool_calls" if answer.tool_calls else end.reason

    def broken(self, message: str) -> bytes:
        self._model = ""
        return event(self._chunk("", None))

    def refused(self, refusal: Refusal) -> SimReply:
        return openai_error(refusal)


class OpenAIChat(OpenAIVoice):
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

    def whole(self, answer: Answer, end: End) -> SimReply:
        message: dict[str, Any] = {"role": "assistant", "content": answer.text}
        if answer.thoughts:
            message["reasoning"] = answer.thinking
        if answer.tool_calls:
            message["tool_calls"] = openai_calls(answer)
        choice = {"index": 0, "message": message, "finish_reason": self._reason(answer, end)}
        body = self._head("chat.completion") | {"choices": [choice], "usage": usage(end)}
        return SimReply.of(200, encode(body) + b"\n", PLAIN_JSON)


class OpenAICompletion(OpenAIVoice):
    def _chunk(self, text: str | None, reason: str | None, thinking: bool = False) -> dict[str, Any]:
        return {
            "id": f"cmpl-{self._number}",
            "object": "text_completion",
            "created": self._created,
            "choices": [{"text": text or "", "index": 0, "finish_reason": reason}],
            "model": self._model,
            "system_fingerprint": "fp_ollama",
        }

    def whole(self, answer: Answer, end: End) -> SimReply:
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


def usage(end: End) -> dict[str, int]:
    total = end.prompt_tokens + end.tokens
    return {"prompt_tokens": end.prompt_tokens, "completion_tokens": end.tokens, "total_tokens": total}


def openai_calls(answer: Answer) -> list[dict[str, Any]]:
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
    """Contents may be lists of parts; the texts among them count."""
    return [m | {"content": plain_content(m.get("content"))} for m in messages]


def plain_content(content: Any) -> str:
    if isinstance(content, list):
        parts = (part.get("text", "") if isinstance(part, dict) else "" for part in content)
        return "".join(part for part in parts if isinstance(part, str))
    return content if isinstance(content, str) else ""


def text_model(node: SimNode, name: str, must_name: bool = True) -> ModelSpec:
    model = node.model(name, "model '{}' not found", must_name)
    if model.is_embed:
        raise Refusal(400, f'"{name}" does not support chat')
    return model


def sampling(data: dict[str, Any], limit: str) -> dict[str, Any]:
    """The options that exist here; `max_completion_tokens` is none of them (ollama/ollama#7125)."""
    names = {limit: "num_predict", "seed": "seed", "stop": "stop"}
    return {ours: data[theirs] for theirs, ours in names.items() if data.get(theirs) is not None}


async def chat(node: SimNode, ask: Ask) -> SimReply:
    ask.read_json("OpenAI")
    ask.field_of("stream", bool, "ChatCompletionRequest", "bool", None)
    ask.field_of("tools", list, "ChatCompletionRequest", "[]api.Tool", None)
    data = ask.data
    messages = ask.messages_of("ChatCompletionRequest", "openai.Message")
    if not messages:
        raise Refusal(400, "[] is too short - 'messages'", early=True)
    name = str(data.get("model") or "")
    model, tools = text_model(node, name), data.get("tools")
    if tools and not model.tools:
        raise Refusal(400, f"{registry_name(model)} does not support tools")
    plain = plain_messages(messages)
    voice = OpenAIChat(node, name, usage=bool((data.get("stream_options") or {}).get("include_usage")))
    wish = Wish(
        model, render(model, plain, tools), sampling(data, "max_tokens"), None, voice,
        bool(data.get("stream")), format=_format(data.get("response_format")), think=model.thinking,
    )  # fmt: skip
    if tools and plain and plain[-1].get("role") == "user":
        wish.tools = [tool_call(node, tools[0])]
    return await generate(node, wish)


def _format(wanted: Any) -> Any:
    if not isinstance(wanted, dict):
        return None
    if wanted.get("type") == "json_schema":
        return (wanted.get("json_schema") or {}).get("schema")
    return "json" if wanted.get("type") == "json_object" else None


async def completions(node: SimNode, ask: Ask) -> SimReply:
    ask.read_json("OpenAI")
    ask.field_of("stream", bool, "CompletionRequest", "bool", None)
    data = ask.data
    name, prompt = str(data.get("model") or ""), str(data.get("prompt") or "")
    model = text_model(node, name, must_name=False)
    if data.get("suffix"):
        raise Refusal(400, f"{registry_name(model)} does not support insert")
    voice = OpenAICompletion(node, name, usage=bool((data.get("stream_options") or {}).get("include_usage")))
    turns = render(model, [{"role": "user", "content": prompt}])
    wish = Wish(model, turns, sampling(data, "max_tokens"), None, voice, bool(data.get("stream")))
    return await generate(node, wish)


async def embeddings(node: SimNode, ask: Ask) -> SimReply:
    ask.read_json("OpenAI")
    data, name = ask.data, str(ask.data.get("model") or "")
    texts = read_input(data.get("input"))
    if not texts:
        raise Refusal(400, "invalid input", early=True)
    form = ask.field_of("encoding_format", str, "EmbedRequest", "string", "")
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


async def transcriptions(node: SimNode, ask: Ask) -> SimReply:
    raise Refusal(400, "this node hears nothing: the simulated models know no sound")


def _entry(node: SimNode, name: str) -> dict[str, Any]:
    return {"id": name, "object": "model", "created": 1_767_225_600, "owned_by": "library"}


async def models(node: SimNode, ask: Ask) -> SimReply:
    data = [_entry(node, name) for name in node.disk]
    return SimReply.of(200, encode({"object": "list", "data": data}) + b"\n", PLAIN_JSON)


async def model(node: SimNode, ask: Ask) -> SimReply:
    if node.find(ask.rest) is None:
        raise Refusal(404, f"model '{full_name(ask.rest)}' not found")
    return SimReply.of(200, encode(_entry(node, ask.rest)) + b"\n", PLAIN_JSON)
