"""A machine that sleeps, for network namespaces: its card has no address until a packet wakes it.

python -m tests.gateway.sleeping_machine CARD ADDRESS/PREFIX BOOT_S SPEC

It starts awake, with a simulated node at port 11434. SIGUSR1 puts it to sleep. Each line of its output is an event:
"up", "asleep" or "packet".
"""

from __future__ import annotations

import asyncio
import json
import signal
import socket
import subprocess
import sys

from sollol.sim import NodeSpec
from sollol.sim.serve import Served, serve

ALL_FRAMES = 3  # ETH_P_ALL


def address(verb: str, card: str, ip: str) -> None:
    subprocess.run(["ip", "addr", verb, ip, "dev", card], check=True)


async def run(card: str, ip: str, boot_s: float, spec: NodeSpec) -> None:
    loop = asyncio.get_running_loop()
    wire = socket.socket(socket.AF_PACKET, socket.SOCK_RAW, socket.htons(ALL_FRAMES))
    wire.bind((card, 0))
    wire.setblocking(False)
    magic = b"\xff" * 6 + wire.getsockname()[4] * 16
    served: Served = await serve(spec, ip.split("/")[0], 11434)
    awake = True

    def sleep() -> None:
        nonlocal awake
        awake = False
        served.node.die()
        address("del", card, ip)
        print("asleep", flush=True)

    def boot() -> None:
        nonlocal awake
        awake = True
        address("add", card, ip)
        served.node.revive()
        print("up", flush=True)

    def frame() -> None:
        if magic in wire.recv(65_536):
            print("packet", flush=True)
            if not awake:
                loop.call_later(boot_s, boot)

    loop.add_signal_handler(signal.SIGUSR1, sleep)
    loop.add_reader(wire, frame)
    print("up", flush=True)
    await asyncio.Event().wait()


if __name__ == "__main__":
    asyncio.run(run(sys.argv[1], sys.argv[2], float(sys.argv[3]), NodeSpec.from_json(json.loads(sys.argv[4]))))
