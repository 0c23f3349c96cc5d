"""Choose the version of a model for embeddings: one name may stand for several digests.

Vectors of two versions cannot be compared, although they have the same length. So embeddings use one digest: the pinned
one, else the one with the most capacity, and then the same one as long as a node has it. Chats use every node, unless
the settings differ. Each state is reported once.
"""

from __future__ import annotations

from collections.abc import Iterable

from sollol.core.actions import DigestChosen, Notice
from sollol.core.state.model_settings import short
from sollol.core.state.replica import ModelReplicas, Replica, chosen
from sollol.core.state.scheduler_state import SchedulerState

FOR_CHAT, FOR_EMBED = 1, 2  # use for which the digests of a model were checked


def review(state: SchedulerState, group: ModelReplicas, use: int) -> None:
    """Choose the digest of a model again, after its nodes or their versions have changed."""
    group.checked = use
    # In the order in which the nodes were added, whichever of them answered first.
    replicas = [
        replica for key in state.cluster.nodes if (replica := group.replicas.get(key)) is not None and replica.node.up
    ]
    found = digests_of(replicas)
    one = use == FOR_EMBED or state.cluster.one_digest
    pinned = state.cluster.pinned.get(group.model, "")
    if pinned:
        group.digest = next((digest for digest in found if digest.startswith(pinned)), pinned)
    elif one and found and group.digest not in found:
        before, group.digest = group.digest, chosen(replicas)
        state.cluster.used[group.model] = group.digest
        state.out.append(DigestChosen(group.model, group.digest))
        if before:
            state.out.append(Notice(_gone(group, before)))
    group.mixed = len(found) > 1 or (bool(pinned) and any(digest != group.digest for digest in found))
    if group.mixed:
        notice = _mixed(group, found, group.digest or chosen(replicas), state.cluster.one_digest)
        if notice != group.notice:
            state.out.append(Notice(notice))
        group.notice = notice
    else:
        group.notice = ""


def digests_of(replicas: Iterable[Replica]) -> dict[str, list[str]]:
    """Return the nodes of each digest, in the order of the nodes."""
    found: dict[str, list[str]] = {}
    for replica in replicas:
        if replica.digest:
            found.setdefault(replica.digest, []).append(replica.key)
    return found


def _mixed(group: ModelReplicas, found: dict[str, list[str]], digest: str, one: bool) -> str:
    versions = "; ".join(f"{short(each)} on {', '.join(nodes)}" for each, nodes in found.items())
    others = [node for each, nodes in found.items() if each != digest for node in nodes]
    use = "embeddings and chats use" if one else "embeddings use"
    others_use = "" if one else ", chats use all"
    return (
        f"nodes have different versions of {group.model}: {versions}; {use} {short(digest)} only{others_use}. "
        f"To make them alike, pull it on {', '.join(others)}"
    )


def _gone(group: ModelReplicas, before: str) -> str:
    return (
        f"no node has {group.model} in version {short(before)} any more: embeddings use {short(group.digest)} from "
        "now on. Vectors of the two cannot be compared; embed again what was embedded before"
    )
