"""`sollol top` in a real terminal: what it draws, and what its keys do to a running cluster."""

from __future__ import annotations

import contextlib
import os
import re
import signal
import sys
import threading
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import httpx
import pytest

if sys.platform == "win32":
    pytest.skip("no pty", allow_module_level=True)

from sollol import OllamaPool, UnifiedDashboard
from sollol.gateway.auth.keys import Key, Keyring, hash_of
from sollol.sim import ModelSpec
from sollol.sim.serve import Cluster, sim_cluster
from tests.cli.screens import Screen, screen_of
from tests.gateway.stage import MODEL, Stage, gateway_over, talker, until

SIZES = [(80, 24), (200, 50)]
UP, DOWN, TAB, ESC, ENTER = "\x1b[A", "\x1b[B", "\t", "\x1b", "\r"
BOSS = "boss-0123456789abcdef"
OTHER = "other-model"


def other(number: int, **more: Any) -> Any:
    """A node with two models in memory."""
    spec = talker(number, **more)
    models = (*spec.models, ModelSpec(OTHER, size_bytes=1_000_000_000))
    return replace(spec, models=models, loaded=(MODEL, OTHER))


def held(cluster: Cluster, number: int) -> str:
    """What a node says of its memory."""
    return httpx.get(f"{cluster.urls[number]}/api/ps", trust_env=False).text


@pytest.fixture
def cluster() -> Iterator[Cluster]:
    with sim_cluster([other(1, tokens_per_s=400.0), talker(2)]) as nodes:
        yield nodes


@pytest.fixture
def stage(cluster: Cluster) -> Iterator[Stage]:
    with gateway_over(cluster.urls) as made:
        yield made


@contextlib.contextmanager
def top(url: str, *words: str, columns: int = 80, lines: int = 24, **more: str) -> Iterator[Screen]:
    with screen_of("top", "--interval", "0.2", "--url", url, *words, columns=columns, lines=lines, **more) as screen:
        yield screen


def ask(stage: Stage, tokens: int = 5) -> httpx.Response:
    body = {"model": MODEL, "prompt": "x", "stream": False, "options": {"num_predict": tokens}}
    with stage.client() as client:
        return client.post("/api/generate", json=body)


@contextlib.contextmanager
def long_requests(stage: Stage, number: int) -> Iterator[list[httpx.Response]]:
    """Requests that would take minutes; they end when the gateway does."""
    answers: list[httpx.Response] = []

    def work() -> None:
        with contextlib.suppress(httpx.HTTPError):
            answers.append(ask(stage, 100_000))

    threads = [threading.Thread(target=work, daemon=True) for _ in range(number)]
    for thread in threads:
        thread.start()
    until(lambda: stage.look(lambda gateway: len(gateway.engine.scheduler.view().tasks)) == number)
    yield answers


# --- what is drawn ---


@pytest.mark.parametrize(("columns", "lines"), SIZES)
def test_a_frame_fills_the_terminal(stage: Stage, cluster: Cluster, columns: int, lines: int) -> None:
    for _ in range(3):
        ask(stage)
    with top(stage.url, columns=columns, lines=lines) as screen:
        screen.shows(
            "2 of 2 nodes up", "3 requests", "nothing waiting", "nothing running", "finishes" if columns > 80 else "ok"
        )
        assert screen.lines[0].startswith("SOLLOL")
        assert screen.lines[-1].startswith("? help")
        assert "All well" in screen.lines[1]
        header = next(line for line in screen.lines if line.startswith("node"))
        assert "last minute" in header
        assert "models in memory" in header
        assert ("latency" in header) == (columns == 200)  # where it has a place
        for url in cluster.urls:
            assert f"{url.removeprefix('http://')}  up" in screen.text
        assert screen.selected().startswith(cluster.urls[0].removeprefix("http://"))


def test_the_work_of_each_node_is_a_sparkline(stage: Stage) -> None:
    with top(stage.url) as screen:
        screen.shows("2 of 2 nodes up")
        for _ in range(3):
            ask(stage, 200)
        screen.until(lambda: re.search(r" up +\d +[\d.]+ +[▁▂▃▄▅▆▇█]", screen.text))


def test_only_lines_that_changed_are_written(stage: Stage) -> None:
    with top(stage.url) as screen:
        screen.shows("no requests yet")
        screen.read(0.3)
        screen.written = b""
        ask(stage)
        screen.shows("1 request")
        written = screen.written
        assert b"\x1b[2J" not in written  # never the whole screen
        assert b"\x1b[24;1H" not in written  # the last line is the same
        assert written.startswith(b"\x1b[?2026h")  # one change as a whole


def test_a_resized_terminal_is_filled_again(stage: Stage) -> None:
    with top(stage.url) as screen:
        screen.shows("2 of 2 nodes up")
        screen.resize(200, 50)
        screen.until(lambda: screen.lines[49].startswith("? help") and "latency" in screen.text)
        screen.resize(80, 24)
        screen.until(lambda: screen.lines[23].startswith("? help") and "latency" not in screen.text)
        screen.resize(30, 8)
        screen.until(lambda: screen.lines[7].startswith("? help"))
        assert len(screen.lines) == 8


# --- keys that only look ---


def test_help_filter_and_order(stage: Stage, cluster: Cluster) -> None:
    first, second = (url.removeprefix("http://") for url in cluster.urls)
    with top(stage.url) as screen:
        screen.shows(first)
        screen.press("?")
        screen.shows("drain the selected node", "Esc back")
        screen.press(ESC)
        screen.shows(first, "? help")
        screen.press("/", *second)
        screen.hides(first)
        screen.shows(f"/{second}", second)
        screen.press(ENTER)
        screen.shows(f"filter: {second}")
        screen.press(ESC)
        screen.shows(first, second)
        screen.press("/", *"nothing has this", ENTER)
        screen.shows("nodes: nothing matches the filter")
        screen.press(ESC)
        screen.shows(first)
        screen.press("s")
        screen.shows("node ▲")
        screen.press("r")
        screen.shows("node ▼")
        up, down = sorted([first, second])
        screen.until(lambda: screen.text.index(down) < screen.text.index(up))
        screen.press("r")
        screen.until(lambda: screen.text.index(up) < screen.text.index(down))
        screen.press(DOWN)
        screen.until(lambda: screen.selected().startswith(down))
        screen.press("k")
        screen.until(lambda: screen.selected().startswith(up))


def test_a_request_is_explained(stage: Stage) -> None:
    ask(stage)
    with top(stage.url) as screen:
        screen.shows("1 request")
        screen.press("e")
        screen.shows("explain: select a request")
        screen.press("\x1b[Z")  # Shift-Tab: the last list
        screen.press(ENTER)
        screen.shows("Call 1: generate", "(chosen)", "would finish in")
        screen.press("q")  # closes the page
        screen.shows("2 of 2 nodes up", "nothing running")
        assert screen.process.poll() is None
        screen.press("q")
        assert screen.ended() == 0
        assert screen.is_restored()


# --- keys that act ---


def test_a_node_is_drained_and_resumed_after_a_confirmation(stage: Stage, cluster: Cluster) -> None:
    key = cluster.urls[1].removeprefix("http://")

    def drained() -> bool:
        return stage.look(lambda gateway: gateway.engine.scheduler.view().nodes[key].drained)

    with top(stage.url) as screen:
        screen.shows(key)
        screen.press(DOWN, "d")
        screen.shows(f"Drain {key}?", "y yes")
        screen.press("n")
        screen.shows("nothing was done")
        assert not drained()
        screen.press("d", ENTER)  # Enter is no yes
        screen.shows("nothing was done")
        assert not drained()
        screen.press("d")
        screen.shows(f"Drain {key}?")
        screen.press("y")
        screen.shows(f"{key} is drained", f"{key}  drained")
        assert drained()
        screen.press("d")
        screen.shows(f"Resume {key}?")
        screen.press("y")
        screen.shows(f"{key} gets new requests again", f"{key}  up")
        assert not drained()


def test_a_model_is_unloaded(stage: Stage, cluster: Cluster) -> None:
    key = cluster.urls[0].removeprefix("http://")
    with top(stage.url, columns=200) as screen:
        screen.shows(f"{MODEL}:latest, {OTHER}:latest")
        screen.press("u")
        screen.shows("Unload which?", f"2 {OTHER}:latest")
        screen.press("2")
        screen.shows(f"Unload {OTHER}:latest from {key}?")
        screen.press("y")
        screen.shows(f"{OTHER}:latest is being unloaded from {key}")
        until(lambda: OTHER not in held(cluster, 0))
        screen.hides(f"{MODEL}:latest, {OTHER}:latest")
        screen.press(DOWN, "u")
        screen.shows(f"Unload {MODEL}:latest")
        screen.press(ESC)
        screen.shows("nothing was done")
        assert MODEL in held(cluster, 1)


def test_a_request_is_cancelled(stage: Stage) -> None:
    with long_requests(stage, 1) as answers, top(stage.url) as screen:
        screen.shows("1 running")
        screen.press("c")
        screen.shows("cancel: select a running or waiting request")
        screen.press(TAB, "c")
        screen.shows("Cancel request 1 (generate, llama3.2:latest)?")
        screen.press("y")
        screen.shows("request 1 is cancelled", "nothing running")
        until(lambda: answers)
        assert "an operator has cancelled this request" in answers[0].text


def test_a_failed_action_is_told(stage: Stage) -> None:
    with long_requests(stage, 1), top(stage.url) as screen:
        screen.shows("1 running")
        screen.press(TAB, "c")
        screen.shows("Cancel request 1")
        with stage.client() as client:
            client.post("/sollol/requests/1/cancel")
        screen.press("y")
        screen.shows("no request '1' waits or runs")


def test_a_gateway_with_keys_takes_the_admin_key(cluster: Cluster) -> None:
    ring = Keyring([Key("boss", hash_of(BOSS), app="boss", admin=True)], required=True)
    key = cluster.urls[0].removeprefix("http://")
    with gateway_over(cluster.urls, keyring=ring) as stage, top(stage.url, SOLLOL_API_KEY=BOSS) as screen:
        screen.shows(key)
        screen.press("d")
        screen.shows("Drain")
        screen.press("y")
        screen.shows(f"{key} is drained")
        assert BOSS.encode() not in screen.written


def test_a_key_without_admin_rights_only_looks(cluster: Cluster) -> None:
    ring = Keyring([Key("ann", hash_of(BOSS), app="anns-app")], required=True)
    with gateway_over(cluster.urls, keyring=ring) as stage, top(stage.url, SOLLOL_API_KEY=BOSS) as screen:
        screen.shows("SOLLOL  anns-app  2 of 2 nodes up", "shows the requests of 'anns-app' only")
        screen.press("d")
        screen.shows("drain: this key may only look; actions need one made with --admin")


# --- where there is no gateway ---


def test_a_dashboard_only_shows(cluster: Cluster) -> None:
    with OllamaPool(list(cluster)) as pool, UnifiedDashboard(pool, 0) as dashboard:
        pool.wait_ready()
        with top(dashboard.url) as screen:
            screen.shows("2 of 2 nodes up")
            screen.press("d")
            screen.shows("drain: a dashboard only shows")


def test_plain_nodes_unload_and_say_what_needs_a_gateway(cluster: Cluster) -> None:
    with screen_of("top", "--interval", "0.2", "--nodes", ",".join(cluster.urls)) as screen:
        screen.shows("the nodes alone", "models in memory")
        screen.press("d")
        screen.shows("drain: only a gateway can do this")
        screen.press("c")
        screen.shows("cancel: only a gateway can do this")
        screen.press(DOWN, "u")
        screen.shows(f"Unload {MODEL}:latest")
        screen.press("y")
        screen.shows(f"{MODEL}:latest is unloaded from")
        assert MODEL not in held(cluster, 1)
        screen.press("u")
        screen.shows("unload: no model is in the memory")


def test_the_gateway_goes_and_comes_back(cluster: Cluster) -> None:
    with OllamaPool(list(cluster)) as pool, UnifiedDashboard(pool, 0) as dashboard:
        pool.wait_ready()
        with top(dashboard.url) as screen:
            screen.shows("2 of 2 nodes up")
            dashboard.stop()
            screen.shows("trying again")
            dashboard.start()
            screen.hides("trying again")


# --- the end ---


@pytest.mark.parametrize("how", ["ctrl-c", "term", "hup", "q"])
def test_every_end_restores_the_terminal(stage: Stage, how: str) -> None:
    with top(stage.url) as screen:
        screen.shows("2 of 2 nodes up")
        assert screen.display.cursor.hidden
        if how in ("term", "hup"):
            screen.process.send_signal(signal.SIGTERM if how == "term" else signal.SIGHUP)
        else:
            screen.press("\x03" if how == "ctrl-c" else "q")
        assert screen.ended() == 0
        assert screen.is_restored()
        assert b"Traceback" not in screen.written


def test_a_suspended_one_gives_the_terminal_back_and_goes_on(stage: Stage) -> None:
    with top(stage.url) as screen:
        screen.shows("2 of 2 nodes up")
        screen.process.send_signal(signal.SIGTSTP)
        screen.until(lambda: os.waitid(os.P_PID, screen.process.pid, os.WSTOPPED | os.WNOWAIT | os.WNOHANG))
        screen.until(lambda: screen.written.endswith(b"\x1b[?1049l"))
        screen.process.send_signal(signal.SIGCONT)
        screen.until(lambda: screen.written.count(b"\x1b[?1049h") == 2)
        screen.press("?")
        screen.shows("Esc back")
