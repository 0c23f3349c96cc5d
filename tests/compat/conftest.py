"""Each of these tests sees the warnings that a process issues once; those of a file share two simulated nodes."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from sollol import OllamaPool
from sollol.pool import keywords
from sollol.sim import NodeSpec, sim_cluster


@pytest.fixture(autouse=True)
def _unwarned(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(keywords, "_warned", set())


@pytest.fixture(scope="module")
def urls() -> Iterator[list[str]]:
    with sim_cluster([NodeSpec(), NodeSpec()]) as nodes:
        yield nodes.urls


@pytest.fixture
def pool(urls: list[str]) -> Iterator[OllamaPool]:
    with OllamaPool(urls) as made:
        yield made
