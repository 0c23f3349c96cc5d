"""Ids of clients: each application has its own, and the oldest are forgotten."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest

from sollol.errors import BadInput
from sollol.gateway import request_ids
from sollol.gateway.auth.keys import Key
from sollol.gateway.request_ids import RequestIds

ANN, BEN, ADMIN = Key("ann", "1", app="ann"), Key("ben", "2", app="ben"), Key("root", "3", app="root", admin=True)


def request(id: str = "", key: Key | None = None) -> Any:
    return SimpleNamespace(header=lambda name: id, key=key)


def test_each_application_has_ids_of_its_own() -> None:
    ids = RequestIds()
    ids.add(request("x", ANN), 1)
    ids.add(request("x", BEN), 2)
    assert [ids.find(request(key=key), "x") for key in (ANN, BEN, ADMIN, Key("c", "4", app="c"))] == [1, 2, 2, None]


@pytest.mark.parametrize(("name", "expected"), [("17", 17), ("", None), ("x", None), ("1" * 19, None)])
def test_a_number_is_the_task_itself(name: str, expected: int | None) -> None:
    assert RequestIds().find(request(), name) == expected


def test_a_request_without_an_id_adds_none() -> None:
    ids = RequestIds()
    ids.add(request(), 1)
    assert ids.find(request(), "") is None


@pytest.mark.parametrize("name", ["a b", "a" * 65, "é", "a\n"])
def test_an_id_that_cannot_be_used_is_refused(name: str) -> None:
    with pytest.raises(BadInput, match="expected 1 to 64 letters"):
        RequestIds().add(request(name), 1)


def test_the_oldest_are_forgotten() -> None:
    ids = RequestIds()
    for number in range(request_ids.IDS_MOST + 1):
        ids.add(request(f"x{number}"), number)
    assert ids.find(request(), "x0") is None
    assert ids.find(request(), f"x{request_ids.IDS_MOST}") == request_ids.IDS_MOST
