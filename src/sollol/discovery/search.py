"""Run a search: start everything at once, collect answers, stop in time.

    plan ──► named ─────────────► resolve ──► identify ─┐
         ──► container names ──► resolve ──┐            ├─► sightings ──► nodes, one for each machine and port
         ──► targets ────────────► sweep ──┴► identify ─┘

All steps run concurrently: an address is identified as soon as its port opens, while the sweep goes on. A pure function
decides when to stop (`stop_policy.stop_at`). An error at one candidate ends that candidate only.

Measured on two busy cores (`bench/discovery.py`): a /24 with two nodes, a silent server on Ollama's port and 250 silent
addresses takes 0.3 s, of which 0.25 s is listening.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import sys
import warnings
from collections.abc import Callable, Coroutine, Iterable, Sequence
from typing import Any, Final, TypeVar

from sollol.backends.agent_proof import has_key
from sollol.config import load_settings
from sollol.core.endpoint import Endpoint, with_key
from sollol.discovery import candidates, identity, networks
from sollol.discovery.candidates import CandidateSource, SearchPlan, Surroundings, Target
from sollol.discovery.identity import Deduplicator, Found, Sighting
from sollol.discovery.names import Names
from sollol.discovery.networks import IP
from sollol.discovery.stop_policy import SearchProgress, stop_at
from sollol.discovery.sweep import Sweep
from sollol.discovery.verify import MAX_BODY_BYTES, identify, loaded
from sollol.duties import Duties, future_of
from sollol.errors import BadInput
from sollol.transport.base import TransportFault
from sollol.transport.http import HttpTransport

log = logging.getLogger("sollol.discovery")
DEFAULT_PORTS: Final = (11434,)
NEAR: Final = 256  # addresses of the pass that is made in any case: the nearest /24
PS_TIMEOUT_S = 0.1  # a node that loads a model may answer later, and then its loaded models are no evidence
_T = TypeVar("_T")


def discover_ollama_nodes(
    timeout: float = 0.5,
    exclude_localhost: bool = False,
    auto_resolve_docker: bool = True,
    discover_all_nodes: bool = False,
    subnets: Iterable[str] | None = None,
    ports: Sequence[int] = DEFAULT_PORTS,
) -> list[dict[str, Any]]:
    """Find Ollama nodes: `[{"host": "10.9.66.15", "port": 11434}, ...]`, each machine and port once.

    Works inside notebooks, running event loops and threads. Network errors do not raise.

    Args:
        timeout: Seconds for the whole search. On a machine that is too busy to try the nearest /24 within it, one pass
            over that is made nevertheless (5 s more at most).
        exclude_localhost: Leave out this machine, except nodes of it that SOLLOL_NODES or the config file names.
        auto_resolve_docker: Inside a container, try the host, too.
        discover_all_nodes: Widen the search from the nearest /24 of a large network to its /16.
        subnets: Networks to search instead of this machine's private ones.
        ports: Ports to try on each address.

    Raises:
        BadInput: An argument cannot be used.
        ConfigError: A setting cannot be used.
    """
    found = run_apart(
        lambda: discover(timeout, exclude_localhost, auto_resolve_docker, discover_all_nodes, subnets, ports)
    )
    return [_as_mapping(node.endpoint) for node in found]


async def discover(
    timeout: float = 0.5,
    exclude_localhost: bool = False,
    auto_resolve_docker: bool = True,
    discover_all_nodes: bool = False,
    subnets: Iterable[str] | None = None,
    ports: Sequence[int] = DEFAULT_PORTS,
) -> list[Found]:
    """Find nodes with all details, on the running event loop. Arguments as for `discover_ollama_nodes`."""
    if sys.platform == "win32" and isinstance(asyncio.get_running_loop(), asyncio.ProactorEventLoop):
        again = (timeout, exclude_localhost, auto_resolve_docker, discover_all_nodes, subnets, ports)
        return await asyncio.to_thread(run_apart, lambda: discover(*again))
    settings = load_settings(discovery_ports=None if ports is DEFAULT_PORTS else ports)
    given = settings.discovery_subnets if subnets is None else subnets
    within = None if given is None else networks.parse_subnets(given)
    if isinstance(timeout, bool) or not isinstance(timeout, (int, float)) or not timeout > 0:
        raise BadInput(f"timeout: {timeout!r} cannot be used; expected seconds above 0, such as 0.5")
    around = inspect_machine()
    tried = settings.discovery_ports
    if settings.agents_key and ports is DEFAULT_PORTS and settings.agents_port not in tried:
        tried = (*tried, settings.agents_port)
    plan = candidates.plan(
        around,
        settings,
        tried,
        within,
        exclude_localhost=exclude_localhost,
        containers=auto_resolve_docker,
        wide=discover_all_nodes,
    )
    transport = HttpTransport(max_body_bytes=MAX_BODY_BYTES)
    agents = (settings.agents_port, settings.agents_key) if settings.agents_key else None
    search = _Search(plan, around, transport, timeout, agents)
    try:
        found = await search.run()
    finally:
        await transport.aclose()
    if not exclude_localhost:
        return found
    named = {endpoint.key for endpoint in settings.nodes}  # by the user, which goes before the exclusion
    return [node for node in found if node.host_id != identity.THIS_MACHINE or node.endpoint.key in named]


def physical_hosts(endpoints: Iterable[Endpoint], *, timeout: float = 0.5) -> dict[str, str]:
    """Return endpoint key -> id of the physical machine behind it: equal ids, one machine.

    Sends only name look-ups; `timeout` limits them, in seconds. Evidence: this machine's own addresses, equal
    addresses, and the neighbour table, which has recent peers.
    """
    nodes = list(endpoints)

    async def resolve() -> list[tuple[IP, ...]]:
        names = Names()
        return await asyncio.gather(*(_within(timeout, names.resolve(node.host)) for node in nodes))

    resolved = run_apart(resolve)
    around, macs = inspect_machine(), identity.neighbours()
    return {node.key: identity.host_id(node.host, ips, around, macs) for node, ips in zip(nodes, resolved, strict=True)}


async def _within(timeout: float, looking: Coroutine[Any, Any, tuple[_T, ...]]) -> tuple[_T, ...]:
    try:
        return await asyncio.wait_for(looking, timeout)
    except TimeoutError:
        return ()


def inspect_machine() -> Surroundings:
    """Read the addresses, the route and the container state of this machine."""
    inside = candidates.in_container()
    return Surroundings(
        tuple(networks.own_interfaces()),
        networks.route_address(),
        inside,
        candidates.default_gateway() if inside else None,
    )


def run_apart(make: Callable[[], Coroutine[Any, Any, _T]]) -> _T:
    """Run a coroutine on a new event loop in a new thread; return its result.

    The caller's thread may have a running loop. The loop is a selector loop because Windows' default loop cannot watch
    sockets that connect.
    """

    def work() -> _T:
        loop = asyncio.SelectorEventLoop()
        try:
            return loop.run_until_complete(make())
        finally:
            loop.close()

    return future_of("sollol-discovery", work).result()


def _as_mapping(endpoint: Endpoint) -> dict[str, Any]:
    """Return `host` and `port`, and the `url` of a node for which these do not suffice."""
    mapping: dict[str, Any] = {"host": endpoint.host, "port": endpoint.port}
    if endpoint != Endpoint(endpoint.host, endpoint.port):
        mapping["url"] = endpoint.url
    return mapping


class _Search:
    """One search from start to end. All its tasks end with it."""

    def __init__(
        self,
        plan: SearchPlan,
        around: Surroundings,
        transport: HttpTransport,
        timeout_s: float,
        agents: tuple[int, str] | None = None,
    ) -> None:
        self._agents = agents  # port and key
        self._loop = asyncio.get_running_loop()
        self._deadline = self._loop.time() + timeout_s
        self._timeout_s = timeout_s
        self._plan = plan
        self._around = around
        self._transport = transport
        self._names = Names()
        self._changed = asyncio.Event()
        near = NEAR * max(1, len(plan.ports))
        self._sweep = Sweep(plan.targets, self._on_open, self._changed.set, near)
        self._likely_until = 0.0
        self._tasks: set[asyncio.Task[None]] = set()
        self._duties = Duties()
        self._sightings: list[Sighting] = []
        self._identifying = 0  # queries at swept addresses without a right answer so far
        self._held = 0
        self._last_started = 0.0

    async def run(self) -> list[Found]:
        sweep = self._sweep
        try:
            for endpoint in self._plan.named:
                self._start(self._identify_named(endpoint), held=1)
            for name in self._plan.names:
                self._start(self._resolve_container_host(name), identifying=1)
            await self._listen()
        finally:
            sweep.close()
            tasks = list(self._tasks)
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)
        if sweep.unsent:
            self._warn_of_untried()
        deduplicator = Deduplicator(self._sightings, self._around, identity.neighbours())
        doubtful = deduplicator.doubtful()
        same = await asyncio.gather(*(self._may_be_same_node(*pair) for pair in doubtful))
        pairs = [pair for pair, one in zip(doubtful, same, strict=True) if one]
        found = deduplicator.nodes(pairs)
        _warn_of_relays(pairs, found)
        return found

    async def _listen(self) -> None:
        while True:
            self._changed.clear()
            progress = SearchProgress(
                unsent=self._sweep.unsent,
                listening=self._sweep.listening + self._identifying,
                held=self._held,
                found=len(self._sightings),
                last_sent=max(self._sweep.last_sent, self._last_started),
                slowest_s=self._sweep.slowest_s,
                pass_sent=self._sweep.pass_sent,
                likely_until=self._likely_until,
            )
            left_s = stop_at(progress, self._deadline) - self._loop.time()
            if left_s <= 0:
                return
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(left_s):
                    await self._changed.wait()

    def _start(self, work: Coroutine[Any, Any, None], *, held: int = 0, identifying: int = 0) -> None:
        self._held += held
        self._identifying += identifying
        self._last_started = self._loop.time()
        task = self._duties.once("identifying a candidate node", work)
        self._tasks.add(task)
        task.add_done_callback(self._on_done)

    def _on_done(self, task: asyncio.Task[None]) -> None:
        self._tasks.discard(task)
        self._changed.set()

    def _on_open(self, target: Target) -> None:
        self._start(self._identify_target(target), identifying=1)

    async def _identify_target(self, target: Target) -> None:
        likely = False

        def hold() -> None:
            nonlocal likely
            likely = True
            self._likely_until = self._loop.time() + self._timeout_s
            self._identifying -= 1
            self._held += 1

        try:
            await self._identify(target.endpoint, target.source, (target.ip,), hold)
        finally:
            self._sweep.release()
            if likely:
                self._held -= 1
            else:
                self._identifying -= 1

    async def _identify_named(self, endpoint: Endpoint) -> None:
        try:
            ips = await self._names.resolve(endpoint.host)
            if ips:
                await self._identify(endpoint, CandidateSource.SETTINGS, ips, lambda: None)
        finally:
            self._held -= 1

    async def _resolve_container_host(self, name: str) -> None:
        try:
            for ip in await self._names.resolve(name):
                if networks.is_private(ip):
                    for port in self._plan.ports:
                        self._sweep.add(Target(ip, port, CandidateSource.CONTAINER_HOST))
        finally:
            self._identifying -= 1

    async def _identify(
        self, endpoint: Endpoint, source: CandidateSource, ips: tuple[IP, ...], likely: Callable[[], None]
    ) -> None:
        agents = self._agents
        if agents is not None and endpoint.port == agents[0] and not endpoint.api_key:
            try:
                if not await has_key(self._transport, endpoint, agents[1], self._timeout_s):
                    return
            except TransportFault:
                return
            endpoint = with_key(endpoint, agents[1])
        answer = await identify(self._transport, endpoint, self._timeout_s, likely)
        if answer is not None:
            self._sightings.append(Sighting(endpoint, source, ips, answer))

    async def _may_be_same_node(self, first: Sighting, second: Sighting) -> bool:
        """Return False if two nodes have different models loaded, or equal ones with different expiry times."""
        pair = (first.endpoint, second.endpoint)
        left_s = max(0.0, min(PS_TIMEOUT_S, self._deadline - self._loop.time()))
        try:
            async with asyncio.timeout(left_s):
                here, there = await asyncio.gather(*(loaded(self._transport, each, left_s) for each in pair))
        except TimeoutError:
            return True
        return here is None or there is None or here == there

    def _warn_of_untried(self) -> None:
        warnings.warn(
            f"discovery: {self._sweep.left():,} addresses were not tried within {self._timeout_s:g} s; "
            "raise timeout=, search fewer with subnets=[...], or name the nodes in SOLLOL_NODES",
            stacklevel=2,
        )


def _warn_of_relays(pairs: Sequence[tuple[Sighting, Sighting]], found: Sequence[Found]) -> None:
    """Log both addresses of nodes with equal identities: one machine, or a relay of the other."""
    used = {node.endpoint.key for node in found}
    for pair in pairs:
        one, other = sorted(sighting.endpoint.key for sighting in pair)
        taken = one if one in used else other
        log.warning(
            "%s and %s answer alike: they are two addresses of one machine, or one relays calls to the other; %s is "
            "used. To use the other, name it in SOLLOL_NODES",
            one,
            other,
            taken,
        )
