"""`sollol top`, `explain` and `dashboard`: they read, or serve, a dashboard that runs."""

from __future__ import annotations

import json
import re
import signal
import subprocess
import sys
import threading
import time
import urllib.request
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from typer.testing import Result

from sollol import OllamaPool, UnifiedDashboard
from sollol.cli import attach, screen
from sollol.cli.terminal import Keys
from sollol.cli.top_session import Action, Session
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
    for words in ("trial", "2 of 2 nodes up", "1 request ", "! 50%/50% CPU/GPU", "nothing running", "nothing waiting"):
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
    """The lines of a whole screen."""
    session = Session(screen.listings_of, lambda verb, frame: "")
    session.update(frame)
    head = [screen.headline(frame, width), screen.verdict(frame)]
    return [line.plain for line in session.screen(head, width, height)]


def full_frame(nodes: int, tasks: int) -> dict[str, Any]:
    node = {"state": "up", "why": "", "active_requests": 1, "latency_ms": 5.0, "batch_throughput": 12.5}
    node |= {"total_requests": 10, "success_rate": 0.9, "loaded": [{"model": "m", "processor": "100% CPU"}]}
    task = {"kind": "chat", "model": "m", "app": "a", "priority": 5, "node": "n", "reason": "r", "items": 0}
    task |= {"elapsed_ms": 5.0, "predicted_ms": 1.0, "waited_ms": 1.0, "eta_ms": 1.0, "position": 1}
    task |= {"outcome": "ok", "actual_ms": 3.0, "attempts": 1, "at": 0.0}
    tasks_ = [{**task, "id": number, "attempt": number} for number in range(tasks)]
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
@pytest.mark.parametrize(("width", "height"), [(20, 5), (80, 24), (80, 30), (200, 50)])
def test_a_frame_fits_the_terminal(nodes: int, tasks: int, width: int, height: int) -> None:
    lines = drawn(full_frame(nodes, tasks), width, height)
    assert max(map(len, lines)) <= width
    assert len(lines) == height
    if tasks == 100 and height >= 24:
        assert sum("more" in line for line in lines) >= 3
        assert sum(not line for line in lines) <= 5  # and uses it


def test_a_name_cannot_command_the_terminal() -> None:
    frame = full_frame(1, 1)
    frame["app_name"] = frame["nodes"][0]["host"] = frame["recent"][0]["reason"] = "\x1b[2Jevil[bold]\nline"
    text = "".join(drawn(frame, 200, 50))
    assert "\x1b" not in text
    assert "\n" not in text
    assert "[2Jevil[bold]" in text


@pytest.mark.parametrize(
    ("rows", "height", "focus", "shares"),
    [
        ([3, 0, 0, 0], 20, 0, [3, 0, 0, 0]),
        ([3, 2, 2, 100], 24, 0, [3, 2, 2, 13]),
        ([300, 100, 100, 100], 24, 0, [10, 4, 3, 3]),
        ([300, 100, 100, 100], 24, 3, [8, 4, 3, 5]),
        ([300, 100, 100, 100], 4, 0, [0, 0, 0, 0]),
        ([5], 3, 0, [2]),
    ],
)
def test_the_lines_are_shared_out(rows: list[int], height: int, focus: int, shares: list[int]) -> None:
    assert screen.share_out(rows, height, focus) == shares


@given(st.lists(st.integers(0, 400), min_size=1, max_size=5), st.integers(0, 120), st.data())
def test_no_list_gets_more_than_there_is(rows: list[int], height: int, data: st.DataObject) -> None:
    shares = screen.share_out(rows, height, data.draw(st.integers(0, len(rows) - 1)))
    assert all(0 <= share <= number for share, number in zip(shares, rows, strict=True))
    assert sum(shares) == max(0, min(height - len(rows), sum(rows)))


@pytest.mark.parametrize(
    ("rates", "bars"),
    [
        ([], "        "),
        ([0.0, 0.0], "        "),
        ([8.0], "       █"),
        ([1.0, 2.0, 3.0, 4.0, 5.0, 6.0, 7.0, 8.0], "▂▃▄▅▆▇██"),
        ([0.0, 0.0, 8.0, 8.0, 0.0, 0.0, 4.0, 4.0, 8.0, 8.0, 0.0, 8.0, 0.0, 0.0, 0.1, 0.1], " █ ▅█▅ ▁"),
    ],
)
def test_a_sparkline(rates: list[float], bars: str) -> None:
    assert screen.sparkline(rates, 8.0, 8) == bars


@pytest.mark.parametrize(
    ("data", "keys"),
    [
        (b"q", ["q"]),
        (b"\x1b[A\x1b[B\x1bOA", ["up", "down", "up"]),
        (b"\x1b[5~x", ["pageup", "x"]),
        (b"\x1b[1;5A", []),  # with Ctrl: no key of ours
        (b"\x1b[200~y\x1b[201~", ["y"]),
        ("\u00e9\t\r\x7f".encode(), ["\u00e9", "tab", "enter", "backspace"]),
        (b"\x1bq", ["q"]),
        (b"\x01\x02", []),
        (b"\xff", ["\ufffd"]),
    ],
)
def test_keys_are_parsed_in_any_cutting(data: bytes, keys: list[str]) -> None:
    for cut in range(len(data) + 1):
        parser = Keys()
        assert parser.feed(data[:cut]) + parser.feed(data[cut:]) == keys


def test_an_escape_alone_is_a_key() -> None:
    parser = Keys()
    assert parser.feed(b"\x1b") == []
    assert parser.is_escaped
    assert parser.flush() == ["esc"]
    assert parser.flush() == []
    assert parser.feed(b"\x1b[") == []
    assert parser.flush() == []  # the begin of a sequence whose end is lost


def test_the_selection_follows_its_row() -> None:
    frame = full_frame(5, 0)
    session = Session(screen.listings_of, lambda verb, frame: "")
    session.update(frame)
    session.press("down")
    session.press("down")
    session.update({**frame, "nodes": frame["nodes"][::-1][1:]})
    assert session.press("d") is None
    assert "Drain node-2:11434?" in session.screen([], 80, 24)[-1].plain
    assert session.press("y") == Action("drain", node="node-2:11434")
    session.update({**frame, "nodes": []})
    assert session.press("d") is None
    assert "no row is selected" in session.screen([], 80, 24)[-1].plain


def test_what_is_long_scrolls_to_the_selection() -> None:
    session = Session(screen.listings_of, lambda verb, frame: "")
    session.update(full_frame(300, 0))
    session.press("end")
    assert any("node-299:" in line.plain for line in session.screen([], 80, 24))
    session.press("g")
    lines = [line.plain for line in session.screen([], 80, 24)]
    assert any("node-0:" in line for line in lines)
    assert not any("node-299:" in line for line in lines)


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
    assert "Answers of the nodes" in text
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
