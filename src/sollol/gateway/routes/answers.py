"""Define the bodies and answers of the gateway's own routes. `gateway.routes.openapi` describes the routes by them."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from msgspec import UNSET, Meta, Struct, UnsetType

from sollol.observe.rows import Count, Milliseconds, Moment, NodeStateRow, Position, Share

Name = Annotated[str, Meta(min_length=1)]

# --- bodies ---


class ModelBody(Struct):
    """Name a model and, for one node only, the node."""

    model: Name
    node: str | None = None


class FreeBody(Struct):
    """Name a node, and the bytes of memory that are to be free."""

    node: str
    bytes: Annotated[float, Meta(ge=1, multiple_of=1)]  # JSON writes 1 as 1.0, too


class PullBody(Struct):
    """Name a model, and nodes; null is all nodes."""

    model: Name
    nodes: list[str] | None = None


class SyncBody(Struct):
    """Choose between the changes and a list of them."""

    dry_run: bool = False


class ModeBody(Struct):
    """Name a routing mode; null is none."""

    mode: Literal["fast", "reliable", "async"] | None


# --- answers ---


class ErrorAnswer(Struct):
    """Report an error."""

    error: str


class Health(Struct):
    """Report that the gateway serves."""

    status: Literal["ok"]
    version: str
    instance: str


class Ready(Struct):
    """Report whether a node is up; `why`: the reason of each node that is not, or of the gateway."""

    status: Literal["ready", "not ready"]
    nodes_up: Count
    nodes: Count
    why: dict[str, str]


class Nodes(Struct):
    """List the nodes."""

    nodes: list[NodeStateRow]


class QueuePlace(Struct):
    """Report the place of a request in the queue."""

    id: Count
    state: Literal["waiting", "running", "done"]
    model: str
    position: Position | None
    eta_ms: Milliseconds | None
    queue_ms: Milliseconds | None


class Drained(Struct):
    """Report whether new work is kept away from a node."""

    node: str
    drained: bool


class Woken(Struct):
    """Report a node that was sent the packet that starts it."""

    node: str
    woken: bool


class Restarted(Struct):
    """Report the end of the command that restarts a node's server."""

    exit_code: int
    output: str


class Unloaded(Struct):
    """Report the nodes that unload a model."""

    model: str
    nodes: list[str]


class CancelledRequest(Struct):
    """Report a request that was cancelled."""

    id: Count
    cancelled: bool


class ModelOnNode(Struct):
    """Report a model on the disk of a node, and its place in memory."""

    model: str
    node: str
    size: Count
    digest: str
    format: str
    processor: str | None
    gpu_share: Share | None
    pinned: bool
    last_used: Moment | None


class Inventory(Struct):
    """List the models of all nodes; `down`: nodes without a list, and why."""

    models: list[ModelOnNode]
    down: dict[str, str]


class Kept(Struct):
    """Report the result of each node."""

    model: str
    status: str
    nodes: dict[str, str]


class Freed(Struct):
    """Report the freed bytes, the unloaded models, and why the others stayed."""

    node: str
    status: Literal["success", "partial"]
    freed: Count
    unloaded: list[str]
    kept: dict[str, str]


class ChangeRow(Struct):
    """Report a change of one model on one node, and its outcome."""

    verb: Literal["pull", "warm", "unpin", "unload"]
    model: str
    node: str
    reason: str
    outcome: str | UnsetType = UNSET


class Synced(Struct):
    """List the changes, and the wishes that no change can reach."""

    changes: list[ChangeRow]
    unmet: list[str]


class Document(Struct):
    """Hold an OpenAPI document."""

    openapi: str
    info: dict[str, Any]
    paths: dict[str, Any]
