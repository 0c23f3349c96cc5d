"""Fields of a node's answers. msgspec structures cannot be compiled, so they are apart from their use."""

from __future__ import annotations

from typing import Any

import msgspec

from sollol.backends.decoding import INT_MOST, Int, json_reader


class Timings(msgspec.Struct, gc=False):
    """The numbers of an answer, in nanoseconds, and its error."""

    total_duration: Int = 0
    load_duration: Int = 0
    prompt_eval_count: Int = 0
    prompt_eval_duration: Int = 0
    eval_count: Int = 0
    eval_duration: Int = 0
    done: bool | None = None  # always present in Ollama's answers; similar servers may omit it
    error: Any = None
    usage: Any = None  # of /v1

    def prompt_tokens(self) -> int:
        """Return the tokens of the request, under either name; 0 without a number."""
        tokens = self.usage.get("prompt_tokens") if isinstance(self.usage, dict) else 0
        return self.prompt_eval_count or (tokens if isinstance(tokens, int) and 0 < tokens <= INT_MOST else 0)


read_timings = json_reader(Timings)


class EmbedAnswer(msgspec.Struct):
    """An answer of /api/embed."""

    embeddings: list[list[float]] = []
    load_duration: Int = 0
    total_duration: Int = 0
    prompt_eval_count: Int = 0


class _Row(msgspec.Struct, gc=False):
    embedding: list[float] | str = ""


class VectorAnswer(msgspec.Struct, gc=False):
    """The vectors of an answer of any of the three routes."""

    embeddings: list[list[float]] | None = None
    embedding: list[float] | None = None
    data: list[_Row] | None = None

    def widths(self, path: str) -> list[int] | None:
        """Return the length of each vector of an answer of this route, None without vectors."""
        if path.startswith("/v1/"):
            return None if self.data is None else [len(row.embedding) for row in self.data]
        if path == "/api/embeddings":
            return None if self.embedding is None else [len(self.embedding)]
        return None if self.embeddings is None else [len(row) for row in self.embeddings]

    def rows(self) -> list[list[float]]:
        """Return the vectors that are written as numbers."""
        if self.data is not None:
            return [row.embedding for row in self.data if isinstance(row.embedding, list)]
        return self.embeddings or []


class Inputs(msgspec.Struct, gc=False):
    """The inputs and the model of a request for embeddings."""

    input: Any = None
    prompt: Any = None
    model: Any = None


read_vector_answer = json_reader(VectorAnswer)
read_inputs = json_reader(Inputs)
read_embed_answer = json_reader(EmbedAnswer)
