"""Pin, unpin, unload and free the memory of nodes, and make models as they are named."""

from __future__ import annotations

import threading
from typing import Any

import pytest

from sollol import OllamaPool
from sollol.errors import BadInput, NoNodeAvailable, ResponseError
from sollol.models.inventory import is_pinned
from sollol.sim import ModelSpec, NodeSpec, sim_cluster
from tests.gateway.stage import until

SIZES = {"big": 4_000_000, "mid": 2_000_000, "small": 1_000_000}
MODELS = tuple(ModelSpec(name, size_bytes=size) for name, size in SIZES.items())
SPEC = NodeSpec(models=MODELS)


def loaded(pool: OllamaPool, place: int = 0) -> dict[str, bool]:
    """The models in memory of a node, and whether each is pinned."""
    return {name.split(":")[0]: is_pinned(held) for name, held in pool.inventory()[place].loaded.items()}


def test_a_pin_holds_and_an_unpinned_model_can_go() -> None:
    with sim_cluster([SPEC, NodeSpec(models=MODELS[1:])]) as nodes, OllamaPool(list(nodes)) as pool:
        assert set(pool.pin("big")["nodes"]) == {pool.nodes[0].key}
        assert (loaded(pool), loaded(pool, 1)) == ({"big": True}, {})
        pool.unpin("big")
        assert loaded(pool) == {"big": False}
        pool.unload("big", node=nodes[0])
        until(lambda: not loaded(pool))
        with pytest.raises(ResponseError, match="big:latest is not in the memory of any node") as raised:
            pool.unload("big")
        assert raised.value.status_code == 404


def test_memory_is_freed_from_the_model_that_is_unused_for_longest() -> None:
    with sim_cluster([SPEC]) as nodes, OllamaPool(list(nodes)) as pool:
        for name in ("mid", "big", "small"):
            pool.generate(name, "a", options={"num_predict": 1})
        freed = pool.free_memory(nodes[0], 3_000_000)
        assert freed["unloaded"] == ["mid:latest", "big:latest"]
        assert (freed["freed"], freed["status"]) == (6_000_000, "success")
        assert freed["kept"] == {"small:latest": "its room is not needed"}
        until(lambda: loaded(pool) == {"small": False})
        pool.pin("small")
        kept = pool.free_memory(nodes[0], 1)
        assert (kept["status"], kept["unloaded"]) == ("partial", [])
        assert "is pinned" in kept["kept"]["small:latest"]


def test_a_model_at_work_stays() -> None:
    slow = NodeSpec(models=MODELS, decode_tokens_per_s=20.0)
    with sim_cluster([slow]) as nodes, OllamaPool(list(nodes)) as pool:
        answers: list[Any] = []
        call = threading.Thread(target=lambda: answers.append(pool.generate("big", "a", options={"num_predict": 20})))
        call.start()
        until(lambda: loaded(pool) and pool.snapshot()["nodes"][0]["active_requests"])
        assert pool.free_memory(nodes[0], 1)["kept"] == {"big:latest": "calls run there"}
        call.join()
        assert answers[0]["done"] is True


def test_models_are_made_as_they_are_named() -> None:
    far = NodeSpec(models=MODELS[:1], registry=MODELS)
    with sim_cluster([SPEC, far]) as nodes, OllamaPool(list(nodes)) as pool:
        wanted = {"mid": {"replicas": 2, "pin": True}, "big": {"replicas": 2}}
        planned = pool.plan_models(wanted)
        assert [change.verb for change in planned.changes] == ["pull", "warm", "warm"]
        assert loaded(pool) == {}
        done = pool.sync_models(wanted)
        assert [row["outcome"] for row in done["changes"]] == ["success"] * 3
        assert pool.plan_models(wanted).changes == ()
        assert (loaded(pool), loaded(pool, 1)) == ({"mid": True}, {"mid": True})
        with pytest.raises(BadInput, match=r"models\.mid: .*unknown field `replica`"):
            pool.sync_models({"mid": {"replica": 2}})


def test_a_failed_change_is_named_and_does_not_stop_the_others() -> None:
    with sim_cluster([SPEC]) as nodes, OllamaPool(list(nodes)) as pool:
        done = pool.sync_models({"absent": {}, "mid": {"pin": True}})
        outcomes = {row["verb"]: row["outcome"] for row in done["changes"]}
        assert "no such host" in outcomes["pull"]
        assert outcomes["warm"] == "success"


def test_an_absent_model_is_hinted_at() -> None:
    with sim_cluster([SPEC, NodeSpec(models=MODELS[:1])]) as nodes, OllamaPool(list(nodes)) as pool:
        with pytest.raises(NoNodeAvailable, match="`sollol models pull absent:latest` brings it"):
            pool.generate("absent", "a")
        key = pool.nodes[1].key
        with pytest.raises(NoNodeAvailable, match=f"`sollol models pull mid:latest --on {key}` brings it"):
            pool.generate("mid", "a", node=nodes[1])
        with pytest.raises(ResponseError, match="`sollol models pull absent` brings it"):
            pool.pin("absent")
