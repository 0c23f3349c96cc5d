"""The command as a process: quick, with a manual, errors without traceback."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable

import pytest
from typer.testing import Result

Run = Callable[..., Result]
COMMANDS = ["discover", "nodes", "embed", "search", "demo", "ps", "chat", "top", "explain", "dashboard"]


def test_the_manual_names_every_command_and_the_exit_codes(run: Run) -> None:
    text = run("--help").stdout
    for word in [*COMMANDS, "SOLLOL_NODES", "130", "--version"]:
        assert word in text


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_has_a_manual_with_examples_codes_and_json(run: Run, command: str) -> None:
    text = run(command, "--help").stdout
    for word in ("Examples", f"sollol {command}", "Exit codes", "--json"):
        assert word in text
    manual = [line.rstrip() for line in text[text.index("Examples") :].splitlines()]
    assert all(len(line) < 80 for line in manual)


def test_as_a_module_it_starts_quickly_and_imports_nothing_heavy() -> None:
    code = "import sys, sollol.cli.app; print(sorted({'numpy','pypdf','pyarrow','asyncio'} & set(sys.modules)))"
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert out.stdout.strip() == "[]"
    out = subprocess.run([sys.executable, "-m", "sollol", "--version"], capture_output=True, text=True, check=True)
    assert out.stdout.startswith("sollol ")


def test_a_missing_package_is_named_with_its_remedy(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "numpy", None)
    assert "pip install '.[index]'" in run("search", "x.npz", "q", code=1).stderr
