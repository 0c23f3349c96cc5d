"""Who may read the page: a browser that was really sent here.

The dashboard has no password, so on loopback the browser is the door: a page of another site can let its own name
point at 127.0.0.1 (DNS rebinding) and then read as if it were the same site. Its name stays in the Host header, so
only names that cannot be rebound are let in. Everything else that a browser could be talked into is closed by headers.
"""

from __future__ import annotations

import ipaddress
import socket

WILDCARDS = ("", "0.0.0.0", "::")


def name_in(host: str) -> str:
    """The name of a Host header, without port and brackets, in lower case."""
    text = host.strip().lower()
    if text.startswith("["):
        return text[1:].partition("]")[0]
    return text.partition(":")[0].rstrip(".")


def is_loopback(name: str) -> bool:
    address = _address(name)
    return address.is_loopback if address else name == "localhost" or name.endswith(".localhost")


def _address(name: str) -> ipaddress.IPv4Address | ipaddress.IPv6Address | None:
    try:
        return ipaddress.ip_address(name)
    except ValueError:
        return None


class Hosts:
    """The Host headers that are answered: loopback, and the address that is listened on. A server that listens on
    every address is reached by any literal address (which cannot be rebound), or by this machine's own name."""

    def __init__(self, bound: str) -> None:
        self._bound = name_in(f"[{bound}]" if ":" in bound else bound)
        self._everywhere = bound in WILDCARDS
        self._own = socket.gethostname().lower()

    def allow(self, host: str) -> bool:
        name = name_in(host)
        if not name:
            return False
        if self._everywhere and (_address(name) or name in (self._own, self._own.partition(".")[0])):
            return True
        return is_loopback(name) or name == self._bound


def security_headers(policy: str) -> list[tuple[str, str]]:
    """What a browser is told: run only what is in the page, show it in no frame, keep nothing."""
    return [
        ("Content-Security-Policy", policy),
        ("X-Content-Type-Options", "nosniff"),
        ("X-Frame-Options", "DENY"),
        ("Referrer-Policy", "no-referrer"),
        ("Cross-Origin-Resource-Policy", "same-origin"),
        ("Cross-Origin-Opener-Policy", "same-origin"),
        ("Cache-Control", "no-store"),
    ]
