"""`sollol serve` that records everything and nothing in turn, for SLICE_S each, and writes down what each slice cost.

Two processes beside each other differ by more than what is measured here: where their memory lies, above all.

    python -m bench.recorded FILE serve --port ...
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import sys
import time
from pathlib import Path
from typing import Any

from sollol.cli import main, serving
from sollol.gateway.app import Gateway

SLICE_S = 0.1
ORDER = (True, False, False, True)  # a turn

slices: list[tuple[bool, float, int]] = []  # whether it recorded, processor time, answers
background: set[asyncio.Task[None]] = set()


def watched(*given: Any, **more: Any) -> Gateway:
    gateway = Gateway(*given, **more)
    background.add(asyncio.get_running_loop().create_task(switch(gateway)))
    return gateway


async def switch(gateway: Gateway) -> None:
    while True:
        for records in ORDER:
            if hasattr(gateway, "engine"):  # it has started
                gateway.engine.observe(float(records))
            used, answered = time.process_time(), gateway.pool.totals.successful
            await asyncio.sleep(SLICE_S)
            slices.append((records, time.process_time() - used, gateway.pool.totals.successful - answered))


if __name__ == "__main__":
    kept, sys.argv[1:] = Path(sys.argv[1]), sys.argv[2:]
    serving.__dict__["Gateway"] = watched
    with contextlib.suppress(SystemExit):
        main()
    kept.write_text(json.dumps(slices))
