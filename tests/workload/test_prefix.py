"""Hashes of the beginnings of a conversation, by which a node that has read it is found."""

from __future__ import annotations

from typing import Any

from sollol.workload.prefix import MESSAGE_COST, PREFIXES, prefix_of


def turns(*texts: str) -> list[dict[str, Any]]:
    return [{"role": "user", "content": text} for text in texts]


def test_conversations_share_the_hashes_of_the_messages_that_they_share() -> None:
    first, second = prefix_of(turns("a", "b", "c")), prefix_of(turns("a", "b", "other"))
    assert first[:2] == second[:2]
    assert first[2][0] != second[2][0]


def test_the_cost_is_that_of_all_messages_so_far() -> None:
    assert [cost for _, cost in prefix_of(turns("four", "three"))] == [4 + MESSAGE_COST, 9 + 2 * MESSAGE_COST]


def test_of_a_long_conversation_the_first_message_and_the_latest_are_kept() -> None:
    texts = [str(number) for number in range(20)]
    found, whole = prefix_of(turns(*texts)), [prefix_of(turns(*texts[:count]))[-1] for count in range(1, 21)]
    assert found == (whole[0], *whole[-PREFIXES:])


def test_parts_and_lone_surrogates_have_a_hash() -> None:
    assert len(prefix_of([{"role": "user", "content": [{"type": "text"}]}, {"content": "\ud800"}, {}])) == 3
