"""Embeddings. A few texts are one call to one node; a long list is cut up and embedded on all nodes at once.

What comes back is put together as the node would have written it: the rows of vectors are kept as the bytes that the
nodes sent, never read as numbers and written anew (which costs 30 times as much and would change their digits).
"""

from __future__ import annotations

import asyncio
import base64
from array import array
from typing import TYPE_CHECKING, Any, Final

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
from sollol.gateway.auth.charging import prompt_tokens, size_of, text_tokens
from sollol.gateway.formats.api_formats import EMBED_TONGUES, Tongue, asked_embedding, peek_embed
from sollol.gateway.formats.error_responses import unknown_model
from sollol.gateway.formats.request_fields import Embedding
from sollol.gateway.inference.single import Inference, goes_to_cloud, no_model, routed, wanted
from sollol.http_server.request import Request
from sollol.observe.batch_report import BatchReport
from sollol.workload.call_options import CallOptions

if TYPE_CHECKING:
    from sollol.gateway.app import Gateway

SPLIT: Final = 8  # texts from which several nodes are sooner than one
SPLIT_ALWAYS: Final = 64  # texts from which one node's slot would be taken for too long at once
_FIELDS: Final = ("truncate", "options", "keep_alive", "dimensions")  # what a chunk says as the whole did
_V1_FIELDS: Final = ("dimensions",)  # nodes pass over the others there


class _Rows(msgspec.Struct):
    embeddings: list[msgspec.Raw] = []
    load_duration: int = 0
    prompt_eval_count: int = 0


_rows = json_reader(_Rows)


class RawBatch(BatchJob):
    """A batch whose rows stay the bytes that came."""

    def __init__(self, *given: Any) -> None:
        super().__init__(*given)
        self.rows: dict[int, msgspec.Raw] = {}
        self.tokens = 0.0
        self._left: set[int] = set()  # texts of requests that were ended from this side
        self.load_ns = 0
        self._kept: dict[int, tuple[Start, _Rows]] = {}

    def _keep(self, start: Start, answer: bytes, count: int) -> Outcome:
        try:
            found = _rows(answer)
        except msgspec.DecodeError as error:
            return Outcome(Status.FAILED, f"the answer is not what /api/embed gives: {error}", 200)
        if len(found.embeddings) != count:
            return Outcome(Status.FAILED, f"{len(found.embeddings)} vectors for {count} inputs", 200)
        outcome, vectors = read_vectors(answer, count, self._dim)  # as every batch: another node may do better
        if vectors is None:
            return outcome
        self._dim = vectors.dim
        self._kept[start.attempt] = (start, found)
        return Outcome(Status.OK, "", 200, Timing(found.load_duration // 1000, found.prompt_eval_count))

    def accept(self, action: Accept) -> None:
        start, found = self._kept.pop(action.attempt)
        items = (start.items or Ranges()).items()
        row = dict(zip(items, found.embeddings, strict=True))
        fresh = action.items.items()
        for item in fresh:
            self.rows[item] = row[item]
        told, size = found.prompt_eval_count, size_of(self.texts[item] for item in items)
        if not 0 < told <= most_prompt_tokens(size):
            told = text_tokens(size)
        self.tokens += told * len(fresh) / max(1, len(items))
        self.load_ns = max(self.load_ns, found.load_duration)
        self.count_items(start.node, len(fresh))

    def ended(self, start: Start, outcome: Outcome, began: Micros, at: Micros) -> None:
        super().ended(start, outcome, began, at)
        if outcome.status is Status.LEFT:
            self._left.update((start.items or Ranges()).items())

    def used(self) -> int:
        """Return the tokens of the texts that were embedded, or were being embedded when the call was given up."""
        left = [self.texts[item] for item in self._left if item not in self.rows]
        return round(self.tokens) + text_tokens(size_of(left))

    def refuse(self, action: Refuse) -> None:
        self.count_refused(action)
        self.post(ItemsRefused(action.items, ResponseError(action.outcome.message, action.outcome.http_status)))


def embed(tongue: Tongue, gateway: Gateway, request: Request) -> None:
    """Raises BadInput, or ResponseError, for what cannot be asked."""
    found: Embedding = peek_embed(request.body) if request.asked is None else request.asked
    if not found.model:
        if tongue.path == "/v1/embeddings" and not found.input:
            raise BadInput("invalid input")
        raise no_model(request.path)
    if goes_to_cloud(gateway, request, found.model):
        return
    texts = found.input
    if tongue.path == "/v1/embeddings":
        check_format(found.encoding_format)
    if isinstance(texts, list) and len(texts) >= SPLIT and tongue in EMBED_TONGUES[:2]:
        if not all(isinstance(text, str) for text in texts):
            raise BadInput("invalid input type")
        group = gateway.engine.scheduler.view().groups.get(canonical_model(gateway.settings.resolve_model(found.model)))
        if len(texts) >= SPLIT_ALWAYS or group is None or len(group.replicas) > 1:
            gateway.in_task(_split, request, (tongue, found))
            return
    inputs = [texts] if isinstance(texts, str) else texts if isinstance(texts, list) else []
    asked = asked_embedding(found.model, found.options, inputs or [found.prompt or ""])
    Inference(tongue, gateway, request, request.body, asked).submit(found.model)


def read_ahead(request: Request) -> None:
    """Read a large list of texts. Runs in a thread."""
    request.asked = peek_embed(request.body)


def check_format(name: str | None) -> None:
    """Raises BadInput for a form of vectors that a node does not have, in its words."""
    if name and name.lower() not in ("float", "base64"):
        raise BadInput(f"Invalid value for 'encoding_format' = {name}. Supported values: ['float', 'base64'].")


async def _split(gateway: Gateway, request: Request, tongue: Tongue, found: Any) -> None:
    """One list over all nodes. If one of its texts is refused, the whole call is, as a node does it."""
    how = wanted(request, gateway)
    models = _models(gateway, request, found.model)
    if not gateway.reserve(request, prompt_tokens(size_of(found.input)), 0):
        return
    jobs: list[RawBatch] = []
    try:
        await _on_all_nodes(gateway, request, tongue, found, models, how, jobs)
    finally:  # also where the client has left
        gateway.settle(request, sum(job.used() for job in jobs))


def _models(gateway: Gateway, request: Request, name: str) -> list[str]:
    """Return the model of a name and those of its fallbacks that the key may use, too. Raises ResponseError (403)."""
    model = gateway.settings.resolve_model(name)
    check_allowed(request, model, name)
    others = [gateway.settings.resolve_model(other) for other in gateway.settings.fallbacks_of(model)]
    return [model, *(other for other in others if request.key is None or request.key.allows(other))]


async def _on_all_nodes(
    gateway: Gateway,
    request: Request,
    tongue: Tongue,
    found: Any,
    models: list[str],
    how: CallOptions,
    jobs: list[RawBatch],
) -> None:
    """Embed by the first of the models that has nodes, and answer. `jobs`: receives what was begun."""
    for place, model in enumerate(models):
        try:
            fields = _FIELDS if tongue.path == "/api/embed" else _V1_FIELDS
            job, report, took_ns = await _run(gateway, request, model, found, fields, how, jobs)
        except SollolError as error:
            if place + 1 < len(models) and isinstance(error, NoNodeAvailable):
                continue
            if gateway.nobody_has(model):
                raise ResponseError(unknown_model(request.path, found.model), 404) from None
            raise
        gateway.settle(request, sum(each.used() for each in jobs))
        tokens = round(job.tokens)
        count = len(found.input)
        rows = [bytes(job.rows[index]) for index in range(count)]
        if tongue.path == "/v1/embeddings":
            body = _as_openai(found, rows, tokens)
        else:
            body = _as_ollama(found, rows, tokens, took_ns, job.load_ns)
        used = [node for node, share in report.nodes.items() if share.items]
        if how.keep_alive is not None:
            for node in used:
                gateway.keep(node, model, job.task, how.keep_alive)
        nodes = ",".join(used)
        request.answer(200, body, headers=routed(job.task.id, nodes, report.requests))
        return


async def _run(
    gateway: Gateway,
    request: Request,
    model: str,
    found: Any,
    names: tuple[str, ...],
    how: CallOptions,
    jobs: list[RawBatch],
) -> tuple[RawBatch, BatchReport, int]:
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

    engine, began = gateway.engine, loop.time()
    fields = {name: value for name in names if (value := getattr(found, name)) is not None}
    # What the settings say of second copies is about single calls; the header is about this one.
    call = how if request.header(b"x-sollol-hedge") else how._replace(hedge=None)
    job = engine.batch(model, fields, call, None, post, make=RawBatch)
    assert isinstance(job, RawBatch)
    jobs.append(job)
    request.task = job.task.id
    gateway.name_task(request, job.task.id)
    try:
        engine.dispatcher.feed(job.whole(found.input))
        report = await ended
    finally:
        gateway.totals.count(ended.done() and not ended.cancelled() and ended.exception() is None)
        engine.dispatcher.cancel(job.task.id)
    return job, report, round((loop.time() - began) * 1e9)


def _as_ollama(found: Any, rows: list[bytes], tokens: int, took_ns: int, load_ns: int) -> bytes:
    head = b'{"model":%b,"embeddings":[' % encode(found.model)
    tail = b'],"total_duration":%d,"load_duration":%d,"prompt_eval_count":%d}' % (took_ns, load_ns, tokens)
    return head + b",".join(rows) + tail


def _as_openai(found: Any, rows: list[bytes], tokens: int) -> bytes:
    if (found.encoding_format or "").lower() == "base64":
        rows = [b'"%b"' % base64.b64encode(array("f", msgspec.json.decode(row)).tobytes()) for row in rows]
    data = b",".join(
        b'{"object":"embedding","embedding":%b,"index":%d}' % (row, index) for index, row in enumerate(rows)
    )
    usage = b'{"prompt_tokens":%d,"total_tokens":%d}' % (tokens, tokens)
    return b'{"object":"list","data":[%b],"model":%b,"usage":%b}\n' % (data, encode(found.model), usage)
