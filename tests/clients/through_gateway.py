"""A pytest plugin for `ollama_suite`: the suite's server as a node behind `sollol serve`.

With SUITE_GATEWAY=0 it only notes how each test ended, in the file SUITE_RESULTS.
"""

from __future__ import annotations

import contextlib
import json
import os
import re
import subprocess
import sys
import tempfile
import time
import urllib.request
from pathlib import Path
from typing import Any

import pytest
from pytest_httpserver import HTTPServer
from werkzeug.wrappers import Request, Response

from sollol.sim.serve import free_port

WAIT_S = 20.0


def state_of(suite: str) -> dict[str, Any]:
    """What the gateway is told of the node: it has every model that the suite asks."""
    asked = sorted(set(re.findall(r"'(?:model|source)': '([^']+)'|\.copy\('([^']+)'", suite)))
    names = [name if ":" in name else f"{name}:latest" for pair in asked for name in pair if name]
    rows = [{"name": name, "model": name, "size": 100, "digest": "a"} for name in names]
    running = [{**row, "size_vram": 100} for row in rows]
    return {
        "/api/version": {"version": "0.33.0"},
        "/api/tags": {"models": rows},
        "/api/ps": {"models": running},
        "/api/show": {"template": "", "details": {}, "capabilities": ["completion"]},
    }


def _own_question(request: Request, state: dict[str, Any]) -> Any:
    """The answer to a question about the node itself: its state, a model, a blob, or how it renders a prompt."""
    if request.method == "HEAD" and request.path.startswith("/api/blobs/"):
        return {}
    if b'"_debug_render_only":true' in request.get_data():
        return {"_debug_info": {"rendered_template": "the prompt"}}
    return state.get(request.path)


class Gateway:
    """`sollol serve` with the suite's server as its only node; started when the first test asks for an address."""

    def __init__(self) -> None:
        self._process: subprocess.Popen[bytes] | None = None
        self._home = tempfile.TemporaryDirectory()
        self.url = ""

    def start(self, node: str) -> None:
        port = free_port()
        env = {**os.environ, "SOLLOL_NODES": node, "XDG_CONFIG_HOME": self._home.name}
        command = [sys.executable, "-m", "sollol", "serve", "--port", str(port)]
        self._process = subprocess.Popen(command, env=env, cwd=self._home.name)
        self.url = f"http://127.0.0.1:{port}"
        deadline = time.monotonic() + WAIT_S
        while time.monotonic() < deadline and self._process.poll() is None:
            with contextlib.suppress(OSError), urllib.request.urlopen(f"{self.url}/sollol/ready", timeout=1):
                return
            time.sleep(0.05)
        raise RuntimeError("sollol serve was not ready in time")

    def stop(self) -> None:
        if self._process is not None:
            self._process.terminate()
            self._process.wait(WAIT_S)
        self._home.cleanup()


class Suite:
    def __init__(self, through: bool, results: Path) -> None:
        self._gateway = Gateway() if through else None
        self._results = results
        self._found: dict[str, dict[str, Any]] = {}
        self._asked = 0
        state = state_of(Path("tests/test_client.py").read_text())
        direct_url, direct_dispatch = HTTPServer.url_for, HTTPServer.dispatch

        def url_for(server: HTTPServer, suffix: str) -> str:
            """The gateway's root, whatever is asked for: the suite makes clients for `/api/copy`, which ask for
            `/api/copy/api/copy`. Its server lets that pass, no Ollama does."""
            self._asked += 1
            if self._gateway is None:
                return direct_url(server, suffix)
            if not self._gateway.url:
                self._gateway.start(f"{server.host}:{server.port}")
            return f"{self._gateway.url}/"

        def dispatch(server: HTTPServer, request: Request) -> Response:
            """What the gateway asks on its own, as it asks every node, is nothing that the suite expects."""
            if self._gateway is not None and (answer := _own_question(request, state)) is not None:
                return Response(json.dumps(answer), content_type="application/json")
            return direct_dispatch(server, request)

        HTTPServer.url_for = url_for  # type: ignore[method-assign, assignment]
        HTTPServer.dispatch = dispatch  # type: ignore[method-assign, assignment]

    def pytest_runtest_setup(self, item: pytest.Item) -> None:
        self._asked = 0

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        if report.when == "call" or not report.passed:
            why = "" if report.passed else _why(report)
            self._found[report.nodeid] = {"outcome": report.outcome, "why": why, "asked": self._asked > 0}

    def pytest_sessionfinish(self) -> None:
        if self._gateway is not None:
            self._gateway.stop()
        self._results.write_text(json.dumps(self._found))


def _why(report: pytest.TestReport) -> str:
    crash = getattr(report.longrepr, "reprcrash", None)
    return str(crash.message if crash else report.longrepr)[:600]


def pytest_configure(config: pytest.Config) -> None:
    through = os.environ["SUITE_GATEWAY"] == "1"
    config.pluginmanager.register(Suite(through, Path(os.environ["SUITE_RESULTS"])))
