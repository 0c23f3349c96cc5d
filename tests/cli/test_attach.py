"""`top` and `explain` against a gateway: with the key that it wants, and what to do where it is another."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from typer.testing import Result

from sollol import UnifiedDashboard
from sollol.cli import attach
from sollol.core.endpoint import Endpoint
from sollol.gateway.auth.keys import Key, Keyring, hash_of
from sollol.pool.sync import OllamaPool
from sollol.sim import free_port
from sollol.sim.serve import Cluster, sim_cluster
from sollol.transport.base import Call, Reply
from sollol.transport.http import HttpTransport
from tests.gateway.stage import MODEL, Stage, gateway_over, talker

Run = Callable[..., Result]
ADMIN, PLAIN = "boss-0123456789abcdef", "ann-0123456789abcdef"
KEYS = [Key("boss", hash_of(ADMIN), app="boss", admin=True), Key("ann", hash_of(PLAIN), app="ann")]


@pytest.fixture(autouse=True)
def _nothing_else(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(attach, "LOCAL", (f"http://127.0.0.1:{free_port()}",))
    monkeypatch.delenv("SOLLOL_API_KEY", raising=False)


@pytest.fixture(scope="module")
def nodes() -> Iterator[Cluster]:
    with sim_cluster([talker(1)]) as found:
        yield found


@pytest.fixture(scope="module")
def keyed(nodes: Cluster) -> Iterator[Stage]:
    with gateway_over(nodes.urls, keyring=Keyring(KEYS, required=True)) as stage:
        yield stage


def asked(stage: Stage, token: str = "") -> str:
    """The number of a call."""
    headers = {"Authorization": f"Bearer {token}"} if token else {}
    body = {"model": MODEL, "prompt": "x", "stream": False, "options": {"num_predict": 2}}
    with stage.client(headers=headers) as client:
        answer = client.post("/api/generate", json=body)
    assert answer.status_code == 200
    return answer.headers["x-sollol-request-id"]


def test_a_gateway_without_keys(run: Run, nodes: Cluster, monkeypatch: pytest.MonkeyPatch) -> None:
    with gateway_over(nodes.urls) as stage:
        number = asked(stage)
        assert json.loads(run("top", "--json", "--url", stage.url).stdout)["recent"][0]["id"] == int(number)
        assert f"Call {number}: generate" in run("explain", number, "--url", stage.url).stdout
        assert run("top", "--json", "--url", stage.url, "--api-key", "any").stdout  # a key that nobody wants harms none
        monkeypatch.setattr(attach, "LOCAL", (stage.url,))
        assert json.loads(run("top", "--json").stdout)["recent"]


def test_the_key_comes_from_the_option_or_the_environment(
    run: Run, keyed: Stage, monkeypatch: pytest.MonkeyPatch
) -> None:
    number = asked(keyed, PLAIN)
    told = json.loads(run("top", "--json", "--url", keyed.url, "--api-key", ADMIN).stdout)
    assert told["recent"][0]["id"] == int(number)
    monkeypatch.setenv("SOLLOL_API_KEY", f"{ADMIN}\n")  # as `$(cat FILE)` in some shells
    assert json.loads(run("top", "--json", "--url", keyed.url).stdout)["recent"]
    assert "1 of 1 nodes up" in run("top", "--once", "--url", keyed.url).stdout
    assert f"Call {number}: generate" in run("explain", number, "--url", keyed.url).stdout
    own = json.loads(run("top", "--json", "--url", keyed.url, "--api-key", PLAIN).stdout)  # the option counts
    assert (own["app_name"], own["can_act"]) == ("ann", False)


def test_a_key_without_admin_rights_sees_its_own_application(run: Run, keyed: Stage) -> None:
    own, others = asked(keyed, PLAIN), asked(keyed, ADMIN)
    found = json.loads(run("top", "--json", "--url", keyed.url, "--api-key", PLAIN).stdout)
    numbers = [row["id"] for row in found["recent"]]
    assert int(own) in numbers
    assert int(others) not in numbers
    assert run("top", "--once", "--url", keyed.url, "--api-key", PLAIN).stdout.startswith(
        "SOLLOL  ann  1 of 1 nodes up"
    )


def test_a_key_explains_its_own_calls(run: Run, keyed: Stage) -> None:
    own, others = asked(keyed, PLAIN), asked(keyed, ADMIN)
    assert f"Call {own}: generate" in run("explain", own, "--url", keyed.url, "--api-key", PLAIN).stdout
    unknown = run("explain", others, "--url", keyed.url, "--api-key", PLAIN, code=1).stderr
    assert f"no request of this key is called '{others}'" in unknown


@pytest.mark.parametrize("command", [("top", "--once"), ("explain", "1")])
def test_a_refusal_says_what_to_do(run: Run, keyed: Stage, command: tuple[str, ...]) -> None:
    wrong = "wrong-0123456789abcdef"
    for words, said in (
        ((), "requires a key. Give it in SOLLOL_API_KEY, or with --api-key; `sollol keys add NAME --admin`"),
        (("--api-key", wrong), "does not accept this key; it may have been revoked. Check --api-key or SOLLOL_API_KEY"),
        (("--api-key", ""), "requires a key"),
    ):
        told = run(*command, "--url", keyed.url, *words, code=1)
        assert f"{keyed.url} {said}" in told.stderr
        assert "no dashboard" not in told.stderr
        assert wrong not in told.output


def test_what_cannot_be_a_key_is_not_repeated(run: Run, keyed: Stage) -> None:
    for text in ("sk secret", "sk-secret\r\nX-Evil: 1", "sk-s€cret"):
        told = run("top", "--once", "--url", keyed.url, "--api-key", text, code=2)
        assert "SOLLOL_API_KEY is not a key" in told.stderr
        assert "cret" not in told.output


def test_a_gateway_of_this_machine_that_wants_a_key_is_told_of_and_the_nodes_are_shown(
    run: Run, keyed: Stage, nodes: Cluster, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(attach, "LOCAL", (keyed.url,))
    monkeypatch.setenv("SOLLOL_NODES", nodes.urls[0])
    told = run("top", "--json")
    assert json.loads(told.stdout)["watching"]
    assert "requires a key" in told.stderr
    assert "the nodes themselves are shown" in told.stderr
    assert "requires a key" in run("explain", 1, code=1).stderr
    assert "watching" not in json.loads(run("top", "--json", "--api-key", ADMIN).stdout)


def test_a_name_that_is_not_answered_to(run: Run, keyed: Stage, monkeypatch: pytest.MonkeyPatch) -> None:
    import socket

    def here(host: str, *given: Any, **more: Any) -> Any:
        return real("127.0.0.1" if host == "gate.example" else host, *given, **more)

    real = socket.getaddrinfo
    monkeypatch.setattr(socket, "getaddrinfo", here)
    told = run("top", "--once", "--url", f"http://gate.example:{keyed.port}", code=1).stderr
    assert "does not answer to this name" in told
    assert f"ssh -L {keyed.port}:127.0.0.1:{keyed.port}" in told


def test_no_dashboard_is_sent_a_key(run: Run, nodes: Cluster, monkeypatch: pytest.MonkeyPatch) -> None:
    """Another program may listen there. It is asked whether it is a gateway, without."""
    sent: list[Call] = []
    send = HttpTransport.send

    async def noted(self: HttpTransport, node: Endpoint, call: Call) -> Reply:
        sent.append(call)
        return await send(self, node, call)

    monkeypatch.setattr(HttpTransport, "send", noted)
    with OllamaPool(list(nodes)) as pool, UnifiedDashboard(pool, 0) as dashboard:
        run("top", "--once", "--url", dashboard.url, "--api-key", ADMIN)
        run("top", "--once", "--url", nodes.urls[0], "--api-key", ADMIN, code=1)
    assert {"/api/snapshot", "/sollol/health"} <= {call.path for call in sent}
    assert ADMIN not in str(sent)


def test_a_failed_call_is_explained(run: Run) -> None:
    with sim_cluster([talker(1)]) as nodes, gateway_over(nodes.urls) as stage, stage.client() as client:
        nodes.do(lambda found: found[0].error_rate(1.0, status=500))
        body = {"model": MODEL, "prompt": "x", "stream": False}
        failed = client.post("/api/generate", json=body)
        assert failed.status_code >= 500
        number = failed.headers["x-sollol-request-id"]
        told = run("explain", number, "--url", stage.url).stdout
        assert "error" in told
        assert "Answers of the nodes" in told
        assert f"{nodes.urls[0].removeprefix('http://')}: failed: " in told
        assert client.get(f"/sollol/explain/{number}").json()["tried"]
        split = client.post("/api/embed", json={"model": "no-such-model", "input": ["x"] * 80})
        assert split.status_code == 404
