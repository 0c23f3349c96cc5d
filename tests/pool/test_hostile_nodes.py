"""What a node says that no honest one does, in the library: a failed attempt, and the answer of another node."""

from __future__ import annotations

from typing import Any

import pytest

from sollol import OllamaPool, SollolError
from sollol.sim import sim_cluster
from tests.gateway.stage import MODEL, talker
from tests.gateway.test_hostile import LIES, liar

HELLO = [{"role": "user", "content": "a"}]


@pytest.mark.parametrize("lie", LIES)
def test_a_pool_takes_the_answer_of_another_node(lie: str) -> None:
    with (
        sim_cluster([talker(1, 50_000.0)]) as cluster,
        liar(**LIES[lie]) as (url, _),
        OllamaPool([url, *cluster.urls]) as pool,
    ):
        for _ in range(2):
            assert pool.chat(MODEL, HELLO, options={"num_predict": 8}).done
            assert list(pool.chat(MODEL, HELLO, stream=True, options={"num_predict": 8}))[-1].done
        assert pool.snapshot()["running"] == pool.snapshot()["waiting"] == []
        assert pool.snapshot()["totals"]["faults"] == 0


@pytest.mark.parametrize("lie", LIES)
def test_alone_it_ends_in_an_answer_or_an_error_of_ours(lie: str) -> None:
    with liar(**LIES[lie]) as (url, _), OllamaPool([url]) as pool:
        for stream in (False, True):
            try:
                found: Any = pool.chat(MODEL, HELLO, stream=stream)
                assert list(found) if stream else found.done
            except SollolError:
                pass
        assert pool.snapshot()["totals"]["faults"] == 0
