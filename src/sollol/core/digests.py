"""One name, several digests: which version of a model the vectors of a pool come from.

Vectors of two versions of a model cannot be compared, although they have the same length. So embeddings use one
digest: the pinned one, else the one that most capacity has, and then the same one as long as a node has it. Chats use
every node, unless the settings say otherwise. What is decided here is reported in words, once for each state.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING

from sollol.core.messages import Notice

if TYPE_CHECKING:
    from sollol.core.lane import Lane
    from sollol.core.ledger import Ledger
    from sollol.core.market import Market

FOR_CHAT, FOR_EMBED = 1, 2  # what the digests of a market were checked for


def review(ledger: Ledger, market: Market, use: int) -> None:
    """Choose the digest of a model again, after its nodes or their versions have changed."""
    market.checked = use
    # In the order in which the nodes were added, whichever of them answered first.
    lanes = [lane for key in ledger.fleet.nodes if (lane := market.lanes.get(key)) is not None and lane.node.up]
    found = digests_of(lanes)
    one = use == FOR_EMBED or ledger.fleet.one_digest
    pinned = ledger.fleet.pinned.get(market.model, "")
    if pinned:
        market.digest = next((digest for digest in found if digest.startswith(pinned)), pinned)
    elif one and found and market.digest not in found:
        before, market.digest = market.digest, chosen(lanes)
        ledger.fleet.used[market.model] = market.digest
        if before:
            ledger.out.append(Notice(_gone(market, before)))
    market.mixed = len(found) > 1 or (bool(pinned) and any(digest != market.digest for digest in found))
    if market.mixed:
        told = _mixed(market, found, market.digest or chosen(lanes), ledger.fleet.one_digest)
        if told != market.told:
            ledger.out.append(Notice(told))
        market.told = told
    else:
        market.told = ""


def digests_of(lanes: Iterable[Lane]) -> dict[str, list[str]]:
    """Return the nodes by the digest that they have, in the order of the nodes. A node may tell none."""
    found: dict[str, list[str]] = {}
    for lane in lanes:
        if lane.digest:
            found.setdefault(lane.digest, []).append(lane.key)
    return found


def chosen(lanes: Iterable[Lane]) -> str:
    """Return the digest of most capacity: measured rates first, then the number of nodes; "" where none is told."""
    capacity: dict[str, list[float]] = {}
    for lane in lanes:
        if lane.digest:
            sums = capacity.setdefault(lane.digest, [0.0, 0.0])
            sums[0] += lane.work.read() or 0.0
            sums[1] += 1.0
    return max(capacity, key=lambda digest: capacity[digest], default="")


def short(digest: str) -> str:
    """Return a digest as `ollama list` shows it."""
    return digest[:12]


def _mixed(market: Market, found: dict[str, list[str]], digest: str, one: bool) -> str:
    versions = "; ".join(f"{short(each)} on {', '.join(nodes)}" for each, nodes in found.items())
    others = [node for each, nodes in found.items() if each != digest for node in nodes]
    use = "embeddings and chats use" if one else "embeddings use"
    rest = "" if one else ", chats use all"
    return (
        f"nodes have different versions of {market.model}: {versions}; {use} {short(digest)} only{rest}. "
        f"To make them alike, pull it on {', '.join(others)}"
    )


def _gone(market: Market, before: str) -> str:
    return (
        f"no node has {market.model} in version {short(before)} any more: embeddings use {short(market.digest)} from "
        "now on. Vectors of the two cannot be compared; embed again what was embedded before"
    )
