"""Messages for calls without an answer: one line each, with the node and the cause."""

from __future__ import annotations

import errno
import socket
import ssl

from sollol.transport.base import Fault, TransportFault


def refused(url: str, error: Exception) -> TransportFault:
    """Return the fault of a failed connection attempt."""
    if _is_ours(error):
        return TransportFault(
            Fault.LOCAL,
            f"{url} was not called: this process has no file descriptor left ({_one_line(error)}); raise `ulimit -n`",
        )
    return TransportFault(Fault.CONNECT, f"{url} {_why_no_connection(error)}")


def connect_timeout(url: str, within_s: float | None) -> TransportFault:
    """Return the fault of a connection that was not accepted in time."""
    return TransportFault(Fault.CONNECT_TIMEOUT, f"{url} did not accept a connection {_within(within_s)}")


def name_timeout(url: str, host: str, within_s: float | None) -> TransportFault:
    """Return the fault of a name that was not resolved in time."""
    why = f"the name {host} was not resolved {_within(within_s)} (the look-up goes on)"
    return TransportFault(Fault.CONNECT_TIMEOUT, f"{url} cannot be reached: {why}")


def first_byte_timeout(url: str, within_s: float | None) -> TransportFault:
    """Return the fault of an answer that did not begin in time."""
    return TransportFault(Fault.FIRST_BYTE_TIMEOUT, f"{url} did not begin to answer {_within(within_s)}")


def idle_timeout(url: str, idle_s: float | None) -> TransportFault:
    """Return the fault of a node that fell silent inside its answer."""
    return TransportFault(Fault.IDLE_TIMEOUT, f"{url} sent nothing {_within(idle_s)} inside its answer")


def upload_timeout(url: str, idle_s: float | None) -> TransportFault:
    """Return the fault of a node that stopped reading the request."""
    return TransportFault(Fault.IDLE_TIMEOUT, f"{url} took nothing of the request {_within(idle_s)}")


def cut(url: str, body_bytes: int | None, error: Exception | None) -> TransportFault:
    """Return the fault of a closed connection. `body_bytes`: received bytes of the body, None before the head."""
    verb = "closed" if error is None else "broke"
    where = "before it answered" if body_bytes is None else f"inside its answer, after {body_bytes} bytes of body"
    why = f" ({_one_line(error)})" if error is not None else ""
    return TransportFault(Fault.CUT, f"{url} {verb} the connection {where}{why}")


def closed_here(url: str) -> TransportFault:
    """Return the fault of a reply that this side closed before its end."""
    return TransportFault(Fault.CUT, f"{url}: the connection was closed from this side before the answer ended")


def not_http(url: str, error: Exception) -> TransportFault:
    """Return the fault of bytes that are not HTTP."""
    return TransportFault(Fault.PROTOCOL, f"{url} sent bytes that are not HTTP: {_one_line(error)}")


def encoded(url: str, coding: bytes) -> TransportFault:
    """Return the fault of a body that is compressed although no compression was accepted."""
    name = coding[:40].decode("latin-1").strip() or "an encoding without a name"
    why = "expected no content encoding: turn off compression in the proxy in front of it"
    return TransportFault(Fault.PROTOCOL, f"{url} answers in {name}; {why}")


def bad_status(url: str, status: int) -> TransportFault:
    """Return the fault of a status below 200 that is no interim one."""
    return TransportFault(Fault.PROTOCOL, f"{url} answered with status {status:03d}; expected 200 to 599")


def head_too_large(url: str, bound: int) -> TransportFault:
    """Return the fault of a head over the limit in bytes."""
    return TransportFault(Fault.TOO_LARGE, f"{url} sent a head of over {bound} bytes")


def body_too_large(url: str, bound: int) -> TransportFault:
    """Return the fault of a body over the limit in bytes."""
    return TransportFault(Fault.TOO_LARGE, f"{url} sent a body of over {bound} bytes")


def too_blank(url: str, bound: int) -> TransportFault:
    """Return the fault of a complete answer with more white space in a row than the limit in bytes."""
    return TransportFault(Fault.PROTOCOL, f"{url} sent over {bound} bytes of white space in a row")


def not_json(url: str, bound: int) -> TransportFault:
    """Return the fault of a complete answer that does not begin as JSON, and is over the limit in bytes."""
    return TransportFault(Fault.TOO_LARGE, f"{url} sent over {bound} bytes that are not JSON; is it an Ollama server?")


def handler_failed(url: str, error: Exception) -> TransportFault:
    """Return the fault of an exception in the receiver of an answer."""
    return TransportFault(Fault.PROTOCOL, f"processing the answer of {url} failed ({type(error).__name__})")


def _is_ours(error: Exception) -> bool:
    """Check whether this process, or its machine, is out of file descriptors. Several errors come as one text."""
    numbers = (errno.EMFILE, errno.ENFILE)
    return isinstance(error, OSError) and (
        error.errno in numbers or any(f"[Errno {number}]" in str(error) for number in numbers)
    )


def _why_no_connection(error: Exception) -> str:
    if isinstance(error, ssl.SSLCertVerificationError):
        return f"has a certificate that is not trusted: {error.verify_message or _one_line(error)}"
    if isinstance(error, ssl.SSLError):
        return f"failed the TLS handshake: {error.reason or _one_line(error)}"
    if isinstance(error, socket.gaierror | UnicodeError):
        return f"has a name that cannot be resolved: {_one_line(error)}"
    # Several addresses that all refuse come as one OSError without a number.
    if isinstance(error, ConnectionRefusedError) or f"[Errno {errno.ECONNREFUSED}]" in str(error):
        return "refused the connection"
    return f"cannot be reached: {_one_line(error)}"


def _within(seconds: float | None) -> str:
    return f"within {seconds:g} s" if seconds is not None else "in the time that the system allows"


def _one_line(error: BaseException) -> str:
    return " ".join(str(error).split()) or type(error).__name__
