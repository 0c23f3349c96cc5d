"""Identify the key of a request by its head, and check the key's limits."""

from __future__ import annotations

import asyncio
import time

from sollol.errors import ResponseError
from sollol.gateway.auth.keys import Keyring
from sollol.gateway.auth.rate_limit import RateLimited, RateLimiter
from sollol.gateway.auth.sessions import Sessions
from sollol.http_server.request import Request, basic_password


class Unauthorized(ResponseError):
    """A request lacks a valid key. `challenge`: the value of WWW-Authenticate."""

    def __init__(self, message: str, challenge: str) -> None:
        super().__init__(message, 401)
        self.challenge = challenge


def identify(keyring: Keyring, request: Request, *, public: bool, challenge: str, required: bool | None = None) -> None:
    """Set the key of a request. `required`: True if it needs one; None for the keyring's rule.

    Raises:
        Unauthorized: A key is required and the request has none, or it has an unknown one.
    """
    scheme, _, token = request.header(b"authorization").partition(" ")
    if scheme.lower() != "bearer":
        token = request.header(b"x-api-key") or basic_password(scheme, token)  # of Anthropic's clients; of a URL
    request.key = keyring.find(token.strip()) if token else None
    if request.key is None and (keyring.required if required is None else required) and not public:
        problem = "this key is unknown, or was revoked" if token else "this server requires a key"
        raise Unauthorized(
            f"{problem}; send 'Authorization: Bearer KEY' (in a URL: http://any:KEY@host) with a key that "
            "`sollol keys add NAME` made",
            challenge,
        )


def identify_session(sessions: Sessions, keyring: Keyring, request: Request) -> bool:
    """Set the key of a request by the cookie of a browser's session; return False if it has none.

    A change must come from a page of this address: pages of other ports of the same host send the cookie, too.

    Raises:
        ResponseError: 403 for a change from elsewhere.
    """
    cookie = request.header(b"cookie")
    if not cookie or request.header(b"authorization") or request.header(b"x-api-key"):
        return False
    key = sessions.find(cookie, keyring, time.time())
    if key is None:
        return False
    origin = request.header(b"origin").partition("://")[2]
    if request.method not in ("GET", "HEAD") and origin != request.header(b"host"):
        raise ResponseError("a change needs the Origin of this gateway's own page", 403)
    request.key = key
    return True


def count(limiter: RateLimiter, request: Request) -> None:
    """Count an inference of the request's key.

    Raises:
        RateLimited: The key has no request or no token left in this minute.
    """
    if request.key is not None:
        wait_s = limiter.admit(request.key, asyncio.get_running_loop().time())
        if wait_s:
            raise RateLimited(request.key, wait_s)
