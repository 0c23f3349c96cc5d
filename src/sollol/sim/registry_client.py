"""Push and pull models as Ollama's own client does: server/download.go, upload.go and images.go of 0.33.

The same requests in the same order, the same retries and the same carelessness: the status of a part is not checked, a
whole blob is requested for its `Location` alone, parts are resumed from files beside the blob.
"""

from __future__ import annotations

import asyncio
import hashlib
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any, Final, NamedTuple
from urllib.parse import urljoin, urlsplit

from sollol.sim.ollama_store import MANIFEST_TYPE, OllamaStore, RegistryName, digests_of

RETRIES: Final = 6
PARTS: Final = 16
MB: Final = 1_000_000
AGENT: Final = "ollama/0.33.0 (amd64 linux) Go/go1.26.0"
GO: Final = "Go-http-client/1.1"  # of the parts, which are sent by Go's default client
PIECE: Final = 64 * 1024
Report = Callable[[dict[str, Any]], None]


class TransferFailed(Exception):
    """A transfer ended; the text is that of the node's last line."""


class RegistryAnswer(NamedTuple):
    """The head of an answer, and the connection from which its body is read."""

    status: int
    headers: dict[str, str]
    reader: asyncio.StreamReader
    writer: asyncio.StreamWriter

    async def body(self) -> bytes:
        """Read the rest."""
        length = self.headers.get("content-length")
        return await self.reader.readexactly(int(length)) if length else await self.reader.read()

    def close(self) -> None:
        """Close the connection."""
        self.writer.close()


class RegistryClient:
    """One node's client.

    Attributes:
        part_least: Bytes of the smallest part; a test with small blobs lowers it.
        second_s: Seconds of a "second" of the pauses between tries.
        stall_s: Seconds without a byte, after which a part is requested again.
        bytes_per_s: The speed of the node's link, None for no limit.
        received, sent: Bytes of blobs that came and went over the network.
    """

    def __init__(self, store: OllamaStore, bytes_per_s: float | None = None) -> None:
        self.store = store
        self.part_least = 100 * MB
        self.part_most = 1000 * MB
        self.second_s = 1.0
        self.stall_s = 30.0
        self.bytes_per_s = bytes_per_s
        self.received = self.sent = 0
        self._link_free_s = 0.0

    # --- pull ---

    async def pull(self, name: RegistryName, report: Report) -> None:
        """Pull a model. Raises TransferFailed."""
        report({"status": "pulling manifest"})
        try:
            raw = await self._whole("GET", f"{name.url}/manifests/{name.tag}", {"Accept": MANIFEST_TYPE})
            manifest = json.loads(raw)
        except (TransferFailed, OSError, ValueError) as error:
            raise TransferFailed(f"pull model manifest: {error}") from None
        digests = digests_of(manifest)
        fresh = [digest for digest in dict.fromkeys(digests) if await self._download(name, digest, report)]
        report({"status": "verifying sha256 digest"})
        for digest in fresh:
            found = await asyncio.to_thread(_hash, self.store.blob(digest))
            if found != digest:
                self.store.blob(digest).unlink()
                raise TransferFailed(f"digest mismatch, file must be downloaded again: want {digest}, got {found}")
        report({"status": "writing manifest"})
        self.store.write_manifest(name, raw)
        report({"status": "success"})

    async def _download(self, name: RegistryName, digest: str, report: Report) -> bool:
        file = self.store.blob(digest)
        label = {"status": f"pulling {digest[7:19]}", "digest": digest}
        if file.exists():
            size = file.stat().st_size
            report({**label, "total": size, "completed": size})
            return False
        url = f"{name.url}/blobs/{digest}"
        parts = await self._parts(file, url)
        total = sum(part.size for part in parts)
        partial = file.with_name(f"{file.name}-partial")
        partial.touch()
        direct = await self._direct(url)
        tasks = [asyncio.create_task(self._part(direct, partial, part)) for part in parts if part.done < part.size]
        try:
            left = set(tasks)
            while left:
                report({**label, "total": total, "completed": sum(part.done for part in parts)})
                done, left = await asyncio.wait(left, timeout=0.06, return_when=asyncio.FIRST_EXCEPTION)
                for task in done:
                    task.result()
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)
        report({**label, "total": total, "completed": total})
        for part in parts:
            part.file.unlink()
        partial.rename(file)
        return True

    async def _parts(self, file: Path, url: str) -> list[_Part]:
        left = sorted(file.parent.glob(f"{file.name}-partial-*"), key=lambda path: int(path.name.rpartition("-")[2]))
        if left:
            return [_Part(path, **{k.lower(): v for k, v in json.loads(path.read_text()).items()}) for path in left]
        answer = await self._checked("HEAD", url)
        answer.close()
        total = int(answer.headers.get("content-length", "0"))
        size = min(max(total // PARTS, self.part_least), self.part_most)
        parts = [
            _Part(file.with_name(f"{file.name}-partial-{number}"), number, offset, min(size, total - offset), 0)
            for number, offset in enumerate(range(0, total, size))
        ]
        for part in parts:
            part.save()
        return parts

    async def _direct(self, url: str) -> str:
        """Return the URL of the parts: the last `Location`, or the first redirect to another host."""
        host, place = urlsplit(url).hostname, url
        for _ in range(11):
            answer = await self._checked("GET", place)
            answer.close()
            location = answer.headers.get("location")
            if answer.status not in (200, 301, 302, 303, 307, 308):
                raise TransferFailed(f"unexpected status code {answer.status}")
            if location is None:
                raise TransferFailed("http: no Location header in response")
            target = urljoin(place, location)
            if answer.status == 200 or urlsplit(target).hostname != host:
                if answer.status not in (200, 307):
                    raise TransferFailed(f"unexpected status code {answer.status}")
                return target
            place = target
        raise TransferFailed("maximum redirects exceeded (10) for directURL")

    async def _part(self, url: str, partial: Path, part: _Part) -> None:
        tries = 0
        error: Exception = TransferFailed("")
        while tries < RETRIES:
            try:
                await self._receive(url, partial, part)
            except TimeoutError:  # stalled, which is no try
                continue
            except (OSError, EOFError, TransferFailed) as failed:
                error = failed
                await asyncio.sleep(self.second_s * 2**tries)
                tries += 1
            else:
                return
        raise TransferFailed(f"max retries exceeded: {error}")

    async def _receive(self, url: str, partial: Path, part: _Part) -> None:
        wanted = {"Range": f"bytes={part.offset + part.done}-{part.offset + part.size - 1}"}
        async with asyncio.timeout(self.stall_s):
            answer = await self._followed("GET", url, wanted)
        before = part.done
        left = int(answer.headers.get("content-length", part.size))
        try:
            with open(partial, "r+b", buffering=0) as out:  # noqa: ASYNC230 - as fast as a write to a socket
                out.seek(part.offset + part.done)
                while part.done < part.size:
                    async with asyncio.timeout(self.stall_s):
                        piece = await answer.reader.read(min(PIECE, left, part.size - part.done))
                    if not piece:
                        raise EOFError("unexpected EOF")
                    left -= len(piece)
                    await self._use_link(len(piece))
                    out.write(piece)
                    part.done += len(piece)
                    self.received += len(piece)
        except (TimeoutError, OSError):
            part.done = before  # as the real one: progress is rolled back, unless the answer ended early
            raise
        finally:
            part.save()
            answer.close()

    # --- push ---

    async def push(self, name: RegistryName, report: Report) -> None:
        """Push a model. Raises TransferFailed."""
        report({"status": "retrieving manifest"})
        raw = self.store.manifest(name)
        if raw is None:
            raise TransferFailed("file does not exist")
        for digest in digests_of(json.loads(raw)):
            await self._upload(name, digest, report)
        report({"status": "pushing manifest"})
        await self._whole("PUT", f"{name.url}/manifests/{name.tag}", {"Content-Type": MANIFEST_TYPE}, raw.rstrip())
        report({"status": "success"})

    async def _upload(self, name: RegistryName, digest: str, report: Report) -> None:
        file = self.store.blob(digest)
        total = file.stat().st_size
        label = {"status": f"pushing {digest[7:19]}", "digest": digest, "total": total}
        try:
            answer = await self._checked("HEAD", f"{name.url}/blobs/{digest}")
        except FileNotFoundError:
            pass
        else:
            answer.close()
            report({**label, "completed": total})
            return
        answer = await self._checked("POST", f"{name.url}/blobs/uploads/", {"Content-Length": "0"})
        answer.close()
        if answer.status == 201:
            return
        place = answer.headers.get("docker-upload-location") or answer.headers["location"]
        size = min(max(total // PARTS, self.part_least), self.part_most)
        sums = []
        for offset in range(0, total, size):
            place, part_sum = await self._send_part(place, file, offset, min(size, total - offset))
            sums.append(part_sum)
            report({**label, "completed": min(offset + size, total)})
        tag = f"{hashlib.md5(b''.join(sums)).hexdigest()}-{len(sums)}"
        joint = "&" if "?" in place else "?"
        query = f"{joint}digest={digest.replace(':', '%3A')}&etag={tag}"
        done = await self._checked(
            "PUT", place + query, {"Content-Type": "application/octet-stream", "Content-Length": "0"}
        )
        done.close()

    async def _send_part(self, place: str, file: Path, offset: int, size: int) -> tuple[str, bytes]:
        error: Exception = TransferFailed("")
        for number in range(RETRIES):
            try:
                return await self._send_once(place, file, offset, size)
            except (OSError, EOFError, TransferFailed) as failed:
                error = failed
                await asyncio.sleep(self.second_s * 2**number)
        raise TransferFailed(f"max retries exceeded: {error}")

    async def _send_once(self, place: str, file: Path, offset: int, size: int) -> tuple[str, bytes]:
        headers = {
            "User-Agent": AGENT,
            "Content-Type": "application/octet-stream",
            "Content-Length": str(size),
            "X-Redirect-Uploads": "1",
            "Content-Range": f"{offset}-{offset + size - 1}",
        }
        found = hashlib.md5()
        answer = await self._request("PATCH", place, headers, (file, offset, size), found)
        body = await answer.body() if answer.status >= 400 else b""
        answer.close()
        if answer.status >= 400:
            raise TransferFailed(f"http status {answer.status}: {body.decode()}")
        return answer.headers.get("docker-upload-location") or answer.headers["location"], found.digest()

    # --- HTTP ---

    async def _whole(self, method: str, url: str, headers: dict[str, str], body: bytes = b"") -> bytes:
        answer = await self._checked(method, url, headers, body)
        try:
            return await answer.body()
        finally:
            answer.close()

    async def _checked(
        self, method: str, url: str, headers: dict[str, str] | None = None, body: bytes = b""
    ) -> RegistryAnswer:
        """Send a request of the registry's protocol; a refusal is an error in the client's words."""
        answer = await self._request(method, url, {"User-Agent": AGENT, **(headers or {})}, body)
        if answer.status < 400:
            return answer
        text = await answer.body() if method != "HEAD" else b""
        answer.close()
        if answer.status == 404:
            raise FileNotFoundError("file does not exist")
        raise TransferFailed(f"{answer.status}: {text.decode(errors='replace')}")

    async def _followed(self, method: str, url: str, headers: dict[str, str]) -> RegistryAnswer:
        for _ in range(10):
            answer = await self._request(method, url, {"User-Agent": GO, **headers})
            if answer.status not in (301, 302, 303, 307, 308):
                return answer
            answer.close()
            url = urljoin(url, answer.headers.get("location", ""))
        raise TransferFailed("stopped after 10 redirects")

    async def _request(
        self,
        method: str,
        url: str,
        headers: dict[str, str],
        body: bytes | tuple[Path, int, int] = b"",
        found: Any = None,
    ) -> RegistryAnswer:
        parts = urlsplit(url)
        try:
            reader, writer = await asyncio.open_connection(parts.hostname, parts.port or 80)
        except OSError as error:  # in Go's words
            why = (error.strerror or str(error)).lower()
            address = f"{parts.hostname}:{parts.port or 80}"
            raise ConnectionError(f'{method.title()} "{url}": dial tcp {address}: connect: {why}') from None
        target = parts.path + (f"?{parts.query}" if parts.query else "")
        given = {"Host": parts.netloc, **headers}
        if body and isinstance(body, bytes):
            given["Content-Length"] = str(len(body))
        if "Range" not in given:
            given["Accept-Encoding"] = "gzip"
        head = "".join(f"{name}: {value}\r\n" for name, value in given.items())
        try:
            writer.write(f"{method} {target} HTTP/1.1\r\n{head}\r\n".encode())
            if isinstance(body, bytes):
                writer.write(body)
            else:
                await self._send_file(writer, body, found)
            await writer.drain()
            lines = (await reader.readuntil(b"\r\n\r\n")).decode("latin-1").split("\r\n")
        except BaseException:
            writer.close()
            raise
        fields = (line.partition(":") for line in lines[1:] if line)
        return RegistryAnswer(
            int(lines[0].split()[1]), {name.lower(): value.strip() for name, _, value in fields}, reader, writer
        )

    async def _send_file(self, writer: asyncio.StreamWriter, body: tuple[Path, int, int], found: Any) -> None:
        file, offset, size = body
        with open(file, "rb") as source:  # noqa: ASYNC230 - as fast as a write to a socket
            source.seek(offset)
            while size > 0 and (piece := source.read(min(PIECE, size))):
                await self._use_link(len(piece))
                found.update(piece)
                writer.write(piece)
                await writer.drain()
                self.sent += len(piece)
                size -= len(piece)

    async def _use_link(self, size: int) -> None:
        """Wait until the node's link has had the time for so many bytes."""
        if self.bytes_per_s is not None:
            now = asyncio.get_running_loop().time()
            self._link_free_s = max(self._link_free_s, now) + size / self.bytes_per_s
            if self._link_free_s - now > 0.01:
                await asyncio.sleep(self._link_free_s - now)


class _Part:
    """A part of a blob, and the file that records its progress."""

    def __init__(self, file: Path, n: int, offset: int, size: int, completed: int) -> None:
        self.file = file
        self.number = n
        self.offset = offset
        self.size = size
        self.done = completed

    def save(self) -> None:
        fields = {"N": self.number, "Offset": self.offset, "Size": self.size, "Completed": self.done}
        self.file.write_text(json.dumps(fields) + "\n")


def _hash(file: Path) -> str:
    found = hashlib.sha256()
    with open(file, "rb") as source:
        while piece := source.read(1024 * 1024):
            found.update(piece)
    return f"sha256:{found.hexdigest()}"
