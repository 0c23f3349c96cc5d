"""Simulated nodes as processes of their own, for commands that have something to show where there is no Ollama."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

from sollol.core.endpoint import Endpoint, parse_endpoint

if TYPE_CHECKING:
    from sollol.sim import NodeSpec, SpawnedNode

SPEEDS = (8, 4, 2, 1)  # as unequal as the machines of one owner


def unequal(whole: float) -> list[float]:
    """Speeds of four nodes that are `whole` together."""
    return [whole * share / sum(SPEEDS) for share in SPEEDS]


@contextlib.contextmanager
def running(specs: Sequence[NodeSpec]) -> Iterator[dict[Endpoint, SpawnedNode]]:
    """A process for each, by its address, in their order; killed at the end of the block."""
    from sollol.sim import spawn_many

    with contextlib.ExitStack() as stack:
        yield {parse_endpoint(node.url): stack.enter_context(node) for node in spawn_many(specs)}
