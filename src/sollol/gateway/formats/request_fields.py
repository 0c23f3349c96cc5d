"""The fields of requests that decide. Apart from what is done with them, which is compiled."""

from __future__ import annotations

from typing import Any

import msgspec

from sollol.backends.decoding import json_reader


class Chat(msgspec.Struct, gc=False):
    model: str = ""
    stream: bool | None = None
    messages: list[dict[str, Any]] = []
    options: dict[str, Any] | None = None
    format: Any = None
    prompt: str | None = None
    system: str | None = None
    suffix: str | None = None
    keep_alive: Any = None


class OpenAI(msgspec.Struct, gc=False):
    model: str = ""
    stream: bool | None = None
    messages: list[dict[str, Any]] = []
    max_tokens: Any = None  # a value of a wrong type is left to a node to refuse
    max_output_tokens: Any = None
    prompt: Any = None
    input: Any = None
    system: Any = None
    instructions: str | None = None


class Embedding(msgspec.Struct):
    """The fields of all three embedding routes."""

    model: str | None = ""
    input: Any = None
    prompt: str | None = None
    truncate: bool | None = None
    options: dict[str, Any] | None = None
    keep_alive: Any = None
    dimensions: int | None = None
    encoding_format: str | None = None


class Bare(msgspec.Struct):
    model: str | None = ""
    stream: Any = None


read_chat = json_reader(Chat)
read_openai = json_reader(OpenAI)
read_embedding = json_reader(Embedding)
read_bare = json_reader(Bare)
