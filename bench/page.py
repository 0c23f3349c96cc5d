"""Measure the dashboard's page in a real Chromium, with 200 nodes and 500 requests a second.

A pool of one simulated node gives the shape of the overview; its rows are repeated under new names and ids, so that the
feed, the JSON and the page do the work that so many nodes and requests would give them.
"""

from __future__ import annotations

import shutil
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from bench.rows import Row, row, skipped
from sollol import OllamaPool, UnifiedDashboard
from sollol.sim import ModelSpec, NodeSpec, sim_cluster

MODEL = "llama3.2"
RUNNING, WAITING, RECENT = 400, 100, 100
ARGUMENTS = ["--no-sandbox", "--disable-gpu", "--no-first-run", "--disable-background-networking"]


class Crowd:
    """Return a pool's overview as if it had many nodes and finished `rate` requests a second."""

    def __init__(self, pool: OllamaPool, nodes: int, rate: int) -> None:
        self._pool, self._nodes, self._rate = pool, nodes, rate
        self._began = time.monotonic()
        self.overview: Any = self._overview  # the dashboard reads a pool's `overview` and `snapshot`
        self.snapshot = self._overview
        self.series, self.explain = pool.series, pool.explain

    def _overview(self) -> dict[str, Any]:
        frame = self._pool.overview()
        (node,), recent = frame["nodes"], frame["recent"][0]
        elapsed_s = time.monotonic() - self._began
        done = int(elapsed_s * self._rate)
        names = [f"10.0.{number // 250}.{number % 250}:11434" for number in range(self._nodes)]
        running = {"attempt": 1, "elapsed_ms": 100.0, "reason": "finishes first of 3", "priority": 5, "items": 0}
        waiting = {"waited_ms": 50.0, "eta_ms": 80.0, "priority": 5, "items": 0}
        return {
            **frame,
            "nodes": [
                {**node, "host": name, "active_requests": (done + place) % 3} for place, name in enumerate(names)
            ],
            "recent": [
                {**recent, "id": done - place, "at": time.time(), "node": names[(done - place) % self._nodes]}
                for place in range(RECENT)
            ],
            "running": [
                {**recent, **running, "id": done + place, "node": names[place % self._nodes]}
                for place in range(RUNNING)
            ],
            "waiting": [
                {**recent, **waiting, "id": done + RUNNING + place, "position": place + 1} for place in range(WAITING)
            ],
            "totals": {**frame["totals"], "total_requests": done},
        }


@contextmanager
def crowd(nodes: int, rate: int) -> Iterator[str]:
    """Serve the dashboard of a crowd; yield its address."""
    spec = NodeSpec(models=(ModelSpec(MODEL, size_bytes=2_000_000_000),), loaded=(MODEL,), decode_tokens_per_s=2_000.0)
    with sim_cluster([spec]) as cluster, OllamaPool(list(cluster), app_name="bench") as pool:
        pool.chat(MODEL, [{"role": "user", "content": "Hello"}])
        with UnifiedDashboard(Crowd(pool, nodes, rate), 0) as dashboard:
            yield dashboard.url


def run(nodes: int = 200, rate: int = 500, seconds: float = 10.0) -> list[Row]:
    """Return the rows of one page that is open for `seconds`."""
    name = f"page: {nodes} nodes, {rate} requests/s"
    chromium = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
    try:
        from playwright.sync_api import sync_playwright
    except ImportError:
        return [skipped(name, "playwright is not installed")]
    if chromium is None:
        return [skipped(name, "no Chromium on this machine")]
    problems: list[str] = []
    with crowd(nodes, rate) as url, sync_playwright() as started:
        browser = started.chromium.launch(executable_path=chromium, args=ARGUMENTS)
        tab = browser.new_page(viewport={"width": 1440, "height": 1000})
        tab.on("pageerror", lambda error: problems.append(str(error)))
        tab.on("console", lambda line: problems.append(line.text) if line.type == "error" else None)
        tab.goto(url)
        tab.wait_for_selector("#recent-table tbody tr")
        paint_ms = tab.evaluate("performance.getEntriesByName('first-contentful-paint')[0].startTime")
        tab.evaluate(
            "() => { window.frames_seen = 0; new MutationObserver(() => window.frames_seen++)"
            ".observe(document.querySelector('#recent-table tbody'), {childList: true}); }"
        )
        tab.wait_for_timeout(2_000)
        client = tab.context.new_cdp_session(tab)
        client.send("Performance.enable", {"timeDomain": "timeTicks"})

        def read() -> dict[str, float]:
            return {one["name"]: one["value"] for one in client.send("Performance.getMetrics")["metrics"]}

        seen, before, began = tab.evaluate("window.frames_seen"), read(), time.monotonic()
        tab.wait_for_timeout(seconds * 1_000)
        after, took = read(), time.monotonic() - began
        updates = (tab.evaluate("window.frames_seen") - seen) / took
        browser.close()
    parts = ("ScriptDuration", "LayoutDuration", "RecalcStyleDuration")
    spent = ", ".join(f"{part.removesuffix('Duration')} {(after[part] - before[part]) / took:.0%}" for part in parts)
    busy = (after["TaskDuration"] - before["TaskDuration"]) / took * 100
    return [
        row(f"{name}: updates", updates, "/s", "the feed sends 2", 1.8, at_least=True),
        row(f"{name}: main thread busy", busy, "%", "wall time of its tasks", 30.0, note=spent),
        row(f"{name}: first paint", paint_ms, "ms", "after the navigation", 1_000.0),
        row(f"{name}: console errors", len(problems), "", "", 0, note="; ".join(problems[:3])),
    ]
