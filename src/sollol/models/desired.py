"""Compare the models that the nodes have with those that the file names, and return the changes. Pure.

The table `[models."llama3.2"]` names the copies of a model, the nodes that may have them, and whether they stay in
memory. A model that the file does not name is left alone, and nothing is ever deleted from a disk. The same input
gives the same plan, and the plan of a cluster that has what the file names is empty.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Annotated, Final, Literal, NamedTuple

import msgspec

from sollol.core.endpoint import parse_endpoint
from sollol.core.types import canonical_model
from sollol.errors import BadInput
from sollol.models.inventory import NodeInventory, StoredModel, is_pinned

Verb = Literal["pull", "warm", "unpin", "unload"]
NEEDS_MLX: Final = "safetensors"  # the format of models that only nodes with MLX can run
NO_ROOM_KNOWN: Final = "the room on its disk is unknown, since Ollama's API does not report it"


class DesiredModel(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """The table of one model.

    Attributes:
        replicas: Nodes that have it on disk; by default all of `nodes`, or one. 0: in the memory of no node.
        pin: Keep it in memory on these nodes.
        nodes: The nodes that may have it, as `host` or `host:port`; by default all.
    """

    replicas: Annotated[int, msgspec.Meta(ge=0, le=10_000)] | None = None
    pin: bool = False
    nodes: tuple[Annotated[str, msgspec.Meta(min_length=1)], ...] = ()

    def __post_init__(self) -> None:
        if self.pin and self.replicas == 0:
            raise ValueError(
                "Expected pin = true only with replicas of 1 or more, since 0 keeps the model out of the memory"
            )


class Change(NamedTuple):
    """One change of one model on one node, with its reason."""

    verb: Verb
    model: str
    node: str
    reason: str


class ModelPlan(NamedTuple):
    """Changes in the order in which they are made, and the wishes that no change can reach, in words."""

    changes: tuple[Change, ...] = ()
    unmet: tuple[str, ...] = ()


def plan(desired: Mapping[str, DesiredModel], observed: Sequence[NodeInventory]) -> ModelPlan:
    """Return the changes after which the nodes have the desired models."""
    changes: list[Change] = []
    unmet: list[str] = []
    for name, table in sorted(desired.items()):
        model = canonical_model(name)
        if table.replicas == 0:
            changes += _emptied(model, observed)
            continue
        allowed, unknown = _allowed(table.nodes, observed)
        unmet += [f"{model}: {node!r} is not a node here" for node in unknown]
        wanted = table.replicas if table.replicas is not None else max(1, len(table.nodes))
        chosen, refused = _chosen(model, wanted, allowed, observed, named=bool(table.nodes))
        unmet += refused
        if len(chosen) < wanted:
            unmet.append(f"{model}: {wanted} replicas are named, and {len(chosen)} nodes can have it now")
        changes += _pulls(model, wanted, chosen, observed)
        changes += _pins(model, table.pin, chosen, observed)
    order = ("unload", "unpin", "pull", "warm")  # room is made first
    return ModelPlan(tuple(sorted(changes, key=lambda change: order.index(change.verb))), tuple(unmet))


def _emptied(model: str, observed: Sequence[NodeInventory]) -> list[Change]:
    return [
        Change("unload", model, node.key, "replicas = 0, and it is in memory")
        for node in observed
        if model in node.loaded
    ]


def _allowed(names: Sequence[str], observed: Sequence[NodeInventory]) -> tuple[list[NodeInventory], list[str]]:
    """Return the nodes of these names, all for none, and the names of no node."""
    if not names:
        return list(observed), []
    found = {name: [node for node in observed if _is_called(node, name)] for name in names}
    keys = {node.key for nodes in found.values() for node in nodes}
    return [node for node in observed if node.key in keys], [name for name, nodes in found.items() if not nodes]


def _is_called(node: NodeInventory, name: str) -> bool:
    if name in (node.key, node.node.host):
        return True
    try:
        return parse_endpoint(name).key == node.key
    except BadInput:
        return False


def _chosen(
    model: str, wanted: int, allowed: Sequence[NodeInventory], observed: Sequence[NodeInventory], *, named: bool
) -> tuple[list[NodeInventory], list[str]]:
    """Return the nodes that are to have a model, and the reasons why others cannot.

    Nodes that have it come first, among them those that hold it in memory; then the nodes with the fewest bytes.
    """
    known = stored_somewhere(model, observed)
    refused, fitting = [], []
    for node in allowed:
        if not node.is_up and model not in node.stored:
            continue
        why = "" if model in node.stored else unfit(known, node, named=named)
        if why:
            refused.append(f"{model}: not on {node.key}: {why}")
        else:
            fitting.append(node)
    fitting.sort(
        key=lambda node: (
            model not in node.stored,
            not node.is_up,  # one that sleeps has its copy
            not is_pinned(node.loaded.get(model)),  # so that the next plan chooses the same
            model not in node.loaded,
            _bytes_on(node),
            node.key,
        )
    )
    chosen = fitting[:wanted]
    return chosen, refused if len(chosen) < wanted else []


def stored_somewhere(model: str, observed: Sequence[NodeInventory]) -> StoredModel | None:
    """Return a model as the first node lists it, None if no node has it."""
    return next((node.stored[model] for node in observed if model in node.stored), None)


def unfit(model: StoredModel | None, node: NodeInventory, *, named: bool) -> str:
    """Return why a node cannot have a model, "" if nothing is known against it.

    Args:
        model: The model as another node lists it, None if no node has it.
        node: The node.
        named: The user has named the node for this model.
    """
    if model is None:
        return ""
    if model.format == NEEDS_MLX and not named and not any(s.format == NEEDS_MLX for s in node.stored.values()):
        return "the model needs MLX, which no model on the node proves; name the node in `nodes` if it has MLX"
    if node.free_bytes is not None and node.free_bytes < model.size:
        return f"it needs {model.size:,} bytes, and {node.free_bytes:,} are free on its disk"
    return ""


def _bytes_on(node: NodeInventory) -> int:
    return sum(model.size for model in node.stored.values())


def _pulls(model: str, wanted: int, chosen: Sequence[NodeInventory], observed: Sequence[NodeInventory]) -> list[Change]:
    have = sum(model in node.stored for node in observed)
    found = []
    for node in chosen:
        if model not in node.stored:
            room = "" if node.free_bytes is not None else f"; {NO_ROOM_KNOWN}"
            found.append(Change("pull", model, node.key, f"{have} of {wanted} nodes have it{room}"))
    return found


def _pins(model: str, pin: bool, chosen: Sequence[NodeInventory], observed: Sequence[NodeInventory]) -> list[Change]:
    keys = {node.key for node in chosen} if pin else set()
    found = []
    for node in observed:
        if not node.is_up:
            continue
        loaded = node.loaded.get(model)
        if node.key in keys and not is_pinned(loaded):
            what = "it is in memory for a time only" if loaded is not None else "it is not in memory"
            found.append(Change("warm", model, node.key, f"pin = true, and {what}"))
        elif node.key not in keys and is_pinned(loaded):
            why = "the file names other nodes" if pin else "pin = false"
            found.append(Change("unpin", model, node.key, f"{why}, and it stays in memory here"))
    return found
