"""Routes that the gateway does not have: they go to a node that has them, and its answer comes back as it is.

A request that names a model stands in the queue as any other call of that model; one that names none, or a model that
no node lists (Ollama's cloud models), goes to the first node that does not lack the route. Never an invented 404.
"""

from __future__ import annotations

import asyncio
from contextlib import aclosing
from typing import TYPE_CHECKING, Any, Final

from sollol.backends.ollama import decode, encode, outcome_of, refusal
from sollol.core.actions import Start
from sollol.core.endpoint import Endpoint
from sollol.core.types import OK, Kind, Outcome, Status, Task
from sollol.engine.dispatcher import Dispatcher, GiveUp
from sollol.engine.jobs import CallJob, Started
from sollol.errors import BadInput, NoNodeAvailable
from sollol.gateway.auth import access
from sollol.gateway.auth.charging import BYTES_A_TOKEN, GIVEN_UP, PROMPT_MOST, prompt_tokens, under_way
from sollol.gateway.auth.hosts import quoted
from sollol.gateway.formats.bodies import UnreadableValue, is_large, read_json
from sollol.gateway.formats.error_responses import status_of
from sollol.gateway.formats.multipart import is_form, read_form, text_of, write_form
from sollol.gateway.inference.single import routed, wanted
from sollol.gateway.routes.lists import up_nodes
from sollol.http_server.request import Request
from sollol.transport.base import Call, Reply, Transport, TransportFault
from sollol.transport.call import UNBOUNDED
from sollol.workload.call_options import CallOptions
from sollol.workload.task import Work

if TYPE_CHECKING:
    from sollol.gateway.app import Gateway

ERROR_BYTES: Final = 64 * 1024  # of an answer that is not passed on yet
SEE: Final = "use routes of the nodes whose request names no model"
_PASSED: Final = frozenset((Status.REFUSED, Status.MISSING))


async def pass_on(gateway: Gateway, request: Request) -> None:
    """Send a request to a node that has its route."""
    call, model = await gateway.off_loop(_read, gateway, request) if is_large(request) else _read(gateway, request)
    how = wanted(request, gateway)
    if not model:
        access.admin(request, SEE)
    if not gateway.reserve(request, _prompt(call)):
        return
    if model and gateway.lists(model) and not gateway.nobody_has(model):
        _submit(gateway, request, call, model, how)
    else:
        await anywhere(gateway, request, call, how)


async def cloud(gateway: Gateway, request: Request) -> None:
    """Send a request of a route of ours for a cloud model to any node. The key may use the model."""
    call = Call(request.method, _target(request), request.body, stream=True, timeouts=UNBOUNDED)
    if not gateway.reserve(request, _prompt(call)):
        return
    await anywhere(gateway, request, call, wanted(request, gateway))


def _prompt(call: Call) -> int:
    assert isinstance(call.body, bytes)
    return prompt_tokens(len(call.body))


def _target(request: Request) -> str:
    query = request.target.partition("?")[2]
    return quoted(request.path) + (f"?{query}" if query else "")


def _read(gateway: Gateway, request: Request) -> tuple[Call, str]:
    """Return the call to make, and the model that it names after aliases, or "". Raises BadInput."""
    request.join_body()
    content_type, body, model = request.header(b"content-type"), request.body, ""
    if body and is_form(content_type):
        parts = read_form(content_type, body)
        name = text_of(parts, "model")
        if name and "model" in {field.lower() for field in request.query}:
            raise BadInput("the address names a model and the form does, too; name it in the form")
        model = _allowed(gateway, request, name)
        parts = [part._replace(value=model.encode()) if part.name == "model" else part for part in parts]
        content_type, body = write_form(parts)
    elif body:
        try:
            body = read_json(body)
        except UnreadableValue:
            raise
        except BadInput:  # it is something else, and names no model that we could read
            pass
        else:
            fields: dict[str, Any] = decode(body)
            found = [value for field in ("model", "name") if isinstance(value := fields.get(field), str) and value]
            name = found[0] if found else ""
            allowed = [_allowed(gateway, request, one) for one in found]  # whichever the node goes by
            model = allowed[0] if allowed else ""
            if model != name:
                body = encode({**fields, "model": model})
    headers = tuple(
        (name.decode().title(), request.header(name))
        for name in (b"accept", b"content-encoding")
        if request.header(name)
    )
    given = content_type or "application/json"
    return Call(request.method, _target(request), body, given, headers, stream=True, timeouts=UNBOUNDED), model


def _allowed(gateway: Gateway, request: Request, name: str) -> str:
    """Return the model behind a name. Raises ResponseError (403) if the key may not use it."""
    if not name:
        return ""
    model = gateway.settings.resolve_model(name)
    access.check_allowed(request, model, name)
    return model


# --- to any node ---


async def anywhere(gateway: Gateway, request: Request, call: Call, how: CallOptions) -> None:
    """Ask one node after the other, until one does not lack the route; its answer is passed on as it comes."""
    nodes = [node for node in up_nodes(gateway) if how.only is None or node.key in how.only]
    came = Came()
    try:
        await _ask_in_turn(gateway, request, call, nodes, came)
    except asyncio.CancelledError:  # the client has left; the node may have worked for it
        came.begun = True
        raise
    finally:
        gateway.settle(request, came.tokens(_prompt(call)))


async def _ask_in_turn(gateway: Gateway, request: Request, call: Call, nodes: list[Endpoint], came: Came) -> None:
    last: tuple[Endpoint, Reply, bytes] | None = None
    why: list[tuple[str, str]] = []
    for node in nodes:
        try:
            reply = await gateway.engine.transport.send(node, call)
            if reply.status >= 300:
                body = await _some(reply)
                outcome = refusal(reply.status, body, reply.headers)
                last = (node, reply, body)
                if outcome.status not in _PASSED:
                    why.append((node.key, outcome.message))
                    continue
                break
        except TransportFault as fault:
            why.append((node.key, str(fault)))
            continue
        await _pass_reply(request, node.key, reply, came)
        return
    if last is None:
        raise NoNodeAvailable(f"{request.path}: no node answered", why)
    node, reply, body = last
    request.answer(reply.status, body, _kind(reply), [("X-Sollol-Node", node.key)])


async def _some(reply: Reply) -> bytes:
    """Return an error's body, and of a long one the beginning."""
    found = bytearray()
    async with aclosing(reply):
        async for piece in reply:
            found += piece
            if len(found) > ERROR_BYTES:
                break
    return bytes(found[:ERROR_BYTES])


class Came:
    """What a client has received of an answer that nobody here can read."""

    def __init__(self) -> None:
        self.begun = False
        self.size = 0

    def tokens(self, prompt: int) -> int:
        """Return what the call is charged: nothing, if it was not answered."""
        return prompt + self.size // BYTES_A_TOKEN if self.begun else 0


async def _pass_reply(request: Request, node: str, reply: Reply, came: Came) -> None:
    """Pass an answer on as it comes."""
    async with aclosing(reply):
        try:
            request.begin(reply.status, _kind(reply), [("X-Sollol-Node", node)])
            came.begun = True
            async for piece in reply:
                came.size += len(piece)
                if not request.write(piece):
                    await request.drained()
            request.end()
        except TransportFault:
            request.cut()


def _kind(reply: Reply) -> str:
    return reply.headers.get("content-type") or "application/octet-stream"


# --- in the queue ---


def _submit(gateway: Gateway, request: Request, call: Call, model: str, how: CallOptions) -> None:
    engine = gateway.engine
    assert isinstance(call.body, bytes)
    cost = min(len(call.body), PROMPT_MOST)
    task = engine.task(Work(Kind.CHAT, model, request.path, cost, stream=True, repeatable=False), how)
    request.task = task.id
    if not request.plain:
        gateway.name_task(request, task.id)
    job = PassedCall(task, request, call, gateway)
    request.on_gone = lambda: engine.dispatcher.cancel(task.id)
    engine.submit(job)


class PassedCall(CallJob):
    """A call of a route that is not known here, passed on as it comes."""

    def __init__(self, task: Task, request: Request, call: Call, gateway: Gateway) -> None:
        super().__init__(task, request.path, b"", UNBOUNDED, _settled)
        self.call = call
        self.request = request
        self.gateway = gateway
        self.came = Came()
        self._kinds: dict[int, str] = {}

    def launch(self, dispatcher: Dispatcher, start: Start, node: Endpoint) -> GiveUp:
        return dispatcher.run(self.perform, start, node)

    async def perform(self, transport: Transport, node: Endpoint, start: Start, started: Started) -> Outcome:
        reply = await transport.send(node, self.call)
        if reply.status >= 300:
            body = await _some(reply)
            self.keep(start.attempt, body)
            self._kinds[start.attempt] = _kind(reply)
            return refusal(reply.status, body, reply.headers)
        request = self.request
        async with aclosing(reply):
            try:
                request.begin(
                    reply.status, _kind(reply), routed(self.task.id, node.key, len(self.attempt_log.attempts) + 1)
                )
                started(False)
                self.came.begun = True
                async for piece in reply:
                    self.came.size += len(piece)
                    if not request.write(piece):
                        await request.drained()
            except TransportFault as fault:
                return outcome_of(fault)
        return Outcome(OK, "", reply.status)

    def kind_of(self, attempt: int | None) -> str:
        """Return the content type of the refusal that is passed on."""
        return self._kinds.get(-1 if attempt is None else attempt, "")


def _settled(job: CallJob) -> None:
    assert isinstance(job, PassedCall)
    settled, request, gateway = job.settled, job.request, job.gateway
    assert settled is not None
    outcome = settled.outcome
    gateway.totals.count(outcome.status is OK)
    job.came.begun = job.came.begun or (outcome.status in GIVEN_UP and bool(under_way(job)))
    gateway.settle(request, job.came.tokens(_prompt(job.call)))
    if request.has_begun:
        (request.end if outcome.status is OK else request.cut)()
    elif outcome.status is Status.REFUSED and outcome.http_status:
        tried = routed(job.task.id, "", len(job.attempt_log.attempts))
        request.answer(outcome.http_status, job.body, job.kind_of(settled.attempt), tried)
    elif (error := job.error()) is not None:
        status, headers = status_of(error)
        request.refuse(status, access.words(request, error), headers)
    gateway.engine.record_call(job)
