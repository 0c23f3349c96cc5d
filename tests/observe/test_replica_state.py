"""What each model of a node does, and by what that is known."""

from __future__ import annotations

from typing import Any

import pytest

from sollol.core.endpoint import Endpoint
from sollol.core.events import NodeAdded, NodeSeen, Submitted
from sollol.core.types import Kind, LoadedModel, NodeFacts, Task
from sollol.observe.replica_state import replica_states
from sollol.observe.rows import ReplicaRow
from tests.core.virtual import MODEL, VirtualCluster

AT = 1_796_000_000.0  # 2026-11-30T00:53:20Z
LATER, EARLIER, LONG_AGO = "2026-11-30T01:40:00Z", "2026-11-30T00:53:10Z", "2026-11-30T00:00:00Z"


def states(held: LoadedModel | None, **more: Any) -> list[ReplicaRow]:
    cluster = VirtualCluster()
    cluster.feed(NodeAdded(Endpoint("n")))
    loaded = {MODEL: held} if held is not None else {}
    cluster.feed(NodeSeen("n:11434", NodeFacts("0.33", {MODEL: 10}, loaded, {MODEL: "a"})))
    cluster.feed(Submitted(Task(1, Kind.CHAT, MODEL, 10)))
    node = cluster.scheduler.view().nodes["n:11434"]
    replica = node.replicas[MODEL]
    if held is not None:
        replica.attempts.clear()
    for name, value in more.items():
        setattr(replica, name, value)
    return replica_states(node, cluster.now, AT)


@pytest.mark.parametrize(
    ("held", "state", "source"),
    [
        (None, "loading", "our loads"),
        (LoadedModel(10, 10, LATER), "gpu", "/api/ps"),
        (LoadedModel(10, 4, LATER), "part", "/api/ps"),
        (LoadedModel(10, 0, LATER), "cpu", "/api/ps"),
        (LoadedModel(0, 0, LATER), "loaded", "/api/ps"),
        (LoadedModel(10, 10, EARLIER), "stopping", "/api/ps"),
        (LoadedModel(10, 10, LONG_AGO), "stuck", "/api/ps"),
        (LoadedModel(10, 10, "soon"), "gpu", "/api/ps"),
    ],
)
def test_each_state_has_its_source(held: LoadedModel | None, state: str, source: str) -> None:
    (row,) = states(held)
    assert (row.model, row.state, row.source) == (MODEL, state, source)


def test_timings_contradict_the_list() -> None:
    (row,) = states(LoadedModel(10, 10, LATER), demoted_us=1, rate_before=100e-6)
    assert (row.state, row.source, row.why) == ("slow", "timings", "it wrote 100.0 tokens/s before")
