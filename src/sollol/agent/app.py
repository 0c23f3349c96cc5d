"""Serve the agent: its report, the node's blobs by signed links, a restart, and the way to Ollama.

Everything but signed links and the version needs the key. All other paths go to the Ollama beside it, which may
listen on 127.0.0.1 only: its port stays closed to the network.
"""

from __future__ import annotations

import asyncio
import hmac
import re
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import BinaryIO, Final

import msgspec

from sollol.agent.bridge import send_on
from sollol.agent.drivers import GpuDriver
from sollol.agent.machine import ollama_settings, read_machine
from sollol.agent.owner import NO_LOOKS, Looks
from sollol.agent.report import OllamaReport
from sollol.agent.restart import Restarter
from sollol.backends.agent_proof import HELLO, NONCE, proof_of
from sollol.backends.probe import ProbeFailed, probe_version
from sollol.core.endpoint import Endpoint
from sollol.core.types import canonical_model
from sollol.duties import Duties
from sollol.http_server.limits import ServerLimits
from sollol.http_server.request import Request, basic_password
from sollol.http_server.server import HttpServer
from sollol.registry.manifest import MOST_BYTES, TYPE
from sollol.registry.names import DIGEST, NAMESPACE, PART, parse_range, split_model
from sollol.registry.seeders import is_signed
from sollol.transport.base import TransportFault
from sollol.transport.http import HttpTransport
from sollol.version import __version__

LIMITS: Final = ServerLimits(max_body_mb=16, max_connections=500)
PIECE: Final = 256 * 1024
BLOB: Final[re.Pattern[str]] = re.compile(r"/blobs/(sha256:[0-9a-f]{64})", re.ASCII)
PUBLIC: Final = ("/", "/api/version")  # by which discovery recognises a node
NAME: Final = f"sollol-agent/{__version__}"

NO_KEY: Final = "this agent needs its key, as a bearer token or in the address: http://any:KEY@host:port"


class Agent(HttpServer):
    """Serve one node's machine."""

    joins_bodies = False

    def __init__(
        self,
        key: str,
        ollama: Endpoint,
        folder: Path | None,
        drivers: Sequence[GpuDriver],
        transport: HttpTransport,
        restart: Sequence[str] = (),
        fault: Callable[[str, BaseException], object] = lambda where, error: None,
        looks: Looks = NO_LOOKS,
    ) -> None:
        """Prepare.

        Args:
            key: The key of all requests.
            ollama: The Ollama beside the agent.
            folder: The folder of its models; None serves no blobs.
            drivers: The ways to read GPUs.
            transport: The way to Ollama.
            restart: The command that restarts Ollama; none: it cannot be restarted.
            fault: Called with the place and the exception of a defect.
            looks: The ways to see whether the owner uses the machine; none: that is not reported.
        """
        super().__init__(LIMITS)
        self._key = key.encode()
        self._signing = key
        self._ollama = ollama
        self._folder = folder
        self._drivers = drivers
        self._transport = transport
        self._restarter = Restarter(restart)
        self._fault = fault
        self._looks = looks

    async def start(self, host: str, port: int) -> int:
        """Listen, and return the port. Raises OSError."""
        return await self.listen(Duties(self._fault), self._transport.on_this_loop(), host, port)

    async def aclose(self) -> None:
        """Stop."""
        await self.close(1.0)
        await self.duties.aclose()

    def header_lines(self) -> bytes:
        """Return the header that names the agent."""
        return b"Server: %b\r\n" % NAME.encode()

    def error_body(self, path: str, status: int, message: str) -> bytes:
        """Return the body of an error; none before the path is known."""
        return super().error_body(path, status, message) if path else b""

    # --- the head of a request ---

    def decide(self, request: Request) -> None:
        """Check the key, and choose the handler."""
        path, read = request.path, request.method in ("GET", "HEAD")
        if read and (found := BLOB.fullmatch(path)):
            query = request.query
            until, sent = query.get("until", ""), query.get("signature", "")
            if not is_signed(self._signing, found[1], until, sent, time.time()):
                self._refuse(request, 403, "the link is not signed with this agent's key, or its time is over")
                return
            request.parts, request.route = (found[1],), self._send_blob
            return
        if request.method == "GET" and path == HELLO:
            request.route = self._hello
            return
        if not (self._has_key(request) or (read and path in PUBLIC)):
            request.refuse(
                401,
                NO_KEY,
                [("WWW-Authenticate", "Bearer")],
            )
            return
        own = {
            ("GET", "/agent/report"): self._report,
            ("GET", "/agent/manifest"): self._manifest,
            ("POST", "/agent/restart"): self._restart_ollama,
        }
        handler = own.get((request.method, path))
        if handler is None and path.startswith("/agent/"):
            request.refuse(404, f"the agent has nothing at {path[:200]}")
            return
        request.route = handler or self._bridge
        request.uploads_body = handler is None and not read

    def _has_key(self, request: Request) -> bool:
        kind, _, token = request.header(b"authorization").partition(" ")
        is_bearer = kind.lower() == "bearer"
        sent = token.strip() if is_bearer else request.header(b"x-api-key") or basic_password(kind, token)
        return hmac.compare_digest(sent.encode(), self._key)

    def handle(self, request: Request) -> None:
        """Answer a request in a task, which ends when the client leaves."""
        request.on_gone = self.spawn(self._run(request)).cancel

    async def _run(self, request: Request) -> None:
        try:
            await request.route(request)
        except TransportFault as fault:
            self._refuse(request, 502, str(fault))
        except OSError as error:
            self._refuse(request, 502, error.strerror or str(error))
        except Exception as error:
            self._fault(f"{request.method} {request.path[:100]} of the agent", error)
            self._refuse(request, 500, "the agent failed; its log has the details")

    @staticmethod
    def _refuse(request: Request, status: int, message: str) -> None:
        if request.has_begun:
            request.cut()
        elif b"range" in request.headers:  # Ollama's client would copy the message into the blob
            request.answer(status, b"")
        else:
            request.refuse(status, message)

    # --- facts and actions ---

    async def _hello(self, request: Request) -> None:
        """Sign a nonce, which proves that this agent has the key."""
        nonce = request.query.get("nonce", "")
        if NONCE.fullmatch(nonce):
            request.answer(200, msgspec.json.encode({"proof": proof_of(self._signing, nonce)}))
        else:
            request.refuse(400, "nonce: expected 32 hexadecimal digits")

    async def _report(self, request: Request) -> None:
        try:
            facts = await probe_version(self._transport, self._ollama)
            version, why = facts.version, ""
        except (ProbeFailed, TransportFault) as error:
            version, why = "", str(error)[:300]
        settings = await asyncio.to_thread(ollama_settings, self._ollama.port)
        ollama = OllamaReport(version, settings, why)
        report = await asyncio.to_thread(
            read_machine,
            NAME,
            self._drivers,
            self._folder,
            ollama,
            can_restart=bool(self._restarter.command),
            looks=self._looks,
        )
        request.answer(200, msgspec.json.encode(report))

    async def _manifest(self, request: Request) -> None:
        """Answer with the manifest of a model on the disk."""
        namespace, model, tag = split_model(canonical_model(request.query.get("model", "")))
        good = NAMESPACE.fullmatch(namespace) and PART.fullmatch(model) and PART.fullmatch(tag)
        if not good or self._folder is None:
            request.refuse(404, "no manifest: the folder of models is unknown, or the name is no model's")
            return
        file = self._folder / "manifests" / "registry.ollama.ai" / namespace / model / tag
        try:
            raw = await asyncio.to_thread(_read_bounded, file)
        except FileNotFoundError:
            request.refuse(404, "this model is not on the disk")
            return
        request.answer(200, raw, TYPE)

    async def _restart_ollama(self, request: Request) -> None:
        """Run the owner's command that restarts Ollama; no part of it comes from the request."""
        wait_s = self._restarter.wait_s()
        if not self._restarter.command:
            request.refuse(403, "the owner of this machine has named no command: `sollol agent --restart COMMAND`")
        elif wait_s > 0:
            request.refuse(429, "Ollama was restarted a moment ago", [("Retry-After", str(round(wait_s) + 1))])
        else:
            done = await self._restarter.run()
            request.answer(200 if done.exit_code == 0 else 502, msgspec.json.encode(done._asdict()))

    async def _bridge(self, request: Request) -> None:
        await send_on(self._transport, self._ollama, request)

    # --- blobs ---

    async def _send_blob(self, request: Request) -> None:
        """Send a blob of the node, or a part of it."""
        digest = request.parts[0]
        assert DIGEST.fullmatch(digest)
        if self._folder is None:
            self._refuse(request, 404, "this agent has no blobs")
            return
        file = self._folder / "blobs" / digest.replace(":", "-")
        try:
            size = (await asyncio.to_thread(file.stat)).st_size
        except FileNotFoundError:
            self._refuse(request, 404, f"{digest} is not here")
            return
        given = request.header(b"range")
        part = parse_range(given, size) if given else (0, size)
        if part is None:
            request.answer(416, b"", headers=[("Content-Range", f"bytes */{size}")])
            return
        headers = [("Location", request.target), ("Accept-Ranges", "bytes")]
        if given:
            headers.append(("Content-Range", f"bytes {part[0]}-{part[1] - 1}/{size}"))
        request.begin_sized(206 if given else 200, "application/octet-stream", part[1] - part[0], headers)
        if request.method != "HEAD":
            source = await asyncio.to_thread(open, file, "rb")
            try:
                await _copy(request, source, *part)
            finally:
                source.close()
        request.end()


async def _copy(request: Request, source: BinaryIO, start: int, stop: int) -> None:
    source.seek(start)
    while start < stop:
        data = await asyncio.to_thread(source.read, min(PIECE, stop - start))
        if not data:
            request.cut()
            return
        start += len(data)
        if not request.write(data):
            await request.drained()


def _read_bounded(file: Path) -> bytes:
    with open(file, "rb") as source:
        return source.read(MOST_BYTES)
