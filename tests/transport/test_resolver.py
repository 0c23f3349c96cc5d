"""Names: look-ups that hang, fail, or change hold up nothing, and the end of a program least."""

from __future__ import annotations

import asyncio
import json
import socket
import subprocess
import sys
import threading
from collections.abc import Callable
from typing import Any

import pytest

from sollol.transport import resolver as module
from sollol.transport.resolver import Resolver
from tests.transport.name_server import needs_namespaces, run_apart
from tests.transport.raw_server import on_both_loops, run


class System:
    """The system's resolver, which answers when and what a test says."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.asked: list[str] = []
        self.answers: dict[str, Callable[[], list[str]]] = {}
        monkeypatch.setattr(socket, "getaddrinfo", self._look_up)

    def _look_up(self, host: str, *_: Any, **__: Any) -> list[Any]:
        self.asked.append(host)
        kinds = {True: socket.AF_INET6, False: socket.AF_INET}
        return [
            (kinds[":" in found], socket.SOCK_STREAM, 6, "", (found, 0, 0, 0) if ":" in found else (found, 0))
            for found in self.answers[host]()
        ]


@pytest.fixture
def system(monkeypatch: pytest.MonkeyPatch) -> System:
    return System(monkeypatch)


def failing(number: int) -> Callable[[], list[str]]:
    def fail() -> list[str]:
        raise socket.gaierror(number, "no")

    return fail


async def until(true: Callable[[], Any]) -> None:
    for _ in range(500):
        if true():
            return
        await asyncio.sleep(0.01)
    raise AssertionError("it did not happen")


@on_both_loops
def test_names_that_hang_do_not_hold_up_another(new_loop: Any, system: System) -> None:
    hangs = threading.Event()

    async def main() -> None:
        names = Resolver()
        system.answers = {f"dead-{i}": lambda: (hangs.wait(9) and []) or [] for i in range(100)}
        system.answers["good"] = lambda: ["10.0.0.1"]
        waiting = [asyncio.ensure_future(names.resolve(f"dead-{i}")) for i in range(100) for _ in range(2)]
        await asyncio.sleep(0)
        assert await asyncio.wait_for(names.resolve("good"), 5) == ("10.0.0.1",)
        assert sorted(system.asked) == sorted([*(f"dead-{i}" for i in range(100)), "good"])  # one look-up a name
        for task in waiting:
            task.cancel()
        await asyncio.gather(*waiting, return_exceptions=True)
        hangs.set()

    run(new_loop, main())


@on_both_loops
def test_names_that_were_slow_leave_threads_for_others(
    new_loop: Any, system: System, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "LOOKUPS", 4)
    monkeypatch.setattr(module, "SLOW_LOOKUPS", 2)
    monkeypatch.setattr(module, "SLOW_S", -1.0)  # every look-up was slow
    monkeypatch.setattr(module, "RETRY_S", 0.0)
    hangs = threading.Event()

    async def main() -> None:
        names = Resolver()
        dead = [f"dead-{i}" for i in range(4)]
        system.answers = dict.fromkeys(dead, failing(socket.EAI_AGAIN))
        for host in dead:
            with pytest.raises(OSError):
                await names.resolve(host)
        system.answers = {host: lambda: (hangs.wait(9) and []) or [] for host in dead} | {"new": lambda: ["10.0.0.1"]}
        waiting = [asyncio.ensure_future(names.resolve(host)) for host in dead]
        await asyncio.sleep(0.05)
        assert await asyncio.wait_for(names.resolve("new"), 5) == ("10.0.0.1",)
        assert system.asked.count("dead-3") == 1  # it waits for its turn
        hangs.set()
        await asyncio.gather(*waiting, return_exceptions=True)
        assert system.asked.count("dead-3") == 2

    run(new_loop, main())


@on_both_loops
def test_what_was_found_serves_while_a_look_up_hangs(
    new_loop: Any, system: System, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "FRESH_S", 0.0)
    hangs = threading.Event()

    async def main() -> None:
        names = Resolver()
        system.answers["n"] = lambda: ["10.0.0.1"]
        assert await names.resolve("n") == ("10.0.0.1",)
        system.answers["n"] = lambda: (hangs.wait(9) and ["10.0.0.2"]) or []
        for _ in range(3):
            assert await asyncio.wait_for(names.resolve("n"), 5) == ("10.0.0.1",)
        assert len(system.asked) == 2
        hangs.set()
        await until(lambda: names._names["n"].addresses == ("10.0.0.2",))
        system.answers["n"] = lambda: ["10.0.0.3"]  # a quick one is waited for
        assert await names.resolve("n") == ("10.0.0.3",)

    run(new_loop, main())


@on_both_loops
def test_a_failure_is_kept_for_a_moment_and_then_tried_again(
    new_loop: Any, system: System, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def main() -> None:
        names = Resolver()
        system.answers["n"] = failing(socket.EAI_AGAIN)
        for _ in range(3):
            with pytest.raises(socket.gaierror):
                await names.resolve("n")
        assert len(system.asked) == 1
        monkeypatch.setattr(module, "RETRY_S", 0.0)
        system.answers["n"] = lambda: ["10.0.0.1"]
        assert await names.resolve("n") == ("10.0.0.1",)

    run(new_loop, main())


@on_both_loops
def test_a_name_server_in_trouble_takes_no_address_away_and_a_denial_does(
    new_loop: Any, system: System, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "FRESH_S", 0.0)
    monkeypatch.setattr(module, "RETRY_S", 0.0)
    monkeypatch.setattr(module, "STALE_WAIT_S", 5.0)

    async def main() -> None:
        names = Resolver()
        system.answers["n"] = lambda: ["10.0.0.1"]
        await names.resolve("n")
        system.answers["n"] = failing(socket.EAI_AGAIN)
        for _ in range(4):
            assert await names.resolve("n") == ("10.0.0.1",)
        system.answers["n"] = failing(socket.EAI_NONAME)
        assert await names.resolve("n") == ("10.0.0.1",)
        with pytest.raises(socket.gaierror):
            await names.resolve("n")

    run(new_loop, main())


@on_both_loops
def test_a_look_up_goes_on_when_its_caller_gives_up(new_loop: Any, system: System) -> None:
    goes_on = threading.Event()

    async def main() -> None:
        names = Resolver()
        system.answers["n"] = lambda: (goes_on.wait(9) and ["10.0.0.1"]) or []
        with pytest.raises(TimeoutError):
            await asyncio.wait_for(names.resolve("n"), 0.05)
        goes_on.set()
        await until(lambda: names._names["n"].addresses)
        assert await names.resolve("n") == ("10.0.0.1",)
        assert system.asked == ["n"]

    run(new_loop, main())


ENDS = """
import asyncio, random, socket, sys, time
import uvloop
from sollol import AsyncOllamaPool
real = socket.getaddrinfo
def slow(host, *args, **more):
    if not str(host).startswith("dead"):
        return real(host, *args, **more)
    time.sleep({sleeps})
    raise socket.gaierror(socket.EAI_AGAIN, "in vain")
socket.getaddrinfo = slow
async def main():
    async with AsyncOllamaPool([f"dead-{{i}}" for i in range(12)]) as pool:
        await asyncio.sleep(0.1)
asyncio.Runner(loop_factory={loop}.new_event_loop).run(main())
"""


@pytest.mark.parametrize("loop", ["asyncio", "uvloop"])
@pytest.mark.parametrize("sleeps", ["600", "random.uniform(0.05, 0.3)"])
def test_a_program_ends_at_once_while_look_ups_hang(loop: str, sleeps: str) -> None:
    script = ENDS.format(loop=loop, sleeps=sleeps)
    for _ in range(4):
        done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=120, check=False)
        assert (done.returncode, done.stderr) == (0, "")


CALLS = """
import json, threading, time
from sollol import OllamaPool
from sollol.transport.http import HttpTransport
from sollol.sim import ModelSpec, NodeSpec, sim_cluster

model = ModelSpec("m", size_bytes=1000)
spec = NodeSpec(models=(model,), loaded=("m",), decode_tokens_per_s=1000.0, prefill_tokens_per_s=100000.0)
ok, bad = [], []
with sim_cluster([spec, spec]) as nodes:
    ports = [url.rpartition(":")[2] for url in nodes.urls]
    names = [f"http://{name}.good.internal:{port}" for name, port in zip("ab", ports)]
    pool = OllamaPool([*names, "http://dead.internal:11434"], transport=HttpTransport(max_idle_per_node=%d))
    end = time.monotonic() + 7  # two probes of the dead name and more

    def call():
        while time.monotonic() < end:
            try:
                pool.chat("m", [{"role": "user", "content": "hi"}], options={"num_predict": 20})
                ok.append(1)
            except Exception as error:
                bad.append(str(error))

    callers = [threading.Thread(target=call) for _ in range(4)]
    for caller in callers:
        caller.start()
    for caller in callers:
        caller.join()
    up = [node.is_healthy for node in pool.nodes]
    pool.close()
    print(json.dumps(dict(ok=len(ok), bad=bad, up=up)))
"""


@needs_namespaces
@pytest.mark.parametrize("idle", [0, 64], ids=["a connection a call", "kept connections"])
def test_a_dead_name_touches_no_call_through_good_ones(idle: int) -> None:
    done = run_apart(CALLS % idle)
    assert (done.returncode, done.stderr) == (0, "")
    told = json.loads(done.stdout)
    assert told["bad"] == []
    assert told["ok"] > 20
    assert told["up"] == [True, True, False]
