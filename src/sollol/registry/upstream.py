"""Fetch models from an upstream registry once, however many nodes read them meanwhile.

A blob is written to a file as it arrives; readers follow it, each at its own offset. A fetch that was cut goes on where
it stopped, also after a restart of the gateway.
"""

from __future__ import annotations

import asyncio
import hashlib
from collections.abc import AsyncGenerator
from contextlib import aclosing
from pathlib import Path
from typing import BinaryIO, Final
from urllib.parse import urljoin, urlsplit

from sollol.core.endpoint import Endpoint, parse_endpoint
from sollol.errors import BadInput, ResponseError
from sollol.registry.manifest import MOST_BYTES, TYPE, BadManifest, Manifest, parse_manifest
from sollol.registry.store import PARTIAL, BlobStore, write_whole
from sollol.transport.base import Call, Reply, Timeouts, Transport, TransportFault

TIMEOUTS: Final = Timeouts(connect_s=10.0, first_byte_s=30.0, idle_s=30.0)
REDIRECTS_MOST: Final = 5
TRIES: Final = 6  # of a fetch that is cut; the count begins anew with each byte
PAUSE_S: Final = 0.5  # before the second try; it doubles
WRONG_S: Final = 60.0  # for which a blob is not fetched again after its bytes had another digest
UNREAD_S: Final = 60.0  # without a reader, after which a fetch stops
BATCH: Final = 1024 * 1024


class Upstream:
    """An upstream registry."""

    def __init__(self, url: str, transport: Transport) -> None:
        """Prepare. `url`: such as https://registry.ollama.ai."""
        self.url = url.rstrip("/")
        self._transport = transport

    async def manifest(self, namespace: str, model: str, tag: str) -> Manifest:
        """Return the manifest of a model.

        Raises:
            ResponseError: The registry refused, or sent no manifest.
            TransportFault: It did not answer.
        """
        path = f"/v2/{namespace}/{model}/manifests/{tag}"
        reply = await self._get(path, (("Accept", TYPE),), most=MOST_BYTES)
        body = await reply.read()
        if reply.status != 200:
            status = 404 if reply.status == 404 else 502
            raise ResponseError(f"{self.url}{path} answers {reply.status}", status)
        try:
            return parse_manifest(body)
        except BadManifest as error:
            raise ResponseError(f"{self.url}{path}: {error}", 502) from None

    async def blob(self, namespace: str, model: str, digest: str, start: int) -> Reply:
        """Return the streamed answer with the bytes of a blob from `start` on."""
        headers = (("Range", f"bytes={start}-"),) if start else ()
        return await self._get(f"/v2/{namespace}/{model}/blobs/{digest}", headers, stream=True)

    async def _get(self, path: str, headers: tuple[tuple[str, str], ...], stream: bool = False, most: int = 0) -> Reply:
        url = f"{self.url}{path}"
        for _ in range(REDIRECTS_MOST + 1):
            endpoint, target = _split(url)
            call = Call("GET", target, headers=headers, stream=stream, timeouts=TIMEOUTS, most=most)
            reply = await self._transport.send(endpoint, call)
            if reply.status not in (301, 302, 303, 307, 308):
                return reply
            await reply.aclose()
            url = urljoin(url, reply.headers.get("location", ""))
        raise ResponseError(f"{self.url}{path} redirects more than {REDIRECTS_MOST} times", 502)


def _split(url: str) -> tuple[Endpoint, str]:
    """Return the server and the path of a URL.

    Raises:
        ResponseError: 502: it is none.
    """
    parts = urlsplit(url)
    try:
        endpoint = parse_endpoint(f"{parts.scheme}://{parts.netloc}")
    except BadInput:
        raise ResponseError(f"the upstream registry redirects to {url[:200]!r}, which is no URL", 502) from None
    return endpoint, (parts.path or "/") + (f"?{parts.query}" if parts.query else "")


class Fetch:
    """One blob on its way from the upstream registry."""

    def __init__(self, digest: str, size: int, file: Path) -> None:
        self.digest = digest
        self.size = size
        self.file = file
        self.written = 0
        self.readers = 0
        self.unread_since_s: float | None = None
        self.error: Exception | None = None
        self.task: asyncio.Task[None] | None = None
        self._news: asyncio.Event = asyncio.Event()

    def notify(self) -> None:
        """Wake the readers that wait for bytes or for the end."""
        self._news.set()
        self._news = asyncio.Event()

    async def arrived(self, offset: int) -> int:
        """Wait until bytes from `offset` on are there; return the end of the bytes that are.

        Raises:
            ResponseError: The fetch failed.
        """
        while self.written <= offset:
            if self.error is not None:
                raise ResponseError(f"fetching {self.digest} failed: {self.error}", 502)
            await self._news.wait()
        return self.written


class Fetches:
    """The fetches of a registry: one for each blob."""

    def __init__(self, upstream: Upstream, store: BlobStore) -> None:
        self._upstream = upstream
        self._store = store
        self._running: dict[str, Fetch] = {}
        self._wrong: dict[str, float] = {}  # digest -> when its bytes had another one
        self.fetched_bytes = 0  # from upstream, since the start

    async def manifest(self, namespace: str, model: str, tag: str) -> Manifest:
        """Return the manifest of a model, as the upstream registry has it now."""
        found = await self._upstream.manifest(namespace, model, tag)
        await asyncio.to_thread(self._store.save_manifest, found)
        return found

    def find(self, digest: str) -> Fetch | None:
        """Return the fetch of a blob that is on its way."""
        return self._running.get(digest)

    def start(self, namespace: str, model: str, digest: str, size: int) -> Fetch:
        """Return the fetch of a blob; begin it if it is not on its way.

        Raises:
            ResponseError: 502: its bytes had another digest a short time ago.
        """
        fetch = self._running.get(digest)
        if fetch is None:
            now = asyncio.get_running_loop().time()
            self._wrong = {each: at for each, at in self._wrong.items() if now - at < WRONG_S}
            if digest in self._wrong:
                raise ResponseError(f"the upstream registry sends other bytes for {digest}", 502)
            file = self._store.path(digest)
            fetch = self._running[digest] = Fetch(digest, size, file.with_name(f"{file.name}{PARTIAL}"))
            fetch.task = asyncio.create_task(self._run(fetch, namespace, model))
        return fetch

    async def _run(self, fetch: Fetch, namespace: str, model: str) -> None:
        self._store.hold([fetch.digest])
        try:
            found = await asyncio.to_thread(_hashed, fetch)
            await asyncio.to_thread(self._store.make_room, fetch.size - fetch.written)
            await self._transfer(fetch, found, namespace, model)
            if f"sha256:{found.hexdigest()}" != fetch.digest:
                fetch.file.unlink(missing_ok=True)
                self._wrong[fetch.digest] = asyncio.get_running_loop().time()
                raise ResponseError("its bytes have another digest", 502)
            await asyncio.to_thread(self._store.adopt, fetch.file, fetch.digest)
        except Exception as error:  # for the readers, each of which answers with it
            fetch.error = error
        finally:
            self._store.release([fetch.digest])
            del self._running[fetch.digest]
            fetch.notify()

    async def _transfer(self, fetch: Fetch, found: hashlib._Hash, namespace: str, model: str) -> None:
        tries = 0
        while fetch.written < fetch.size:
            before = fetch.written
            fault: Exception = ResponseError("the upstream registry ended early", 502)
            try:
                reply = await self._upstream.blob(namespace, model, fetch.digest, fetch.written)
                async with aclosing(_pieces(reply, fetch.written)) as pieces:
                    await self._write(fetch, found, pieces)
            except TransportFault as cut:
                fault = cut
            if fetch.written < fetch.size:
                tries = 1 if fetch.written > before else tries + 1
                if tries >= TRIES:
                    raise fault
                await asyncio.sleep(PAUSE_S * 2 ** (tries - 1))

    async def _write(self, fetch: Fetch, found: hashlib._Hash, pieces: AsyncGenerator[bytes, None]) -> None:
        batch: list[bytes] = []
        size = 0
        with await asyncio.to_thread(_appending, fetch.file) as out:

            def write(data: list[bytes]) -> None:
                for piece in data:
                    write_whole(out, piece)
                    found.update(piece)

            async def flush() -> None:
                nonlocal batch, size
                data, count, batch, size = batch, size, [], 0
                await asyncio.to_thread(write, data)
                fetch.written += count
                self.fetched_bytes += count
                fetch.notify()

            try:
                async for piece in pieces:
                    batch.append(piece)
                    size += len(piece)
                    if fetch.written + size > fetch.size:
                        batch, size = [], 0
                        raise ResponseError(f"it has more than the {fetch.size:,} bytes of the manifest", 502)
                    if size >= BATCH:
                        await flush()
                        self._check_read(fetch)
            finally:
                await flush()

    def _check_read(self, fetch: Fetch) -> None:
        """Stop a fetch without readers; the received part is kept."""
        now = asyncio.get_running_loop().time()
        if fetch.readers:
            fetch.unread_since_s = None
        elif fetch.unread_since_s is None:
            fetch.unread_since_s = now
        elif now - fetch.unread_since_s > UNREAD_S:
            raise ResponseError("no node reads it any more", 502)

    async def aclose(self) -> None:
        """Stop all fetches; the received parts are kept."""
        tasks = [fetch.task for fetch in self._running.values() if fetch.task is not None]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


def _appending(file: Path) -> BinaryIO:
    file.touch(mode=0o600)
    return open(file, "ab", buffering=0)


async def _pieces(reply: Reply, start: int) -> AsyncGenerator[bytes, None]:
    """Yield the bytes of an answer from the offset `start` of the blob on."""
    try:
        if reply.status not in (200, 206):
            raise ResponseError(f"the upstream registry answers {reply.status}", 502)
        skip = 0
        if start and reply.status == 200:  # it ignores `Range`
            skip = start
        elif start and not reply.headers.get("content-range", "").startswith(f"bytes {start}-"):
            raise ResponseError("the upstream registry sent another range", 502)
        async for piece in reply:
            if skip >= len(piece):
                skip -= len(piece)
                continue
            yield piece[skip:] if skip else piece
            skip = 0
    finally:
        await reply.aclose()


def _hashed(fetch: Fetch) -> hashlib._Hash:
    """Return the hash of the bytes that an earlier fetch left, and count them."""
    found = hashlib.sha256()
    if fetch.file.exists():
        if fetch.file.stat().st_size > fetch.size:
            fetch.file.unlink()
            return found
        with open(fetch.file, "rb") as source:
            while piece := source.read(BATCH):
                found.update(piece)
                fetch.written += len(piece)
    return found
