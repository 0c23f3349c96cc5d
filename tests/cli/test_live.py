"""Commands against nodes on real sockets (simulated ones), and a process that is killed."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from typer.testing import Result

from sollol.core import batch_scheduler
from sollol.core.types import SECOND, LoadedModel
from sollol.index.chunks import Cut
from sollol.index.format import digest
from sollol.index.partial import Partial
from sollol.sim import Cluster, ModelSpec, NodeSpec, sim_cluster

Run = Callable[..., Result]
MODEL = ModelSpec("embedder", "embed", 300_000_000, dim=32)
RATES = (120.0, 40.0)


@pytest.fixture
def cluster() -> Iterator[Cluster]:
    with sim_cluster([NodeSpec(models=(MODEL,), embed_items_per_s=rate) for rate in RATES]) as running:
        yield running


def addresses(cluster: Cluster) -> str:
    return ",".join(cluster.urls)


def test_nodes_shows_who_is_up_and_what_they_have(run: Run, cluster: Cluster) -> None:
    nodes = f"{addresses(cluster)},127.0.0.1:9"
    told = json.loads(run("nodes", "--nodes", nodes, "--json").stdout)["nodes"]
    assert [row["up"] for row in told] == [True, True, False]
    assert told[0]["models"] == [{"model": "embedder:latest", "bytes": 300_000_000}]
    shown = run("nodes", "--nodes", nodes)
    assert "embedder:latest" in shown.stdout
    assert "2 of 3 nodes up" in shown.stderr


@pytest.mark.parametrize(
    ("model", "says"),
    [
        (LoadedModel(100, 100), "100% GPU"),
        (LoadedModel(100, 40), "60%/40% CPU/GPU"),
        (LoadedModel(100, 0), "100% CPU"),
        (LoadedModel(0, 0), "unknown"),
    ],
)
def test_the_silent_fallback_to_the_cpu_is_said(model: LoadedModel, says: str) -> None:
    assert model.processor == says


class Asked:
    """What the nodes were asked to embed, seen at their door."""

    def __init__(self, cluster: Cluster) -> None:
        self.texts: list[str] = []
        for node in cluster.nodes:
            node.handle = self._watched(node.handle)  # type: ignore[method-assign]

    def _watched(self, handle: Any) -> Any:
        async def watch(call: Any) -> Any:
            if call.path == "/api/embed":
                given = json.loads(call.body)["input"]
                self.texts += [given] if isinstance(given, str) else given
            return await handle(call)

        return watch


def start_embed(docs: Path, out: Path, cluster: Cluster) -> subprocess.Popen[str]:
    command = [sys.executable, "-m", "sollol", "embed", str(docs), "-m", "embedder", "-o", str(out)]
    command += ["--chunk-size", "200", "--overlap", "0", "--nodes", addresses(cluster), "--json"]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def finished(process: subprocess.Popen[str], code: int = 0) -> tuple[str, str]:
    out, err = process.communicate(timeout=30)
    assert process.returncode == code, err
    assert "Traceback" not in err
    return out, err


def wait_for_records(path: Path, process: subprocess.Popen[str], size: int) -> None:
    for _ in range(3000):
        if path.exists() and path.stat().st_size > size:
            return
        assert process.poll() is None, process.communicate()
        time.sleep(0.01)
    raise AssertionError(f"{path} did not grow")


@pytest.mark.parametrize(("how", "code"), [(signal.SIGKILL, -9), (signal.SIGINT, 130)])
def test_a_killed_run_continues_embeds_nothing_twice_and_gives_the_same_file(
    cluster: Cluster, docs: Path, tmp_path: Path, how: signal.Signals, code: int
) -> None:
    out, partial = tmp_path / "x.npz", tmp_path / "x.npz.partial"
    process = start_embed(docs, out, cluster)
    wait_for_records(partial, process, 40 * (16 + 32 * 4 + 4))
    cluster.do(lambda nodes: [node.freeze() for node in nodes])  # so that the run cannot end before the signal
    os.kill(process.pid, how)
    _, err = finished(process, code)
    cluster.do(lambda nodes: [node.thaw() for node in nodes])
    assert not out.exists()
    if how is signal.SIGINT:
        assert f"are kept in {partial}; the same command continues" in err
    with Partial(partial, "embedder", Cut(200, 0)) as log:
        kept = len(log)
        asked = Asked(cluster)
        log.close()
        told = json.loads(finished(start_embed(docs, out, cluster))[0])
        again = [text for text in asked.texts if digest("embedder", text) in log]
    assert kept >= 40
    assert not again
    assert told["reused"] == kept
    assert told["embedded"] == told["passages"] - kept
    whole = tmp_path / "whole.npz"
    finished(start_embed(docs, whole, cluster))
    assert out.read_bytes() == whole.read_bytes()
    assert {path.name for path in tmp_path.iterdir()} == {"docs", "x.npz", "whole.npz"}


def test_embed_and_search_from_end_to_end(run: Run, cluster: Cluster, docs: Path, tmp_path: Path) -> None:
    out = tmp_path / "x.parquet"
    (docs / "tea.md").write_text("Water for green tea must not boil.")
    told = json.loads(run("embed", docs, "-m", "embedder", "-o", out, "--nodes", addresses(cluster), "--json").stdout)
    assert told["passages"] == 37
    assert sum(row["items"] for row in told["nodes"]) == 37
    assert {row["node"] for row in told["nodes"]} == {url.removeprefix("http://") for url in cluster.urls}
    question = "How hot is the water for tea?"
    hits = json.loads(run("search", out, question, "--nodes", addresses(cluster), "--json").stdout)["hits"]
    scores = [hit["score"] for hit in hits]
    assert scores == sorted(scores, reverse=True)
    assert hits[0]["source"] == str(docs / "tea.md")


def test_an_unknown_model_says_which_nodes_have_which(run: Run, cluster: Cluster, docs: Path, tmp_path: Path) -> None:
    result = run("embed", docs, "-m", "nope", "-o", tmp_path / "x.npz", "--nodes", addresses(cluster), code=1)
    assert "embedder" in result.stderr
    assert "nope" in result.stderr
    assert not list(tmp_path.glob("x.npz*"))


def test_nodes_that_are_down_fail_with_a_reason(run: Run, docs: Path, tmp_path: Path) -> None:
    result = run("embed", docs, "-m", "m", "-o", tmp_path / "x.npz", "--nodes", "127.0.0.1:9", code=1)
    assert "127.0.0.1:9" in result.stderr
    assert not list(tmp_path.glob("x.npz*"))


def test_when_all_nodes_die_what_was_done_is_kept(
    run: Run, cluster: Cluster, docs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(batch_scheduler, "NODE_WAIT", SECOND // 2)  # how long a batch waits for a node to come back
    partial = tmp_path / "x.npz.partial"

    def switch_off() -> None:
        while not partial.exists() or partial.stat().st_size < 10 * (16 + 32 * 4 + 4):
            time.sleep(0.01)
        cluster.do(lambda nodes: [node.die() for node in nodes])

    thread = threading.Thread(target=switch_off)
    thread.start()
    words = ("embed", docs, "-m", "embedder", "-o", tmp_path / "x.npz", "--chunk-size", 200, "--overlap", 0)
    result = run(*words, "--nodes", addresses(cluster), code=1)
    thread.join()
    assert f"are kept in {partial}; the same command continues" in result.stderr
    for url in cluster.urls:
        assert url.removeprefix("http://") in result.stderr
    with Partial(partial, "embedder", Cut(200, 0)) as log:
        assert len(log) >= 10


def test_discover_lists_the_nodes(run: Run, cluster: Cluster) -> None:
    ports = [word for url in cluster.urls for word in ("--port", url.rpartition(":")[2])]
    told = json.loads(run("discover", "--subnet", "127.0.0.1/32", *ports, "--json").stdout)
    assert {row["port"] for row in told["nodes"]} >= {int(port) for port in ports[1::2]}
    assert all(row["version"] == "0.33.0" for row in told["nodes"])
    assert "embedder" in json.dumps(told)
    shown = run("discover", "--subnet", "127.0.0.1/32", *ports)
    assert "0.33.0" in shown.stdout
    assert "found." in shown.stderr


# --- the demo ---


def test_the_demo_kills_a_simulated_node_and_loses_nothing(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    from sollol.cli import demo_nodes

    monkeypatch.setattr(demo_nodes, "AIM_S", 1.5)
    told = json.loads(run("demo", "--json").stdout)
    assert told["simulated"]
    assert told["lost"] == told["different"] == 0
    assert told["compared"] > 8
    assert sum(row["killed"] for row in told["nodes"]) == 1
    assert 0.99 * told["passages"] < sum(row["items"] for row in told["nodes"]) <= told["passages"]  # equal ones: once
    assert 0 < told["killed_at_s"] < told["seconds"]
    assert 0 < told["efficiency"] <= 1.05
    assert len(told["hits"]) == 3


def test_the_demo_uses_real_nodes_and_leaves_them_alone(run: Run, cluster: Cluster, docs: Path) -> None:
    told = json.loads(run("demo", docs, "--nodes", addresses(cluster), "--json").stdout)
    assert not told["simulated"]
    assert told["model"] == "embedder:latest"
    assert told["killed_at_s"] is None
    assert told["lost"] == told["different"] == 0
    assert all(node.state == "up" for node in cluster.nodes)
    assert "none of them answers" in run("demo", docs, "--nodes", "127.0.0.1:9", code=2).stderr


def test_the_demo_has_texts_of_its_own() -> None:
    from sollol.cli import demo

    texts = Path(demo.__file__).parent / "demo_texts"
    assert len(list(texts.glob("*.md"))) >= 8
    assert np.sum([path.stat().st_size for path in texts.glob("*.md")]) > 10_000
