"""Answer the requests of the registry's protocol: manifests, blobs, uploads.

Three particularities of Ollama's client decide the answers (server/download.go, x/transfer/download.go of 0.33):

- Before it reads a blob in parts, it requests the whole once and needs a `Location`; then it closes the connection.
  So a whole blob begins with its first bytes and a short pause, and little is sent without a reader.
- It does not check the status of a part, and copies the text of an error into the blob. So a part is answered with 206,
  with a redirect, or with an error that has no body.
- For models of tensors it requests each blob once only to find its place, and downloads it again unless a redirect
  leads to another host or port. So blobs have a port of their own, and the first port always redirects to it.
"""

from __future__ import annotations

import asyncio
import re
import time
from collections.abc import Awaitable, Callable, Iterable
from pathlib import Path
from typing import BinaryIO, Final

import msgspec

from sollol.errors import ResponseError
from sollol.http_server.request import Request
from sollol.registry.grants import Grant, Grants
from sollol.registry.manifest import MOST_BYTES, TYPE, BadManifest, parse_manifest, spelled_as
from sollol.registry.names import DIGEST, RegistryPath, parse_content_range, parse_range
from sollol.registry.seeders import SeederChoice
from sollol.registry.store import BlobStore
from sollol.registry.uploads import Uploads
from sollol.registry.upstream import Fetch, Fetches

BYTES: Final = "application/octet-stream"
PIECE: Final = 256 * 1024  # bytes that are read and sent at a time; forty readers then hold some 20 MB
FIRST: Final = 64 * 1024  # bytes of a whole blob before the pause
PAUSE_S: Final = 0.1  # in which a client that needed only the head closes the connection
HEAD_ONLY_S: Final = 5.0  # the longest wait for it to do so where there is nothing to send
TENSOR_CLIENT: Final = "ollama-transfer/"  # the client for models of tensors, which reads a whole blob
_HOST: Final = re.compile(r"[A-Za-z0-9._-]{1,253}(:[0-9]{1,5})?|\[[0-9A-Fa-f:.%]{2,64}\](:[0-9]{1,5})?", re.ASCII)
_PORT: Final = re.compile(r"(?<=[^:]):[0-9]{1,5}$", re.ASCII)
_CODES: Final = {
    400: "DIGEST_INVALID", 403: "DENIED", 404: "NAME_UNKNOWN", 405: "UNSUPPORTED", 413: "SIZE_INVALID",
    416: "RANGE_INVALID", 429: "TOOMANYREQUESTS",
}  # fmt: skip


def error_json(status: int, message: str) -> bytes:
    """Return an error in the form of the protocol."""
    return msgspec.json.encode({"errors": [{"code": _CODES.get(status, "UNKNOWN"), "message": message}]})


class RegistryService:
    """The parts of a registry, and the handlers of its requests."""

    def __init__(self, store: BlobStore, grants: Grants, fetches: Fetches | None) -> None:
        self.store = store
        self.grants = grants
        self.fetches = fetches
        self.uploads = Uploads(store)
        self.seeders = SeederChoice()
        self.sent_bytes = 0  # of blobs, to nodes
        self.received_bytes = 0  # of blobs, from nodes
        self.blob_port = 0  # of the second address; 0 until it listens

    @staticmethod
    def now() -> float:
        """Return the seconds of the event loop's clock."""
        return asyncio.get_running_loop().time()

    # --- manifests ---

    async def manifest(self, request: Request, grant: Grant, target: RegistryPath) -> None:
        """Answer with the manifest of a model, from the nodes or from upstream."""
        found = grant.manifest
        if found is None and grant.upstream and self.fetches is not None:
            found = await self.fetches.manifest(grant.upstream, target.model, target.reference)
            grant.keep(target.model, found)
        if found is None:
            raise ResponseError("this model was not pushed here", 404)
        headers = [("Docker-Content-Digest", found.digest), ("Location", own_url(request))]
        request.begin_sized(200, TYPE, len(found.raw), headers)
        if request.method != "HEAD":
            request.write(found.raw)
        request.end()

    async def put_manifest(self, request: Request, grant: Grant, target: RegistryPath) -> None:
        """Accept the manifest of a model whose blobs are here."""
        if not grant.pushes:
            raise ResponseError("this path is for pulling only", 403)
        raw = bytearray()
        async for piece in request.pieces():
            raw += piece
            if len(raw) > MOST_BYTES:
                raise ResponseError(f"a manifest has at most {MOST_BYTES:,} bytes", 413)
        try:
            found = spelled_as(parse_manifest(bytes(raw)), grant.digest)
        except BadManifest as error:
            raise ResponseError(str(error), 400) from None
        missing = await asyncio.to_thread(self.store.missing, found)
        if missing:
            raise ResponseError(f"{len(missing)} blobs of the manifest are not here, such as {min(missing)}", 400)
        await asyncio.to_thread(self.store.save_manifest, found)
        self.hold(grant, found.blobs)
        grant.manifest = found
        headers = [("Docker-Content-Digest", found.digest), ("Location", own_url(request))]
        request.answer(201, b"", headers=headers)

    # --- blobs ---

    async def blob(self, request: Request, grant: Grant, target: RegistryPath) -> None:
        """Answer with a blob or a part of it, or redirect to where it is sent."""
        digest = target.reference
        size = self._size(grant, target)
        headers = [("Docker-Content-Digest", digest), ("Location", own_url(request)), ("Accept-Ranges", "bytes")]
        given = request.header(b"range")
        part = parse_range(given, size) if given else (0, size)
        if request.method == "HEAD":
            request.begin_sized(200, BYTES, size, headers)
            request.end()
        elif request.route.redirects:
            request.answer(307, b"", headers=[("Location", self._on_blob_port(request))])
        elif part is None:
            request.answer(416, b"", headers=[("Content-Range", f"bytes */{size}")])
        else:
            await self._send(request, grant, target, part, headers)

    def _size(self, grant: Grant, target: RegistryPath) -> int:
        """Return the bytes of a blob.

        Raises:
            ResponseError: 404: the grant has no such blob.
        """
        digest, manifest = target.reference, grant.manifest_of(target.model)
        size = manifest.blobs.get(digest) if manifest is not None else None
        if size is None and grant.pushes and manifest is None:  # a node looks which blobs it has to push
            size = self.store.size(digest)
            if size is not None:
                self.hold(grant, [digest])
                self.store.used([digest])
        if size is None:
            raise ResponseError(f"{digest} is not here", 404)
        return size

    async def _send(
        self,
        request: Request,
        grant: Grant,
        target: RegistryPath,
        part: tuple[int, int],
        headers: list[tuple[str, str]],
    ) -> None:
        digest, (start, stop) = target.reference, part
        is_part = b"range" in request.headers
        has_file = self.store.size(digest) is not None
        if is_part or request.header(b"user-agent").startswith(TENSOR_CLIENT):
            alone = not has_file and not grant.upstream
            seeder = self.seeders.choose(digest, request.peer, start, stop, alone=alone)
            if seeder is not None:
                request.answer(307, b"", headers=[("Location", seeder.link(digest, time.time()))])
                return
        if is_part:
            headers.append(("Content-Range", f"bytes {start}-{stop - 1}/{self._size(grant, target)}"))
        if has_file:
            await self._send_file(request, digest, part, headers)
        elif grant.upstream and self.fetches is not None:
            fetch = self.fetches.start(grant.upstream, target.model, digest, self._size(grant, target))
            await self._send_fetched(request, fetch, part, headers)
        elif not is_part and self.seeders.has(digest):  # the parts that follow are redirected
            request.begin_sized(200, BYTES, stop - start, headers)
            await asyncio.sleep(HEAD_ONLY_S)
            request.cut()
        else:
            raise ResponseError(f"the nodes that had {digest} do not send it", 502)

    async def _send_file(
        self, request: Request, digest: str, part: tuple[int, int], headers: list[tuple[str, str]]
    ) -> None:
        self.store.hold([digest])
        file = await asyncio.to_thread(open, self.store.path(digest), "rb")
        try:
            self._begin(request, part, headers)
            await self._copy(request, file, part, _all_here(part[1]))
        finally:
            file.close()
            self.store.release([digest])

    async def _send_fetched(
        self, request: Request, fetch: Fetch, part: tuple[int, int], headers: list[tuple[str, str]]
    ) -> None:
        """Send a blob that is on its way from upstream, as it arrives."""
        fetch.readers += 1
        try:
            self._begin(request, part, headers)
            await fetch.arrived(part[0])
            file = await asyncio.to_thread(_either, fetch.file, self.store.path(fetch.digest))
            try:
                await self._copy(request, file, part, fetch.arrived)
            finally:
                file.close()
        finally:
            fetch.readers -= 1

    @staticmethod
    def _begin(request: Request, part: tuple[int, int], headers: list[tuple[str, str]]) -> None:
        request.begin_sized(206 if b"range" in request.headers else 200, BYTES, part[1] - part[0], headers)

    async def _copy(
        self, request: Request, file: BinaryIO, part: tuple[int, int], arrived: Callable[[int], Awaitable[int]]
    ) -> None:
        """Send the bytes of a file from its first to its last offset, as they are there."""
        offset, stop = part
        pauses = b"range" not in request.headers and stop - offset > FIRST
        file.seek(offset)
        while offset < stop:
            until = min(await arrived(offset), stop, offset + (FIRST if pauses else PIECE))
            data = await asyncio.to_thread(file.read, until - offset)
            if not data:
                request.cut()  # the file is shorter than its manifest
                return
            offset += len(data)
            self.sent_bytes += len(data)
            if not request.write(data):
                await request.drained()
            if pauses:
                pauses = False
                await asyncio.sleep(PAUSE_S)
        request.end()

    # --- uploads ---

    async def start_upload(self, request: Request, grant: Grant, target: RegistryPath) -> None:
        """Open an upload, or answer that the blob is here."""
        self._check_pushes(grant)
        mount = request.query.get("mount", "")
        if DIGEST.fullmatch(mount) and self.store.size(mount) is not None:
            request.answer(201, b"", headers=[("Location", _url(request, blob_path(target, mount)))])
            return
        upload = self.uploads.start(grant, self.now())
        headers = [("Location", _url(request, f"{request.path.rstrip('/')}/{upload.name}")), ("Range", "0-0")]
        request.answer(202, b"", headers=headers)

    async def append(self, request: Request, grant: Grant, target: RegistryPath) -> None:
        """Receive a part of an upload."""
        self._check_pushes(grant)
        upload = self.uploads.find(target.reference, grant)
        before = upload.size
        part = parse_content_range(request.header(b"content-range"))
        await self.uploads.append(upload, request.pieces(), part, self.now())
        self.received_bytes += max(0, upload.size - before)
        headers = [("Location", own_url(request)), ("Range", f"0-{max(0, upload.size - 1)}")]
        request.answer(202, b"", headers=headers)

    async def finish(self, request: Request, grant: Grant, target: RegistryPath) -> None:
        """Receive the rest of an upload, and name it by its digest."""
        self._check_pushes(grant)
        upload = self.uploads.find(target.reference, grant)
        digest = request.query.get("digest", "")
        if not DIGEST.fullmatch(digest):
            self.uploads.drop(upload)
            raise ResponseError(f"digest={digest[:100]!r}; expected sha256: and 64 hexadecimal digits", 400)
        if request.header(b"content-length") != "0":
            before = upload.size
            await self.uploads.append(upload, request.pieces(), None, self.now())
            self.received_bytes += upload.size - before
        self.hold(grant, [digest])
        await self.uploads.finish(upload, digest)
        request.answer(201, b"", headers=[("Location", _url(request, blob_path(target, digest)))])

    def _check_pushes(self, grant: Grant) -> None:
        if not grant.pushes:
            raise ResponseError("this path is for pulling only", 403)

    # --- life ---

    def hold(self, grant: Grant, digests: Iterable[str]) -> None:
        """Keep blobs until a grant ends."""
        new = set(digests) - grant.held
        self.store.hold(new)
        grant.held |= new

    def end_grant(self, grant: Grant) -> None:
        """End a grant, and let the blobs of its model be deleted when room is needed."""
        self.grants.revoke(grant)
        self.store.release(grant.held)
        grant.held = set()
        self.uploads.sweep(self.now(), self.grants.all())

    def _on_blob_port(self, request: Request) -> str:
        return f"http://{host_of(request)}:{self.blob_port}{request.path}"


def blob_path(target: RegistryPath, digest: str) -> str:
    """Return the path of a blob of a model."""
    return f"/v2/{target.namespace}/{target.model}/blobs/{digest}"


def host_of(request: Request, *, with_port: bool = False) -> str:
    """Return the host by which the client calls this server.

    Raises:
        ResponseError: 400: it is none.
    """
    host = request.header(b"host")
    if not _HOST.fullmatch(host):
        raise ResponseError("the Host of the request is no address", 400)
    return host if with_port else host.rpartition(":")[0] if _PORT.search(host) else host


def own_url(request: Request) -> str:
    """Return the URL of a request, as a redirect to itself."""
    return _url(request, request.path)


def _url(request: Request, path: str) -> str:
    return f"http://{host_of(request, with_port=True)}{path}"


def _all_here(stop: int) -> Callable[[int], Awaitable[int]]:
    async def arrived(offset: int) -> int:
        return stop

    return arrived


def _either(first: Path, second: Path) -> BinaryIO:
    """Open a file that may be renamed meanwhile."""
    try:
        return open(first, "rb")
    except FileNotFoundError:
        return open(second, "rb")
