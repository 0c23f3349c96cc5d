"""Parse the address of a node, in every spelling that users write.

`h`, `h:11434`, `http://h:11434`, `https://gate.example/team-a`, `[::1]:11434`, `::1`, `0.0.0.0` (with which Ollama
listens everywhere and which a client must read as loopback), `{"host", "port"}`, `{"url"}`.
"""

from __future__ import annotations

import ipaddress
import re
from collections.abc import Mapping
from typing import Any, NamedTuple
from urllib.parse import unquote, urlsplit

from sollol.errors import BadInput

DEFAULT_PORT = 11434
_KEY = re.compile(r"[\x21-\x7e]+\Z")
_HOSTNAME = re.compile(r"[A-Za-z0-9_]([A-Za-z0-9_.-]{0,252}[A-Za-z0-9_.])?\Z")


class Endpoint(NamedTuple):
    """Hold a node's address.

    Attributes:
        prefix: A path in front of `/api`; "" for none.
        auth: "user:password", or "".
        api_key: Sent as a bearer token; "" for none.
    """

    host: str
    port: int = DEFAULT_PORT
    scheme: str = "http"
    prefix: str = ""
    auth: str = ""
    api_key: str = ""

    @property
    def key(self) -> str:
        """Return `host:port`, the node's name everywhere. An IPv6 literal gets brackets."""
        host = f"[{self.host}]" if ":" in self.host else self.host
        return f"{host}:{self.port}{self.prefix}"

    @property
    def url(self) -> str:
        """Return the base URL without credentials, safe to print."""
        return f"{self.scheme}://{self.key}"

    def __repr__(self) -> str:  # credentials never reach a log
        return f"Endpoint({self.url})"


def parse_endpoint(value: Any, *, default_port: int = DEFAULT_PORT) -> Endpoint:
    """Parse one node from a string, a mapping or an Endpoint.

    Raises BadInput with the value and what was expected.
    """
    if isinstance(value, Endpoint):
        return value
    if isinstance(value, Mapping):
        return _from_mapping(value, default_port)
    if not isinstance(value, str):
        host = getattr(value, "url", None)  # a node of another pool
        if isinstance(host, str):
            return _from_text(host, default_port)
        raise _bad(value)
    return _from_text(value, default_port)


def _from_mapping(value: Mapping[str, Any], default_port: int) -> Endpoint:
    if "url" not in value and "host" not in value:
        raise _bad(value)
    found = _from_text(str(value["url"] if "url" in value else value["host"]), default_port)
    port = value.get("port", None)
    if port is not None and "url" not in value:
        found = found._replace(port=_port(port, value))
    api_key = value.get("api_key", None)
    return found if api_key is None else with_key(found, api_key)


def with_key(node: Endpoint, api_key: Any) -> Endpoint:
    """Return the node with a bearer token.

    Raises BadInput, which does not repeat the token.
    """
    if not isinstance(api_key, str) or not _KEY.match(api_key):
        what = (
            "empty" if api_key == "" else f"a {type(api_key).__name__}" if not isinstance(api_key, str) else "not one"
        )
        raise BadInput(f"api_key of node {node.url} is {what}; expected a token of visible ASCII characters")
    return node._replace(api_key=api_key)


def _from_text(text: str, default_port: int) -> Endpoint:
    original, text = text, text.strip().strip("\"'")
    if not text:
        raise _bad(original)
    try:  # a bare IPv6 literal has colons that are no port
        return Endpoint(_loopback_if_any(str(ipaddress.IPv6Address(text))), default_port)
    except ValueError:
        pass
    with_scheme = text if "://" in text else f"http://{text}"
    try:
        parts = urlsplit(with_scheme)
        port = parts.port
    except ValueError:
        raise _bad(original) from None
    scheme = parts.scheme.lower()
    if scheme not in ("http", "https") or not parts.hostname or parts.query or parts.fragment:
        raise _bad(original)
    if port is None:
        # As the official client: a URL with a scheme means the scheme's own port.
        port = default_port if "://" not in text else {"http": 80, "https": 443}[scheme]
    host = parts.hostname
    try:
        host = str(ipaddress.ip_address(host))
    except ValueError:
        if not _HOSTNAME.match(host):
            raise _bad(original) from None
    auth = f"{unquote(parts.username or '')}:{unquote(parts.password or '')}" if "@" in parts.netloc else ""
    return Endpoint(_loopback_if_any(host), _port(port, original), scheme, parts.path.rstrip("/"), auth)


def _loopback_if_any(host: str) -> str:
    return {"0.0.0.0": "127.0.0.1", "::": "::1"}.get(host, host)


def _port(port: Any, value: Any) -> int:
    try:
        number = int(port)
    except (TypeError, ValueError):
        raise _bad(value) from None
    if not 1 <= number <= 65535:
        raise BadInput(f"node {_shown(value)}: port {number} is out of range; expected 1 to 65535")
    return number


def _shown(value: Any) -> str:
    if isinstance(value, Mapping) and "api_key" in value:
        value = {**value, "api_key": "***"}
    text = value if isinstance(value, str) else repr(value)
    return repr(re.sub(r"//[^\s'\"]*@", "//***@", text))  # also of passwords with / or @


def _bad(value: Any) -> BadInput:
    return BadInput(
        f"node {_shown(value)} is not an address; expected 'host', 'host:port', 'http://host:port', "
        "{'host': ..., 'port': ...} or {'url': ...}, both also with 'api_key'"
    )
