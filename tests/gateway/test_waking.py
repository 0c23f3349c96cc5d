"""A gateway wakes a machine on its second network card: in network namespaces, with a packet that the card receives."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from bench.lan import ROOT, Host, Lan

from sollol.gateway.settings import GatewaySettings
from sollol.node_options import parse_node_options
from tests.gateway.stage import Stage, gateway_over

pytestmark = [pytest.mark.root, pytest.mark.skipif(bool(Lan.missing()), reason=Lan.missing() or "network namespaces")]

AWAKE, SLEEPER = "10.78.0.20", "10.79.0.21"
KEY = f"{SLEEPER}:11434"
BOOT_S = 1.0
WAIT_S = 60.0
MODELS = [{"name": "llama3.2", "size_bytes": 2_000_000_000}]


@contextmanager
def machine(host: Host, ip: str, log: Path, tokens_per_s: float) -> Iterator[int]:
    """A machine that SIGUSR1 puts to sleep; its process id."""
    speed = {"decode_tokens_per_s": tokens_per_s, "prefill_tokens_per_s": 10_000, "load_bytes_per_s": 20_000_000_000}
    words = (
        "-m",
        "tests.gateway.sleeping_machine",
        "e0",
        f"{ip}/24",
        str(BOOT_S),
        json.dumps({"models": MODELS, **speed}),
    )
    env = {**os.environ, "PYTHONPATH": f"{ROOT / 'src'}{os.pathsep}{ROOT}"}
    with log.open("w") as output:
        process = subprocess.Popen(host.command(sys.executable, *words), stdout=output, env=env)
    try:
        until(lambda: events(log))
        yield process.pid
    finally:
        process.kill()
        process.wait()


def events(log: Path) -> list[str]:
    return log.read_text().split()


def until(true: Callable[[], Any]) -> None:
    end = time.monotonic() + WAIT_S
    while not true():
        assert time.monotonic() < end, "it did not happen"
        time.sleep(0.05)


def node_state(stage: Stage) -> str:
    rows = stage.look(lambda gateway: gateway.pool.snapshot())["nodes"]
    return next(str(row["state"]) for row in rows if row["host"] == KEY)


def ask(stage: Stage, tokens: int, node: str = "") -> str:
    body = {"model": "llama3.2", "prompt": "Hello", "stream": False, "options": {"num_predict": tokens}}
    headers = {"X-Sollol-Node": node} if node else {}
    with stage.client(headers=headers) as client:
        answer = client.post("/api/generate", json=body, timeout=WAIT_S)
    assert answer.status_code == 200, answer.text
    return answer.headers["x-sollol-node"]


def scenario(mac: str, pid: int, log: Path) -> None:
    """Run on the machine of the gateway."""
    options = {KEY: parse_node_options({"mac": mac})}
    settings = GatewaySettings(node_options=options)
    with gateway_over([f"http://{AWAKE}:11434", f"http://{KEY}"], settings) as stage:
        assert ask(stage, 5, KEY) == KEY
        for _ in range(3):  # its time is measured
            assert ask(stage, 2, f"{AWAKE}:11434") == f"{AWAKE}:11434"

        def sleep() -> None:
            os.kill(pid, signal.SIGUSR1)
            until(lambda: events(log)[-1] == "asleep")
            stage.look(lambda gateway: gateway.engine.refresh())
            until(lambda: node_state(stage) == "asleep")

        # An operator wakes it, and its boot is measured.
        sleep()
        with stage.client() as client:
            assert client.post(f"/sollol/nodes/{KEY}/wake").status_code == 200
        until(lambda: node_state(stage) == "up")
        boot_us = stage.look(lambda gateway: gateway.engine.scheduler.view().nodes[KEY].boot.read())
        assert boot_us is not None
        assert BOOT_S <= boot_us / 1e6 < 30
        assert events(log).count("packet") == 1

        # It sleeps through tasks that wait for less than its boot.
        sleep()
        with ThreadPoolExecutor(4) as threads:
            assert set(threads.map(lambda _: ask(stage, 2), range(4))) == {f"{AWAKE}:11434"}
        assert events(log).count("packet") == 1
        assert node_state(stage) == "asleep"

        # The queue grows: it is woken, once, and used.
        with ThreadPoolExecutor(30) as threads:
            used = list(threads.map(lambda _: ask(stage, 60), range(30)))
        assert used.count(KEY) > 5
        assert events(log).count("packet") == 2
        assert node_state(stage) == "up"


def test_a_machine_on_the_second_network_is_woken_once_and_used(tmp_path: Path) -> None:
    log = tmp_path / "events"
    with Lan() as lan:
        always, sleeper = lan.host(f"{AWAKE}/24"), lan.host(f"{SLEEPER}/24")
        client = lan.host("10.78.0.10/24", "10.79.0.10/24")
        client.route("10.78.0.1")  # 255.255.255.255 would leave through the first card
        shown = subprocess.run(
            sleeper.command("cat", "/sys/class/net/e0/address"), capture_output=True, text=True, check=True
        )
        with machine(always, AWAKE, tmp_path / "awake", 20.0), machine(sleeper, SLEEPER, log, 200.0) as pid:
            given = f"{shown.stdout.strip()!r}, {pid}, Path({str(log)!r})"
            client.python(f"from tests.gateway.test_waking import *; scenario({given})", timeout_s=4 * WAIT_S)
