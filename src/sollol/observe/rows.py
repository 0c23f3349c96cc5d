"""Define the rows of snapshots, statistics and explanations. OpenAPI describes the gateway's answers by them.

A pool returns them as plain dicts (`pool.snapshot()`), the gateway and the dashboard as JSON. The order of the fields
is that of the JSON.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal, TypedDict

from msgspec import UNSET, Meta, Struct, UnsetType

Count = Annotated[int, Meta(ge=0)]
Position = Annotated[int, Meta(ge=1)]
Milliseconds = Annotated[float, Meta(description="milliseconds")]
Moment = Annotated[float, Meta(description="seconds since 1970")]
Share = Annotated[float, Meta(ge=0, le=1)]
NodeState = Literal["up", "down", "unknown", "asleep", "waking"]


class Calibration(Struct, frozen=True):
    """Report actual divided by predicted time of answered requests."""

    median: float | None = None
    p90: float | None = None
    count: Count = 0


class MixedDigest(Struct):
    """Report a model with several versions: the one of embeddings, and version -> nodes."""

    embeddings_use: str
    nodes: dict[str, list[str]]


class LoadedRow(Struct):
    """Report a model in memory."""

    model: str
    size: Count
    size_vram: Count
    expires_at: str
    context_length: Count
    runners: Count
    processor: str


class LoadingRow(Struct):
    """Report a model that is being loaded; progress and end are None where they are not known."""

    model: str
    state: Literal["loading", "stuck"]
    elapsed_ms: Milliseconds
    predicted_ms: Milliseconds
    progress: Share | None
    eta_ms: Milliseconds | None


class ReplicaRow(Struct):
    """Report the state of a model on a node, and the source of this knowledge."""

    model: str
    state: str
    source: str
    why: str
    tokens_per_s: float | None


class NodeStatistics(Struct):
    """Report the work of a node."""

    host: str
    latency_ms: Milliseconds = 0.0
    success_rate: Share = 1.0
    total_requests: Count = 0
    failed_requests: Count = 0
    available: bool = True
    state: NodeState = "unknown"
    active_requests: Count = 0
    batch_throughput: Annotated[float, Meta(description="texts embedded per second")] = 0
    items: Count = 0
    loaded_models: list[str] = []
    unable: list[str] = []
    slots: dict[str, Count] = {}


class NodeStateRow(NodeStatistics):
    """Report a node with its models."""

    url: str = ""
    why: str = ""
    version: str = ""
    models: list[str] = []
    loaded: list[LoadedRow] = []
    loading: list[LoadingRow] = []
    replicas: list[ReplicaRow] = []
    since: Moment | None = None
    has_gpu: bool | None = None
    drained: bool = False
    drained_for: list[str] = []
    breakers: list[str] = []


class TaskRow(Struct):
    """Report a request."""

    id: Count
    kind: Literal["chat", "generate", "embed"]
    model: str
    app: str
    priority: Annotated[int, Meta(ge=0, le=10)]


class WaitingRow(TaskRow):
    """Report a request that waits."""

    waited_ms: Milliseconds
    position: Position
    eta_ms: Milliseconds


class RunningRow(TaskRow):
    """Report an attempt that runs."""

    attempt: Count
    node: str
    phase: Literal["load", "prefill", "decode", "embed"]
    cause: str
    predicted_ms: Milliseconds
    elapsed_ms: Milliseconds
    queue_ms: Milliseconds
    reason: str
    items: Count


class AttemptRow(Struct):
    """Report an attempt that has ended."""

    node: str
    cause: str
    outcome: str
    error: str
    started_ms: Milliseconds
    ms: Milliseconds
    predicted_ms: Milliseconds


class FinishedRow(Struct):
    """Report a request that has ended."""

    id: Count
    kind: str
    model: str
    app: str
    node: str
    outcome: str
    predicted_ms: Milliseconds
    actual_ms: Milliseconds
    queue_ms: Milliseconds
    attempts: Count
    reason: str
    error: str
    task_type: str
    priority: Annotated[int, Meta(ge=0, le=10)]
    at: Moment
    total_ms: Milliseconds
    first_token_ms: Milliseconds | None
    load_ms: Milliseconds
    prefill_ms: Milliseconds
    decode_ms: Milliseconds
    tokens_in: Count
    tokens_out: Count
    items: Count
    tries: list[AttemptRow]


class CallTotals(Struct):
    """Report the finished requests of a pool; `faults` are unexpected errors of SOLLOL itself."""

    total_requests: Count = 0
    successful_requests: Count = 0
    failed_requests: Count = 0
    faults: Count = 0


class Snapshot(Struct):
    """Report nodes, waiting and running requests, and the last finished ones."""

    app_name: str
    version: str
    routing_mode: str | None
    routing_strategy: str
    totals: CallTotals
    nodes: list[NodeStateRow]
    waiting: list[WaitingRow] = []
    running: list[RunningRow] = []
    recent: list[FinishedRow] = []
    calibration: Calibration = Calibration()
    mixed_digests: dict[str, MixedDigest] = {}
    notices: list[str] = []
    watching: bool | UnsetType = UNSET  # nodes without a pool, so their requests are not seen


class PoolStatistics(Struct):
    """Report the counts of a pool, and the work of each node by "host:port"."""

    total_requests: Count
    successful_requests: Count
    failed_requests: Count
    nodes_used: dict[str, Count]
    nodes: list[str]
    waiting: Count
    running: Count
    calibration: Calibration
    mixed_digests: dict[str, MixedDigest]
    notices: list[str]
    node_performance: dict[str, NodeStatistics]


# --- explanations ---


class CandidateRow(TypedDict):
    """A considered node with the terms of its prediction."""

    node: str
    finish_ms: Milliseconds
    terms: dict[str, Milliseconds]


class RefusalRow(Struct):
    """Report a node that failed, and its error."""

    node: str
    why: str


class OpenAttemptRow(Struct):
    """Report a running attempt with the nodes that were compared."""

    node: str
    reason: str
    predicted_ms: Milliseconds
    elapsed_ms: Milliseconds
    candidates: list[CandidateRow]


class BatchProgress(Struct):
    """Report the items of a batch by their state."""

    waiting: Count
    running: Count
    answered: Count
    failed: Count


class OpenExplanation(TaskRow):
    """Explain a request that waits or runs."""

    state: Literal["waiting", "running"]
    task_type: str
    queue_ms: Milliseconds
    tried: list[RefusalRow]
    running: list[OpenAttemptRow]
    items: BatchProgress | UnsetType = UNSET
    position: Position | UnsetType = UNSET
    eta_ms: Milliseconds | UnsetType = UNSET


class RoutingRecord(TypedDict):
    """The routing of a finished request, as its answer carries it (`r.routing`)."""

    id: Count
    node: str
    reasons: list[str]
    predicted_ms: Milliseconds
    actual_ms: Milliseconds
    queue_ms: Milliseconds
    attempts: Count
    tried: list[dict[str, Any]]
    candidates: list[CandidateRow]
    task_type: str
