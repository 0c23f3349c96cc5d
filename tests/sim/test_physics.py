"""Each fact of design/ollama.md that a simulated node obeys, as a test named after it."""

from __future__ import annotations

import asyncio
from dataclasses import replace
from typing import Any

import pytest

from sollol.sim import NodeSpec
from tests.sim.lab import CHAT, EMBED, GB, OTHER, Lab, ends, in_lab, lines, now, spec

WARM = spec(loaded=("chat", "embed"))


def test_1_parallel_one_runs_chats_one_after_another() -> None:
    async def story(lab: Lab) -> None:
        found = await ends(*(lab.raw(10) for _ in range(4)))
        # 2 tokens of prompt, of which a cached one costs one, then ten words at 10/s
        assert found == pytest.approx([1.02, 2.03, 3.04, 4.05])

    in_lab(story, WARM)


def test_1_more_slots_raise_the_sum_of_rates_by_a_sixth() -> None:
    async def story(lab: Lab) -> None:
        found = await ends(*(lab.raw(80) for _ in range(4)))
        alone = 80 / 10
        assert max(found) == pytest.approx(4 * alone / 1.165, rel=0.01)

    in_lab(story, replace(WARM, num_parallel=4, prefill_tokens_per_s=None))


def test_1_embedding_models_have_one_slot_whatever_is_set() -> None:
    async def story(lab: Lab) -> None:
        assert await ends(lab.embed(*"abcde"), lab.embed(*"fghij")) == [0.5, 1.0]

    in_lab(story, replace(WARM, num_parallel=4))


def test_2_a_hot_node_never_says_that_it_is_full() -> None:
    async def story(lab: Lab) -> None:
        answers = await asyncio.gather(*(lab.embed("x") for _ in range(700)))
        assert {status for status, _ in answers} == {200}
        assert now() == pytest.approx(70)

    in_lab(story, replace(WARM, max_queue=4))


def test_2_only_the_line_of_loads_overflows() -> None:
    async def story(lab: Lab) -> None:
        answers = await asyncio.gather(*(lab.raw(1) for _ in range(7)))
        # one loads, four wait in line, two are refused
        assert [status for status, _ in answers] == [200] * 5 + [503] * 2
        assert answers[-1][1] == {"error": "server busy, please try again.  maximum pending requests exceeded"}

    in_lab(story, spec(max_queue=4))


def test_3_one_load_at_a_time_and_in_order() -> None:
    async def story(lab: Lab) -> None:
        found = await ends(lab.post("/api/generate", model="chat"), lab.post("/api/generate", model="other"))
        assert found == [2.0, 4.0]

    in_lab(story)


def test_3_loaded_models_keep_running_during_a_load() -> None:
    async def story(lab: Lab) -> None:
        found = await ends(lab.post("/api/generate", model="other"), lab.embed("x"))
        assert found == [2.0, 0.1]

    in_lab(story, WARM)


def test_4_the_idle_runner_with_the_shortest_keep_alive_makes_room() -> None:
    async def story(lab: Lab) -> None:
        await lab.post("/api/generate", model="chat", keep_alive="10m")
        await lab.post("/api/embed", model="embed", input=[], keep_alive="2m")
        await lab.post("/api/generate", model="other")
        assert sorted(await lab.loaded()) == ["chat:latest", "other:latest"]

    in_lab(story, spec(max_loaded_models=2))


def test_4_vram_bounds_what_is_loaded() -> None:
    async def story(lab: Lab) -> None:
        for model in ("chat", "other"):
            await lab.raw(1, model=model)
        assert await lab.loaded() == ["other:latest"]

    in_lab(story, spec(vram_bytes=3 * GB))


def test_4_a_load_waits_when_no_runner_is_idle() -> None:
    async def story(lab: Lab) -> None:
        found = await ends(lab.raw(20), lab.post("/api/generate", model="other"))
        assert found == pytest.approx([2.02, 4.02])

    in_lab(story, spec(max_loaded_models=1, loaded=("chat",)))


def test_5_alternating_num_ctx_reloads_for_ever() -> None:
    async def story(lab: Lab) -> None:
        for size in (1024, 2048) * 3:
            _, answer = await lab.raw(1, options={"num_ctx": size})
            assert answer["load_duration"] >= 2e9
        assert lab.node.loads == {"chat:latest": 6}

    in_lab(story)


def test_5_unset_num_ctx_does_not_reload() -> None:
    async def story(lab: Lab) -> None:
        for _ in range(3):
            await lab.raw(1, options={"temperature": 0.5})
        assert lab.node.loads == {"chat:latest": 1}
        assert (await lab.get("/api/ps"))["models"][0]["context_length"] == 4096

    in_lab(story)


def test_6_items_of_an_embedding_run_one_after_another() -> None:
    async def story(lab: Lab) -> None:
        _, ten = await lab.embed(*"abcdefghij")
        assert now() == pytest.approx(1.0)
        assert len(ten["embeddings"]) == 10
        assert lab.node.counters.items_embedded == 10

    in_lab(story, WARM)


def test_6_bytes_cost_too() -> None:
    async def story(lab: Lab) -> None:
        await lab.embed("x" * 500)
        assert now() == pytest.approx(0.1 + 0.5)

    in_lab(story, replace(WARM, embed_bytes_per_s=1000))


def test_6_empty_input_is_an_empty_answer() -> None:
    async def story(lab: Lab) -> None:
        empties: list[Any] = [[], "", None]
        for empty in empties:
            assert await lab.post("/api/embed", model="embed", input=empty) == (
                200,
                {"model": "embed", "embeddings": []},
            )

    in_lab(story, WARM)


def test_6_one_item_that_is_too_long_fails_the_call_if_truncate_is_false() -> None:
    async def story(lab: Lab) -> None:
        long = "word " * 600
        assert (await lab.embed("short", long))[0] == 200
        status, answer = await lab.embed("short", long, truncate=False)
        assert (status, answer) == (400, {"error": "the input length exceeds the context length"})

    in_lab(story, WARM)


def test_8_streaming_is_the_default_one_line_a_word() -> None:
    async def story(lab: Lab) -> None:
        reply = await lab.stream(5)
        assert reply.headers["content-type"] == "application/x-ndjson"
        assert now() == pytest.approx(0.12)  # the head comes with the first word
        found = await lines(reply)
        assert [line["done"] for line in found] == [False] * 5 + [True]
        assert found[-1]["done_reason"] == "length"
        assert now() == pytest.approx(0.52)

    in_lab(story, WARM)


def test_8_a_node_does_not_wait_for_its_reader() -> None:
    async def story(lab: Lab) -> None:
        slow_reader = await lab.stream(10)
        await lab.raw(10)  # waits for the slot, which is free after a second
        assert now() == pytest.approx(2.03)
        assert len(await lines(slow_reader)) == 11

    in_lab(story, WARM)


def test_9_timings_are_nanoseconds_and_a_warm_load_is_not_zero() -> None:
    async def story(lab: Lab) -> None:
        _, cold = await lab.raw(10)
        _, warm = await lab.raw(10)
        assert cold["load_duration"] >= 2e9
        assert 1e6 <= warm["load_duration"] <= 7e6
        assert (warm["eval_count"], warm["eval_duration"]) == (10, 1_000_000_000)

    in_lab(story)


def test_9_a_cached_prefix_shrinks_the_duration_not_the_count() -> None:
    async def story(lab: Lab) -> None:
        text = "word " * 99
        _, first = await lab.raw(1, text)
        _, second = await lab.raw(1, text + "more")
        assert first["prompt_eval_count"] == second["prompt_eval_count"] == 101
        assert first["prompt_eval_duration"] == pytest.approx(1.01e9)
        assert second["prompt_eval_duration"] < 0.05e9

    in_lab(story, WARM)


def test_9_the_wait_of_an_embed_is_in_its_total_duration() -> None:
    async def story(lab: Lab) -> None:
        (_, first), (_, second) = await asyncio.gather(lab.embed(*"abcde"), lab.embed(*"fghij"))
        assert first["total_duration"] == pytest.approx(0.5e9, rel=0.01)
        assert second["total_duration"] == pytest.approx(1.0e9, rel=0.01)

    in_lab(story, WARM)


def test_12_leaving_in_decode_frees_the_slot_at_once() -> None:
    async def story(lab: Lab) -> None:
        reply = await lab.stream(100)
        await reply.aclose()
        left = now()
        await lab.raw(10, "another")
        assert now() - left == pytest.approx(1.02)
        assert lab.node.counters.aborted == 1

    in_lab(story, WARM)


def test_12_leaving_in_prefill_keeps_the_slot_until_its_end() -> None:
    async def story(lab: Lab) -> None:
        long = asyncio.create_task(lab.raw(10, "word " * 199))  # two seconds of reading
        await asyncio.sleep(0.5)
        long.cancel()
        await asyncio.gather(long, return_exceptions=True)
        await lab.raw(10, "another")
        assert now() == pytest.approx(2.01 + 1.02)
        assert lab.node.counters.aborted == 1

    in_lab(story, WARM)


def test_12_leaving_while_queued_takes_effect_at_once() -> None:
    async def story(lab: Lab) -> None:
        first = asyncio.create_task(lab.raw(10))
        await asyncio.sleep(0.1)
        queued = asyncio.create_task(lab.raw(1000))
        await asyncio.sleep(0.1)
        queued.cancel()
        last = asyncio.create_task(lab.raw(10))
        await asyncio.gather(first, queued, last, return_exceptions=True)
        assert now() == pytest.approx(2.03)

    in_lab(story, WARM)


def test_12_leaving_an_embedding_ends_it_after_the_item_in_work() -> None:
    async def story(lab: Lab) -> None:
        batch = asyncio.create_task(lab.embed(*(str(i) for i in range(100))))
        await asyncio.sleep(0.25)
        batch.cancel()
        await lab.embed("x")
        assert now() == pytest.approx(0.4)

    in_lab(story, WARM)


def test_12_leaving_in_a_load_lets_the_next_one_in() -> None:
    async def story(lab: Lab) -> None:
        first = asyncio.create_task(lab.raw(1))
        await asyncio.sleep(1)
        first.cancel()
        await lab.post("/api/generate", model="other")
        assert now() == pytest.approx(3.0)

    in_lab(story)


def test_13_raw_generate_continues_a_text_anywhere_on_any_node() -> None:
    async def story(lab: Lab) -> None:
        messages = [{"role": "user", "content": "tell me"}]
        _, whole = await lab.chat(40, "tell me")
        _, shown = await lab.post("/api/chat", model="chat", messages=messages, _debug_render_only=True)
        prompt = shown["_debug_info"]["rendered_template"]
        text = whole["message"]["content"]
        words = [w.replace("\0", " ") for w in text.replace(" ", "|\0").replace(".", "|.").split("|")[1:]]
        for said in (1, 13, 39):
            begun = "".join(words[:said])
            _, rest = await lab.raw(40 - said, prompt + begun, to=lab.world.endpoints[1])
            assert begun + rest["response"] == text

    in_lab(story, WARM, replace(WARM, port=2, seed=9, decode_tokens_per_s=77))


def test_13_a_plain_template_closes_the_message_a_continuing_one_leaves_it_open() -> None:
    async def story(lab: Lab) -> None:
        for model, continues in (("chat", False), ("going", True)):
            messages = [{"role": "user", "content": "a"}, {"role": "assistant", "content": " river takes"}]
            _, shown = await lab.post("/api/chat", model=model, messages=messages, _debug_render_only=True)
            assert shown["_debug_info"]["rendered_template"].endswith(" river takes") == continues

    in_lab(story, spec(models=(CHAT, replace(CHAT, name="going", continues=True))))


def test_14_keep_alive() -> None:
    async def story(lab: Lab) -> None:
        await lab.raw(1)
        await asyncio.sleep(299)
        assert await lab.loaded() == ["chat:latest"]
        await asyncio.sleep(2)
        assert await lab.loaded() == []
        await lab.raw(1, keep_alive="10s")
        await asyncio.sleep(11)
        assert await lab.loaded() == []
        await lab.raw(1, keep_alive=-1)
        await asyncio.sleep(1e6)
        assert await lab.loaded() == ["chat:latest"]
        assert (await lab.get("/api/ps"))["models"][0]["expires_at"] > "2300"
        status, answer = await lab.post("/api/generate", model="chat", keep_alive=0)
        assert (status, answer["done_reason"]) == (200, "unload")
        assert await lab.loaded() == []

    in_lab(story)


def test_14_unloading_a_busy_model_waits_for_its_answer() -> None:
    async def story(lab: Lab) -> None:
        task = asyncio.create_task(lab.raw(10))
        await asyncio.sleep(0.5)
        await lab.post("/api/generate", model="chat", keep_alive=0)
        assert "chat:latest" in await lab.loaded()
        assert (await task)[0] == 200
        assert "chat:latest" not in await lab.loaded()

    in_lab(story, WARM)


def test_14_an_empty_chat_loads() -> None:
    async def story(lab: Lab) -> None:
        status, answer = await lab.post("/api/chat", model="chat", messages=[])
        assert (status, answer["done_reason"]) == (200, "load")
        assert now() == pytest.approx(2.0)

    in_lab(story)


def test_16_the_silent_fallback_shows_only_in_size_vram() -> None:
    async def story(lab: Lab) -> None:
        await lab.raw(10)
        assert now() == pytest.approx(2.0 + 20 * 1.02)  # twenty times slower, with not a word about it
        entry = (await lab.get("/api/ps"))["models"][0]
        assert (entry["size"], entry["size_vram"]) == (2 * GB, 0)

    in_lab(story, spec(vram_bytes=0))


def test_16_a_model_may_fit_in_part() -> None:
    async def story(lab: Lab) -> None:
        await lab.raw(10)
        assert (await lab.get("/api/ps"))["models"][0]["size_vram"] == GB
        assert now() == pytest.approx(2.0 + 10.5 * 1.02)

    in_lab(story, spec(vram_bytes=GB))


def test_names_without_a_tag_mean_latest() -> None:
    async def story(lab: Lab) -> None:
        for name in ("chat", "chat:latest"):
            assert (await lab.raw(1, model=name))[0] == 200
        assert lab.node.loads == {"chat:latest": 1}

    in_lab(story)


def test_speeds_left_out_mean_instant() -> None:
    async def story(lab: Lab) -> None:
        await lab.raw(1000)
        await lab.embed(*"abc")
        assert now() == 0

    in_lab(story, NodeSpec(models=(CHAT, OTHER, EMBED)))
