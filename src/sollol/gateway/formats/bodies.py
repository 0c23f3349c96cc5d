"""Decompress and normalise request bodies once, so that decisions and nodes use the same bytes."""

from __future__ import annotations

import sys
from typing import Any, Final

import msgspec

from sollol.backends.decoding import fits_decoded, may_have_long_number
from sollol.backends.go_json import normalised
from sollol.backends.ollama import decode
from sollol.errors import BadInput, ResponseError
from sollol.http_server.request import Request

ON_THE_LOOP: Final = 20 * 1024  # largest body that is decoded on the event loop
DECOMPRESSED_BYTES: Final = 8 * 1024 * 1024  # limit of a decompressed body, the same as Ollama's


def is_large(request: Request) -> bool:
    """Check whether a body is decoded in a thread: a large or a compressed one."""
    return request.unjoined is not None or len(request.body) > ON_THE_LOOP or b"content-encoding" in request.headers


def normalise_body(request: Request) -> None:
    """Replace the body by the JSON object that a node reads in it.

    Raises:
        BadInput: It has none.
        ResponseError: 413: it is too large, or has too many values.
    """
    if b"content-encoding" in request.headers and request.path.startswith("/v1/"):
        _decompress(request)
    request.body = read_json(request.body)


class UnreadableValue(BadInput):
    """A body is JSON with a value that cannot be decoded."""


def read_json(body: bytes) -> bytes:
    """Return the JSON object that a node reads in `body`.

    Raises:
        BadInput: It has none.
        ResponseError: 413: it has too many values.
    """
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
            decode(found)
        except (msgspec.DecodeError, ValueError) as error:
            raise UnreadableValue(f"the request cannot be read: {error}"[:300]) from None
    return found


def read_fields(body: bytes) -> dict[str, Any]:
    """Return the decoded JSON object of a body.

    Raises:
        BadInput: It has none.
        ResponseError: 413: it has too many values.
    """
    try:
        found: dict[str, Any] = decode(read_json(body))
    except ValueError as error:
        raise BadInput(f"the request is not JSON: {error}") from None
    return found


def fields_of(request: Request, *names: str) -> dict[str, Any]:
    """Return the JSON object of a request.

    Raises:
        BadInput: It has none, or none of the fields `names`.
    """
    found = read_fields(request.body) if request.fields is None else request.fields
    if names and not any(isinstance(found.get(name), str) and found[name] for name in names):
        raise BadInput(f"{names[0]} is required")
    return found


def model_name(fields: dict[str, Any]) -> str:
    """Return the model that a request names in `model` or, as in older versions, in `name`."""
    return str(fields.get("model") or fields["name"])


def _decompress(request: Request) -> None:
    if request.header(b"content-encoding").lower() != "zstd":
        return  # as a node, which then refuses the body as no JSON
    if sys.version_info >= (3, 14):
        from compression import zstd
    else:
        from backports import zstd

    decoder = zstd.ZstdDecompressor()
    try:
        body = decoder.decompress(request.body, max_length=DECOMPRESSED_BYTES + 1)
    except zstd.ZstdError as error:
        raise BadInput(f"the request's body is not in the format of its Content-Encoding: zstd: {error}") from None
    if len(body) > DECOMPRESSED_BYTES:
        raise ResponseError(f"the request's body is larger than {DECOMPRESSED_BYTES} bytes when decompressed", 413)
    if not decoder.eof:
        raise BadInput("the request's body is not in the format of its Content-Encoding: zstd: its end is missing")
    del request.headers[b"content-encoding"]
    request.body = body
