"""Changing the models of the nodes: pull, push, create, copy, delete, and the blobs that a create needs.

A change goes at once to the nodes that it concerns (`targets`), and is told for each: progress is one stream whose
lines name their node; an outcome that differs between nodes is not hidden in one word. The answer comes when the
scheduler knows of the change, too.
"""

from __future__ import annotations

import asyncio
import re
from collections.abc import AsyncIterator
from typing import TYPE_CHECKING, Any, Final

from sollol.backends.ollama import encode, error_text
from sollol.core.endpoint import Endpoint
from sollol.core.types import canonical_model
from sollol.errors import ResponseError
from sollol.gateway.routes import targets
from sollol.gateway.routes.lists import fields_of, holders, relearn, states
from sollol.gateway.routes.targets import Targets
from sollol.http_server.request import JSON, NDJSON, Request
from sollol.models import operations
from sollol.transport.base import Call, TransportFault

if TYPE_CHECKING:
    from sollol.gateway.app import Gateway

BLOB: Final[re.Pattern[str]] = re.compile(r"/api/blobs/([^/]+)")
AHEAD: Final = 8  # pieces of an upload that a node may be behind the fastest
STALL_S: Final = 60.0  # for which a node may take nothing of an upload, before the others go on without it
DIGEST: Final = re.compile(r"sha256[:-][0-9a-fA-F]{64}")
PLAIN_JSON: Final = "application/json"  # what Ollama calls the answers of these routes

Outcomes = dict[str, Exception | str | None]  # by node: None is success, a text why it was not reached


async def pull(gateway: Gateway, request: Request) -> None:
    fields = _renamed(gateway, fields_of(request, "model", "name"))
    to = targets.chosen(gateway, request) or targets.of_pull(gateway, fields["model"])
    await _carry_out(gateway, request, fields, to)


async def push(gateway: Gateway, request: Request) -> None:
    """From one node that has it."""
    fields = _renamed(gateway, fields_of(request, "model", "name"))
    to = targets.chosen(gateway, request)
    if to is None:
        have = await holders(gateway, fields["model"], f"model '{fields['model']}' not found")
        to = Targets(tuple(have[:1]), {})
    await _carry_out(gateway, request, fields, to)


async def create(gateway: Gateway, request: Request) -> None:
    fields = fields_of(request, "model", "name")
    if isinstance(fields.get("from"), str):
        fields["from"] = gateway.settings.resolve_model(fields["from"])
    to = targets.chosen(gateway, request) or await targets.of_create(gateway, fields)
    await _carry_out(gateway, request, fields, to)


async def copy(gateway: Gateway, request: Request) -> None:
    fields = fields_of(request, "source")
    name = str(fields["source"])
    fields["source"] = gateway.settings.resolve_model(name)
    to = targets.chosen(gateway, request)
    to = to or await targets.of_holders(gateway, fields["source"], f'model "{name}" not found')
    await _everywhere(gateway, request, fields, to)


async def delete(gateway: Gateway, request: Request) -> None:
    """An alias is not followed: who deletes `gpt-4o` does not mean the model behind it."""
    fields = fields_of(request, "model", "name")
    name = str(fields.get("model") or fields["name"])
    to = targets.chosen(gateway, request)
    to = to or await targets.of_holders(gateway, name, f"model '{name}' not found")
    await _everywhere(gateway, request, fields, to)


def _renamed(gateway: Gateway, fields: dict[str, Any]) -> dict[str, Any]:
    name = str(fields.get("model") or fields["name"])
    return {**fields, "model": gateway.settings.resolve_model(name)}


# --- carrying out, and telling ---


async def _everywhere(gateway: Gateway, request: Request, fields: dict[str, Any], to: Targets) -> None:
    """One call to each node."""
    try:
        answers = await operations.fetch_from_all(
            gateway.engine.transport, to.nodes, request.method, request.path, fields
        )
    except asyncio.CancelledError:
        gateway.engine.refresh()
        raise
    outcomes: Outcomes = {node: answer if isinstance(answer, Exception) else None for node, answer in answers.items()}
    await relearn(gateway, answers)
    _tell(request, {**outcomes, **to.down}, JSON)


async def _carry_out(gateway: Gateway, request: Request, fields: dict[str, Any], to: Targets) -> None:
    """A call with progress: one stream for all nodes, or with `"stream": false` one answer."""
    streams = fields.get("stream") is not False
    lines = operations.stream_progress(gateway.engine.transport, to.nodes, request.path, fields, verbatim=True)
    keys = [node.key for node in to.nodes]
    outcomes: Outcomes = {**dict.fromkeys(keys, "ended without a word"), **to.down}
    sums = Sums(len(keys))
    late: list[dict[str, Any]] = []  # failures that came before anything good
    try:
        async for node, line in lines:
            if isinstance(line, Exception):
                outcomes[node] = line
                late.append({"status": f"failed on {node}: {operations.error_message(line)}", "node": node})
            elif line.get("status") == "success":
                outcomes[node] = None
            elif streams:
                if not request.has_begun:
                    request.begin(200, NDJSON)
                await _say(request, sums.of({**line, "node": node}))
            while late and request.has_begun and len(keys) > 1:
                await _say(request, late.pop(0))
        await relearn(gateway, keys)
    except asyncio.CancelledError:
        gateway.engine.refresh()  # what was done before the client left
        raise
    finally:
        await lines.aclose()
    if streams and (request.has_begun or None in outcomes.values()):
        request.begin(200, NDJSON)
        await _say(request, _last_line(outcomes))
        request.end()
    else:
        _tell(request, outcomes, PLAIN_JSON)


async def _say(request: Request, line: dict[str, Any]) -> None:
    if not request.write(encode(line) + b"\n"):
        await request.drained()


def _words(outcomes: Outcomes) -> dict[str, str]:
    return {
        node: "success" if found is None else found if isinstance(found, str) else operations.error_message(found)
        for node, found in outcomes.items()
    }


def _last_line(outcomes: Outcomes) -> dict[str, Any]:
    """Success if it is one anywhere, with what became of it on each node."""
    if None in outcomes.values():
        return {"status": "success", "nodes": _words(outcomes)}
    return _error(outcomes)[1]


def _tell(request: Request, outcomes: Outcomes, content_type: str, status: int = 200) -> None:
    """One answer for all nodes. `status`: of success."""
    good = [node for node, found in outcomes.items() if found is None]
    if good:
        told = {"status": "success" if len(good) == len(outcomes) else "partial", "nodes": _words(outcomes)}
        request.answer(status, encode(told), content_type)
    else:
        status, body = _error(outcomes)
        if len(set(_words(outcomes).values())) == 1:
            del body["nodes"]  # all said the same, as one would
        request.answer(status, encode(body), content_type)


def _error(outcomes: Outcomes) -> tuple[int, dict[str, Any]]:
    """What a node that refused said, rather than that another did not answer; and of each."""
    words = _words(outcomes)
    refused = [(found.status_code, node) for node, found in outcomes.items() if isinstance(found, ResponseError)]
    status, node = min(refused, default=(502, next(iter(words))))
    return status, {"error": words[node], "nodes": words}


class Sums:
    """Progress of one layer on several nodes as that of one: bytes are summed, so that no bar goes back."""

    def __init__(self, nodes: int) -> None:
        self._nodes = nodes
        self._completed: dict[str, dict[str, int]] = {}

    def of(self, line: dict[str, Any]) -> dict[str, Any]:
        digest, total = line.get("digest"), line.get("total")
        if self._nodes == 1 or not digest or not total:
            return line
        by_node = self._completed.setdefault(str(digest), {})
        node = str(line["node"])
        by_node[node] = max(by_node.get(node, 0), int(line.get("completed") or 0))
        return {**line, "total": total * self._nodes, "completed": sum(by_node.values())}


# --- blobs ---


def check_digest(digest: str) -> None:
    """Raises ResponseError (400), in a node's words, for what is no digest: it becomes part of a path at the nodes."""
    if not DIGEST.fullmatch(digest):
        raise ResponseError("invalid digest format", 400)


async def has_blob(gateway: Gateway, request: Request, digest: str) -> None:
    """200 only if every node that a create would go to has it."""
    nodes = (targets.chosen(gateway, request) or targets.all_up(gateway)).nodes
    statuses = set(await asyncio.gather(*(targets.head(gateway, node, request.path) for node in nodes)))
    if statuses == {200}:
        request.answer_with(200, b"", b"", b"")
    elif 400 in statuses:
        request.answer(400, encode({"error": "invalid digest format"}))
    else:
        request.answer(404, encode({"error": f'blob "{digest}" not found'}))


async def upload_blob(gateway: Gateway, request: Request, digest: str) -> None:
    """To all nodes at once as it comes; the slowest sets the pace, and one that fails or stands still is left out."""
    to = targets.chosen(gateway, request) or targets.all_up(gateway)
    uploads = [Upload(gateway, node, request.path) for node in to.nodes]
    try:
        async for piece in request.pieces():
            behind = [upload for upload in uploads if not upload.take(piece)]
            if behind:  # waited for together: several that stand still cost the others STALL_S once
                await asyncio.gather(*(upload.put(piece) for upload in behind))
            if all(upload.task.done() for upload in uploads):
                break
        if request.is_gone:
            return
        answers = await asyncio.gather(*(upload.end() for upload in uploads))
    finally:
        for upload in uploads:
            upload.task.cancel()
    outcomes: Outcomes = {
        u.key: found if isinstance(found, Exception) else None for u, found in zip(uploads, answers, strict=True)
    }
    outcomes |= to.down
    good = [found for found in answers if isinstance(found, int)]
    if len(good) == len(outcomes):
        request.answer_with(max(good), b"", b"", b"")
    else:
        _tell(request, outcomes, JSON, max(good, default=200))


class Upload:
    """A blob on its way to one node."""

    def __init__(self, gateway: Gateway, node: Endpoint, path: str) -> None:
        self.key = node.key
        self._queue: asyncio.Queue[bytes] = asyncio.Queue(AHEAD)
        call = Call("POST", path, self._pieces(), "application/octet-stream", timeouts=operations.TIMEOUTS)
        self.task = asyncio.create_task(_upload(gateway, node, call))

    async def _pieces(self) -> AsyncIterator[bytes]:
        while piece := await self._queue.get():
            yield piece

    def take(self, piece: bytes) -> bool:
        """True if there is room for it, or it is of no use any more."""
        if not self.task.done():
            if self._queue.full():
                return False
            self._queue.put_nowait(piece)
        return True

    async def put(self, piece: bytes) -> None:
        """Returns when it is taken."""
        if self.take(piece):
            return
        putting = asyncio.ensure_future(self._queue.put(piece))
        try:
            await asyncio.wait({putting, self.task}, timeout=STALL_S, return_when=asyncio.FIRST_COMPLETED)
        finally:
            if not putting.done():
                putting.cancel()
                self.task.cancel()

    async def end(self) -> int | Exception:
        """That was all: the status of success, or what it failed with."""
        await self.put(b"")
        try:
            return await self.task
        except asyncio.CancelledError:
            if self.task.cancelled():
                return ResponseError(f"took nothing for {STALL_S:g} s", 504)
            raise


async def _upload(gateway: Gateway, node: Endpoint, call: Call) -> int | Exception:
    try:
        reply = await gateway.engine.transport.send(node, call)
        body = await reply.read()
    except TransportFault as fault:
        return fault
    return reply.status if reply.status < 300 else ResponseError(error_text(body), reply.status)


# --- memory ---


async def unload(gateway: Gateway, request: Request, model: str, only: tuple[str, ...] | None) -> None:
    """Unload a model from every node that holds it, or from `only` these: `keep_alive: 0` with nothing to say."""
    fields = {**fields_of(request, "model"), "model": model, "stream": False}
    name = canonical_model(model)
    missing = f"model '{name}' not found"
    if only is not None:
        holding = [node for node in await holders(gateway, model, missing) if node.key in only]
        if not holding:
            raise ResponseError(f"{missing} on {', '.join(only)}", 404)
    else:
        holding = [node.endpoint for node in states(gateway) if node.usable and name in node.loaded]
        holding = holding or (await holders(gateway, model, missing))[:1]
    answers = await operations.fetch_from_all(
        gateway.engine.transport, holding, "POST", request.path, fields, operations.WORKING
    )
    good = operations.require_answer(f"unload {model}", answers)
    await relearn(gateway, answers)
    request.answer(200, encode(next(iter(good.values()))))
