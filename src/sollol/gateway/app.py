"""The gateway itself: who may ask, which handler answers, and the life of the server.

Inference is answered by callbacks (`infer`), because its cost is the gateway's throughput; everything else by
coroutines, one task a request, cancelled when the client leaves.
"""

from __future__ import annotations

import asyncio
import logging
import math
import re
import sys
import time
from collections.abc import Callable, Coroutine
from concurrent.futures import ThreadPoolExecutor
from typing import Any, Final, TypeVar

import msgspec

from sollol.backends.ollama import load_call
from sollol.core.types import EMBED, Task, canonical_model
from sollol.dashboard.feed import Feed
from sollol.duties import Duties
from sollol.engine.engine import Engine
from sollol.errors import AddressUnavailable, BadInput, SollolError
from sollol.gateway.auth import access
from sollol.gateway.auth.cors import Cors
from sollol.gateway.auth.hosts import clean, is_own_host, redirect, refuse_host
from sollol.gateway.auth.keys import Key, Keyring
from sollol.gateway.auth.rate_limit import Meter
from sollol.gateway.changes import listening_as, may_pass, not_taken
from sollol.gateway.formats.api_formats import Tongue
from sollol.gateway.formats.bodies import is_large, settle_body
from sollol.gateway.formats.error_responses import error_body, status_of
from sollol.gateway.inference import embeddings as embed
from sollol.gateway.inference import passthrough as passing
from sollol.gateway.inference import single as infer
from sollol.gateway.routes import lists as fanout
from sollol.gateway.routes.dashboard import CHALLENGE, ROOT
from sollol.gateway.routes.table import INFERENCE, PASSED, PATTERNS, ROUTES, Route
from sollol.gateway.settings import GatewaySettings, is_loopback
from sollol.http_server.request import Request
from sollol.http_server.server import HttpServer
from sollol.pool.aio import AsyncOllamaPool
from sollol.transport.base import TransportFault
from sollol.transport.http import HttpTransport
from sollol.version import __version__

log = logging.getLogger("sollol.gateway")

T = TypeVar("T")
Handler = Callable[..., Coroutine[Any, Any, None]]
_ID = re.compile(r"[A-Za-z0-9._-]{1,64}")
GATEWAY_HEADER: Final = b"X-Sollol-Gateway"
VERSION: Final = __version__.encode()
CROWD: Final = 8  # calls under way
SWITCH_S: Final = 0.0005  # for which the loop waits while a large body is decoded in a thread; 5 ms is usual
PAUSE_FROM_S: Final = 0.005  # of the decoding of a body
PAUSE_FACTOR: Final = 4  # times as long is the place of that body kept from the next one
_BODILESS: Final = ("GET", "HEAD")
NAMES: Final = 10_000  # ids of clients that are remembered


class Gateway(HttpServer):
    """Serves `pool` on `settings.listen.host`:`settings.listen.port`. Lives on the loop that starts it."""

    joins_bodies = True

    def __init__(
        self,
        pool: AsyncOllamaPool,
        settings: GatewaySettings,
        keyring: Keyring | None = None,
        *,
        transport: HttpTransport,
    ) -> None:
        """`transport`: the pool's."""
        super().__init__(settings.limits)
        self.pool = pool
        self.totals = pool.totals
        self.sinks = transport
        transport.refuses_gateways = True
        self.settings = settings
        self.has_aliases = False
        self.usual = infer.usual(settings)  # what is wanted of a call that says nothing of it
        self.keyring = Keyring() if keyring is None else keyring
        self._cors = Cors(())
        self.meter = Meter()
        self._exact: dict[str, dict[str, Route]] = {}
        self._worker = ThreadPoolExecutor(1, "sollol-bodies")
        self._at_work = 0  # calls of the worker, and the interval of switches before them
        self._switch_s = 0.0
        self._local_only = is_loopback(settings.listen.host)
        self.once = fanout.Once()
        self._names: dict[tuple[str | None, str], int] = {}  # a key's app, the id its client gave -> task
        for (method, path), route in (INFERENCE | ROUTES).items():
            self.add(method, path, route)
        self._patterns = list(PATTERNS)
        self.cloud = passing.cloud

    def add(self, method: str, path: str, route: Route) -> None:
        routes = self._exact.setdefault(path, {})
        if route.head:
            routes["HEAD"] = route
        routes[method] = route

    # --- life ---

    async def start(self) -> int:
        """Listen; the port. Raises BadInput if that is not possible."""
        self.engine: Engine = self.pool.engine
        self.feed = Feed(self._read_snapshot)
        self.apply(self.settings)
        listen = self.settings.listen
        duties = Duties(self.engine.dispatcher.fault)
        try:
            return await self.listen(duties, self.sinks.on_this_loop(), listen.host, listen.port)
        except (OSError, UnicodeError) as error:
            where = f"{listen.host}:{listen.port}"
            raise AddressUnavailable(
                f"cannot listen on {where}: {error}; choose another --host or --port", may_pass(error)
            ) from None

    def apply(self, settings: GatewaySettings) -> list[str]:
        """From now on these settings hold, for the next request and for the nodes; what runs is left alone.

        Where it listens stays as it was. Returns what was not taken up, in words."""
        left = not_taken(settings, self.settings)
        settings = msgspec.structs.replace(settings, listen=listening_as(settings.listen, self.settings.listen))
        self.settings = settings
        self.bound(settings.limits)
        self.usual = infer.usual(settings)
        self.has_aliases = bool(settings.aliases)
        self._cors = Cors(settings.listen.cors_origins)
        self.engine.set_queue_bound(settings.limits.queue)
        self.engine.observe(settings.observer_sampling)
        self.pool.set_routing_mode(settings.mode)
        self.pool.routing_strategy = settings.strategy
        self.pool.use_digests(settings.routing.on_mixed_digests, settings.digests)
        if settings.nodes:
            wanted = {endpoint.key: endpoint for endpoint in settings.nodes}
            for node in self.pool.nodes:
                if node.key not in wanted:
                    self.pool.remove_node(node.url)
            for endpoint in wanted.values():
                self.pool.add_node(endpoint)
        return left

    def header_lines(self) -> bytes:
        """Return the header by which others who look for nodes see that this is a gateway."""
        return b"%b: %b\r\n" % (GATEWAY_HEADER, VERSION)

    def error_body(self, path: str, status: int, message: str) -> bytes:
        """Return an error in the words of the API that was called."""
        return error_body(path, status, message)

    async def aclose(self, drain_s: float | None = None) -> int:
        """Stop listening, let what is under way end for `drain_s` seconds, then cut it off; how many were cut off."""
        self.feed.close()
        left = await self.close(self.settings.listen.drain_s if drain_s is None else drain_s)
        await self.duties.aclose()
        self._worker.shutdown(wait=False, cancel_futures=True)
        return left

    # --- connections ---

    def proves(self, request: Request) -> bool:
        """Check whether a whole request shows that its connection is not a stranger's."""
        return request.key is not None or not self.keyring.required

    # --- requests ---

    def decide(self, request: Request) -> None:
        """Find by its head alone who answers a request. One that is refused has its answer then, and no route."""
        try:
            self._decide(request)
        except SollolError as error:
            self.refuse(request, error)
        except Exception as error:
            self.failed(request, error)

    def _decide(self, request: Request) -> None:
        headers = request.headers
        if self._is_misled(headers):
            refuse_host(request)
            return
        if b"origin" in headers and not self._cors.admit(request):
            return
        methods = self._exact.get(request.path)
        route = methods.get(request.method) if methods is not None else None
        parts: tuple[str, ...] = ()
        if route is None:
            route, parts = self._find(request)
            if route is None:
                return
        if self.keyring.asks and not self._let_in(request, route):
            return
        if route.admin:
            access.admin(request)
        if route.check is not None:
            route.check(*parts)
        request.takes_body = route is PASSED or request.method not in _BODILESS
        request.parts = parts
        request.uploads_body = route.upload
        request.route = route

    def handle(self, request: Request) -> None:
        """Answer a request that was accepted, now or later. Raises nothing: any exception is an answer, too."""
        try:
            route: Route = request.route
            if route.handler is None:
                self._infer(request, route)
            elif is_large(request) and route is not PASSED:
                self.in_task(_read_and_handle, request, (route.handler, *request.parts))
            else:
                self.in_task(route.handler, request, request.parts)
        except Exception as error:
            self.failed(request, error)

    def _is_misled(self, headers: dict[bytes, bytes]) -> bool:
        """It means another host. (HTTP/1.0 may name none, and no browser speaks that.)"""
        host = headers.get(b"host")
        return self._local_only and host is not None and not is_own_host(host, self.settings.listen.allowed_hosts)

    def settled(self, request: Request) -> Route | None:
        """The route of an inference whose head says nothing that has to be looked at again when it comes again."""
        if b"origin" in request.headers or self._is_misled(request.headers):
            return None
        route = self._exact.get(request.path, {}).get(request.method)
        return route if route is not None and route.tongue is not None else None

    def admit(self, request: Request) -> None:
        """Answer an inference whose head came before, if its key still allows it. Raises nothing."""
        try:
            route: Route = request.route
            if not self.keyring.asks or self._let_in(request, route):
                self._infer(request, route)
        except Exception as error:
            self.failed(request, error)

    def _infer(self, request: Request, route: Route) -> None:
        tongue = route.tongue
        assert tongue is not None
        if is_large(request):
            self.in_task(_read_and_infer, request, (tongue,))
            return
        try:
            settle_body(request)
            self.infer(tongue, request)
        except SollolError as error:
            self.refuse(request, error)

    def infer(self, tongue: Tongue, request: Request) -> None:
        """Answer an inference whose body is settled. Raises a SollolError for what cannot be asked."""
        if tongue.kind is EMBED:
            embed.embed(tongue, self, request)
        else:
            infer.infer(tongue, self, request)

    async def off_loop(self, work: Callable[..., T], *given: Any) -> T:
        """Do what takes long in a thread, one at a time: decoding takes memory, too."""
        self.intake.decodes()
        if not self._at_work:
            self._switch_s = sys.getswitchinterval()
            sys.setswitchinterval(min(self._switch_s, SWITCH_S))
        self._at_work += 1
        loop, took_s = asyncio.get_running_loop(), [0.0]
        try:
            return await loop.run_in_executor(self._worker, _timed, took_s, work, *given)
        finally:
            self._at_work -= 1
            if not self._at_work:
                sys.setswitchinterval(self._switch_s)
            if took_s[0] > PAUSE_FROM_S:  # its place is free later: large bodies must not fill the time of a core
                loop.call_later(PAUSE_FACTOR * took_s[0], self.intake.decoded)
            else:
                self.intake.decoded()

    def _find(self, request: Request) -> tuple[Route | None, tuple[str, ...]]:
        """A route that is not found at once: HEAD, a path with a parameter, another spelling, or one of the nodes."""
        path, method = request.path, request.method
        if (straight := clean(path)) != path:
            redirect(request, 307, straight)
            return None, ()
        allowed = dict(self._exact.get(path, {}))
        for verb, pattern, route in self._patterns:
            found = pattern.fullmatch(path)
            if found is not None:
                if verb == method:
                    return route, found.groups()
                allowed[verb] = route
        if not allowed and path.endswith("/") and self._has(method, path[:-1]):
            redirect(request, 301 if method == "GET" else 307, path[:-1])
        elif not allowed and method in ("GET", "POST") and not path.startswith("/sollol"):
            return PASSED, ()
        elif not allowed:
            request.refuse(404, "")
        elif request.method == "OPTIONS":
            request.answer(204, b"", headers=[("Allow", ", ".join(allowed))])
        else:
            request.refuse(405, "", [("Allow", ", ".join(allowed))])
        return None, ()

    def _has(self, method: str, path: str) -> bool:
        return method in self._exact.get(path, ()) or any(
            verb == method and pattern.fullmatch(path) for verb, pattern, _ in self._patterns
        )

    def _let_in(self, request: Request, route: Route) -> bool:
        scheme, _, token = request.header(b"authorization").partition(" ")
        if scheme.lower() != "bearer":
            token = request.header(b"x-api-key") or access.password(scheme, token)  # Anthropic's clients; a URL's
        key = request.key = self.keyring.find(token.strip()) if token else None
        if key is None and (route.public or not self.keyring.required):
            return True
        if key is not None:
            wait_s = self.meter.admit(key, asyncio.get_running_loop().time()) if route.tongue is not None else 0.0
            if wait_s:
                self._too_soon(request, key, wait_s)
            return not wait_s
        told = "this key is not known here, or was revoked" if token else "this server asks for a key"
        request.refuse(
            401,
            f"{told}; send 'Authorization: Bearer KEY' (in a URL: http://any:KEY@host) with a key that "
            "`sollol keys add NAME` made",
            [("WWW-Authenticate", CHALLENGE if request.path.startswith(ROOT) else "Bearer")],
        )
        return False

    def in_task(self, handler: Handler, request: Request, parts: tuple[Any, ...]) -> None:
        """Answer by a coroutine, which is cancelled when the client leaves."""
        request.on_gone = self.spawn(self._run(handler, request, parts)).cancel

    async def _run(self, handler: Handler, request: Request, parts: tuple[Any, ...]) -> None:
        try:
            await handler(self, request, *parts)
        except SollolError as error:
            self.refuse(request, error)
        except TransportFault as fault:
            request.refuse(502, str(fault))
        except Exception as error:
            self.failed(request, error)

    def failed(self, request: Request, error: Exception) -> None:
        """A fault of ours: logged, counted, and answered with the name that it has in the log."""
        name = self.engine.dispatcher.fault(f"{request.method} {request.path[:200]}", error)
        self.settle(request, 0)
        if request.has_begun:
            request.cut()
            return
        told = f"the gateway failed at this request; its log tells more under fault {name}"
        request.refuse(500, told, [("X-Sollol-Fault", name)])

    def refuse(self, request: Request, error: SollolError) -> None:
        status, headers = status_of(error)
        if error.task_id is not None:
            headers = (*headers, ("X-Sollol-Request-Id", str(error.task_id)))
        if request.has_begun:
            request.cut()
        else:
            request.refuse(status, access.words(request, error), headers)

    @property
    def is_crowded(self) -> bool:
        """So many calls are under way that answers which end together are better written together."""
        return len(self.engine.scheduler.view().tasks) >= CROWD

    def nobody_has(self, model: str) -> bool:
        """Nodes are up, and none has this model."""
        nodes = [node for node in self.engine.scheduler.view().nodes.values() if node.usable]
        return bool(nodes) and not any(canonical_model(model) in node.models for node in nodes)

    def lists(self, model: str) -> bool:
        """Check whether a node, up or down, has this model on its list."""
        name = canonical_model(model)
        return any(name in node.models for node in self.engine.scheduler.view().nodes.values())

    def snapshot(self) -> dict[str, Any]:
        """Return what displays show: the pool's overview, and the use of keys."""
        return {**self.pool.overview(), "keys": self.meter.told()}

    async def _read_snapshot(self) -> dict[str, Any]:
        return self.snapshot()

    def name_task(self, request: Request, task: int) -> None:
        """The client may give its request an id of its own, to ask for its place in the queue while it waits."""
        name = request.header(b"x-sollol-request-id")
        if name:
            if not _ID.fullmatch(name):
                raise BadInput(f"X-Sollol-Request-Id: {name!r}; expected 1 to 64 letters, digits, '.', '_' or '-'")
            if len(self._names) >= NAMES:
                del self._names[next(iter(self._names))]
            self._names[_owner(request), name] = task

    def task_of(self, request: Request, name: str) -> int | None:
        """The task that `request` asks about, by its number or by the id that the client gave to it."""
        found = self._names.get((_owner(request), name))
        if found is None and access.sees_all(request):  # whoever gave it
            found = next((task for (_, given), task in reversed(self._names.items()) if given == name), None)
        return found if found is not None else int(name) if name.isdecimal() and len(name) < 19 else None

    def keep(self, node: str, model: str, task: Task, keep_alive: int | str) -> None:
        """Tell a node, in the background, how long it should keep a model that has just answered."""
        state = self.engine.scheduler.view().nodes.get(node)
        if state is not None:
            call = load_call(task.kind, model, task.options, keep_alive)
            self.engine.dispatcher.send_later(state.endpoint, call)

    # --- what keys are charged ---

    def reserve(self, request: Request, prompt: int, tokens_out: int | None = None) -> bool:
        """Take from the key's tokens what a call should use; False, and an answer, where none is left.

        `prompt`: tokens of the request. `tokens_out`: a bound of those of the answer."""
        key = request.key
        if key is None or request.charge is not None:
            return True
        now_s = asyncio.get_running_loop().time()
        wait_s = self.meter.tokens_wait_s(key, now_s)
        if wait_s:
            self._too_soon(request, key, wait_s)
            return False
        request.charge = self.meter.reserve(key, prompt, tokens_out, now_s)
        return True

    def settle(self, request: Request, tokens: int, complete: bool = False) -> None:
        """A call has ended and used so many tokens. `complete`: its answer came to its own end."""
        charge = request.charge
        if charge is not None:
            charge.settle(tokens, asyncio.get_running_loop().time(), complete=complete)

    def _too_soon(self, request: Request, key: Key, wait_s: float) -> None:
        told = f"the key {key.name!r} has asked for as much as it may in a minute; try again in {wait_s:.0f} s"
        request.refuse(429, told, [("Retry-After", str(max(1, math.ceil(wait_s))))])


def _timed(took_s: list[float], work: Callable[..., T], *given: Any) -> T:
    """Run `work`, and put the seconds that it took into `took_s`."""
    began = time.perf_counter()
    try:
        return work(*given)
    finally:
        took_s[0] = time.perf_counter() - began


async def _read_and_handle(gateway: Gateway, request: Request, handler: Handler, *parts: str) -> None:
    """Answer another call with a body so large that reading it would stop everybody else."""
    request.fields = await gateway.off_loop(_read_fields, request)
    await handler(gateway, request, *parts)


async def _read_and_infer(gateway: Gateway, request: Request, tongue: Tongue) -> None:
    """Answer an inference whose body is so large that reading it would stop everybody else."""
    await gateway.off_loop(_read_ahead, tongue, request)
    gateway.infer(tongue, request)


def _read_fields(request: Request) -> dict[str, Any]:
    request.join_body()
    return fanout.read_fields(request.body)


def _read_ahead(tongue: Tongue, request: Request) -> None:
    request.join_body()
    settle_body(request)
    if tongue.kind is EMBED:
        embed.read_ahead(request)
    else:
        infer.read_ahead(tongue, request)


def _owner(request: Request) -> str | None:
    """Ids of clients count within this: one key's can neither be read nor replaced by another's."""
    return request.key.app if request.key is not None else None
