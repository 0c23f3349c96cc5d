"""The fields of a node's answers that are read. Apart from what is done with them, which is compiled."""

from __future__ import annotations

from typing import Any

import msgspec


class Timings(msgspec.Struct, gc=False):
    """The numbers of an answer, in nanoseconds, and whether it was an error. Everything else is passed over."""

    load_duration: int = 0
    prompt_eval_count: int = 0
    prompt_eval_duration: int = 0
    eval_count: int = 0
    eval_duration: int = 0
    done: bool | None = None  # Ollama always says; servers that only resemble it may not
    error: Any = None


read_timings = msgspec.json.Decoder(Timings).decode


class EmbedAnswer(msgspec.Struct):
    embeddings: list[list[float]] = []
    load_duration: int = 0
    total_duration: int = 0
    prompt_eval_count: int = 0


read_embed_answer = msgspec.json.Decoder(EmbedAnswer).decode
