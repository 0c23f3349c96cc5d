"""Simulate one Ollama node: routes, memory, speed, faults, and a log of its requests.

It has no sockets: `handle` takes a Call and returns a Reply. Under SimTransport it lives in simulated time, under
`serve` behind real HTTP; the code is the same. Memory is in runner.py, time in generation.py and embed_routes.py, speed
in machine.py, faults in faults.py.
"""

from __future__ import annotations

import asyncio
import random
import re
import time
from collections import deque
from collections.abc import Callable, Coroutine
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Literal

from sollol.core.types import canonical_model
from sollol.errors import BadInput
from sollol.sim import routes
from sollol.sim.faults import Faults, Wrong
from sollol.sim.loop import SimLoop
from sollol.sim.machine import Machine, NodeDied
from sollol.sim.models import ModelSpec, NodeSpec, full_name
from sollol.sim.ollama_store import OllamaStore, RegistryName
from sollol.sim.registry_client import RegistryClient
from sollol.sim.reply import SimReply
from sollol.sim.request import Refusal, SimRequest
from sollol.sim.runner import Runner, Runners
from sollol.transport.base import Call, Fault, TransportFault

_EPOCH_S = 1_767_225_600  # 2026-01-01, when simulated time begins
_LOG_LENGTH = 200_000
_NAME = re.compile(
    r"(\w+://)?([A-Za-z0-9_][\w.:-]*/)?([A-Za-z0-9_][\w-]*/)?[A-Za-z0-9_][\w.-]*(:[\w.-]+){0,2}", re.ASCII
)


@dataclass
class Counters:
    """Count what a node did, for tests.

    `log` has (microseconds, route, status); 499 is a client that left, 0 a cut.
    """

    requests: dict[str, int] = field(default_factory=dict)
    items_embedded: int = 0
    tokens: int = 0
    aborted: int = 0
    inflight: int = 0
    max_inflight: int = 0
    log: deque[tuple[int, str, int]] = field(default_factory=lambda: deque(maxlen=_LOG_LENGTH))


class SimNode:
    """Simulate one node. Its methods are its switches; `counters` and `loads` are its record."""

    def __init__(self, spec: NodeSpec | None = None) -> None:
        self.spec = spec or NodeSpec()
        self.disk: dict[str, ModelSpec] = {model.name: model for model in self.spec.models}
        self.blobs: set[str] = set()  # digests that were uploaded
        self.dice = random.Random(f"{self.spec.seed}/{self.spec.key}")
        self.machine = Machine()
        self.runners = Runners(self.machine, self.spec)
        self.faults = Faults()
        self.counters = Counters()
        self.state: Literal["up", "down", "unreachable"] = "up"
        self.on_state: list[Callable[[SimNode], None]] = []
        self._stalled: list[asyncio.Future[None]] = []
        self._writers: dict[asyncio.Task[Any], bool] = {}  # whether it counts as a running request
        self._epoch_s: float | None = None
        self.store = OllamaStore(Path(self.spec.models_dir)) if self.spec.models_dir else None
        self.registry_client: RegistryClient | None = None
        if self.store is not None:
            self.registry_client = RegistryClient(self.store, self.spec.pull_bytes_per_s)
            self.disk = {name: self.store.make(model) for name, model in self.disk.items()}
            self.disk |= {name.shortest: self.store.read(name) for name in self.store.names()}
        self._preload()

    def __repr__(self) -> str:
        c = self.counters
        served = sum(c.requests.values())
        return f"<SimNode {self.spec.key} {self.state} · {c.inflight} running · {served} served>"

    def add_pulled(self, name: RegistryName) -> None:
        """List a model whose files were pulled."""
        assert self.store is not None
        model = self.store.read(name)
        self.disk = {model.name: model, **self.disk}

    def _preload(self) -> None:
        for name in self.spec.loaded:
            model = self.disk.get(full_name(name))
            if model is None:
                raise BadInput(f"loaded: {name!r} is not a model of this node; expected one of {', '.join(self.disk)}")
            self.runners.put(model, self.runners.options_of(model, {}))

    @property
    def loads(self) -> dict[str, int]:
        """Return how often each model was loaded."""
        return self.runners.loads

    # -- requests ---------------------------------------------------------------------------------

    async def handle(self, call: Call) -> SimReply:
        """Answer one request. Raises TransportFault if the node is down, or dies before the head."""
        if self.state != "up":
            raise TransportFault(Fault.CONNECT, f"{self.spec.key}: connection refused")
        request = await SimRequest.of(call)
        route = routes.find(request)
        label = f"{request.method} {route.label}"
        counters = self.counters
        counters.requests[label] = counters.requests.get(label, 0) + 1
        counters.inflight += 1
        counters.max_inflight = max(counters.max_inflight, counters.inflight)
        status, reply = 0, None
        try:
            reply = await self._answer(request, route)
            status = reply.status
            return reply
        except NodeDied:
            raise TransportFault(Fault.CUT, f"{self.spec.key}: the connection was closed") from None
        except asyncio.CancelledError:
            status = 499
            counters.aborted += 1
            raise
        finally:
            counters.log.append((round(asyncio.get_running_loop().time() * 1e6), label, status))
            if reply is None or reply.writer is None:
                counters.inflight -= 1

    async def _answer(self, request: SimRequest, route: routes.SimRoute) -> SimReply:
        if self.spec.overhead_s or self.machine.frozen:
            await self.machine.work(self.spec.overhead_s)
        if not route.works:
            return await route.answer(self, request)
        return await self._with_faults(request, route)

    async def _with_faults(self, request: SimRequest, route: routes.SimRoute) -> SimReply:
        faults = self.faults
        doomed = faults.error_share > 0 and self.dice.random() < faults.error_share
        refusal = Refusal(faults.error_status, "simulated fault")
        if doomed and faults.error_when == "before":
            return route.refuse(refusal)
        if faults.busy_over is not None and self.counters.inflight > faults.busy_over:
            return route.refuse(Refusal(503, "server busy, please try again.  maximum pending requests exceeded"))
        reply = await route.answer(self, request)
        if doomed:
            await reply.aclose()
            if reply.writer is not None:
                self.discard_writer(reply.writer)
            return route.refuse(refusal)
        if reply.writer is None and reply.status == 200:
            self._spoil(reply)
        return reply

    def _spoil(self, reply: SimReply) -> None:
        faults = self.faults
        if faults.wrong in ("not-json", "empty-object"):
            reply.replace(b"{}" if faults.wrong == "empty-object" else b"<html>upstream said no</html>")
        if faults.cut_after is not None or faults.stall_after is not None:
            reply.spoil(silent=faults.cut_after is None)

    def spawn(self, writing: Coroutine[Any, Any, None]) -> asyncio.Task[None]:
        """Run the writer of a stream. The request counts as running until it ends."""
        task = asyncio.get_running_loop().create_task(writing)
        self._writers[task] = True
        task.add_done_callback(self._written)
        return task

    def discard_writer(self, writer: asyncio.Task[Any]) -> None:
        """Cancel a stream that failed before its head. `handle` counts its request."""
        writer.cancel()
        if writer in self._writers:
            self._writers[writer] = False

    def _written(self, task: asyncio.Task[Any]) -> None:
        if self._writers.pop(task, False):
            self.counters.inflight -= 1
            self.counters.aborted += task.cancelled()

    # -- what the routes need -----------------------------------------------------------------------

    def model(self, name: str, missing: str, must_name: bool = True) -> ModelSpec:
        """Return a model, or raise Refusal with the route's message.

        `must_name`: a missing name is a 400, not a 404.
        """
        if not name:
            raise Refusal(400, "model is required") if must_name else Refusal(404, "model '' not found")
        found = self.find(name)
        if found is None:
            if not _NAME.fullmatch(name.strip()):
                raise Refusal(400, "invalid model name")
            raise Refusal(404, missing.format(name))
        return found

    def find(self, name: str) -> ModelSpec | None:
        """Return a model on the disk, by any spelling that Ollama resolves to it."""
        wanted = canonical_model(name)
        return next((model for key, model in self.disk.items() if canonical_model(key) == wanted), None)

    def now_s(self) -> float:
        """Return the seconds since 1970. Simulated time begins with 2026."""
        loop = asyncio.get_running_loop()
        if self._epoch_s is None:
            self._epoch_s = _EPOCH_S if isinstance(loop, SimLoop) else time.time() - loop.time()
        return self._epoch_s + loop.time()

    def stamp(self, after_s: float = 0.0) -> str:
        """Return a time as Ollama writes it, `after_s` seconds from now."""
        second, fraction = divmod(round((self.now_s() + after_s) * 1e6), 1_000_000)
        return f"{datetime.fromtimestamp(second, UTC):%Y-%m-%dT%H:%M:%S}.{fraction:06d}001Z"

    def duration_factor(self) -> float:
        """Draw the factor of the next piece of work: jitter and stragglers."""
        factor = 1.0
        if self.spec.jitter:
            factor += self.spec.jitter * (2 * self.dice.random() - 1)
        faults = self.faults
        if faults.straggler_share and self.dice.random() < faults.straggler_share:
            factor *= faults.straggler_factor
        return factor

    def hold_slot(self, runner: Runner, until_s: float) -> None:
        """Keep a slot taken until machine time `until_s`, after its client left."""

        async def wait() -> None:
            try:
                await self.machine.until(until_s)
            except NodeDied:
                pass
            finally:
                runner.slots.release()

        task = asyncio.get_running_loop().create_task(wait())
        self._writers[task] = False
        task.add_done_callback(self._written)

    def healed(self) -> asyncio.Future[None]:
        """Return a future that resolves when faults change. A stalled stream waits for it."""
        found: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._stalled.append(found)
        return found

    # -- switches -----------------------------------------------------------------------------------

    def die(self) -> None:
        """Cut running requests, refuse new connections, and empty the memory."""
        self._set_state("down")
        self.machine.cut()
        self.machine = Machine()
        self.runners = Runners(self.machine, self.spec)

    def revive(self) -> None:
        """Start again, with nothing loaded."""
        self._set_state("up")

    def black_hole(self) -> None:
        """Lose all packets: a connection takes for ever. Running requests go on."""
        self._set_state("unreachable")

    def reachable(self) -> None:
        """End a black hole."""
        self._set_state("up")

    def freeze(self) -> None:
        """Stop as with SIGSTOP: connections are accepted, nothing is answered, work stands still."""
        self.machine.set_pace(frozen=True)

    def thaw(self) -> None:
        """End a freeze."""
        self.machine.set_pace(frozen=False)

    def slow(self, factor: float) -> None:
        """Make everything take `factor` times as long, also work under way. 1 is normal."""
        self.machine.set_pace(slow=factor)

    def error_rate(self, share: float, when: Literal["before", "after"] = "before", status: int = 500) -> None:
        """Answer a share of the requests with an error, at once or after the work."""
        self.faults.error_share, self.faults.error_when, self.faults.error_status = share, when, status

    def busy_above(self, n: int | None) -> None:
        """Answer 503 to requests beyond `n` in flight."""
        self.faults.busy_over = n

    def cut_after(self, n: int | None) -> None:
        """Cut streams after `n` tokens, other answers in the middle of their body."""
        self.faults.cut_after = n

    def late_error_after(self, n: int | None) -> None:
        """End streams in an error after `n` tokens; answer others with a 500."""
        self.faults.late_error_after = n

    def stall_after(self, n: int | None) -> None:
        """Silence streams after `n` tokens, other answers in the middle of their body."""
        self.faults.stall_after = n
        self._notify_healed()

    def wrong(self, kind: Wrong | None) -> None:
        """Send answers that a careful client must refuse."""
        self.faults.wrong = kind

    def stragglers(self, share: float, factor: float = 10.0) -> None:
        """Make a share of the requests take `factor` times as long."""
        self.faults.straggler_share, self.faults.straggler_factor = share, factor

    def lose_gpu(self) -> None:
        """Run models on the CPU (size_vram 0) from the next load on, without an error."""
        self.runners.gpu_lost = True

    def regain_gpu(self) -> None:
        """Run models on the GPU again from the next load on."""
        self.runners.gpu_lost = False

    def fall_to_cpu(self, listed: bool = True) -> None:
        """Run the loaded models on the CPU, too, from the next token on. `listed`: `/api/ps` shows it."""
        self.lose_gpu()
        for runner in self.runners.look().values():
            runner.slowdown = self.spec.cpu_slowdown
            if listed:
                runner.size_vram = 0

    def hang_loads(self) -> None:
        """Begin every load and end none, while everything else goes on."""
        if self.runners.stuck is None:
            self.runners.stuck = asyncio.get_running_loop().create_future()

    def go_on_loading(self) -> None:
        """End what `hang_loads` began."""
        stuck, self.runners.stuck = self.runners.stuck, None
        if stuck is not None and not stuck.done():
            stuck.set_result(None)

    def heal(self) -> None:
        """Reset all switches. A dead node starts again."""
        self.faults = Faults()
        self.runners.gpu_lost = False
        self.go_on_loading()
        self.machine.set_pace(slow=1.0, frozen=False)
        self._notify_healed()
        self._set_state("up")

    def _notify_healed(self) -> None:
        stalled, self._stalled = self._stalled, []
        for future in stalled:
            if not future.done():
                future.set_result(None)

    def _set_state(self, state: Literal["up", "down", "unreachable"]) -> None:
        changed = self.state != state
        self.state = state
        if changed:
            for listener in list(self.on_state):
                listener(self)
