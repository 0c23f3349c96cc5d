"""The model verbs: they go to nodes directly, not through the queue, because they need no slot.

`list` and `ps` are merged over the nodes that answer; `show` asks one that has the model; `pull`, `create`,
`copy` and `delete` go to every node concerned, and tell per node how it went. What takes minutes (pull, push, create)
is asked for with its progress, also for a caller who wants none of it: silence then means trouble, not work. Where what
the caller wrote has to arrive as it was written, the node is asked meanwhile whether it still answers.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, AsyncIterator, Coroutine, Sequence
from contextlib import aclosing
from typing import Any, Final, TypeVar

import msgspec

from sollol.answers import Answer
from sollol.backends.ollama import Lines, decode, encode, error_text
from sollol.backends.probe import LIST_MOST
from sollol.backends.rows import good_rows
from sollol.core.endpoint import Endpoint
from sollol.core.types import canonical_model
from sollol.errors import NoNodeAvailable, ResponseError
from sollol.transport.base import Call, Fault, Reply, Timeouts, Transport, TransportFault

TIMEOUTS = Timeouts(connect_s=3.0, first_byte_s=30.0, idle_s=600.0)
LISTING = Timeouts(connect_s=1.5, first_byte_s=30.0, idle_s=30.0)  # a fleet is not waited for longer than a probe is
WORKING = Timeouts(connect_s=3.0, first_byte_s=None, idle_s=None)  # of a node that is watched meanwhile
WATCHING = Timeouts(connect_s=3.0, first_byte_s=5.0, idle_s=5.0)
LISTS: Final = frozenset(("/api/tags", "/api/ps", "/api/version", "/v1/models"))
WATCH_S = 10.0  # between two looks at a node that works without a word
MISSED = 3  # looks without an answer, after which it has died


T = TypeVar("T")
LINES_AHEAD = 256  # of progress, not yet taken by the reader; then the nodes have to wait

Unanswered = (ResponseError, TransportFault)  # what asking a node can end in


async def ask_whole(
    transport: Transport, node: Endpoint, method: str, path: str, body: Any = None, timeouts: Timeouts = TIMEOUTS
) -> bytes:
    """One call to one node; its answer as it came. Raises ResponseError for what the node refused."""
    data = b"" if body is None else encode(body)
    most = LIST_MOST if path in LISTS else 0
    reply = await transport.send(node, Call(method, path, data, timeouts=timeouts, most=most))
    answer = await reply.read()
    if reply.status != 200:
        raise ResponseError(error_text(answer) or f"{node.url}{path} gave no text", reply.status)
    return answer


async def ask(
    transport: Transport, node: Endpoint, method: str, path: str, body: Any = None, timeouts: Timeouts = TIMEOUTS
) -> dict[str, Any]:
    """One call to one node, decoded; {} for an empty answer. Raises ResponseError for what the node refused."""
    if path not in LISTS:
        answer = await ask_whole(transport, node, method, path, body, timeouts)
        return _object(answer, f"{node.url}{path}") if answer.strip() else {}
    total_s = (timeouts.connect_s or 0.0) + max(timeouts.first_byte_s or 0.0, timeouts.idle_s or 0.0)
    try:
        async with asyncio.timeout(total_s):  # a byte now and then is no answer
            answer = await ask_whole(transport, node, method, path, body, timeouts)
    except TimeoutError:
        raise TransportFault(Fault.IDLE_TIMEOUT, f"{node.url}{path} did not come to an end in {total_s:g} s") from None
    return _listed(path, _object(answer, f"{node.url}{path}") if answer.strip() else {}, f"{node.url}{path}")


def _listed(path: str, found: dict[str, Any], source: str) -> dict[str, Any]:
    """Return what a node says of itself, without rows that are none of Ollama's. Raises ResponseError."""
    if path == "/api/version":
        if not isinstance(found.get("version"), str):
            raise ResponseError(f"{source} does not answer as Ollama does: it tells no version", 502)
        return found
    if path == "/v1/models":
        rows = found.get("data") or []
        return {**found, "data": [row for row in rows if isinstance(row, dict) and isinstance(row.get("id"), str)]}
    try:
        return {**found, "models": good_rows(found)[0]}
    except msgspec.DecodeError as error:
        raise ResponseError(f"{source} does not answer as Ollama does: {error}", 502) from None


def _object(text: bytes, source: str) -> dict[str, Any]:
    try:
        found = decode(text)
    except ValueError as error:
        raise ResponseError(f"{source} does not answer as Ollama does: {error}", 502) from None
    if not isinstance(found, dict):
        raise ResponseError(f"{source} does not answer as Ollama does: {text[:80]!r}", 502)
    return found


async def ask_all(
    transport: Transport,
    nodes: Sequence[Endpoint],
    method: str,
    path: str,
    body: Any = None,
    timeouts: Timeouts = TIMEOUTS,
) -> dict[str, Any]:
    """The same call to all nodes at once: node -> answer or exception. With WORKING a node is watched meanwhile."""

    async def one(node: Endpoint) -> Any:
        asking = ask(transport, node, method, path, body, timeouts)
        try:
            return await (_while_up(transport, node, asking) if timeouts is WORKING else asking)
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
    return models_of(need_one("list", await ask_all(transport, nodes, "GET", "/api/tags", timeouts=LISTING)))


def models_of(answers: dict[str, Any]) -> Answer:
    merged: dict[str, dict[str, Any]] = {}
    for node, answer in answers.items():
        for row in answer.get("models") or []:
            merged.setdefault(canonical_model(str(row.get("model"))), {**row, "nodes": []})["nodes"].append(node)
    return Answer(models=list(merged.values()))


async def running_models(transport: Transport, nodes: Sequence[Endpoint]) -> Answer:
    """All models in memory, a row per node and model, with `node`."""
    return running_of(need_one("ps", await ask_all(transport, nodes, "GET", "/api/ps", timeouts=LISTING)))


def running_of(answers: dict[str, Any]) -> Answer:
    rows: list[dict[str, Any]] = []
    for node, answer in answers.items():
        rows += [{**row, "node": node} for row in answer.get("models") or []]
    return Answer(models=rows)


async def version(transport: Transport, nodes: Sequence[Endpoint]) -> Answer:
    """`version`: the oldest of the nodes' versions; `nodes`: each one's."""
    return version_of(need_one("version", await ask_all(transport, nodes, "GET", "/api/version", timeouts=LISTING)))


def version_of(answers: dict[str, Any]) -> Answer:
    versions = {node: str(answer.get("version", "")) for node, answer in answers.items()}
    return Answer(version=min(versions.values(), key=_version_key), nodes=versions)


def _version_key(text: str) -> tuple[int, ...]:
    parts = text.split("-")[0].split(".")
    return tuple(int(part) if part.isascii() and part.isdigit() and len(part) < 10 else 0 for part in parts)


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
    answers = need_one(f"find {model}", await ask_all(transport, nodes, "GET", "/api/tags", timeouts=LISTING))
    have = {node: {str(row.get("model")) for row in answer.get("models") or []} for node, answer in answers.items()}
    found = [node for node in nodes if wanted in map(canonical_model, have.get(node.key, ()))]
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
    answers = await ask_all(transport, nodes, "POST", "/api/generate", {**body, "stream": False}, WORKING)
    refused = [node for node in nodes if isinstance(answers[node.key], ResponseError)]
    if refused:
        answers |= await ask_all(transport, refused, "POST", "/api/embed", {**body, "input": []}, WORKING)
    return _told(f"load {body['model']}", answers)


Line = tuple[str, dict[str, Any] | ResponseError | TransportFault]


async def follow(
    transport: Transport, nodes: Sequence[Endpoint], path: str, body: dict[str, Any], *, as_said: bool = False
) -> AsyncGenerator[Line, None]:
    """Progress of a call on all nodes as it comes: (node, line). A node's last is its `success`, or what it failed
    with. Closing it, or cancelling who waits for it, ends the calls. `as_said`: a body that wants no progress goes to
    the nodes as it is."""
    lines: asyncio.Queue[Line | None] = asyncio.Queue()
    room = asyncio.Semaphore(LINES_AHEAD)
    silent = as_said and body.get("stream") is False
    data = encode(body if silent else {**body, "stream": True})

    async def hear(node: Endpoint) -> None:
        try:
            async with aclosing(_lines(transport, node, path, data, silent)) as found:
                async for line in found:
                    await room.acquire()
                    lines.put_nowait((node.key, line))
        except Unanswered as error:
            await room.acquire()
            lines.put_nowait((node.key, error))

    hearing = [asyncio.create_task(hear(node)) for node in nodes]
    for task in hearing:
        task.add_done_callback(lambda _: lines.put_nowait(None))
    try:
        left = len(hearing)
        while left:
            found = await lines.get()
            if found is None:
                left -= 1
            else:
                room.release()
                yield found
    finally:
        for task in hearing:
            task.cancel()
        await asyncio.gather(*hearing, return_exceptions=True)


async def _lines(
    transport: Transport, node: Endpoint, path: str, data: bytes, silent: bool
) -> AsyncGenerator[dict[str, Any], None]:
    """A node's lines, of which the last is `success`. Raises what it failed with."""
    call = Call("POST", path, data, stream=True, timeouts=WORKING)
    reply = await _while_up(transport, node, transport.send(node, call))
    source = f"{node.url}{path}"
    try:
        if reply.status != 200:
            raise ResponseError(error_text(await reply.read()) or f"{source} gave no text", reply.status)
        splitter = Lines()
        line: dict[str, Any] = {}
        if silent:
            line = _object(await _while_up(transport, node, reply.read()), source)
            yield line
        async for piece in _pieces_and_end(transport, node, reply):
            for text in splitter.feed(piece):
                line = _object(text, source)
                if line.get("error"):
                    raise ResponseError(error_text(text), 500)  # the status that it has without a stream
                yield line
        if line.get("status") != "success":
            raise ResponseError(f"{source} ended without success", 502)
    finally:
        await reply.aclose()


async def _while_up(transport: Transport, node: Endpoint, sending: Coroutine[Any, Any, T]) -> T:
    """What is awaited, however long it takes, if the node answers other questions meanwhile. Raises TransportFault."""
    waiting = asyncio.create_task(sending)
    missed = 0
    try:
        while not (await asyncio.wait([waiting], timeout=WATCH_S))[0]:
            try:
                await ask(transport, node, "GET", "/api/version", timeouts=WATCHING)
                missed = 0
            except ResponseError:
                missed = 0
            except TransportFault:
                missed += 1
                if missed == MISSED:
                    raise
        return waiting.result()
    finally:
        waiting.cancel()


async def _pieces_and_end(transport: Transport, node: Endpoint, reply: Reply) -> AsyncGenerator[bytes, None]:
    """A reply's pieces, and a line end: the last line may lack its own. A node may work without a word between two
    of them (it verifies what it has pulled), as long as it answers other questions."""
    pieces = aiter(reply)
    while (piece := await _while_up(transport, node, _next(pieces))) is not None:
        yield piece
    yield b"\n"


async def _next(pieces: AsyncIterator[bytes]) -> bytes | None:
    return await anext(pieces, None)


async def progress(
    transport: Transport, nodes: Sequence[Endpoint], path: str, body: dict[str, Any]
) -> AsyncGenerator[Answer, None]:
    """Progress lines of all nodes as they come, each with `node`; a node that fails gives a line with `error`."""
    lines = follow(transport, nodes, path, body)
    try:
        async for node, line in lines:
            yield (
                Answer(node=node, error=words(line)) if isinstance(line, Exception) else Answer({**line, "node": node})
            )
    finally:
        await lines.aclose()


async def complete(transport: Transport, nodes: Sequence[Endpoint], path: str, body: dict[str, Any]) -> Answer:
    """The same for who does not want to watch: as `everywhere`."""
    lines = follow(transport, nodes, path, body)
    outcomes = {
        node: line async for node, line in lines if isinstance(line, Exception) or line.get("status") == "success"
    }
    return _told(f"{path} {body.get('model', '')}", outcomes)


def words(error: Exception) -> str:
    """An error in one line, without its status."""
    return error.error if isinstance(error, ResponseError) else str(error)
