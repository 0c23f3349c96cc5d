"""Serve `/api/generate` and `/api/chat`: check the fields and make a GenerationRequest."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from sollol.sim.generation import GenerationRequest, generate
from sollol.sim.models import ModelSpec
from sollol.sim.ollama_writer import SimChatWriter, SimGenerateWriter, SimOllamaWriter
from sollol.sim.reply import SimReply
from sollol.sim.request import Refusal, SimRequest, keep_alive_s, options_of
from sollol.sim.runner import LoadFailed, ServerBusy
from sollol.sim.words import render, tool_arguments

if TYPE_CHECKING:
    from sollol.sim.node import SimNode

_NO_PICTURES = (
    '{"error":{"code":400,"message":"Multimodal data provided, but model does not support multimodal requests.",'
    '"type":"invalid_request_error"}}'
)


def registry_name(model: ModelSpec) -> str:
    """Return the long name of a model, which some errors use."""
    return model.name if "/" in model.name else f"registry.ollama.ai/library/{model.name}"


async def generate_route(node: SimNode, request: SimRequest) -> SimReply:
    """Serve `/api/generate`."""
    request.read_json("GenerateRequest")
    name = request.field_of("model", str, "GenerateRequest", "string", "")
    prompt = request.field_of("prompt", str, "GenerateRequest", "string", "")
    request.field_of("stream", bool, "GenerateRequest", "bool", None)
    keep = keep_alive_s(request.data.get("keep_alive"))
    model = node.model(name, "model '{}' not found", must_name=False)
    writer = SimGenerateWriter(name, node.stamp, context=not request.data.get("raw"), logprobs=_logprobs(request.data))
    if not prompt and keep == 0:
        return _unload(node, model, writer)
    if model.is_embed:
        raise Refusal(400, f'"{name}" does not support generate')
    if request.data.get("suffix"):
        raise Refusal(400, f"{registry_name(model)} does not support insert")
    _check_think(request.data, model, name)
    options = options_of(request.data)
    if not prompt:
        return await _preload(node, model, options, keep, writer)
    if request.data.get("images"):
        raise Refusal(400, _NO_PICTURES)
    if not request.data.get("raw"):
        system = request.data.get("system")
        turns = [{"role": "system", "content": system}] if system else []
        prompt = render(model, [*turns, {"role": "user", "content": prompt}])
    if request.data.get("_debug_render_only") and node.spec.renders:
        return writer.rendered(prompt)
    return await generate(node, _generation_of(request, model, prompt, options, keep, writer))


async def chat_route(node: SimNode, request: SimRequest) -> SimReply:
    """Serve `/api/chat`."""
    request.read_json("ChatRequest")
    name = request.field_of("model", str, "ChatRequest", "string", "")
    messages = request.messages_of("ChatRequest", "api.Message")
    request.field_of("stream", bool, "ChatRequest", "bool", None)
    request.tools_of("ChatRequest")
    keep = keep_alive_s(request.data.get("keep_alive"))
    model = node.model(name, "model '{}' not found")
    writer = SimChatWriter(name, node.stamp, logprobs=_logprobs(request.data))
    if not messages and keep == 0:
        return _unload(node, model, writer)
    if model.is_embed:
        raise Refusal(400, f'"{name}" does not support chat')
    tools = request.data.get("tools")
    if tools and not model.tools:
        raise Refusal(400, f"{registry_name(model)} does not support tools")
    _check_think(request.data, model, name)
    options = options_of(request.data)
    if not messages:
        return await _preload(node, model, options, keep, writer)
    if any(m.get("images") for m in messages):
        raise Refusal(400, _NO_PICTURES)
    prompt = render(model, messages, tools)
    if request.data.get("_debug_render_only") and node.spec.renders:
        return writer.rendered(prompt)
    generation = _generation_of(request, model, prompt, options, keep, writer)
    if tools and messages[-1].get("role") == "user":
        generation.tools = [tool_call(node, tools[0])]
    return await generate(node, generation)


def tool_call(node: SimNode, tool: dict[str, Any]) -> dict[str, Any]:
    """Return a call of the first tool, with the smallest arguments that fit."""
    name = tool.get("function", {}).get("name", "")
    function = {"index": 0, "name": name, "arguments": tool_arguments(tool)}
    return {"id": f"call_{node.dice.getrandbits(32):08x}", "function": function}


def _generation_of(
    request: SimRequest,
    model: ModelSpec,
    prompt: str,
    options: dict[str, Any],
    keep: float | None,
    writer: SimOllamaWriter,
) -> GenerationRequest:
    data = request.data
    return GenerationRequest(
        model, prompt, options, keep, writer, request.streams,
        format=data.get("format"),
        truncate=data.get("truncate") is not False,
        think=bool(data.get("think", model.thinking)),
    )  # fmt: skip


def _check_think(data: dict[str, Any], model: ModelSpec, name: str) -> None:
    if data.get("think") and not model.thinking:
        raise Refusal(400, f'"{name}" does not support thinking')


def _logprobs(data: dict[str, Any]) -> int | None:
    return int(data.get("top_logprobs") or 0) if data.get("logprobs") else None


def _unload(node: SimNode, model: ModelSpec, writer: SimOllamaWriter) -> SimReply:
    node.runners.unload(model.name)
    return writer.empty("unload")


async def _preload(
    node: SimNode, model: ModelSpec, options: dict[str, Any], keep: float | None, writer: SimOllamaWriter
) -> SimReply:
    try:
        async with node.runners.use(model, options, keep):
            return writer.empty("load")
    except ServerBusy as busy:
        raise Refusal(503, str(busy)) from None
    except LoadFailed as failed:
        raise Refusal(500, str(failed)) from None
