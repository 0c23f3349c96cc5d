"""`sollol bench` against simulated nodes of known speed, over real HTTP."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator

import pytest
from typer.testing import Result

from sollol.sim import Cluster, ModelSpec, NodeSpec, sim_cluster

EMBED, CHAT = ModelSpec("nomic-embed-text", "embed", 274_000_000), ModelSpec("llama3.2", size_bytes=2_000_000_000)
Run = Callable[..., Result]


@pytest.fixture(scope="module")
def cluster() -> Iterator[Cluster]:
    specs = [
        NodeSpec(models=(EMBED, CHAT), embed_items_per_s=120.0, decode_tokens_per_s=200.0),
        NodeSpec(models=(EMBED, CHAT), embed_items_per_s=40.0, decode_tokens_per_s=50.0),
    ]
    with sim_cluster(specs) as running:
        yield running


def test_each_node_is_measured_alone_and_all_together(run: Run, cluster: Cluster) -> None:
    result = run("bench", "--nodes", ",".join(cluster.urls), "--seconds", "0.5", "--json")
    found = json.loads(result.stdout)
    alone = sorted((row["alone_items_per_s"] for row in found["nodes"]), reverse=True)
    assert 0 < alone[1] < alone[0], "a busy machine slows both"
    assert alone[1] <= 40 * 1.25
    assert alone[0] <= 120 * 1.25
    assert found["efficiency"] > 0


def test_the_table_names_every_node_and_the_efficiency(run: Run, cluster: Cluster) -> None:
    result = run("bench", "--nodes", ",".join(cluster.urls), "--seconds", "0.3", "--no-chat")
    assert all(url.removeprefix("http://") in result.stdout for url in cluster.urls)
    assert "efficiency" in result.stdout


def test_a_node_that_is_down_is_told_of_and_the_others_are_measured(run: Run, cluster: Cluster) -> None:
    nodes = f"{cluster.urls[0]},127.0.0.1:9"
    result = run("bench", "--nodes", nodes, "--seconds", "0.3", "--no-chat", "--json")
    rows = {row["node"]: row for row in json.loads(result.stdout)["nodes"]}
    assert rows["127.0.0.1:9"]["errors"]
    assert rows[cluster.urls[0].removeprefix("http://")]["alone_items_per_s"] > 0


@pytest.mark.parametrize(
    ("options", "named"),
    [
        (("--seconds", "0"), "--seconds"),
        (("--items", "1"), "--items"),
        (("--simulated", "--nodes", "127.0.0.1:9"), "--simulated"),
    ],
)
def test_what_cannot_be_used_is_named(run: Run, options: tuple[str, ...], named: str) -> None:
    assert named in run("bench", *options, code=2).output


def test_nothing_to_measure_is_a_failure(run: Run) -> None:
    run("bench", "--nodes", "127.0.0.1:9", "--seconds", "0.3", code=1)
