"""`python -m sollol.sim` as a command: what cannot be served is said in a sentence."""

from __future__ import annotations

import subprocess
import sys

from sollol.sim.serve import sim_cluster


def test_a_port_that_is_taken_is_told_without_a_traceback() -> None:
    with sim_cluster(1) as nodes:
        port = nodes.urls[0].rpartition(":")[2]
        command = [sys.executable, "-m", "sollol.sim", "--port", port, "--nodes", "2"]
        ended = subprocess.run(command, capture_output=True, text=True, timeout=30, check=False)
    assert ended.returncode == 2
    assert ended.stderr.startswith(f"sollol.sim: cannot listen on 127.0.0.1:{port}: ")
    assert "choose another --port" in ended.stderr
    assert "Traceback" not in ended.stderr


def test_an_address_that_is_none_is_told_too() -> None:
    command = [sys.executable, "-m", "sollol.sim", "--host", "no-such-host.invalid"]
    ended = subprocess.run(command, capture_output=True, text=True, timeout=30, check=False)
    assert ended.returncode == 2
    assert "cannot listen on no-such-host.invalid" in ended.stderr
    assert "Traceback" not in ended.stderr
