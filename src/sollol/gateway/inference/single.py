"""Inference: a request becomes a task in the pool's queue, and its answer goes back as it comes.

What a client says of a call besides its body stands in headers (`X-Sollol-Priority`, `-Mode`, `-App`, `-Deadline-Ms`,
`-Hedge`, `-Node`); what an API key allows bounds it. Where no node can serve a model, those named as its fallbacks
are tried in turn.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Final

import msgspec

from sollol.backends.ollama import decode, encode
from sollol.core.types import EMBED, OK, Status, canonical_model, is_cloud_model
from sollol.engine.engine import TIMEOUTS
from sollol.engine.jobs import CallJob
from sollol.engine.resumption import PartialResponse
from sollol.engine.whole_answers import OBSERVABLE
from sollol.errors import BadInput, NoNodeAvailable, ResponseError, SollolError
from sollol.gateway.auth.access import check_allowed, words
from sollol.gateway.auth.charging import prompt_tokens, used
from sollol.gateway.formats.api_formats import Asked, Tongue, peeked
from sollol.gateway.formats.error_responses import status_of, unknown_model
from sollol.gateway.inference.relay import StreamRelay, WholeRelay
from sollol.gateway.routes import models
from sollol.gateway.routes.targets import names_in
from sollol.http_server.request import Request, has_ours
from sollol.workload.call_options import CallOptions
from sollol.workload.task import Work
from sollol.workload.validation import check_mode, check_only

if TYPE_CHECKING:
    from sollol.gateway.app import Gateway
    from sollol.gateway.settings import GatewaySettings

# What reading a body that no honest client sends can end in; anything else is a fault of ours.
BODY_FAULTS: Final = (ArithmeticError, AttributeError, LookupError, RecursionError, TypeError, ValueError)
_SECONDS: Final = re.compile(r"-?[0-9]{1,9}")
_DURATION: Final = re.compile(r"-?([0-9]{1,9}(\.[0-9]{1,9})?(ns|us|ms|s|m|h))+")
_YES: Final = {"1": True, "true": True, "yes": True, "0": False, "false": False, "no": False}


def infer(tongue: Tongue, gateway: Gateway, request: Request) -> None:
    """Raises BadInput, or ResponseError, for what cannot be asked."""
    body = request.body
    asked: Asked = _peeked(tongue, body) if request.asked is None else request.asked
    if not asked.model:
        raise no_model(request.path)
    if goes_to_cloud(gateway, request, asked.model):
        return
    if asked.unloads:
        model = gateway.settings.resolve_model(asked.model)
        check_allowed(request, model, asked.model)
        gateway.in_task(models.unload, request, (model, wanted(request, gateway).only))
        return
    Inference(tongue, gateway, request, body, asked).submit(asked.model)


def read_ahead(tongue: Tongue, request: Request) -> None:
    """Read what of a large body decides, and what is needed to go on with its stream. Runs in a thread."""
    request.asked = asked = _peeked(tongue, request.body)
    if asked.stream and asked.model:
        request.said = _said(tongue, request.body)


def _peeked(tongue: Tongue, body: bytes) -> Asked:
    """Read what of a body decides. Whatever that ends in, it is the body's fault: it raises BadInput."""
    try:
        return peeked(tongue, body)
    except SollolError:
        raise
    except BODY_FAULTS as error:
        raise unreadable(error) from error


def unreadable(error: Exception) -> BadInput:
    """Return what a client is told whose body nobody can read."""
    return BadInput(f"the request cannot be read: {error}"[:300])


def goes_to_cloud(gateway: Gateway, request: Request, name: str) -> bool:
    """Send a call of a cloud model that no node lists to any node: each asks Ollama's cloud for it."""
    model = gateway.settings.resolve_model(name)
    if not is_cloud_model(canonical_model(model)) or gateway.lists(model):
        return False
    check_allowed(request, model, name)
    if model != name:
        request.body = _renamed(request.body, model)
    gateway.in_task(gateway.cloud, request, ())
    return True


def no_model(path: str) -> SollolError:
    """A request that names none, in the words and with the status of a node's route."""
    if path in ("/api/generate", "/api/embed", "/v1/completions", "/v1/embeddings"):
        return ResponseError("model '' not found", 404)
    return BadInput("model is required")


class Inference:
    """One request and the models it may be answered with."""

    __slots__ = (
        "_asked",
        "_body",
        "_fallbacks",
        "_gateway",
        "_model",
        "_prompt",
        "_request",
        "_task",
        "_tongue",
        "_wanted",
    )

    def __init__(self, tongue: Tongue, gateway: Gateway, request: Request, body: bytes, asked: Asked) -> None:
        self._tongue = tongue
        self._gateway = gateway
        self._request = request
        self._asked = asked
        self._wanted = wanted(request, gateway)
        self._body = body
        self._fallbacks: list[str] | None = None  # those still to be tried
        self._model = ""  # that is asked now, and by which task
        self._task = 0
        self._prompt = 0  # tokens that it is expected to have

    def submit(self, name: str) -> None:
        gateway, request, asked = self._gateway, self._request, self._asked
        self._model = model = gateway.settings.resolve_model(name) if gateway.has_aliases else name
        if request.key is not None:
            check_allowed(request, model, name)
        body = self._body
        if model != asked.model:
            body = _renamed(body, model)
        engine = gateway.engine
        task = engine.task(
            Work(
                self._tongue.kind,
                model,
                self._tongue.path,
                asked.cost or len(body),
                asked.tokens_out,
                asked.options,
                asked.type,
                asked.prefix,
                asked.stream,
                self._tongue.path in OBSERVABLE and not asked.stream,
            ),
            self._wanted,
        )
        self._task = task.id
        request.task = task.id
        if not request.plain:
            gateway.name_task(request, task.id)
        job: WholeRelay | StreamRelay
        if asked.stream:
            is_read = request.asked is not None and model == asked.model
            said = request.said if is_read else _said(self._tongue, body)
            job = StreamRelay(
                task,
                request,
                body,
                self._tongue,
                TIMEOUTS,
                self._done,
                gateway.sinks,
                said,
                engine.resume_support,
                engine.holders,
            )
        else:
            job = WholeRelay(task, request, body, self._tongue, TIMEOUTS, self._done, gateway.sinks)
        if request.key is not None:
            self._prompt = prompt_tokens(asked.size or len(body))
            if not gateway.reserve(request, self._prompt, task.tokens_out if task.kind is not EMBED else 0):
                return
        request.on_gone = self._left
        engine.submit(job)

    def _left(self) -> None:
        """The client is gone."""
        self._gateway.engine.dispatcher.cancel(self._task)

    def _done(self, job: CallJob) -> None:
        """The task is over."""
        try:
            self._tell(job)
        except Exception as error:  # a fault of ours: the client must not wait for ever, nor the queue stand still
            self._gateway.failed(self._request, error)
        self._gateway.engine.record_call(job)  # when the client has its answer

    def _tell(self, job: CallJob) -> None:
        """The client."""
        model = self._model
        assert isinstance(job, (WholeRelay, StreamRelay))
        settled, request, gateway = job.settled, self._request, self._gateway
        assert settled is not None
        how = settled.outcome.status
        gateway.totals.count(how is OK)
        if how is Status.NO_NODE and not request.has_begun and self._falls_back(model):
            return
        if request.charge is not None:
            parts, size = job.came_so_far()
            last = job.last if isinstance(job, StreamRelay) else job.body
            gateway.settle(request, used(job, gateway.engine, self._prompt, parts, size, last), how is OK)
        if how is Status.LEFT:
            return
        if how is OK and self._wanted.keep_alive is not None:
            self._keep(model, job, self._wanted.keep_alive)
        if how is OK or (how is Status.REFUSED and job.body.lstrip().startswith(b"{")):
            job.answer(settled)
        elif request.has_begun and isinstance(job, StreamRelay):
            job.break_off(settled)
        else:
            self._refuse(model, job)

    def _keep(self, model: str, job: CallJob, keep_alive: int | str) -> None:
        """Set how long the node that answered keeps the model, which /v1 has no word for."""
        settled = job.settled
        node = next(
            (start.node for start, *_ in job.attempt_log.attempts if settled and start.attempt == settled.attempt), ""
        )
        self._gateway.keep(node, model, job.task, keep_alive)

    def _falls_back(self, model: str) -> bool:
        """No node can serve the model: try the next of its fallbacks."""
        if self._fallbacks is None:
            self._fallbacks = list(self._gateway.settings.fallbacks_of(model))
        while self._fallbacks:
            try:
                self.submit(self._fallbacks.pop(0))
            except ResponseError:  # this key may not use it
                continue
            except BadInput as error:
                self._gateway.refuse(self._request, error)
            return True
        return False

    def _refuse(self, model: str, job: CallJob) -> None:
        error = job.error()
        assert error is not None
        request, headers = self._request, routed(job.task.id, "", len(job.attempt_log.attempts))
        if isinstance(error, NoNodeAvailable) and self._gateway.nobody_has(model):
            request.refuse(404, unknown_model(request.path, self._asked.model), headers)
            return
        status, more = status_of(error)
        request.refuse(status, words(request, error), [*headers, *more])


def _renamed(body: bytes, model: str) -> bytes:
    """Return a body that asks for another model. Raises BadInput."""
    try:
        return encode({**decode(body), "model": model})
    except BODY_FAULTS as error:
        raise unreadable(error) from error


def _said(tongue: Tongue, body: bytes) -> PartialResponse | None:
    """Return what is needed to go on with the answer elsewhere; None where a node is left to refuse the body."""
    try:
        return tongue.said(body)
    except (msgspec.ValidationError, TypeError, AttributeError, KeyError):
        return None
    except BODY_FAULTS as error:
        raise unreadable(error) from error


def routed(task: int, nodes: str, attempts: int) -> list[tuple[str, str]]:
    """The headers that tell where a call went."""
    told = [("X-Sollol-Request-Id", str(task)), ("X-Sollol-Attempts", str(attempts))]
    return [("X-Sollol-Node", nodes), *told] if nodes else told


def usual(settings: GatewaySettings) -> CallOptions:
    """What is wanted of a call that says nothing of it."""
    return CallOptions(
        5, settings.limits.request_timeout_s, settings.mode, settings.routing.hedge, app=settings.app_name
    )


def wanted(request: Request, gateway: Gateway) -> CallOptions:
    """The headers, bounded by what the key allows. Raises BadInput."""
    key, usual = request.key, gateway.usual
    if request.plain or not has_ours(request.headers):
        if key is None:
            return usual
        return usual._replace(priority=min(5, key.priority_max), app=key.app)
    priority = _number(request, b"x-sollol-priority", 0, 10, 5)
    deadline_ms = _number(request, b"x-sollol-deadline-ms", 1, 86_400_000, 0)
    mode = request.header(b"x-sollol-mode")
    hedge = request.header(b"x-sollol-hedge")
    if hedge and hedge.lower() not in _YES:
        raise BadInput(f"X-Sollol-Hedge: {hedge!r}; expected true or false")
    app = request.header(b"x-sollol-app")[:64]
    return CallOptions(
        priority if key is None else min(priority, key.priority_max),
        deadline_ms / 1000 if deadline_ms else usual.timeout_s,
        check_mode(mode) if mode else usual.mode,
        _YES[hedge.lower()] if hedge else usual.hedge,
        only=_known_nodes(request, gateway),
        app=app or usual.app if key is None else key.app,
        keep_alive=_keep_alive(request),
    )


def _keep_alive(request: Request) -> int | str | None:
    text = request.header(b"x-sollol-keep-alive")
    if not text:
        return None
    if _SECONDS.fullmatch(text):
        return int(text)
    if not _DURATION.fullmatch(text):
        raise BadInput(f"X-Sollol-Keep-Alive: {text[:80]!r}; expected seconds, or a duration such as 10m or 1h30m")
    return text


def _known_nodes(request: Request, gateway: Gateway) -> tuple[str, ...] | None:
    text = request.header(b"x-sollol-node")
    if not text:
        return None
    only = check_only(names_in("X-Sollol-Node", text))
    known = gateway.engine.scheduler.view().nodes
    for node in only or ():
        if node not in known:
            raise BadInput(f"X-Sollol-Node: {node!r} is not a node here; expected one of {', '.join(known)}")
    return only


def _number(request: Request, name: bytes, least: int, most: int, default: int) -> int:
    text = request.header(name)
    if not text:
        return default
    try:
        value = int(text)
    except ValueError:
        value = least - 1
    if not least <= value <= most:
        raise BadInput(f"{name.decode().title()}: {text!r}; expected a whole number from {least} to {most}")
    return value
