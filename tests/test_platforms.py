"""What runs where the system lacks signals of a loop, files limits, locks and forks, as Windows does.

A script takes away what Windows has not, after the libraries are loaded, and then runs the real commands.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import httpx
import pytest

from sollol.sim.serve import free_port, sim_cluster

WAIT_S = 30
FAKE = r"""
import asyncio, importlib, os, signal, socket, sys
import click, httptools, ifaddr, msgspec, rich.console, rich.progress, rich.table, typer, typer.core
import ssl, subprocess, tempfile, tomllib, multiprocessing.connection

for name in ("resource", "fcntl", "termios", "tty", "pwd", "grp", "pty", "uvloop"):
    sys.modules[name] = None
signal.SIGBREAK = signal.SIGUSR1
for name in ("SIGHUP", "SIGKILL", "SIGSTOP", "SIGCONT", "SIGUSR1", "SIGUSR2", "SIGALRM", "SIGCHLD", "SIGQUIT"):
    if hasattr(signal, name):
        delattr(signal, name)
for name in ("fork", "forkpty", "register_at_fork", "getuid", "geteuid", "getpgid", "setsid", "fchmod", "uname"):
    if hasattr(os, name):
        delattr(os, name)
for name in ("SO_REUSEPORT", "TCP_USER_TIMEOUT"):
    if hasattr(socket, name):
        delattr(socket, name)


class Loop(asyncio.SelectorEventLoop):
    def add_signal_handler(self, *args):
        raise NotImplementedError

    remove_signal_handler = add_signal_handler

    def add_reader(self, *args):
        raise NotImplementedError

    add_writer = add_reader


class Policy(asyncio.DefaultEventLoopPolicy):
    _loop_factory = Loop


asyncio.set_event_loop_policy(Policy())
asyncio.ProactorEventLoop = Loop
sys.platform = "win32"
if sys.argv[1] == "import":
    for name in sys.argv[2:]:
        importlib.import_module(name)
    print("imported")
elif sys.argv[1] == "sim":
    from sollol.sim.__main__ import main
    sys.argv[1:2] = []
    main()
elif sys.argv[1] == "pool":
    from sollol import OllamaPool
    with OllamaPool(sys.argv[2:]) as pool:
        answer = pool.generate("llama3.2", "x", options={"num_predict": 3})
        print(bool(answer.response), pool.nodes[0].state, pool.count_unique_physical_hosts())
else:
    from sollol.cli import main
    sys.argv = ["sollol", *sys.argv[1:]]
    main()
"""


def start(tmp_path: Path, *words: str) -> subprocess.Popen[str]:
    kept = {name: value for name, value in os.environ.items() if not name.startswith(("SOLLOL", "OLLAMA"))}
    environment = {**kept, "XDG_CONFIG_HOME": str(tmp_path), "NO_COLOR": "1"}
    return subprocess.Popen(
        [sys.executable, "-c", FAKE, *words],
        env=environment, cwd=tmp_path, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip


def ran(tmp_path: Path, *words: str) -> tuple[int, str, str]:
    process = start(tmp_path, *words)
    out, err = process.communicate(timeout=WAIT_S)
    return process.returncode, out, err


def modules() -> list[str]:
    source = Path(__file__).parents[1] / "src"
    found = (path.relative_to(source).with_suffix("").parts for path in sorted((source / "sollol").rglob("*.py")))
    names = {".".join(parts[:-1] if parts[-1] == "__init__" else parts) for parts in found}
    return sorted(names - {"sollol.__main__"})


def test_every_module_can_be_imported(tmp_path: Path) -> None:
    assert ran(tmp_path, "import", *modules()) == (0, "imported\n", "")


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_the_gateway_serves_and_ends_with_a_signal(tmp_path: Path, number: signal.Signals) -> None:
    with sim_cluster(1) as nodes:
        process = start(tmp_path, "serve", "--port", "0", "--nodes", nodes.urls[0])
        try:
            assert process.stdout is not None
            url = process.stdout.readline().strip()
            assert url.startswith("http://"), process.stderr and process.stderr.read()
            body = {"model": "llama3.2", "prompt": "x", "stream": False, "options": {"num_predict": 3}}
            assert httpx.post(f"{url}/api/generate", json=body, trust_env=False, timeout=WAIT_S).status_code == 200
            process.send_signal(number)
            _, err = process.communicate(timeout=WAIT_S)
        finally:
            process.kill()
            process.communicate()
        assert process.returncode == 0
        assert "Ending" in err
        assert "Traceback" not in err


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_simulated_nodes_serve_and_end_with_a_signal(tmp_path: Path, number: signal.Signals) -> None:
    process = start(tmp_path, "sim", "--nodes", "2")
    try:
        assert process.stdout is not None
        lines = [process.stdout.readline() for _ in range(2)]
        assert all(line.startswith('{"url"') for line in lines), process.stderr and process.stderr.read()
        time.sleep(0.2)
        process.send_signal(number)
        _, err = process.communicate(timeout=WAIT_S)
    finally:
        process.kill()
        process.communicate()
    assert (process.returncode, err) == (0, "")


def test_a_pool_answers(tmp_path: Path) -> None:
    with sim_cluster(1) as nodes:
        assert ran(tmp_path, "pool", nodes.urls[0]) == (0, "True up 1\n", "")


@pytest.mark.parametrize("words", ["keys add me", "init made.toml", "nodes", "serve --check", "ps", "discover --json"])
def test_commands_work(tmp_path: Path, words: str) -> None:
    with sim_cluster(1) as nodes:
        (tmp_path / "sollol.toml").write_text(
            f'nodes = ["{nodes.urls[0]}"]\n[discovery]\nsubnets = ["127.0.0.1/32"]\n[gateway]\nport = {free_port()}\n'
        )
        code, out, err = ran(tmp_path, *words.split())
    assert (code, "Traceback" in err) == (0, False), err
    assert out or words in ("init made.toml", "ps")
