"""Serve `/api/embed` and `/api/embeddings`. Items are embedded one after another, in the runner's only slot."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any, NamedTuple

from sollol.sim.models import ModelSpec
from sollol.sim.reply import JSON, SimReply
from sollol.sim.request import Refusal, SimRequest, encode, keep_alive_s, options_of
from sollol.sim.runner import LoadFailed, Runner, ServerBusy
from sollol.sim.vectors import cheap_fragments, encoded

if TYPE_CHECKING:
    from sollol.sim.node import SimNode

TOO_LONG = "the input length exceeds the context length"
NO_EMBEDDINGS = "This server does not support embeddings. Start it with `--embeddings`"
_SPECIAL_TOKENS = 2
_WARM_LOAD_NS = 1_000_000


class Embedded(NamedTuple):
    """Hold the vectors as JSON, the tokens read, and the nanoseconds: in all, and until the model was loaded."""

    fragments: list[bytes]
    tokens: int
    total_ns: int
    load_ns: int


async def embed_route(node: SimNode, request: SimRequest) -> SimReply:
    """Serve `/api/embed`."""
    request.read_json("EmbedRequest")
    name = request.field_of("model", str, "EmbedRequest", "string", "")
    keep = keep_alive_s(request.data.get("keep_alive"))
    texts = read_input(request.data.get("input"))
    model = node.model(name, 'model "{}" not found, try pulling it first', must_name=False)
    found = await embed(node, model, texts, request.data, keep)
    head = b'{"model":' + encode(name) + b',"embeddings":['
    if not texts:
        return SimReply.of(200, head + b"]}", JSON)
    tail = b'],"total_duration":%d,"load_duration":%d,"prompt_eval_count":%d}' % (
        found.total_ns,
        found.load_ns,
        found.tokens,
    )
    return SimReply.of(200, head + b",".join(found.fragments) + tail, JSON)


async def embeddings_route(node: SimNode, request: SimRequest) -> SimReply:
    """Serve `/api/embeddings`, the older route: one prompt, one vector, no timings."""
    request.read_json("EmbeddingRequest")
    name = request.field_of("model", str, "EmbeddingRequest", "string", "")
    prompt = request.field_of("prompt", str, "EmbeddingRequest", "string", "")
    keep = keep_alive_s(request.data.get("keep_alive"))
    model = node.model(name, 'model "{}" not found, try pulling it first')
    found = await embed(node, model, [prompt] if prompt else [], request.data, keep)
    body = found.fragments[0] if found.fragments else b"[]"
    return SimReply.of(200, b'{"embedding":' + body + b"}", JSON)


def read_input(value: Any) -> list[str]:
    """Return the texts of an input: a string, a list of strings, or nothing."""
    if value is None or value == "":
        return []
    if isinstance(value, str):
        return [value]
    if isinstance(value, list) and all(isinstance(text, str) for text in value):
        return value
    raise Refusal(400, "invalid input type")


async def embed(
    node: SimNode, model: ModelSpec, texts: list[str], data: dict[str, Any], keep: float | None
) -> Embedded:
    """Load the model, wait for the slot, embed. An item under way is finished even after the client left."""
    began_s = asyncio.get_running_loop().time()
    options = options_of(data)
    try:
        async with node.runners.use(model, options, keep) as runner:
            loaded_s = asyncio.get_running_loop().time()
            if not model.is_embed:
                raise Refusal(501, NO_EMBEDDINGS)
            tokens = _count(texts, runner.num_ctx, data.get("truncate") is not False)
            if texts:
                await runner.slots.acquire()
                await _work(node, runner, texts)
    except ServerBusy as busy:
        raise Refusal(503, str(busy)) from None
    except LoadFailed as failed:
        raise Refusal(500, str(failed)) from None
    node.counters.items_embedded += len(texts)
    total_ns = round((asyncio.get_running_loop().time() - began_s) * 1e9) + _WARM_LOAD_NS
    load_ns = round((loaded_s - began_s) * 1e9) + _WARM_LOAD_NS
    return Embedded(_fragments(node, model, texts, data), tokens, total_ns, load_ns)


def _count(texts: list[str], num_ctx: int, truncate: bool) -> int:
    total = 0
    for text in texts:
        words = max(text.count(" ") + 1, len(text) // 6) if text else 0
        total += min(words + _SPECIAL_TOKENS, num_ctx)
        if not truncate and words + _SPECIAL_TOKENS > num_ctx:
            raise Refusal(400, TOO_LONG)
    return total


async def _work(node: SimNode, runner: Runner, texts: list[str]) -> None:
    per_item, per_byte = _costs(node)
    factor = runner.slowdown * node.duration_factor()
    began_s = node.machine.now()
    total = (per_item * len(texts) + per_byte * _size(texts)) * factor if per_item or per_byte else 0.0
    try:
        if total or node.machine.frozen:
            await node.machine.until(began_s + total)
    except asyncio.CancelledError:
        node.hold_slot(runner, began_s + _item_end(texts, per_item * factor, per_byte * factor, began_s, node))
        raise
    except BaseException:
        runner.slots.release()
        raise
    runner.slots.release()


def _costs(node: SimNode) -> tuple[float, float]:
    items, size = node.spec.embed_items_per_s, node.spec.embed_bytes_per_s
    return (1.0 / items if items else 0.0), (1.0 / size if size else 0.0)


def _size(texts: list[str]) -> int:
    return sum(len(text) if text.isascii() else len(text.encode("utf-8", "surrogatepass")) for text in texts)


def _item_end(texts: list[str], per_item: float, per_byte: float, began_s: float, node: SimNode) -> float:
    """Return when the item under way will be done, in seconds after the beginning."""
    passed, end = node.machine.now() - began_s, 0.0
    for text in texts:
        end += per_item + per_byte * len(text)
        if end >= passed:
            break
    return end


def _fragments(node: SimNode, model: ModelSpec, texts: list[str], data: dict[str, Any]) -> list[bytes]:
    cut = data.get("dimensions")
    width = cut if isinstance(cut, int) and cut > 0 else None
    if node.faults.wrong == "dimension":
        width = max(1, (width or model.dim) - 1)
    make = cheap_fragments if node.spec.vectors == "cheap" else encoded.fragments
    found = make(texts, model.dim, width)
    if node.faults.wrong == "missing-vector":
        return found[:-1]
    if node.faults.wrong == "extra-vector":
        return [*found, *found[-1:]]
    if node.faults.wrong == "not-a-number" and found:
        return [b"[" + b",".join([b"null"] * (width or model.dim)) + b"]", *found[1:]]
    return found
