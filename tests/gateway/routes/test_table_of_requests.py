"""A table of requests, to a simulated node and the gateway before it. `python -m tests.real` asks a real one, too."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from sollol.sim import ModelSpec, sim_cluster
from tests.gateway.stage import gateway_over, talker
from tests.real.compare import ask
from tests.real.table import CASES, Case

CHAT, EMBED = "tiny-chat", "tiny-embed"


@pytest.fixture(scope="module")
def both() -> Iterator[tuple[str, str]]:
    """A node, and a gateway before it."""
    models = (
        ModelSpec(CHAT, size_bytes=1_000_000, tools=False),
        ModelSpec(EMBED, "embed", size_bytes=1_000_000),
    )
    node = talker(1, 5000.0, models=models, loaded=(CHAT, EMBED))
    with sim_cluster([node]) as nodes, gateway_over(nodes.urls) as stage:
        yield nodes.urls[0], stage.url


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_the_gateway_answers_as_the_node(both: tuple[str, str], case: Case) -> None:
    node, gateway = (ask(url, case, CHAT, EMBED) for url in both)
    assert gateway == node
