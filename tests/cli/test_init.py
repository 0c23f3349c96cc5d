"""`sollol init`: a file that names every setting, parses, and changes nothing until it is edited."""

from __future__ import annotations

import tomllib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from typer.testing import Result

from sollol.cli.init import text_of
from sollol.config import GATEWAY_TABLES, VARIABLES, load_settings
from sollol.gateway.settings import GatewaySettings, gateway_settings, template

Run = Callable[..., Result]
NONE_BY_DEFAULT = {"folder", "path", "keys_file", "request_timeout_s", "mode", "hedge", "listen"}


def uncommented() -> dict[str, Any]:
    """The file with every setting in it switched on."""
    lines = (line.removeprefix("# ") for line in text_of().splitlines())
    return tomllib.loads("\n".join(line for line in lines if line.startswith("[") or _is_setting(line)))


def _is_setting(line: str) -> bool:
    name, equals, _ = line.partition(" = ")
    return bool(equals) and len(name.split()) == 1


def test_it_says_the_defaults_of_every_setting() -> None:
    told = uncommented()
    for table, fields in template().items():
        assert set(told[table]) == {name for name, _ in fields}
        for name, default in fields:
            if name in NONE_BY_DEFAULT:
                assert default is None, name
            else:
                assert told[table][name] == (list(default) if isinstance(default, tuple) else default), name
    tables = ("discovery", "redis", "otel", "agents")
    plain = {field for field in VARIABLES.values() if field != "ollama_host" and not field.startswith(tables)}
    assert plain | {*tables, *GATEWAY_TABLES} == set(told)
    for table in tables:
        variables = {field for field in VARIABLES.values() if field.startswith(table)}
        variables |= {"otel_endpoint"} if table == "otel" else set()  # OpenTelemetry has its own variable
        assert {f"{table}_{name}" for name in told[table]} == variables


def test_each_setting_is_explained() -> None:
    lines = text_of().splitlines()
    for number, line in enumerate(lines):
        words = line.removeprefix("# ")
        if line.startswith("# ") and _is_setting(words):
            above = lines[number - 1]
            if above.startswith("["):  # a table of one kind of entry is explained above its name
                above = lines[number - 2]
            assert above.startswith("# "), line
            assert not _is_setting(above.removeprefix("# ")), line


def test_what_it_writes_means_the_defaults(run: Run, tmp_path: Path) -> None:
    path = tmp_path / "deep" / "sollol.toml"
    told = run("init", path)
    assert str(path) in told.stderr
    assert gateway_settings(load_settings({}, config=path), str(path)) == GatewaySettings()


def test_switched_on_it_can_be_used_too(tmp_path: Path) -> None:
    path = tmp_path / "sollol.toml"
    lines = (line.removeprefix("# ") for line in text_of().splitlines())
    path.write_text("\n".join(line for line in lines if line.startswith("[") or _is_setting(line)))
    found = gateway_settings(load_settings({}, config=path), str(path))
    assert found.mode == "fast"
    assert found.resolve_model("gpt-4o") == "llama3.2"


def test_a_file_that_is_there_stays(run: Run, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.chdir(tmp_path)
    path = tmp_path / "sollol.toml"
    path.write_text("mine")
    assert "--force" in run("init", code=2).stderr
    assert path.read_text() == "mine"
    run("init", "--force")
    assert path.read_text() == text_of()
    assert "cannot be written" in run("init", "sollol.toml/x", code=2).stderr
