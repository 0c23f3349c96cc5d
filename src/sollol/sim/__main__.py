"""`python -m sollol.sim --nodes 4`: a cluster of simulated nodes on loopback ports.

Prints one line of JSON a node (`{"url": …, "pid": …}`) as soon as it listens, and runs until it is interrupted,
or, with `--until-stdin-ends`, until its standard input ends.
"""

from __future__ import annotations

import argparse
import asyncio
import ctypes
import json
import os
import signal
import sys
import threading
from collections.abc import Callable
from dataclasses import replace
from typing import Any

from sollol.signals import on_signal
from sollol.sim.faults import FaultEvent, parse_events
from sollol.sim.models import NodeSpec
from sollol.sim.serve import new_loop, serve

_PR_SET_PDEATHSIG = 1
EXIT_USAGE = 2


class CannotServe(Exception):
    """A node cannot listen where it should."""


def _arguments(argv: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m sollol.sim", description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--nodes", type=int, default=1, help="how many (default 1)")
    parser.add_argument("--host", default="127.0.0.1", help="address to listen on")
    parser.add_argument("--port", type=int, default=0, help="port of the first node, the others follow; 0: free ones")
    parser.add_argument("--spec", default="{}", help="JSON of a NodeSpec")
    parser.add_argument("--schedule", default="[]", help='JSON of faults: [{"at_s": 3, "do": "die"}]')
    parser.add_argument("--embed-items-per-s", type=float, default=None)
    parser.add_argument("--decode-tokens-per-s", type=float, default=None)
    parser.add_argument("--prefill-tokens-per-s", type=float, default=None)
    parser.add_argument("--until-stdin-ends", action="store_true", help=argparse.SUPPRESS)
    parser.add_argument("--die-with", type=int, default=None, help=argparse.SUPPRESS)
    return parser.parse_args(argv)


def _spec(given: argparse.Namespace) -> NodeSpec:
    spec = NodeSpec.from_json({**json.loads(given.spec), "host": given.host})
    speeds = {
        name: value
        for name in ("embed_items_per_s", "decode_tokens_per_s", "prefill_tokens_per_s")
        if (value := getattr(given, name)) is not None
    }
    return replace(spec, **speeds)


async def _main(given: argparse.Namespace, spec: NodeSpec, schedule: list[FaultEvent]) -> None:
    ended = asyncio.Event()
    loop = asyncio.get_running_loop()
    on_signal(loop, ("SIGINT", "SIGTERM", "SIGBREAK"), ended.set)
    if given.until_stdin_ends:
        _watch_stdin(lambda: loop.call_soon_threadsafe(ended.set))
    served = []
    for place in range(given.nodes):
        port = given.port + place if given.port else 0
        one = replace(spec, seed=spec.seed + place, port=port)
        try:
            served.append(await serve(one, given.host, port, schedule=schedule))
        except OSError as error:
            raise CannotServe(f"cannot listen on {given.host}:{port}: {error.strerror or error}") from None
        print(json.dumps({"url": served[-1].url, "pid": os.getpid()}), flush=True)
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
    """Ask the kernel to kill us with our parent, and see whether it is gone already."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != parent:
        raise SystemExit(0)


def main(argv: list[str] | None = None) -> None:
    given = _arguments(argv)
    if given.die_with is not None:
        _die_with(given.die_with)
    try:
        spec, schedule = _spec(given), parse_events(json.loads(given.schedule))
    except (ValueError, TypeError, KeyError) as error:
        raise SystemExit(f"sollol.sim: {error}") from None
    try:
        with asyncio.Runner(loop_factory=new_loop) as runner:
            runner.run(_main(given, spec, schedule))
    except CannotServe as error:
        print(f"sollol.sim: {error}; choose another --port, or 0 for a free one", file=sys.stderr)
        raise SystemExit(EXIT_USAGE) from None


if __name__ == "__main__":
    main()
