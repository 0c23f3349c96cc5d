"""What one node says is not final: another one answers, and what the first cannot do is remembered for a while."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any

import msgspec
import pytest

from sollol.core.endpoint import Endpoint
from sollol.core.types import RoutingStrategy
from sollol.errors import NoNodeAvailable, ResponseError
from sollol.pool.aio import AsyncOllamaPool
from sollol.sim import ModelSpec, NodeSpec, World, run
from sollol.sim.reply import JSON, SimReply
from sollol.transport.base import Call
from tests.pool.universe import CHAT, EMBED, MODELS, node, texts

A, B, C = (f"10.0.0.{i}:11434" for i in (2, 3, 4))
PAGE = b"<html><h1>something stands before the node</h1></html>"
HELLO = [{"role": "user", "content": "Hello"}]
WORK = ("/api/chat", "/api/generate", "/api/embed", "/api/embeddings")

Told = tuple[int, bytes, dict[str, str]]
Script = Callable[[str, Call, int], "Told | None"]  # (node, call, its number there) -> what it says instead


class Scripted:
    """The transport of a world in which some answers are not the nodes' own."""

    def __init__(self, world: World, script: Script) -> None:
        self._inner = world.transport()
        self._script = script
        self.sent: list[str] = []
        self.times: list[float] = []

    async def send(self, target: Endpoint, call: Call) -> Any:
        if call.path not in WORK:
            return await self._inner.send(target, call)
        self.sent.append(target.key)
        self.times.append(asyncio.get_running_loop().time())
        told = self._script(target.key, call, self.sent.count(target.key))
        if told is None:
            return await self._inner.send(target, call)
        status, body, headers = told
        reply = SimReply.of(status, body, JSON if body.startswith(b"{") else "text/html")
        reply.headers |= headers
        return reply

    async def aclose(self) -> None:
        await self._inner.aclose()


class Stage:
    def __init__(self, pool: AsyncOllamaPool, transport: Scripted) -> None:
        self.pool, self.transport = pool, transport

    def performance(self, key: str) -> dict[str, Any]:
        found: dict[str, Any] = self.pool.get_stats()["node_performance"][key]
        return found


def on_stage(count: int, script: Script, act: Callable[[Stage], Any], specs: list[NodeSpec] | None = None) -> Any:
    async def main() -> Any:
        world = World(specs or [node(i, 100) for i in range(1, count + 1)])
        transport = Scripted(world, script)
        async with AsyncOllamaPool(world.endpoints, transport=transport, seed=1) as pool:
            engine = pool.engine
            engine.journal.subscribe(lambda entry: engine.scheduler.invariants())
            await pool.wait_ready()
            return await act(Stage(pool, transport))

    return run(main())


def error(text: str) -> bytes:
    return msgspec.json.encode({"error": text})


STATUSES = {
    "300": (302, PAGE),
    "401": (401, PAGE),
    "402": (402, error("payment required")),
    "403": (403, b""),
    "404": (404, b"404 page not found"),
    "405": (405, b"405 method not allowed"),
    "407": (407, PAGE),
    "408": (408, PAGE),
    "413": (413, PAGE),
    "421": (421, PAGE),
    "426": (426, PAGE),
    "499": (499, PAGE),
    "501": (501, PAGE),
    "501 own": (501, error("this server does not support embeddings")),
    "400 own": (400, error("no such option")),
    "400 page": (400, PAGE),
}


def says(key: str, status: int, body: bytes, **headers: str) -> Script:
    return lambda target, call, number: (status, body, headers) if target == key else None


@pytest.mark.parametrize("name", STATUSES)
def test_the_well_node_answers_calls_streams_and_batches(name: str) -> None:
    status, body = STATUSES[name]

    async def act(stage: Stage) -> None:
        for _ in range(5):
            assert (await stage.pool.chat(CHAT, HELLO, options={"num_predict": 3})).routing.node == B
            parts = [part async for part in await stage.pool.generate(CHAT, "x", stream=True)]
            assert parts[-1].routing.node == B
            assert len((await stage.pool.embed(EMBED, "x")).embeddings) == 1
        result = await stage.pool.embed_batch(EMBED, texts(30))
        assert not result.errors
        assert result.report.nodes[B].items == 30
        replicas = stage.pool.engine.scheduler.view().nodes[A].replicas.values()
        assert all(replica.breaker.closed for replica in replicas) or status in (408, 413, 499)

    on_stage(2, says(A, status, body), act)


@pytest.mark.parametrize("name", ["401", "402", "404", "501"])
def test_what_a_node_cannot_do_is_remembered_for_a_while_and_told(name: str) -> None:
    status, body = STATUSES[name]
    ended = False

    def script(key: str, call: Call, number: int) -> Told | None:
        return (status, body, {}) if key == A and not ended else None

    async def act(stage: Stage) -> None:
        nonlocal ended
        for _ in range(12):
            await stage.pool.embed(EMBED, "x")
        assert stage.transport.sent.count(A) == 1
        told = stage.performance(A)["unable"]
        assert len(told) == 1
        assert str(status) in told[0] or "payment" in told[0]
        assert "tried again in" in told[0]
        assert not stage.performance(B)["unable"]
        if name == "401":
            assert "needs a key" in told[0]
        else:  # other routes are not concerned
            ended = True
            before = stage.transport.sent.count(A)
            await asyncio.gather(*(stage.pool.chat(CHAT, HELLO) for _ in range(2)))
            assert stage.transport.sent.count(A) == before + 1
        ended = True
        await asyncio.sleep(70)
        await asyncio.gather(*(stage.pool.embed(EMBED, texts(20)) for _ in range(6)))
        assert stage.transport.sent[-6:].count(A) > 1
        assert not stage.performance(A)["unable"]

    on_stage(2, script, act)


def test_a_route_that_only_the_newer_node_has() -> None:
    def script(key: str, call: Call, number: int) -> Told | None:
        return (404, b"404 page not found", {}) if key == A and call.path == "/api/embed" else None

    async def act(stage: Stage) -> None:
        result = await stage.pool.embed_batch(EMBED, texts(100))
        assert not result.errors
        assert result.report.nodes[B].items == 100
        for _ in range(12):
            await stage.pool.embed(EMBED, "x")
        assert stage.transport.sent.count(A) <= 2

    on_stage(2, script, act)


def test_when_all_nodes_refuse_the_caller_gets_their_answer() -> None:
    async def act(stage: Stage) -> None:
        with pytest.raises(ResponseError) as caught:
            await stage.pool.embed(EMBED, "x")
        assert caught.value.status_code == 404
        with pytest.raises(ResponseError) as caught:
            await stage.pool.embed_batch(EMBED, texts(30))
        assert caught.value.status_code == 404
        assert len(stage.transport.sent) <= 8

    on_stage(2, lambda key, call, number: (404, b"404 page not found", {}), act)


def test_when_all_nodes_need_a_key_that_is_said() -> None:
    async def act(stage: Stage) -> None:
        for call in (stage.pool.embed(EMBED, "x"), stage.pool.embed_batch(EMBED, texts(30))):
            with pytest.raises(NoNodeAvailable, match="needs a key") as caught:
                await call
            assert {key for key, _ in caught.value.tried} == {A, B}

    on_stage(2, lambda key, call, number: (401, PAGE, {}), act)


# --- the same words -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("status", "body"), [(502, PAGE), (500, error("out of memory")), (500, error("loading model"))]
)
@pytest.mark.parametrize("well", [3, 5])
def test_two_nodes_fail_in_the_same_words_and_another_is_well(status: int, body: bytes, well: int) -> None:
    last = f"10.0.0.{well + 1}:11434"

    async def act(stage: Stage) -> None:
        for _ in range(20):
            assert (await stage.pool.chat(CHAT, HELLO, options={"num_predict": 3})).routing.node == last

    on_stage(well, lambda key, call, number: None if key == last else (status, body, {}), act)


def test_a_call_that_fails_everywhere_opens_no_breaker_for_others() -> None:
    def script(key: str, call: Call, number: int) -> Told | None:
        return (500, error("the runner died"), {}) if b"poison" in bytes(call.body) else None  # type: ignore[arg-type]

    async def act(stage: Stage) -> None:
        await asyncio.gather(*(stage.pool.chat(CHAT, HELLO, options={"num_predict": 2}) for _ in range(6)))
        for _ in range(10):
            with pytest.raises(ResponseError, match="the runner died"):
                await stage.pool.chat(CHAT, [{"role": "user", "content": "poison"}])
            for state in stage.pool.engine.scheduler.view().nodes.values():
                assert all(replica.breaker.closed for replica in state.replicas.values())

    on_stage(3, script, act)


# --- a node with many models ------------------------------------------------------------------------------------------


def test_a_dead_gpu_with_forty_models_is_one_fault() -> None:
    models = tuple(ModelSpec(f"model-{i}", size_bytes=1_000_000) for i in range(40))
    specs = [
        NodeSpec(host=f"10.0.0.{i}", models=models, loaded=("model-0",), latency_s=0.001, load_bytes_per_s=1e9)
        for i in (2, 3)
    ]

    def script(key: str, call: Call, number: int) -> Told | None:
        return (500, error("CUDA error: device lost"), {}) if key == A else None

    async def act(stage: Stage) -> None:
        async def client(number: int) -> None:
            for turn in range(40):
                name = f"model-{(number * 5 + turn) % 40}"
                answer = await stage.pool.chat(name, HELLO, options={"num_predict": 2})
                assert answer.routing.node == B

        await asyncio.gather(*(client(number) for number in range(8)))
        assert stage.transport.sent.count(A) <= 40

    on_stage(2, script, act, specs)


# --- latency ----------------------------------------------------------------------------------------------------------


def test_failures_do_not_add_up_to_an_endless_latency() -> None:
    broken = True

    def script(key: str, call: Call, number: int) -> Told | None:
        return (500, error("out of memory"), {}) if key == A and broken else None

    async def act(stage: Stage) -> None:
        nonlocal broken
        for _ in range(60):
            await stage.pool.embed(EMBED, "x")
            await asyncio.sleep(5)
        assert 0 < stage.performance(A)["latency_ms"] <= 10_000
        broken = False
        stage.pool.engine.use_strategy(RoutingStrategy.LATENCY_FIRST)
        await asyncio.sleep(120)
        before = stage.transport.sent.count(A)
        for _ in range(400):
            await stage.pool.embed(EMBED, "x")
        assert stage.transport.sent.count(A) > before

    on_stage(2, script, act)


# --- Retry-After ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("status", [429, 503])
@pytest.mark.parametrize(
    "headers",
    [
        {"retry-after": "20"},
        {"retry-after": "Thu, 01 Jan 2026 00:00:20 GMT", "date": "Thu, 01 Jan 2026 00:00:00 GMT"},
    ],
)
def test_retry_after_is_waited_for(status: int, headers: dict[str, str]) -> None:
    def script(key: str, call: Call, number: int) -> Told | None:
        return (status, error("later"), headers) if number == 1 else None

    async def act(stage: Stage) -> None:
        assert (await stage.pool.chat(CHAT, HELLO)).routing.attempts == 2
        assert 19.9 <= stage.transport.times[1] - stage.transport.times[0] <= 21

    on_stage(1, script, act)


def test_a_batch_waits_as_well() -> None:
    def script(key: str, call: Call, number: int) -> Told | None:
        return (503, error("later"), {"retry-after": "20"}) if number in (1, 5) else None

    async def act(stage: Stage) -> None:
        result = await stage.pool.embed_batch(EMBED, texts(200))
        assert not result.errors
        assert 40 <= result.report.seconds <= 44

    on_stage(1, script, act)


@pytest.mark.parametrize(
    "text",
    [
        "-5",
        "soon",
        "",
        "1e9",
        "99999999999999999999",
        "86400",
        "Sat, 01 Jan 9999 00:00:00 GMT",
        "Thu, 99 Jan 2026 00:00:20 GMT",
    ],
)
def test_a_retry_after_that_means_nothing(text: str) -> None:
    def script(key: str, call: Call, number: int) -> Told | None:
        return (503, error("later"), {"retry-after": text}) if number == 1 else None

    async def act(stage: Stage) -> None:
        await stage.pool.chat(CHAT, HELLO)
        assert stage.transport.times[1] <= 700

    on_stage(1, script, act)


@pytest.mark.parametrize("status", [429, 503])
@pytest.mark.parametrize("text", ["0", "000", "Thu, 01 Jan 1970 00:00:20 GMT"])
def test_a_busy_node_that_asks_to_be_asked_at_once_is_given_time(status: int, text: str) -> None:
    def script(key: str, call: Call, number: int) -> Told | None:
        busy = asyncio.get_running_loop().time() < stages[0].transport.times[0] + 3 if number > 1 else True
        return (status, error("later"), {"retry-after": text}) if busy else None

    stages: list[Stage] = []

    async def act(stage: Stage) -> None:
        stages.append(stage)
        await stage.pool.chat(CHAT, HELLO)
        times = stage.transport.times
        assert 3 <= times[-1] - times[0] <= 5
        assert len(times) <= 9

    on_stage(1, script, act)


def test_retry_after_beyond_the_callers_time_is_passed_on() -> None:
    async def act(stage: Stage) -> None:
        began = asyncio.get_running_loop().time()
        with pytest.raises(NoNodeAvailable) as caught:
            await stage.pool.chat(CHAT, HELLO, timeout=5)
        assert asyncio.get_running_loop().time() - began < 1
        assert caught.value.retry_after_s == pytest.approx(60, abs=1)

    on_stage(1, lambda key, call, number: (503, error("later"), {"retry-after": "60"}), act)


def test_another_node_answers_meanwhile() -> None:
    async def act(stage: Stage) -> None:
        for _ in range(5):
            assert (await stage.pool.chat(CHAT, HELLO)).routing.node == B
        assert stage.transport.sent.count(A) <= 1

    on_stage(2, says(A, 429, error("later"), **{"retry-after": "60"}), act)


def test_the_models_of_these_nodes() -> None:
    assert {model.name for model in MODELS} >= {f"{CHAT}:latest", f"{EMBED}:latest"}


# --- vectors ----------------------------------------------------------------------------------------------------------

VECTORS = {
    "null": b'{"embeddings":[null]}',
    "a null in it": b'{"embeddings":[[0.1,null]]}',
    "empty": b'{"embeddings":[[]]}',
    "none": b'{"embeddings":[]}',
    "too many": b'{"embeddings":[[0.1],[0.2],[0.3]]}',
    "unequal": b'{"embeddings":[[0.1,0.2],[0.1]]}',
    "text": b'{"embeddings":[["a"],["b"]]}',
}


@pytest.mark.parametrize("name", VECTORS)
def test_vectors_of_a_single_call_are_checked(name: str) -> None:
    async def act(stage: Stage) -> None:
        for _ in range(4):
            given = texts(2) if name == "unequal" else "x"
            answer = await stage.pool.embed(EMBED, given)
            assert answer.routing.node == B
            assert all(len(row) == 64 for row in answer.embeddings)

    on_stage(2, says(A, 200, VECTORS[name]), act)


def test_vectors_that_are_as_asked() -> None:
    async def act(stage: Stage) -> None:
        assert (await stage.pool.embed(EMBED, [])).embeddings == []
        assert len((await stage.pool.embed(EMBED, "")).embeddings) <= 1
        assert len((await stage.pool.embed(EMBED, texts(5))).embeddings) == 5
        assert len((await stage.pool.embeddings(EMBED, "x")).embedding) == 64
        assert (await stage.pool.embeddings(EMBED, "")).embedding == []
        assert len(stage.transport.sent) == 5

    on_stage(1, lambda key, call, number: None, act)
