"""Report the state of the process to systemd, as sd_notify(3) describes it; without systemd nothing is sent.

The watchdog message comes from the event loop itself, so a loop that hangs is restarted.
"""

from __future__ import annotations

import os
import socket
import time
from typing import Final

SOCKET: Final = "NOTIFY_SOCKET"
READY: Final = "READY=1"
STOPPING: Final = "STOPPING=1"
WATCHDOG: Final = "WATCHDOG=1"


def notify(*lines: str) -> bool:
    """Send lines such as READY=1 to the service manager; return False if there is none, or it does not listen."""
    path = os.environ.get(SOCKET, "")
    if not path.startswith(("/", "@")) or not hasattr(socket, "AF_UNIX"):
        return False
    address = "\0" + path[1:] if path.startswith("@") else path
    try:
        with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as sender:
            sender.setblocking(False)
            sender.sendto("\n".join(lines).encode(), address)
    except OSError:
        return False
    return True


def status(text: str) -> str:
    """Return the line that `systemctl status` shows."""
    return "STATUS=" + " ".join(text.split())


def reloading() -> tuple[str, str]:
    """Return the lines that begin a reload; READY ends it."""
    return "RELOADING=1", f"MONOTONIC_USEC={time.monotonic_ns() // 1000}"


def watchdog_s() -> float | None:
    """Return the seconds between two messages of the watchdog, half of what the unit allows; None without one."""
    text, pid = os.environ.get("WATCHDOG_USEC", ""), os.environ.get("WATCHDOG_PID", "")
    if not text.isdecimal() or int(text) == 0 or (pid and pid != str(os.getpid())):
        return None
    return int(text) / 2e6
