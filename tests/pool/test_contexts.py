"""Clients with different contexts: a call goes to the runner that has a larger one loaded, and nothing is loaded again.

Counted on the simulated nodes, which compare runner options as a real Ollama does.
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from typing import Any

import pytest

from sollol import NoNodeAvailable
from sollol.core.actions import Start
from sollol.core.events import Refresh
from sollol.errors import DeadlineExceeded
from sollol.observe.journal import Entry
from sollol.sim import ModelSpec, NodeSpec, run
from tests.pool.universe import Universe, universe

HELLO = [{"role": "user", "content": "Hello"}]
CHAT = ModelSpec("m", size_bytes=2 * 10**9, mean_words=float("inf"), context_length=32_768, continues=True)
EMBED = ModelSpec("e", "embed", 300_000_000, context_length=8_192)


def specs(count: int, **more: Any) -> list[NodeSpec]:
    given: dict[str, Any] = {"latency_s": 0.001, "decode_tokens_per_s": 50.0, "load_bytes_per_s": 2e9, **more}
    return [NodeSpec(host=f"10.0.0.{n + 1}", models=(CHAT, EMBED), **given) for n in range(count)]


def loads(here: Universe, model: str = "m:latest") -> list[int]:
    return [node.runners.loads.get(model, 0) for node in here.world.nodes.values()]


def body(context: int | None) -> dict[str, Any]:
    return {"num_predict": 5} | ({} if context is None else {"num_ctx": context})


@pytest.mark.parametrize("nodes", [1, 2, 3])
@pytest.mark.parametrize("clients", [1, 2, 4])
@pytest.mark.parametrize(
    ("contexts", "most"), [((2048, 8192), 2), ((None, 8192), 2), ((None, 2048), 1), ((None, 2048, 8192, 16384), 3)]
)
def test_clients_that_alternate_do_not_make_a_model_load_for_ever(
    nodes: int, clients: int, contexts: Sequence[int | None], most: int
) -> None:
    """200 calls: `most` loads on each node, and in a row over two nodes at most 4 in all."""

    async def main() -> None:
        async with universe(specs(nodes)) as here:

            async def client(number: int) -> None:
                for turn in range(200 // clients):
                    context = contexts[(turn + number) % len(contexts)]
                    await here.pool.chat("m", HELLO, options=body(context))

            await asyncio.gather(*(client(number) for number in range(clients)))
            assert max(loads(here)) <= most
            if len(contexts) == 2:
                assert sum(loads(here)) <= 4

    run(main())


def test_a_program_can_have_its_own_context() -> None:
    async def main() -> None:
        async with universe(specs(1)) as here:
            here.pool.share_contexts = False
            for turn in range(10):
                await here.pool.chat("m", HELLO, options=body((2048, 8192)[turn % 2]))
            assert loads(here) == [10]

    run(main())


def test_lists_of_short_texts_share_a_context_and_long_ones_do_not() -> None:
    async def main() -> None:
        short, long = ["a short text"] * 40, ["word " * 1_000, *["a short text"] * 39]
        async with universe(specs(1)) as here:
            await here.pool.embed_batch("e", short, options={"num_ctx": 8192})
            for _ in range(5):
                await here.pool.embed_batch("e", short, options={"num_ctx": 2048})
                await here.pool.embed("e", "a short text", options={"num_ctx": 1024})
            assert loads(here, "e:latest") == [1]
            await here.pool.embed_batch("e", long, options={"num_ctx": 2048})
            assert loads(here, "e:latest") == [2]

    run(main())


@pytest.mark.parametrize(
    ("nodes", "options", "most"),
    [
        (1, ({}, {"num_ctx": 8192}), 2),
        (2, ({}, {"num_ctx": 8192}), 4),
        (3, ({}, {"num_ctx": 8192}), 6),
        (2, ({"num_ctx": 2048}, {"num_ctx": 8192}, {}), 7),
        (2, ({}, {"num_batch": 128}), 4),
        (3, ({}, {"num_batch": 128}), 6),
    ],
)
def test_batches_that_alternate_do_not_make_a_model_load_for_ever(
    nodes: int, options: Sequence[dict[str, Any]], most: int
) -> None:
    """90 lists, six at a time, of which some must not share a runner."""

    async def main() -> None:
        async with universe(specs(nodes, embed_items_per_s=400.0)) as here:

            async def client(number: int) -> None:
                for _ in range(15):
                    await here.pool.embed_batch("e", ["a short text"] * 40, options=options[number % len(options)])

            await asyncio.gather(*(client(number) for number in range(6)))
            assert sum(loads(here, "e:latest")) <= most

    run(main())


def test_a_stream_that_moves_keeps_the_context_in_which_it_began() -> None:
    async def main() -> None:
        async with universe(specs(2)) as here:
            contexts: list[int] = []
            here.pool._running().journal.subscribe(lambda entry: contexts.extend(sent(entry)))
            await here.pool.chat("m", HELLO, options=body(8192), node="10.0.0.1:11434")
            options = {"num_ctx": 2048, "num_predict": 100}
            stream = await here.pool.chat("m", HELLO, options=options, node=BOTH, stream=True)
            parts = 0
            async for _ in stream:
                parts += 1
                if parts == 20:
                    here.world["10.0.0.1:11434"].die()
            assert contexts == [0, 8192, 8192]
            assert here.world["10.0.0.2:11434"].runners.look()["m:latest"].num_ctx == 8192

    run(main())


BOTH = ["10.0.0.1:11434", "10.0.0.2:11434"]


def sent(entry: Entry) -> list[int]:
    return [action.decision.num_ctx for action in entry.actions if isinstance(action, Start)]


def test_what_looks_at_a_model_or_keeps_it_does_not_load_it_again() -> None:
    """A reload by a probe of resumption, a test of the rate, or a second stream would show in the count."""

    async def main() -> None:
        async with universe(specs(2)) as here:
            for _ in range(6):
                async for _ in await here.pool.chat("m", HELLO, options=body(8192), stream=True):
                    pass
                async for _ in await here.pool.chat("m", HELLO, options=body(2048), stream=True):
                    pass
            here.pool._running().dispatcher.feed(Refresh())
            await asyncio.sleep(120)
            assert sum(loads(here)) <= 2

    run(main())


def test_a_runner_of_others_is_shared_and_one_that_changes_is_noticed() -> None:
    async def main() -> None:
        async with universe(specs(1, num_ctx=8192, loaded=("m",))) as here:
            await here.pool.wait_ready()
            node = next(iter(here.world.nodes.values()))
            await here.pool.chat("m", HELLO, options=body(2048))
            assert loads(here) == [1], "the first one was at the start"
            node.runners.put(CHAT, node.runners.options_of(CHAT, {"num_ctx": 16384}))
            await asyncio.sleep(6)
            await here.pool.chat("m", HELLO, options=body(12000))
            assert loads(here) == [2]

    run(main())


def test_a_model_is_pinned_in_the_context_in_which_it_is_loaded() -> None:
    async def main() -> None:
        async with universe(specs(1)) as here:
            await here.pool.chat("m", HELLO, options=body(8192))
            for _ in range(3):
                await here.pool.pin("m")
                await here.pool.unpin("m")
                await here.pool.warm_model("m")
            assert loads(here) == [1]
            assert next(iter(here.world.nodes.values())).runners.look()["m:latest"].num_ctx == 8192

    run(main())


def test_a_node_whose_loads_hang_keeps_its_runner_though_others_need_a_larger_context() -> None:
    """A reload would put the runner out that serves, and then hang."""

    async def main() -> None:
        async with universe(specs(2, loaded=("m",))) as here:
            first, second = here.world.nodes.values()
            for _ in range(3):
                await asyncio.gather(*(here.pool.chat("m", HELLO, options=body(2048)) for _ in range(2)))
            first.hang_loads()
            with pytest.raises(DeadlineExceeded):
                await here.pool.embed("e", "text", node=first.spec.key, timeout=60)
            assert any("It gets no loads" in notice for notice in here.pool.get_stats()["notices"])
            answers = await asyncio.gather(*(here.pool.chat("m", HELLO, options=body(16384)) for _ in range(6)))
            assert {answer.routing.node for answer in answers} == {second.spec.key}
            with pytest.raises(NoNodeAvailable, match="loads hang there"):
                await here.pool.chat("m", HELLO, options=body(16384), node=first.spec.key)
            answer = await here.pool.chat("m", HELLO, options=body(2048), node=first.spec.key)
            assert answer.routing.node == first.spec.key
            assert first.runners.look()["m:latest"].num_ctx == 4096, "its runner is as it was"

    run(main())
