"""Answer embeddings: a few texts by one call to one node, a long list in chunks on all nodes.

The vectors are relayed as the bytes of the nodes. Decoding and encoding them would cost 30 times as much and would
change their digits.
"""

from __future__ import annotations

import asyncio
import base64
from array import array
from typing import Any, Final

import msgspec

from sollol.backends.decoding import json_reader
from sollol.backends.ollama import encode, read_vectors
from sollol.core.actions import Accept, Refuse, Start
from sollol.core.state.ranges import Ranges
from sollol.core.timing_check import most_prompt_tokens
from sollol.core.types import Micros, Outcome, Status, Timing, canonical_model
from sollol.engine.batch_job import BatchEnded, BatchJob, ItemsRefused, Message
from sollol.errors import BadInput, NoNodeAvailable, ResponseError, SollolError
from sollol.gateway.auth.access import check_allowed
from sollol.gateway.auth.charging import prompt_tokens, reserve, settle, size_of, text_tokens
from sollol.gateway.context import Context
from sollol.gateway.formats.api_formats import ApiFormat, parse_embedding, parsed_embedding
from sollol.gateway.formats.error_responses import UnknownModel
from sollol.gateway.formats.request_fields import EmbeddingFields
from sollol.gateway.inference.call_options import options_of
from sollol.gateway.inference.model_memory import set_keep_alive
from sollol.gateway.inference.routing_headers import routing_headers
from sollol.gateway.inference.single import Inference, no_model, send_if_cloud
from sollol.gateway.node_queries import is_missing
from sollol.http_server.request import Request
from sollol.observe.batch_report import BatchReport
from sollol.workload.call_options import CallOptions

SPLIT: Final = 8  # number of texts from which several nodes are faster than one
SPLIT_ALWAYS: Final = 64  # number of texts from which one call would occupy a node's slot for too long
SPLIT_PATHS: Final = ("/api/embed", "/v1/embeddings")  # `/api/embeddings` takes a single text
_FIELDS: Final = ("truncate", "options", "keep_alive", "dimensions")  # fields of the request that each chunk repeats
_V1_FIELDS: Final = ("dimensions",)  # nodes ignore the others there


class _RawAnswer(msgspec.Struct):
    embeddings: list[msgspec.Raw] = []
    load_duration: int = 0
    prompt_eval_count: int = 0


_read_answer = json_reader(_RawAnswer)


class RawBatch(BatchJob):
    """A batch that keeps its rows as the received bytes."""

    def __init__(self, *given: Any) -> None:
        super().__init__(*given)
        self.rows: dict[int, msgspec.Raw] = {}
        self.tokens = 0.0
        self._left: set[int] = set()  # texts of requests that SOLLOL ended
        self.load_ns = 0
        self._kept: dict[int, tuple[Start, _RawAnswer]] = {}

    def _keep(self, start: Start, answer: bytes, count: int) -> Outcome:
        try:
            found = _read_answer(answer)
        except msgspec.DecodeError as error:
            return Outcome(Status.FAILED, f"the answer is not in the format of /api/embed: {error}", 200)
        if len(found.embeddings) != count:
            return Outcome(Status.FAILED, f"{len(found.embeddings)} vectors for {count} inputs", 200)
        outcome, vectors = read_vectors(answer, count, self._dim)
        if vectors is None:
            return outcome
        self._dim = vectors.dim
        self._kept[start.attempt] = (start, found)
        return Outcome(Status.OK, "", 200, Timing(found.load_duration // 1000, found.prompt_eval_count))

    def accept(self, action: Accept) -> None:
        """Keep the rows of an answered request."""
        start, found = self._kept.pop(action.attempt)
        items = (start.items or Ranges()).items()
        row_of = dict(zip(items, found.embeddings, strict=True))
        fresh = action.items.items()
        for item in fresh:
            self.rows[item] = row_of[item]
        tokens, size = found.prompt_eval_count, size_of(self.texts[item] for item in items)
        if not 0 < tokens <= most_prompt_tokens(size):
            tokens = text_tokens(size)
        self.tokens += tokens * len(fresh) / max(1, len(items))
        self.load_ns = max(self.load_ns, found.load_duration)
        self.count_items(start.node, len(fresh))

    def ended(self, start: Start, outcome: Outcome, began: Micros, at: Micros) -> None:
        """Record the end of a request."""
        super().ended(start, outcome, began, at)
        if outcome.status is Status.LEFT:
            self._left.update((start.items or Ranges()).items())

    def used(self) -> int:
        """Return the tokens of the embedded texts, and of those in requests that SOLLOL ended."""
        left = [self.texts[item] for item in self._left if item not in self.rows]
        return round(self.tokens) + text_tokens(size_of(left))

    def refuse(self, action: Refuse) -> None:
        """End the batch with the error of a refused text."""
        self.count_refused(action)
        self.post(ItemsRefused(action.items, ResponseError(action.outcome.message, action.outcome.http_status)))


def embed(api_format: ApiFormat, context: Context, request: Request) -> None:
    """Answer a request for embeddings, by one node or by all.

    Raises:
        BadInput: The request cannot be parsed.
        ResponseError: The key may not use the model, or no model is named.
    """
    found: EmbeddingFields = parse_embedding(request.body) if request.parsed is None else request.parsed
    if not found.model:
        if api_format.path == "/v1/embeddings" and not found.input:
            raise BadInput("invalid input")
        raise no_model(request.path)
    if send_if_cloud(context, request, found.model):
        return
    texts = found.input
    if api_format.path == "/v1/embeddings":
        check_encoding_format(found.encoding_format)
    if isinstance(texts, list) and len(texts) >= SPLIT and api_format.path in SPLIT_PATHS:
        if not all(isinstance(text, str) for text in texts):
            raise BadInput("invalid input type")
        model = canonical_model(context.settings.resolve_model(found.model))
        group = context.engine.scheduler.view().groups.get(model)
        if len(texts) >= SPLIT_ALWAYS or group is None or len(group.replicas) > 1:
            context.run(_embed_on_all, request, api_format, found)
            return
    inputs = [texts] if isinstance(texts, str) else texts if isinstance(texts, list) else []
    parsed = parsed_embedding(found.model, found.options, inputs or [found.prompt or ""], found.keep_alive)
    Inference(api_format, context, request, parsed).submit(found.model)


def parse_ahead(request: Request) -> None:
    """Parse a large list of texts. Runs in a thread."""
    request.parsed = parse_embedding(request.body)


def check_encoding_format(name: str | None) -> None:
    """Check the requested format of vectors.

    Raises:
        BadInput: A node does not have it. The message is a node's.
    """
    if name and name.lower() not in ("float", "base64"):
        raise BadInput(f"Invalid value for 'encoding_format' = {name}. Supported values: ['float', 'base64'].")


async def _embed_on_all(context: Context, request: Request, api_format: ApiFormat, found: EmbeddingFields) -> None:
    """Embed a list on all nodes. A refused text refuses the whole list, as on a node."""
    options = options_of(request, context)
    models = _allowed_models(context, request, str(found.model))
    reserve(context.limiter, request, prompt_tokens(size_of(found.input)), 0)
    jobs: list[RawBatch] = []
    try:
        await _answer(context, request, api_format, found, models, options, jobs)
    finally:  # also if the client has left
        settle(request, sum(job.used() for job in jobs))


def _allowed_models(context: Context, request: Request, name: str) -> list[str]:
    """Return the model of a name, and those of its fallbacks that the key may use. Raises ResponseError (403)."""
    settings = context.settings
    model = settings.resolve_model(name)
    check_allowed(request, model, name)
    others = [settings.resolve_model(other) for other in settings.fallbacks_of(model)]
    return [model, *(other for other in others if request.key is None or request.key.allows(other))]


async def _answer(
    context: Context,
    request: Request,
    api_format: ApiFormat,
    found: EmbeddingFields,
    models: list[str],
    options: CallOptions,
    jobs: list[RawBatch],
) -> None:
    """Embed with the first of the models that has nodes, and answer. `jobs`: receives the started batches."""
    for number, model in enumerate(models, 1):
        try:
            fields = _FIELDS if api_format.path == "/api/embed" else _V1_FIELDS
            job, report, took_ns = await _run(context, request, model, found, fields, options, jobs)
        except SollolError as error:
            if number < len(models) and isinstance(error, NoNodeAvailable):
                continue
            if is_missing(context.engine, model):
                raise UnknownModel(request.path, str(found.model)) from None
            raise
        settle(request, sum(each.used() for each in jobs))
        tokens = round(job.tokens)
        rows = [bytes(job.rows[index]) for index in range(len(found.input))]
        if api_format.path == "/v1/embeddings":
            body = _as_openai(found, rows, tokens)
        else:
            body = _as_ollama(found, rows, tokens, took_ns, job.load_ns)
        nodes = [node for node, share in report.nodes.items() if share.items]
        if options.keep_alive is not None:
            for node in nodes:
                set_keep_alive(context, node, model, job.task, options.keep_alive)
        request.answer(200, body, headers=routing_headers(job.task.id, ",".join(nodes), report.requests))
        return


async def _run(
    context: Context,
    request: Request,
    model: str,
    found: EmbeddingFields,
    names: tuple[str, ...],
    options: CallOptions,
    jobs: list[RawBatch],
) -> tuple[RawBatch, BatchReport, int]:
    """Embed a list with one model; return the batch, its report and its nanoseconds."""
    loop = asyncio.get_running_loop()
    ended: asyncio.Future[BatchReport] = loop.create_future()

    def post(message: Message) -> None:
        if ended.done():
            return
        if isinstance(message, ItemsRefused):
            ended.set_exception(message.error)
        elif isinstance(message, BatchEnded):
            if message.error is not None:
                ended.set_exception(message.error)
            else:
                ended.set_result(message.report)

    engine, began = context.engine, loop.time()
    fields = {name: value for name in names if (value := getattr(found, name)) is not None}
    # The gateway's setting for hedging is for single requests. Only the header hedges a batch.
    batch_options = options if request.header(b"x-sollol-hedge") else options._replace(hedge=None)
    job = engine.batch(model, fields, batch_options, None, post, make=RawBatch)
    assert isinstance(job, RawBatch)
    jobs.append(job)
    request.task = job.task.id
    try:
        context.request_ids.add(request, job.task.id)
        engine.dispatcher.feed(job.whole(found.input))
        report = await ended
    finally:
        context.pool.totals.count(ended.done() and not ended.cancelled() and ended.exception() is None)
        engine.dispatcher.cancel(job.task.id)
    return job, report, round((loop.time() - began) * 1e9)


def _as_ollama(found: EmbeddingFields, rows: list[bytes], tokens: int, took_ns: int, load_ns: int) -> bytes:
    head = b'{"model":%b,"embeddings":[' % encode(found.model)
    tail = b'],"total_duration":%d,"load_duration":%d,"prompt_eval_count":%d}' % (took_ns, load_ns, tokens)
    return head + b",".join(rows) + tail


def _as_openai(found: EmbeddingFields, rows: list[bytes], tokens: int) -> bytes:
    if (found.encoding_format or "").lower() == "base64":
        rows = [b'"%b"' % base64.b64encode(array("f", msgspec.json.decode(row)).tobytes()) for row in rows]
    data = b",".join(
        b'{"object":"embedding","embedding":%b,"index":%d}' % (row, index) for index, row in enumerate(rows)
    )
    usage = b'{"prompt_tokens":%d,"total_tokens":%d}' % (tokens, tokens)
    return b'{"object":"list","data":[%b],"model":%b,"usage":%b}\n' % (data, encode(found.model), usage)
