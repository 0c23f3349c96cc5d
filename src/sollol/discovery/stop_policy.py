"""Decide when a search stops listening. Pure.

A sweep of 254 addresses gets few answers, and an absent machine looks like a slow one. Waiting for the whole `timeout`
makes every start slow; stopping early loses nodes.

Times of a local network, measured from the last attempt:

- a wired neighbour accepts or refuses within 1 ms, the first time within 2 (ARP, then SYN);
- on Wi-Fi ARP is a broadcast. The access point holds it back until its next beacon (every 102 ms) when a station saves
  power, and 250 of them take some 100 ms of air at the basic rate; 100 to 200 ms is common for a first contact;
- the system repeats lost packets after 1 s, ARP and SYN alike. A second attempt within that second would wait on the
  same pending ARP entry, so there is none.

So the search stops after 250 ms of silence, or three times the slowest answer if that is longer (a VPN, a busy
machine). `timeout` is the limit. Two cases use it up: a node from the settings, or one that answered the first query;
and a search without any result (with a `timeout` over a second the system's repetition counts).

On a busy machine the attempts may not be sent within `timeout`, and no node would be found. So one pass over the
nearest addresses, a /24, is always made, for PASS_MOST_S beyond `timeout` at most.

Known limit: a machine that slept through the first 250 ms is missed. Name such a node in `SOLLOL_NODES`.
"""

from __future__ import annotations

from typing import NamedTuple

SILENCE_S = 0.25
SLOWEST_FACTOR = 3.0
PASS_MOST_S = 5.0  # beyond the deadline, for one pass over the nearest addresses on a busy machine


class SearchProgress(NamedTuple):
    """State of a search at one moment. Times are the event loop's, in seconds."""

    unsent: bool = False
    """Some addresses were not tried yet."""
    listening: int = 0
    """Attempts and first queries without an answer."""
    held: int = 0
    """Nodes for which the search waits until its deadline."""
    found: int = 0
    last_sent: float = 0.0
    slowest_s: float = 0.0
    pass_sent: float | None = 0.0
    """Time at which the last of the nearest addresses was tried; None before that."""
    likely_until: float = 0.0
    """Time limit for a swept node that answered the first query."""


def silence(slowest_s: float) -> float:
    """Return the seconds after which an attempt is given up."""
    return max(SILENCE_S, SLOWEST_FACTOR * slowest_s)


def stop_at(progress: SearchProgress, deadline: float) -> float:
    """Return the time to stop if nothing changes until then."""
    most = deadline + PASS_MOST_S
    if progress.pass_sent is None:
        return most
    deadline = max(deadline, min(most, progress.pass_sent + SILENCE_S))
    if progress.held:
        return max(deadline, min(most, progress.likely_until))
    if progress.unsent:
        return deadline
    if not progress.listening:
        return 0.0  # all attempts were answered
    if not progress.found:
        return deadline
    return min(deadline, progress.last_sent + silence(progress.slowest_s))
