"""This process has no file descriptor left: that is no fault of a node, and calls wait for one."""

from __future__ import annotations

import subprocess
import sys

from sollol.sim import NodeSpec, sim_cluster
from tests.pool.universe import CHAT, MODELS

SCRIPT = """
import asyncio, os, resource, sys
from sollol.core.endpoint import parse_endpoint
from sollol.transport.http import HttpTransport
from sollol.transport.base import Call, Fault, TransportFault
from sollol.pool.aio import AsyncOllamaPool

resource.setrlimit(resource.RLIMIT_NOFILE, (64, 64))
HELLO = [{"role": "user", "content": "Hello"}]

def hog():
    held = []
    while True:
        try:
            held.append(os.open("/dev/null", os.O_RDONLY))
        except OSError:
            return held

async def main():
    transport = HttpTransport(max_idle_per_node=0)
    async with AsyncOllamaPool(sys.argv[2:], transport=transport) as pool:
        await pool.wait_ready()
        await pool.chat(sys.argv[1], HELLO, options={"num_predict": 2})
        held = hog()
        try:
            await transport.send(parse_endpoint(sys.argv[2]), Call("GET", "/api/version"))
        except TransportFault as fault:
            assert fault.fault is Fault.LOCAL, fault
            assert "file descriptor" in str(fault) and "ulimit" in str(fault), fault
        pool.engine.refresh()
        calls = [asyncio.ensure_future(pool.chat(sys.argv[1], HELLO, options={"num_predict": 2})) for _ in range(4)]
        await asyncio.sleep(1.5)
        assert not any(call.done() for call in calls)
        for fd in held:
            os.close(fd)
        await asyncio.gather(*calls)
        for row in pool.get_stats()["node_performance"].values():
            assert row["state"] == "up", row
            assert row["failed_requests"] == 0, row
    print("well")

asyncio.run(main())
"""


def test_calls_wait_for_a_descriptor_and_no_node_is_blamed() -> None:
    with sim_cluster([NodeSpec(models=MODELS, loaded=(CHAT,), seed=i) for i in range(2)]) as nodes:
        ran = subprocess.run(
            [sys.executable, "-c", SCRIPT, CHAT, *nodes.urls], capture_output=True, text=True, timeout=60, check=False
        )
    assert ran.stdout.strip() == "well", ran.stderr
