"""Reading a dashboard, or a gateway, that runs already: what `top` and `explain` have in common."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any

import typer

from sollol.core.endpoint import Endpoint, parse_endpoint
from sollol.errors import SollolError

if TYPE_CHECKING:
    from sollol.nodes.transport import Transport

UrlOption = Annotated[
    str | None,
    typer.Option(
        "--url",
        metavar="URL",
        help="A running dashboard or gateway. Without it: 127.0.0.1, ports 11435 and 8080.",
        show_default=False,
    ),
]
LOCAL = ("http://127.0.0.1:11435", "http://127.0.0.1:8080")  # gateway, dashboard
PREFIXES = ("/api", "/sollol")  # where a dashboard, and where a gateway has its own routes
_DASHBOARD_PORT = 8080
_NEEDED = {"app_name", "totals", "nodes", "waiting", "running", "recent", "calibration"}
HOW_TO_START = "A program shows its pool with `run_unified_dashboard(pool, 8080)`; name another address with --url http://host:port."


class NoAnswer(SollolError):
    """Nothing that answers as a dashboard does, or it refused."""


class Remote:
    """A dashboard's JSON, read over HTTP."""

    def __init__(self, transport: Transport, endpoint: Endpoint, prefix: str) -> None:
        self._transport, self._endpoint, self._prefix = transport, endpoint, prefix

    @property
    def url(self) -> str:
        return self._endpoint.url

    async def snapshot(self) -> dict[str, Any]:
        found = await self._get("snapshot")
        if not found.keys() >= _NEEDED:
            raise NoAnswer(f"{self.url} does not answer as a SOLLOL dashboard")
        return found

    async def explain(self, task_id: int) -> dict[str, Any]:
        return await self._get(f"explain/{task_id}")

    async def _get(self, what: str) -> dict[str, Any]:
        import msgspec

        from sollol.nodes.transport import Call, Timeouts, TransportFault

        path = f"{self._prefix}/{what}"
        try:
            reply = await self._transport.send(self._endpoint, Call("GET", path, timeouts=Timeouts(1.5, 6.0, 6.0)))
            body = await reply.read()
        except TransportFault as fault:
            raise NoAnswer(str(fault)) from None
        try:
            found = msgspec.json.decode(body, type=dict[str, Any])
        except msgspec.DecodeError:
            found = {}
        if reply.status != 200:
            raise NoAnswer(str(found.get("error") or f"{self.url}{path} answers {reply.status}"))
        return found


async def attach(transport: Transport, url: str | None) -> Remote | None:
    """The dashboard at `url`, which must be one; without a URL, the first on this machine, or None."""
    why = ""
    for address in [url] if url is not None else LOCAL:
        endpoint = parse_endpoint(address, default_port=_DASHBOARD_PORT)
        for prefix in PREFIXES:
            remote = Remote(transport, endpoint, prefix)
            try:
                await remote.snapshot()
            except NoAnswer as error:
                why = why or str(error)
            else:
                return remote
    if url is not None:
        raise NoAnswer(f"no dashboard there: {why}")
    return None
