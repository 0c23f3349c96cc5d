"""Build request heads once for each kind of call to a node, and cache them.

A pool sends the same few requests to a node: `POST /api/chat`, `POST /api/embed`. The bytes before the length of the
body are the same each time, so they are checked and encoded once. Therefore the checks can be strict: a line break in a
header value would let a caller's text become a second request on a shared connection, so it raises BadInput.
"""

from __future__ import annotations

import base64
import re
from typing import Final

from sollol.core.endpoint import Endpoint
from sollol.errors import BadInput
from sollol.transport.base import Call

HEADS_PER_NODE: Final = 64  # cached heads by (method, path, content type); a full cache is cleared
_TOKEN: Final = re.compile(r"[!#$%&'*+\-.^_`|~0-9A-Za-z]+\Z")
_VALUE: Final = re.compile(r"[\t\x20-\x7e\x80-\xff]*\Z")
_TARGET: Final = re.compile(r"/[\x21-\x7e]*\Z")
_OURS: Final = frozenset(  # they delimit the message or name the node: a second value is request smuggling
    (
        "host",
        "connection",
        "content-length",
        "transfer-encoding",
        "keep-alive",
        "te",
        "trailer",
        "upgrade",
        "expect",
    )
)
_MAY_OMIT_LENGTH: Final = frozenset(("GET", "HEAD", "DELETE", "OPTIONS"))


class RequestHeads:
    """Request heads for one node.

    A head is sent first. If the call has a body, the head ends before the length: the length in decimal, an empty line
    and the body follow.
    """

    __slots__ = ("_cache", "_defaults", "_node")

    def __init__(self, node: Endpoint) -> None:
        self._node = node
        self._cache: dict[tuple[str, str, str, bool], bytes] = {}
        self._defaults = {"host": _host_value(node), "user-agent": "sollol", "accept": "*/*"}
        if node.api_key:
            self._defaults["authorization"] = f"Bearer {node.api_key}"
        elif node.auth:
            self._defaults["authorization"] = "Basic " + base64.b64encode(node.auth.encode()).decode()

    def for_call(self, call: Call) -> bytes:
        """Return the head of a call.

        Raises:
            BadInput: A part cannot be sent; the message names it.
        """
        if call.headers or not isinstance(call.body, bytes):
            return self._build(call)
        key = (call.method, call.path, call.content_type, not call.body)
        head = self._cache.get(key)
        if head is None:
            head = self._build(call)
            if len(self._cache) >= HEADS_PER_NODE:
                self._cache.clear()
            self._cache[key] = head
        return head

    def _build(self, call: Call) -> bytes:
        if not _TOKEN.match(call.method):
            raise BadInput(f"call to {self._node.url}: {call.method!r} is not an HTTP method")
        target = self._node.prefix + call.path
        if not call.path.startswith("/") or not _TARGET.match(target):
            raise BadInput(
                f"call to {self._node.url}: path {target!r} cannot be sent; "
                "expected '/...' with spaces and other special characters percent-encoded"
            )
        lines = [f"{call.method} {target} HTTP/1.1"]
        lines += [f"{name}: {value}" for name, value in self._fields(call)]
        return ("\r\n".join(lines) + "\r\n").encode("latin-1") + _framing(call)

    def _fields(self, call: Call) -> list[tuple[str, str]]:
        """Return our own headers and the caller's, which replace ours of the same name."""
        defaults = dict(self._defaults)
        if call.body:
            defaults["content-type"] = call.content_type
        for name, _ in call.headers:
            if name.lower() in _OURS:
                raise BadInput(f"call to {self._node.url}: header {name!r} is set by the transport")
            defaults.pop(name.lower(), None)
        fields = [(name.title(), value) for name, value in defaults.items()] + list(call.headers)
        for name, value in fields:  # messages leave the value out: it may be a secret
            if not _TOKEN.match(name):
                raise BadInput(f"call to {self._node.url}: {name!r} is not a header name")
            if not _VALUE.match(value):
                raise BadInput(
                    f"call to {self._node.url}: the value of header {name!r} has a line break, "
                    "a control character or a character outside Latin-1"
                )
        return fields


def _framing(call: Call) -> bytes:
    if not isinstance(call.body, bytes):
        return b"Transfer-Encoding: chunked\r\n\r\n"
    if call.body:
        return b"Content-Length: "
    return b"\r\n" if call.method in _MAY_OMIT_LENGTH else b"Content-Length: 0\r\n\r\n"


def _host_value(node: Endpoint) -> str:
    """Return the `Host` header: the node's own name.

    An Ollama bound to loopback answers 403 to any other (measured).
    """
    host = node.host.partition("%")[0]  # a zone ("fe80::1%eth0") is valid on this machine only
    if ":" in host:
        host = f"[{host}]"
    standard = {"http": 80, "https": 443}[node.scheme]
    return host if node.port == standard else f"{host}:{node.port}"
