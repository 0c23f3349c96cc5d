"""`sollol serve` as a process: it greets, reloads, drains, checks, and refuses what cannot work."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx
import pytest

from sollol.sim import NodeSpec
from sollol.sim.serve import free_port, sim_cluster

WAIT_S = 20


def environment(tmp_path: Path) -> dict[str, str]:
    kept = {name: value for name, value in os.environ.items() if not name.startswith(("SOLLOL", "OLLAMA"))}
    homes = {"XDG_CONFIG_HOME": str(tmp_path / "config"), "XDG_STATE_HOME": str(tmp_path / "state")}
    return {**kept, **homes, "NO_COLOR": "1"}


def sollol(tmp_path: Path, *words: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "sollol", *words]
    return subprocess.run(
        command, env=environment(tmp_path), cwd=tmp_path, capture_output=True, text=True, timeout=WAIT_S, check=False
    )


@contextmanager
def serving(tmp_path: Path, *words: str) -> Iterator[tuple[subprocess.Popen[str], str]]:
    command = [sys.executable, "-m", "sollol", "serve", "--port", "0", *words]
    process = subprocess.Popen(
        command, env=environment(tmp_path), cwd=tmp_path, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    try:
        assert process.stdout is not None
        url = process.stdout.readline().strip()
        assert url.startswith("http://"), process.stderr and process.stderr.read()
        yield process, url
    finally:
        if process.poll() is None:
            process.kill()
        process.communicate()


def wait_for(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + WAIT_S
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.05)


def ask(url: str, model: str = "llama3.2", tokens: int = 3, stream: bool = False) -> httpx.Response:
    body = {"model": model, "prompt": "x", "stream": stream, "options": {"num_predict": tokens}}
    return httpx.post(f"{url}/api/generate", json=body, timeout=WAIT_S, trust_env=False)


def test_it_may_open_as_many_files_as_the_system_lets_it(tmp_path: Path) -> None:
    resource = pytest.importorskip("resource")
    if not Path("/proc/self/limits").exists():
        pytest.skip("no /proc here")
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if hard <= 256:
        pytest.skip("nothing to raise")
    resource.setrlimit(resource.RLIMIT_NOFILE, (256, hard))
    try:
        with sim_cluster(1) as nodes, serving(tmp_path, "--nodes", nodes.urls[0]) as (process, _):
            limits = Path(f"/proc/{process.pid}/limits").read_text()
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
    line = next(line for line in limits.splitlines() if line.startswith("Max open files"))
    assert line.split()[3] == ("unlimited" if hard == resource.RLIM_INFINITY else str(hard))


def test_it_ends_what_it_has_begun(tmp_path: Path) -> None:
    slow = NodeSpec(decode_tokens_per_s=10.0, loaded=("llama3.2",))
    with sim_cluster([slow]) as nodes, serving(tmp_path, "--nodes", nodes.urls[0]) as (process, url):
        answers: list[httpx.Response] = []
        thread = threading.Thread(target=lambda: answers.append(ask(url, tokens=10, stream=True)))
        thread.start()
        time.sleep(0.5)
        process.send_signal(signal.SIGTERM)
        time.sleep(0.2)
        with pytest.raises(httpx.ConnectError):
            ask(url)
        thread.join()
        assert b'"done":true' in answers[0].content
        assert process.wait(WAIT_S) == 0


def test_it_reloads_under_load_without_losing_a_request(tmp_path: Path) -> None:
    config = tmp_path / "sollol.toml"
    with sim_cluster([NodeSpec(decode_tokens_per_s=500.0, seed=i) for i in range(2)]) as nodes:
        config.write_text(f"nodes = [{nodes.urls[0]!r}]\n")
        with serving(tmp_path) as (process, url):
            statuses: list[int] = []
            going = threading.Event()

            def load() -> None:
                while not going.is_set():
                    statuses.append(ask(url).status_code)

            threads = [threading.Thread(target=load) for _ in range(4)]
            for thread in threads:
                thread.start()
            deadline, round_ = time.monotonic() + WAIT_S, 0
            while (round_ < 6 or len(statuses) < 20) and time.monotonic() < deadline:
                round_ += 1
                config.write_text(
                    f"nodes = [{nodes.urls[round_ % 2]!r}, {nodes.urls[1]!r}]\n[aliases]\nnew = 'llama3.2'\n"
                )
                process.send_signal(signal.SIGHUP)
                time.sleep(0.15)
            going.set()
            for thread in threads:
                thread.join()
            assert len(statuses) >= 20
            assert set(statuses) == {200}
            assert ask(url, "new").status_code == 200
            config.write_text("nodes = 3\n")
            process.send_signal(signal.SIGHUP)
            assert ask(url, "new").status_code == 200


def test_keys_are_asked_for_elsewhere_than_on_this_machine(tmp_path: Path) -> None:
    with sim_cluster(1) as nodes:
        refused = sollol(tmp_path, "serve", "--host", "0.0.0.0", "--nodes", nodes.urls[0])
        assert refused.returncode == 2
        assert "sollol keys add" in refused.stderr
        made = sollol(tmp_path, "keys", "add", "me", "--admin")
        token = made.stdout.strip()
        assert made.returncode == 0
        assert token.startswith("sk-sollol-")
        listed = sollol(tmp_path, "keys", "list")
        assert token not in listed.stdout
        assert "me" in listed.stdout
        with serving(tmp_path, "--host", "0.0.0.0", "--nodes", nodes.urls[0]) as (_, url):
            local = url.replace("0.0.0.0", "127.0.0.1")
            assert httpx.get(f"{local}/api/tags", trust_env=False).status_code == 401
            bearer = {"Authorization": f"Bearer {token}"}
            assert httpx.get(f"{local}/api/tags", headers=bearer, trust_env=False).status_code == 200
            assert sollol(tmp_path, "keys", "revoke", "me").returncode == 0
            deadline = time.monotonic() + 10
            while httpx.get(f"{local}/api/tags", headers=bearer, trust_env=False).status_code == 200:
                assert time.monotonic() < deadline
                time.sleep(0.1)


def test_nodes_of_the_command_line_are_over_those_of_the_file(tmp_path: Path) -> None:
    with sim_cluster(1) as nodes:
        config = tmp_path / "sollol.toml"
        config.write_text('nodes = ["127.0.0.1:1"]\n')
        with serving(tmp_path, "--nodes", nodes.urls[0]) as (process, url):
            assert ask(url).status_code == 200
            config.write_text('nodes = ["127.0.0.1:2"]\n[aliases]\nnew = "llama3.2"\n')
            process.send_signal(signal.SIGHUP)
            wait_for(lambda: ask(url, "new").status_code == 200)
            told = httpx.get(f"{url}/sollol/nodes", trust_env=False).json()["nodes"]
            assert [node["host"] for node in told] == [nodes.urls[0].removeprefix("http://")]


def test_keys_asked_for_from_now_on(tmp_path: Path) -> None:
    """A gateway that began without keys, and without a keys file, takes up both."""
    config, keys = tmp_path / "sollol.toml", tmp_path / "elsewhere.json"
    config.write_text("")
    with sim_cluster(1) as nodes, serving(tmp_path, "--nodes", nodes.urls[0]) as (process, url):

        def status(token: str = "nobody") -> int:
            headers = {"Authorization": f"Bearer {token}"}
            return httpx.get(f"{url}/api/tags", headers=headers, trust_env=False).status_code

        assert status() == 200
        config.write_text(f'[gateway]\nrequire_keys = true\nkeys_file = "{keys}"\n')
        process.send_signal(signal.SIGHUP)
        wait_for(lambda: status() == 401)
        token = sollol(tmp_path, "keys", "add", "me").stdout.strip()
        assert keys.exists()
        wait_for(lambda: status(token) == 200)
        assert status() == 401


def test_check_tells_what_is_wrong(tmp_path: Path) -> None:
    with sim_cluster(1) as nodes:
        good = sollol(tmp_path, "serve", "--check", "--port", str(free_port()), "--nodes", nodes.urls[0])
        assert good.returncode == 0, good.stdout
        (tmp_path / "sollol.toml").write_text("[aliases]\n'gpt-4o' = 'nothing'\n")
        bad = sollol(tmp_path, "serve", "--check", "--nodes", f"{nodes.urls[0]},127.0.0.1:1")
        assert bad.returncode == 2
        assert "nothing is on no node" in bad.stdout
        assert "refused the connection" in bad.stdout


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (("--port", "99999"), "99999"),
        (("--config", "/nowhere.toml"), "/nowhere.toml"),
        (("--nodes", ""), "--nodes is empty"),
    ],
)
def test_what_cannot_be_used_ends_with_2(tmp_path: Path, words: tuple[str, ...], told: str) -> None:
    ended = sollol(tmp_path, "serve", *words)
    assert ended.returncode == 2
    assert told in ended.stderr


def test_a_port_that_is_taken_is_told(tmp_path: Path) -> None:
    with sim_cluster(1) as nodes, serving(tmp_path, "--nodes", nodes.urls[0]) as (_, url):
        ended = sollol(tmp_path, "serve", "--port", url.rpartition(":")[2], "--nodes", nodes.urls[0])
        assert ended.returncode == 75  # EX_TEMPFAIL: the unit tries again
        assert "--port" in ended.stderr


def test_a_reload_says_what_it_does_not_take_up(tmp_path: Path) -> None:
    with sim_cluster(1) as nodes:
        config = tmp_path / "sollol.toml"
        config.write_text(f'nodes = ["{nodes.urls[0]}"]\n')
        command = [sys.executable, "-m", "sollol", "serve"]
        config.write_text(f'nodes = ["{nodes.urls[0]}"]\n[gateway]\nport = {free_port()}\n')
        process = subprocess.Popen(
            command, env=environment(tmp_path), cwd=tmp_path, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
        )
        try:
            assert process.stdout is not None
            assert process.stderr is not None
            url = process.stdout.readline().strip()
            other = free_port()
            config.write_text(f'[gateway]\nport = {other}\nhost = "127.0.0.2"\n[aliases]\nnew = "llama3.2"\n')
            process.send_signal(signal.SIGHUP)
            wait_for(lambda: ask(url, "new").status_code == 200)
            process.send_signal(signal.SIGTERM)
            told = process.communicate(timeout=WAIT_S)[1]
        finally:
            process.kill()
            process.communicate()
        assert f"port is {other} now, and {url.rpartition(':')[2]} stays in use" in told
        assert "host is '127.0.0.2' now" in told
        assert "nodes names none now" in told


@pytest.mark.parametrize("words", [("--check",), ()])
def test_all_bad_settings_are_named_at_once(tmp_path: Path, words: tuple[str, ...]) -> None:
    (tmp_path / "sollol.toml").write_text(
        'nodes = ["a b"]\nnickname = 3\napp_name = 4\nlimits = { queue = 0, max_body_mb = "many", qeue = 3 }\n'
        "[discovery]\nports = [0]\nsubnet = []\n"
        '[gateway]\nport = 70000\ncors_origins = ["http://a/b", "c"]\n'
        '[routing]\nmode = "soon"\n[aliases]\ngood = "llama3.2"\nbad = 3\nworse = ""\n'
        'round = "about"\nabout = "round"\n'
    )
    ended = sollol(tmp_path, "serve", *words)
    assert ended.returncode == 2
    for told in (
        "nodes: ['a b']", "nickname is not a setting", "app_name: 4", "limits.queue: 0", "limits.max_body_mb: 'many'",
        "limits.qeue is not a setting", "discovery.subnet is not a setting", "discovery.ports: [0]",
        "gateway.port: 70000", "gateway.cors_origins: 'http://a/b'", "gateway.cors_origins: 'c'",
        "routing.mode: 'soon'", "aliases", "never end",
    ):  # fmt: skip
        assert told in " ".join(ended.stderr.split()), told
    assert "15 settings cannot be used" in ended.stderr


def test_the_file_beside_counts_for_every_command(tmp_path: Path) -> None:
    with sim_cluster(1) as nodes:
        port = free_port()
        (tmp_path / "sollol.toml").write_text(f'nodes = ["{nodes.urls[0]}"]\n[gateway]\nport = {port}\n')
        key = nodes.urls[0].removeprefix("http://")
        for words in (("nodes",), ("nodes", "--json")):
            ended = sollol(tmp_path, *words)
            assert (ended.returncode, key in ended.stdout) == (0, True), ended.stderr
        command = [sys.executable, "-m", "sollol", "serve"]
        process = subprocess.Popen(
            command, env=environment(tmp_path), cwd=tmp_path, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
        )
        try:
            assert process.stdout is not None
            assert process.stdout.readline().strip() == f"http://127.0.0.1:{port}"
            number = ask(f"http://127.0.0.1:{port}").headers["x-sollol-request-id"]
            assert f"Call {number}" in sollol(tmp_path, "explain", number).stdout
        finally:
            process.kill()
            process.communicate()
        (tmp_path / "sollol.toml").write_text("nodes = 3\n")
        refused = sollol(tmp_path, "nodes")
        assert refused.returncode == 2
        assert "sollol.toml: nodes" in refused.stderr


def test_init_writes_a_file_that_serves(tmp_path: Path) -> None:
    assert sollol(tmp_path, "init").returncode == 0
    again: Any = sollol(tmp_path, "init")
    assert again.returncode == 2
    assert "--force" in again.stderr
    with sim_cluster(1) as nodes, serving(tmp_path, "--nodes", nodes.urls[0]) as (_, url):
        assert ask(url).status_code == 200


def test_top_and_explain_read_a_gateway(tmp_path: Path) -> None:
    with sim_cluster(1) as nodes, serving(tmp_path, "--nodes", nodes.urls[0]) as (_, url):
        number = ask(url).headers["x-sollol-request-id"]
        explained = sollol(tmp_path, "explain", number, "--url", url)
        assert explained.returncode == 0, explained.stderr
        assert nodes.urls[0].removeprefix("http://") in explained.stdout


FILES = """
import resource
resource.setrlimit(resource.RLIMIT_NOFILE, ({soft}, {hard}))
from sollol.cli.serving import _allow_open_files
_allow_open_files()
print(resource.getrlimit(resource.RLIMIT_NOFILE)[0])
"""


@pytest.mark.skipif(sys.platform == "win32", reason="there is no such limit")
@pytest.mark.parametrize(
    ("soft", "hard", "told"),
    [(256, 8192, "Open files: 8,192 (the limit was 256)."), (256, 512, "at most 512 open files"), (8192, 8192, "")],
)
def test_a_low_limit_of_open_files_is_raised_and_told(tmp_path: Path, soft: int, hard: int, told: str) -> None:
    script = FILES.format(soft=soft, hard=hard)
    done = subprocess.run(
        [sys.executable, "-c", script], env=environment(tmp_path), capture_output=True, text=True, check=True
    )
    assert done.stdout.strip() == str(hard)
    assert told in done.stderr
    assert bool(told) is bool(done.stderr)
