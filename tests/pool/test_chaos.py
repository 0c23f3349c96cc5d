"""Everything at once: calls and streams of every kind, callers who leave, and nodes that fail in every way.

Whatever happens, each caller gets his whole answer, or a typed error and a true beginning of it; each task is settled
once; and in the end nothing runs anywhere.
"""

from __future__ import annotations

import asyncio
import random
from typing import Any

import pytest

from sollol import DeadlineExceeded, NoNodeAvailable, ResponseError, StreamBroken
from sollol.sim import ModelSpec, SimNode, run
from tests.pool.breaking import MODEL, WORDS, Stage, staged, talker

EMBED = "nomic-embed-text"
NODES, CALLS, SPAN_S = 5, 60, 40.0
FAULTS = (
    lambda node, dice: node.die(),
    lambda node, dice: node.freeze(),
    lambda node, dice: node.black_hole(),
    lambda node, dice: node.slow(dice.choice([3.0, 10.0])),
    lambda node, dice: node.error_rate(dice.random(), status=dice.choice([500, 502, 503, 429])),
    lambda node, dice: node.error_rate(dice.random(), "after"),
    lambda node, dice: node.cut_after(dice.randrange(30)),
    lambda node, dice: node.late_error_after(dice.randrange(30)),
    lambda node, dice: node.stall_after(dice.randrange(30)),
    lambda node, dice: node.stragglers(0.3, 10.0),
    lambda node, dice: node.busy_above(1),
)


def spec(number: int) -> Any:
    models = (
        ModelSpec(MODEL, size_bytes=2_000_000_000, words=WORDS, mean_words=30),
        ModelSpec(EMBED, "embed", 274_000_000),
    )
    return talker(number, models=models, loaded=(MODEL, EMBED), embed_items_per_s=30.0, num_parallel=number % 2 + 1)


async def misfortune(node: SimNode, dice: random.Random) -> None:
    """A node is well for a while, then it is not."""
    while True:
        await asyncio.sleep(dice.uniform(0.2, 2.5))
        dice.choice(FAULTS)(node, dice)
        await asyncio.sleep(dice.uniform(0.2, 6.0))
        node.heal()


class Caller:
    """One call, what came of it, and what should have."""

    def __init__(self, number: int, dice: random.Random) -> None:
        self.kind = dice.choice(["chat", "generate", "chat", "embed"])
        self.stream = self.kind != "embed" and dice.random() < 0.6
        self.prompt = f"question {number % 7}"
        self.options = {"seed": number % 3} | ({"num_predict": 12} if dice.random() < 0.5 else {})
        self.more: dict[str, Any] = {"priority": dice.randrange(11)}
        if dice.random() < 0.2:
            self.more["timeout"] = dice.uniform(0.1, 20.0)
        if self.kind != "embed":
            self.more["mode"] = dice.choice([None, None, "fast", "reliable", "async"])
        self.leaves_s = dice.uniform(0.05, 3.0) if dice.random() < 0.2 else None
        self.text = ""
        self.last: Any = None
        self.error: BaseException | None = None

    async def call(self, stage: Stage) -> None:
        try:
            async with asyncio.timeout(self.leaves_s):
                await self._call(stage)
        except TimeoutError as error:
            self.error = error
        except (NoNodeAvailable, ResponseError, StreamBroken) as error:
            self.error = error

    async def _call(self, stage: Stage) -> None:
        if self.kind == "embed":
            self.last = await stage.pool.embed(EMBED, self.prompt, **self.more)
            return
        if self.kind == "chat":
            call = stage.pool.chat(MODEL, [{"role": "user", "content": self.prompt}], **self._asked())
        else:
            call = stage.pool.generate(MODEL, self.prompt, **self._asked())
        answer = await call
        if not self.stream:
            self.last, self.text = answer, self._said(answer)
            return
        async for part in answer:
            self.text += self._said(part)
            if part.done:
                self.last = part

    def _asked(self) -> dict[str, Any]:
        return {"stream": self.stream, "options": self.options, **self.more}

    def _said(self, part: Any) -> str:
        said: str = part.message.content if self.kind == "chat" else part.response
        return said

    def right(self, answers: dict[Any, str]) -> str:
        return answers[self.prompt, self.options["seed"], self.options.get("num_predict")]

    def check(self, answers: dict[Any, str]) -> None:
        if self.kind == "embed":
            assert (self.last is None) != (self.error is None)
            return
        right = self.right(answers)
        if self.error is None:
            assert self.last.done
            assert self.text == right
        else:
            assert right.startswith(self.text)
            if isinstance(self.error, StreamBroken):
                assert self.error.received == self.text
            if isinstance(self.error, DeadlineExceeded):
                assert "timeout" in self.more


async def right_answers() -> dict[Any, str]:
    """What an unbroken answer is, for everything that is asked."""
    found = {}
    async with staged([spec(1)]) as stage:
        for prompt in {f"question {number}" for number in range(7)}:
            for seed in range(3):
                for predict in (None, 12):
                    options = {"seed": seed} | ({"num_predict": predict} if predict else {})
                    found[prompt, seed, predict] = (await stage.pool.generate(MODEL, prompt, options=options)).response
    return found


@pytest.fixture(scope="module")
def answers() -> dict[Any, str]:
    return run(right_answers())


async def chaos(seed: int, answers: dict[Any, str]) -> list[Caller]:
    dice = random.Random(seed)
    async with staged([spec(i) for i in range(1, NODES + 1)]) as stage:
        nodes = list(stage.world.nodes.values())
        # One node in five is always well, so that there is somebody to turn to.
        trouble = [
            asyncio.ensure_future(misfortune(node, random.Random(f"{seed} {node.spec.key}"))) for node in nodes[1:]
        ]
        callers = [Caller(number, dice) for number in range(CALLS)]
        under_way = []
        for caller in callers:
            await asyncio.sleep(dice.expovariate(CALLS / SPAN_S))
            under_way.append(asyncio.ensure_future(caller.call(stage)))
        async with asyncio.timeout(2000):
            await asyncio.gather(*under_way)
        for one in trouble:
            one.cancel()
        await asyncio.gather(*trouble, return_exceptions=True)
        for node in nodes:
            node.heal()
        await asyncio.sleep(30)
        scheduler = stage.pool.engine.scheduler
        assert not scheduler.view().tasks
        assert not scheduler.view().attempts
        assert scheduler.view().waiting() == 0
        assert all(node.counters.inflight == 0 for node in nodes)
        assert all(
            replica.limiter.limit >= 1 for node in scheduler.view().nodes.values() for replica in node.replicas.values()
        )
        answer = await asyncio.gather(*(stage.pool.generate(MODEL, "question 0", options={"seed": 0}) for _ in nodes))
        assert {one.response for one in answer} == {answers["question 0", 0, None]}
    return callers


@pytest.mark.parametrize("seed", range(12))
def test_chaos(seed: int, answers: dict[Any, str]) -> None:
    callers = run(chaos(seed, answers))
    for caller in callers:
        caller.check(answers)
    unasked = [c for c in callers if c.error is not None and not ({"timeout"} & c.more.keys() or c.leaves_s)]
    # A healthy node is always there: what nobody gave up ends well, but for what two nodes refuse in the same words.
    assert all(isinstance(caller.error, (ResponseError, StreamBroken)) for caller in unasked), unasked[0].error
