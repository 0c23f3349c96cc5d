"""Serve nodes until the process is interrupted, or until its standard input or its parent ends."""

from __future__ import annotations

import asyncio
import ctypes
import json
import os
import signal
import sys
import threading
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

from sollol.signals import on_signal
from sollol.sim.faults import FaultEvent
from sollol.sim.models import NodeSpec
from sollol.sim.serve import new_loop, serve

_PR_SET_PDEATHSIG = 1


class CannotServe(Exception):
    """A node cannot listen at its address."""


class ServeJob(NamedTuple):
    """Describe nodes to serve.

    Attributes:
        port: The first port; 0 takes free ones.
        parent: Process id with which it ends.
    """

    specs: Sequence[NodeSpec]
    host: str = "127.0.0.1"
    port: int = 0
    schedule: Sequence[FaultEvent] = ()
    until_stdin_ends: bool = False
    parent: int | None = None


def print_node(url: str, spec: NodeSpec) -> None:
    """Print a node that listens as one line of JSON."""
    print(json.dumps({"url": url, "pid": os.getpid()}), flush=True)


def serve_nodes(job: ServeJob, listening: Callable[[str, NodeSpec], None] = print_node) -> None:
    """Serve the nodes; call `listening` for each as soon as it listens. Raises CannotServe."""
    if job.parent is not None:
        _die_with(job.parent)
    with asyncio.Runner(loop_factory=new_loop) as runner:
        runner.run(_serve(job, listening))


async def _serve(job: ServeJob, listening: Callable[[str, NodeSpec], None]) -> None:
    ended = asyncio.Event()
    loop = asyncio.get_running_loop()
    on_signal(loop, ("SIGINT", "SIGTERM", "SIGBREAK"), ended.set)
    if job.until_stdin_ends:
        _watch_stdin(lambda: loop.call_soon_threadsafe(ended.set))
    served = []
    for place, spec in enumerate(job.specs):
        port = job.port + place if job.port else 0
        try:
            served.append(await serve(spec, job.host, port, schedule=job.schedule))
        except OSError as error:
            raise CannotServe(f"cannot listen on {job.host}:{port}: {error.strerror or error}") from None
        listening(served[-1].url, spec)
    keys = {node.url.removeprefix("http://") for node in served}
    for event in job.schedule:
        if event.node and event.node not in keys:
            raise CannotServe(f"fault {event.action!r} is for {event.node}; there are {', '.join(sorted(keys))}")
    await ended.wait()
    for node in served:
        await node.close()


def _watch_stdin(ended: Callable[[], Any]) -> None:
    def watch() -> None:
        while os.read(0, 4096):
            pass
        ended()

    threading.Thread(target=watch, name="stdin", daemon=True).start()


def _die_with(parent: int) -> None:
    """Let the kernel kill this process with its parent; end now if the parent has ended."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != parent:
        raise SystemExit(0)
