"""Model verbs over all nodes. They bypass the queue because they need no slot.

`list` and `ps` merge the answers of all nodes; `show` takes the first answer; `pull`, `create`, `copy` and `delete` go
to every node concerned and return a result per node. Pull, push and create take minutes, so they are always sent with
`stream`: a node that sends no progress is then in trouble. A body that must reach the node unchanged may have no
progress; meanwhile `/api/version` checks that the node is reachable.

Over 400 lines, because each verb of the API has its own way over the nodes.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, AsyncIterator, Coroutine, Mapping, Sequence
from contextlib import aclosing
from typing import Any, Final, TypeVar

import msgspec

from sollol.answers import Answer
from sollol.backends.model_lists import valid_rows
from sollol.backends.ollama import Lines, decode, encode
from sollol.backends.probe import LIST_MOST
from sollol.backends.refusals import error_text
from sollol.core.endpoint import Endpoint
from sollol.core.types import canonical_model
from sollol.errors import NoNodeAvailable, ResponseError
from sollol.models.hints import with_next_step
from sollol.transport.base import Call, Fault, Reply, Timeouts, Transport, TransportFault

TIMEOUTS = Timeouts(connect_s=3.0, first_byte_s=30.0, idle_s=600.0)
LISTING = Timeouts(connect_s=1.5, first_byte_s=30.0, idle_s=30.0)  # the same as for a probe
WORKING = Timeouts(connect_s=3.0, first_byte_s=None, idle_s=None)  # `_while_reachable` limits these calls
WATCHING = Timeouts(connect_s=3.0, first_byte_s=5.0, idle_s=5.0)
LISTS: Final = frozenset(("/api/tags", "/api/ps", "/api/version", "/v1/models"))
WATCH_S = 10.0  # between two checks of a node that sends no progress
MISSED_MOST = 3  # failed checks in a row after which the call fails


T = TypeVar("T")
LINES_AHEAD = 256  # buffered lines of progress; when the buffer is full, reading from the nodes pauses

Unanswered = (ResponseError, TransportFault)  # errors of a call to a node


async def fetch(transport: Transport, node: Endpoint, call: Call) -> tuple[int, bytes, Mapping[str, str]]:
    """Send a call and return the status, the body and the headers of the answer.

    The whole call takes at most the sum of its timeouts, also if the node sends a byte now and then.

    Raises:
        TransportFault: The node did not answer, or not in time.
    """
    timeouts = call.timeouts
    limits = [limit for limit in (timeouts.first_byte_s, timeouts.idle_s) if limit is not None]
    total_s = (timeouts.connect_s or 0.0) + max(limits) if limits else None
    try:
        async with asyncio.timeout(total_s):
            reply = await transport.send(node, call)
            return reply.status, await reply.read(), reply.headers
    except TimeoutError:
        message = f"{node.url}{call.path} did not come to an end in {total_s:g} s"
        raise TransportFault(Fault.IDLE_TIMEOUT, message) from None


async def fetch_bytes(
    transport: Transport, node: Endpoint, method: str, path: str, body: Any = None, timeouts: Timeouts = TIMEOUTS
) -> bytes:
    """Call a node and return the body of its answer.

    Raises:
        ResponseError: The node refused.
        TransportFault: The node did not answer, or not in time.
    """
    data = b"" if body is None else encode(body)
    most = LIST_MOST if path in LISTS else 0
    status, answer, _ = await fetch(transport, node, Call(method, path, data, timeouts=timeouts, most=most))
    if status != 200:
        raise ResponseError(error_text(answer) or f"{node.url}{path} gave no text", status)
    return answer


async def fetch_json(
    transport: Transport, node: Endpoint, method: str, path: str, body: Any = None, timeouts: Timeouts = TIMEOUTS
) -> dict[str, Any]:
    """Call a node and return its decoded answer, {} for an empty one.

    Raises:
        ResponseError: The node refused, or its answer is none of Ollama's.
        TransportFault: The node did not answer, or not in time.
    """
    answer = await fetch_bytes(transport, node, method, path, body, timeouts)
    found = _object(answer, f"{node.url}{path}") if answer.strip() else {}
    return _checked_listing(path, found, f"{node.url}{path}") if path in LISTS else found


def _checked_listing(path: str, found: dict[str, Any], source: str) -> dict[str, Any]:
    """Return an answer of `LISTS` without malformed rows.

    Raises:
        ResponseError: The answer is none of Ollama's.
    """
    if path == "/api/version":
        if not isinstance(found.get("version"), str):
            raise ResponseError(f"{source} does not answer as Ollama does: it has no `version`", 502)
        return found
    if path == "/v1/models":
        rows = found.get("data") or []
        return {**found, "data": [row for row in rows if isinstance(row, dict) and isinstance(row.get("id"), str)]}
    try:
        return {**found, "models": valid_rows(found)[0]}
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


async def fetch_from_all(
    transport: Transport,
    nodes: Sequence[Endpoint],
    method: str,
    path: str,
    body: Any = None,
    timeouts: Timeouts = TIMEOUTS,
) -> dict[str, Any]:
    """Call all nodes concurrently; return node -> answer or exception.

    With WORKING, each call lasts as long as its node is reachable.
    """

    async def one(node: Endpoint) -> Any:
        call = fetch_json(transport, node, method, path, body, timeouts)
        try:
            return await (_while_reachable(transport, node, call) if timeouts is WORKING else call)
        except Unanswered as error:
            return error

    answers = await asyncio.gather(*(one(node) for node in nodes))
    return dict(zip([node.key for node in nodes], answers, strict=True))


def require_answer(what: str, answers: dict[str, Any]) -> dict[str, Any]:
    """Return the answers without the exceptions.

    Raises:
        ResponseError: All nodes refused.
        NoNodeAvailable: No node answered.
    """
    good = {node: answer for node, answer in answers.items() if not isinstance(answer, Exception)}
    if good:
        return good
    refused = [error for error in answers.values() if isinstance(error, ResponseError)]
    if refused and len(refused) == len(answers):
        raise ResponseError(_by_text(answers), refused[0].status_code)
    raise NoNodeAvailable(f"{what}: no node answered", [(node, str(error)) for node, error in answers.items()])


def _by_text(answers: dict[str, Any]) -> str:
    """Return the errors of nodes as one text: each once, with its nodes."""
    nodes: dict[str, list[str]] = {}
    for node, error in answers.items():
        nodes.setdefault(error_message(error), []).append(node)
    return "; ".join(f"{', '.join(names)}: {text}" for text, names in nodes.items())


async def list_models(transport: Transport, nodes: Sequence[Endpoint]) -> Answer:
    """Return all models on disk, each once, with `nodes`: the nodes that have it."""
    return models_of(
        require_answer("list", await fetch_from_all(transport, nodes, "GET", "/api/tags", timeouts=LISTING))
    )


def models_of(answers: dict[str, Any]) -> Answer:
    """Merge the nodes' answers to `/api/tags`."""
    merged: dict[str, dict[str, Any]] = {}
    for node, answer in answers.items():
        for row in answer.get("models") or []:
            merged.setdefault(canonical_model(str(row.get("model"))), {**row, "nodes": []})["nodes"].append(node)
    return Answer(models=list(merged.values()))


async def running_models(transport: Transport, nodes: Sequence[Endpoint]) -> Answer:
    """Return all models in memory: one row per node and model, with `node`."""
    return running_of(require_answer("ps", await fetch_from_all(transport, nodes, "GET", "/api/ps", timeouts=LISTING)))


def running_of(answers: dict[str, Any]) -> Answer:
    """Merge the nodes' answers to `/api/ps`."""
    rows: list[dict[str, Any]] = []
    for node, answer in answers.items():
        rows += [{**row, "node": node} for row in answer.get("models") or []]
    return Answer(models=rows)


async def version(transport: Transport, nodes: Sequence[Endpoint]) -> Answer:
    """Return the oldest version of the nodes as `version`, and each node's in `nodes`."""
    return version_of(
        require_answer("version", await fetch_from_all(transport, nodes, "GET", "/api/version", timeouts=LISTING))
    )


def version_of(answers: dict[str, Any]) -> Answer:
    """Merge the nodes' answers to `/api/version`."""
    versions = {node: str(answer.get("version", "")) for node, answer in answers.items()}
    return Answer(version=min(versions.values(), key=_version_key), nodes=versions)


def _version_key(text: str) -> tuple[int, ...]:
    parts = text.split("-")[0].split(".")
    return tuple(int(part) if part.isascii() and part.isdigit() and len(part) < 10 else 0 for part in parts)


async def show(transport: Transport, nodes: Sequence[Endpoint], model: str) -> Answer:
    """Return the answer to `/api/show` of the first node that has the model."""
    answers: dict[str, Any] = {}
    for node in nodes:
        try:
            return Answer(await fetch_json(transport, node, "POST", "/api/show", {"model": model}))
        except Unanswered as error:
            answers[node.key] = error
    if all(isinstance(error, ResponseError) and error.status_code == 404 for error in answers.values()):
        await holders(transport, nodes, model)  # raises with the models of each node
    require_answer(f"show {model}", answers)
    raise AssertionError("unreachable")


async def holders(transport: Transport, nodes: Sequence[Endpoint], model: str) -> list[Endpoint]:
    """Return the nodes that have a model on disk.

    Raises:
        ResponseError: 404: no node has it. The message names the models of each node.
        NoNodeAvailable: No node answered.
    """
    canonical = canonical_model(model)
    answers = require_answer(
        f"find {model}", await fetch_from_all(transport, nodes, "GET", "/api/tags", timeouts=LISTING)
    )
    have = {node: {str(row.get("model")) for row in answer.get("models") or []} for node, answer in answers.items()}
    found = [node for node in nodes if canonical in map(canonical_model, have.get(node.key, ()))]
    if not found:
        present = "; ".join(f"{node} has {', '.join(sorted(names)) or 'none'}" for node, names in have.items())
        on = f" --on {nodes[0].key}" if len(nodes) == 1 else ""
        bring = f"`sollol models pull {model}{on}` brings it"
        raise ResponseError(f"model '{model}' not found on any node ({present}); {bring}", 404)
    return found


async def call_all(
    transport: Transport, nodes: Sequence[Endpoint], method: str, path: str, body: dict[str, Any]
) -> Answer:
    """Call each node; return `status` ("success", or "partial" if some failed) and the result per node in `nodes`."""
    answers = await fetch_from_all(transport, nodes, method, path, body)
    return _summary(path, str(body.get("model") or body.get("source") or ""), answers)


def _summary(what: str, model: str, answers: dict[str, Any]) -> Answer:
    """Sum up the answers of all nodes, errors with their next step.

    Raises:
        ResponseError: All nodes refused.
        NoNodeAvailable: No node answered.
    """
    good = require_answer(f"{what} {model}", {node: _with_step(a, model, node) for node, a in answers.items()})
    results = {
        node: with_next_step(error_message(answer), model, node) if isinstance(answer, Exception) else "success"
        for node, answer in answers.items()
    }
    return Answer(status="success" if len(good) == len(answers) else "partial", nodes=results)


async def load(transport: Transport, nodes: Sequence[Endpoint], body: dict[str, Any]) -> Answer:
    """Load a model on nodes by an empty prompt, embedding models by an empty list of inputs.

    A node that has it in memory gets the context of its runner: with another it would load the model again.
    """
    held = await fetch_from_all(transport, nodes, "GET", "/api/ps", timeouts=LISTING)
    answers = dict[str, Any]()
    for found in await asyncio.gather(*(_load(transport, node, body, held[node.key]) for node in nodes)):
        answers |= found
    return _summary("load", str(body["model"]), answers)


async def _load(transport: Transport, node: Endpoint, body: dict[str, Any], held: Any) -> dict[str, Any]:
    name, rows = canonical_model(str(body["model"])), held.get("models") or () if isinstance(held, dict) else ()
    contexts = [row.get("context_length") for row in rows if canonical_model(str(row.get("model"))) == name]
    if contexts and contexts[0]:
        body = {"options": {"num_ctx": contexts[0]}, **body}
    answers = await fetch_from_all(transport, [node], "POST", "/api/generate", {**body, "stream": False}, WORKING)
    if isinstance(answers[node.key], ResponseError):
        answers = await fetch_from_all(transport, [node], "POST", "/api/embed", {**body, "input": []}, WORKING)
    return answers


Line = tuple[str, dict[str, Any] | ResponseError | TransportFault]


async def stream_progress(
    transport: Transport, nodes: Sequence[Endpoint], path: str, body: dict[str, Any], *, verbatim: bool = False
) -> AsyncGenerator[Line, None]:
    """Call all nodes and yield (node, line of progress) as lines arrive.

    The last line of a node has the status "success", or is its error. Closing the generator, or cancelling its reader,
    ends the calls.

    Args:
        transport: The way to the nodes.
        nodes: The nodes to call.
        path: The path on each node.
        body: The request's body.
        verbatim: Send a body with `stream: false` unchanged. The node then sends no progress.
    """
    lines: asyncio.Queue[Line | None] = asyncio.Queue()
    room = asyncio.Semaphore(LINES_AHEAD)
    silent = verbatim and body.get("stream") is False
    data = encode(body if silent else {**body, "stream": True})

    async def relay(node: Endpoint) -> None:
        try:
            async with aclosing(_lines(transport, node, path, data, silent)) as found:
                async for line in found:
                    await room.acquire()
                    lines.put_nowait((node.key, line))
        except Unanswered as error:
            await room.acquire()
            lines.put_nowait((node.key, error))

    relays = [asyncio.create_task(relay(node)) for node in nodes]
    for task in relays:
        task.add_done_callback(lambda _: lines.put_nowait(None))
    try:
        left = len(relays)
        while left:
            found = await lines.get()
            if found is None:
                left -= 1
            else:
                room.release()
                yield found
    finally:
        for task in relays:
            task.cancel()
        await asyncio.gather(*relays, return_exceptions=True)


async def _lines(
    transport: Transport, node: Endpoint, path: str, data: bytes, silent: bool
) -> AsyncGenerator[dict[str, Any], None]:
    """Yield the lines of a node. The last has the status "success".

    Raises:
        ResponseError: The node refused, reported an error, or ended early.
        TransportFault: The connection failed.
    """
    call = Call("POST", path, data, stream=True, timeouts=WORKING)
    reply = await _while_reachable(transport, node, transport.send(node, call))
    source = f"{node.url}{path}"
    try:
        if reply.status != 200:
            raise ResponseError(error_text(await reply.read()) or f"{source} gave no text", reply.status)
        splitter = Lines()
        line: dict[str, Any] = {}
        if silent:
            line = _object(await _while_reachable(transport, node, reply.read()), source)
            yield line
        async for piece in _pieces_and_end(transport, node, reply):
            for text in splitter.feed(piece):
                line = _object(text, source)
                if line.get("error"):
                    raise ResponseError(error_text(text), 500)  # Ollama's status for it without a stream
                yield line
        if line.get("status") != "success":
            raise ResponseError(f"{source} ended without success", 502)
    finally:
        await reply.aclose()


async def _while_reachable(transport: Transport, node: Endpoint, sending: Coroutine[Any, Any, T]) -> T:
    """Await `sending` without a limit while the node answers `/api/version`.

    Raises:
        TransportFault: The call failed, or the node missed MISSED_MOST checks in a row.
    """
    waiting = asyncio.create_task(sending)
    missed = 0
    try:
        while not (await asyncio.wait([waiting], timeout=WATCH_S))[0]:
            try:
                await fetch_json(transport, node, "GET", "/api/version", timeouts=WATCHING)
                missed = 0
            except ResponseError:
                missed = 0
            except TransportFault:
                missed += 1
                if missed == MISSED_MOST:
                    raise
        return waiting.result()
    finally:
        waiting.cancel()


async def _pieces_and_end(transport: Transport, node: Endpoint, reply: Reply) -> AsyncGenerator[bytes, None]:
    """Yield the pieces of a reply and a line end, which the last line may lack.

    A node may send nothing for minutes between two pieces (it verifies a download) while it stays reachable.
    """
    pieces = aiter(reply)
    while (piece := await _while_reachable(transport, node, _next(pieces))) is not None:
        yield piece
    yield b"\n"


async def _next(pieces: AsyncIterator[bytes]) -> bytes | None:
    return await anext(pieces, None)


async def progress(
    transport: Transport, nodes: Sequence[Endpoint], path: str, body: dict[str, Any]
) -> AsyncGenerator[Answer, None]:
    """Yield the progress lines of all nodes with `node`; a failed node yields a line with `error`."""
    lines = stream_progress(transport, nodes, path, body)
    try:
        async for node, line in lines:
            yield (
                Answer(node=node, error=with_next_step(error_message(line), str(body.get("model")), node))
                if isinstance(line, Exception)
                else Answer({**line, "node": node})
            )
    finally:
        await lines.aclose()


async def complete(transport: Transport, nodes: Sequence[Endpoint], path: str, body: dict[str, Any]) -> Answer:
    """Run the call to its end on all nodes; return the result per node, as `call_all`."""
    lines = stream_progress(transport, nodes, path, body)
    outcomes = {
        node: line async for node, line in lines if isinstance(line, Exception) or line.get("status") == "success"
    }
    return _summary(path, str(body.get("model") or ""), outcomes)


def _with_step(answer: Any, model: str, node: str) -> Any:
    if isinstance(answer, ResponseError):
        return ResponseError(with_next_step(answer.error, model, node), answer.status_code)
    return answer


def error_message(error: Exception) -> str:
    """Return the text of an error without its status."""
    return error.error if isinstance(error, ResponseError) else str(error)
