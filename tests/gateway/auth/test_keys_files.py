"""Files of keys: a revoked key ends, whatever happens to the file; nothing else is touched."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest

from sollol.errors import ConfigError
from sollol.gateway.auth.keys import Key, Keyring, add_key, read_keys, revoke_key


def key(name: str = "me", **more: Any) -> Key:
    return Key(name=name, hash="", **more)


@pytest.mark.parametrize(
    "text",
    [
        b"\x00",
        b"[" * 20_000,
        b'{"keys": [{"name": "a", "hash": "b", "priority_max": ' + b"9" * 5_000 + b"}]}",
        b"\xe9",
        b"",
    ],
    ids=["NUL", "nested", "digits", "no text", "empty"],
)
def test_a_damaged_file_is_told_and_read_once_it_is_well(tmp_path: Path, text: bytes) -> None:
    path = tmp_path / "keys.json"
    token = add_key(path, key())
    ring = Keyring(path=path)
    good = path.read_bytes()
    path.write_bytes(text)
    with pytest.raises(ConfigError, match=r"keys\.json"):
        ring.reload()
    assert not ring.reload()
    assert ring.find(token) is not None, "what was known holds"
    path.write_bytes(good)
    revoke_key(path, "me")
    assert ring.reload()
    assert ring.find(token) is None


def test_a_revoked_key_ends_as_soon_as_the_file_can_be_read_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As while no file descriptor is free: `stat` works, `open` does not."""
    path = tmp_path / "keys.json"
    token = add_key(path, key())
    ring = Keyring(path=path)
    revoke_key(path, "me")

    def no_descriptor(path: Path) -> bytes:
        raise OSError(24, "Too many open files")

    with monkeypatch.context() as broken:
        broken.setattr("sollol.gateway.auth.keys.read_bounded", no_descriptor)
        for _ in range(2):
            with pytest.raises(ConfigError):
                ring.reload()
    assert ring.reload()
    assert ring.find(token) is None


def test_a_path_that_is_none_is_told(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="keys file"):
        Keyring(path=tmp_path / "a\0b")


def test_links_beside_the_file_harm_nothing(tmp_path: Path) -> None:
    victim, real = tmp_path / "victim", tmp_path / "real.json"
    victim.write_text("precious")
    link = tmp_path / "keys.json"
    link.symlink_to(real)
    add_key(link, key())
    assert link.is_symlink()
    assert [found.name for found in read_keys(real)] == ["me"]
    (tmp_path / "other.json.lock").symlink_to(victim)
    with pytest.raises(ValueError, match="cannot be written"):
        add_key(tmp_path / "other.json", key())
    assert victim.read_text() == "precious"
    assert not [name for name in os.listdir(tmp_path) if name.endswith(".new")]


@pytest.mark.parametrize(
    ("pattern", "model", "allowed"),
    [
        ("qwen*", "qwen3:8b", True),
        ("qwen*", "qwen3", True),
        ("qwen*", "llama3.2", False),
        ("llama3.2", "llama3.2:latest", True),
        ("llama3.2", "llama3.2:1b", False),
        ("llama3.2:*", "llama3.2:1b", True),
        ("*", "anything:7b", True),
        ("*:7b", "anything:7b", True),
        ("*:7b", "anything:8b", False),
    ],
)
def test_patterns_of_models(pattern: str, model: str, allowed: bool) -> None:
    assert key(models=(pattern,)).allows(model) is allowed
