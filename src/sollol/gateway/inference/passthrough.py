"""Send requests of routes that the gateway does not have to a node that has them.

A request that names a model waits in the queue as any other call of it. One that names none, or a model that no node
lists (Ollama's cloud models), goes to the first node that has the route. The node's answer is relayed unchanged.
"""

from __future__ import annotations

import asyncio
from contextlib import aclosing
from typing import Any, Final

from sollol.backends.ollama import decode, encode
from sollol.backends.refusals import outcome_of, refusal
from sollol.core.actions import Start
from sollol.core.endpoint import Endpoint
from sollol.core.types import OK, Kind, Outcome, Status, Task
from sollol.engine.dispatcher import Dispatcher, GiveUp
from sollol.engine.jobs import CallJob, Started
from sollol.errors import BadInput, NoNodeAvailable
from sollol.gateway.auth import access
from sollol.gateway.auth.charging import (
    BYTES_A_TOKEN,
    GIVEN_UP,
    PROMPT_MOST,
    attempts_given_up,
    prompt_tokens,
    reserve,
    settle,
)
from sollol.gateway.context import Context
from sollol.gateway.formats.bodies import UnreadableValue, is_large, read_json
from sollol.gateway.formats.multipart import is_form, read_form, text_of, write_form
from sollol.gateway.inference.call_options import options_of
from sollol.gateway.inference.routing_headers import routing_headers
from sollol.gateway.node_queries import is_listed, is_missing, up_nodes
from sollol.gateway.paths import quoted
from sollol.http_server.request import Request
from sollol.printable import printable_body
from sollol.transport.base import Call, Reply, Transport, TransportFault
from sollol.transport.call import UNBOUNDED
from sollol.workload.call_options import CallOptions
from sollol.workload.task import Work

ERROR_BYTES: Final = 64 * 1024  # limit of the body of an error
ADMIN_ACTION: Final = "use routes of the nodes whose request names no model"
_RELAYED: Final = frozenset((Status.REFUSED, Status.MISSING))


async def pass_on(context: Context, request: Request) -> None:
    """Send a request to a node that has its route."""
    if is_large(request):
        call, model = await context.decoding.run(_parse_call, context, request)
    else:
        call, model = _parse_call(context, request)
    options = options_of(request, context)
    if not model:
        access.check_admin(request, ADMIN_ACTION)
    reserve(context.limiter, request, _tokens_of(call))
    if model and is_listed(context.engine, model) and not is_missing(context.engine, model):
        _submit(context, request, call, model, options)
    else:
        await _relay_from_any(context, request, call, options)


async def send_to_any(context: Context, request: Request) -> None:
    """Send a request for a cloud model, which the key may use, to any node."""
    call = Call(request.method, _target(request), request.body, stream=True, timeouts=UNBOUNDED)
    reserve(context.limiter, request, _tokens_of(call))
    await _relay_from_any(context, request, call, options_of(request, context))


def _tokens_of(call: Call) -> int:
    """Estimate the tokens of a request."""
    assert isinstance(call.body, bytes)
    return prompt_tokens(len(call.body))


def _target(request: Request) -> str:
    query = request.target.partition("?")[2]
    return quoted(request.path) + (f"?{query}" if query else "")


def _parse_call(context: Context, request: Request) -> tuple[Call, str]:
    """Return the call to send, and its model behind an alias, or "".

    Raises:
        BadInput: The body cannot be parsed.
        ResponseError: 403: the key may not use the model.
    """
    request.join_body()
    content_type, body, model = request.header(b"content-type"), request.body, ""
    if body and is_form(content_type):
        parts = read_form(content_type, body)
        name = text_of(parts, "model")
        if name and "model" in {field.lower() for field in request.query}:
            raise BadInput("the address names a model and the form does, too; name it in the form")
        model = _allowed(context, request, name)
        parts = [part._replace(value=model.encode()) if part.name == "model" else part for part in parts]
        content_type, body = write_form(parts)
    elif body:
        try:
            body = read_json(body)
        except UnreadableValue:
            raise
        except BadInput:  # not JSON, so it names no model
            pass
        else:
            fields: dict[str, Any] = decode(body)
            found = [value for field in ("model", "name") if isinstance(value := fields.get(field), str) and value]
            name = found[0] if found else ""
            allowed = [_allowed(context, request, one) for one in found]  # the node may read either
            model = allowed[0] if allowed else ""
            if model != name:
                body = encode({**fields, "model": model})
    headers = tuple(
        (name.decode().title(), request.header(name))
        for name in (b"accept", b"content-encoding")
        if request.header(name)
    )
    sent_type = content_type or "application/json"
    return Call(request.method, _target(request), body, sent_type, headers, stream=True, timeouts=UNBOUNDED), model


def _allowed(context: Context, request: Request, name: str) -> str:
    """Return the model behind a name. Raises ResponseError (403) if the key may not use it."""
    if not name:
        return ""
    model = context.settings.resolve_model(name)
    access.check_allowed(request, model, name)
    return model


# --- to any node ---


async def _relay_from_any(context: Context, request: Request, call: Call, options: CallOptions) -> None:
    """Send the request to one node after another until one has the route, and relay its answer."""
    nodes = [node for node in up_nodes(context) if options.only is None or node.key in options.only]
    relayed = Relayed()
    try:
        await _try_in_turn(context, request, call, nodes, relayed)
    except asyncio.CancelledError:  # the client has left, and the node may have worked
        relayed.is_charged = True
        raise
    finally:
        settle(request, relayed.tokens(_tokens_of(call)))


async def _try_in_turn(context: Context, request: Request, call: Call, nodes: list[Endpoint], relayed: Relayed) -> None:
    last: tuple[Endpoint, Reply, bytes] | None = None
    why: list[tuple[str, str]] = []
    for node in nodes:
        try:
            reply = await context.engine.transport.send(node, call)
            if reply.status >= 300:
                body = await _bounded_body(reply)
                outcome = refusal(reply.status, body, reply.headers)
                last = (node, reply, body)
                if outcome.status not in _RELAYED:
                    why.append((node.key, outcome.message))
                    continue
                break
        except TransportFault as fault:
            why.append((node.key, str(fault)))
            continue
        try:
            await _relay(request, reply, [("X-Sollol-Node", node.key)], relayed)
            request.end()
        except TransportFault:
            request.cut()
        return
    if last is None:
        raise NoNodeAvailable(f"{request.path}: no node answered", why)
    node, reply, body = last
    request.answer(reply.status, printable_body(body), _content_type(reply), [("X-Sollol-Node", node.key)])


async def _bounded_body(reply: Reply) -> bytes:
    """Return the first ERROR_BYTES bytes of a body."""
    found = bytearray()
    async with aclosing(reply):
        async for piece in reply:
            found += piece
            if len(found) > ERROR_BYTES:
                break
    return bytes(found[:ERROR_BYTES])


class Relayed:
    """The received size of an undecoded answer, and whether its call is charged."""

    def __init__(self) -> None:
        self.is_charged = False  # an answer has begun, or a node may have worked for a client who left
        self.size = 0

    def tokens(self, prompt: int) -> int:
        """Return the tokens to charge."""
        return prompt + self.size // BYTES_A_TOKEN if self.is_charged else 0


async def _relay(request: Request, reply: Reply, headers: list[tuple[str, str]], relayed: Relayed) -> None:
    """Relay an answer to the client as it arrives, without its end. Raises TransportFault."""
    async with aclosing(reply):
        request.begin(reply.status, _content_type(reply), headers)
        relayed.is_charged = True
        async for piece in reply:
            relayed.size += len(piece)
            if not request.write(piece):
                await request.drained()


def _content_type(reply: Reply) -> str:
    return reply.headers.get("content-type") or "application/octet-stream"


# --- in the queue ---


def _submit(context: Context, request: Request, call: Call, model: str, options: CallOptions) -> None:
    engine = context.engine
    assert isinstance(call.body, bytes)
    cost = min(len(call.body), PROMPT_MOST)
    # A route that the gateway does not have is scheduled as a chat.
    task = engine.task(Work(Kind.CHAT, model, request.path, cost, stream=True, repeatable=False), options)
    request.task = task.id
    if not request.plain:
        context.request_ids.add(request, task.id)
    job = PassthroughJob(task, request, call, context)
    request.on_gone = lambda: engine.dispatcher.cancel(task.id)
    engine.submit(job)


class PassthroughJob(CallJob):
    """A call of a route that the gateway does not have, relayed as it arrives."""

    def __init__(self, task: Task, request: Request, call: Call, context: Context) -> None:
        super().__init__(task, request.path, b"", UNBOUNDED, _settled)
        self.call = call
        self.request = request
        self.context = context
        self.relayed = Relayed()
        self._content_types: dict[int, str] = {}

    def launch(self, dispatcher: Dispatcher, start: Start, node: Endpoint) -> GiveUp:
        """Send the call to a node; return the function that aborts it."""
        return dispatcher.run(self.perform, start, node)

    async def perform(self, transport: Transport, node: Endpoint, start: Start, started: Started) -> Outcome:
        """Send the call to a node, and relay a good answer."""
        reply = await transport.send(node, self.call)
        if reply.status >= 300:
            body = await _bounded_body(reply)
            self.keep(start.attempt, body)
            self._content_types[start.attempt] = _content_type(reply)
            return refusal(reply.status, body, reply.headers)
        started(False)
        try:
            headers = routing_headers(self.task.id, node.key, len(self.attempt_log.attempts) + 1)
            await _relay(self.request, reply, headers, self.relayed)
        except TransportFault as fault:
            return outcome_of(fault)
        return Outcome(OK, "", reply.status)

    def content_type_of(self, attempt: int | None) -> str:
        """Return the content type of a refusal."""
        return self._content_types.get(-1 if attempt is None else attempt, "")


def _settled(job: CallJob) -> None:
    """Charge a call, and end its answer."""
    assert isinstance(job, PassthroughJob)
    settled, request, context = job.settled, job.request, job.context
    assert settled is not None
    outcome = settled.outcome
    context.pool.totals.count(outcome.status is OK)
    job.relayed.is_charged = job.relayed.is_charged or (outcome.status in GIVEN_UP and bool(attempts_given_up(job)))
    settle(request, job.relayed.tokens(_tokens_of(job.call)))
    if request.has_begun:
        if outcome.status is OK:
            request.end()
        else:
            request.cut()
    elif outcome.status is Status.REFUSED and outcome.http_status:
        headers = routing_headers(job.task.id, "", len(job.attempt_log.attempts))
        request.answer(outcome.http_status, printable_body(job.body), job.content_type_of(settled.attempt), headers)
    elif (error := job.error()) is not None:
        context.refuse(request, error)
    context.engine.record_call(job)
