"""Each of these tests sees the warnings that a process issues once."""

from __future__ import annotations

import pytest

from sollol.pool import keywords


@pytest.fixture(autouse=True)
def _unwarned(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(keywords, "_warned", set())
