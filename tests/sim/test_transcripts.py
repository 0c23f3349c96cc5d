"""The simulated node against what a real one answered, case by case, over real HTTP.

Compared are status, framing, the headers that mean something, the shape of the JSON (keys in order, types), done_reason
and every error text. Not compared are the words said, numbers measured, and times.
"""

from __future__ import annotations

import asyncio
import json
from itertools import groupby
from pathlib import Path
from typing import Any

import pytest

from sollol.sim import ModelSpec, NodeSpec, SimNode, serve
from tests.sim.wire import Answer, ask

FOLDER = Path(__file__).parent.parent / "fixtures" / "ollama-transcripts"
CASES = {path.stem: json.loads(path.read_text()) for path in sorted(FOLDER.glob("*.json"))}

NOT_COMPARED = {
    "chat-unknown-option": "its answer ended after no word at all, by chance; that it is ignored is in test_routes",
}

TINY = (
    ModelSpec(
        "tiny-embed", "embed", 574_834, context_length=512, parameters="247K",
        digest="4e0b6015a837777afeece574d4874cff63c942a3f956f69071c8ba4aac5bf704",
        modified_at="2026-11-23T22:09:22.539412019Z",
    ),
    ModelSpec(
        "tiny-slow", size_bytes=57_863_511, dim=512, parameters="28.91M", mean_words=1e9,
        digest="60569429501bdedb261772f862c903390656116da3f55737bf5c78e4b83ed986",
        modified_at="2026-11-23T22:09:22.862771734Z",
    ),
    ModelSpec(
        "tiny-chat", size_bytes=458_933, parameters="221K", mean_words=1e9,
        digest="6bd435d72173bd122c8aa2bd26b84765bc49be4d656b41b17a9123339919aec8",
        modified_at="2026-11-23T22:09:22.475795657Z",
    ),
)  # fmt: skip
LONG = ModelSpec("tiny-long", size_bytes=172_000_000, mean_words=1e9)
COPY, DERIVED = TINY[2].renamed("tiny-copy:latest"), TINY[2].renamed("tiny-derived:latest")

MEANT = (
    "Content-Type", "Transfer-Encoding", "Allow", "Vary", "Cache-Control", "Access-Control-Allow-Origin",
    "Access-Control-Allow-Methods", "Access-Control-Allow-Headers", "Access-Control-Max-Age",
)  # fmt: skip


def prepared(case: str) -> SimNode:
    """A node in the state that the case was recorded in."""
    models = (*TINY, LONG) if CASES[case]["request"]["path"] not in ("/api/tags", "/v1/models") else TINY
    loaded = () if case == "ps-empty" else ("tiny-chat",)
    busy = case == "busy-503"
    node = SimNode(
        NodeSpec(models=models, version="0.0.0", loaded=() if busy else loaded, max_queue=-1 if busy else 512)
    )
    if case in ("delete", "delete-derived"):
        node.disk |= {model.name: model for model in (COPY, DERIVED)}
    if case in ("late-error-stream", "late-error-v1", "runner-killed-nostream"):
        node.late_error_after(70)
    if case == "node-killed-stream":
        node.cut_after(60)
    return node


async def replay(case: str) -> Answer:
    request = CASES[case]["request"]
    served = await serve(prepared(case))
    try:
        headers = {k: v for k, v in request["headers"].items() if k != "Content-Length"}
        if case == "host-foreign":
            headers["Host"] = "example.org"
        body = request["body"]
        data = body.encode() if isinstance(body, str) else body
        return await ask(served.port, request["method"], request["path"], data, headers)
    finally:
        await served.close()


def shape(value: Any) -> Any:
    """Keys in order and types; lists as the shapes that occur in them."""
    if isinstance(value, dict):
        return {key: shape(part) for key, part in value.items()}
    if isinstance(value, list):
        return [form for form, _ in groupby(shape(part) for part in value)]
    if isinstance(value, bool) or value is None:
        return value
    return "number" if isinstance(value, int | float) else "text"


def documents(text: str) -> list[tuple[str, Any]]:
    """The JSON documents of a body: one, lines, or events with their names; other text as it is."""
    found: list[tuple[str, Any]] = []
    name = ""
    for line in text.splitlines():
        if line.startswith("event: "):
            name = line[7:]
        elif line == "data: [DONE]" or not line:
            found += [("[DONE]", None)] if line else []
        else:
            data = line.removeprefix("data: ")
            try:
                found.append((name, json.loads(data)))
            except ValueError:
                found.append((name, data))
    return found


def outline(text: str) -> list[Any]:
    """Runs of documents of the same shape count once, so answers of different length compare."""
    forms = [json.dumps([name, shape(value)]) for name, value in documents(text)]
    return [form for form, _ in groupby(forms)]


def facts(text: str) -> list[Any]:
    """What must be equal, not only alike: how it ended, and what was wrong."""
    return [
        (key, without_hosts(value[key]))
        for _, value in documents(text)
        if isinstance(value, dict)
        for key in ("error", "done_reason", "version", "status")
        if value.get(key) and key in value
    ]


def without_hosts(value: Any) -> Any:
    """Digests differ: the blobs are not those of the recorded models."""
    if isinstance(value, str) and "sha256:" in value and "mismatch" not in value:
        return value.partition("sha256:")[0]
    return value


def recorded_text(case: str) -> str:
    return "".join(chunk[1] for chunk in CASES[case]["chunks"])


def shortened(text: str) -> bool:
    return "characters left out" in text


@pytest.mark.parametrize("case", [case for case in CASES if case not in NOT_COMPARED])
def test_answers_like_the_real_one(case: str) -> None:
    want, got = CASES[case], asyncio.run(replay(case))

    assert got.status == want["status"]
    for name in MEANT:
        assert got.headers.get(name) == want["headers"].get(name), name
    assert ("Content-Length" in got.headers) == ("Content-Length" in want["headers"])
    if want["request"]["method"] == "HEAD" and want["request"]["path"] not in ("/api/tags", "/api/version"):
        assert got.headers["Content-Length"] == want["headers"]["Content-Length"]
    if want["ended"] != "left by the client":
        assert got.ended == want["ended"]
        compare_bodies(case, got.body.decode())


def compare_bodies(case: str, got: str) -> None:
    want = recorded_text(case)
    if shortened(want):
        return  # no longer JSON
    assert facts(got) == facts(want)
    assert outline(got) == outline(want)
    if case.startswith(("embed", "v1-embeddings", "v1")) or "error" in want[:12]:
        assert got.endswith("\n") == want.endswith("\n")


@pytest.mark.parametrize("case", [c for c in CASES if CASES[c]["ended"] == "complete" and c not in NOT_COMPARED])
def test_each_chunk_is_one_line_or_event(case: str) -> None:
    """A client that reads chunk by chunk sees the same cuts: last event and [DONE] come in one."""
    if len(CASES[case]["chunks"]) > 1:
        got = asyncio.run(replay(case))
        want_last, got_last = CASES[case]["chunks"][-1][1], got.chunks[-1].decode()
        assert outline(got_last) == outline(want_last)
        assert len(documents(got.chunks[0].decode())) == len(documents(CASES[case]["chunks"][0][1]))


def test_exact_bodies() -> None:
    """Where nothing is measured, the bytes are the same."""
    for case in ("chat-load", "version", "status", "embed-empty-list", "embeddings-empty", "tags"):
        got, want = asyncio.run(replay(case)).body.decode(), recorded_text(case)
        times = [document.get("created_at") for _, document in documents(want)]
        if times[0] is None:
            assert got == want, case


def test_the_list_of_exceptions_is_short_and_true() -> None:
    assert len(NOT_COMPARED) <= 6
    assert set(NOT_COMPARED) <= set(CASES)
