"""Start simulated nodes as processes, for commands that run without an Ollama."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

from sollol.core.endpoint import Endpoint, parse_endpoint

if TYPE_CHECKING:
    from sollol.sim import NodeSpec, SpawnedNode

SPEEDS = (8, 4, 2, 1)  # shares, as unequal as typical machines of one owner


def unequal(whole: float) -> list[float]:
    """Return the speeds of four nodes whose sum is `whole`."""
    return [whole * share / sum(SPEEDS) for share in SPEEDS]


@contextlib.contextmanager
def running(specs: Sequence[NodeSpec]) -> Iterator[dict[Endpoint, SpawnedNode]]:
    """Start a process for each spec, yield them by address in order, and kill them at the end."""
    from sollol.sim import spawn_many

    with contextlib.ExitStack() as stack:
        yield {parse_endpoint(node.url): stack.enter_context(node) for node in spawn_many(specs)}
