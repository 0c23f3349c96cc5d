"""Batches of chats and completions of AsyncOllamaPool."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import AsyncGenerator, AsyncIterable, AsyncIterator, Iterable, Iterator
from contextlib import aclosing
from itertools import islice
from typing import Any, Unpack

from sollol.answers import ChatResponse, GenerateResponse
from sollol.engine.call_batch import CallBatch, CallEnded, CallMessage, CallsEnded, CallsRequested
from sollol.pool.answer_batches import AnswerBatch, answer_of, chat_batch, generate_batch, listed
from sollol.pool.async_models import AsyncModelCalls
from sollol.pool.batch_result import BatchAnswers
from sollol.pool.call_types import ChatKeywords, GenerateKeywords


class AsyncAnswerBatches(AsyncModelCalls):
    """Send many chats or prompts to all nodes at once."""

    async def batch_chat(
        self,
        model: str,
        inputs: Iterable[Any] | AsyncIterable[Any],
        *,
        priority: int = 5,
        max_workers: int | None = None,
        on_error: str = "raise",
        **call: Unpack[ChatKeywords],
    ) -> BatchAnswers[ChatResponse]:
        """Return a ChatResponse for each item of `inputs`, in order, from all nodes at once.

        An item is a conversation (a list of messages), or a text, which is sent as one message of the user.
        `timeout` is for the whole batch, in seconds; `max_workers` is the most requests in flight, by default as many
        as the nodes have room for. `on_error="raise"`: failed items raise BatchError at the end, with all results;
        "return": they are None, with their errors in `result.errors`. Other keywords: see `chat`.
        """
        options, fields = self._split(priority, call)
        batch = chat_batch(model, options, max_workers, on_error, fields)
        result: BatchAnswers[ChatResponse] = await self._answers(batch, inputs)
        return result

    async def batch_generate(
        self,
        model: str,
        inputs: Iterable[str] | AsyncIterable[str],
        *,
        priority: int = 5,
        max_workers: int | None = None,
        on_error: str = "raise",
        **call: Unpack[GenerateKeywords],
    ) -> BatchAnswers[GenerateResponse]:
        """Return a GenerateResponse for each item of `inputs`, in order, from all nodes at once.

        An item is a prompt.
        `timeout` is for the whole batch, in seconds; `max_workers` is the most requests in flight, by default as many
        as the nodes have room for. `on_error="raise"`: failed items raise BatchError at the end, with all results;
        "return": they are None, with their errors in `result.errors`. Other keywords: see `generate`.
        """
        options, fields = self._split(priority, call)
        batch = generate_batch(model, options, max_workers, on_error, fields)
        result: BatchAnswers[GenerateResponse] = await self._answers(batch, inputs)
        return result

    async def _answers(self, batch: AnswerBatch, inputs: Iterable[Any] | AsyncIterable[Any]) -> BatchAnswers[Any]:
        items = None if isinstance(inputs, AsyncIterable) else listed(batch, inputs)
        result: BatchAnswers[Any] = BatchAnswers(batch.model)
        async with aclosing(self._calls(batch, inputs, items is not None)) as messages:
            async for message in messages:
                if isinstance(message, CallsEnded):
                    return result.finish(message.report, batch.on_error)
                if isinstance(message, CallEnded):
                    answer = answer_of(message)
                    self.count(not isinstance(answer, Exception))
                    result.add(message.item, answer)
        raise AssertionError("a batch ends with a message")

    async def _calls(
        self, batch: AnswerBatch, inputs: Iterable[Any] | AsyncIterable[Any], whole: bool
    ) -> AsyncGenerator[CallMessage]:
        engine = self._running()
        messages: deque[CallMessage] = deque()
        news = asyncio.Event()

        def post(message: CallMessage) -> None:
            messages.append(message)
            news.set()

        source = aiter(inputs) if isinstance(inputs, AsyncIterable) else iter(inputs)
        calls, fed = CallBatch(engine, batch.call, batch.width, post), 0
        calls.begin()
        try:
            while True:
                while messages:
                    message = messages.popleft()
                    if isinstance(message, CallsRequested):
                        # An iterator may be slow, so its items are sent one by one.
                        given = await _next_of(source, message.calls if whole else 1)
                        requests = [batch.request_or_error(item, one) for item, one in enumerate(given, fed)]
                        fed += len(requests)
                        calls.add(requests, not requests)
                        continue
                    yield message
                    if isinstance(message, CallsEnded):
                        return
                news.clear()
                await news.wait()
        finally:
            calls.cancel()


async def _next_of(source: Iterator[Any] | AsyncIterator[Any], count: int) -> list[Any]:
    """Return up to `count` further items."""
    if not isinstance(source, AsyncIterator):
        return list(islice(source, count))
    try:
        return [await anext(source)]
    except StopAsyncIteration:
        return []
