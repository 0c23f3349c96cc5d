"""`sollol ps`: what is in memory, where, and until when."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from datetime import UTC, datetime, timedelta

import pytest
from typer.testing import Result

from sollol.cli.ps import _left
from sollol.sim import Cluster, ModelSpec, NodeSpec, sim_cluster

Run = Callable[..., Result]
MODEL = ModelSpec("llama3.2", size_bytes=2_000_000_000)


@pytest.fixture
def cluster() -> Iterator[Cluster]:
    whole = NodeSpec(models=(MODEL,), loaded=("llama3.2",))
    half = NodeSpec(models=(MODEL,), loaded=("llama3.2",), vram_bytes=1_000_000_000)
    empty = NodeSpec(models=(MODEL,))
    with sim_cluster([whole, half, empty]) as running:
        yield running


def test_a_fall_back_to_the_cpu_is_marked(run: Run, cluster: Cluster) -> None:
    result = run("ps", "--nodes", ",".join([*cluster, "127.0.0.1:9"]))
    lines = [line.split() for line in result.stdout.splitlines()]
    assert lines[0] == ["node", "model", "size", "processor", "context", "until"]
    assert lines[1][1:6] == ["llama3.2:latest", "2.0", "GB", "100%", "GPU"]
    assert "! 50%/50% CPU/GPU" in result.stdout.splitlines()[2]
    assert len(lines) == 3
    assert "2 models in memory; 3 of 4 nodes up" in result.stderr
    assert "127.0.0.1:9 is down" in result.stderr


def test_json(run: Run, cluster: Cluster) -> None:
    told = json.loads(run("ps", "--nodes", ",".join([*cluster, "127.0.0.1:9"]), "--json").stdout)
    assert [model["on_cpu"] for model in told["models"]] == [False, True]
    assert told["models"][0]["node"] in cluster[0]
    assert told["models"][0]["size"] == 2_000_000_000
    assert told["models"][0]["context_length"] == 4096
    assert [row["node"] for row in told["down"]] == ["127.0.0.1:9"]


def test_a_machine_without_a_gpu_is_not_marked(run: Run) -> None:
    slow = NodeSpec(models=(MODEL, ModelSpec("other")), loaded=("llama3.2", "other"), vram_bytes=0)
    with sim_cluster([slow]) as running:
        shown = run("ps", "--nodes", running[0]).stdout
        told = json.loads(run("ps", "--nodes", running[0], "--json").stdout)
    assert "!" not in shown
    assert shown.count("100% CPU") == 2
    assert [(model["on_cpu"], model["fell_back"]) for model in told["models"]] == [(True, False)] * 2


def test_nothing_in_memory(run: Run, cluster: Cluster) -> None:
    result = run("ps", "--nodes", cluster[2])
    assert result.stdout == ""
    assert "0 models in memory; 1 of 1 node up" in result.stderr


@pytest.mark.parametrize(
    ("ahead", "says"),
    [(timedelta(minutes=4, seconds=0.9), "4 min 0"), (timedelta(days=100_000), "stays"), (-timedelta(1), "unloading")],
)
def test_until_when(ahead: timedelta, says: str) -> None:
    assert _left((datetime.now(UTC) + ahead).isoformat()).startswith(says)


@pytest.mark.parametrize("text", ["", "soon", "0001-01-01T00:00:00"])
def test_a_time_that_is_none(text: str) -> None:
    assert _left(text) == "-"


def test_ollamas_own_times() -> None:
    assert _left("2319-03-05T21:59:05.767795254Z") == "stays"
