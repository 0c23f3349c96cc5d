"""Refuse pages of other sites that reach the dashboard through a browser.

The dashboard has no password. A page of another site can let its own name point at 127.0.0.1 (DNS rebinding) and then
read the dashboard as if it were the same site. The Host header still holds that name, so only names that cannot be
rebound are accepted. Response headers forbid frames, foreign scripts and caching.
"""

from __future__ import annotations

import ipaddress
import socket

WILDCARDS = ("", "0.0.0.0", "::")


def name_in(host: str) -> str:
    """Return the name of a Host header in lower case, without port and brackets."""
    text = host.strip().lower()
    if text.startswith("["):
        return text[1:].partition("]")[0]
    return text.partition(":")[0].rstrip(".")


def is_loopback(name: str) -> bool:
    """Check whether a name is `localhost` or a loopback address."""
    address = _address(name)
    return address.is_loopback if address else name == "localhost" or name.endswith(".localhost")


def _address(name: str) -> ipaddress.IPv4Address | ipaddress.IPv6Address | None:
    try:
        return ipaddress.ip_address(name)
    except ValueError:
        return None


class Hosts:
    """Accept Host headers of loopback and of the address that the server listens on.

    A server that listens on every address also accepts any literal address, which cannot be rebound, and this
    machine's own name.
    """

    def __init__(self, bound: str) -> None:
        self._bound = name_in(f"[{bound}]" if ":" in bound else bound)
        self._everywhere = bound in WILDCARDS
        self._own = socket.gethostname().lower()

    def allow(self, host: str) -> bool:
        """Check whether requests with this Host header are answered."""
        name = name_in(host)
        if not name:
            return False
        if self._everywhere and (_address(name) or name in (self._own, self._own.partition(".")[0])):
            return True
        return is_loopback(name) or name == self._bound


def security_headers(policy: str) -> list[tuple[str, str]]:
    """Return headers by which a browser runs only the page's own script, shows no frame and caches nothing."""
    return [
        ("Content-Security-Policy", policy),
        ("X-Content-Type-Options", "nosniff"),
        ("X-Frame-Options", "DENY"),
        ("Referrer-Policy", "no-referrer"),
        ("Cross-Origin-Resource-Policy", "same-origin"),
        ("Cross-Origin-Opener-Policy", "same-origin"),
        ("Cache-Control", "no-store"),
    ]
