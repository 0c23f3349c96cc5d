"""`sollol serve` as a service: messages to systemd, its journal, levels and forms of lines, a watchdog."""

from __future__ import annotations

import os
import re
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import httpx
import pytest
from typer.testing import Result

from sollol.cli import console, service_notify
from sollol.sim import NodeSpec
from sollol.sim.serve import Cluster, sim_cluster
from tests.cli.test_serve import WAIT_S, ask, environment, wait_for

Run = Callable[..., Result]
if sys.platform == "win32":
    pytest.skip("no systemd", allow_module_level=True)


@pytest.fixture(scope="module")
def nodes() -> Iterator[Cluster]:
    with sim_cluster([NodeSpec(decode_tokens_per_s=20.0, loaded=("llama3.2",))]) as found:
        yield found


class Service:
    """The process, its address, what it has written, and what it has sent to the service manager."""

    def __init__(self, process: subprocess.Popen[str], errors: Path, manager: socket.socket | None) -> None:
        self.process, self._errors, self._manager = process, errors, manager
        assert process.stdout is not None
        self.url = process.stdout.readline().strip()
        self.sent: list[str] = []

    @property
    def lines(self) -> list[str]:
        return self._errors.read_text().splitlines()

    def receives(self, line: str) -> str:
        """Wait for a message with this line."""
        assert self._manager is not None
        while True:
            self.sent.append(self._manager.recv(4096).decode())
            if line in self.sent[-1].splitlines():
                return self.sent[-1]


@contextmanager
def service(tmp_path: Path, nodes: Cluster, *words: str, notify: str = "", **more: str) -> Iterator[Service]:
    """`notify`: the address of the service manager, a path or an abstract name."""
    manager = None
    given = {**environment(tmp_path), **more}
    if notify:
        manager = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        manager.settimeout(WAIT_S)
        manager.bind("\0" + notify[1:] if notify.startswith("@") else notify)
        given["NOTIFY_SOCKET"] = notify
    errors = tmp_path / "stderr"
    with errors.open("w") as written:
        if more.get("JOURNAL_STREAM") == "this":
            found = os.fstat(written.fileno())
            given["JOURNAL_STREAM"] = f"{found.st_dev}:{found.st_ino}"
        command = [sys.executable, "-m", "sollol", "serve", "--port", "0", "--nodes", nodes.urls[0], *words]
        process = subprocess.Popen(command, env=given, cwd=tmp_path, stdout=subprocess.PIPE, stderr=written, text=True)
        try:
            yield Service(process, errors, manager)
        finally:
            process.kill()
            process.communicate()
            if manager is not None:
                manager.close()


@pytest.mark.parametrize("abstract", [False, True])
def test_it_reports_when_it_serves_reloads_and_ends(tmp_path: Path, nodes: Cluster, abstract: bool) -> None:
    address = f"@sollol-test-{os.getpid()}-{tmp_path.name}" if abstract else str(tmp_path / "notify")
    with service(tmp_path, nodes, notify=address) as running:
        assert "STATUS=1 of 1 node up; port " in running.receives("READY=1")
        assert ask(running.url).status_code == 200  # READY is no promise, it serves
        running.process.send_signal(signal.SIGHUP)
        assert re.search(r"^MONOTONIC_USEC=\d+$", running.receives("RELOADING=1"), re.M)
        running.receives("READY=1")
        answers: list[httpx.Response] = []
        thread = threading.Thread(target=lambda: answers.append(ask(running.url, tokens=20, stream=True)))
        thread.start()
        wait_for(lambda: httpx.get(f"{running.url}/sollol/snapshot", trust_env=False).json()["running"])
        running.process.send_signal(signal.SIGTERM)
        assert "EXTEND_TIMEOUT_USEC=40000000" in running.receives("STOPPING=1").splitlines()
        thread.join()
        assert b'"done":true' in answers[0].content  # it drains
        assert running.process.wait(WAIT_S) == 0


def test_the_watchdog_is_served_by_the_loop(tmp_path: Path, nodes: Cluster) -> None:
    with service(tmp_path, nodes, notify=str(tmp_path / "notify"), WATCHDOG_USEC="200000") as running:
        running.receives("READY=1")
        for _ in range(3):
            running.receives("WATCHDOG=1")


@pytest.mark.parametrize(
    ("usec", "pid", "every_s"),
    [
        ("2000000", "", 1.0),
        ("2000000", "own", 1.0),
        ("2000000", "1", None),
        ("0", "", None),
        ("", "", None),
        ("x", "", None),
    ],
)
def test_a_watchdog_of_another_process_is_left_alone(
    usec: str, pid: str, every_s: float | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("WATCHDOG_USEC", usec)
    monkeypatch.setenv("WATCHDOG_PID", str(os.getpid()) if pid == "own" else pid)
    assert service_notify.watchdog_s() == every_s


@pytest.mark.parametrize("path", ["", "relative", "/nowhere/at/all", "@nobody-listens-here"])
def test_a_manager_that_is_not_there_harms_nothing(path: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NOTIFY_SOCKET", path)
    assert not service_notify.notify("READY=1")


def test_a_manager_that_does_not_read_delays_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as manager:
        manager.bind(str(tmp_path / "notify"))
        monkeypatch.setenv("NOTIFY_SOCKET", str(tmp_path / "notify"))
        while service_notify.notify("WATCHDOG=1"):  # until its queue is full
            pass


# --- the journal ---


def test_lines_for_the_journal_have_a_severity_and_no_time(tmp_path: Path, nodes: Cluster) -> None:
    with service(tmp_path, nodes, "--insecure", JOURNAL_STREAM="this") as running:
        wait_for(lambda: any("Ctrl-C ends it" in line for line in running.lines))
        wait_for(lambda: any(line.startswith("<4>all callers") for line in running.lines))
        for line in running.lines:
            assert re.match(r"<[34567]>\S?", line), line
            assert not re.search(r"\d\d:\d\d:\d\d", line)
        assert any(line.startswith("<6>Dashboard: ") for line in running.lines)


def test_another_stream_than_that_of_the_journal_is_plain(tmp_path: Path, nodes: Cluster) -> None:
    with service(tmp_path, nodes, JOURNAL_STREAM="1:2") as running:
        wait_for(lambda: any(line.startswith("Dashboard: ") for line in running.lines))


def test_an_error_that_ends_it_has_its_severity(tmp_path: Path, nodes: Cluster) -> None:
    (tmp_path / "sollol.toml").write_text("[gateway]\nport = 'x'\n[limits]\nqueue = 0\n")
    with service(tmp_path, nodes, JOURNAL_STREAM="this") as running:
        assert running.process.wait(WAIT_S) == 2
        assert len(running.lines) == 3
        assert all(line.startswith("<3>") for line in running.lines)


# --- levels and forms ---


@pytest.mark.parametrize(
    ("level", "shown", "hidden"),
    [
        ("debug", ["Dashboard:", "request 1: attempt", "request 1 ended: ok"], []),
        ("info", ["Dashboard:"], ["request 1"]),
        ("warning", ["all callers that reach"], ["Dashboard:", "request 1"]),
        ("error", [], ["Dashboard:", "all callers"]),
    ],
)
def test_levels(tmp_path: Path, nodes: Cluster, level: str, shown: list[str], hidden: list[str]) -> None:
    with service(tmp_path, nodes, "--log-level", level, "--insecure") as running:
        assert running.url.startswith("http://")  # the address is the result, on stdout
        assert ask(running.url).status_code == 200
        wait_for(lambda: all(any(word in line for line in running.lines) for word in shown))
        running.process.send_signal(signal.SIGTERM)
        assert running.process.wait(WAIT_S) == 0
        text = "\n".join(running.lines)
        for word in hidden:
            assert word not in text


def test_lines_for_a_file_have_the_time(tmp_path: Path, nodes: Cluster) -> None:
    with service(tmp_path, nodes, "--log-format", "timed", "--insecure") as running:
        wait_for(lambda: any("all callers" in line for line in running.lines))
        for line in running.lines:
            assert re.match(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d[+-]\d{4} (info|warning) ", line), line


def test_a_traceback_is_prefixed_on_each_line(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    import logging

    monkeypatch.setattr(console.Messages, "form", console.JOURNAL)
    try:
        raise ValueError("first\nsecond \x1b[2J")
    except ValueError as error:
        record = logging.LogRecord("sollol", logging.ERROR, "", 0, "fault %s", ("a1",), (ValueError, error, None))
        console.MessageHandler().emit(record)
    lines = capsys.readouterr().err.splitlines()
    assert lines[0] == "<3>fault a1"
    assert all(line.startswith("<3>") for line in lines)
    assert "\x1b" not in "".join(lines)


@pytest.mark.parametrize(("option", "value"), [("--log-level", "loud"), ("--log-format", "xml")])
def test_what_is_no_level_or_form(run: Run, option: str, value: str) -> None:
    assert f"{option} {value}; expected" in run("serve", option, value, code=2).stderr
