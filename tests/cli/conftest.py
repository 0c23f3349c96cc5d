"""No test of this room looks for nodes on a real network."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner, Result

from sollol.cli import fleet
from sollol.cli.app import app
from tests.cli.fakes import FakePool


@pytest.fixture(autouse=True)
def _no_network(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("OLLAMA_HOST", "SOLLOL_CONFIG", "SOLLOL_DISCOVERY_SUBNETS", "SOLLOL_DISCOVERY_PORTS"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("SOLLOL_NODES", "127.0.0.1:9")


@pytest.fixture
def run() -> Callable[..., Result]:
    """Run `sollol` in this process; what it raises by mistake is raised here."""

    def invoke(*words: object, code: int | None = 0) -> Result:
        result = CliRunner().invoke(app, [str(word) for word in words])
        if result.exception is not None and not isinstance(result.exception, SystemExit):
            raise result.exception
        assert code is None or result.exit_code == code, result.output
        return result

    return invoke


@pytest.fixture
def pool(monkeypatch: pytest.MonkeyPatch) -> Callable[..., FakePool]:
    """Put a fake pool in the place of the real one."""

    def put(**how: Any) -> FakePool:
        fake = FakePool(**how)
        monkeypatch.setattr(fleet, "open_pool", lambda endpoints: fake)
        return fake

    return put


@pytest.fixture
def docs(tmp_path: Path) -> Path:
    """A small folder of text: 12 files of about three passages each."""
    folder = tmp_path / "docs"
    folder.mkdir()
    for number in range(12):
        sentences = (f"Sentence {i} of file {number} says something of its own." for i in range(45))
        (folder / f"{number:02}.txt").write_text(" ".join(sentences))
    return folder
