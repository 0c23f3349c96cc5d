"""The model verbs: they go to nodes directly, not through the queue, because they need no slot.

`list` and `ps` are merged over the nodes that answer; `show` asks one that has the model; `pull`, `create`,
`copy` and `delete` go to every node concerned, and tell per node how it went.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Sequence
from typing import Any

from sollol.core.endpoint import Endpoint
from sollol.core.types import canonical_model
from sollol.errors import NoNodeAvailable, ResponseError
from sollol.nodes.dialect import Lines, decode, encode, error_text
from sollol.nodes.transport import Call, Timeouts, Transport, TransportFault
from sollol.pool.answers import Answer

TIMEOUTS = Timeouts(connect_s=3.0, first_byte_s=30.0, idle_s=600.0)
LOADING = Timeouts(connect_s=3.0, first_byte_s=600.0, idle_s=600.0)


Unanswered = (ResponseError, TransportFault)  # what asking a node can end in


async def ask(
    transport: Transport, node: Endpoint, method: str, path: str, body: Any = None, timeouts: Timeouts = TIMEOUTS
) -> Any:
    """One call to one node, decoded. Raises ResponseError for what the node refused."""
    data = b"" if body is None else encode(body)
    reply = await transport.send(node, Call(method, path, data, timeouts=timeouts))
    answer = await reply.read()
    if reply.status != 200:
        raise ResponseError(error_text(answer) or f"{node.url}{path} gave no text", reply.status)
    return decode(answer) if answer.strip() else {}


async def ask_all(
    transport: Transport,
    nodes: Sequence[Endpoint],
    method: str,
    path: str,
    body: Any = None,
    timeouts: Timeouts = TIMEOUTS,
) -> dict[str, Any]:
    """The same call to all nodes at once: node -> answer or exception."""

    async def one(node: Endpoint) -> Any:
        try:
            return await ask(transport, node, method, path, body, timeouts)
        except Unanswered as error:
            return error

    answers = await asyncio.gather(*(one(node) for node in nodes))
    return dict(zip([node.key for node in nodes], answers, strict=True))


def need_one(what: str, answers: dict[str, Any]) -> dict[str, Any]:
    """The good answers; if there are none, why."""
    good = {node: answer for node, answer in answers.items() if not isinstance(answer, Exception)}
    if good:
        return good
    refused = [error for error in answers.values() if isinstance(error, ResponseError)]
    if refused and len(refused) == len(answers):
        raise refused[0]
    raise NoNodeAvailable(f"{what}: no node answered", [(node, str(error)) for node, error in answers.items()])


async def list_models(transport: Transport, nodes: Sequence[Endpoint]) -> Answer:
    """All models on disk, each once, with `nodes`: who has it."""
    merged: dict[str, dict[str, Any]] = {}
    for node, answer in need_one("list", await ask_all(transport, nodes, "GET", "/api/tags")).items():
        for row in answer.get("models") or []:
            merged.setdefault(str(row.get("model")), {**row, "nodes": []})["nodes"].append(node)
    return Answer(models=list(merged.values()))


async def running_models(transport: Transport, nodes: Sequence[Endpoint]) -> Answer:
    """All models in memory, a row per node and model, with `node`."""
    rows: list[dict[str, Any]] = []
    for node, answer in need_one("ps", await ask_all(transport, nodes, "GET", "/api/ps")).items():
        rows += [{**row, "node": node} for row in answer.get("models") or []]
    return Answer(models=rows)


async def version(transport: Transport, nodes: Sequence[Endpoint]) -> Answer:
    """`version`: the oldest of the nodes' versions; `nodes`: each one's."""
    answers = need_one("version", await ask_all(transport, nodes, "GET", "/api/version"))
    versions = {node: str(answer.get("version", "")) for node, answer in answers.items()}
    return Answer(version=min(versions.values(), key=_version_key), nodes=versions)


def _version_key(text: str) -> tuple[int, ...]:
    return tuple(int(part) if part.isdigit() else 0 for part in text.split("-")[0].split("."))


async def show(transport: Transport, nodes: Sequence[Endpoint], model: str) -> Answer:
    """What the first node that has the model says of it."""
    answers: dict[str, Any] = {}
    for node in nodes:
        try:
            return Answer(await ask(transport, node, "POST", "/api/show", {"model": model}))
        except Unanswered as error:
            answers[node.key] = error
    need_one(f"show {model}", answers)
    raise AssertionError("unreachable")


async def holders(transport: Transport, nodes: Sequence[Endpoint], model: str) -> list[Endpoint]:
    """The nodes that have a model. Raises ResponseError 404, naming what there is, if none has."""
    wanted = canonical_model(model)
    answers = need_one(f"find {model}", await ask_all(transport, nodes, "GET", "/api/tags"))
    have = {node: {str(row.get("model")) for row in answer.get("models") or []} for node, answer in answers.items()}
    found = [node for node in nodes if wanted in have.get(node.key, ())]
    if not found:
        known = "; ".join(f"{node} has {', '.join(sorted(names)) or 'none'}" for node, names in have.items())
        raise ResponseError(f"model '{model}' not found on any node ({known})", 404)
    return found


async def everywhere(
    transport: Transport, nodes: Sequence[Endpoint], method: str, path: str, body: dict[str, Any]
) -> Answer:
    """A management call on each node; `status` is "success", or "partial" if some failed; `nodes` tells each."""
    answers = await ask_all(transport, nodes, method, path, body)
    return _told(f"{path} {body.get('model', '')}", answers)


def _told(what: str, answers: dict[str, Any]) -> Answer:
    good = need_one(what, answers)
    told = {node: str(answer) if isinstance(answer, Exception) else "success" for node, answer in answers.items()}
    return Answer(status="success" if len(good) == len(answers) else "partial", nodes=told)


async def load(transport: Transport, nodes: Sequence[Endpoint], body: dict[str, Any]) -> Answer:
    """Load a model on nodes: an empty prompt; for an embedding model, which takes none, an empty list of inputs."""
    answers = await ask_all(transport, nodes, "POST", "/api/generate", {**body, "stream": False}, LOADING)
    refused = [node for node in nodes if isinstance(answers[node.key], ResponseError)]
    if refused:
        answers |= await ask_all(transport, refused, "POST", "/api/embed", {**body, "input": []}, LOADING)
    return _told(f"load {body['model']}", answers)


async def progress(
    transport: Transport, nodes: Sequence[Endpoint], path: str, body: dict[str, Any]
) -> AsyncGenerator[Answer, None]:
    """Progress lines of all nodes as they come, each with `node`; a node that fails gives a line with `error`."""
    lines: asyncio.Queue[Answer | None] = asyncio.Queue()

    async def follow(node: Endpoint) -> None:
        try:
            call = Call("POST", path, encode({**body, "stream": True}), stream=True, timeouts=TIMEOUTS)
            reply = await transport.send(node, call)
            try:
                if reply.status != 200:
                    error = error_text(await reply.read()) or f"status {reply.status}"
                    lines.put_nowait(Answer(node=node.key, error=error, status_code=reply.status))
                    return
                splitter = Lines()
                async for piece in reply:
                    for line in splitter.feed(piece):
                        lines.put_nowait(Answer({**decode(line), "node": node.key}))
            finally:
                await reply.aclose()
        except TransportFault as fault:
            lines.put_nowait(Answer(node=node.key, error=str(fault)))

    async def follow_all() -> None:
        try:
            await asyncio.gather(*(follow(node) for node in nodes))
        finally:
            lines.put_nowait(None)

    following = asyncio.create_task(follow_all())
    try:
        while (line := await lines.get()) is not None:
            yield line
    finally:
        following.cancel()
        await asyncio.gather(following, return_exceptions=True)
