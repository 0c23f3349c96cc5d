"""Decode the fields of requests that decide. Apart from their users, because mypyc cannot compile msgspec Structs."""

from __future__ import annotations

from typing import Any

import msgspec

from sollol.backends.decoding import json_reader


class OllamaFields(msgspec.Struct, gc=False):
    """The fields of `/api/chat` and `/api/generate`."""

    model: str = ""
    stream: bool | None = None
    messages: list[dict[str, Any]] = []
    options: dict[str, Any] | None = None
    format: Any = None
    prompt: str | None = None
    system: str | None = None
    suffix: str | None = None
    shift: Any = None
    keep_alive: Any = None


class OpenAIFields(msgspec.Struct, gc=False):
    """The fields of the routes below `/v1`."""

    model: str = ""
    stream: bool | None = None
    messages: list[dict[str, Any]] = []
    max_tokens: Any = None  # a value of a wrong type is left to a node to refuse
    max_output_tokens: Any = None
    prompt: Any = None
    input: Any = None
    system: Any = None
    instructions: str | None = None


class EmbeddingFields(msgspec.Struct):
    """The fields of all three embedding routes."""

    model: str | None = ""
    input: Any = None
    prompt: str | None = None
    truncate: bool | None = None
    options: dict[str, Any] | None = None
    keep_alive: Any = None
    dimensions: int | None = None
    encoding_format: str | None = None


class MinimalFields(msgspec.Struct):
    """The fields of a request whose other fields cannot be read."""

    model: str | None = ""
    stream: Any = None


read_ollama = json_reader(OllamaFields)
read_openai = json_reader(OpenAIFields)
read_embedding = json_reader(EmbeddingFields)
read_minimal = json_reader(MinimalFields)
