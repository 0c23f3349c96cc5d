"""How long does it take to find two nodes among 254 addresses?

A /24 of network namespaces: two nodes, a foreign server on Ollama's port, about 250 addresses where nobody is. The
searching process runs in a namespace of its own, so only this network can be searched. Each round is a new process:
its import is not counted, its first search is.

    python -m bench.discovery
"""

from __future__ import annotations

import json
import statistics
from typing import Any

from bench.lan import Lan

ROUNDS = 5
TARGET_MS = 400.0
REFERENCE = "an older implementation of the guide: 320 to 1,230 ms"
SEARCH = """
import json, time
from sollol.discovery import discover_ollama_nodes
start = time.perf_counter()
nodes = discover_ollama_nodes()
print(json.dumps([(time.perf_counter() - start) * 1000, nodes]))
"""


def run() -> list[dict[str, Any]]:
    """One row for the median of five searches, or one that says why there was none."""
    name = "discovery of a /24 with 2 nodes and 250 silent addresses"
    row: dict[str, Any] = {"name": name, "unit": "ms", "reference": REFERENCE, "target": TARGET_MS}
    why_not = Lan.missing()
    if why_not:
        return [row | {"value": None, "ok": None, "note": f"skipped: {why_not}"}]
    with Lan() as lan:
        for last in (21, 154):
            lan.host(f"10.77.0.{last}/24", serve=[f"10.77.0.{last}:11434=ollama:{last}"])
        lan.host("10.77.0.99/24", serve=["10.77.0.99:11434=silent"])
        client = lan.host("10.77.0.10/24")
        rounds = [json.loads(client.python(SEARCH)) for _ in range(ROUNDS)]
    times = sorted(took for took, _ in rounds)
    right = all([node["host"] for node in nodes] == ["10.77.0.21", "10.77.0.154"] for _, nodes in rounds)
    median = statistics.median(times)
    spread = f"{times[0]:.0f} to {times[-1]:.0f} ms in {ROUNDS} rounds"
    note = f"{spread}; both nodes and nothing else every time" if right else f"{spread}; WRONG: {rounds}"
    return [row | {"value": round(median, 1), "ok": right and median <= TARGET_MS, "note": note}]


def main() -> None:
    for row in run():
        value = "-" if row["value"] is None else f"{row['value']} {row['unit']}"
        print(f"{row['name']}: {value} (target {row['target']:g} {row['unit']}; {row['reference']})")
        print(f"  {row['note']}")


if __name__ == "__main__":
    main()
