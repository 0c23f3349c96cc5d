"""A real redis-server on a free port of loopback."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import redis

from sollol.sim import free_port

WAIT_S = 20.0


class RedisServer:
    """Start, freeze and end a redis-server."""

    def __init__(self, folder: Path, *options: str, password: str = "") -> None:
        self.port = free_port()
        user = f":{password}@" if password else ""
        self.url = f"redis://{user}127.0.0.1:{self.port}"
        self._password = password
        self._command = ["redis-server", "--port", str(self.port), "--bind", "127.0.0.1", "--save", "", *options]
        self._command += ["--dir", str(folder), *(["--requirepass", password] if password else [])]
        self._process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        self._process = subprocess.Popen(self._command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        end = time.monotonic() + WAIT_S
        while True:
            try:
                with self.client() as client:
                    client.ping()
                return
            except redis.ConnectionError:
                assert time.monotonic() < end, "redis-server does not answer"
                time.sleep(0.02)

    def stop(self) -> None:
        process, self._process = self._process, None
        if process is not None:
            process.kill()  # also where it is frozen
            process.wait()

    def freeze(self) -> None:
        assert self._process is not None
        os.kill(self._process.pid, signal.SIGSTOP)

    def thaw(self) -> None:
        assert self._process is not None
        os.kill(self._process.pid, signal.SIGCONT)

    def client(self) -> Any:
        return redis.Redis(port=self.port, password=self._password or None, socket_timeout=5)


def made(folder: Path, *options: str, password: str = "") -> RedisServer:
    if shutil.which("redis-server") is None:
        pytest.skip("redis-server is not installed")
    return RedisServer(folder, *options, password=password)


@pytest.fixture
def server(tmp_path: Path) -> Iterator[RedisServer]:
    found = made(tmp_path)
    found.start()
    try:
        yield found
    finally:
        found.stop()
