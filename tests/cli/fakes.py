"""A pool of the same shape as OllamaPool, without nodes: vectors are hashes, answers come out of order."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import numpy as np

from sollol.errors import ResponseError

DIM = 8


def vector_of(text: str, dim: int = DIM) -> Any:
    seed = int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "little")
    row = np.random.default_rng(seed).standard_normal(dim).astype(np.float32)
    return row / np.linalg.norm(row)


class FakePool:
    """`asked` is every text it was given. `stop_after` results it raises `error`; texts that contain `refuses`
    are refused."""

    def __init__(
        self,
        *,
        stop_after: int | None = None,
        error: Callable[[], BaseException] = KeyboardInterrupt,
        refuses: str = "",
        status: int = 400,
        dim: int = DIM,
    ) -> None:
        self.asked: list[str] = []
        self.stop_after, self.error, self.refuses, self.status, self.dim = stop_after, error, refuses, status, dim

    def __enter__(self) -> FakePool:
        return self

    def __exit__(self, *exc: object) -> None: ...

    def embed_stream(
        self, model: str, inputs: Iterable[str], *, priority: int = 5, on_error: str = "raise"
    ) -> Iterator[tuple[int, Any]]:
        waiting: list[tuple[int, str]] = []
        done = 0
        for pair in enumerate(inputs):
            self.asked.append(pair[1])
            waiting.append(pair)
            if len(waiting) < 4:
                continue
            for index, text in reversed(waiting):
                yield self._answer(index, text)
                done += 1
                if done == self.stop_after:
                    raise self.error()
            waiting = []
        for index, text in waiting:
            yield self._answer(index, text)

    def _answer(self, index: int, text: str) -> tuple[int, Any]:
        if self.refuses and self.refuses in text:
            return index, ResponseError("the input length exceeds the context length", self.status)
        return index, vector_of(text, self.dim)

    def embed(self, model: str, text: str) -> dict[str, Any]:
        return {"embeddings": [vector_of(text, self.dim).tolist()]}

    def get_stats(self) -> dict[str, Any]:
        row = {"host": "a:1", "available": True, "active_requests": 1, "batch_throughput": 9.0, "items": 3}
        return {"node_performance": {"a:1": row}}
