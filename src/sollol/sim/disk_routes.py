"""Serve the routes about state: models on disk, models in memory, and operations on models.

Pull and push answer as a node without a way to the public registry does. `create` takes `from`.
"""

from __future__ import annotations

import asyncio
import hashlib
import re
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from sollol.sim.machine import NodeDied
from sollol.sim.models import ModelSpec, blob_of, full_name, sha256
from sollol.sim.ollama_store import parse_name
from sollol.sim.reply import JSON, NDJSON, PLAIN_JSON, SimReply
from sollol.sim.request import FOREVER_S, Refusal, SimRequest, encode
from sollol.sim.transfer_routes import host_name, transfer

if TYPE_CHECKING:
    from sollol.sim.node import SimNode

_DIGEST = re.compile(r"sha256[:-][0-9a-f]{64}\Z")
_NO_WAY_OUT = "dial tcp: lookup registry.ollama.ai on 127.0.0.53:53: no such host"


def _json(status: int, value: Any) -> SimReply:
    return SimReply.of(status, encode(value), JSON)


async def root(node: SimNode, request: SimRequest) -> SimReply:
    """Serve `/`."""
    return SimReply.of(200, b"Ollama is running", "text/plain; charset=utf-8")


async def version(node: SimNode, request: SimRequest) -> SimReply:
    """Serve `/api/version`."""
    return _json(200, {"version": node.spec.version})


async def status(node: SimNode, request: SimRequest) -> SimReply:
    """Serve `/api/status`."""
    return _json(200, {"cloud": {"disabled": True, "source": "env"}})


async def no_account(node: SimNode, request: SimRequest) -> SimReply:
    """Serve the routes of accounts, which the node does not have."""
    return _json(503, {"error": "account unavailable"})


async def tags(node: SimNode, request: SimRequest) -> SimReply:
    """Serve `/api/tags`."""
    return _json(200, {"models": [model.tag() for model in node.disk.values()]})


async def ps(node: SimNode, request: SimRequest) -> SimReply:
    """Serve `/api/ps`. A model on the CPU shows only by a `size_vram` below its `size`."""
    now_s = asyncio.get_running_loop().time()
    models = []
    for name, runner in node.runners.look().items():
        if runner.shown is None or runner.shown[0] != (runner.users > 0, runner.expires_s):  # it is a moment, kept
            left_s = runner.keep_alive_s if runner.users else runner.expires_s - now_s
            expires = node.stamp(min(max(left_s, -1.0), FOREVER_S))
            runner.shown = (runner.users > 0, runner.expires_s), expires
        models.append(
            {
                "name": name,
                "model": name,
                "size": runner.model.size_bytes,
                "digest": runner.model.digest,
                "details": runner.model.details(),
                "expires_at": runner.shown[1],
                "size_vram": runner.size_vram,
                "context_length": runner.num_ctx,
            }
        )
    return _json(200, {"models": models[::-1]})


async def copy(node: SimNode, request: SimRequest) -> SimReply:
    """Serve `/api/copy`."""
    request.read_json("CopyRequest")
    source, target = str(request.data.get("source", "")), full_name(str(request.data.get("destination", "")))
    found = node.find(source)
    if found is None:
        raise Refusal(404, f'model "{source}" not found')
    if node.store is not None:
        target = parse_name(target).shortest
        node.store.copy(parse_name(found.name), parse_name(target))
    node.disk = {target: found.renamed(target), **node.disk}
    return SimReply.of(200, b"", "")


async def delete(node: SimNode, request: SimRequest) -> SimReply:
    """Serve `/api/delete`."""
    request.read_json("DeleteRequest")
    name = str(request.data.get("model") or request.data.get("name") or "")
    model = node.model(name, "model '{}' not found")
    del node.disk[model.name]
    if node.store is not None:
        node.store.delete(parse_name(model.name))
    node.runners.unload(model.name)
    return SimReply.of(200, b"", "")


async def create(node: SimNode, request: SimRequest) -> SimReply:
    """Serve `/api/create`."""
    request.read_json("CreateRequest")
    name, source = str(request.data.get("model") or request.data.get("name") or ""), request.data.get("from")
    if not source:
        return _stream(400, [{"error": "neither 'from' or 'files' was specified"}], PLAIN_JSON, newline=False)
    base = next((model for model in node.spec.registry if model.name == full_name(str(source))), None)
    if base is None or base.name in node.disk:
        base = node.model(str(source), "model '{}' not found")
    node.disk.setdefault(base.name, base)  # a model that is not on the disk is pulled first
    target = full_name(name)
    new = replace(base, name=target, system=str(request.data.get("system") or base.system))
    node.disk = {target: replace(new, digest=sha256(f"{base.digest}{target}{new.system}")), **node.disk}
    if not request.streams:
        return SimReply.of(200, encode({"status": "success"}), PLAIN_JSON)
    layers = [f"using existing layer sha256:{sha256(f'{base.digest}{i}')}" for i in "ab"]
    layers += [f"creating new layer sha256:{sha256(f'{target}{i}')}" for i in "ab"]
    return _stream(200, [{"status": text} for text in (*layers, "writing manifest", "success")])


async def pull(node: SimNode, request: SimRequest) -> SimReply:
    """Serve `/api/pull`.

    A model on the disk is up to date. Another one comes from `NodeSpec.registry`, if it is there.
    """
    request.read_json("PullRequest")
    name = str(request.data.get("model") or request.data.get("name") or "")
    if (there := host_name(node, name)) is not None:
        return await transfer(node, request, there, "pull")
    if node.find(name) is not None:
        steps = [{"status": "pulling manifest"}, {"status": "verifying sha256 digest"}, {"status": "success"}]
        return _stream(200, steps) if request.streams else SimReply.of(200, encode(steps[-1]), PLAIN_JSON)
    model = next((model for model in node.spec.registry if model.name == full_name(name)), None)
    if model is not None:
        reply = SimReply()
        if not request.streams:
            await _download(node, model, reply)
            return SimReply.of(200, encode({"status": "success"}), PLAIN_JSON)
        reply.begin(200, NDJSON)
        reply.writer = node.spawn(_downloading(node, model, reply))
        return reply
    bare, _, tag = full_name(name).partition(":")
    message = f'pull model manifest: Get "https://registry.ollama.ai/v2/library/{bare}/manifests/{tag}": {_NO_WAY_OUT}'
    return _failed_transfer(request, "pulling manifest", message)


_PARTS = 4


async def _download(node: SimNode, model: ModelSpec, reply: SimReply) -> None:
    """Write a model to the disk in _PARTS steps, at `pull_bytes_per_s`."""

    def report(line: dict[str, Any]) -> None:
        reply.push(encode(line) + b"\n")

    digest, rate, size = blob_of(model), node.spec.pull_bytes_per_s, model.size_bytes
    layer = {"status": f"pulling {digest[:12]}", "digest": f"sha256:{digest}", "total": size}
    report({"status": "pulling manifest"})
    report(layer)
    for part in range(1, _PARTS + 1):
        await node.machine.work(size / _PARTS / rate if rate else 0.0)
        report(layer | {"completed": size * part // _PARTS})
    node.disk[model.name] = node.store.make(model) if node.store is not None else model
    for text in ("verifying sha256 digest", "writing manifest", "success"):
        report({"status": text})


async def _downloading(node: SimNode, model: ModelSpec, reply: SimReply) -> None:
    try:
        await _download(node, model, reply)
        reply.finish()
    except NodeDied:
        reply.fail("the connection was closed")


async def push(node: SimNode, request: SimRequest) -> SimReply:
    """Serve `/api/push`."""
    request.read_json("PushRequest")
    name = str(request.data.get("model") or request.data.get("name") or "")
    model = node.model(name, "model '{}' not found")
    if (there := host_name(node, model.name)) is not None:
        return await transfer(node, request, there, "push")
    bare = model.name.partition(":")[0]
    blob = f"https://registry.ollama.ai/v2/library/{bare}/blobs/sha256:{blob_of(model)}"
    return _failed_transfer(request, "retrieving manifest", f'Head "{blob}": {_NO_WAY_OUT}')


def _failed_transfer(request: SimRequest, first: str, message: str) -> SimReply:
    if request.streams:
        return _stream(200, [{"status": first}, {"error": message}])
    return SimReply.of(500, encode({"error": message}), PLAIN_JSON)


def _stream(
    status: int, lines: Sequence[Mapping[str, Any]], content_type: str = NDJSON, *, newline: bool = True
) -> SimReply:
    reply = SimReply()
    reply.begin(status, content_type)
    for line in lines:
        reply.push(encode(line) + (b"\n" if newline else b""))
    reply.finish()
    return reply


async def blob_head(node: SimNode, request: SimRequest) -> SimReply:
    """Serve `HEAD /api/blobs/`."""
    if not _DIGEST.match(request.rest):
        return _json(400, {"error": "invalid digest format"})
    digest = request.rest.replace("-", ":")
    if node.store is not None and node.store.blob(digest).exists():
        return SimReply.of(200, b"", "")
    if digest in node.blobs or digest in (f"sha256:{blob_of(model)}" for model in node.disk.values()):
        return SimReply.of(200, b"", "")
    return _json(404, {"error": f'blob "{request.rest}" not found'})


async def blob_post(node: SimNode, request: SimRequest) -> SimReply:
    """Serve `POST /api/blobs/`."""
    if not _DIGEST.match(request.rest):
        raise Refusal(400, "invalid digest format")
    got = f"sha256:{hashlib.sha256(request.body).hexdigest()}"
    expected = request.rest.replace("-", ":")
    if got != expected:
        raise Refusal(400, f'digest mismatch, expected "{expected}", got "{got}"')
    node.blobs.add(expected)
    return SimReply.of(201, b"", "")
