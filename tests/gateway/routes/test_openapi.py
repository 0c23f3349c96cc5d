"""The gateway's own routes answer as their OpenAPI says, whatever they are asked: schemathesis tries."""

from __future__ import annotations

import json
import subprocess
import sys
import threading
from functools import partial
from typing import Any

import schemathesis

from sollol.gateway.routes import openapi
from sollol.sim.serve import sim_cluster
from tests.gateway.stage import Stage, gateway_over, talker, until

KEYWORDS = {"type", "enum", "const", "$ref", "anyOf"}


def test_the_published_schema_holds() -> None:
    with sim_cluster(1) as nodes, gateway_over(nodes.urls) as stage:
        command = [sys.executable, "-m", "schemathesis.cli", "run", f"{stage.url}/sollol/openapi.json"]
        command += ["--max-examples", "25", "--generation-deterministic", "--no-color", "--warnings", "off"]
        found = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)
    assert found.returncode == 0, found.stdout + found.stderr


def ask(stage: Stage, name: str, tokens: int) -> None:
    body: dict[str, Any] = {"model": "llama3.2", "messages": [{"role": "user", "content": "x"}], "stream": False}
    with stage.client() as client:
        body["options"] = {"num_predict": tokens}
        assert client.post("/api/chat", json=body, headers={"X-Sollol-Request-Id": name}).status_code == 200


def test_answers_with_something_in_them_are_as_published() -> None:
    """With one request done, one running, one waiting, and a node that is down."""

    def in_snapshot(gateway: Any, name: str) -> Any:
        return gateway.pool.snapshot()[name]

    with sim_cluster([talker(1, 20.0), talker(2)]) as nodes, gateway_over(nodes.urls) as stage:
        nodes.do(lambda found: found[1].die())
        ask(stage, "done", 1)
        nodes.do(lambda found: found[0].slow(1000.0))
        threads = [threading.Thread(target=ask, args=(stage, name, 5)) for name in ("running", "waiting")]
        for thread, name in zip(threads, ("running", "waiting"), strict=True):
            thread.start()
            until(partial(stage.look, partial(in_snapshot, name=name)))
        schema = schemathesis.openapi.from_url(f"{stage.url}/sollol/openapi.json")
        for path in ("/sollol/health", "/sollol/ready", "/sollol/nodes", "/sollol/snapshot"):
            told = schema[path]["GET"].Case().call_and_validate().json()
        assert [len(told[name]) for name in ("nodes", "waiting", "running", "recent")] == [2, 1, 1, 1]
        for path in ("/sollol/explain/{id}", "/sollol/queue/{id}"):
            for name in ("done", "running", "waiting"):
                answer = schema[path]["GET"].Case(path_parameters={"id": name}).call_and_validate()
                assert (answer.status_code, answer.json()["state"]) == (200, name)
        nodes.do(lambda found: found[0].slow(1.0))
        for thread in threads:
            thread.join()


def test_every_schema_says_what_it_is_and_is_used() -> None:
    text = json.dumps(openapi.document(True))
    for name, schema in openapi.schemas().items():
        assert f'"#/components/schemas/{name}"' in text
        for part in schema.get("properties", {}).values():
            assert KEYWORDS & part.keys(), (name, part)


def test_keys_are_published() -> None:
    assert openapi.document(True)["security"] == [{"key": []}]
    assert openapi.document(False)["security"] == []
    assert openapi.document(True)["paths"]["/sollol/health"]["get"]["security"] == []
