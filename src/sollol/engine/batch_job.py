"""Job of a batch of embeddings: texts in, vectors out, in order and counted.

The job runs on the loop and posts messages; the caller's side (a coroutine, or the calling thread) takes them one by
one and feeds more texts on request. So an iterable is read in its owner's context, a slow consumer blocks the batch,
and memory is limited by the items in flight.
"""

from __future__ import annotations

from array import array
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

from sollol.backends.ollama import Vectors, answer_most, encode, fields_with_num_ctx, read_vectors
from sollol.backends.refusals import refusal
from sollol.core.actions import Accept, Complete, Refuse, Start
from sollol.core.endpoint import Endpoint
from sollol.core.events import ItemsAdded
from sollol.core.state.batch import joined
from sollol.core.state.incapability import OF_THE_REQUEST
from sollol.core.state.ranges import Ranges
from sollol.core.types import Micros, Outcome, Status, Task
from sollol.core.value import replaced
from sollol.engine.dispatcher import Dispatcher, GiveUp
from sollol.engine.jobs import error_of
from sollol.errors import BadInput, ResponseError, SollolError
from sollol.observe.batch_report import BatchAccount, BatchReport
from sollol.transport.base import Call, Timeouts, Transport
from sollol.workload.cost import item_cost


class VectorsDelivered(NamedTuple):
    """Vectors of these items, row after row in `flat`."""

    items: Ranges
    flat: array[float]
    dim: int


class ItemsRefused(NamedTuple):
    """Items that failed with one error."""

    items: Ranges
    error: Exception


class TextsRequested(NamedTuple):
    """Request for up to `items` more texts."""

    items: int


class BatchEnded(NamedTuple):
    """End of a batch."""

    error: SollolError | None
    report: BatchReport


Message = VectorsDelivered | ItemsRefused | TextsRequested | BatchEnded


class BatchJob:
    """Job of a batch on the event loop."""

    def __init__(
        self,
        task: Task,
        fields: Mapping[str, Any],
        timeouts: Timeouts,
        post: Callable[[Message], None],
        now: Micros,
        available: Callable[[str, Micros, Micros], float],
        digests: Callable[[str], dict[str, str]] = lambda model: {},
    ) -> None:
        self.task = task
        self._fields = dict(fields)
        self._timeouts = timeouts
        self.post = post
        self.texts: dict[int, str] | Sequence[str] = {}
        self._fed = 0
        self._dim = 0
        self._answers: dict[int, tuple[Start, Vectors]] = {}
        self._account = BatchAccount(now, available)
        self._digests = digests  # model -> {node: version}
        self._digest = ""
        self._unsendable: dict[int, BadInput] = {}  # items without a UTF-8 form
        self._control: int | None = None  # first answered item, whose text is kept for control requests
        self.on_end: Callable[[BatchReport], None] | None = None  # called with the report at the end
        self.on_settled: Callable[[Complete, Task, BatchReport, Micros | None], None] | None = None

    # --- feeding ---

    def whole(self, texts: Sequence[str]) -> ItemsAdded:
        """Set all texts at once, without a copy; return the event for the scheduler."""
        self.texts = texts
        self._fed = len(texts)
        return ItemsAdded(self.task.id, [item_cost(text) for text in texts], True)

    def more(self, texts: Sequence[str], closed: bool) -> ItemsAdded:
        """Add texts; return the event for the scheduler."""
        assert isinstance(self.texts, dict)
        for index, text in enumerate(texts, self._fed):
            self.texts[index] = text
        self._fed += len(texts)
        return ItemsAdded(self.task.id, [item_cost(text) for text in texts], closed)

    # --- attempts ---

    def launch(self, dispatcher: Dispatcher, start: Start, node: Endpoint) -> GiveUp:
        """Start one attempt; return the function that aborts it."""
        self._digest = self._digest or self._digests(self.task.model).get(start.node, "")
        return dispatcher.run(self.perform, start, node)

    async def perform(
        self, transport: Transport, node: Endpoint, start: Start, started: Callable[[bool], None]
    ) -> Outcome:
        """Send one chunk and read its vectors."""
        assert start.items is not None
        texts: list[str] = []
        for lo, hi in start.items:
            source = self.texts
            texts += source[lo:hi] if not isinstance(source, dict) else [source[i] for i in range(lo, hi)]
        fields = fields_with_num_ctx(self._fields, start.decision.num_ctx)
        body = encode({"model": self.task.model, "input": texts, **fields})
        if b"\\ud" in body and self._set_aside(texts, start.items):  # the escape of a lone surrogate
            body = encode({"model": self.task.model, "input": texts, **fields})
        most = answer_most(self.task.kind, body)
        reply = await transport.send(node, Call("POST", "/api/embed", body, timeouts=self._timeouts, most=most))
        answer = await reply.read()
        if reply.status != 200:
            outcome = refusal(reply.status, answer, reply.headers)
            # The list may be too long; shorter ones will show it.
            return replaced(outcome, status=Status.FAILED) if reply.status in OF_THE_REQUEST else outcome
        return self._keep(start, answer, len(texts))

    def _set_aside(self, texts: list[str], items: Ranges) -> bool:
        """Replace texts without a UTF-8 form, which fail when the others are answered; return True if there is one."""
        found = False
        for place, item in enumerate(items.items()):
            try:
                texts[place].encode()
            except UnicodeEncodeError as error:
                code = f"U+{ord(texts[place][error.start]):04X}"
                fault = f"inputs[{item}] has a lone surrogate ({code}) at {error.start}: it has no UTF-8 form"
                self._unsendable[item] = BadInput(f"{fault}; replace it, as text.encode('utf-8', 'replace') does")
                texts[place], found = "?", True
        return found

    def _keep(self, start: Start, answer: bytes, count: int) -> Outcome:
        """Read an answer of `count` vectors and keep them until the scheduler selects the new ones."""
        outcome, vectors = read_vectors(answer, count, self._dim)
        if vectors is not None:
            self._dim = vectors.dim
            self._answers[start.attempt] = (start, vectors)
        return outcome

    def ended(self, start: Start, outcome: Outcome, began: Micros, at: Micros) -> None:
        """Count the end of an attempt."""
        self._account.ended(start.node, start.cause, outcome, began, at)

    def accept(self, action: Accept) -> None:
        """Deliver the new items of an attempt."""
        start, vectors = self._answers.pop(action.attempt)
        items, fresh = start.items or Ranges(), action.items
        if self._unsendable:
            fresh = self._refuse_unsendable(fresh)
            if not fresh:
                return
        if self._control is None:
            self._control = fresh[0][0]
        self.count_items(start.node, fresh.total())
        if fresh == items:
            flat = vectors.flat
        else:  # after a takeover: only the rows without an earlier answer
            row = {item: index for index, item in enumerate(items.items())}
            flat = array("f")
            for item in fresh.items():
                at = row[item] * vectors.dim
                flat += vectors.flat[at : at + vectors.dim]
        self._drop_texts(fresh)
        self.post(VectorsDelivered(fresh, flat, vectors.dim))

    def _refuse_unsendable(self, fresh: Ranges) -> Ranges:
        """Deliver the errors of items that were never sent; return the others."""
        bad = [item for item in fresh.items() if item in self._unsendable]
        for item in bad:
            error, ranges = self._unsendable[item], Ranges([(item, item + 1)])
            self.count_refused(Refuse(self.task.id, ranges, Outcome(Status.REFUSED, str(error), 400)))
            self._drop_texts(ranges)
            self.post(ItemsRefused(ranges, error))
        return joined([item for item in fresh.items() if item not in self._unsendable]) if bad else fresh

    def count_items(self, node: str, count: int) -> None:
        """Count delivered items of a node."""
        self._account.answered(node, count)

    def refuse(self, action: Refuse) -> None:
        """Deliver the error of failed items."""
        self.count_refused(action)
        self._drop_texts(action.items)
        self.post(ItemsRefused(action.items, _item_error(action.outcome)))

    def count_refused(self, action: Refuse) -> None:
        """Count failed items and keep the errors of the first."""
        self._account.refused(action.items.items(), action.outcome.message)

    def _drop_texts(self, items: Ranges) -> None:
        if isinstance(self.texts, dict):
            for item in items.items():
                if item != self._control:
                    self.texts.pop(item, None)

    def request_items(self, items: int) -> None:
        """Request more texts from the caller."""
        self.post(TextsRequested(items))

    def settle(self, action: Complete, at: Micros) -> None:
        """Deliver the end of the batch and its report."""
        self._answers.clear()
        report = self._report(at)
        if self.on_settled is not None:
            self.on_settled(action, self.task, report, self._account.wait_us)
        if self.on_end is not None:
            self.on_end(report)
        self.post(BatchEnded(error_of(action, self.task), report))

    def _report(self, at: Micros) -> BatchReport:
        return self._account.report(at, self.task.id, self._digest, self._left_out())

    def _left_out(self) -> dict[str, str]:
        versions = self._digests(self.task.model).items() if self._digest else ()
        return {node: digest for node, digest in versions if digest != self._digest and node not in self._account.nodes}


def _item_error(outcome: Outcome) -> Exception:
    return ResponseError(outcome.message, outcome.http_status)
