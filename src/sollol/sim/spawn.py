"""Run simulated nodes in processes of their own, to be killed, stopped and continued for real.

The child ends when its standard input ends, that is when its parent does, however the parent ends. A stopped child
cannot notice that. So on Linux the kernel kills it with the thread of its parent, if that is the main one (the kernel
ties the signal to a thread, so a short-lived one would kill it too early).
"""

from __future__ import annotations

import atexit
import json
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Iterable, Sequence
from dataclasses import replace
from types import TracebackType
from typing import Any

from sollol.sim.models import NodeSpec


class SpawnedNode:
    """Hold a node in another process. Leaving its `with` block kills it."""

    def __init__(self, process: subprocess.Popen[bytes], url: str) -> None:
        self._process = process
        self.url = url
        atexit.register(self.kill)

    @property
    def pid(self) -> int:
        """Return the process id."""
        return self._process.pid

    @property
    def alive(self) -> bool:
        """Return whether the process runs."""
        return self._process.poll() is None

    def kill(self) -> None:
        """Send SIGKILL, and wait for the end."""
        atexit.unregister(self.kill)
        if self.alive:
            self._process.kill()
        _close(self._process)

    def stop(self) -> None:
        """Send SIGSTOP: the kernel accepts connections, and nothing is answered."""
        self._process.send_signal(_signal("SIGSTOP"))

    def cont(self) -> None:
        """Send SIGCONT."""
        self._process.send_signal(_signal("SIGCONT"))

    def __enter__(self) -> SpawnedNode:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.kill()


def _signal(name: str) -> int:
    found: int | None = getattr(signal, name, None)
    if found is None:
        raise NotImplementedError(f"this system has no {name}; use node.freeze() of a simulated node in this process")
    return found


def spawn(spec: NodeSpec | None = None, *, port: int = 0, schedule: Sequence[dict[str, Any]] = ()) -> SpawnedNode:
    """Start one node in a process of its own, and return when it listens.

    `schedule` is the JSON of faults, in seconds since its start: `[{"at_s": 2, "do": "die"}]`.
    """
    return spawn_many([spec or NodeSpec()], ports=[port], schedule=schedule)[0]


def spawn_many(
    specs: Iterable[NodeSpec], *, ports: Sequence[int] = (), schedule: Sequence[dict[str, Any]] = ()
) -> list[SpawnedNode]:
    """Start several nodes at the same time, and return when all listen."""
    wanted = [replace(spec, port=0) for spec in specs]
    started = [_start(spec, ports[place] if place < len(ports) else 0, schedule) for place, spec in enumerate(wanted)]
    found = []
    try:
        for process in started:
            found.append(SpawnedNode(process, _await_url(process)))  # noqa: PERF401 - keep those that started
    except BaseException:
        for process in started:
            process.kill()
            _close(process)
        raise
    return found


def _start(spec: NodeSpec, port: int, schedule: Sequence[dict[str, Any]]) -> subprocess.Popen[bytes]:
    in_main_thread = threading.current_thread() is threading.main_thread()
    job = {
        "spec": spec.to_json(),
        "port": port,
        "schedule": list(schedule),
        "parent": os.getpid() if in_main_thread else None,
    }
    command = [sys.executable, "-m", "sollol.sim", "--child", json.dumps(job)]
    return subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE)


def _await_url(process: subprocess.Popen[bytes]) -> str:
    assert process.stdout is not None
    line = process.stdout.readline()
    if not line:
        process.wait()
        raise RuntimeError(f"the simulated node ended with {process.returncode} before it listened")
    url: str = json.loads(line)["url"]
    return url


def _close(process: subprocess.Popen[bytes]) -> None:
    process.wait()
    for pipe in (process.stdin, process.stdout):
        if pipe is not None:
            pipe.close()
