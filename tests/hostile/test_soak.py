"""The soak, for a few seconds."""

from __future__ import annotations

import sys

import pytest

from tests.hostile.soak import soak


@pytest.mark.skipif(sys.platform != "linux", reason="reads its memory from /proc")
def test_hostile_clients_and_nodes_leave_nothing_behind() -> None:
    found = soak(3.0, 1)
    assert found.holds, found
    assert found.grown_mb < 100
