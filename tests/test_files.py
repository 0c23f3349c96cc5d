"""A file of the user's is written whole, or stays as it was."""

from __future__ import annotations

import os
import stat
from pathlib import Path

import pytest

from sollol.config import load_settings
from sollol.errors import ConfigError
from sollol.files import PRIVATE, read_bounded, replace_file, replacing
from sollol.gateway.auth.keys import NotOpened, read_keys


def mode_of(path: Path) -> int:
    return stat.S_IMODE(path.stat().st_mode)


def test_what_fails_leaves_the_old_file_and_nothing_beside(tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.write_text("old")

    def fail() -> None:
        with replacing(path) as beside:
            beside.write_text("half")
            raise OSError("disk full")

    with pytest.raises(OSError, match="disk full"):
        fail()
    assert path.read_text() == "old"
    assert os.listdir(tmp_path) == ["file"]


def test_a_link_stays_one(tmp_path: Path) -> None:
    target, link = tmp_path / "there" / "target", tmp_path / "link"
    target.parent.mkdir()
    target.write_text("old")
    link.symlink_to(target)
    replace_file(link, b"new")
    assert link.is_symlink()
    assert target.read_text() == "new"
    assert os.listdir(target.parent) == ["target"]


def test_what_a_killed_program_left_is_overwritten_and_a_planted_link_is_not_followed(tmp_path: Path) -> None:
    victim, path = tmp_path / "victim", tmp_path / "file"
    victim.write_text("precious")
    (tmp_path / ".file.new").symlink_to(victim)
    replace_file(path, b"new", PRIVATE)
    assert victim.read_text() == "precious"
    assert path.read_text() == "new"
    assert sorted(os.listdir(tmp_path)) == ["file", "victim"]


def test_modes(tmp_path: Path) -> None:
    private, shared = tmp_path / "private", tmp_path / "shared"
    replace_file(private, b"x", PRIVATE)
    assert mode_of(private) == 0o600
    shared.write_text("old")
    shared.chmod(0o640)
    replace_file(shared, b"new")
    assert mode_of(shared) == 0o640


def test_only_regular_files_of_bounded_size_are_read(tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.write_bytes(b"12345")
    assert read_bounded(path, 5) == b"12345"
    with pytest.raises(OSError, match="larger than 4 bytes"):
        read_bounded(path, 4)
    (tmp_path / "zero").symlink_to("/dev/zero")
    os.mkfifo(tmp_path / "pipe")  # nobody writes: opening it would wait for ever
    for name in ("zero", "pipe"):
        with pytest.raises(OSError, match="not a regular file"):
            read_bounded(tmp_path / name)


def test_settings_and_keys_that_are_no_files_are_errors(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(NotOpened, match="not a regular file"):
        read_keys(tmp_path / "pipe")
    with pytest.raises(ConfigError, match="not a regular file"):
        load_settings(config=str(tmp_path / "pipe"))
