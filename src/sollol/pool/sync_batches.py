"""Batches of chats and completions of OllamaPool."""

from __future__ import annotations

from collections.abc import Generator, Iterable
from contextlib import closing
from functools import partial
from itertools import islice
from queue import SimpleQueue
from typing import Any, Unpack

from sollol.answers import ChatResponse, GenerateResponse
from sollol.engine.call_batch import CallBatch, CallEnded, CallMessage, CallsEnded, CallsRequested
from sollol.pool.answer_batches import AnswerBatch, answer_of, chat_batch, generate_batch, listed
from sollol.pool.batch_result import BatchAnswers
from sollol.pool.call_types import ChatKeywords, GenerateKeywords
from sollol.pool.progress import progress_bar
from sollol.pool.sync_models import ModelCalls


class AnswerBatches(ModelCalls):
    """Send many chats or prompts to all nodes at once."""

    def batch_chat(
        self,
        model: str,
        inputs: Iterable[Any],
        *,
        priority: int = 5,
        max_workers: int | None = None,
        on_error: str = "raise",
        progress: bool = False,
        **call: Unpack[ChatKeywords],
    ) -> BatchAnswers[ChatResponse]:
        """Return a ChatResponse for each item of `inputs`, in order, from all nodes at once.

        An item is a conversation (a list of messages), or a text, which is sent as one message of the user.
        `timeout` is for the whole batch, in seconds; `max_workers` is the most requests in flight, by default as many
        as the nodes have room for. `progress` draws a bar on stderr.
        `on_error="raise"`: failed items raise BatchError at the end, with all results; "return": they are None, with
        their errors in `result.errors`. Other keywords: see `chat`.
        """
        options, fields = self._split(priority, call)
        batch = chat_batch(model, options, max_workers, on_error, fields)
        result: BatchAnswers[ChatResponse] = self._answers(batch, inputs, "chats" if progress else None)
        return result

    def batch_generate(
        self,
        model: str,
        inputs: Iterable[str],
        *,
        priority: int = 5,
        max_workers: int | None = None,
        on_error: str = "raise",
        progress: bool = False,
        **call: Unpack[GenerateKeywords],
    ) -> BatchAnswers[GenerateResponse]:
        """Return a GenerateResponse for each item of `inputs`, in order, from all nodes at once.

        An item is a prompt.
        `timeout` is for the whole batch, in seconds; `max_workers` is the most requests in flight, by default as many
        as the nodes have room for. `progress` draws a bar on stderr.
        `on_error="raise"`: failed items raise BatchError at the end, with all results; "return": they are None, with
        their errors in `result.errors`. Other keywords: see `generate`.
        """
        options, fields = self._split(priority, call)
        batch = generate_batch(model, options, max_workers, on_error, fields)
        result: BatchAnswers[GenerateResponse] = self._answers(batch, inputs, "prompts" if progress else None)
        return result

    def _answers(self, batch: AnswerBatch, inputs: Iterable[Any], shown: str | None) -> BatchAnswers[Any]:
        items = listed(batch, inputs)
        result: BatchAnswers[Any] = BatchAnswers(batch.model)
        total = len(items) if items is not None else None
        advance, finished = progress_bar(shown is not None, shown or "", total)
        try:
            with closing(self._calls(batch, inputs, items is not None)) as messages:
                for message in messages:
                    if isinstance(message, CallsEnded):
                        return result.finish(message.report, batch.on_error)
                    if isinstance(message, CallEnded):
                        answer = answer_of(message)
                        self.count(not isinstance(answer, Exception))
                        result.add(message.item, answer)
                        advance(1)
        finally:
            finished()
        raise AssertionError("a batch ends with a message")

    def _calls(self, batch: AnswerBatch, inputs: Iterable[Any], whole: bool) -> Generator[CallMessage]:
        engine = self._running()
        messages: SimpleQueue[CallMessage | Exception] = SimpleQueue()

        async def begin() -> CallBatch:
            return CallBatch(engine, batch.call, batch.width, messages.put)

        calls = self._on_loop(lambda inner: begin())
        self._submit(calls.begin, messages.put)
        source, fed = iter(inputs), 0
        try:
            while True:
                message = messages.get()
                if isinstance(message, Exception):
                    raise message
                if isinstance(message, CallsRequested):
                    # An iterator may be slow, so its items are sent one by one.
                    given = list(islice(source, message.calls if whole else 1))
                    requests = [batch.request_or_error(item, one) for item, one in enumerate(given, fed)]
                    fed += len(requests)
                    self._check_process(engine)
                    self._submit(partial(calls.add, requests, not requests), messages.put)
                    continue
                yield message
                self._check_process(engine)
                if isinstance(message, CallsEnded):
                    return
        finally:
            if self._engine is engine:
                self._post(calls.cancel)
