"""`sollol agent` as a process: its key, its address, and its end."""

from __future__ import annotations

import os
import signal
import stat
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import httpx
import pytest
from typer.testing import Result

from sollol.cli.agent import read_key
from sollol.errors import BadInput

Run = Callable[..., Result]


def test_it_serves_with_a_key_of_its_own_until_a_signal(tmp_path: Path) -> None:
    environment = {**os.environ, "XDG_CONFIG_HOME": str(tmp_path), "SOLLOL_AGENT_KEY": ""}
    command = [
        sys.executable,
        "-m",
        "sollol",
        "agent",
        "--port",
        "0",
        "--ollama",
        "127.0.0.1:9",
        "--models",
        str(tmp_path),
    ]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment)
    try:
        assert process.stdout is not None
        url = process.stdout.readline().strip()
        key = (tmp_path / "sollol" / "agent.key").read_text().strip()
        assert stat.S_IMODE((tmp_path / "sollol" / "agent.key").stat().st_mode) == 0o600
        assert httpx.get(f"{url}/agent/report", trust_env=False).status_code == 401
        report = httpx.get(f"{url}/agent/report", headers={"X-Api-Key": key}, trust_env=False, timeout=20).json()
        assert report["disk_free_bytes"] > 0
    finally:
        process.send_signal(signal.SIGTERM)
        _, errors = process.communicate(timeout=20)
    assert process.returncode == 0
    assert key not in errors
    assert "Restart: not allowed" in errors


def test_a_key_is_made_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path))
    monkeypatch.delenv("SOLLOL_AGENT_KEY", raising=False)
    assert read_key() == read_key()
    monkeypatch.setenv("SOLLOL_AGENT_KEY", "a-key-of-the-environment")
    assert read_key() == "a-key-of-the-environment"
    for bad in ("short", "a key with blanks in it"):
        monkeypatch.setenv("SOLLOL_AGENT_KEY", bad)
        with pytest.raises(BadInput, match="expected at least 16 visible ASCII characters") as raised:
            read_key()
        assert bad not in str(raised.value)


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (["--restart", "x 'y"], "No closing quotation"),
        (["--ollama", "http://"], "is not an address"),
        (["--host", "203.0.113.1"], "cannot listen on 203.0.113.1"),
    ],
)
def test_what_cannot_be_used(
    run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, words: list[str], says: str
) -> None:
    monkeypatch.setenv("SOLLOL_AGENT_KEY", "a-key-of-the-environment")
    code = 75 if "--host" in words else 2
    assert says in run("agent", "--port", "0", *words, code=code).stderr
