"""The routes that are no inference, against what a real Ollama answered: through the gateway to one node.

Compared are status, content type, the shape of the JSON (keys in order, types), every error text and how it ended. What
the gateway adds (`node`, `nodes`) is left out of the comparison, and must be the only thing that is.
"""

from __future__ import annotations

import asyncio
import json
from typing import Any

import pytest

from sollol.sim.serve import sim_cluster
from tests.gateway.stage import gateway_over
from tests.sim.test_transcripts import CASES, compare_bodies, prepared, recorded_text
from tests.sim.wire import Answer, ask

ROUTES = (
    "/", "/api/version", "/api/status", "/api/tags", "/api/ps", "/api/show", "/api/me", "/api/copy", "/api/create",
    "/api/delete", "/api/pull", "/api/push", "/api/nothing", "/v1/models",
)  # fmt: skip
OURS = [
    case
    for case, found in CASES.items()
    if found["request"]["path"] in ROUTES or found["request"]["path"].startswith(("/api/blobs/", "/v1/models/"))
]
# A change that a node answers with an empty body is answered with what became of it on each node.
TOLD = ("copy", "delete", "delete-derived")
NO_CHARSET = ("unknown-route",)
NO_BODY = ("host-foreign", "cors-foreign")


def replay(case: str) -> Answer:
    request = CASES[case]["request"]
    headers = {name: value for name, value in request["headers"].items() if name != "Content-Length"}
    if case == "host-foreign":
        headers["Host"] = "example.org"
    body = request["body"]
    data = body.encode() if isinstance(body, str) else body
    with sim_cluster([prepared(case)]) as nodes, gateway_over(nodes.urls) as stage:
        return asyncio.run(ask(stage.port, request["method"], request["path"], data, headers))


def without_nodes(text: str) -> str:
    """The same JSON, lines or not, without what the gateway adds."""
    return "".join(_plain(line) + end for line, end in _lines(text))


def _lines(text: str) -> list[tuple[str, str]]:
    return [(line.rstrip("\n"), "\n" if line.endswith("\n") else "") for line in text.splitlines(keepends=True)]


def _plain(line: str) -> str:
    try:
        return json.dumps(_strip(json.loads(line)), separators=(",", ":"))
    except ValueError:
        return line


def _strip(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _strip(part) for key, part in value.items() if key not in ("node", "nodes")}
    return [_strip(part) for part in value] if isinstance(value, list) else value


def test_every_such_transcript_is_replayed() -> None:
    assert len(OURS) >= 35
    assert {"pull-offline", "blob-bad-digest", "show-verbose", "v1-model", "host-foreign"} <= set(OURS)


@pytest.mark.parametrize("case", OURS)
def test_answers_like_the_real_one(case: str) -> None:
    want, got = CASES[case], replay(case)
    assert got.status == want["status"]
    if case in TOLD:
        told = got.json()
        assert told["status"] == "success"
        assert list(told["nodes"].values()) == ["success"]
        return
    found = got.headers.get("Content-Type", "")
    if case not in NO_BODY:
        assert (found.partition(";")[0] if case in NO_CHARSET else found) == want["headers"].get("Content-Type")
    assert got.ended == want["ended"]
    if case == "host-foreign":  # where a node says nothing, the gateway names the setting
        assert b"allowed_hosts" in got.body
    elif want["request"]["method"] != "HEAD":
        compare_bodies(case, without_nodes(got.body.decode()))


@pytest.mark.parametrize(
    "case", ["root", "version", "status", "me", "show-missing", "show-empty", "copy-missing", "ps-empty"]
)
def test_what_says_nothing_of_many_nodes_is_said_in_the_same_bytes(case: str) -> None:
    assert replay(case).body.decode() == recorded_text(case)


@pytest.mark.parametrize("case", ["show", "show-embed", "show-verbose"])
def test_a_model_is_shown_byte_for_byte(case: str) -> None:
    request = CASES[case]["request"]
    with sim_cluster([prepared(case)]) as nodes, gateway_over(nodes.urls) as stage:
        port = int(nodes.urls[0].rpartition(":")[2])
        direct, through = (asyncio.run(ask(to, "POST", "/api/show", request["body"])) for to in (port, stage.port))
    assert through.body == direct.body
