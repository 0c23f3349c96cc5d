"""A file of the user's is written whole, or stays as it was."""

from __future__ import annotations

import os
import stat
from pathlib import Path

import pytest

from sollol.files import PRIVATE, replace_file, replacing


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
