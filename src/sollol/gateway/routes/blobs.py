"""BlobUpload and look up the blobs from which models are created."""

from __future__ import annotations

import asyncio
import re
from collections.abc import AsyncIterator
from typing import Final

from sollol.backends.ollama import encode
from sollol.backends.refusals import error_text
from sollol.core.endpoint import Endpoint
from sollol.errors import ResponseError
from sollol.gateway.context import Context
from sollol.gateway.routes import targets
from sollol.gateway.routes.models import Outcomes, answer_outcomes
from sollol.http_server.request import JSON, Request
from sollol.models import operations
from sollol.transport.base import Call, TransportFault

BLOB: Final[re.Pattern[str]] = re.compile(r"/api/blobs/([^/]+)")
DIGEST: Final = re.compile(r"sha256[:-][0-9a-fA-F]{64}")
AHEAD: Final = 8  # pieces of an upload that a node may be behind the fastest
STALL_S: Final = 60.0  # a node that takes no byte for so long is left out


def check_digest(digest: str) -> None:
    """Check a digest, which becomes part of a path on the nodes.

    Raises:
        ResponseError: 400, with a node's message: it is none.
    """
    if not DIGEST.fullmatch(digest):
        raise ResponseError("invalid digest format", 400)


async def has_blob(context: Context, request: Request, digest: str) -> None:
    """Answer 200 if all nodes have the blob."""
    nodes = (targets.chosen(context, request) or targets.all_up(context)).nodes
    statuses = {
        status for each in (await targets.statuses_of(context, nodes, [request.path])).values() for status in each
    }
    if statuses == {200}:
        request.answer_with(200, b"", b"", b"")
    elif 400 in statuses:
        request.answer(400, encode({"error": "invalid digest format"}))
    else:
        request.answer(404, encode({"error": f'blob "{digest}" not found'}))


async def upload_blob(context: Context, request: Request, digest: str) -> None:
    """Send an upload to all nodes as it arrives, at the pace of the slowest.

    Failed and stalled nodes are left out.
    """
    to = targets.chosen(context, request) or targets.all_up(context)
    uploads = [BlobUpload(context, node, request.path) for node in to.nodes]
    try:
        async for piece in request.pieces():
            behind = [upload for upload in uploads if not upload.take(piece)]
            if behind:  # together, so that several stalled nodes delay the others by STALL_S once
                await asyncio.gather(*(upload.put(piece) for upload in behind))
            if all(upload.task.done() for upload in uploads):
                break
        if request.is_gone:
            return
        answers = await asyncio.gather(*(upload.end() for upload in uploads))
    finally:
        for upload in uploads:
            upload.task.cancel()
    outcomes: Outcomes = {
        u.key: found if isinstance(found, Exception) else None for u, found in zip(uploads, answers, strict=True)
    }
    outcomes |= to.down
    good = [found for found in answers if isinstance(found, int)]
    if len(good) == len(outcomes):
        request.answer_with(max(good), b"", b"", b"")
    else:
        answer_outcomes(request, outcomes, JSON, max(good, default=200))


class BlobUpload:
    """Send a blob to one node."""

    def __init__(self, context: Context, node: Endpoint, path: str) -> None:
        self.key = node.key
        self._queue: asyncio.Queue[bytes] = asyncio.Queue(AHEAD)
        call = Call("POST", path, self._pieces(), "application/octet-stream", timeouts=operations.TIMEOUTS)
        self.task = asyncio.create_task(_send(context, node, call))

    async def _pieces(self) -> AsyncIterator[bytes]:
        while piece := await self._queue.get():
            yield piece

    def take(self, piece: bytes) -> bool:
        """Queue a piece; return False if the queue is full. A failed upload drops it."""
        if not self.task.done():
            if self._queue.full():
                return False
            self._queue.put_nowait(piece)
        return True

    async def put(self, piece: bytes) -> None:
        """Queue a piece, waiting for room; a node without room for STALL_S seconds fails."""
        if self.take(piece):
            return
        putting = asyncio.ensure_future(self._queue.put(piece))
        try:
            await asyncio.wait({putting, self.task}, timeout=STALL_S, return_when=asyncio.FIRST_COMPLETED)
        finally:
            if not putting.done():
                putting.cancel()
                self.task.cancel()

    async def end(self) -> int | Exception:
        """End the upload; return the status of its success, or its error."""
        await self.put(b"")
        try:
            return await self.task
        except asyncio.CancelledError:
            if self.task.cancelled():
                return ResponseError(f"took no data for {STALL_S:g} s", 504)
            raise


async def _send(context: Context, node: Endpoint, call: Call) -> int | Exception:
    try:
        reply = await context.engine.transport.send(node, call)
        body = await reply.read()
    except TransportFault as fault:
        return fault
    return reply.status if reply.status < 300 else ResponseError(error_text(body), reply.status)
