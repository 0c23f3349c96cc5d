"""Read snapshots and explanations from a running dashboard or gateway, for `top` and `explain`."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any

import typer

from sollol.cli.console import note
from sollol.config import gateway_tables
from sollol.config.paths import find_file
from sollol.core.endpoint import Endpoint, parse_endpoint
from sollol.errors import BadInput, SollolError

if TYPE_CHECKING:
    from sollol.transport.base import Transport

UrlOption = Annotated[
    str | None,
    typer.Option(
        "--url",
        metavar="URL",
        help="A running dashboard or gateway. Without it: 127.0.0.1, ports 11435 and 8080.",
        show_default=False,
    ),
]
KeyOption = Annotated[
    str | None,
    typer.Option(
        "--api-key",
        envvar="SOLLOL_API_KEY",
        metavar="KEY",
        help="A gateway's key, where it requires one. In SOLLOL_API_KEY, other users cannot see it.",
        show_default=False,
    ),
]
GATEWAY_PORT = 11435
LOCAL = (f"http://127.0.0.1:{GATEWAY_PORT}", "http://127.0.0.1:8080")  # gateway, dashboard
DASHBOARD, GATEWAY = "/api", "/sollol"  # where they have their own routes
_DASHBOARD_PORT = 8080
_NEEDED = {"app_name", "totals", "nodes", "waiting", "running", "recent", "calibration"}
HOW_TO_START = "A program shows its pool with `run_unified_dashboard(pool, 8080)`; name another address with --url http://host:port."


class NoAnswer(SollolError):
    """Report an address at which no dashboard or gateway answers."""


class Refused(NoAnswer):
    """Report a gateway that requires a key, or another key."""


class Remote:
    """Read the JSON of a dashboard or a gateway over HTTP, and send changes to a gateway.

    The key is sent only to a gateway's own routes.
    """

    def __init__(self, transport: Transport, endpoint: Endpoint, prefix: str, key: str | None = None) -> None:
        self._transport, self._endpoint, self._prefix, self._key = transport, endpoint, prefix, key

    @property
    def url(self) -> str:
        """Return the address."""
        return self._endpoint.url

    @property
    def is_gateway(self) -> bool:
        """Check whether it is a gateway, which can be changed."""
        return self._prefix == GATEWAY

    @property
    def _shown(self) -> str:
        """Where the data of the dashboard are."""
        return f"/dashboard{DASHBOARD}" if self.is_gateway else self._prefix

    async def greet(self) -> None:
        """Check that a dashboard or gateway answers; a gateway does so without a key.

        Raises:
            NoAnswer: Nothing answers there as expected.
        """
        if self._prefix == DASHBOARD:
            await self.snapshot()
        elif (await self._get("health", keyless=True)).get("status") != "ok":
            raise NoAnswer(f"{self.url} does not answer as a SOLLOL gateway")

    async def snapshot(self) -> dict[str, Any]:
        """Return the present snapshot; of a gateway, that of the dashboard, which each key has."""
        found = await self._send("GET", "snapshot", prefix=self._shown)
        if not found.keys() >= _NEEDED:
            raise NoAnswer(f"{self.url} does not answer as a SOLLOL dashboard")
        return found

    async def models(self) -> dict[str, Any]:
        """Return the models of each node, as a gateway lists them."""
        found = await self._get("models")
        if not isinstance(found.get("models"), list):
            raise NoAnswer(f"{self.url} does not list models as a SOLLOL gateway")
        return found

    async def plan(self) -> dict[str, Any]:
        """Return the last plan of a gateway's controller."""
        return await self._get("plan")

    async def explain(self, task_id: int) -> dict[str, Any]:
        """Return why a request was sent to its node."""
        return await self._get(f"explain/{task_id}")

    async def series(self) -> dict[str, Any]:
        """Return the work of the last five minutes, in the shape of `pool.series()`."""
        return await self._send("GET", "series/5m", prefix=self._shown)

    async def post(self, route: str, body: dict[str, Any] | None = None) -> dict[str, Any]:
        """Send a change to a gateway; return its answer.

        Raises:
            NoAnswer: The gateway refuses it or does not answer.
        """
        return await self._send("POST", route, body or {})

    async def _get(self, route: str, *, keyless: bool = False) -> dict[str, Any]:
        return await self._send("GET", route, keyless=keyless)

    async def _send(
        self,
        method: str,
        route: str,
        fields: dict[str, Any] | None = None,
        *,
        keyless: bool = False,
        prefix: str | None = None,
    ) -> dict[str, Any]:
        import msgspec

        from sollol.transport.base import Call, Timeouts, TransportFault

        path = f"{self._prefix if prefix is None else prefix}/{route}"
        with_key = self._key is not None and self._prefix == GATEWAY and not keyless
        # A URL with a user and a password already uses the header Authorization.
        headers = (("X-Api-Key", self._key or ""),) if with_key else ()
        content = b"" if fields is None else msgspec.json.encode(fields)
        call = Call(method, path, content, headers=headers, timeouts=Timeouts(1.5, 6.0, 6.0))
        try:
            reply = await self._transport.send(self._endpoint, call)
            body = await reply.read()
        except TransportFault as fault:
            raise NoAnswer(str(fault)) from None
        try:
            found = msgspec.json.decode(body, type=dict[str, Any])
        except msgspec.DecodeError:
            found = {}
        if reply.status in (401, 403):
            raise Refused(self._refusal(reply.status, str(found.get("error") or ""), with_key))
        if reply.status != 200:
            raise NoAnswer(str(found.get("error") or f"{self.url}{path} answers {reply.status}"))
        return found

    def _refusal(self, status: int, message: str, with_key: bool) -> str:
        if status == 401 and with_key:
            return (
                f"{self.url} does not accept this key; it may have been revoked. Check --api-key or SOLLOL_API_KEY; "
                "`sollol keys list` where the gateway runs shows those that there are."
            )
        if status == 401:
            return (
                f"{self.url} requires a key. Give it in SOLLOL_API_KEY, or with --api-key; "
                "`sollol keys add NAME --admin` where the gateway runs makes one."
            )
        if message and "allowed_hosts" not in message:
            return f"{self.url}: {message}. Give it in SOLLOL_API_KEY, or with --api-key."
        return (
            f"{self.url} does not answer to this name (403). What listens on one machine only answers to 127.0.0.1; "
            f"from another one take a tunnel: ssh -L {self._endpoint.port}:127.0.0.1:{self._endpoint.port} HOST"
        )


def _configured() -> tuple[str, ...]:
    """Return the address of this machine's gateway, where the configuration file names another port."""
    file = find_file()
    port = gateway_tables(file).get("gateway", {}).get("port") if file else None
    return (f"http://127.0.0.1:{port}",) if isinstance(port, int) and 0 < port < 65536 else ()


def checked(key: str | None) -> str | None:
    """Return a key that can be sent in a header, or None if it is empty.

    Raises:
        BadInput: It holds other characters; the message does not repeat the key.
    """
    key = (key or "").strip()
    if not all("!" <= letter <= "~" for letter in key):
        raise BadInput("--api-key or SOLLOL_API_KEY is not a key; expected what `sollol keys add` printed")
    return key or None


async def attach(transport: Transport, url: str | None, key: str | None = None) -> Remote | None:
    """Return the dashboard or gateway at `url`, or the first one on this machine.

    Returns:
        None if there is no URL and none runs on this machine.

    Raises:
        NoAnswer: There is none at `url`.
    """
    key, reason = checked(key), ""
    for address in [url] if url is not None else (*_configured(), *LOCAL):
        endpoint = parse_endpoint(address, default_port=_DASHBOARD_PORT)
        for prefix in (DASHBOARD, GATEWAY):
            remote = Remote(transport, endpoint, prefix, key)
            try:
                await remote.greet()
            except NoAnswer as error:
                reason = reason or str(error)
            else:
                return remote
    if url is not None:
        raise NoAnswer(f"no dashboard there: {reason}")
    return None


async def attach_readable(transport: Transport, url: str | None, key: str | None) -> Remote | None:
    """Return the dashboard or gateway to watch, or None where only the nodes can be shown.

    A gateway found on this machine that requires another key is reported on stderr and not used.
    """
    remote = await attach(transport, url, key)
    if remote is not None and url is None:
        try:
            await remote.snapshot()
        except Refused as error:
            note(f"{error}\nWithout it, the nodes themselves are shown.")
            return None
    return remote
