"""Sessions of browsers that have shown a key once: a random cookie instead of the key.

The cookie is unreadable for scripts, is sent by pages of this site only, and ends after some hours, with the process,
or with its key.
"""

from __future__ import annotations

import secrets
from http.cookies import CookieError, SimpleCookie
from typing import Final

from sollol.gateway.auth.keys import Key, Keyring, hash_of

COOKIE: Final = "sollol_session"
HOURS: Final = 8.0
SESSIONS_MOST: Final = 1_000  # the oldest are forgotten


class Sessions:
    """Map cookies to the hashes of keys."""

    def __init__(self) -> None:
        self._sessions: dict[str, tuple[str, float]] = {}  # hash of the cookie -> (hash of the key, end)

    def open(self, key: Key, path: str, is_secure: bool, now_s: float) -> str:
        """Open a session and return the value of its Set-Cookie header."""
        if len(self._sessions) >= SESSIONS_MOST:
            del self._sessions[next(iter(self._sessions))]
        token = secrets.token_urlsafe(32)
        self._sessions[hash_of(token)] = key.hash, now_s + HOURS * 3_600
        secure = "; Secure" if is_secure else ""
        return f"{COOKIE}={token}; Path={path}; Max-Age={HOURS * 3_600:.0f}; HttpOnly; SameSite=Strict{secure}"

    def find(self, header: str, keyring: Keyring, now_s: float) -> Key | None:
        """Return the key of the session in a Cookie header, None for none or an ended one."""
        token = _token(header)
        held = self._sessions.get(hash_of(token)) if token else None
        if held is None or held[1] < now_s:
            return None
        return keyring.with_hash(held[0])

    def close(self, header: str, path: str) -> str:
        """End the session in a Cookie header, and return the value of the Set-Cookie header that removes it."""
        self._sessions.pop(hash_of(_token(header)), None)
        return f"{COOKIE}=; Path={path}; Max-Age=0; HttpOnly; SameSite=Strict"


def _token(header: str) -> str:
    if COOKIE not in header:
        return ""
    try:
        found = SimpleCookie(header).get(COOKIE)
    except CookieError:
        return ""
    return found.value if found is not None else ""
