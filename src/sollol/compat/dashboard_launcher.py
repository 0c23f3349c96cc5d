"""Start a dashboard in a process of its own. The command is `sollol dashboard`."""

from __future__ import annotations

import subprocess
import sys
import time
from typing import Any, Final

from sollol.compat.http_calls import call
from sollol.errors import SollolError
from sollol.pool.keywords import accept_old

STARTS_S: Final = 15.0
LOOK_S: Final = 1.0
PAUSE_S: Final = 0.1
STOP_S: Final = 5.0
UNUSED: Final = frozenset(["ray_dashboard_port", "dask_dashboard_port", "enable_dask", "debug"])


class DashboardProcessLauncher:
    """A dashboard on this machine, in a process that outlives the program."""

    def __init__(self, redis_url: str = "redis://localhost:6379", port: int = 8080, **old: Any) -> None:
        accept_old("DashboardProcessLauncher", old, UNUSED)
        self.redis_url = redis_url
        self.port = port
        self._process: subprocess.Popen[bytes] | None = None

    def start(self, background: bool = True) -> bool:
        """Start it, unless one answers already; return True when it answers. `background=False`: wait for its end."""
        if self._answers():
            return True
        command = [sys.executable, "-m", "sollol.dashboard_service", "--port", str(self.port)]
        self._process = process = subprocess.Popen(
            [*command, "--redis-url", self.redis_url],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            start_new_session=True,
        )
        if not background:
            return process.wait() == 0
        until = time.monotonic() + STARTS_S
        while time.monotonic() < until and process.poll() is None:
            if self._answers():
                return True
            time.sleep(PAUSE_S)
        return False

    def stop(self) -> bool:
        """End the process that was started here; return False if there is none."""
        process, self._process = self._process, None
        if process is None or process.poll() is not None:
            return False
        process.terminate()
        try:
            process.wait(STOP_S)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
        return True

    def is_running(self) -> bool:
        """Check that a dashboard answers on the port."""
        return self._answers()

    def get_pid(self) -> int | None:
        """Return the id of the process that was started here."""
        return self._process.pid if self._process is not None and self._process.poll() is None else None

    def _answers(self) -> bool:
        try:
            found = call(f"http://127.0.0.1:{self.port}", "/health", timeout_s=LOOK_S)
        except SollolError:
            return False
        return isinstance(found, dict) and found.get("status") == "ok"


def launch_dashboard_subprocess(
    redis_url: str = "redis://localhost:6379", port: int = 8080, **old: Any
) -> DashboardProcessLauncher:
    """Start a dashboard in a process of its own; return its launcher."""
    launcher = DashboardProcessLauncher(redis_url, port, **old)
    launcher.start()
    return launcher
