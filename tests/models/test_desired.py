"""The plan of models: what the file names against what the nodes have."""

from __future__ import annotations

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from sollol.core.endpoint import Endpoint
from sollol.core.types import LoadedModel
from sollol.models.changes import HeldModel, choose_unloads
from sollol.models.desired import Change, DesiredModel, plan
from sollol.models.inventory import NodeInventory, StoredModel, is_pinned

A, B = "a:latest", "b:latest"
FOREVER, SOON = "2318-12-03T06:20:28Z", "2026-12-03T06:20:28Z"


def node(name: str, stored: str = "", pinned: str = "", warm: str = "", **more: object) -> NodeInventory:
    disk = {f"{each}:latest": StoredModel(10, "d", "gguf") for each in stored}
    memory = {f"{each}:latest": LoadedModel(10, 10, FOREVER) for each in pinned}
    memory |= {f"{each}:latest": LoadedModel(10, 10, SOON) for each in warm}
    return NodeInventory(Endpoint(name), disk, memory)._replace(**more)  # type: ignore[arg-type]


def verbs(changes: tuple[Change, ...]) -> list[tuple[str, str, str]]:
    return [(change.verb, change.model[0], change.node.split(":")[0]) for change in changes]


def test_what_is_there_stays_and_what_lacks_is_pulled_to_the_emptiest_node() -> None:
    found = plan({"a": DesiredModel(replicas=2)}, [node("x", "bc"), node("y", "a"), node("z", "b")])
    assert verbs(found.changes) == [("pull", "a", "z")]
    assert "1 of 2 nodes have it" in found.changes[0].reason
    assert "the room on its disk is unknown" in found.changes[0].reason
    assert found.unmet == ()


def test_models_that_the_file_does_not_name_are_left_alone() -> None:
    assert plan({"a": DesiredModel()}, [node("x", "ab", pinned="b", warm="a")]).changes == ()
    assert plan({}, [node("x", "ab", pinned="ab")]).changes == ()


def test_a_pin_loads_and_its_end_releases() -> None:
    nodes = [node("x", "a"), node("y", "a", warm="a"), node("z", "a", pinned="a")]
    found = plan({"a": DesiredModel(pin=True, nodes=("x", "y:11434"))}, nodes)
    assert verbs(found.changes) == [("unpin", "a", "z"), ("warm", "a", "x"), ("warm", "a", "y")]
    assert [change.reason.split(", and ")[1] for change in found.changes] == [
        "it stays in memory here",
        "it is not in memory",
        "it is in memory for a time only",
    ]
    assert verbs(plan({"a": DesiredModel(replicas=3)}, nodes).changes) == [("unpin", "a", "z")]


def test_no_replicas_means_out_of_memory_and_not_off_the_disk() -> None:
    found = plan({"a": DesiredModel(replicas=0)}, [node("x", "a", warm="a"), node("y", "a")])
    assert verbs(found.changes) == [("unload", "a", "x")]


def test_what_cannot_be_reached_is_named() -> None:
    nodes = [node("x", "b"), node("y", why="refused the connection")]
    found = plan({"a": DesiredModel(replicas=3, nodes=("x", "y", "nowhere"))}, nodes)
    assert verbs(found.changes) == [("pull", "a", "x")]
    assert found.unmet == (
        "a:latest: 'nowhere' is not a node here",
        "a:latest: 3 replicas are named, and 1 nodes can have it now",
    )


def test_a_node_that_sleeps_has_its_copy_and_is_not_woken() -> None:
    asleep = node("x", "a")._replace(why="it sleeps")
    found = plan({"a": DesiredModel(replicas=2, pin=True)}, [asleep, node("y", "a"), node("z")])
    assert verbs(found.changes) == [("warm", "a", "y")]
    assert found.unmet == ()
    one = plan({"a": DesiredModel(replicas=1, pin=True)}, [asleep, node("y", "a")])
    assert verbs(one.changes) == [("warm", "a", "y")], "one that is up comes first"


def test_a_safetensors_model_goes_only_where_mlx_is_proven_or_named() -> None:
    mac = node("mac")._replace(stored={A: StoredModel(10, "d", "safetensors")})
    other_mac = node("mac2")._replace(stored={B: StoredModel(10, "d", "safetensors")})
    pc = node("pc", "b")
    found = plan({"a": DesiredModel(replicas=3)}, [mac, pc, other_mac])
    assert verbs(found.changes) == [("pull", "a", "mac2")]
    assert "not on pc:11434: the model needs MLX" in found.unmet[0]
    named = plan({"a": DesiredModel(nodes=("mac", "pc"))}, [mac, pc, other_mac])
    assert verbs(named.changes) == [("pull", "a", "pc")]


def test_a_known_full_disk_gets_nothing() -> None:
    found = plan(
        {"a": DesiredModel(replicas=2)}, [node("x", "a"), node("y", free_bytes=9), node("z", "bc", free_bytes=99)]
    )
    assert verbs(found.changes) == [("pull", "a", "z")]
    assert "unknown" not in found.changes[0].reason


MODELS = st.sampled_from(["a", "b", "c"])
NODES = st.lists(
    st.builds(
        lambda stored, pinned, warm, down: (
            "".join(stored), "".join(pinned & stored), "".join(warm & (stored - pinned)), down
        ),
        st.sets(MODELS), st.sets(MODELS), st.sets(MODELS), st.booleans(),
    ),
    max_size=5,
)  # fmt: skip
TABLES = st.dictionaries(
    MODELS,
    st.builds(
        lambda replicas, pin, nodes: DesiredModel(replicas, pin and replicas != 0, nodes),
        replicas=st.none() | st.integers(0, 4),
        pin=st.booleans(),
        nodes=st.lists(st.sampled_from(["n0", "n1", "n2:11434", "absent"]), max_size=3).map(tuple),
    ),
)


def made(nodes: list[NodeInventory], changes: tuple[Change, ...]) -> list[NodeInventory]:
    """The nodes after the changes, as Ollama would carry them out."""
    found = []
    for each in nodes:
        stored, loaded = dict(each.stored), dict(each.loaded)
        for change in changes:
            if change.node != each.key:
                continue
            if change.verb == "pull":
                stored[change.model] = StoredModel(10, "d", "gguf")
            elif change.verb == "unload":
                del loaded[change.model]
            else:
                assert change.verb == "warm" or is_pinned(loaded[change.model])
                assert change.model in stored, "only what is on the disk can be loaded"
                loaded[change.model] = LoadedModel(10, 10, FOREVER if change.verb == "warm" else SOON)
        found.append(each._replace(stored=stored, loaded=loaded))
    return found


@given(NODES, TABLES)
def test_a_plan_leads_where_the_file_says_in_one_step(
    specs: list[tuple[str, str, str, bool]], tables: dict[str, DesiredModel]
) -> None:
    nodes = [node(f"n{i}", *spec[:3]) if not spec[3] else node(f"n{i}", why="down") for i, spec in enumerate(specs)]
    found = plan(tables, nodes)
    assert found == plan(tables, nodes)
    up = {each.key for each in nodes if each.is_up}
    assert {change.node for change in found.changes} <= up
    assert {change.model.partition(":")[0] for change in found.changes} <= set(tables)
    after = made(nodes, found.changes)
    assert plan(tables, after).changes == ()
    for before, now in zip(nodes, after, strict=True):
        assert set(before.stored) <= set(now.stored), "nothing is deleted"
    for name, table in tables.items():
        having = [each for each in after if f"{name}:latest" in each.stored]
        if not table.nodes and table.replicas is not None:
            assert len(having) >= min(table.replicas, len(up))


HELD = st.lists(
    st.builds(HeldModel, st.text("abcdef", min_size=1, max_size=3),
              st.builds(LoadedModel, st.integers(0, 100), st.integers(0, 100), st.sampled_from([FOREVER, SOON])),
              st.integers(0, 9), st.booleans()),
    max_size=6, unique_by=lambda each: each.name,
)  # fmt: skip


@given(HELD, st.integers(1, 300))
def test_room_is_made_from_what_is_idle_and_unpinned_the_oldest_first(held: list[HeldModel], needed: int) -> None:
    found = choose_unloads(held, needed)
    by_name = {each.name: each for each in held}
    free = [each for each in held if not each.busy and not is_pinned(each.loaded)]
    assert set(found.models) <= {each.name for each in free}
    assert set(found.models) | set(found.kept) == set(by_name)
    assert found.freed_bytes == sum(by_name[name].freed_bytes for name in found.models)
    enough = sum(each.freed_bytes for each in free) >= needed
    assert (found.freed_bytes >= needed) is enough
    unused = max((by_name[name].last_use for name in found.models), default=-1)
    assert all(each.last_use >= unused for each in free if each.name not in found.models)
    if found.models:
        assert found.freed_bytes - by_name[found.models[-1]].freed_bytes < needed, "no more than needed"


def test_a_pin_of_no_replicas_is_refused() -> None:
    with pytest.raises(msgspec.ValidationError, match="pin = true only with replicas"):
        msgspec.convert({"replicas": 0, "pin": True}, DesiredModel)


def test_a_table_with_a_wrong_field_is_refused() -> None:
    with pytest.raises(msgspec.ValidationError, match="unknown field"):
        msgspec.convert({"replica": 2}, DesiredModel)
