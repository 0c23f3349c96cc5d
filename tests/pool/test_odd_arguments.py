"""Arguments that cannot even be shown, or counted: each is a BadInput, before a node is asked."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import pytest

from sollol import BadInput, OllamaPool
from sollol.sim import sim_cluster
from tests.pool.universe import CHAT, EMBED

HELLO = [{"role": "user", "content": "Hello"}]


class Unshown:
    """An object whose representation fails."""

    def __repr__(self) -> str:
        raise ValueError("not today")


def deep(depth: int = 100_000) -> list[Any]:
    found: list[Any] = []
    for _ in range(depth):
        found = [found]
    return found


def cyclic() -> list[Any]:
    found: list[Any] = []
    found.append(found)
    return found


CALLS: dict[str, Callable[[OllamaPool, Any], Any]] = {
    "model": lambda pool, odd: pool.chat(odd, HELLO),
    "messages": lambda pool, odd: pool.chat(CHAT, [odd]),
    "content": lambda pool, odd: pool.chat(CHAT, [{"role": "user", "content": odd}]),
    "options": lambda pool, odd: pool.chat(CHAT, HELLO, options=odd),
    "an option": lambda pool, odd: pool.chat(CHAT, HELLO, options={"stop": odd}),
    "format": lambda pool, odd: pool.chat(CHAT, HELLO, format=odd),
    "tools": lambda pool, odd: pool.chat(CHAT, HELLO, tools=odd),
    "keep_alive": lambda pool, odd: pool.chat(CHAT, HELLO, keep_alive=odd),
    "priority": lambda pool, odd: pool.chat(CHAT, HELLO, priority=odd),
    "timeout": lambda pool, odd: pool.chat(CHAT, HELLO, timeout=odd),
    "prompt": lambda pool, odd: pool.generate(CHAT, odd),
    "input": lambda pool, odd: pool.embed(EMBED, [odd]),
    "a batch": lambda pool, odd: pool.embed_batch(EMBED, ["a", odd]),
    "a stream": lambda pool, odd: list(pool.embed_stream(EMBED, iter(["a", odd]))),
    "on_error": lambda pool, odd: pool.embed_batch(EMBED, ["a"], on_error=odd),
    "show": lambda pool, odd: pool.show(odd),
    "pull": lambda pool, odd: pool.pull(odd),
    "a field of pull": lambda pool, odd: pool.pull("m", insecure=odd),
    "create": lambda pool, odd: pool.create("m", files=odd),
    "copy": lambda pool, odd: pool.copy(CHAT, odd),
    "delete": lambda pool, odd: pool.delete(odd),
    "warm_model": lambda pool, odd: pool.warm_model(odd),
    "explain": lambda pool, odd: pool.explain(odd),
}
ODD: dict[str, Callable[[], Any]] = {"deep": deep, "cyclic": cyclic, "unshown": Unshown}


@pytest.fixture(scope="module")
def pool() -> Iterator[OllamaPool]:
    with sim_cluster(1) as nodes, OllamaPool(list(nodes)) as running:
        yield running


@pytest.mark.parametrize("odd", ODD)
@pytest.mark.parametrize("call", CALLS)
def test_what_cannot_be_shown_is_bad_input(pool: OllamaPool, call: str, odd: str) -> None:
    with pytest.raises(BadInput) as raised:
        CALLS[call](pool, ODD[odd]())
    assert len(str(raised.value)) < 1_000


@pytest.mark.parametrize("timeout", [float("inf"), float("nan"), 10**400, 1e300, -1, 0, True, "5"])
def test_time_limits_that_are_none(pool: OllamaPool, timeout: Any) -> None:
    with pytest.raises(BadInput, match="expected seconds above 0"):
        pool.chat(CHAT, HELLO, timeout=timeout)
