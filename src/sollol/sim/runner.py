"""Schedule the models in memory of a node, as Ollama does (server/sched.go).

A request for a model that is loaded with the same options goes straight to the runner and waits there without bound.
Any other stands in one line of at most `max_queue` and the one in work. There, one at a time, it makes room (the idle
runner with the shortest keep-alive first, else it waits for one to become idle), loads, and lets the next in.
Keep-alive needs no timers: an expired runner shows only when the list is read, so expiry is applied then.
"""

from __future__ import annotations

import asyncio
import math
from collections import deque
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

from sollol.sim.machine import Machine
from sollol.sim.models import ModelSpec, NodeSpec

RUNNER_OPTIONS = ("num_ctx", "num_batch", "num_gpu", "main_gpu", "use_mmap", "num_thread", "shift")


class ServerBusy(Exception):
    """The line of requests that need a load is full."""


class LoadFailed(Exception):
    """The model does not fit into the memory of the node, whatever else leaves it."""


class Slots:
    """Limit the requests of a runner, first come, first served. A slot may stay taken after its request has ended."""

    def __init__(self, machine: Machine, count: int) -> None:
        self._machine = machine
        self.count = count
        self.free = count
        self.line: deque[asyncio.Future[None]] = deque()

    async def acquire(self) -> None:
        """Wait for a slot and take it."""
        if self.free > 0 and not self.line:
            self.free -= 1
            return
        turn: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self.line.append(turn)
        try:
            await self._machine.wait(turn)
        except BaseException:
            if turn in self.line:
                self.line.remove(turn)
            elif turn.done() and not turn.cancelled() and turn.exception() is None:
                self.release()
            raise

    def release(self) -> None:
        """Give a slot to the next request, or free it."""
        while self.line:
            turn = self.line.popleft()
            if not turn.done():
                turn.set_result(None)  # the place passes on, `free` stays
                return
        self.free += 1


class Runner:
    """Hold a model in memory."""

    def __init__(self, machine: Machine, spec: NodeSpec, model: ModelSpec, options: tuple[Any, ...]) -> None:
        self.model = model
        self.options = options
        self.num_ctx: int = options[0]
        self.slots = Slots(machine, 1 if model.is_embed else spec.num_parallel)
        self.users = 0
        self.keep_alive_s = spec.keep_alive_s
        self.expires_s = math.inf
        self.shown: tuple[tuple[bool, float], str] | None = (
            None  # its state, and the time of expiry that was sent for it
        )
        self.size_vram = model.size_bytes
        self.slowdown = 1.0
        self.decoding = 0
        self.cached_texts: deque[str] = deque(maxlen=self.slots.count)  # the text in each slot's cache
        self.idle: asyncio.Future[None] | None = None

    def leave(self, now_s: float) -> None:
        """Record that a request has ended."""
        self.users -= 1
        self.expires_s = now_s + self.keep_alive_s
        if self.users == 0 and self.idle is not None and not self.idle.done():
            self.idle.set_result(None)


class Runners:
    """Hold the loaded models of a node, and the line of loads."""

    def __init__(self, machine: Machine, spec: NodeSpec) -> None:
        self._machine = machine
        self._spec = spec
        self._loader = Slots(machine, 1)
        self.loaded: dict[str, Runner] = {}
        self.loads: dict[str, int] = {}
        self.gpu_lost = False
        self.stuck: asyncio.Future[None] | None = None  # loads wait for it (ollama#17408)

    def options_of(self, model: ModelSpec, options: dict[str, Any]) -> tuple[Any, ...]:
        """Return the options that must agree for a runner to be reused. The first is the context length."""
        num_ctx = min(options.get("num_ctx") or self._spec.num_ctx, model.context_length)
        return (num_ctx, *(options.get(name) for name in RUNNER_OPTIONS[1:]))

    def look(self) -> dict[str, Runner]:
        """Return the loaded models, without those that have expired."""
        now = asyncio.get_running_loop().time()
        gone = [name for name, r in self.loaded.items() if r.users == 0 and r.expires_s <= now]
        for name in gone:
            del self.loaded[name]
        return self.loaded

    def put(self, model: ModelSpec, options: tuple[Any, ...]) -> Runner:
        """Place a model in memory without the time that it takes."""
        runner = Runner(self._machine, self._spec, model, options)
        free = self._free_vram()
        runner.size_vram = int(max(0, min(model.size_bytes, free))) if not self.gpu_lost else 0
        on_gpu = runner.size_vram / model.size_bytes if model.size_bytes else 1.0
        runner.slowdown = on_gpu + (1 - on_gpu) * self._spec.cpu_slowdown
        self.loaded[model.name] = runner
        self.loads[model.name] = self.loads.get(model.name, 0) + 1
        return runner

    def unload(self, name: str) -> None:
        """Unload a model: now if it is idle, else when it becomes idle."""
        runner = self.look().get(name)
        if runner is None:
            return
        runner.keep_alive_s = 0.0
        runner.expires_s = -math.inf
        self.look()

    @asynccontextmanager
    async def use(self, model: ModelSpec, options: dict[str, Any], keep_alive_s: float | None) -> AsyncIterator[Runner]:
        """Hold a runner for one request.

        Raises:
            ServerBusy: Too many requests wait for a load.
            LoadFailed: The model does not fit into the memory.
        """
        runner = await self._get(model, self.options_of(model, options))
        if keep_alive_s is not None:  # else it keeps the one it has: a pinned model stays pinned
            runner.keep_alive_s = keep_alive_s
        try:
            yield runner
        finally:
            runner.leave(asyncio.get_running_loop().time())

    async def _get(self, model: ModelSpec, options: tuple[Any, ...]) -> Runner:
        runner = self.look().get(model.name)
        if runner is not None and runner.options == options:
            runner.users += 1
            return runner
        if len(self._loader.line) >= self._spec.max_queue:
            raise ServerBusy("server busy, please try again.  maximum pending requests exceeded")
        await self._loader.acquire()
        try:
            return await self._load(model, options)
        finally:
            self._loader.release()

    async def _load(self, model: ModelSpec, options: tuple[Any, ...]) -> Runner:
        runner = self.look().get(model.name)  # a request before this one may have loaded it
        if runner is not None and runner.options == options:
            runner.users += 1
            return runner
        if runner is not None:
            await self._evict(runner)
        while victim := self._in_the_way(model):
            await self._evict(victim)
        while self.stuck is not None:
            await self._machine.wait(self.stuck)
        self._check_fit(model)
        rate = self._spec.load_bytes_per_s
        await self._machine.work(model.size_bytes / rate if rate else 0.0)
        runner = self.put(model, options)
        runner.users += 1
        return runner

    def _check_fit(self, model: ModelSpec) -> None:
        spec = self._spec
        if spec.ram_bytes is None:
            return
        room = spec.ram_bytes + (spec.vram_bytes or 0)
        if model.size_bytes > room:
            required, available = model.size_bytes / 2**30, room / 2**30
            raise LoadFailed(
                f"model requires more system memory ({required:.1f} GiB) than is available ({available:.1f} GiB)"
            )

    def _in_the_way(self, model: ModelSpec) -> Runner | None:
        runners = list(self.look().values())
        fits = self._free_vram() >= model.size_bytes and len(runners) < self._spec.max_loaded_models
        if not runners or fits:
            return None
        return min(runners, key=lambda r: (r.users > 0, r.keep_alive_s, r.expires_s, r.model.name))

    def _free_vram(self) -> float:
        if self._spec.vram_bytes is None:
            return math.inf
        return self._spec.vram_bytes - sum(r.size_vram for r in self.loaded.values())

    async def _evict(self, runner: Runner) -> None:
        while runner.users > 0:
            if runner.idle is None or runner.idle.done():
                runner.idle = asyncio.get_running_loop().create_future()
            await self._machine.wait(runner.idle)
        if self.loaded.get(runner.model.name) is runner:
            del self.loaded[runner.model.name]
