"""Listen for the nodes: one address for the protocol, one for blobs. Other networks are refused."""

from __future__ import annotations

import ipaddress
import re
from collections.abc import Callable, Coroutine
from pathlib import Path
from typing import Any, Final, NamedTuple

from sollol.core.endpoint import Endpoint
from sollol.duties import Duties
from sollol.errors import BadInput, ResponseError, SollolError
from sollol.http_server.limits import ServerLimits
from sollol.http_server.request import Request
from sollol.http_server.server import HttpServer
from sollol.registry.grants import Grant, Grants
from sollol.registry.names import RegistryPath, parse_path
from sollol.registry.service import RegistryService, error_json
from sollol.registry.store import BlobStore, NoRoom
from sollol.registry.upstream import Fetches, Upstream
from sollol.transport.base import TransportFault
from sollol.transport.http import HttpTransport

SWEEP_S: Final = 30.0
DRAIN_S: Final = 1.0
LIMITS: Final = ServerLimits(max_body_mb=16, max_connections=1_000, idle_timeout_s=120.0)

_UNPRINTABLE: Final = re.compile(r"[^ -~]")

Handle = Callable[[Request, Grant, RegistryPath], Coroutine[Any, Any, None]]


class RegistryRoute(NamedTuple):
    """The handler of a request, its grant and its object. `redirects`: blobs are sent at another port."""

    handle: Handle
    grant: Grant
    target: RegistryPath
    redirects: bool


def is_private(address: str) -> bool:
    """Check that an address is of this machine or of a private network."""
    try:
        found = ipaddress.ip_address(address.partition("%")[0])
    except ValueError:
        return False
    mapped = getattr(found, "ipv4_mapped", None)
    return not (mapped or found).is_global


class RegistryServer(HttpServer):
    """Serve one of the two addresses of a registry."""

    def __init__(self, service: RegistryService, fault: Callable[[str, Exception], object], *, redirects: bool) -> None:
        super().__init__(LIMITS)
        self._service = service
        self._fault = fault
        self._redirects = redirects
        self._handlers: dict[tuple[str, str], Handle] = {
            ("GET", "manifest"): service.manifest,
            ("HEAD", "manifest"): service.manifest,
            ("PUT", "manifest"): service.put_manifest,
            ("GET", "blob"): service.blob,
            ("HEAD", "blob"): service.blob,
            ("POST", "uploads"): service.start_upload,
            ("PATCH", "upload"): service.append,
            ("PUT", "upload"): service.finish,
        }

    def error_body(self, path: str, status: int, message: str) -> bytes:
        """Return an error in the form of the protocol; none before the path is known."""
        return error_json(status, message) if path else b""

    def decide(self, request: Request) -> None:
        """Find the handler and the grant of a request by its head, or refuse it."""
        if not is_private(request.peer):
            request.refuse(403, "this registry serves private networks only")
            return
        if request.path in ("/v2", "/v2/") and request.method in ("GET", "HEAD"):
            request.answer(200, b"{}")
            return
        target = parse_path(request.path)
        # A path without a grant does not exist: 401 would make Ollama's client look for a server of tokens.
        grant = self._service.grants.find(target.namespace, self._service.now()) if target is not None else None
        if target is None or grant is None or not self._is_covered(grant, target):
            self._refuse(request, 404, "there is nothing at this path, or its time is over")
            return
        handler = self._handlers.get((request.method, target.kind))
        if handler is None:
            request.refuse(405, f"{request.method} does nothing here")
            return
        request.takes_body = request.uploads_body = request.method in ("POST", "PATCH", "PUT")
        request.route = RegistryRoute(handler, grant, target, self._redirects)

    @staticmethod
    def _is_covered(grant: Grant, target: RegistryPath) -> bool:
        tag = target.reference if target.kind == "manifest" else grant.name.rpartition(":")[2]
        return grant.covers(target.model, tag)

    def handle(self, request: Request) -> None:
        """Answer a request in a task, which ends when the client leaves."""
        route: RegistryRoute = request.route
        request.on_gone = self.spawn(self._run(request, route)).cancel

    async def _run(self, request: Request, route: RegistryRoute) -> None:
        try:
            await route.handle(request, route.grant, route.target)
        except ResponseError as error:
            self._refuse(request, error.status_code, error.error)
        except NoRoom as error:
            self._refuse(request, 507, str(error))
        except (SollolError, TransportFault) as error:
            self._refuse(request, 502, str(error))
        except OSError as error:  # of the disk
            self._refuse(request, 507, error.strerror or str(error))
        except Exception as error:
            self._fault(f"{request.method} of the registry", error)
            self._refuse(request, 500, "the registry failed; its log has the details")

    @staticmethod
    def _refuse(request: Request, status: int, message: str) -> None:
        if request.has_begun:
            request.cut()
        elif b"range" in request.headers:  # Ollama's client would copy the message into the blob
            words = _UNPRINTABLE.sub("?", message)[:500]
            request.answer(status, b"", headers=[("X-Sollol-Error", words)])
        else:
            request.refuse(status, message)


class Registry:
    """A registry of models at two ports, for the nodes of private networks."""

    def __init__(
        self,
        folder: Path,
        most_bytes: int,
        transport: HttpTransport,
        fault: Callable[[str, Exception], object],
        *,
        upstream: str = "",
        key: str = "",
    ) -> None:
        """Prepare the parts.

        Args:
            folder: The folder of the blobs.
            most_bytes: The bytes that they may have together.
            transport: The way to the upstream registry.
            fault: Called with the place and the exception of a defect.
            upstream: The URL of the upstream registry; "" for none.
            key: The permanent namespace under which every model of the upstream registry can be pulled; "" for none.

        Raises:
            OSError: The folder cannot be used.
        """
        store = BlobStore(folder, most_bytes)
        fetches = Fetches(Upstream(upstream, transport), store) if upstream else None
        self.service = RegistryService(store, Grants(key), fetches)
        self._transport = transport
        self._duties = Duties(lambda name, error: fault(name, error) if isinstance(error, Exception) else None)
        self._front = RegistryServer(self.service, fault, redirects=True)
        self._blobs = RegistryServer(self.service, fault, redirects=False)
        self.port = 0

    async def start(self, host: str, port: int) -> int:
        """Listen at `port`, and for blobs at the next free one; return the port.

        Raises:
            BadInput: The host is the address of a public network.
            OSError: The address cannot be bound.
        """
        check_host(host)
        outbox = self._transport.on_this_loop()
        self.port = await self._front.listen(self._duties, outbox, host, port)
        self.service.blob_port = await self._blobs.listen(self._duties, outbox, host, 0)
        self._duties.keep("uploads that were left", self._sweep, SWEEP_S)
        return self.port

    async def _sweep(self) -> None:
        self.service.uploads.sweep(self.service.now(), self.service.grants.all())

    async def aclose(self) -> None:
        """Stop. Transfers end, and can be resumed."""
        if self.service.fetches is not None:
            await self.service.fetches.aclose()
        await self._front.close(DRAIN_S)
        await self._blobs.close(DRAIN_S)
        await self._duties.aclose()


def check_host(host: str) -> None:
    """Check that a registry may listen on an address. Raises BadInput for one of a public network."""
    if host not in ("localhost", "0.0.0.0", "::", "") and not is_private(host):
        raise BadInput(f"registry.host {host!r} is no private address; expected one of a private network, or 0.0.0.0")


def address_for(node: Endpoint) -> str:
    """Return the address of this machine by which a node can call it.

    Raises:
        OSError: There is no way to the node.
    """
    import socket

    family, kind, protocol, _, address = socket.getaddrinfo(node.host, node.port, type=socket.SOCK_DGRAM)[0]
    with socket.socket(family, kind, protocol) as way:
        way.connect(address)  # of a datagram socket: nothing is sent
        found = str(way.getsockname()[0])
    return f"[{found}]" if ":" in found else found
