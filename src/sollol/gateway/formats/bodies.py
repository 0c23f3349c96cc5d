"""Request bodies, unpacked and read once: what is decided by and what is sent on are the same bytes."""

from __future__ import annotations

import sys
from typing import Final

import msgspec

from sollol.backends.decoding import fits_decoded, may_have_long_number
from sollol.backends.go_json import normalised
from sollol.backends.ollama import decode
from sollol.errors import BadInput, ResponseError
from sollol.http_server.request import Request

ON_THE_LOOP: Final = 20 * 1024  # of a body that is decoded on the loop; a larger one keeps it from others
UNPACKED_BYTES: Final = 8 * 1024 * 1024  # of a compressed body, as Ollama has it


def is_large(request: Request) -> bool:
    """Check for a body that is decoded in a thread: a large one, or one that may become large."""
    return request.unjoined is not None or len(request.body) > ON_THE_LOOP or b"content-encoding" in request.headers


def settle_body(request: Request) -> None:
    """Replace the body by the JSON that a node reads in it. Raises BadInput, or ResponseError for one too large."""
    if b"content-encoding" in request.headers and request.path.startswith("/v1/"):
        _unpack(request)
    request.body = read_json(request.body)


class UnreadableValue(BadInput):
    """A body is JSON, and has a value that nobody here can read."""


def read_json(body: bytes) -> bytes:
    """Return the JSON object that a node reads in `body`. Raises BadInput, or ResponseError for too many values."""
    if len(body) > ON_THE_LOOP and not fits_decoded(body):
        raise ResponseError(
            f"the request has too many values for its {len(body)} bytes; send fewer, or longer, messages or texts", 413
        )
    try:
        found = normalised(body)
    except msgspec.ValidationError as error:
        raise BadInput(f"the request cannot be read: {error}") from None
    except msgspec.DecodeError as error:
        raise BadInput(f"the request is not JSON: {error}" if body else "missing request body") from None
    if may_have_long_number(found):
        try:
            decode(found)  # all that is read of it later
        except (msgspec.DecodeError, ValueError) as error:
            raise UnreadableValue(f"the request cannot be read: {error}"[:300]) from None
    return found


def _unpack(request: Request) -> None:
    if request.header(b"content-encoding").lower() != "zstd":
        return  # a node does not look at others either, and finds that it is not JSON
    if sys.version_info >= (3, 14):
        from compression import zstd
    else:
        from backports import zstd

    decoder = zstd.ZstdDecompressor()
    try:
        body = decoder.decompress(request.body, max_length=UNPACKED_BYTES + 1)
    except zstd.ZstdError as error:
        raise BadInput(f"the request's body is not what Content-Encoding: zstd says: {error}") from None
    if len(body) > UNPACKED_BYTES:
        raise ResponseError(f"the request's body is larger than {UNPACKED_BYTES} bytes when it is unpacked", 413)
    if not decoder.eof:
        raise BadInput("the request's body is not what Content-Encoding: zstd says: its end is missing")
    del request.headers[b"content-encoding"]
    request.body = body
