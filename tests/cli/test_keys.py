"""`sollol keys`: the key alone on stdout, once; the table; and what cannot be used."""

from __future__ import annotations

import json
import stat
from collections.abc import Callable
from pathlib import Path

import pytest
from typer.testing import Result

from sollol.gateway.auth.keys import Keyring, read_keys

Run = Callable[..., Result]


@pytest.fixture(autouse=True)
def file(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """Where keys are kept without a setting."""
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path / "config"))
    monkeypatch.chdir(tmp_path)
    return tmp_path / "config" / "sollol" / "keys.json"


def test_the_key_is_alone_on_stdout(run: Run, file: Path) -> None:
    added = run("keys", "add", "webui")
    token = added.stdout.removesuffix("\n")
    assert token.startswith("sk-sollol-")
    assert token.split() == [token]
    assert token not in added.stderr
    assert "only time" in added.stderr
    assert token not in file.read_text()
    assert stat.S_IMODE(file.stat().st_mode) == 0o600
    found = Keyring(path=file).find(token)
    assert found is not None
    assert (found.name, found.app, found.models, found.priority_max, found.admin) == ("webui", "webui", (), 10, False)


def test_every_option_is_kept_and_listed(run: Run, file: Path) -> None:
    bounds = ("--requests-per-minute", 60, "--tokens-per-minute", 9000, "--priority-max", 3)
    told = json.loads(
        run(
            "keys", "add", "ci", "--model", "llama3.2", "--model", "qwen*", *bounds, "--app", "CI", "--admin", "--json"
        ).stdout
    )
    assert set(told) == {"name", "key"}
    row = json.loads(run("keys", "list", "--json").stdout)["keys"][0]
    assert row == {
        "name": "ci",
        "start": told["key"][:14],
        "app": "CI",
        "models": ["llama3.2", "qwen*"],
        "requests_per_minute": 60,
        "tokens_per_minute": 9000,
        "priority_max": 3,
        "admin": True,
        "created": read_keys(file)[0].created,
    }
    listed = run("keys", "list").stdout
    for text in ("ci", told["key"][:14], "CI", "llama3.2, qwen*", "60", "9,000", "yes"):
        assert text in listed
    assert told["key"] not in listed
    assert read_keys(file)[0].hash not in listed


def test_revoked_is_gone(run: Run, file: Path) -> None:
    run("keys", "add", "a")
    assert json.loads(run("keys", "revoke", "a", "--json").stdout) == {"revoked": "a"}
    assert read_keys(file) == []
    assert "there are: none" in run("keys", "revoke", "a", code=2).stderr


def test_the_file_of_the_configuration(run: Run, tmp_path: Path, file: Path) -> None:
    config = tmp_path / "other.toml"
    config.write_text(f'[gateway]\nkeys_file = "{tmp_path}/mine.json"\n')
    run("keys", "add", "a", "--config", config)
    assert [key.name for key in read_keys(tmp_path / "mine.json")] == ["a"]
    assert not file.exists()


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (("a b",), "name 'a b' cannot be used"),
        (("a", "--priority-max", "11"), "11"),
        (("a", "--requests-per-minute", "0"), "0"),
        (("a", "--config", "none.toml"), "none.toml"),
    ],
)
def test_what_cannot_be_used_is_told(run: Run, words: tuple[str, ...], told: str) -> None:
    assert told in run("keys", "add", *words, code=2).stderr


def test_a_name_is_given_once(run: Run, file: Path) -> None:
    run("keys", "add", "a")
    before = file.read_bytes()
    assert "is called 'a' already" in run("keys", "add", "a", code=2).stderr
    assert file.read_bytes() == before


def test_a_broken_file_is_not_written_over(run: Run, file: Path) -> None:
    file.parent.mkdir(parents=True)
    file.write_text('{"keys": [{"name": "a"}]}')
    assert "cannot be read" in run("keys", "add", "b", code=2).stderr
    assert file.read_text() == '{"keys": [{"name": "a"}]}'
