"""Check that an agent has our key before it gets it: it signs a number that we draw.

Any program may listen at the port of agents. A server that cannot sign never receives the key.
"""

from __future__ import annotations

import hashlib
import hmac
import re
import secrets
from typing import Final

import msgspec

from sollol.core.endpoint import Endpoint
from sollol.transport.base import Call, Timeouts, Transport

HELLO: Final = "/agent/hello"
PORT: Final = 11437  # of agents
NONCE: Final[re.Pattern[str]] = re.compile(r"[0-9a-f]{32}", re.ASCII)
_MOST: Final = 1024


class _Hello(msgspec.Struct):
    proof: str


def proof_of(key: str, nonce: str) -> str:
    """Return the signature of a nonce."""
    return hmac.new(key.encode(), f"sollol agent {nonce}".encode(), hashlib.sha256).hexdigest()


async def has_key(transport: Transport, agent: Endpoint, key: str, timeout_s: float) -> bool | None:
    """Check whether the server at an address has the key; None if it is no agent.

    Raises:
        TransportFault: It did not answer.
    """
    nonce = secrets.token_hex(16)
    timeouts = Timeouts(timeout_s, timeout_s, timeout_s)
    reply = await transport.send(agent, Call("GET", f"{HELLO}?nonce={nonce}", timeouts=timeouts, most=_MOST))
    body = await reply.read()
    try:
        sent = msgspec.json.decode(body, type=_Hello).proof if reply.status == 200 else None
    except (msgspec.DecodeError, UnicodeError):
        sent = None
    return None if sent is None else hmac.compare_digest(sent.encode(), proof_of(key, nonce).encode())
