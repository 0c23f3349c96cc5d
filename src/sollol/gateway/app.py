"""Serve the HTTP API: find the route of each request, check its key, and run its handler.

Inference is answered by callbacks, because its cost limits the throughput; all other requests by coroutines, in one
task each, which is cancelled when the client leaves.

Over 400 lines, because it has the life of the gateway and the way of each request to its handler.
"""

from __future__ import annotations

import secrets
from typing import Any, Final

from sollol.core.types import EMBED
from sollol.dashboard.feed import Feed
from sollol.discovery.networks import own_broadcasts
from sollol.duties import Duties
from sollol.engine.controller import Controller, no_agent
from sollol.engine.engine import Engine
from sollol.engine.owners import EVERY_S as OWNERS_EVERY_S
from sollol.engine.owners import Owners
from sollol.errors import AddressUnavailable, ResponseError, SollolError
from sollol.gateway.agents import Agents
from sollol.gateway.alerting import keep_alerting
from sollol.gateway.auth import admission
from sollol.gateway.auth.access import check_admin
from sollol.gateway.auth.cors import Cors
from sollol.gateway.auth.keys import Keyring
from sollol.gateway.auth.rate_limit import RateLimiter
from sollol.gateway.auth.sessions import Sessions
from sollol.gateway.context import Context, Handler
from sollol.gateway.decoding_thread import DecodingThread
from sollol.gateway.formats.api_formats import ApiFormat
from sollol.gateway.formats.bodies import is_large, normalise_body, read_fields
from sollol.gateway.formats.error_responses import error_body
from sollol.gateway.inference import embeddings, single
from sollol.gateway.listening import bound_port
from sollol.gateway.metrics_server import MetricsServer
from sollol.gateway.own_view import GatewayOverview, OwnFeeds
from sollol.gateway.paths import normal_path, redirect
from sollol.gateway.request_ids import RequestIds
from sollol.gateway.routes.dashboard import ROOT
from sollol.gateway.routes.table import INFERENCE, PASSTHROUGH, PATTERNS, ROUTES, Route
from sollol.gateway.settings import GatewaySettings, applicable, not_applied
from sollol.gateway.shared_queries import SharedQueries
from sollol.http_server.host_guard import HostGuard, is_loopback
from sollol.http_server.request import Request
from sollol.http_server.server import HttpServer
from sollol.pool.aio import AsyncOllamaPool
from sollol.registry.server import Registry
from sollol.transport.http import HttpTransport
from sollol.transport.outbox import Outbox
from sollol.version import __version__

GATEWAY_HEADER: Final = b"X-Sollol-Gateway"
VERSION: Final = __version__.encode()
CROWDED: Final = 8  # calls under way
_BODILESS: Final = ("GET", "HEAD")


class Gateway(HttpServer):
    """Serve a pool at the address in the settings, in the event loop that starts it."""

    joins_bodies = True

    def __init__(
        self,
        pool: AsyncOllamaPool,
        settings: GatewaySettings,
        keyring: Keyring | None = None,
        *,
        transport: HttpTransport,
    ) -> None:
        """Prepare the routes. `transport`: the pool's."""
        super().__init__(settings.limits)
        self.pool = pool
        self.transport = transport
        transport.refuses_gateways = True
        self.settings = settings
        self.keyring = Keyring() if keyring is None else keyring
        self.limiter = RateLimiter()
        self.sessions = Sessions()
        self.controller: Controller | None = None
        self._agents: Agents | None = None
        self.registry: Registry | None = None  # started by the owner, before `start`
        self._cors = Cors(())
        self._decoding = DecodingThread(self.intake)
        self._queries = SharedQueries()
        self._request_ids = RequestIds()
        self._instance = secrets.token_hex(6)
        self._metrics: MetricsServer | None = None  # at an address of its own
        self.metrics_port = 0
        self._hosts: HostGuard | None = None  # where other machines have no access
        self._exact: dict[str, dict[str, Route]] = {}
        self._patterns = list(PATTERNS)
        for (method, path), route in (INFERENCE | ROUTES).items():
            self.add(method, path, route)

    def add(self, method: str, path: str, route: Route) -> None:
        """Add a route."""
        routes = self._exact.setdefault(path, {})
        if route.head:
            routes["HEAD"] = route
        routes[method] = route

    # --- life ---

    async def start(self) -> int:
        """Listen, and return the port.

        Raises:
            AddressUnavailable: The address cannot be bound.
        """
        self.engine: Engine = self.pool.engine
        if self.engine.redis_feed is not None:
            self.engine.redis_feed.identity.kind = "gateway"
        self.feed = Feed(self._read_overview)
        self._own_feeds = OwnFeeds(self.pool, lambda: self.keyring)
        self._owners = Owners(self.engine, self.settings.node_options, broadcasts=own_broadcasts)
        if self.settings.agents_key:
            self._agents = Agents(self.engine, self.settings.agents_key, self.settings.agents_port)
            self._owners.use_memory(self._agents.memory)
        self.controller = self._new_controller()
        self.apply(self.settings)
        listen = self.settings.listen
        duties = Duties(self.engine.dispatcher.fault)
        if self.settings.node_options:
            duties.keep("the wishes of owners", self._owners.tick, OWNERS_EVERY_S)
        if self.controller is not None:
            duties.keep("the controller", self.controller.tick, self.settings.controller.every_s)
        if self._agents is not None:
            self._agents.start(duties)
        keep_alerting(duties, self.pool, self.engine, self.settings.alerts)
        outbox = self.transport.on_this_loop()
        port = await bound_port(self, duties, outbox, listen.host, listen.port, "--host or --port")
        if self.settings.metrics.listen is not None:
            try:
                await self._serve_metrics(outbox)
            except AddressUnavailable:
                await self.close(0.0)
                await duties.aclose()
                raise
        return port

    def _new_controller(self) -> Controller | None:
        """Return the controller of the settings; None without one."""
        settings, models = self.settings.controller, self.settings.models
        if not settings.enabled:
            return None
        least = {name: table.replicas or 1 for name, table in models.items() if table.pin}
        return Controller(
            self.engine,
            priority_models=settings.priority_models,
            least=least,
            dry_run=settings.dry_run,
            budgets=self._owners.budget,
            memory=self._agents.memory if self._agents is not None else no_agent,
        )

    async def _serve_metrics(self, outbox: Outbox) -> None:
        """Serve the metrics at their own address."""
        metrics = MetricsServer(self.settings.metrics, self.keyring, self.engine)
        duties = Duties(self.engine.dispatcher.fault)
        self.metrics_port = await bound_port(metrics, duties, outbox, *metrics.settings.address, "listen in [metrics]")
        self._metrics = metrics

    def apply(self, settings: GatewaySettings) -> list[str]:
        """Use new settings for later requests and for the nodes.

        Returns:
            A message for each setting that stays in use, such as the address.
        """
        left = not_applied(settings, self.settings)
        self.settings = settings = applicable(settings, self.settings)
        self.bound(settings.limits)
        listen = settings.listen
        self._cors = Cors(listen.cors_origins)
        self._hosts = HostGuard(listen.host, listen.allowed_hosts) if is_loopback(listen.host) else None
        self.engine.set_queue_bound(settings.limits.queue)
        self.engine.observe(settings.observer_sampling)
        self.pool.set_routing_mode(settings.mode)
        self.pool.routing_strategy = settings.strategy
        self.pool.use_digests(settings.routing.on_mixed_digests, settings.digests)
        self.pool.share_contexts = settings.routing.share_contexts
        if settings.nodes:
            endpoints = {endpoint.key: endpoint for endpoint in settings.nodes}
            for node in self.pool.nodes:
                if node.key not in endpoints:
                    self.pool.remove_node(node.url)
            for endpoint in endpoints.values():
                self.pool.add_node(endpoint)
        self.context = Context(
            self.pool,
            self.transport,
            settings,
            self.keyring,
            self.limiter,
            self.sessions,
            self._request_ids,
            self._queries,
            self._decoding,
            self.feed,
            self._own_feeds,
            self.spawn,
            lambda: self.draining,
            self._instance,
            self.registry,
            self.controller,
            self._agents,
        )
        return left

    async def _read_overview(self) -> GatewayOverview:
        return self.context.overview()

    async def aclose(self, drain_s: float | None = None) -> int:
        """Stop listening, wait up to `drain_s` seconds for requests, and return the number cut off."""
        self.feed.close()
        self._own_feeds.close()
        if self._metrics is not None:
            await self._metrics.close(0.0)
            await self._metrics.duties.aclose()
        left = await self.close(self.settings.listen.drain_s if drain_s is None else drain_s)
        await self.duties.aclose()
        self._decoding.close()
        return left

    # --- for the HTTP server ---

    def header_lines(self) -> bytes:
        """Return the header by which discovery recognises a gateway."""
        return b"%b: %b\r\n" % (GATEWAY_HEADER, VERSION)

    def error_body(self, path: str, status: int, message: str) -> bytes:
        """Return an error in the format of the API that was called."""
        return error_body(path, status, message)

    @property
    def is_crowded(self) -> bool:
        """Check whether so many calls run that answers are better written together."""
        return len(self.engine.scheduler.view().tasks) >= CROWDED

    def proves(self, request: Request) -> bool:
        """Check whether a complete request shows that its connection is no stranger's."""
        return request.key is not None or not self.keyring.required

    def decide(self, request: Request) -> None:
        """Set the route of a request by its head alone, or answer it."""
        try:
            self._decide(request)
        except SollolError as error:
            self.context.refuse(request, error)
        except Exception as error:
            self.context.fail(request, error)

    def settled(self, request: Request) -> Route | None:
        """Return the route of an inference whose head has nothing to check again, else None."""
        if b"origin" in request.headers or not self._is_own_host(request):
            return None
        route = self._exact.get(request.path, {}).get(request.method)
        return route if route is not None and route.api_format is not None else None

    def admit(self, request: Request) -> None:
        """Answer an inference whose head `settled` has accepted before, if its key still permits it."""
        try:
            route: Route = request.route
            self._admit_key(request, route)
            self._infer(request, route)
        except SollolError as error:
            self.context.refuse(request, error)
        except Exception as error:
            self.context.fail(request, error)

    def handle(self, request: Request) -> None:
        """Answer a request with a route, now or later."""
        try:
            route: Route = request.route
            if route.handler is None:
                self._infer(request, route)
            elif is_large(request) and route is not PASSTHROUGH:
                self.context.run(_read_and_handle, request, route.handler, *request.parts)
            else:
                self.context.run(route.handler, request, *request.parts)
        except SollolError as error:
            self.context.refuse(request, error)
        except Exception as error:
            self.context.fail(request, error)

    # --- the head of a request ---

    def _decide(self, request: Request) -> None:
        if not self._is_own_host(request):
            host = request.header(b"host")[:200]
            raise ResponseError(
                f"this gateway listens on loopback, and the request is for the host {host!r}; if a proxy before it "
                "sends that, add the host to allowed_hosts in [gateway]",
                403,
            )
        if b"origin" in request.headers and not self._cors.admit(request):
            return
        methods = self._exact.get(request.path)
        route = methods.get(request.method) if methods is not None else None
        parts: tuple[str, ...] = ()
        if route is None:
            route, parts = self._find(request)
            if route is None:
                return
        self._admit_key(request, route)
        if route.admin:
            check_admin(request)
        if route.check is not None:
            route.check(*parts)
        request.takes_body = route is PASSTHROUGH or request.method not in _BODILESS
        request.parts = parts
        request.uploads_body = route.upload
        request.route = route

    def _is_own_host(self, request: Request) -> bool:
        return self._hosts is None or self._hosts.allows(request.headers.get(b"host"))

    def _admit_key(self, request: Request, route: Route) -> None:
        """Identify the key of a request, and count an inference.

        Raises:
            Unauthorized: A key is required, or the given one is unknown.
            RateLimited: The key has used its requests or tokens.
        """
        if self.keyring.is_used:
            of_dashboard = request.path.startswith(ROOT)
            if not (of_dashboard and admission.identify_session(self.sessions, self.keyring, request)):
                admission.identify(self.keyring, request, public=route.public, challenge="Bearer")
            if route.api_format is not None:
                admission.count(self.limiter, request)

    def _find(self, request: Request) -> tuple[Route | None, tuple[str, ...]]:
        """Return the route of a path with parameters, or of a node; or answer with a redirect or an error."""
        path, method = request.path, request.method
        if (straight := normal_path(path)) != path:
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
            return PASSTHROUGH, ()
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

    # --- inference ---

    def _infer(self, request: Request, route: Route) -> None:
        api_format = route.api_format
        assert api_format is not None
        if is_large(request):
            self.context.run(_parse_and_infer, request, api_format)
        else:
            normalise_body(request)
            infer(api_format, self.context, request)


def infer(api_format: ApiFormat, context: Context, request: Request) -> None:
    """Answer an inference with a normalised body.

    Raises:
        SollolError: The request cannot be used.
    """
    if api_format.kind is EMBED:
        embeddings.embed(api_format, context, request)
    else:
        single.infer(api_format, context, request)


async def _read_and_handle(context: Context, request: Request, handler: Handler, *parts: str) -> None:
    """Decode a large body in a thread, then run the handler."""
    request.fields = await context.decoding.run(_read_fields, request)
    await handler(context, request, *parts)


async def _parse_and_infer(context: Context, request: Request, api_format: ApiFormat) -> None:
    """Parse a large body in a thread, then answer the inference."""
    await context.decoding.run(_parse_ahead, api_format, request)
    infer(api_format, context, request)


def _read_fields(request: Request) -> dict[str, Any]:
    request.join_body()
    return read_fields(request.body)


def _parse_ahead(api_format: ApiFormat, request: Request) -> None:
    request.join_body()
    normalise_body(request)
    if api_format.kind is EMBED:
        embeddings.parse_ahead(request)
    else:
        single.parse_ahead(api_format, request)
