"""The gateway beside nginx, Caddy and the LiteLLM proxy: same core, same backend, rounds in turn, ratios.

A backend that answers at once makes a gateway look its worst: a real answer takes a hundred milliseconds and more.
"""

from __future__ import annotations

import contextlib
import os
import sys
import time
from collections.abc import Iterator

from bench import load, proxies
from bench.hangups import hang_ups
from bench.proxies import CHAT, LOAD_CORE, MODEL, Running, missing
from bench.rows import Row, median, row, skipped
from sollol.sim.serve import free_port

ROUNDS = 5
SEQUENTIAL = 1500
STREAMS, PARTS = 40, 200
MANY, LONG = 1000, bool(os.environ.get("SOLLOL_BENCH_LONG"))
STREAMED = {**CHAT, "stream": True}


def run() -> list[Row]:
    if lacking := missing("nginx", "wrk", "taskset"):
        return [skipped("the gateway beside nginx", lacking)]
    rows = [*rates(), *latency(), *recording()]
    for path, kind in (("/api/chat", "NDJSON"), ("/v1/chat/completions", "SSE")):
        rows.append(chunk_cost(path, kind))
    return [*rows, *many_streams(), *hang_ups()]


def rates() -> list[Row]:
    note = "compiled" if proxies.compiled() else "plain Python; `make compile` makes deciding four times as cheap"
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
        rows = [_rate_row(found, "nginx", 0.45, note)]
        rows.append(
            _rate_row(found, "Caddy", 1.0, "") if others else skipped("requests/s beside Caddy", missing("caddy"))
        )
        if lacking := missing("litellm"):
            rows.append(skipped("requests/s beside the LiteLLM proxy", lacking))
        else:
            with proxies.litellm(ports) as lite:
                body = {"model": MODEL, "messages": CHAT["messages"]}
                load.wrk(lite, "/v1/chat/completions", body, seconds=5)
                found["LiteLLM"] = [load.wrk(lite, "/v1/chat/completions", body, seconds=10)]
            rows.append(_rate_row(found, "LiteLLM", 50.0, ""))
    cpu = {name: median([rate.cpu_us for rate in rates]) for name, rates in found.items()}
    told = ", ".join(f"{name} {us:.1f} us" for name, us in cpu.items() if name != "sollol")
    rows.append(row("CPU a request, 64 connections", cpu["sollol"], "us", told))
    failed = sum(rate.failed for rate in found["sollol"])
    rows.append(row("answers that were not 200", failed, "", "", 0))
    return rows


def _rate_row(found: dict[str, list[load.Rate]], name: str, target: float, note: str) -> Row:
    ours = median([rate.per_s for rate in found["sollol"]])
    theirs = median([rate.per_s for rate in found[name]])
    beside = f"{name}: {theirs:,.0f}/s, ours: {ours:,.0f}/s"
    what = f"requests/s, 64 connections, beside {name}"
    return row(what, ours / theirs, "x", beside, target, at_least=True, note=note)


def latency() -> list[Row]:
    with proxies.instant_backend() as ports, proxies.nginx(ports) as ngx, proxies.sollol(ports) as ours:
        times: dict[str, list[list[float]]] = {}
        for _ in range(ROUNDS):
            for name, port in (("direct", ports[0]), ("nginx", ngx.port), ("ours", ours.port)):
                times.setdefault(name, []).append(load.latencies_us(port, "/api/chat", CHAT, SEQUENTIAL))
    rows = []
    for share in (0.5, 0.99):
        at = {name: median([run[int(share * len(run))] for run in runs]) for name, runs in times.items()}
        added = {name: at[name] - at["direct"] for name in ("nginx", "ours")}
        beside = f"nginx adds {added['nginx']:.0f} us, ours {added['ours']:.0f} us to {at['direct']:.0f} us"
        name = f"added latency, one at a time, p{share * 100:.0f}"
        rows.append(row(name, added["ours"] / max(1.0, added["nginx"]), "x", beside, 1.5))
    return rows


def recording() -> list[Row]:
    """Processor time a request with everything recorded, against nothing recorded."""
    with contextlib.ExitStack() as stack:
        ports = stack.enter_context(proxies.instant_backend())
        on = stack.enter_context(proxies.sollol(ports, SOLLOL_OBSERVER_SAMPLING="true"))
        off = stack.enter_context(proxies.sollol(ports, SOLLOL_OBSERVER_SAMPLING="false"))
        costs: dict[str, list[float]] = {"on": [], "off": []}
        for which in (on, off):
            load.wrk(which, "/api/chat", CHAT, seconds=2)
        for _ in range(2 * ROUNDS):
            for name, proxy in (("on", on), ("off", off)):
                costs[name].append(load.wrk(proxy, "/api/chat", CHAT, seconds=1).cpu_us)
    with_, without = median(costs["on"]), median(costs["off"])
    beside = f"{with_:.1f} us with, {without:.1f} us without"
    return [row("everything recorded against nothing, CPU a request", with_ / without, "x", beside, 1.02)]


@contextlib.contextmanager
def stream_nodes(count: int, parts: int, pause_ms: int) -> Iterator[list[int]]:
    first = free_port() if count == 1 else 23_000
    command = [sys.executable, "-m", "bench.stream_backend", str(first), str(count), str(parts), str(pause_ms)]
    with proxies.running("stream backend", first + count - 1, command, core=LOAD_CORE):
        yield list(range(first, first + count))


def chunk_cost(path: str, kind: str) -> Row:
    """STREAMS streams at once, one a node, so that none has to wait for a slot."""
    with stream_nodes(STREAMS, PARTS, 5) as ports, proxies.nginx(ports) as ngx, proxies.sollol(ports) as ours:
        costs: dict[str, list[float]] = {}
        load.streams(ours, path, STREAMED, STREAMS)
        for _ in range(3):
            for proxy in (ngx, ours):
                found = load.streams(proxy, path, STREAMED, STREAMS)
                if found.broken:
                    raise RuntimeError(f"{proxy.name}: {found.broken} of {STREAMS} streams were not whole")
                costs.setdefault(proxy.name, []).append(found.cpu_us)
    mine, theirs = median(costs["sollol"]), median(costs["nginx"])
    beside = f"nginx: {theirs:.1f} us, ours: {mine:.1f} us"
    return row(f"CPU a relayed chunk, {kind}", mine / theirs, "x", beside, 1.5)


def many_streams() -> list[Row]:
    """MANY streams at once over as many nodes, twice; SOLLOL_BENCH_LONG=1 for a minute each."""
    seconds = 60 if LONG else 10
    parts = seconds * 4
    with stream_nodes(MANY, parts, 250) as ports, proxies.sollol(ports) as ours:
        idle = _settled_rss(ours)
        first = load.streams(ours, "/api/chat", STREAMED, MANY)
        after_one = _settled_rss(ours)
        second = load.streams(ours, "/api/chat", STREAMED, MANY)
        after_two = _settled_rss(ours)
    broken = first.broken + second.broken
    per_stream = (max(after_one, after_two) - idle) / MANY / 1024
    told = f"{first.seconds:.0f} s each, {first.chunks + second.chunks:,} parts"
    return [
        row(f"{MANY:,} streams at once, not whole or out of order", broken, "", told, 0),
        row("  memory a stream", per_stream, "KB", f"{idle / 1e6:.0f} MB before, {after_two / 1e6:.0f} MB after", 100),
        row("  memory after the second round / after the first", after_two / after_one, "x", "", 1.05),
    ]


def _settled_rss(proxy: Running) -> int:
    time.sleep(2.0)
    return proxy.rss_bytes()
