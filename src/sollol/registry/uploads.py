"""Receive the blobs that a node pushes: parts in order, hashed as they arrive, with bounds on all of them."""

from __future__ import annotations

import asyncio
import hashlib
import secrets
from collections.abc import AsyncIterator
from pathlib import Path
from typing import BinaryIO, Final

from sollol.errors import ResponseError
from sollol.registry.grants import Grant
from sollol.registry.store import BlobStore, NoRoom, write_whole

OPEN_MOST: Final = 16  # uploads of one grant at a time; Ollama's client has one for each blob, in turn
IDLE_S: Final = 600.0  # without a byte, after which an upload is deleted
BATCH: Final = 1024 * 1024  # bytes that are written and hashed together, in a thread


class PushedBlob:
    """One upload into a file of its own."""

    def __init__(self, name: str, grant: Grant, file: Path, now_s: float) -> None:
        self.name = name
        self.grant = grant
        self.file = file
        self.size = 0
        self.touched_s = now_s
        self.busy = False
        self.hash: hashlib._Hash | None = hashlib.sha256()  # None after a repeated part: the file is hashed at the end

    def write(self, out: BinaryIO, data: list[bytes]) -> None:
        """Append pieces; runs in a thread."""
        for piece in data:
            write_whole(out, piece)
            if self.hash is not None:
                self.hash.update(piece)
            self.size += len(piece)


class Uploads:
    """The open uploads of a registry."""

    def __init__(self, store: BlobStore) -> None:
        self._store = store
        self._open: dict[str, PushedBlob] = {}

    def start(self, grant: Grant, now_s: float) -> PushedBlob:
        """Open an upload.

        Raises:
            ResponseError: 429: the grant has too many.
        """
        if sum(each.grant is grant for each in self._open.values()) >= OPEN_MOST:
            raise ResponseError(f"more than {OPEN_MOST} uploads are open; end one first", 429)
        name = secrets.token_hex(16)
        upload = PushedBlob(name, grant, self._store.folder / f"{name}.upload", now_s)
        upload.file.touch(mode=0o600)
        self._open[name] = upload
        return upload

    def find(self, name: str, grant: Grant) -> PushedBlob:
        """Return an upload of a grant.

        Raises:
            ResponseError: 404: there is none.
        """
        upload = self._open.get(name)
        if upload is None or upload.grant is not grant:
            raise ResponseError("this upload is unknown, or was idle for too long; begin again", 404)
        return upload

    async def append(
        self, upload: PushedBlob, pieces: AsyncIterator[bytes], part: tuple[int, int] | None, now_s: float
    ) -> None:
        """Append a part. One that begins earlier than the end replaces what is behind its beginning.

        Raises:
            ResponseError: The part leaves a gap (416), is larger than announced (413) or shorter (400), or another
                part is arriving (409).
            NoRoom: The disk or the bound has no room for it.
        """
        start = upload.size if part is None else part[0]
        if upload.busy:
            raise ResponseError("another part of this upload is arriving", 409)
        if start > upload.size:
            raise ResponseError(f"the part begins at {start:,}, and {upload.size:,} bytes have arrived", 416)
        upload.busy, upload.touched_s = True, now_s
        out = None
        try:
            if part is not None:
                self._check(upload, part[1] - start)
                await asyncio.to_thread(self._store.make_room, part[1] - start)
            out = await asyncio.to_thread(_opened, upload, start)
            await self._receive(upload, out, pieces, part)
        except (ResponseError, NoRoom) as error:
            if isinstance(error, NoRoom) or error.status_code == 413:
                self.drop(upload)
            raise
        finally:
            upload.busy = False
            if out is not None:
                out.close()

    async def _receive(
        self, upload: PushedBlob, out: BinaryIO, pieces: AsyncIterator[bytes], part: tuple[int, int] | None
    ) -> None:
        batch: list[bytes] = []
        size = received = 0
        async for piece in pieces:
            batch.append(piece)
            size += len(piece)
            received += len(piece)
            upload.grant.pushed += len(piece)
            self._check(upload, 0)
            if part is not None and received > part[1] - part[0]:
                raise ResponseError(f"the part has more than the {part[1] - part[0]:,} bytes of its Content-Range", 413)
            if size >= BATCH:
                if part is None:
                    await asyncio.to_thread(self._store.make_room, size)
                await asyncio.to_thread(upload.write, out, batch)
                batch, size = [], 0
        await asyncio.to_thread(upload.write, out, batch)
        if part is not None and received < part[1] - part[0]:
            raise ResponseError(f"the part ended after {received:,} of {part[1] - part[0]:,} bytes", 400)

    def _check(self, upload: PushedBlob, more: int) -> None:
        grant = upload.grant
        if grant.pushed + more > grant.size_most:
            raise ResponseError(f"more than the {grant.size_most:,} bytes that the model may have", 413)

    async def finish(self, upload: PushedBlob, digest: str) -> None:
        """Name the uploaded bytes by their digest.

        Raises:
            ResponseError: 400: they have another one. They are deleted.
        """
        if upload.busy:
            raise ResponseError("a part of this upload is still arriving", 409)
        self._open.pop(upload.name, None)
        if upload.hash is None:
            good = await asyncio.to_thread(self._store.commit, upload.file, digest)
        elif good := f"sha256:{upload.hash.hexdigest()}" == digest:
            await asyncio.to_thread(self._store.adopt, upload.file, digest)
        else:
            upload.file.unlink(missing_ok=True)
        if not good:
            raise ResponseError(f"the uploaded bytes do not have the digest {digest}", 400)

    def drop(self, upload: PushedBlob) -> None:
        """Delete an upload."""
        self._open.pop(upload.name, None)
        upload.file.unlink(missing_ok=True)

    def sweep(self, now_s: float, grants: list[Grant]) -> None:
        """Delete uploads that are idle for too long, or whose grant has ended."""
        for upload in list(self._open.values()):
            if not upload.busy and (now_s - upload.touched_s > IDLE_S or upload.grant not in grants):
                self.drop(upload)


def _opened(upload: PushedBlob, start: int) -> BinaryIO:
    """Open the file of an upload at `start`; later bytes are repeated and dropped."""
    out = open(upload.file, "r+b", buffering=0)  # noqa: SIM115 - the caller closes it
    if start < upload.size or out.seek(0, 2) != start:
        out.truncate(start)
        upload.hash = None
        upload.grant.pushed -= upload.size - start
    out.seek(start)
    upload.size = start
    return out
