"""The gateway beside nginx, Caddy and the LiteLLM proxy: same core, same backend, rounds in turn, ratios.

A backend that answers at once makes a gateway look its worst: a real answer takes a hundred milliseconds and more.
Processor time a request is told beside the rates: it depends less on what else the machine does.
docs/benchmarks.md says what each row means.
"""

from __future__ import annotations

import contextlib
import json
import os
import resource
import sys
import tempfile
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from types import MappingProxyType
from typing import NamedTuple

from bench import load, proxies
from bench.hangups import hang_ups
from bench.proxies import CHAT, LOAD_CORE, MODEL, Running, missing
from bench.recorded import ORDER, SLICE_S
from bench.rows import Row, median, row, skipped

ROUNDS = 5
STARTS = 5  # of both proxies for the latency: where a process comes to lie in memory makes a tenth of it
SLICES, SLICE = 10, 400  # of requests one after another; the first of a slice finds the other proxy in the caches
SHARES = (0.5, 0.99)
RECORDING_S = 20
STREAMS, PARTS = 40, 200
MANY, LONG = 1000, bool(os.environ.get("SOLLOL_BENCH_LONG"))
FILLING = 40  # rounds of MANY short streams, after which all that is remembered of calls and nodes is full
STREAMED = {**CHAT, "stream": True}


def run() -> list[Row]:
    if lacking := missing("nginx", "wrk", "taskset"):
        return [skipped("the gateway beside nginx", lacking), *many_streams(), *hang_ups()]
    if len(os.sched_getaffinity(0)) < 2:
        return [skipped("the gateway beside nginx", "needs two processor cores")]
    rows = [*rates(), *latency(), *recording()]
    for path, kind in (("/api/chat", "NDJSON"), ("/v1/chat/completions", "SSE")):
        rows.append(chunk_cost(path, kind))
    return [*rows, *many_streams(), *hang_ups()]


def rates() -> list[Row]:
    with contextlib.ExitStack() as stack:
        ports = stack.enter_context(proxies.instant_backend())
        ngx = stack.enter_context(proxies.nginx(ports))
        ours = stack.enter_context(proxies.sollol(ports))
        others = [stack.enter_context(proxies.caddy(ports))] if not missing("caddy") else []
        found: dict[str, list[load.Rate]] = {}
        load.wrk(ours, "/api/chat", CHAT, seconds=3)  # it learns how much the nodes take
        for _ in range(ROUNDS):
            for proxy in (ngx, ours, *others):
                found.setdefault(proxy.name, []).append(load.wrk(proxy, "/api/chat", CHAT, seconds=2))
        lacking = missing("litellm")
        if not lacking:
            try:
                found["LiteLLM"] = [_litellm(ports)]
            except RuntimeError as error:
                lacking = str(error)
    rows = [_rate_row(found, "nginx", 0.45 if proxies.compiled() else 0.20)]
    rows.append(_rate_row(found, "Caddy", 1.0) if others else skipped("requests/s beside Caddy", missing("caddy")))
    rows.append(skipped("requests/s beside LiteLLM", lacking) if lacking else _rate_row(found, "LiteLLM", 50.0))
    cpu = {name: median([rate.cpu_us for rate in rates]) for name, rates in found.items()}
    told = ", ".join(f"{name} {us:,.1f} us" for name, us in cpu.items() if name != "sollol")
    rows.append(row("  processor time a request", cpu["sollol"], "us", told))
    failed = {name: sum(rate.failed for rate in rates) for name, rates in found.items()}
    told = ", ".join(f"{name} {count}" for name, count in failed.items() if name != "sollol")
    rows.append(row("  answers that were not 200", failed["sollol"], "", told, 0))
    return rows


def _litellm(ports: Sequence[int]) -> load.Rate:
    body = {"model": MODEL, "messages": CHAT["messages"]}
    with proxies.litellm(ports) as lite:
        load.wrk(lite, "/v1/chat/completions", body, seconds=5)
        return load.wrk(lite, "/v1/chat/completions", body, seconds=10)


def _rate_row(found: dict[str, list[load.Rate]], name: str, target: float) -> Row:
    ours = median([rate.per_s for rate in found["sollol"]])
    theirs = median([rate.per_s for rate in found[name]])
    beside = f"{name}: {theirs:,.0f}/s, ours: {ours:,.0f}/s"
    note = "compiled" if proxies.compiled() else "plain Python; `make compile` makes it faster"
    if name != "nginx":
        note = f"{name} is {theirs / median([rate.per_s for rate in found['nginx']]):.3f} of nginx"
    what = f"requests/s, 64 connections, beside {name}"
    return row(what, ours / theirs, "x", beside, target, at_least=True, note=note)


def latency() -> list[Row]:
    """The median of STARTS."""
    found = [_latency() for _ in range(STARTS)]
    rows = []
    for place, share in enumerate(SHARES):
        ratios = [start[place].ours / max(1.0, start[place].nginx) for start in found]
        nginx, ours, direct = (median([at[place][part] for at in found]) for part in range(3))
        beside = f"nginx adds {nginx:.0f} us, ours {ours:.0f} us to {direct:.0f} us"
        name = f"added latency, one at a time, p{share * 100:.0f}"
        told = f"of {STARTS} starts: {min(ratios):.2f} to {max(ratios):.2f}"
        rows.append(row(name, median(ratios), "x", beside, note=told))
    return rows


class Added(NamedTuple):
    """Microseconds, at some share of the requests."""

    nginx: float
    ours: float
    direct: float  # what they are added to


def _latency() -> list[Added]:
    """At each of SHARES: direct, through nginx, and through ours in turn, SLICE requests at a time."""
    times: dict[str, list[float]] = {"direct": [], "nginx": [], "ours": []}
    with proxies.instant_backend() as ports, proxies.nginx(ports) as ngx, proxies.sollol(ports) as ours:  # noqa: SIM117 - these start before the pinning
        with proxies.on_load_core(), contextlib.ExitStack() as stack:
            lines = {
                name: stack.enter_context(load.Line(port, "/api/chat", CHAT))
                for name, port in (("direct", ports[0]), ("nginx", ngx.port), ("ours", ours.port))
            }
            for line in lines.values():
                line.ask(SLICE)
            for _ in range(SLICES):
                for name, line in lines.items():
                    times[name] += line.ask(SLICE)
    found = []
    for share in SHARES:
        at = {name: sorted(all_)[int(share * len(all_))] for name, all_ in times.items()}
        found.append(Added(at["nginx"] - at["direct"], at["ours"] - at["direct"], at["direct"]))
    return found


def recording() -> list[Row]:
    """Return the cost of all records, alone, with Redis, and with a Redis that is stopped."""
    rows = [
        _recording("history, store and metrics", 0.95),
        _recording("  with a journal file as well", None, "--journal"),
    ]
    if lacking := missing("redis-server"):
        return [*rows, skipped("  with Redis as well", lacking)]
    with proxies.redis() as redis:
        address = {"SOLLOL_REDIS_URL": f"redis://127.0.0.1:{redis.port}"}
        rows.append(_recording("  with Redis as well", 0.93, settings=address))
        rows.append(_recording("  with a Redis that is stopped", 0.93, settings=address, stopped=redis))
    return rows


def _recording(
    name: str,
    target: float | None,
    *options: str,
    settings: Mapping[str, str] = MappingProxyType({}),
    stopped: Running | None = None,
) -> Row:
    """Return the requests/s with all records against none, in one process in turn. `options`: each takes a file."""
    with tempfile.TemporaryDirectory() as home:
        kept = Path(home) / "slices.json"
        more = [part for option in options for part in (option, str(Path(home) / "file"))]
        program = ("bench.recorded", str(kept))
        with contextlib.ExitStack() as stack:
            ports = stack.enter_context(proxies.instant_backend())
            ours = stack.enter_context(proxies.sollol(ports, program, more, **settings))
            if stopped is not None:
                load.wrk(ours, "/api/chat", CHAT, seconds=2)
                stack.enter_context(stopped.frozen())
            load.wrk(ours, "/api/chat", CHAT, seconds=RECORDING_S)
        slices = json.loads(kept.read_text())
    usual = median([count for _, _, count in slices]) / 2  # fewer: before and after the load
    turns = [slices[first : first + len(ORDER)] for first in range(0, len(slices), len(ORDER))]
    ratios = []
    for turn in turns:
        if len(turn) == len(ORDER) and min(count for _, _, count in turn) > usual:
            used, answered = {True: 0.0, False: 0.0}, {True: 0, False: 0}
            for records, cpu_s, count in turn:
                used[records] += cpu_s
                answered[records] += count
            ratios.append(used[False] / answered[False] * answered[True] / used[True])
    ratios.sort()
    middle = f"half of {len(ratios)} turns: {ratios[len(ratios) // 4]:.3f} to {ratios[-len(ratios) // 4]:.3f}"
    beside = " ".join("with" if records else "without" for records in ORDER) + f", {SLICE_S:g} s each"
    return row(
        f"{name}: requests a second of processor time, against none",
        median(ratios),
        "x",
        beside,
        target,
        at_least=True,
        note=middle,
    )


@contextlib.contextmanager
def stream_nodes(count: int, parts: int, pause_ms: int) -> Iterator[list[int]]:
    first = proxies.free_ports(count)
    command = [sys.executable, "-m", "bench.stream_backend", str(first), str(count), str(parts), str(pause_ms)]
    with proxies.running("stream backend", first + count - 1, command, core=LOAD_CORE):
        yield list(range(first, first + count))


def chunk_cost(path: str, kind: str) -> Row:
    """STREAMS streams at once, one a node, so that none has to wait for a slot."""
    costs: dict[str, list[float]] = {"nginx": [], "sollol": []}
    with stream_nodes(STREAMS, PARTS, 5) as ports, proxies.nginx(ports) as ngx, proxies.sollol(ports) as ours:  # noqa: SIM117 - these start before the pinning
        with proxies.on_load_core():
            load.streams(ours, path, STREAMED, STREAMS)
            for _ in range(ROUNDS):
                for proxy in (ngx, ours):
                    found = load.streams(proxy, path, STREAMED, STREAMS)
                    if found.broken:
                        raise RuntimeError(f"{proxy.name}: {found.broken} of {STREAMS} streams were not whole")
                    costs[proxy.name].append(found.cpu_us)
    mine, theirs = median(costs["sollol"]), median(costs["nginx"])
    beside = f"nginx: {theirs:.1f} us, ours: {mine:.1f} us"
    return row(
        f"processor time a relayed chunk, {kind}", mine / theirs, "x", beside, 1.5 if proxies.compiled() else None
    )


def many_streams() -> list[Row]:
    """MANY streams at once over as many nodes, twice; SOLLOL_BENCH_LONG=1 for a minute each."""
    name = f"{MANY:,} streams at once"
    if resource.getrlimit(resource.RLIMIT_NOFILE)[1] < 4 * MANY:
        return [skipped(name, f"needs {4 * MANY} open files; `ulimit -Hn` says fewer")]
    seconds = 60 if LONG else 10
    with proxies.on_load_core(), stream_nodes(MANY, seconds * 4, 250) as ports, proxies.sollol(ports) as ours:
        idle = _settled_rss(ours)
        with Peak(ours) as peak:
            first = load.streams(ours, "/api/chat", STREAMED, MANY)
        short = {**STREAMED, "options": {"num_predict": 1}}
        broken = sum(load.streams(ours, "/api/chat", short, MANY).broken for _ in range(FILLING))
        before = _settled_rss(ours)
        second = load.streams(ours, "/api/chat", STREAMED, MANY)
        after = _settled_rss(ours)
    broken += first.broken + second.broken
    told = f"2 x {first.seconds:.0f} s, {first.chunks + second.chunks:,} parts"
    fresh = f"{idle / 1e6:.0f} MB before, {peak.bytes / 1e6:.0f} MB at most"
    full = f"{before / 1e6:.0f} MB before, {after / 1e6:.0f} MB after"
    return [
        row(f"{name}, not whole or out of order", broken, "", told, 0),
        row("  memory a stream, with what is remembered of it", (peak.bytes - idle) / MANY / 1000, "KB", fresh, 100),
        row(f"  memory after / before a round, {FILLING * MANY:,} calls later", after / before, "x", full, 1.02),
        row("  processor time a chunk", second.cpu_us, "us", f"{second.chunks / second.seconds:,.0f} chunks/s"),
    ]


class Peak:
    """The most memory that a process held in a block."""

    def __init__(self, proxy: Running) -> None:
        self.bytes = 0
        self._proxy = proxy
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._watch)

    def _watch(self) -> None:
        while not self._over.wait(0.25):
            self.bytes = max(self.bytes, self._proxy.rss_bytes())

    def __enter__(self) -> Peak:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._over.set()
        self._thread.join()


def _settled_rss(proxy: Running) -> int:
    time.sleep(2.0)
    return proxy.rss_bytes()
