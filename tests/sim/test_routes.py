"""What the transcripts do not show: tools, thinking, formats, and the corners of requests."""

from __future__ import annotations

import base64
import json
import math
import struct
from dataclasses import replace
from typing import Any

import pytest

from sollol.transport.base import Call
from tests.sim.lab import CHAT, EMBED, Lab, in_lab, lines, now, spec

CLEVER = replace(CHAT, name="clever", tools=True, thinking=True, mean_words=60)
READY = spec(models=(CHAT, EMBED, CLEVER), loaded=("chat", "embed", "clever"))
USER = [{"role": "user", "content": "what is the weather"}]
TOOL: dict[str, Any] = {
    "type": "function",
    "function": {
        "name": "weather",
        "parameters": {"type": "object", "properties": {"city": {"type": "string"}, "days": {"type": "integer"}}},
    },
}


def events(data: bytes) -> list[Any]:
    found = [line[6:] for line in data.decode().splitlines() if line.startswith("data: ")]
    return [json.loads(line) if line != "[DONE]" else line for line in found]


def test_tools_whole_and_streamed() -> None:
    async def story(lab: Lab) -> None:
        body: dict[str, Any] = {"model": "clever", "messages": USER, "tools": [TOOL], "think": False}
        _, answer = await lab.post("/api/chat", **body, stream=False)
        call = answer["message"]["tool_calls"][0]
        assert call["function"] == {"index": 0, "name": "weather", "arguments": {"city": "node", "days": 1}}
        assert answer["done_reason"] == "stop"
        first, last = await lines(await lab.open("/api/chat", body))
        assert first["message"]["tool_calls"][0]["function"] == call["function"]
        assert last["done"]

    in_lab(story, READY)


def test_a_tool_result_is_answered_with_words() -> None:
    async def story(lab: Lab) -> None:
        messages = [*USER, {"role": "tool", "content": "sunny"}]
        _, answer = await lab.post(
            "/api/chat", model="clever", messages=messages, tools=[TOOL], stream=False, think=False
        )
        assert answer["message"]["content"]

    in_lab(story, READY)


def test_tools_on_v1_and_messages() -> None:
    async def story(lab: Lab) -> None:
        _, answer = await lab.post("/v1/chat/completions", model="clever", messages=USER, tools=[TOOL])
        choice = answer["choices"][0]
        assert choice["finish_reason"] == "tool_calls"
        assert json.loads(choice["message"]["tool_calls"][0]["function"]["arguments"]) == {"city": "node", "days": 1}
        reply = await lab.open(
            "/v1/chat/completions", {"model": "clever", "messages": USER, "tools": [TOOL], "stream": True}
        )
        found = events(await reply.read())
        assert found[0]["choices"][0]["delta"]["tool_calls"]
        assert found[-2]["choices"][0]["finish_reason"] == "tool_calls"
        tool = {"name": "weather", "input_schema": TOOL["function"]["parameters"]}
        _, answer = await lab.post("/v1/messages", model="clever", messages=USER, max_tokens=5, tools=[tool])
        assert answer["stop_reason"] == "tool_use"
        assert answer["content"][-1]["input"] == {"city": "node", "days": 1}

    in_lab(story, READY)


def test_thinking_comes_before_the_answer() -> None:
    async def story(lab: Lab) -> None:
        _, answer = await lab.post("/api/chat", model="clever", messages=USER, think=True, stream=False)
        assert answer["message"]["thinking"]
        assert answer["message"]["content"]
        found = await lines(await lab.open("/api/chat", {"model": "clever", "messages": USER, "think": True}))
        assert found[0]["message"].get("thinking")
        assert "thinking" not in found[-1]["message"]
        assert "".join(line["message"]["content"] for line in found) == answer["message"]["content"]
        _, silent = await lab.post("/api/chat", model="clever", messages=USER, think=False, stream=False)
        assert "thinking" not in silent["message"]

    in_lab(story, READY)


def test_formats() -> None:
    async def story(lab: Lab) -> None:
        schema = TOOL["function"]["parameters"]
        _, answer = await lab.post("/api/chat", model="chat", messages=USER, format=schema, stream=False)
        assert json.loads(answer["message"]["content"]) == {"city": "node", "days": 1}
        assert answer["done_reason"] == "stop"
        _, answer = await lab.post("/api/generate", model="chat", prompt="x", format="json", stream=False)
        assert answer["response"] == "{}"
        wanted = {"type": "json_schema", "json_schema": {"schema": schema}}
        _, answer = await lab.post("/v1/chat/completions", model="chat", messages=USER, response_format=wanted)
        assert json.loads(answer["choices"][0]["message"]["content"]) == {"city": "node", "days": 1}

    in_lab(story, READY)


def test_the_same_words_in_every_protocol() -> None:
    async def story(lab: Lab) -> None:
        _, ollama = await lab.chat(12, "what is the weather")
        text = ollama["message"]["content"]
        _, openai = await lab.post("/v1/chat/completions", model="chat", messages=USER, max_tokens=12)
        assert openai["choices"][0]["message"]["content"] == text
        _, claude = await lab.post("/v1/messages", model="chat", messages=USER, max_tokens=12)
        assert claude["content"] == [{"type": "text", "text": text}]
        _, response = await lab.post("/v1/responses", model="chat", input="what is the weather", max_output_tokens=12)
        assert response["output"][0]["content"][0]["text"] == text
        _, completion = await lab.post("/v1/completions", model="chat", prompt="what is the weather", max_tokens=12)
        assert completion["choices"][0]["text"] == text
        parts = [{"role": "user", "content": [{"type": "text", "text": "what is the weather"}]}]
        _, openai = await lab.post("/v1/chat/completions", model="chat", messages=parts, max_tokens=12)
        assert openai["choices"][0]["message"]["content"] == text

    in_lab(story, READY)


def test_stop_words_and_unknown_options() -> None:
    async def story(lab: Lab) -> None:
        _, plain = await lab.raw(30, options={"no_such": 1})
        word = plain["response"].split()[5]
        _, stopped = await lab.raw(30, options={"stop": [word]})
        assert stopped["done_reason"] == "stop"
        assert word not in stopped["response"]

    in_lab(story, READY)


def test_base64_embeddings_are_the_same_numbers() -> None:
    async def story(lab: Lab) -> None:
        _, plain = await lab.post("/v1/embeddings", model="embed", input="a text")
        _, coded = await lab.post("/v1/embeddings", model="embed", input="a text", encoding_format="base64")
        raw = base64.b64decode(coded["data"][0]["embedding"])
        assert struct.unpack("<16f", raw) == pytest.approx(plain["data"][0]["embedding"], abs=1e-6)
        _, short = await lab.post("/api/embed", model="embed", input="a text", dimensions=4)
        assert math.hypot(*short["embeddings"][0]) == pytest.approx(1, abs=1e-5)

    in_lab(story, READY)


@pytest.mark.parametrize(
    ("value", "seconds"),
    [("90s", 90), ("1h30m", 5400), ("1.5m", 90), ("500ms", 0.5), (30, 30), (2.5, 2.5), ("0", 0), (None, 300)],
)
def test_keep_alive_spellings(value: Any, seconds: float) -> None:
    async def story(lab: Lab) -> None:
        body: dict[str, Any] = {
            "model": "chat",
            "prompt": "x",
            "raw": True,
            "stream": False,
            "options": {"num_predict": 1},
        }
        await lab.post("/api/generate", **body, **({} if value is None else {"keep_alive": value}))
        assert lab.node.runners.loaded["chat:latest"].expires_s == pytest.approx(now() + seconds)

    in_lab(story, READY)


@pytest.mark.parametrize("value", ["soon", "5", "-", "", [], True])
def test_bad_keep_alives(value: Any) -> None:
    async def story(lab: Lab) -> None:
        assert (await lab.raw(1, keep_alive=value))[0] == 400

    in_lab(story, READY)


@pytest.mark.parametrize(
    ("method", "path", "status"),
    [
        ("HEAD", "/api/blobs/sha256:" + "0" * 64, 404),
        ("HEAD", "/api/blobs/nonsense", 400),
        ("GET", "/api/nothing", 404),
        ("POST", "/api/tags", 405),
        ("GET", "/v1/models/chat", 200),
        ("GET", "/v1/models/chat%3Alatest", 200),
        ("POST", "/v1/audio/transcriptions", 400),
    ],
)
def test_statuses(method: str, path: str, status: int) -> None:
    async def story(lab: Lab) -> None:
        assert (await lab.transport.send(lab.endpoint, Call(method, path))).status == status

    in_lab(story, READY)


@pytest.mark.parametrize(
    ("header", "value", "status"),
    [
        ("Host", "10.0.0.7:11434", 200),
        ("Host", "[::1]:11434", 200),
        ("Host", "mill.local", 200),
        ("Host", "evil.example", 403),
        ("Origin", "http://localhost:3000", 200),
        ("Origin", "http://evil.example", 403),
        ("Origin", "null", 403),
    ],
)
def test_host_and_origin(header: str, value: str, status: int) -> None:
    async def story(lab: Lab) -> None:
        call = Call("GET", "/api/tags", headers=((header, value),))
        assert (await lab.transport.send(lab.endpoint, call)).status == status

    in_lab(story, READY)


@pytest.mark.parametrize("path", ["/api/generate", "/api/chat", "/api/embed", "/v1/chat/completions", "/v1/messages"])
@pytest.mark.parametrize(
    "body", [b"[]", b'"x"', b"{", b"\xff", b'{"model":3}', b'{"model":"chat","messages":[3],"prompt":3,"input":{}}']
)
def test_nonsense_is_refused_not_answered_with_a_bug(path: str, body: bytes) -> None:
    async def story(lab: Lab) -> None:
        reply = await lab.transport.send(lab.endpoint, Call("POST", path, body))
        assert 400 <= reply.status < 500
        assert b"error" in await reply.read()

    in_lab(story, READY)


def test_copies_speak_like_their_source_and_derived_models_do_not() -> None:
    async def story(lab: Lab) -> None:
        await lab.post("/api/copy", source="chat", destination="twin")
        source: dict[str, Any] = {"from": "chat"}
        await lab.post("/api/create", model="child", system="be brief", stream=False, **source)
        said = [(await lab.raw(8, model=name))[1]["response"] for name in ("chat", "twin", "child")]
        assert said[0] == said[1] != said[2]
        _, shown = await lab.post("/api/show", model="child")
        assert shown["system"] == "be brief"
        names = [model["name"] for model in (await lab.get("/api/tags"))["models"]]
        assert names[:2] == ["child:latest", "twin:latest"]

    in_lab(story, READY)
