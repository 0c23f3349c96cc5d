"""A name server of the test's own, in namespaces of the test's own: `python -m tests.transport.name_server SCRIPT`.

Names below `good.internal` have the address 127.0.0.1; below `none.internal` there are none; for all others it says
nothing, so that a look-up takes as long as the system's resolver is patient. The script runs when it serves.
"""

from __future__ import annotations

import os
import shutil
import socket
import struct
import subprocess
import sys
import tempfile
import threading
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
needs_namespaces = pytest.mark.skipif(
    sys.platform != "linux"
    or shutil.which("unshare") is None
    or subprocess.run(["unshare", "-rnm", "ip", "link", "set", "lo", "up"], capture_output=True).returncode != 0,
    reason="needs network and mount namespaces",
)


def run_apart(script: str, *, timeout_s: float = 60.0) -> subprocess.CompletedProcess[str]:
    """Run a script in namespaces whose only name server is ours."""
    command = ["unshare", "-rnm", sys.executable, "-m", "tests.transport.name_server", script]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=timeout_s, check=False)


def answer(query: bytes) -> bytes | None:
    """The answer to a query for one name, or None for silence."""
    labels, place = [], 12
    while size := query[place]:
        labels.append(query[place + 1 : place + 1 + size].decode())
        place += 1 + size
    name, question = ".".join(labels).lower(), query[12 : place + 5]
    kind = struct.unpack(">H", query[place + 1 : place + 3])[0]
    if name.endswith("none.internal"):
        return query[:2] + struct.pack(">HHHHH", 0x8183, 1, 0, 0, 0) + question
    if not name.endswith("good.internal"):
        return None
    row = b"\xc0\x0c" + struct.pack(">HHIH", 1, 1, 5, 4) + socket.inet_aton("127.0.0.1") if kind == 1 else b""
    return query[:2] + struct.pack(">HHHHH", 0x8180, 1, int(bool(row)), 0, 0) + question + row


def _serve(server: socket.socket) -> None:
    while True:
        query, peer = server.recvfrom(512)
        told = answer(query)
        if told is not None:
            server.sendto(told, peer)


def _main(script: str) -> None:
    subprocess.run(["ip", "link", "set", "lo", "up"], check=True)
    with tempfile.NamedTemporaryFile("w", suffix=".conf") as file:
        file.write("nameserver 127.0.0.1\noptions timeout:5 attempts:2\n")
        file.flush()
        os.chmod(file.name, 0o644)
        subprocess.run(["mount", "--bind", file.name, "/etc/resolv.conf"], check=True)
        server = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        server.bind(("127.0.0.1", 53))
        threading.Thread(target=_serve, args=(server,), daemon=True).start()
        # A process of its own: how it ends is a part of what is tested.
        sys.exit(subprocess.run([sys.executable, "-c", script], cwd=ROOT, check=False).returncode)


if __name__ == "__main__":
    _main(sys.argv[1])
