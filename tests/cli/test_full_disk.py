"""A disk that is full at any step of `sollol embed`: one sentence, exit code 1, and the same command goes on later."""

from __future__ import annotations

import builtins
import contextlib
import errno
import os
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from typer.testing import Result

from tests.cli.fakes import FakePool

Run = Callable[..., Result]
Pool = Callable[..., FakePool]
SUFFIXES = [".npz", ".jsonl", ".parquet"]
SIZES = [0, 1, 100, 300, 1_000, 1_700, 4_000, 8_500, 20_000, 50_000]  # of a file, at which its disk is full


@contextlib.contextmanager
def files_of_at_most(size: int) -> Iterator[None]:
    """Let each write beyond this size of a file fail, as on a full disk."""
    import resource

    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


class Disk:
    """Counts what is asked of the disk, and refuses one step of it."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, refuse: int) -> None:
        self.steps: list[str] = []
        self.refuse = refuse
        for room, name in ((os, "fsync"), (os, "replace"), (os, "open"), (tempfile, "TemporaryFile")):
            monkeypatch.setattr(room, name, self._step(name, getattr(room, name)))
        monkeypatch.setattr(builtins, "open", self._step("open a log", builtins.open))

    def _step(self, name: str, work: Callable[..., Any]) -> Callable[..., Any]:
        def step(*given: Any, **named: Any) -> Any:
            ours = any(".new" in str(one) or ".partial" in str(one) for one in given) or name not in (
                "open",
                "open a log",
            )
            if ours:
                self.steps.append(name)
                if len(self.steps) == self.refuse:
                    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
            return work(*given, **named)

        return step


def is_one_sentence(result: Result) -> None:
    lines = [line for line in result.stderr.split("\n") if line.startswith("Error: ")]
    assert len(lines) == 1, result.stderr
    assert "cannot be written" in lines[0]
    assert "make room" in lines[0]
    assert "Traceback" not in result.output


@pytest.mark.skipif(sys.platform == "win32", reason="has no limits of sizes")
@pytest.mark.parametrize("suffix", SUFFIXES)
@pytest.mark.parametrize("size", SIZES)
def test_a_disk_that_is_full_at_a_size(
    size: int, suffix: str, run: Run, pool: Pool, docs: Path, tmp_path: Path
) -> None:
    whole, out = tmp_path / f"whole{suffix}", tmp_path / f"x{suffix}"
    pool()
    run("embed", docs, "--model", "m", "--out", whole)
    pool()
    largest = max(whole.stat().st_size, sum(path.stat().st_size for path in docs.iterdir()))
    with files_of_at_most(size):
        result = run("embed", docs, "--model", "m", "--out", out, code=1 if size < 8_500 else None)
    if result.exit_code:
        is_one_sentence(result)
        assert not out.exists()
    else:
        assert size < 2 * largest
    pool()
    run("embed", docs, "--model", "m", "--out", out)
    assert out.read_bytes() == whole.read_bytes()
    assert {path.name for path in tmp_path.iterdir()} == {"docs", whole.name, out.name}


@pytest.mark.parametrize("suffix", SUFFIXES)
def test_a_disk_that_is_full_at_a_step(
    suffix: str, run: Run, pool: Pool, docs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole, seen = tmp_path / f"whole{suffix}", set()
    pool()
    run("embed", docs, "--model", "m", "--out", whole)
    for step in range(1, 30):
        out = tmp_path / f"{step}{suffix}"
        pool()
        with monkeypatch.context() as patched:
            disk = Disk(patched, step)
            result = run("embed", docs, "--model", "m", "--out", out, code=None)
        if len(disk.steps) < step:
            break
        seen.add(disk.steps[-1] if len(disk.steps) == step else disk.steps[step - 1])
        if result.exit_code:
            is_one_sentence(result)
            assert not out.exists()
        pool()
        run("embed", docs, "--model", "m", "--out", out)
        assert out.read_bytes() == whole.read_bytes()
    assert {"fsync", "replace", "TemporaryFile", "open a log"} <= seen
    left = [path.name for path in tmp_path.iterdir() if path.suffix not in (suffix, "")]
    assert not left


@pytest.mark.skipif(sys.platform != "linux", reason="needs /dev/full")
@pytest.mark.parametrize("command", [["--help"], ["nodes", "--json"], ["keys", "list", "--json"]])
def test_what_is_printed_onto_a_full_disk(command: list[str], tmp_path: Path) -> None:
    with open("/dev/full", "w") as full:
        done = subprocess.run(
            [sys.executable, "-m", "sollol", *command],
            stdout=full, stderr=subprocess.PIPE, text=True, timeout=60,
            env={**os.environ, "SOLLOL_NODES": "127.0.0.1:9", "HOME": str(tmp_path), "XDG_CONFIG_HOME": str(tmp_path)},
        )  # fmt: skip
    assert done.returncode == 1
    assert "Traceback" not in done.stderr
    assert "Exception ignored" not in done.stderr
    assert "No space left" in done.stderr
