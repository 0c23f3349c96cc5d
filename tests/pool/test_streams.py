"""Streams that survive: wherever an answer breaks off, the caller hears exactly what an unbroken one says."""

from __future__ import annotations

import sys
from dataclasses import replace
from functools import cache
from typing import Any, NamedTuple

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sollol.engine.resumption import is_plain
from sollol.errors import ResponseError, StreamBroken
from sollol.sim import run
from sollol.sim.words import render
from tests.pool.breaking import MESSAGES, MODEL, Break, Heard, Stage, positions, staged, start_of, talker

PREFIX = [*MESSAGES, {"role": "assistant", "content": " an answer that has begun"}]
KINDS = ("chat", "generate")
SUDDEN = ("cut_after", "late_error_after", "stall_after")
SLOW = ("die", "freeze", "black_hole")
PREDICT = 7


class Case(NamedTuple):
    """What is asked, and of which model. `words`: the usual length; short ones end by themselves."""

    kind: str = "chat"
    continues: bool = False
    words: float = 1e9
    predict: int | None = PREDICT
    stop: tuple[str, ...] = ()
    seed: int = 0
    prefix: bool = False

    def options(self, predict: int | None) -> dict[str, Any]:
        return {
            "seed": self.seed,
            **({} if predict is None else {"num_predict": predict}),
            **({"stop": list(self.stop)} if self.stop else {}),
        }

    def asked(self) -> dict[str, Any]:
        return {"options": self.options(self.predict), **({"messages": PREFIX} if self.prefix else {})}


class Right(NamedTuple):
    text: str
    tokens: int
    reason: str
    eval_count: int
    prompt_eval_count: int


@cache
def unbroken(case: Case) -> Right:
    async def main() -> Heard:
        async with staged([talker(1, continues=case.continues, words=case.words)]) as stage:
            return await Heard().listen(await start_of(case.kind, stage.pool, **case.asked()))

    heard = run(main())
    assert heard.error is None
    last = heard.last
    return Right(heard.text, len(heard.parts), last.done_reason, last.eval_count, last.prompt_eval_count)


async def broken(case: Case, breaks: list[Break], nodes: int = 3, chop: tuple[int, ...] = ()) -> tuple[Heard, Stage]:
    specs = [talker(i + 1, continues=case.continues, words=case.words) for i in range(nodes)]
    async with staged(specs, breaks, chop) as stage:
        heard = await Heard().listen(await start_of(case.kind, stage.pool, **case.asked()))
    return heard, stage


def same(heard: Heard, stage: Stage, case: Case) -> None:
    """What was heard is what an unbroken answer says, its counts too, and the record tells of each seam."""
    right = unbroken(case)
    assert heard.error is None
    assert heard.text == right.text
    assert len(heard.parts) == right.tokens
    last = heard.last
    assert (last.model, last.done, last.done_reason) == (MODEL, True, right.reason)
    assert last.eval_count == right.eval_count
    assert last.total_duration >= last.eval_duration > 0
    sent, seams = stage.transport.sent, last.routing.seams
    assert len({request.node for request in sent}) == len(sent), "a node that failed is not asked again"
    goes_on = [request for request in sent if request.body.get("raw")]
    for request in goes_on:
        assert request.path == "/api/generate"
        tokens = _tokens_before(request.body["prompt"], case, heard)
        left = None if case.predict is None else case.predict - tokens
        assert request.body["options"] == case.options(left)
    for seam in seams:
        told = "".join(heard.parts[: seam["tokens"]])
        assert seam["characters"] == len(told)
        assert seam["node"] in [request.node for request in goes_on]
    assert last.routing.attempts == len(stage.ledger.starts)


def _tokens_before(prompt: str, case: Case, heard: Heard) -> int:
    """How many tokens stand in the prompt of a request that goes on, behind the prompt of the request itself."""
    model = talker(1, continues=case.continues, words=case.words).models[0]
    rendered = render(model, PREFIX if case.prefix else MESSAGES)
    assert prompt.startswith(rendered)
    said = prompt.removeprefix(rendered)
    return next(n for n in range(len(heard.parts) + 1) if "".join(heard.parts[:n]) == said)


@pytest.mark.parametrize("fault", SUDDEN)
@pytest.mark.parametrize("continues", [False, True])
@pytest.mark.parametrize("kind", KINDS)
def test_one_break_anywhere(kind: str, continues: bool, fault: str) -> None:
    for case in (Case(kind, continues), Case(kind, continues, words=4, predict=None, seed=3)):
        for at in positions(unbroken(case).tokens):
            same(*run(broken(case, [(fault, at)])), case)


@pytest.mark.parametrize("fault", SUDDEN)
def test_a_break_that_is_over_is_nobodys_exception(fault: str) -> None:
    """Compiled, it once was that of whatever came later on the same thread."""
    case = Case()
    same(*run(broken(case, [(fault, 3)])), case)
    assert sys.exc_info() == (None, None, None)


@pytest.mark.parametrize("fault", SLOW)
@pytest.mark.parametrize("kind", KINDS)
def test_a_node_that_goes_at_any_moment(kind: str, fault: str) -> None:
    case = Case(kind)
    for at in positions(PREDICT):
        heard, stage = run(broken(case, [(fault, at)]))
        same(heard, stage, case)


@pytest.mark.parametrize("fault", SUDDEN)
def test_a_last_message_of_the_assistant(fault: str) -> None:
    """A template that continues it and one that closes it: both are rendered, and gone on with, as they are."""
    texts = set()
    for continues in (False, True):
        case = Case(continues=continues, prefix=True)
        for at in positions(PREDICT):
            same(*run(broken(case, [(fault, at)])), case)
        texts.add(unbroken(case).text)
    assert len(texts) == 2


@pytest.mark.parametrize("stop", [(".",), ("\n",), (" 東京", " мир")])
@pytest.mark.parametrize("kind", KINDS)
def test_stop_words(kind: str, stop: tuple[str, ...]) -> None:
    case = Case(kind, predict=60, stop=stop)
    assert unbroken(case).reason == "stop"
    for at in range(0, unbroken(case).tokens + 1, 3):
        same(*run(broken(case, [("cut_after", at)])), case)


def test_without_a_bound_an_answer_ends_where_it_would_have() -> None:
    case = Case(words=30, predict=None, seed=2)
    tokens = unbroken(case).tokens
    assert 10 < tokens < 200
    for at in range(0, tokens + 1, 4):
        same(*run(broken(case, [("cut_after", at)])), case)


@pytest.mark.parametrize("more", [{"raw": True}, {"system": "Be brief."}, {"keep_alive": "10m"}, {"shift": False}])
def test_other_fields_of_a_request_are_kept(more: dict[str, Any]) -> None:
    async def main() -> None:
        texts = []
        for breaks in ([], [("cut_after", 3)], [("late_error_after", 1), ("cut_after", 2)]):
            async with staged([talker(i) for i in (1, 2, 3)], breaks) as stage:
                call = start_of("generate", stage.pool, options={"num_predict": PREDICT}, **more)
                heard = await Heard().listen(await call)
                texts.append(heard.text)
                assert heard.error is None
                assert len(stage.transport.sent) == 1 + len(breaks)
                for request in stage.transport.sent:
                    assert request.body.get("keep_alive") == more.get("keep_alive")
                    assert request.body.get("shift") == more.get("shift")
        assert len(set(texts)) == 1

    run(main())


def test_an_answer_that_has_outgrown_the_context_is_not_gone_on_with() -> None:
    """Its beginning would be cut off, and what follows would be another answer."""

    async def main() -> None:
        specs = [talker(i, num_ctx=64) for i in (1, 2)]
        async with staged(specs, [("cut_after", 30)]) as stage:
            heard = await Heard().listen(await start_of("chat", stage.pool, options={"num_predict": 60}))
            ends_broken(heard, 30)
            assert "exceeds the available context size" in str(heard.error)

    run(main())


PLAIN = {"model": MODEL, "messages": MESSAGES, "stream": True}
NOT_PLAIN: list[dict[str, Any]] = [
    {"tools": [{}]},
    {"format": "json"},
    {"images": ["aGVsbG8="]},
    {"think": True},
    {"think": "low"},
    {"suffix": "x"},
    {"context": [1, 2]},
    {"logprobs": True},
    {"a_field_to_come": 1},
    {"messages": []},
    {"messages": [{"role": "user", "content": "x", "images": ["aGVsbG8="]}]},
    {"messages": [{"role": "assistant", "content": "", "tool_calls": [{}]}]},
]


def test_which_requests_can_be_gone_on_with_at_all() -> None:
    assert is_plain(PLAIN)
    assert is_plain(PLAIN | {"options": {"stop": ["x"]}, "keep_alive": 0, "tools": [], "format": "", "think": False})
    assert is_plain({"model": MODEL, "prompt": "x", "system": "s", "template": "t", "raw": True})
    for more in NOT_PLAIN:
        assert not is_plain(PLAIN | more), more


BREAKS = st.tuples(st.sampled_from([*SUDDEN, "bytes", *SLOW]), st.integers(0, 14))


@settings(derandomize=True, deadline=None, max_examples=60)
@given(
    breaks=st.lists(BREAKS, min_size=2, max_size=5),
    kind=st.sampled_from(KINDS),
    continues=st.booleans(),
    predict=st.sampled_from([None, 12]),
    chop=st.lists(st.integers(1, 90), max_size=4),
)
def test_several_nodes_break_in_a_row(
    breaks: list[Break], kind: str, continues: bool, predict: int | None, chop: list[int]
) -> None:
    """Each node breaks where it likes, between two tokens or two bytes; the sixth one is healthy."""
    breaks = [(fault, 97 * at if fault == "bytes" else at) for fault, at in breaks]
    if 0 in [at for fault, at in breaks if fault == "late_error_after"][1:]:
        return  # a second node says the same words and came no further: then it is the request
    case = Case(kind, continues, words=25, predict=predict, seed=1)
    heard, stage = run(broken(case, breaks, nodes=6, chop=tuple(chop)))
    same(heard, stage, case)


@settings(derandomize=True, deadline=None, max_examples=60)
@given(cut=st.integers(0, 1100), sizes=st.lists(st.integers(1, 40), min_size=1, max_size=5))
def test_characters_that_are_cut_in_two(cut: int, sizes: list[int]) -> None:
    """The connection ends after any byte, and pieces end anywhere, also inside a character of several bytes."""
    case = Case()
    heard, stage = run(broken(case, [("bytes", cut)], chop=tuple(sizes)))
    same(heard, stage, case)


def test_nodes_that_stop_at_the_same_place_in_the_same_words() -> None:
    """It is the request only when no node is left; a third one that is well goes on."""

    async def main() -> None:
        specs = [talker(i) for i in (1, 2, 3)]
        same(*await broken(Case(), [("late_error_after", 3), ("late_error_after", 0)]), Case())
        async with staged(specs, [("late_error_after", 3), ("late_error_after", 0), ("late_error_after", 0)]) as s:
            heard = await Heard().listen(await start_of("chat", s.pool, **Case().asked()))
            ends_broken(heard, 3)
            assert len(s.transport.sent) == 3
        async with staged(specs, [("late_error_after", 0)] * 3) as s:
            heard = await Heard().listen(await start_of("chat", s.pool, **Case().asked()))
            assert isinstance(heard.error, ResponseError)
            assert heard.error.status_code == 500
        same(*await broken(Case(), [("late_error_after", 3), ("late_error_after", 1)]), Case())

    run(main())


# --- where it cannot be exact ----------------------------------------------------------------------------------------


def ends_broken(heard: Heard, received: int) -> None:
    """A typed error that carries what was received."""
    assert isinstance(heard.error, StreamBroken), heard.error
    assert len(heard.parts) == received
    assert heard.error.received == heard.text
    assert f"after {len(heard.text)} characters" in str(heard.error)


FIELDS: dict[str, dict[str, Any]] = {
    "tools": {"tools": [{"type": "function", "function": {"name": "look", "parameters": {"type": "object"}}}]},
    "format": {"format": {"type": "object", "properties": {name: {"type": "string"} for name in "abcdef"}}},
    "logprobs": {"logprobs": True},
    "think": {"think": True},
}


@pytest.mark.parametrize("name", FIELDS)
def test_what_cannot_go_on_exactly(name: str) -> None:
    about = {"tools": name == "tools", "thinking": name == "think"}
    messages = [*MESSAGES, {"role": "tool", "content": "it is warm"}] if name == "tools" else MESSAGES

    async def main() -> None:
        for at in (1, 4):
            break_at = at + 8 * (name == "think")  # thoughts come first
            async with staged([talker(i, model=about) for i in (1, 2)], [("cut_after", break_at)]) as s:
                heard = await Heard().listen(await start_of("chat", s.pool, messages=messages, **FIELDS[name]))
                ends_broken(heard, at)
                assert len(s.transport.sent) == 1

    run(main())


@pytest.mark.parametrize("name", FIELDS)
def test_before_the_first_byte_these_move_too(name: str) -> None:
    about = {"tools": name == "tools", "thinking": name == "think"}

    async def main() -> None:
        for fault in SUDDEN:
            async with staged([talker(i, model=about) for i in (1, 2)], [(fault, 0)]) as s:
                heard = await Heard().listen(await start_of("chat", s.pool, options={"num_predict": 9}, **FIELDS[name]))
                assert heard.error is None
                assert heard.last.done
                assert heard.last.routing.seams == []

    run(main())


def test_a_model_that_thinks_by_itself_is_not_gone_on_with() -> None:
    async def main() -> None:
        breaks = [("cut_after", 9), ("cut_after", 11)]  # it is not known yet, and known; 8 tokens are thoughts
        async with staged([talker(i, model={"thinking": True}) for i in (1, 2, 3)], breaks) as s:
            for received in (1, 3):
                ends_broken(await Heard().listen(await start_of("chat", s.pool)), received)
            assert len(s.transport.sent) == 2

    run(main())


@pytest.mark.parametrize("fit", [True, False])
def test_who_cannot_go_on_is_passed_over_and_not_at_fault(fit: bool) -> None:
    """Only a node with the same model that can tell the exact prompt goes on."""
    others = [talker(2, renders=False), talker(3, model={"digest": "0" * 64}), talker(4, renders=False)]
    specs = [talker(1), *(replace(spec, loaded=()) for spec in [*others, *([talker(5)] if fit else [])])]

    async def main() -> None:
        async with staged(specs, [("cut_after", 3)]) as s:
            heard = await Heard().listen(await start_of("chat", s.pool, **Case().asked()))
            assert s.transport.sent[0].node == "10.0.0.1:11434"
            if fit:
                same(heard, s, Case())
                assert [seam["node"] for seam in heard.last.routing.seams] == ["10.0.0.5:11434"]
            else:
                ends_broken(heard, 3)
            stats = s.pool.get_stats()["node_performance"]
            assert [row["failed_requests"] for row in stats.values()] == [1, 0, 0, 0, 0][: len(specs)]
            for node in s.pool.engine.scheduler.view().nodes.values():
                assert all(replica.breaker.closed for replica in node.replicas.values())

    run(main())
