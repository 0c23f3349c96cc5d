"""Every switch, in simulated time."""

from __future__ import annotations

import asyncio
from dataclasses import replace

import pytest

from sollol.sim import FaultEvent
from sollol.sim.faults import parse_events
from sollol.transport.base import Call, Fault, Timeouts, TransportFault
from tests.sim.lab import Lab, in_lab, lines, now, spec

WARM = spec(loaded=("chat", "embed"))


def test_death_cuts_what_runs_refuses_what_comes_and_forgets_the_models() -> None:
    async def story(lab: Lab) -> None:
        reply = await lab.stream(50)
        running = [asyncio.create_task(lab.embed(*"abc")), asyncio.create_task(lab.raw(50))]
        await asyncio.sleep(0.05)
        lab.node.die()
        for task in running:
            with pytest.raises(TransportFault) as cut:
                await task
            assert cut.value.fault is Fault.CUT
        with pytest.raises(TransportFault) as cut:
            await reply.read()
        assert cut.value.fault is Fault.CUT
        with pytest.raises(TransportFault) as refused:
            await lab.embed("a")
        assert refused.value.fault is Fault.CONNECT
        lab.node.revive()
        assert await lab.loaded() == []
        assert lab.node.counters.inflight == 0
        assert (await lab.embed("a"))[0] == 200

    in_lab(story, WARM)


def test_a_frozen_node_accepts_and_says_nothing_then_goes_on() -> None:
    async def story(lab: Lab) -> None:
        task = asyncio.create_task(lab.embed(*"abcde"))
        await asyncio.sleep(0.2)
        lab.node.freeze()
        with pytest.raises(TransportFault) as silent:
            await lab.transport.send(lab.endpoint, Call("GET", "/api/version", timeouts=Timeouts(first_byte_s=3.0)))
        assert silent.value.fault is Fault.FIRST_BYTE_TIMEOUT
        assert not task.done()
        lab.node.thaw()
        await task
        assert now() == pytest.approx(3.5)

    in_lab(story, WARM)


def test_a_frozen_stream_runs_into_the_idle_timeout() -> None:
    async def story(lab: Lab) -> None:
        body = {"model": "chat", "prompt": "x", "raw": True}
        reply = await lab.open("/api/generate", body, timeouts=Timeouts(idle_s=2.0))
        lab.node.freeze()
        with pytest.raises(TransportFault) as silent:
            await reply.read()
        assert silent.value.fault is Fault.IDLE_TIMEOUT
        lab.node.thaw()
        await asyncio.sleep(0)
        assert (await lab.raw(1))[0] == 200  # the slot was given back

    in_lab(story, WARM)


def test_a_black_hole_takes_the_whole_connect_timeout() -> None:
    async def story(lab: Lab) -> None:
        lab.node.black_hole()
        with pytest.raises(TransportFault) as lost:
            await lab.embed("a", timeouts=Timeouts(connect_s=1.5))
        assert lost.value.fault is Fault.CONNECT_TIMEOUT
        assert now() == 1.5
        lab.node.reachable()
        assert (await lab.embed("a"))[0] == 200

    in_lab(story, WARM)


def test_slowing_down_acts_on_work_under_way() -> None:
    async def story(lab: Lab) -> None:
        task = asyncio.create_task(lab.embed(*(str(i) for i in range(10))))
        await asyncio.sleep(0.5)
        lab.node.slow(4)
        await asyncio.sleep(1.0)
        lab.node.slow(1)
        await task
        assert now() == pytest.approx(0.5 + 1.0 + 0.25)

    in_lab(story, WARM)


@pytest.mark.parametrize(("when", "took"), [("before", 0.0), ("after", 0.1)])
def test_error_rate_hits_its_share_with_and_without_the_work(when: str, took: float) -> None:
    async def story(lab: Lab) -> None:
        lab.node.error_rate(1.0, when)  # type: ignore[arg-type]
        assert await lab.embed("a") == (500, {"error": "simulated fault"})
        assert now() == pytest.approx(took)
        reply = await lab.stream(3)
        assert reply.status == 500
        assert lab.node.counters.inflight == 0

    in_lab(story, WARM)


def test_error_rate_is_a_share() -> None:
    async def story(lab: Lab) -> None:
        lab.node.error_rate(0.25)
        answers = [await lab.embed("a") for _ in range(400)]
        assert 70 < sum(status == 500 for status, _ in answers) < 130

    in_lab(story, WARM)


def test_busy_above() -> None:
    async def story(lab: Lab) -> None:
        lab.node.busy_above(2)
        answers = await asyncio.gather(*(lab.embed("a") for _ in range(5)))
        assert [status for status, _ in answers] == [200, 200, 503, 503, 503]

    in_lab(story, WARM)


def test_cut_after() -> None:
    async def story(lab: Lab) -> None:
        lab.node.cut_after(3)
        pieces = aiter(await lab.stream(10))
        for _ in range(3):
            assert (await anext(pieces)).endswith(b"\n")
        with pytest.raises(TransportFault) as cut:
            await anext(pieces)
        assert cut.value.fault is Fault.CUT
        with pytest.raises(TransportFault) as cut:
            await lab.embed("a")
        assert cut.value.fault is Fault.CUT
        lab.node.cut_after(0)
        with pytest.raises(TransportFault):
            await lab.stream(10)
        assert lab.node.counters.inflight == 0

    in_lab(story, WARM)


def test_late_error_after() -> None:
    async def story(lab: Lab) -> None:
        lab.node.late_error_after(3)
        found = await lines(await lab.stream(10))
        assert found[3:] == [{"error": "an error was encountered while running the model: unexpected EOF"}]
        assert (await lab.raw(10))[0] == 500
        assert (await lab.embed("a"))[0] == 200  # embeddings have no late errors
        found = await lines(await lab.stream(2))  # shorter than that: it comes instead of the end
        assert "error" in found[-1]

    in_lab(story, WARM)


def test_a_late_error_on_v1_is_an_end_without_done() -> None:
    async def story(lab: Lab) -> None:
        lab.node.late_error_after(2)
        body = {"model": "chat", "messages": [{"role": "user", "content": "x"}], "stream": True}
        text = (await (await lab.open("/v1/chat/completions", body)).read()).decode()
        events = text.strip().split("\n\n")
        assert len(events) == 3
        assert '"model":""' in events[-1]
        assert '"finish_reason":null' in events[-1]
        assert "[DONE]" not in text

    in_lab(story, WARM)


def test_stall_after_until_it_is_lifted() -> None:
    async def story(lab: Lab) -> None:
        lab.node.stall_after(3)
        reply = await lab.stream(10)
        asyncio.get_running_loop().call_later(60, lab.node.stall_after, None)
        assert len(await lines(reply)) == 11
        assert now() > 60

    in_lab(story, WARM)


def test_stall_of_a_plain_body_is_an_idle_timeout() -> None:
    async def story(lab: Lab) -> None:
        lab.node.stall_after(0)
        with pytest.raises(TransportFault) as silent:
            await lab.embed("a", timeouts=Timeouts(idle_s=5.0))
        assert silent.value.fault is Fault.IDLE_TIMEOUT

    in_lab(story, WARM)


def test_wrong_answers() -> None:
    async def story(lab: Lab) -> None:
        node = lab.node
        node.wrong("missing-vector")
        assert len((await lab.embed(*"abc"))[1]["embeddings"]) == 2
        node.wrong("extra-vector")
        assert len((await lab.embed(*"abc"))[1]["embeddings"]) == 4
        node.wrong("dimension")
        assert {len(v) for v in (await lab.embed(*"abc"))[1]["embeddings"]} == {15}
        node.wrong("not-a-number")
        assert (await lab.embed(*"abc"))[1]["embeddings"][0][0] is None
        node.wrong("empty-object")
        assert (await lab.embed(*"abc"))[1] == {}
        node.wrong("not-json")
        with pytest.raises(ValueError):
            await lab.embed(*"abc")
        node.wrong(None)
        assert {len(v) for v in (await lab.embed(*"abc"))[1]["embeddings"]} == {16}

    in_lab(story, WARM)


def test_stragglers() -> None:
    async def story(lab: Lab) -> None:
        lab.node.stragglers(0.1, 10)
        took = []
        for _ in range(200):
            began = now()
            await lab.embed("a")
            took.append(round(now() - began, 3))
        assert set(took) == {0.1, 1.0}
        assert 5 < took.count(1.0) < 40

    in_lab(story, WARM)


def test_losing_the_gpu_shows_at_the_next_load() -> None:
    async def story(lab: Lab) -> None:
        lab.node.lose_gpu()
        await lab.raw(1, options={"num_ctx": 1024})
        assert (await lab.get("/api/ps"))["models"][0]["size_vram"] == 0

    in_lab(story, WARM)


def test_a_schedule_of_faults() -> None:
    async def story(lab: Lab) -> None:
        assert (await lab.embed(*"abcde"))[0] == 200
        with pytest.raises(TransportFault):
            await lab.embed(*"abcdefghij")
        assert now() == 1.0
        await asyncio.sleep(1.5)
        await lab.embed("a")
        # revived at 2, asked at 2.5: a load of a second, then one item at half speed; both at half speed
        assert now() == pytest.approx(2.5 + 2 * 1.1)

    plan = [{"at_s": 2, "do": "slow", "factor": 2}, FaultEvent(1, "die"), {"at_s": 2, "do": "revive"}]
    in_lab(story, WARM, schedule=plan)


def test_a_schedule_names_what_it_does_not_know() -> None:
    with pytest.raises(ValueError, match="explode"):
        parse_events([{"at_s": 1, "do": "explode"}])


def test_heal_undoes_everything() -> None:
    async def story(lab: Lab) -> None:
        lab.node.error_rate(1)
        lab.node.freeze()
        lab.node.die()
        lab.node.heal()
        assert (await lab.embed("a"))[0] == 200

    in_lab(story, WARM)


def test_overhead_and_jitter() -> None:
    async def story(lab: Lab) -> None:
        await lab.embed("a")
        assert 0.5 + 0.08 <= now() <= 0.5 + 0.12
        assert now() != pytest.approx(0.6)

    in_lab(story, replace(WARM, overhead_s=0.5, jitter=0.2))
