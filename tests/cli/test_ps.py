"""`sollol ps`: what is in memory, where, and until when."""

from __future__ import annotations

import json
import re
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from typer.testing import Result

from sollol import OllamaPool, UnifiedDashboard
from sollol.cli import attach
from sollol.cli.ps import _left
from sollol.cli.screen import load_progress
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


def test_a_load_in_progress_is_read_where_it_was_begun(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    slow = NodeSpec(models=(MODEL, ModelSpec("small", size_bytes=10**7)), load_bytes_per_s=1e8)  # 20 s and 0.1 s
    with (
        sim_cluster([slow]) as nodes,
        ThreadPoolExecutor(1) as thread,
        OllamaPool(list(nodes)) as pool,  # its end is the end of the load
        UnifiedDashboard(pool, 0) as dashboard,
    ):
        monkeypatch.setattr(attach, "LOCAL", (dashboard.url,))
        hello = [{"role": "user", "content": "Hello"}]
        pool.chat("small", hello)
        answer = thread.submit(pool.chat, "llama3.2", hello)
        while not pool.snapshot()["nodes"][0]["loading"]:
            assert not answer.done()
            time.sleep(0.01)
        (load,) = json.loads(run("ps", "--json").stdout)["loading"]
        assert (load["model"], load["state"], load["node"] in nodes[0]) == ("llama3.2:latest", "loading", True)
        lines = run("ps").stdout.splitlines()
        assert lines[-2].split() == ["node", "loading", "progress", "elapsed", "predicted", "left"]
        assert "llama3.2:latest" in lines[-1]
        assert re.search(r"llama3.2:latest .* \d+%", run("top", "--once").stdout)
        assert json.loads(run("ps", "--json", "--nodes", nodes[0]).stdout)["loading"] == []
    assert "exclude each other" in run("ps", "--url", "http://127.0.0.1:9", "--nodes", "127.0.0.1", code=2).stderr


@pytest.mark.parametrize(
    ("load", "says"),
    [
        ({"state": "loading", "progress": 0.53}, "█████░░░░░ 53%"),
        ({"state": "loading", "progress": None, "elapsed_ms": 5.0, "predicted_ms": 9.0}, "not measured yet"),
        ({"elapsed_ms": 10.0, "predicted_ms": 9.0}, "late"),  # of an older gateway
        ({"state": "stuck", "progress": None}, "stuck"),
        ({"progress": 99.0}, "██████████ 100%"),  # of a server that is none of ours
    ],
)
def test_how_far_a_load_is(load: dict[str, Any], says: str) -> None:
    assert load_progress(load).plain == says
