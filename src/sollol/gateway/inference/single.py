"""Answer a single inference: submit its task to the engine, and send the result to the client.

If no node can serve a model, its fallbacks from the settings are tried in turn.
"""

from __future__ import annotations

from typing import Final

import msgspec

from sollol.backends.ollama import decode, encode
from sollol.core.types import EMBED, OK, Status, Task, canonical_model, is_cloud_model
from sollol.engine.engine import TIMEOUTS
from sollol.engine.jobs import CallJob
from sollol.engine.resumption import PartialResponse
from sollol.engine.whole_answers import OBSERVABLE
from sollol.errors import BadInput, NoNodeAvailable, ResponseError, SollolError
from sollol.gateway.auth.access import check_allowed, shown_message
from sollol.gateway.auth.charging import prompt_tokens, reserve, settle, used
from sollol.gateway.context import Context
from sollol.gateway.formats.api_formats import ApiFormat, ParsedRequest, parse_request
from sollol.gateway.formats.error_responses import UnknownModel, status_of
from sollol.gateway.inference.call_options import options_of
from sollol.gateway.inference.load_wait import limit_load_wait
from sollol.gateway.inference.model_memory import set_keep_alive, unload
from sollol.gateway.inference.passthrough import send_to_any
from sollol.gateway.inference.relay import StreamRelay, WholeRelay
from sollol.gateway.inference.routing_headers import routing_headers
from sollol.gateway.node_queries import is_listed, is_missing
from sollol.http_server.request import Request
from sollol.workload.task import Work

# Exceptions that a malformed body can cause in its parsing; all others are defects of SOLLOL.
BODY_FAULTS: Final = (ArithmeticError, AttributeError, LookupError, RecursionError, TypeError, ValueError)


def infer(api_format: ApiFormat, context: Context, request: Request) -> None:
    """Answer a chat or a completion, now or later.

    Raises:
        BadInput: The request cannot be parsed.
        ResponseError: The key may not use the model, or no model is named.
    """
    parsed: ParsedRequest = _parse(api_format, request.body) if request.parsed is None else request.parsed
    if not parsed.model:
        raise no_model(request.path)
    if send_if_cloud(context, request, parsed.model):
        return
    if parsed.unloads:
        model = context.settings.resolve_model(parsed.model)
        check_allowed(request, model, parsed.model)
        context.run(unload, request, model, options_of(request, context).only)
        return
    Inference(api_format, context, request, parsed).submit(parsed.model)


def parse_ahead(api_format: ApiFormat, request: Request) -> None:
    """Parse a large body, and prepare the resumption of its stream. Runs in a thread."""
    request.parsed = parsed = _parse(api_format, request.body)
    if parsed.stream and parsed.model:
        request.partial = _partial_response(api_format, request.body)


def _parse(api_format: ApiFormat, body: bytes) -> ParsedRequest:
    try:
        return parse_request(api_format, body)
    except SollolError:
        raise
    except BODY_FAULTS as error:
        raise unreadable(error) from error


def unreadable(error: Exception) -> BadInput:
    """Return the client's error for a body that cannot be parsed."""
    return BadInput(f"the request cannot be read: {error}"[:300])


def send_if_cloud(context: Context, request: Request, name: str) -> bool:
    """Send a call of a cloud model that no node lists to any node; return False for other models.

    The node forwards it to Ollama's cloud.
    """
    model = context.settings.resolve_model(name)
    if not is_cloud_model(canonical_model(model)) or is_listed(context.engine, model):
        return False
    check_allowed(request, model, name)
    if model != name:
        request.body = _renamed(request.body, model)
    context.run(send_to_any, request)
    return True


def no_model(path: str) -> SollolError:
    """Return the error of a node's route for a request that names no model."""
    if path in ("/api/generate", "/api/embed", "/v1/completions", "/v1/embeddings"):
        return ResponseError("model '' not found", 404)
    return BadInput("model is required")


class Inference:
    """One request and the models that may answer it."""

    __slots__ = (
        "_context",
        "_fallbacks",
        "_format",
        "_model",
        "_options",
        "_parsed",
        "_prompt_tokens",
        "_request",
        "_task_id",
    )

    def __init__(self, api_format: ApiFormat, context: Context, request: Request, parsed: ParsedRequest) -> None:
        self._format = api_format
        self._context = context
        self._request = request
        self._parsed = parsed
        self._options = options_of(request, context)
        self._fallbacks: list[str] | None = None  # models not yet tried
        self._model = ""  # of the current task
        self._task_id = 0
        self._prompt_tokens = 0  # an estimate

    def submit(self, name: str) -> None:
        """Submit the task for a model. `name`: the model, or an alias.

        Raises:
            BadInput: The body or a header cannot be used.
            ResponseError: The key may not use the model, or has used its tokens.
        """
        context, request, parsed = self._context, self._request, self._parsed
        self._model = model = context.settings.resolve_model(name)
        check_allowed(request, model, name)
        body = request.body if model == parsed.model else _renamed(request.body, model)
        task = context.engine.task(self._work(model, body), self._options)
        self._task_id = request.task = task.id
        if not request.plain:  # it has headers of ours
            context.request_ids.add(request, task.id)
        job = self._job(task, body)
        if request.key is not None:
            self._prompt_tokens = prompt_tokens(parsed.size or len(body))
            reserve(context.limiter, request, self._prompt_tokens, task.tokens_out if task.kind is not EMBED else 0)
        request.on_gone = self._cancel
        context.engine.submit(job)
        limit_load_wait(context, request, task.id)

    def _work(self, model: str, body: bytes) -> Work:
        """Return the properties of the request by which it is scheduled."""
        api_format, parsed = self._format, self._parsed
        return Work(
            api_format.kind,
            model,
            api_format.path,
            cost=parsed.cost or len(body),
            tokens_out=parsed.tokens_out,
            options=parsed.options,
            type=parsed.type,
            prefix=parsed.prefix,
            stream=parsed.stream,
            observable=api_format.path in OBSERVABLE and not parsed.stream,
            repeatable=parsed.repeatable,
        )

    def _job(self, task: Task, body: bytes) -> WholeRelay | StreamRelay:
        """Return the job that relays the answer. Another node can resume a stream if its partial response is known."""
        request, api_format, context = self._request, self._format, self._context
        if not task.stream:
            return WholeRelay(task, request, body, api_format, TIMEOUTS, self._done, context.transport)
        is_prepared = request.parsed is not None and body is request.body
        partial = request.partial if is_prepared else _partial_response(api_format, body)
        engine = context.engine
        return StreamRelay(
            task,
            request,
            body,
            api_format,
            TIMEOUTS,
            self._done,
            context.transport,
            partial,
            engine.resume_support,
            engine.holders,
        )

    def _cancel(self) -> None:
        self._context.engine.dispatcher.cancel(self._task_id)

    def _done(self, job: CallJob) -> None:
        try:
            self._deliver(job)
        except Exception as error:  # a defect of ours: the client gets an error, and the queue goes on
            self._context.fail(self._request, error)
        self._context.engine.record_call(job)  # last, so that the client does not wait for it

    def _deliver(self, job: CallJob) -> None:
        """Charge the call and send its result to the client, or submit it for a fallback of its model."""
        model = self._model
        assert isinstance(job, (WholeRelay, StreamRelay))
        settled, request, context = job.settled, self._request, self._context
        assert settled is not None
        status = settled.outcome.status
        context.pool.totals.count(status is OK)
        if status is Status.NO_NODE and not request.has_begun and self._fall_back():
            return
        if request.charge is not None:
            parts, size = job.delivered()
            last = job.last if isinstance(job, StreamRelay) else job.body
            tokens = used(job, context.engine, prompt=self._prompt_tokens, parts=parts, size=size, last=last)
            settle(request, tokens, status is OK)
        if status is Status.LEFT:
            return
        if status is OK and self._options.keep_alive is not None:
            self._set_keep_alive(job, self._options.keep_alive)
        if status is OK or (status is Status.REFUSED and job.body.lstrip().startswith(b"{")):
            job.answer(settled)
        elif request.has_begun and isinstance(job, StreamRelay):
            job.break_off(settled)
        else:
            self._refuse(model, job)

    def _set_keep_alive(self, job: CallJob, keep_alive: int | str) -> None:
        settled = job.settled
        node = next(
            (start.node for start, *_ in job.attempt_log.attempts if settled and start.attempt == settled.attempt), ""
        )
        set_keep_alive(self._context, node, self._model, job.task, keep_alive)

    def _fall_back(self) -> bool:
        """Submit the request for the next fallback of its model, or refuse it; return False if none is left."""
        if self._fallbacks is None:
            self._fallbacks = list(self._context.settings.fallbacks_of(self._model))
        while self._fallbacks:
            try:
                self.submit(self._fallbacks.pop(0))
            except ResponseError:  # the key may not use it
                continue
            except BadInput as error:
                self._context.refuse(self._request, error)
            return True
        return False

    def _refuse(self, model: str, job: CallJob) -> None:
        error = job.error()
        assert error is not None
        request, headers = self._request, routing_headers(job.task.id, "", len(job.attempt_log.attempts))
        if isinstance(error, NoNodeAvailable) and is_missing(self._context.engine, model):
            error = UnknownModel(request.path, self._parsed.model)
            request.refuse(404, error.error, [*headers, *error.headers])
            return
        status, more = status_of(error)
        request.refuse(status, shown_message(request, error), [*headers, *more])


def _renamed(body: bytes, model: str) -> bytes:
    """Return a body with another model. Raises BadInput."""
    try:
        return encode({**decode(body), "model": model})
    except BODY_FAULTS as error:
        raise unreadable(error) from error


def _partial_response(api_format: ApiFormat, body: bytes) -> PartialResponse | None:
    """Return the state that resumes the answer on another node; None if a node is to refuse the body."""
    try:
        return api_format.partial_response(body)
    except (msgspec.ValidationError, TypeError, AttributeError, KeyError):
        return None
    except BODY_FAULTS as error:
        raise unreadable(error) from error
