"""The public API as type checkers see it: mypy and pyright read this file (`make lint`), nothing runs it.

An ignored error that stops being one is itself an error, so the wrong calls below are tested, too.
"""

from __future__ import annotations

from collections.abc import AsyncGenerator, Generator
from typing import assert_type

from sollol import (
    Answer,
    AsyncOllamaPool,
    BatchAnswers,
    BatchResult,
    ChatResponse,
    EmbeddingsResponse,
    EmbedResponse,
    GenerateResponse,
    Message,
    OllamaPool,
    RoutingMode,
    TaskPriority,
    ToolCall,
)

MESSAGES = [{"role": "user", "content": "Hello"}]


def weather(city: str) -> str:
    """Return the weather of a city."""
    return city


def synchronous(pool: OllamaPool, flag: bool) -> None:
    answer = assert_type(pool.chat("llama3.2", MESSAGES), ChatResponse)
    assert_type(answer.message, Message)
    assert_type(answer.message.content, str)
    assert_type(answer.message.tool_calls, list[ToolCall] | None)
    assert_type(answer.eval_count, int | None)
    assert_type(pool.chat("llama3.2", MESSAGES, True), Generator[ChatResponse])
    assert_type(pool.chat("llama3.2", MESSAGES, stream=True, priority=TaskPriority.HIGH), Generator[ChatResponse])
    assert_type(pool.chat("llama3.2", MESSAGES, stream=flag), ChatResponse | Generator[ChatResponse])
    pool.chat("llama3.2", MESSAGES, tools=[weather], think="high", format="json", options={"num_ctx": 8192})
    pool.chat(
        "llama3.2", MESSAGES, mode=RoutingMode.FAST, timeout=5, node=["a", "b:11434"], requires_gpu=True, hedge=False
    )
    assert_type(pool.generate("llama3.2", "Hello", raw=True).response, str)
    assert_type(pool.generate("llama3.2", "Hello", stream=True), Generator[GenerateResponse])
    assert_type(pool.embed("mxbai", ["a"], dimensions=64), EmbedResponse)
    assert_type(pool.embed("mxbai", "a").embeddings, list[list[float]])
    assert_type(pool.embeddings("mxbai", "a"), EmbeddingsResponse)
    assert_type(pool.embed_batch("mxbai", (str(n) for n in range(3)), on_error="return"), BatchResult)
    assert_type(pool.batch_chat("llama3.2", ["a", MESSAGES], task_type="code"), BatchAnswers[ChatResponse])
    assert_type(pool.batch_generate("llama3.2", ["a"], system="b"), BatchAnswers[GenerateResponse])
    assert_type(pool.pull("llama3.2"), Answer)
    assert_type(pool.pull("llama3.2", stream=True), Generator[Answer])
    assert_type(pool.list(), Answer)


async def asynchronous(pool: AsyncOllamaPool, plain: OllamaPool, flag: bool) -> None:
    assert_type(await pool.chat("llama3.2", MESSAGES), ChatResponse)
    async for part in await pool.chat("llama3.2", MESSAGES, stream=True):
        assert_type(part, ChatResponse)
    assert_type(await pool.chat("llama3.2", MESSAGES, stream=flag), ChatResponse | AsyncGenerator[ChatResponse])
    assert_type(await pool.generate("llama3.2", "Hello"), GenerateResponse)
    assert_type(await pool.embed("mxbai", "a"), EmbedResponse)
    assert_type(await pool.embed_batch("mxbai", ["a"]), BatchResult)
    assert_type(await pool.create("mine", stream=True, from_="llama3.2"), AsyncGenerator[Answer])
    assert_type(await plain.chat_async("llama3.2", MESSAGES), ChatResponse)
    assert_type(await plain.generate_async("llama3.2", "Hello", stream=True), AsyncGenerator[GenerateResponse])
    assert_type(await plain.embed_async("mxbai", "a"), EmbedResponse)


def wrong(pool: OllamaPool) -> None:
    pool.chat("llama3.2", MESSAGES, temperatur=1)  # type: ignore[call-overload]
    pool.chat("llama3.2", MESSAGES, priority="high")  # type: ignore[call-overload]
    pool.generate("llama3.2", "Hello", tools=[weather])  # type: ignore[call-overload]
    pool.embed("mxbai", "a", format="json")  # type: ignore[call-arg]
    pool.embed_batch("mxbai", [1, 2])  # type: ignore[list-item]
