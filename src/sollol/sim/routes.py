"""Find the route of a request, after the checks of the web framework in front of Ollama."""

from __future__ import annotations

import ipaddress
import posixpath
from collections.abc import Awaitable, Callable
from typing import TYPE_CHECKING, NamedTuple

from sollol.sim import (
    anthropic_routes,
    disk_routes,
    embed_routes,
    openai_routes,
    responses_routes,
    show_route,
    text_routes,
)
from sollol.sim.reply import SimReply
from sollol.sim.request import Refusal, SimRequest, ollama_error

if TYPE_CHECKING:
    from sollol.sim.node import SimNode

SimAnswer = Callable[["SimNode", SimRequest], Awaitable[SimReply]]
Refuse = Callable[[Refusal], SimReply]

_ALLOWED_HEADERS = (
    "Authorization,Content-Type,User-Agent,Accept,X-Requested-With,Openai-Beta,X-Stainless-Arch,"
    "X-Stainless-Async,X-Stainless-Custom-Poll-Interval,X-Stainless-Helper-Method,X-Stainless-Lang,"
    "X-Stainless-Os,X-Stainless-Package-Version,X-Stainless-Poll-Helper,X-Stainless-Retry-Count,"
    "X-Stainless-Runtime,X-Stainless-Runtime-Version,X-Stainless-Timeout"
)
_LOCAL_ENDINGS = (".local", ".localhost", ".internal")


class SimRoute(NamedTuple):
    """Hold one route.

    `works`: it uses a model, so it is subject to the faults of work; the others are about state.
    """

    label: str
    handler: SimAnswer
    refuse: Refuse = ollama_error
    works: bool = False

    async def answer(self, node: SimNode, request: SimRequest) -> SimReply:
        """Return the answer to a request, or its refusal."""
        try:
            return await self.handler(node, request)
        except Refusal as refusal:
            return self.refuse(refusal)


def _state(method: str, path: str, handler: SimAnswer) -> tuple[tuple[str, str], SimRoute]:
    return (path, method), SimRoute(path, handler)


def _ollama(path: str, handler: SimAnswer) -> tuple[tuple[str, str], SimRoute]:
    return (path, "POST"), SimRoute(path, handler, works=True)


def _openai(path: str, handler: SimAnswer) -> tuple[tuple[str, str], SimRoute]:
    return (path, "POST"), SimRoute(path, handler, openai_routes.openai_error, works=True)


TABLE: dict[tuple[str, str], SimRoute] = dict(
    [
        *(_state(method, "/", disk_routes.root) for method in ("GET", "HEAD")),
        *(_state(method, "/api/version", disk_routes.version) for method in ("GET", "HEAD")),
        *(_state(method, "/api/tags", disk_routes.tags) for method in ("GET", "HEAD")),
        _state("GET", "/api/status", disk_routes.status),
        _state("GET", "/api/ps", disk_routes.ps),
        _state("POST", "/api/show", show_route.show),
        _state("POST", "/api/copy", disk_routes.copy),
        _state("DELETE", "/api/delete", disk_routes.delete),
        _state("POST", "/api/create", disk_routes.create),
        _state("POST", "/api/pull", disk_routes.pull),
        _state("POST", "/api/push", disk_routes.push),
        _state("POST", "/api/me", disk_routes.no_account),
        _state("POST", "/api/signout", disk_routes.no_account),
        _state("HEAD", "/api/blobs/", disk_routes.blob_head),
        _state("POST", "/api/blobs/", disk_routes.blob_post),
        _ollama("/api/generate", text_routes.generate_route),
        _ollama("/api/chat", text_routes.chat_route),
        _ollama("/api/embed", embed_routes.embed_route),
        _ollama("/api/embeddings", embed_routes.embeddings_route),
        _openai("/v1/chat/completions", openai_routes.chat),
        _openai("/v1/completions", openai_routes.completions),
        _openai("/v1/embeddings", openai_routes.embeddings),
        _openai("/v1/responses", responses_routes.responses),
        _openai("/v1/audio/transcriptions", openai_routes.transcriptions),
        (("/v1/messages", "POST"), SimRoute("/v1/messages", anthropic_routes.messages,
                                         anthropic_routes.anthropic_error, works=True)),
        (("/v1/models", "GET"), SimRoute("/v1/models", openai_routes.models, openai_routes.openai_error)),
        (("/v1/models/", "GET"), SimRoute("/v1/models/", openai_routes.model, openai_routes.openai_error)),
    ]
)  # fmt: skip
_WITH_NAME = ("/api/blobs/", "/v1/models/")
_METHODS: dict[str, list[str]] = {}
for _path, _method in TABLE:
    _METHODS.setdefault(_path, []).append(_method)


def find(request: SimRequest) -> SimRoute:
    """Return the route of a request, also for redirects and refusals in front of all routes."""
    if not _host_allowed(request.headers.get("host", "")) or not _origin_allowed(request.headers.get("origin", "")):
        return _FORBIDDEN
    path = request.path
    straight = posixpath.normpath("/" + path.lstrip("/")) + ("/" if path.endswith("/") and path.strip("/.") else "")
    if straight != path:
        request.rest = straight
        return _ELSEWHERE
    if path.endswith("/") and (path[:-1], request.method) in TABLE:
        request.rest = path[:-1]
        return _MOVED if request.method == "GET" else _ELSEWHERE
    for prefix in _WITH_NAME:
        if path.startswith(prefix) and len(path) > len(prefix):
            request.rest = path[len(prefix) :]
            path = prefix
    found = TABLE.get((path, request.method))
    if found is not None:
        return found
    if path not in _METHODS or request.path in _WITH_NAME:
        return _UNKNOWN
    request.rest = ", ".join(_METHODS[path])
    return _PREFLIGHT if request.method == "OPTIONS" else _WRONG_METHOD


def _host_allowed(host: str) -> bool:
    """Check a host as a node bound to loopback does: addresses and local names."""
    if not host:
        return True
    name = host.rpartition(":")[0] if ":" in host and not host.endswith("]") else host
    name = name.strip("[]").lower()
    try:
        ipaddress.ip_address(name)
    except ValueError:
        return name in ("", "localhost") or name.endswith(_LOCAL_ENDINGS)
    return True


def _origin_allowed(origin: str) -> bool:
    scheme, _, rest = origin.partition("://")
    if not origin or scheme in ("app", "file", "tauri", "vscode-webview", "vscode-file"):
        return True
    name = rest.rpartition(":")[0] or rest
    return scheme in ("http", "https") and name in ("localhost", "127.0.0.1", "0.0.0.0", "[::1]")


async def _forbidden(node: SimNode, request: SimRequest) -> SimReply:
    return SimReply.of(403, b"", "")


async def _unknown(node: SimNode, request: SimRequest) -> SimReply:
    return SimReply.of(404, b"404 page not found", "text/plain")


def _redirect(status: int, words: str) -> SimAnswer:
    async def answer(node: SimNode, request: SimRequest) -> SimReply:
        where = request.rest + ("?" + request.query if request.query else "")
        if request.method not in ("GET", "HEAD"):
            return SimReply.of(status, b"", "", location=where)
        page = f'<a href="{where}">{words}</a>.\n\n'.encode()
        return SimReply.of(status, page, "text/html; charset=utf-8", location=where)

    return answer


async def _wrong_method(node: SimNode, request: SimRequest) -> SimReply:
    return SimReply.of(405, b"405 method not allowed", "text/plain", allow=request.rest)


async def _preflight(node: SimNode, request: SimRequest) -> SimReply:
    origin = request.headers.get("origin", "*")
    return SimReply.of(
        204, b"", "",
        access_control_allow_headers=_ALLOWED_HEADERS,
        access_control_allow_methods="GET,POST,PUT,PATCH,DELETE,HEAD,OPTIONS",
        access_control_allow_origin=origin,
        access_control_max_age="43200",
        allow=request.rest,
        vary="Access-Control-Request-Headers",
    )  # fmt: skip


_FORBIDDEN = SimRoute("forbidden", _forbidden)
_ELSEWHERE = SimRoute("elsewhere", _redirect(307, "Temporary Redirect"))
_MOVED = SimRoute("moved", _redirect(301, "Moved Permanently"))
_UNKNOWN = SimRoute("unknown", _unknown)
_WRONG_METHOD = SimRoute("wrong method", _wrong_method)
_PREFLIGHT = SimRoute("preflight", _preflight)
