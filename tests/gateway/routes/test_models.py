"""Changes of models on several nodes: where they go, what is told of each node, and what if some of them fail."""

from __future__ import annotations

import hashlib
import json
import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import httpx
import pytest

from sollol.gateway.routes import blobs, models
from sollol.sim import ModelSpec, NodeSpec
from sollol.sim.serve import Cluster, sim_cluster
from tests.gateway.stage import Stage, gateway_over, until

LLAMA, OTHER = ModelSpec("llama3.2", size_bytes=2_000), ModelSpec("other", size_bytes=100)
GEMMA = ModelSpec("gemma3:1b", size_bytes=800)
DATA = b"weights" * 10_000
DIGEST = "sha256:" + hashlib.sha256(DATA).hexdigest()


def node(seed: int, *have: ModelSpec, **more: Any) -> NodeSpec:
    return NodeSpec(**{"seed": seed, "models": have or (LLAMA,), "registry": (GEMMA,), **more})


@contextmanager
def standing(*specs: NodeSpec) -> Iterator[tuple[Cluster, list[str], httpx.Client, Stage]]:
    """The nodes, their names, a client of a gateway over them, and that gateway."""
    with sim_cluster(specs) as nodes, gateway_over(nodes.urls) as stage, stage.client() as client:
        yield nodes, [url.removeprefix("http://") for url in nodes.urls], client, stage


def lines(answer: httpx.Response) -> list[dict[str, Any]]:
    assert answer.status_code == 200, answer.text
    return [json.loads(line) for line in answer.text.splitlines()]


def on_disk(nodes: Cluster) -> list[set[str]]:
    return nodes.do(lambda found: [{name.removesuffix(":latest") for name in node.disk} for node in found])


def reached(nodes: Cluster, what: str) -> list[int]:
    return nodes.do(lambda found: [node.counters.requests.get(what, 0) for node in found])


# --- where a change goes ---


def test_the_query_chooses_nodes_for_every_change() -> None:
    with standing(node(1), node(2), node(3)) as (nodes, keys, client, _):
        two = f"node={keys[0]}&node={keys[2]}"
        assert set(lines(client.post(f"/api/pull?{two}", json={"model": "gemma3:1b"}))[-1]["nodes"]) == {
            keys[0],
            keys[2],
        }
        copied = client.post(f"/api/copy?node={keys[1]}", json={"source": "llama3.2", "destination": "mine"})
        assert copied.json() == {"status": "success", "nodes": {keys[1]: "success"}}
        made = client.post(f"/api/create?node={keys[0]},{keys[1]}", json={"model": "new", "from": "llama3.2"})
        assert list(lines(made)[-1]["nodes"]) == keys[:2]
        gone = client.request("DELETE", f"/api/delete?node=http://{keys[0]}", json={"model": "llama3.2"})
        assert list(gone.json()["nodes"]) == [keys[0]]
        assert client.post(f"/api/blobs/{DIGEST}?node={keys[2]}", content=DATA).status_code == 201
        assert client.head(f"/api/blobs/{DIGEST}?node={keys[2]}").status_code == 200
        assert client.head(f"/api/blobs/{DIGEST}").status_code == 404  # not on every node
        assert on_disk(nodes) == [{"gemma3:1b", "new"}, {"llama3.2", "mine", "new"}, {"llama3.2", "gemma3:1b"}]


@pytest.mark.parametrize(
    ("method", "path", "body"),
    [
        ("POST", "/api/pull", {"model": "x"}),
        ("POST", "/api/push", {"model": "x"}),
        ("POST", "/api/create", {"model": "x", "from": "llama3.2"}),
        ("POST", "/api/copy", {"source": "llama3.2", "destination": "x"}),
        ("DELETE", "/api/delete", {"model": "llama3.2"}),
        ("POST", f"/api/blobs/{DIGEST}", {}),
    ],
)
def test_a_node_that_is_none_here_is_refused_with_those_that_are(method: str, path: str, body: Any) -> None:
    with standing(node(1)) as (nodes, keys, client, _):
        refused = client.request(method, f"{path}?node=elsewhere:1", json=body)
        assert refused.status_code == 400
        assert "'elsewhere:1' is not a node here" in refused.json()["error"]
        assert keys[0] in refused.json()["error"]
        assert "nodes=all" in refused.json()["error"]
        assert on_disk(nodes) == [{"llama3.2"}]


def test_a_pull_brings_those_up_to_date_that_have_the_model_else_it_goes_to_one() -> None:
    with standing(node(1, LLAMA, GEMMA), node(2), node(3, GEMMA)) as (nodes, keys, client, _):
        assert list(lines(client.post("/api/pull", json={"model": "gemma3:1b"}))[-1]["nodes"]) == [keys[0], keys[2]]
        assert reached(nodes, "POST /api/pull") == [1, 0, 1]
    with standing(node(1), node(2)) as (nodes, _, client, _):
        assert len(lines(client.post("/api/pull", json={"model": "gemma3:1b"}))[-1]["nodes"]) == 1
        assert sum("gemma3:1b" in names for names in on_disk(nodes)) == 1


def test_a_push_is_done_by_one_node_that_has_the_model() -> None:
    with standing(node(1), node(2, OTHER), node(3, OTHER)) as (nodes, keys, client, _):
        told = lines(client.post("/api/push", json={"model": "other"}))  # a simulated node has no way out
        assert [line.get("node") for line in told] == [keys[1], None]
        assert "no such host" in told[-1]["error"]
        assert told[-1]["nodes"] == {keys[1]: told[-1]["error"]}
        chosen = lines(client.post(f"/api/push?node={keys[2]}", json={"model": "other"}))
        assert list(chosen[-1]["nodes"]) == [keys[2]]
        assert reached(nodes, "POST /api/push") == [0, 1, 1]
        missing = client.post("/api/push", json={"model": "nowhere"})
        assert (missing.status_code, missing.json()["error"]) == (404, "model 'nowhere' not found")


def test_a_create_goes_where_its_base_and_its_blobs_are() -> None:
    with standing(node(1), node(2), node(3, OTHER)) as (nodes, keys, client, _):
        assert client.post(f"/api/blobs/{DIGEST}?node={keys[1]},{keys[2]}", content=DATA).status_code == 201
        body = {"model": "tuned", "from": "llama3.2", "adapters": {"a.gguf": DIGEST}, "stream": False}
        assert client.post("/api/create", json=body).json() == {"status": "success", "nodes": {keys[1]: "success"}}
        assert ["tuned" in names for names in on_disk(nodes)] == [False, True, False]


# --- progress ---


def test_progress_is_one_stream_whose_bars_never_go_back() -> None:
    specs = [node(1, pull_bytes_per_s=4_000.0), node(2, pull_bytes_per_s=1_600.0), node(3, GEMMA)]
    with standing(*specs) as (_, keys, client, _):
        told = lines(client.post("/api/pull?nodes=all", json={"model": "gemma3:1b"}))
        assert {line["node"] for line in told[:-1]} == set(keys)
        assert told[-1] == {"status": "success", "nodes": dict.fromkeys(told[-1]["nodes"], "success")}
        layers = [line for line in told if line.get("digest")]
        assert len({(line["digest"], line["total"]) for line in layers}) == 1
        done = [line["completed"] for line in layers]
        assert done == sorted(done)
        assert done[-1] == 2 * GEMMA.size_bytes  # the third has it
        assert done[-1] <= layers[-1]["total"]


# --- some fail ---


def test_a_pull_goes_on_where_one_node_dies_in_it() -> None:
    with standing(node(1, pull_bytes_per_s=1_600.0), node(2, pull_bytes_per_s=10.0)) as (nodes, keys, client, _):
        threading.Timer(0.2, lambda: nodes.do(lambda found: found[1].die())).start()
        told = lines(client.post("/api/pull?nodes=all", json={"model": "gemma3:1b"}))
        failed = next(line for line in told if line.get("status", "").startswith("failed on"))
        assert failed["node"] == keys[1]
        assert keys[1] in failed["status"]
        assert told.index(failed) < len(told) - 2  # at once, and the other goes on
        assert told[-1]["status"] == "success"
        assert told[-1]["nodes"][keys[0]] == "success"
        assert told[-1]["nodes"][keys[1]] != "success"
        assert not any("error" in line for line in told)  # clients would take it for the end
        assert ["gemma3:1b" in names for names in on_disk(nodes)] == [True, False]


@pytest.mark.parametrize("stream", [True, False])
def test_a_node_that_cannot_get_the_model_does_not_take_it_from_the_others(stream: bool) -> None:
    with standing(node(1), node(2, registry=())) as (nodes, keys, client, _):
        answer = client.post("/api/pull?nodes=all", json={"model": "gemma3:1b", "stream": stream})
        told = lines(answer)[-1]
        assert told["status"] == ("success" if stream else "partial")
        assert told["nodes"][keys[0]] == "success"
        assert "no such host" in told["nodes"][keys[1]]
        assert ["gemma3:1b" in names for names in on_disk(nodes)] == [True, False]


@pytest.mark.parametrize("stream", [True, False])
def test_a_change_that_fails_everywhere_is_an_error_that_tells_each_node(stream: bool) -> None:
    with standing(node(1, registry=()), node(2, registry=())) as (nodes, keys, client, _):
        nodes.do(lambda found: found[1].die())  # the gateway does not know yet
        answer = client.post("/api/pull?nodes=all", json={"model": "gemma3:1b", "stream": stream})
        told = json.loads(answer.text.splitlines()[-1])
        assert answer.status_code == (200 if stream else 500)  # a stream has begun, as a node's has
        assert "no such host" in told["error"]  # what one said, rather than that the other said nothing
        assert "no such host" in told["nodes"][keys[0]]
        assert "no such host" not in told["nodes"][keys[1]]
        assert "status" not in told


def test_nodes_that_are_known_to_be_down_are_told_of() -> None:
    with standing(node(1), node(2), node(3, OTHER)) as (nodes, keys, client, stage):
        nodes.do(lambda found: found[1].die())
        client.get("/api/tags")
        until(lambda: stage.look(lambda gateway: gateway.engine.scheduler.view().nodes[keys[1]].up is False))
        pulled = lines(client.post("/api/pull?nodes=all", json={"model": "gemma3:1b"}))[-1]
        assert pulled["nodes"].pop(keys[1]).startswith("the node is down: ")
        assert pulled["nodes"] == {keys[0]: "success", keys[2]: "success"}
        # Of a model that it had: it will be back with it.
        gone = client.request("DELETE", "/api/delete", json={"model": "llama3.2"})
        assert (gone.status_code, gone.json()["status"]) == (200, "partial")
        assert gone.json()["nodes"][keys[0]] == "success"
        assert gone.json()["nodes"][keys[1]].startswith("the node is down: ")
        assert keys[2] not in gone.json()["nodes"]
        again = client.request("DELETE", "/api/delete", json={"model": "llama3.2"})
        assert again.status_code == 502
        assert "the node is down" in again.json()["error"]


def test_a_create_that_fails_on_one_is_told() -> None:
    with standing(node(1), node(2, OTHER)) as (nodes, keys, client, _):
        body = {"model": "new", "from": "llama3.2", "stream": False}
        told = client.post("/api/create?nodes=all", json=body)
        assert (told.status_code, told.json()["status"]) == (200, "partial")
        assert told.json()["nodes"] == {keys[0]: "success", keys[1]: "model 'llama3.2' not found"}
        assert ["new" in names for names in on_disk(nodes)] == [True, False]


def test_a_blob_that_reaches_some_is_told_and_a_create_goes_there() -> None:
    with standing(node(1), node(2)) as (nodes, keys, client, _):
        nodes.do(lambda found: found[0].die())
        sent = client.post(f"/api/blobs/{DIGEST}?nodes=all", content=DATA)
        assert (sent.status_code, sent.json()["status"]) == (201, "partial")
        assert sent.json()["nodes"][keys[1]] == "success"
        assert sent.json()["nodes"][keys[0]] != "success"
        nodes.do(lambda found: found[0].revive())
        assert client.head(f"/api/blobs/{DIGEST}?node={keys[0]}").status_code == 404
        body = {"model": "tuned", "from": "llama3.2", "adapters": {"a": DIGEST}, "stream": False}
        until(lambda: list(client.post("/api/create", json=body).json().get("nodes", ())) == [keys[1]])
        assert ["tuned" in names for names in on_disk(nodes)] == [False, True]


def test_nodes_that_take_nothing_of_a_blob_are_left_behind_together(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(blobs, "STALL_S", 1.0)
    waiting = together = 0
    put = blobs.BlobUpload.put

    async def counted(upload: blobs.BlobUpload, piece: bytes) -> None:
        nonlocal waiting, together
        waiting += 1
        together = max(together, waiting)
        try:
            await put(upload, piece)
        finally:
            waiting -= 1

    data = b"x" * 24 * 1024 * 1024  # more than what the kernel and the queues hold
    digest = "sha256:" + hashlib.sha256(data).hexdigest()
    with sim_cluster([node(1)]) as nodes, deaf() as first, deaf() as second, deaf() as third:
        with gateway_over([nodes.urls[0], first, second, third]) as stage, stage.client() as client:
            monkeypatch.setattr(blobs.BlobUpload, "put", counted)
            names = ",".join(url.removeprefix("http://") for url in (nodes.urls[0], first, second, third))
            sent = client.post(f"/api/blobs/{digest}?node={names}", content=data)
        told = sent.json()["nodes"]
        assert (sent.status_code, sent.json()["status"]) == (201, "partial")
        assert list(told.values()) == ["success"] + ["took no data for 1 s"] * 3
        assert together >= 2


@contextmanager
def deaf() -> Iterator[str]:
    """Answers a node's small questions, and reads nothing of a blob."""
    server = socket.create_server(("127.0.0.1", 0))
    held: list[socket.socket] = []

    def serve() -> None:
        while True:
            try:
                peer, _ = server.accept()
            except OSError:
                return
            held.append(peer)
            threading.Thread(target=answer, args=(peer,), daemon=True).start()

    def answer(peer: socket.socket) -> None:
        said = {"version": "0.33.0", "models": []}
        body = json.dumps(said).encode()
        try:
            while head := peer.recv(512):
                if b"/api/blobs/" in head:
                    return
                peer.sendall(b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\n")
                peer.sendall(b"Content-Length: %d\r\n\r\n%b" % (len(body), body))
        except OSError:
            pass

    threading.Thread(target=serve, daemon=True).start()
    try:
        yield f"http://127.0.0.1:{server.getsockname()[1]}"
    finally:
        for sock in (server, *held):
            sock.close()


def test_a_client_that_leaves_ends_the_pull_on_every_node() -> None:
    with standing(node(1, pull_bytes_per_s=10.0), node(2, pull_bytes_per_s=10.0)) as (nodes, _, client, _):
        with client.stream("POST", "/api/pull?nodes=all", json={"model": "gemma3:1b"}) as answer:
            next(answer.iter_lines())
        until(lambda: nodes.do(lambda found: sum(node.counters.inflight for node in found)) == 0)
        assert on_disk(nodes) == [{"llama3.2"}, {"llama3.2"}]


@pytest.mark.parametrize("value", ["x", [1], {"a": 1}, None, True, 1.5])
@pytest.mark.parametrize("field", ["total", "completed"])
def test_progress_that_is_no_number_is_not_summed(field: str, value: Any) -> None:
    sums = models.Sums(2)
    good = {"digest": "d", "total": 10, "completed": 4}
    sums.add({**good, field: value, "node": "a"})
    assert sums.add({**good, "node": "b"}) == {"digest": "d", "total": 20, "completed": 4, "node": "b"}
