"""Nodes with different versions of a model behind the gateway: embeddings come from one, on every route."""

from __future__ import annotations

from collections.abc import Iterator

import msgspec
import pytest

from sollol.gateway.settings import GatewaySettings, Routing
from sollol.sim import ModelSpec, NodeSpec
from sollol.sim.serve import Cluster, sim_cluster
from tests.gateway.stage import MODEL, Stage, gateway_over

EMBED = "nomic-embed-text"
OLD, NEW = "a" * 64, "b" * 64
TEXTS = [f"text {number}" for number in range(80)]


@pytest.fixture(scope="module")
def nodes() -> Iterator[Cluster]:
    def node(digest: str, seed: int) -> NodeSpec:
        models = (ModelSpec(MODEL, size_bytes=10**9, digest=digest), ModelSpec(EMBED, "embed", digest=digest))
        return NodeSpec(models=models, loaded=(MODEL, EMBED), seed=seed, embed_items_per_s=20_000.0)

    with sim_cluster([node(OLD, 1), node(NEW, 2), node(NEW, 3)]) as running:
        yield running


def answered(stage: Stage, path: str, input: object, field: str = "input") -> set[str]:
    with stage.client() as client:
        answers = [client.post(path, json={"model": EMBED, field: input}) for _ in range(6)]
    assert {answer.status_code for answer in answers} == {200}
    return {node for answer in answers for node in answer.headers["x-sollol-node"].split(",")}


def everywhere(stage: Stage) -> set[str]:
    return (
        answered(stage, "/api/embed", "x")
        | answered(stage, "/api/embed", TEXTS[:3])
        | answered(stage, "/api/embed", TEXTS)
        | answered(stage, "/v1/embeddings", "x")
        | answered(stage, "/v1/embeddings", TEXTS)
        | answered(stage, "/api/embeddings", "x", "prompt")
    )


def test_embeddings_of_all_routes_come_from_one_digest(nodes: Cluster) -> None:
    first, *others = (url.removeprefix("http://") for url in nodes.urls)
    with gateway_over(nodes.urls) as stage, stage.client() as client:
        assert everywhere(stage) <= set(others)
        told = client.get("/sollol/snapshot").json()
        assert told["mixed_digests"][f"{EMBED}:latest"]["embeddings_use"] == NEW
        assert f"pull it on {first}" in told["notices"][0]


def test_a_pinned_digest_is_used_and_a_reload_changes_it(nodes: Cluster) -> None:
    first, *others = (url.removeprefix("http://") for url in nodes.urls)
    pinned = msgspec.structs.replace(GatewaySettings(), digests={EMBED: OLD[:12]})
    with gateway_over(nodes.urls, pinned) as stage:
        assert everywhere(stage) == {first}
        stage.look(lambda gateway: gateway.apply(msgspec.structs.replace(pinned, digests={EMBED: NEW[:12]})))
        assert everywhere(stage) <= set(others)


@pytest.mark.parametrize(("setting", "count"), [("allow", 3), ("one", 2)])
def test_chats_use_all_digests_or_one(nodes: Cluster, setting: str, count: int) -> None:
    settings = msgspec.structs.replace(GatewaySettings(), routing=Routing(on_mixed_digests=setting))  # type: ignore[arg-type]
    body = {"model": MODEL, "messages": [{"role": "user", "content": "x"}], "stream": False}
    with gateway_over(nodes.urls, settings) as stage, stage.client() as client:
        used = {client.post("/api/chat", json=body).headers["x-sollol-node"] for _ in range(20)}
    assert len(used) <= count
    if setting == "one":
        assert nodes.urls[0].removeprefix("http://") not in used
