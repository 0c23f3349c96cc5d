"""How long to listen into the silence. Pure.

The problem: a sweep of 254 addresses hears from a few, and nothing tells "nobody there" from "not yet". Waiting for
the whole `timeout` makes every start slow; leaving early loses nodes.

What a local network needs, measured from the last attempt sent:

- a wired neighbour accepts or refuses within 1 ms, the first time within 2 (ARP, then SYN);
- on Wi-Fi ARP is a broadcast, which the access point holds back until its next beacon (every 102 ms) when a station
  saves power, and 250 of them take some 100 ms of air at the basic rate; 100 to 200 ms is common for a first contact;
- what is lost is repeated by the system after 1 s, ARP and SYN alike. A second attempt of ours within that second
  would wait on the same pending ARP entry, so it would help nobody, and there is none.

So silence counts after 250 ms, or after three times the slowest answer so far where that is longer (a VPN, a busy
machine), and `timeout` bounds everything. Two cases are waited for to the end of `timeout`: a node that a person has
named, or that has already given a right answer; and a search that has found nothing at all, where patience is the only
thing left to try (with a `timeout` over a second the system's repetition counts).

`timeout` bounds a search on a machine with time. On a busy one the attempts may not even be sent by then, and nothing
would be found of what is there. So one pass over the nearest addresses, a /24, is always made and listened to, for
PASS_MOST_S beyond `timeout` at most.

Cost: a machine that slept through the first 250 ms is missed by this search. Name such a node in `SOLLOL_NODES`.
"""

from __future__ import annotations

from typing import NamedTuple

SILENCE_S = 0.25
SLOWEST_FACTOR = 3.0
PASS_MOST_S = 5.0  # beyond the deadline, for one pass over the nearest addresses on a busy machine


class Progress(NamedTuple):
    """A search at one moment. Times are the event loop's, in seconds."""

    unsent: bool = False
    """Addresses are left that were not tried yet."""
    listening: int = 0
    """Attempts and first questions without an answer."""
    held: int = 0
    """Nodes that are waited for in any case."""
    found: int = 0
    last_sent: float = 0.0
    slowest_s: float = 0.0
    pass_sent: float | None = 0.0
    """When the last of the nearest addresses was tried; None: they are not all tried yet."""
    likely_until: float = 0.0
    """Until then a swept node that has given a right answer may give the rest."""


def silence(slowest_s: float) -> float:
    """Seconds after which an attempt will not be answered any more."""
    return max(SILENCE_S, SLOWEST_FACTOR * slowest_s)


def stop_at(progress: Progress, deadline: float) -> float:
    """When to stop, if nothing changes until then."""
    most = deadline + PASS_MOST_S
    if progress.pass_sent is None:
        return most
    deadline = max(deadline, min(most, progress.pass_sent + SILENCE_S))
    if progress.held:
        return max(deadline, min(most, progress.likely_until))
    if progress.unsent:
        return deadline
    if not progress.listening:
        return 0.0  # everybody has answered
    if not progress.found:
        return deadline
    return min(deadline, progress.last_sent + silence(progress.slowest_s))
