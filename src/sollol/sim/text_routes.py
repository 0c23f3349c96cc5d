"""`/api/generate` and `/api/chat`: from a request's fields to a Wish, with the refusals on the way."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from sollol.sim.ask import Ask, Refusal, keep_alive_s, options_of
from sollol.sim.generation import Wish, generate
from sollol.sim.models import ModelSpec
from sollol.sim.reply import SimReply
from sollol.sim.runner import ServerBusy
from sollol.sim.voices import ChatVoice, GenerateVoice, OllamaVoice
from sollol.sim.words import render, tool_arguments

if TYPE_CHECKING:
    from sollol.sim.node import SimNode

_NO_PICTURES = (
    '{"error":{"code":400,"message":"Multimodal data provided, but model does not support multimodal requests.",'
    '"type":"invalid_request_error"}}'
)


def registry_name(model: ModelSpec) -> str:
    """The long name that some errors use."""
    return model.name if "/" in model.name else f"registry.ollama.ai/library/{model.name}"


async def generate_route(node: SimNode, ask: Ask) -> SimReply:
    ask.read_json("GenerateRequest")
    name = ask.field_of("model", str, "GenerateRequest", "string", "")
    prompt = ask.field_of("prompt", str, "GenerateRequest", "string", "")
    ask.field_of("stream", bool, "GenerateRequest", "bool", None)
    keep = keep_alive_s(ask.data.get("keep_alive"))
    model = node.model(name, "model '{}' not found", must_name=False)
    voice = GenerateVoice(name, node.stamp, context=not ask.data.get("raw"), logprobs=_logprobs(ask.data))
    if not prompt and keep == 0:
        return _unload(node, model, voice)
    if model.is_embed:
        raise Refusal(400, f'"{name}" does not support generate')
    if ask.data.get("suffix"):
        raise Refusal(400, f"{registry_name(model)} does not support insert")
    _check_think(ask.data, model, name)
    options = options_of(ask.data)
    if not prompt:
        return await _preload(node, model, options, keep, voice)
    if ask.data.get("images"):
        raise Refusal(400, _NO_PICTURES)
    if not ask.data.get("raw"):
        system = ask.data.get("system")
        turns = [{"role": "system", "content": system}] if system else []
        prompt = render(model, [*turns, {"role": "user", "content": prompt}])
    if ask.data.get("_debug_render_only") and node.spec.renders:
        return voice.rendered(prompt)
    return await generate(node, _wish(ask, model, prompt, options, keep, voice))


async def chat_route(node: SimNode, ask: Ask) -> SimReply:
    ask.read_json("ChatRequest")
    name = ask.field_of("model", str, "ChatRequest", "string", "")
    messages = ask.messages_of("ChatRequest", "api.Message")
    ask.field_of("stream", bool, "ChatRequest", "bool", None)
    ask.tools_of("ChatRequest")
    keep = keep_alive_s(ask.data.get("keep_alive"))
    model = node.model(name, "model '{}' not found")
    voice = ChatVoice(name, node.stamp, logprobs=_logprobs(ask.data))
    if not messages and keep == 0:
        return _unload(node, model, voice)
    if model.is_embed:
        raise Refusal(400, f'"{name}" does not support chat')
    tools = ask.data.get("tools")
    if tools and not model.tools:
        raise Refusal(400, f"{registry_name(model)} does not support tools")
    _check_think(ask.data, model, name)
    options = options_of(ask.data)
    if not messages:
        return await _preload(node, model, options, keep, voice)
    if any(m.get("images") for m in messages):
        raise Refusal(400, _NO_PICTURES)
    prompt = render(model, messages, tools)
    if ask.data.get("_debug_render_only") and node.spec.renders:
        return voice.rendered(prompt)
    wish = _wish(ask, model, prompt, options, keep, voice)
    if tools and messages[-1].get("role") == "user":
        wish.tools = [tool_call(node, tools[0])]
    return await generate(node, wish)


def tool_call(node: SimNode, tool: dict[str, Any]) -> dict[str, Any]:
    """The model always calls the first tool it is offered, with the smallest arguments that fit."""
    name = tool.get("function", {}).get("name", "")
    function = {"index": 0, "name": name, "arguments": tool_arguments(tool)}
    return {"id": f"call_{node.dice.getrandbits(32):08x}", "function": function}


def _wish(
    ask: Ask, model: ModelSpec, prompt: str, options: dict[str, Any], keep: float | None, voice: OllamaVoice
) -> Wish:
    data = ask.data
    return Wish(
        model, prompt, options, keep, voice, ask.streams,
        format=data.get("format"),
        truncate=data.get("truncate") is not False,
        think=bool(data.get("think", model.thinking)),
    )  # fmt: skip


def _check_think(data: dict[str, Any], model: ModelSpec, name: str) -> None:
    if data.get("think") and not model.thinking:
        raise Refusal(400, f'"{name}" does not support thinking')


def _logprobs(data: dict[str, Any]) -> int | None:
    return int(data.get("top_logprobs") or 0) if data.get("logprobs") else None


def _unload(node: SimNode, model: ModelSpec, voice: OllamaVoice) -> SimReply:
    node.runners.unload(model.name)
    return voice.empty("unload")


async def _preload(
    node: SimNode, model: ModelSpec, options: dict[str, Any], keep: float | None, voice: OllamaVoice
) -> SimReply:
    try:
        async with node.runners.use(model, options, keep):
            return voice.empty("load")
    except ServerBusy as busy:
        raise Refusal(503, str(busy)) from None
