"""What the gateway is held against, as processes: nginx, Caddy and the LiteLLM proxy, and the backends behind them.

The proxy under measurement runs on the first core, backends and load on the second, so that they do not take each
other's time. `make bench-tools` installs what is not there; what is missing is a row that says so.
"""

from __future__ import annotations

import contextlib
import json
import os
import resource
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

from sollol.sim.serve import free_port

PROXY_CORE, LOAD_CORE = 0, 1
LITELLM = Path(__file__).parents[1] / ".venv-litellm" / "bin" / "litellm"
MODEL = "llama3.2"
ANSWER = json.dumps(
    {
        "model": MODEL,
        "created_at": "2026-11-25T19:47:11.969484001Z",
        "message": {"role": "assistant", "content": " returns orchard copper. gathers. garden waits a cold stone."},
        "done": True,
        "done_reason": "stop",
        "total_duration": 86000000,
        "load_duration": 1000000,
        "prompt_eval_count": 48,
        "prompt_eval_duration": 1000000,
        "eval_count": 17,
        "eval_duration": 85000000,
    },
    separators=(",", ":"),
)  # fmt: skip
CHAT = {"model": MODEL, "messages": [{"role": "user", "content": "Hello there, who are you?"}], "stream": False}
TAGS = json.dumps({"models": [{"name": f"{MODEL}:latest", "model": f"{MODEL}:latest", "size": 100, "digest": "a"}]})
PS = json.dumps(
    {"models": [{"name": f"{MODEL}:latest", "model": f"{MODEL}:latest", "size": 100, "size_vram": 100, "digest": "a"}]}
)
_NGINX = """
worker_processes 1; daemon off; pid {home}/{name}.pid; error_log {home}/{name}.log crit;
events {{ worker_connections 8192; }}
http {{
  access_log off; keepalive_requests 100000000; default_type application/json; client_body_buffer_size 64k;
  client_body_temp_path {home}/{name}-body; proxy_temp_path {home}/{name}-proxy; fastcgi_temp_path {home}/f;
  uwsgi_temp_path {home}/u; scgi_temp_path {home}/s;
  {inside}
}}
"""


class Running:
    """A process that listens on a port."""

    def __init__(self, name: str, port: int, process: subprocess.Popen[bytes]) -> None:
        self.name = name
        self.port = port
        self.process = process

    def cpu_s(self) -> float:
        """Seconds of processor time that it and its children have used."""
        return sum(_cpu_s(pid) for pid in _family(self.process.pid))

    @contextlib.contextmanager
    def frozen(self) -> Iterator[None]:
        """Stop the process, and continue it at the end."""
        self.process.send_signal(signal.SIGSTOP)
        try:
            yield
        finally:
            self.process.send_signal(signal.SIGCONT)

    def rss_bytes(self) -> int:
        """Memory that it and its children hold."""
        pages = sum(int(Path(f"/proc/{pid}/statm").read_text().split()[1]) for pid in _family(self.process.pid))
        return pages * os.sysconf("SC_PAGE_SIZE")


def _cpu_s(pid: int) -> float:
    """To the nanosecond, where the kernel tells it; `stat` counts in hundredths of a second."""
    try:
        threads = Path(f"/proc/{pid}/task").iterdir()
        return sum(int((thread / "schedstat").read_text().split()[0]) for thread in threads) / 1e9
    except FileNotFoundError:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
        return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def _family(pid: int) -> list[int]:
    found = [pid]
    for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split():
        found += _family(int(child))
    return found


@contextlib.contextmanager
def on_load_core() -> Iterator[None]:
    """This process, as the load, beside the proxy and not on its core; and with as many sockets as it may have."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    cores = os.sched_getaffinity(0)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    os.sched_setaffinity(0, {LOAD_CORE} & cores or cores)
    try:
        yield
    finally:
        os.sched_setaffinity(0, cores)
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


def free_ports(count: int) -> int:
    """The first of so many ports in a row that nobody listens on."""
    for first in range(20_000, 32_000 - count, 500):
        with contextlib.ExitStack() as stack, contextlib.suppress(OSError):
            for port in range(first, first + count):
                stack.enter_context(socket.socket()).bind(("127.0.0.1", port))
            return first
    raise RuntimeError(f"no {count} free ports in a row below 32000")


def pinned(core: int, command: Sequence[str]) -> list[str]:
    """The command on one core, where the system can do that."""
    return ["taskset", "-c", str(core), *command] if shutil.which("taskset") else list(command)


@contextlib.contextmanager
def running(
    name: str,
    port: int,
    command: Sequence[str],
    *,
    core: int = PROXY_CORE,
    wait_s: float = 10.0,
    more: Mapping[str, str] | None = None,
) -> Iterator[Running]:
    """Start, wait until it accepts connections, and end it. `more`: environment variables."""
    env = {**os.environ, **(more or {})}
    process = subprocess.Popen(pinned(core, command), env=env, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        _await_port(name, port, process, wait_s)
        yield Running(name, port, process)
    finally:
        process.terminate()
        try:
            process.wait(5)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


def _await_port(name: str, port: int, process: subprocess.Popen[bytes], wait_s: float) -> None:
    deadline = time.monotonic() + wait_s
    while time.monotonic() < deadline:
        if process.poll() is not None:
            raise RuntimeError(f"{name} ended with {process.returncode} before it listened")
        with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port), 1.0):
            return
        time.sleep(0.05)
    raise RuntimeError(f"{name} did not listen on {port} within {wait_s:g} s")


@contextlib.contextmanager
def _nginx(name: str, port: int, inside: str, core: int) -> Iterator[Running]:
    with tempfile.TemporaryDirectory() as home:
        path = Path(home) / "nginx.conf"
        path.write_text(_NGINX.format(home=home, name=name, inside=inside))
        with running(name, port, ["nginx", "-c", str(path)], core=core) as found:
            yield found


@contextlib.contextmanager
def instant_backend(count: int = 2) -> Iterator[list[int]]:
    """Nodes that answer at once, as fast as anything can: nginx with a canned answer. Their ports."""
    ports = [free_port() for _ in range(count)]
    routes = {"/api/chat": ANSWER, "/api/version": '{"version":"0.33.0"}', "/api/tags": TAGS, "/api/ps": PS}
    inside = " ".join(f"location = {path} {{ return 200 '{body}'; }}" for path, body in routes.items())
    listens = " ".join(f"listen 127.0.0.1:{port};" for port in ports)
    with _nginx("backend", ports[0], f"server {{ {listens} {inside} }}", LOAD_CORE):
        yield ports


@contextlib.contextmanager
def nginx(backends: Sequence[int]) -> Iterator[Running]:
    """least_conn over the backends, with connections kept and streams not buffered."""
    port = free_port()
    servers = " ".join(f"server 127.0.0.1:{backend};" for backend in backends)
    inside = (
        f"upstream nodes {{ least_conn; {servers} keepalive 256; keepalive_requests 100000000; }}"
        f"server {{ listen 127.0.0.1:{port}; location / {{ proxy_pass http://nodes; proxy_http_version 1.1;"
        ' proxy_set_header Connection ""; proxy_buffering off; } }'
    )
    with _nginx("nginx", port, inside, PROXY_CORE) as found:
        yield found


@contextlib.contextmanager
def caddy(backends: Sequence[int]) -> Iterator[Running]:
    port = free_port()
    upstreams = " ".join(f"127.0.0.1:{backend}" for backend in backends)
    with tempfile.TemporaryDirectory() as home:
        path = Path(home) / "Caddyfile"
        path.write_text(
            "{\n admin off\n auto_https off\n}\n"
            f"http://127.0.0.1:{port} {{\n reverse_proxy {upstreams} {{\n"
            "  lb_policy least_conn\n  flush_interval -1\n }\n}\n"
        )
        command = ["caddy", "run", "--config", str(path), "--adapter", "caddyfile"]
        with running("Caddy", port, command, more={"HOME": home, "GOMAXPROCS": "1"}) as found:
            yield found


@contextlib.contextmanager
def litellm(backends: Sequence[int]) -> Iterator[Running]:
    port = free_port()
    models = "\n".join(
        f"  - model_name: {MODEL}\n    litellm_params:\n      model: ollama_chat/{MODEL}\n"
        f"      api_base: http://127.0.0.1:{backend}"
        for backend in backends
    )
    with tempfile.TemporaryDirectory() as home:
        path = Path(home) / "config.yaml"
        path.write_text(f"model_list:\n{models}\nlitellm_settings:\n  telemetry: false\n")
        command = [
            str(LITELLM),
            "--config",
            str(path),
            "--host",
            "127.0.0.1",
            "--port",
            str(port),
            "--num_workers",
            "1",
        ]
        env = {"LITELLM_LOCAL_MODEL_COST_MAP": "True", "HOME": home, "LITELLM_LOG": "ERROR"}
        env["LITELLM_DANGEROUSLY_PERMIT_WEAK_OR_UNSET_MASTER_KEY"] = "true"
        with running("LiteLLM", port, command, wait_s=90.0, more=env) as found:
            yield found


@contextlib.contextmanager
def sollol(
    backends: Sequence[int], program: Sequence[str] = ("sollol",), options: Sequence[str] = (), **settings: str
) -> Iterator[Running]:
    """Our gateway, as it comes. `program`: a module and what precedes `serve`; `settings`: environment variables."""
    port = free_port()
    nodes = ",".join(f"127.0.0.1:{backend}" for backend in backends)
    with tempfile.TemporaryDirectory() as home:
        homes = dict.fromkeys(("XDG_CONFIG_HOME", "XDG_STATE_HOME", "XDG_DATA_HOME"), home)
        env = {"SOLLOL_NODES": nodes, "SOLLOL_CONFIG": "", "SOLLOL_API_KEYS": "", **homes, **settings}
        command = [sys.executable, "-m", *program, "serve", "--port", str(port), *options]
        with running("sollol", port, command, wait_s=20.0, more=env) as found:
            yield found


@contextlib.contextmanager
def redis() -> Iterator[Running]:
    """An empty Redis without persistence."""
    port = free_port()
    command = ["redis-server", "--port", str(port), "--bind", "127.0.0.1", "--save", "", "--appendonly", "no"]
    with running("Redis", port, command, core=LOAD_CORE) as found:
        yield found


def missing(*programs: str) -> str:
    """Why a measurement cannot be made, or "" if it can."""
    absent = [name for name in programs if not (LITELLM.exists() if name == "litellm" else shutil.which(name))]
    return f"{', '.join(absent)} not installed; `make bench-tools`" if absent else ""


def compiled() -> bool:
    """Does the scheduler run compiled?"""
    import sollol.core.scheduler as module

    return not str(module.__file__).endswith(".py")
