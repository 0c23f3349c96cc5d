"""`sollol top`, `explain` and `dashboard`: they read, or serve, a dashboard that runs."""

from __future__ import annotations

import json
import os
import re
import select
import signal
import subprocess
import sys
import threading
import time
import urllib.request
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from rich.console import Console
from typer.testing import Result

from sollol import OllamaPool, UnifiedDashboard
from sollol.cli import attach, screen
from sollol.sim import Cluster, ModelSpec, NodeSpec, free_port, sim_cluster

Run = Callable[..., Result]
MODELS = (ModelSpec("llama3.2", size_bytes=2_000_000_000),)
HELLO = [{"role": "user", "content": "Hello"}]


@pytest.fixture(autouse=True)
def _no_dashboard_of_others(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(attach, "LOCAL", (f"http://127.0.0.1:{free_port()}",))


@pytest.fixture
def cluster() -> Iterator[Cluster]:
    half = NodeSpec(models=MODELS, loaded=("llama3.2",), vram_bytes=1_000_000_000)
    with sim_cluster([NodeSpec(models=MODELS), half]) as running:
        yield running


@pytest.fixture
def pool(cluster: Cluster) -> Iterator[OllamaPool]:
    with OllamaPool(list(cluster), app_name="trial") as made:
        made.wait_ready()
        yield made


@pytest.fixture
def url(pool: OllamaPool) -> Iterator[str]:
    with UnifiedDashboard(pool, 0) as dashboard:
        yield dashboard.url


# --- top ---


def test_a_frame_of_a_running_dashboard(run: Run, url: str, pool: OllamaPool) -> None:
    number = pool.chat("llama3.2", HELLO).routing.id
    text = run("top", "--once", "--url", url).stdout
    for words in ("trial", "2 of 2 nodes up", "1 requests", "! 50%/50% CPU/GPU", "nothing running", "nothing waiting"):
        assert words in text
    assert re.search(rf"^ +{number}  \d\d:\d\d:\d\d  llama3.2:latest  127.0.0.1:\d+  ok ", text, re.M)
    assert run("top", "--url", url).stdout.splitlines()[1:4] == text.splitlines()[1:4]  # no terminal: one frame


def test_json_is_the_snapshot(run: Run, url: str, pool: OllamaPool) -> None:
    assert json.loads(run("top", "--json", "--url", url).stdout).keys() == pool.overview().keys()


def test_without_a_url_it_finds_the_dashboard_of_this_machine(
    run: Run, url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(attach, "LOCAL", (f"http://127.0.0.1:{free_port()}", url))
    assert json.loads(run("top", "--json").stdout)["app_name"] == "trial"


def test_without_a_dashboard_it_asks_the_nodes(run: Run, cluster: Cluster) -> None:
    nodes = ",".join([*cluster, "127.0.0.1:9"])
    told = json.loads(run("top", "--json", "--nodes", nodes).stdout)
    assert told["watching"]
    assert [node["state"] for node in told["nodes"]] == ["up", "up", "down"]
    text = run("top", "--once", "--nodes", nodes).stdout
    assert "2 of 3 nodes up" in text
    assert "! 50%/50% CPU/GPU" in text
    assert "refused the connection" in text
    assert "running" not in text
    assert "down" in run("top", "--once").stdout  # of SOLLOL_NODES


def test_what_is_no_dashboard(run: Run, cluster: Cluster, url: str) -> None:
    assert "no dashboard there" in run("top", "--once", "--url", cluster[0], code=1).stderr
    assert "refused" in run("top", "--once", "--url", "127.0.0.1:9", code=1).stderr
    assert "not an address" in run("top", "--once", "--url", "http://", code=2).stderr
    assert "exclude each other" in run("top", "--url", url, "--nodes", cluster[0], code=2).stderr


def drawn(frame: dict[str, Any], width: int, height: int) -> list[str]:
    console = Console(width=width, height=height, force_terminal=True, color_system=None, legacy_windows=False)
    with console.capture() as said:
        console.print(screen.draw(frame, height))
    return said.get().splitlines()


def full_frame(nodes: int, tasks: int) -> dict[str, Any]:
    node = {"state": "up", "why": "", "active_requests": 1, "latency_ms": 5.0, "batch_throughput": 12.5}
    node |= {"total_requests": 10, "success_rate": 0.9, "loaded": [{"model": "m", "processor": "100% CPU"}]}
    task = {"kind": "chat", "model": "m", "app": "a", "priority": 5, "node": "n", "reason": "r", "items": 0}
    task |= {"elapsed_ms": 5.0, "predicted_ms": 1.0, "waited_ms": 1.0, "eta_ms": 1.0, "position": 1}
    task |= {"outcome": "ok", "actual_ms": 3.0, "attempts": 1, "at": 0.0}
    tasks_ = [{**task, "id": number} for number in range(tasks)]
    return {
        "app_name": "trial",
        "totals": {"total_requests": 9, "successful_requests": 8, "failed_requests": 1},
        "nodes": [{**node, "host": f"node-{number}:11434"} for number in range(nodes)],
        "running": tasks_,
        "waiting": tasks_,
        "recent": tasks_,
        "calibration": {"median": 1.0, "p90": 2.0, "count": 3},
    }


@pytest.mark.parametrize("nodes", [1, 4, 300])
@pytest.mark.parametrize("tasks", [0, 3, 100])
@pytest.mark.parametrize(("width", "height"), [(80, 30), (140, 50)])
def test_a_frame_fits_the_terminal(nodes: int, tasks: int, width: int, height: int) -> None:
    lines = drawn(full_frame(nodes, tasks), width, height)
    assert max(map(len, lines)) <= width
    assert len(lines) <= height
    if tasks == 100:
        assert sum("more" in line for line in lines) >= 3
        assert len(lines) > height - 8  # and uses it


def test_a_name_cannot_command_the_terminal() -> None:
    frame = full_frame(1, 1)
    frame["app_name"] = frame["nodes"][0]["host"] = frame["recent"][0]["reason"] = "\x1b[2Jevil[bold]"
    assert "\x1b[2J" not in "".join(drawn(frame, 140, 50))
    assert "[2Jevil[bold]" in "".join(drawn(frame, 140, 50))


def interruptible() -> None:
    """Take Ctrl-C, also where the tests themselves run in the background of a shell, which ignores it."""
    signal.signal(signal.SIGINT, signal.SIG_DFL)


@pytest.mark.skipif(sys.platform == "win32", reason="no pty")
def test_in_a_terminal_it_follows_until_ctrl_c(cluster: Cluster, pool: OllamaPool) -> None:
    import pty

    dashboard = UnifiedDashboard(pool, 0)
    command = [sys.executable, "-m", "sollol", "top", "--interval", "0.2", "--url", dashboard.start()]
    master, slave = pty.openpty()
    environment = {**os.environ, "TERM": "xterm-256color", "COLUMNS": "150", "LINES": "40"}
    process = subprocess.Popen(
        command, stdin=slave, stdout=slave, stderr=slave, close_fds=True, env=environment, preexec_fn=interruptible
    )
    os.close(slave)
    seen = b""

    def wait_for(text: bytes) -> None:
        nonlocal seen
        end = time.monotonic() + 20
        while text not in seen:
            assert time.monotonic() < end, seen
            if select.select([master], [], [], 0.1)[0]:
                seen += os.read(master, 65536)

    try:
        wait_for(b"no requests yet")
        pool.chat("llama3.2", HELLO)
        wait_for(b"1 requests")
        dashboard.stop()
        wait_for(b"trying again")
        dashboard.start()
        seen = b""
        wait_for(b"1 requests")
        process.send_signal(signal.SIGINT)
        end = time.monotonic() + 20
        while process.poll() is None and time.monotonic() < end:  # what it still draws must find a reader
            if select.select([master], [], [], 0.1)[0]:
                try:
                    os.read(master, 65536)
                except OSError:  # the other end is closed
                    break
        assert process.wait(10) == 0
    finally:
        dashboard.stop()
        process.kill()
        process.wait()


# --- explain ---


def test_a_call_is_explained(run: Run, url: str, pool: OllamaPool) -> None:
    routing = pool.chat("llama3.2", HELLO).routing
    text = run("explain", routing.id, "--url", url).stdout
    assert f"Call {routing.id}: chat with llama3.2:latest, ok" in text
    assert f"{routing.node} (chosen)" in text
    assert re.search(r"^actual .*of predicted\)$", text, re.M)
    assert re.search(r"^candidate .* decode .* would finish in$", text, re.M)
    told = json.loads(run("explain", routing.id, "--url", url, "--json").stdout)
    assert told["candidates"] == json.loads(json.dumps(pool.explain(routing.id)["candidates"]))


def test_a_failed_node_stands_under_tried(run: Run, url: str, pool: OllamaPool, cluster: Cluster) -> None:
    from sollol.errors import NoNodeAvailable

    cluster.do(lambda nodes: [node.die() for node in nodes])
    with pytest.raises(NoNodeAvailable):
        pool.chat("llama3.2", HELLO)
    number = pool.snapshot()["recent"][0]["id"]
    text = run("explain", number, "--url", url).stdout
    assert "What each node said" in text
    assert cluster[0].removeprefix("http://") in text


def test_what_waits_and_what_runs(run: Run) -> None:
    with (
        sim_cluster([NodeSpec(models=MODELS, decode_tokens_per_s=5.0)]) as slow,
        OllamaPool(list(slow)) as pool,
        UnifiedDashboard(pool, 0) as dashboard,
    ):
        threads = [threading.Thread(target=_ask_in_vain, args=(pool,), daemon=True) for _ in range(3)]
        for thread in threads:
            thread.start()
        while not (pool.snapshot()["waiting"] and pool.snapshot()["running"]):
            time.sleep(0.01)
        running, waiting = (pool.snapshot()[name][0]["id"] for name in ("running", "waiting"))
        text = run("explain", running, "--url", dashboard.url).stdout
        assert "Running on" in text
        assert "(chosen)" in text
        text = run("explain", waiting, "--url", dashboard.url).stdout
        assert re.search(r"^position +\d, starts in ", text, re.M)


def _ask_in_vain(pool: OllamaPool) -> None:
    from sollol.errors import SollolError

    try:
        pool.chat("llama3.2", HELLO)
    except SollolError:  # the pool is closed before it is done
        pass


def test_what_cannot_be_explained(run: Run, url: str) -> None:
    assert "task_id=99 is unknown" in run("explain", 99, "--url", url, code=1).stderr
    assert "run_unified_dashboard" in run("explain", 99, code=1).stderr


# --- dashboard ---


def test_it_serves_the_nodes_until_ctrl_c(cluster: Cluster) -> None:
    command = [sys.executable, "-m", "sollol", "dashboard", "--port", "0", "--json", "--nodes", ",".join(cluster)]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    assert process.stdout is not None
    head = ""
    while not head.rstrip().endswith("}"):
        head += process.stdout.readline()
    address = json.loads(head)["url"]
    with urllib.request.urlopen(f"{address}/api/snapshot") as reply:
        told = json.load(reply)
    process.send_signal(signal.SIGINT)
    out, err = process.communicate(timeout=10)
    assert process.returncode == 0, err
    assert [node["state"] for node in told["nodes"]] == ["up", "up"]
    assert "2 nodes (from --nodes)" in err
    assert "Traceback" not in err
    assert not out


def test_a_taken_port(run: Run, url: str, cluster: Cluster) -> None:
    port = url.rpartition(":")[2]
    assert "choose another port" in run("dashboard", "--nodes", cluster[0], "--port", port, code=1).stderr
