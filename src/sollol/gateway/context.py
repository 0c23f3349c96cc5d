"""Give handlers the parts of the gateway that they use."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine
from typing import Any, Final

import msgspec

from sollol.dashboard.feed import Feed
from sollol.engine.controller import Controller
from sollol.engine.engine import Engine
from sollol.errors import SollolError
from sollol.gateway.agents import Agents
from sollol.gateway.auth import access
from sollol.gateway.auth.charging import settle
from sollol.gateway.auth.keys import Keyring
from sollol.gateway.auth.rate_limit import RateLimiter
from sollol.gateway.auth.sessions import Sessions
from sollol.gateway.decoding_thread import DecodingThread
from sollol.gateway.formats.error_responses import status_of
from sollol.gateway.own_view import GatewayOverview, OwnFeeds
from sollol.gateway.request_ids import RequestIds
from sollol.gateway.settings import GatewaySettings
from sollol.gateway.shared_queries import SharedQueries
from sollol.http_server.request import Request
from sollol.pool.aio import AsyncOllamaPool
from sollol.registry.server import Registry
from sollol.transport.base import TransportFault
from sollol.transport.http import HttpTransport
from sollol.workload.call_options import CallOptions

Handler = Callable[..., Coroutine[Any, Any, None]]  # called with the context, the request, and further arguments


class Context:
    """The parts of the gateway that handlers use. New settings make a new context for later requests."""

    def __init__(
        self,
        pool: AsyncOllamaPool,
        transport: HttpTransport,
        settings: GatewaySettings,
        keyring: Keyring,
        limiter: RateLimiter,
        sessions: Sessions,
        request_ids: RequestIds,
        queries: SharedQueries,
        decoding: DecodingThread,
        feed: Feed,
        own_feeds: OwnFeeds,
        spawn: Callable[[Coroutine[Any, Any, None]], asyncio.Task[None]],
        is_draining: Callable[[], bool],
        instance: str,
        registry: Registry | None = None,
        controller: Controller | None = None,
        agents: Agents | None = None,
    ) -> None:
        self.pool: Final = pool
        self.engine: Final[Engine] = pool.engine
        self.transport: Final = transport  # the engine's
        self.settings: Final = settings
        self.keyring: Final = keyring
        self.limiter: Final = limiter
        self.sessions: Final = sessions  # of browsers
        self.request_ids: Final = request_ids
        self.queries: Final = queries
        self.decoding: Final = decoding
        self.feed: Final = feed  # of the dashboard
        self.own_feeds: Final = own_feeds  # of keys without admin rights
        self.spawn: Final = spawn
        self.is_draining: Final = is_draining
        self.instance: Final = instance  # by which a gateway with two addresses is known as one
        self.agents: Final = agents  # beside the nodes; None without their key
        self.registry: Final = registry  # of models, for the nodes; None unless it was requested
        self.controller: Final = controller  # of the placement of models; None unless it was requested
        self.default_options: Final = CallOptions(  # of a request without headers
            5, settings.limits.request_timeout_s, settings.mode, settings.routing.hedge, app=settings.app_name
        )

    def overview(self) -> GatewayOverview:
        """Return the state for displays: the pool's overview, the agents, and the use of keys."""
        found = GatewayOverview(
            **msgspec.structs.asdict(self.pool.read_overview()),
            keys=self.limiter.usage(),
            can_act=True,
            login=self.keyring.required,
            has_settings=True,
        )
        if self.agents is not None:
            found.findings = [*found.findings, *self.agents.findings()]
            found.agents = self.agents.shown()
        return found

    # --- answers ---

    def run(self, handler: Handler, request: Request, *arguments: Any) -> None:
        """Answer a request by a coroutine, in a task that is cancelled when the client leaves."""
        request.on_gone = self.spawn(self._run(handler, request, arguments)).cancel

    async def _run(self, handler: Handler, request: Request, arguments: tuple[Any, ...]) -> None:
        try:
            await handler(self, request, *arguments)
        except SollolError as error:
            self.refuse(request, error)
        except TransportFault as fault:
            request.refuse(502, str(fault))
        except Exception as error:
            self.fail(request, error)

    def refuse(self, request: Request, error: SollolError) -> None:
        """Answer with an error, in the format of the API that was called; a stream that has begun is cut."""
        status, headers = status_of(error)
        if error.task_id is not None:
            headers = (*headers, ("X-Sollol-Request-Id", str(error.task_id)))
        if request.has_begun:
            request.cut()
        else:
            request.refuse(status, access.shown_message(request, error), headers)

    def fail(self, request: Request, error: Exception) -> None:
        """Log and count a defect of SOLLOL, and answer with the name of its log entry."""
        which = f" (request {request.task})" if request.task else ""
        name = self.engine.dispatcher.fault(f"{request.method} {request.path[:200]}{which}", error)
        settle(request, 0)
        if request.has_begun:
            request.cut()
            return
        message = f"the gateway failed at this request; its log has the details under fault {name}"
        request.refuse(500, message, [("X-Sollol-Fault", name)])
