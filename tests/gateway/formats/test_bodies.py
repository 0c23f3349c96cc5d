"""A request is decided and sent on by one reading: a key for one model reaches no other by another spelling."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import httpx
import pytest
from backports import zstd
from hypothesis import given
from hypothesis import strategies as st

from sollol.backends.go_json import fold, normalised
from sollol.core.types import canonical_model
from sollol.gateway.auth.keys import Key, Keyring, hash_of
from sollol.sim import ModelSpec, sim_cluster
from sollol.sim.serve import Cluster
from tests.gateway.stage import Stage, gateway_over, talker

TOKEN, ADMIN = "a-key-for-one-model", "a-key-for-everything"
HEADERS = {"Authorization": f"Bearer {TOKEN}"}
PATHS = (
    "/api/chat", "/api/generate", "/api/embed", "/api/embeddings", "/api/show", "/v1/chat/completions",
    "/v1/completions", "/v1/embeddings", "/v1/messages", "/v1/responses", "/api/not-known-here",
)  # fmt: skip
NAMES = ('"Model"', '"MODEL"', '"\\u004dodel"', '"model"', '"mod\\u0045l"')


@pytest.fixture(scope="module")
def scene() -> Iterator[tuple[Stage, Cluster]]:
    models = (ModelSpec("mine", size_bytes=1_000_000), ModelSpec("secret", size_bytes=1_000_000))
    keys = [Key("one", hash_of(TOKEN), app="one", models=("mine",)), Key("all", hash_of(ADMIN), app="all", admin=True)]
    with (
        sim_cluster([talker(1, 5000.0, models=models, loaded=("mine", "secret"))]) as nodes,
        gateway_over(nodes.urls, keyring=Keyring(keys, required=True)) as stage,
    ):
        yield stage, nodes


@pytest.mark.parametrize("path", PATHS)
@pytest.mark.parametrize("name", NAMES)
def test_no_other_model_by_another_spelling(scene: tuple[Stage, Cluster], path: str, name: str) -> None:
    stage, _ = scene
    more = '"messages":[{"role":"user","content":"a"}],"prompt":"a","input":"a","max_tokens":2,"stream":false'
    body = f'{{"model":"mine",{more},{name}:"secret"}}'
    with stage.client() as client:
        answer = client.post(path, content=body, headers=HEADERS)
        assert answer.status_code == 403, answer.text
        other = client.post(path, content=f'{{{name}:"secret",{more},"model":"mine"}}', headers=HEADERS)
    assert other.status_code != 403
    assert "secret" not in other.text


def test_an_unload_is_one_for_the_node_too(scene: tuple[Stage, Cluster]) -> None:
    """What the gateway counts as an unload, the node does not answer as a chat."""
    stage, _ = scene
    body = b'{"model":"mine","keep_alive":0,"Messages":[{"role":"user","content":"a"}],"Stream":false}'
    with stage.client() as client:
        answer = client.post("/api/chat", content=body, headers=HEADERS).json()
    assert answer["done_reason"] != "unload"
    assert answer["message"]["content"]


@pytest.mark.parametrize("path", ["/api%2Fchat", "/%61pi/chat", "/api/chat%2F..%2Fchat"])
def test_no_other_path_by_another_spelling(scene: tuple[Stage, Cluster], path: str) -> None:
    stage, _ = scene
    with stage.client() as client:
        refused = client.post(path, json={"model": "secret", "messages": []}, headers=HEADERS)
        assert refused.status_code in (403, 307)
        assert client.post("/%61pi/delete", json={"model": "mine"}, headers=HEADERS).status_code in (403, 405)


def test_a_request_without_a_model_needs_an_admin_key(scene: tuple[Stage, Cluster]) -> None:
    stage, _ = scene
    with stage.client() as client:
        assert client.get("/api/not-known-here", headers=HEADERS).status_code == 403
        assert client.get("/api/not-known-here").status_code == 401
        answer = client.get("/api/not-known-here", headers={"Authorization": f"Bearer {ADMIN}"})
    assert (answer.status_code, answer.text) == (404, "404 page not found")


def test_forms_are_read_once(scene: tuple[Stage, Cluster]) -> None:
    stage, _ = scene
    path, file = "/v1/audio/transcriptions", {"file": ("a.wav", b"RIFF")}
    with stage.client() as client:
        good = client.post(path, data={"model": "mine"}, files=file, headers=HEADERS)
        assert "no model for sound" in good.text  # of the simulated node
        assert client.post(path, data={"model": "secret"}, files=file, headers=HEADERS).status_code == 403
        assert client.post(path, data={"model": ["mine", "secret"]}, files=file, headers=HEADERS).status_code == 400
        in_query = client.post(f"{path}?model=secret", data={"model": "mine"}, files=file, headers=HEADERS)
        assert in_query.status_code == 400


@pytest.mark.parametrize("body", [b'{"model":"mine","input":"a","max_output_tokens":2}', b"x" * 9_000_000])
def test_zstd(scene: tuple[Stage, Cluster], body: bytes) -> None:
    stage, _ = scene
    with stage.client() as client:
        headers = {**HEADERS, "Content-Encoding": "zstd"}
        answer = client.post("/v1/responses", content=zstd.compress(body), headers=headers)
        broken = client.post("/v1/responses", content=zstd.compress(body)[:-3], headers=headers)
    assert answer.status_code == (200 if len(body) < 100 else 413)
    assert broken.status_code in (400, 413)


def test_it_is_read_as_go_reads() -> None:
    assert json.loads(normalised('{"\u017ftream":1,"\u212aEEP_alive":2}'.encode())) == {"stream": 1, "keep_alive": 2}
    assert normalised(b'{"a":1}{"a":2}') == b'{"a":1}'
    assert json.loads(normalised(b'{"Options":{"a":1},"options":{"b":2}}')) == {"options": {"a": 1, "b": 2}}
    assert json.loads(normalised(b'{"model":"a","Model":null}')) == {"model": "a"}
    assert json.loads(normalised(b'{"a":"\\ud83d","b":"\\\\ud83d","c":"\\ud83d\\ude00"}')) == {
        "a": "\ufffd",
        "b": "\\ud83d",
        "c": "\U0001f600",
    }


values: Any = st.recursive(st.none() | st.booleans() | st.integers(-9, 9) | st.text(max_size=4), st.lists, max_leaves=4)


@given(st.lists(st.tuples(st.sampled_from(["model", "Model", "mODEL", "stream", "Stream", "x"]), values), max_size=6))
def test_names_are_once_and_the_last_value_wins(pairs: list[tuple[str, Any]]) -> None:
    body = "{" + ",".join(f"{json.dumps(name)}:{json.dumps(value)}" for name, value in pairs) + "}"
    want: dict[str, Any] = {}
    exact = all(name == name.lower() for name, _ in pairs)
    for name, value in pairs:
        if exact or value is not None or fold(name) not in want or fold(name) != "model":
            want[fold(name)] = value
    found = normalised(body.encode())
    assert json.loads(found) == want
    assert normalised(found) == found


def test_names_of_one_model() -> None:
    same = ("tiny", "Tiny:latest", "library/TINY", "registry.ollama.ai/library/tiny:latest", " tiny ", "tiny:local")
    assert {canonical_model(name) for name in same} == {"tiny:latest"}
    assert canonical_model("hf.co/Some/Model-GGUF:Q4_K_M") == canonical_model("hf.co/some/model-gguf:q4_k_m")
    assert canonical_model("other/tiny") != "tiny:latest"
    assert canonical_model("gpt-oss:20b:cloud") == canonical_model("gpt-oss:20b-cloud")


def test_a_cloud_model_that_no_node_lists_goes_to_a_node() -> None:
    with sim_cluster([talker(1)]) as nodes, gateway_over(nodes.urls) as stage:
        for path in ("/api/chat", "/v1/chat/completions", "/api/show"):
            httpx.post(stage.url + path, json={"model": "gpt-oss:20b-cloud", "messages": []})
            assert nodes.nodes[0].counters.requests[f"POST {path}"] == 1
