"""What proves that a model runs on a GPU: lists, timings and agents, each with its source."""

from __future__ import annotations

import pytest

from sollol.core.actions import Load
from sollol.core.events import GpuReported, LoadEnded, NodeSeen
from sollol.core.types import SECOND, LoadedModel, NodeFacts, Outcome, Status
from tests.core.virtual import MODEL, Started, VirtualCluster

GB = 10**9
SIZE = 8 * GB


def cluster(loaded: LoadedModel | None, *, before: int = 0) -> VirtualCluster:
    """Return a scheduler with one node; `before`: bytes of the largest model that its GPU has held."""
    found = VirtualCluster()
    found.add("a", models={MODEL: SIZE})
    if before:
        see(found, LoadedModel(before, before))
    see(found, loaded)
    found.scheduler._state.group(MODEL, found.now)
    return found


def see(found: VirtualCluster, loaded: LoadedModel | None) -> None:
    found.feed(NodeSeen("a:11434", NodeFacts("0.33", {MODEL: SIZE}, {} if loaded is None else {MODEL: loaded})))


def evidence(found: VirtualCluster) -> tuple[bool | None, str]:
    return found.scheduler.view().nodes["a:11434"].replicas[MODEL].gpu_evidence()[:2]


@pytest.mark.parametrize(
    ("loaded", "before", "expected"),
    [
        (LoadedModel(SIZE, SIZE), 0, (True, "/api/ps")),
        (LoadedModel(SIZE, SIZE // 10), 0, (False, "/api/ps")),
        (LoadedModel(SIZE, SIZE * 99 // 100), 0, (False, "/api/ps")),
        (LoadedModel(SIZE, 0), SIZE, (False, "/api/ps")),
        (LoadedModel(), 0, (None, "")),
        (None, 0, (None, "")),
        (None, SIZE, (True, "/api/ps")),
        (None, SIZE - 1, (None, "")),
    ],
)
def test_the_list_proves_a_whole_model(
    loaded: LoadedModel | None, before: int, expected: tuple[bool | None, str]
) -> None:
    assert evidence(cluster(loaded, before=before)) == expected


@pytest.mark.parametrize(
    ("total", "free", "before", "expected"),
    [
        (0, None, 0, (False, "agent")),
        (4 * GB, 4 * GB, 0, (False, "agent")),
        (24 * GB, 20 * GB, 0, (None, "")),
        (24 * GB, 20 * GB, SIZE, (True, "/api/ps")),
        (24 * GB, 2 * GB, SIZE, (None, "agent")),
        (24 * GB, None, SIZE, (True, "/api/ps")),
        (None, None, SIZE, (True, "/api/ps")),
    ],
)
def test_an_agent_disproves_and_never_proves(
    total: int | None, free: int | None, before: int, expected: tuple[bool | None, str]
) -> None:
    found = cluster(None, before=before)
    found.feed(GpuReported("a:11434", total, free))
    assert evidence(found) == expected


def test_the_list_goes_before_the_agent() -> None:
    found = cluster(LoadedModel(SIZE, SIZE))
    found.feed(GpuReported("a:11434", 0, None))
    assert evidence(found) == (True, "/api/ps")


def test_a_game_on_the_gpu_makes_a_load_come_first() -> None:
    found = cluster(None, before=SIZE)
    found.feed(GpuReported("a:11434", 24 * GB, 2 * GB))
    task = found.submit(gpu=True)
    (load,) = [action for action in found.actions if isinstance(action, Load)]
    see(found, LoadedModel(SIZE, SIZE // 4))
    found.now += SECOND
    found.feed(LoadEnded(load.node, load.model, Outcome(Status.OK)))
    see(found, LoadedModel(SIZE, SIZE // 4))
    assert found.completed[task].outcome.status is Status.NO_NODE
    (reason,) = [why for _, why in found.completed[task].tried]
    assert reason == f"a GPU is required for all of {MODEL}: it runs on 75%/25% CPU/GPU (by /api/ps)"


def test_the_game_is_over_and_the_call_goes_at_once() -> None:
    found = cluster(None, before=SIZE)
    found.feed(GpuReported("a:11434", 24 * GB, 2 * GB))
    found.feed(GpuReported("a:11434", 24 * GB, 20 * GB))
    task = found.submit(gpu=True)
    assert Started(task, "a") in found.seen
