"""`python -m sollol.compat FILE...` shows which names a program uses, and what happens to each."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from sollol.compat.reading import read_program
from sollol.errors import BadInput

PROGRAM = """
import os, sollol
import sollol.prioritization as pri
from sollol import OllamaPool, SOLLOLClient, TaskConfig, log_request, prioritization
from sollol.hybrid_router import HybridRouter as Router
from sollol.cluster import start_ray
from sollol.nothing import at_all
from sollol.compat import names
from .sollol import mine
from other.sollol import theirs

def later():
    from sollol.vram_monitor import VRAMMonitor
    pool = OllamaPool(enable_ray=True, discover_all_nodes=True)
    pool.generate("m", "p", routing_mode="fast")
    print(sollol.get_tracer, sollol.config, pri.PRIORITY_HIGH, pri.PRIORITY_LOWEST)
"""


def run(*given: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "sollol.compat", *given]
    return subprocess.run(command, capture_output=True, text=True, check=False)


def test_every_use_has_its_line_and_its_fate(tmp_path: Path) -> None:
    path = tmp_path / "program.py"
    path.write_text(PROGRAM)
    found = {use.name: (use.line, use.fate) for use in read_program(tmp_path)}
    assert found == {
        "sollol.prioritization": (4, "here"),
        "sollol.OllamaPool": (4, "here"),
        "sollol.SOLLOLClient": (4, "here"),
        "sollol.TaskConfig": (4, "unknown"),
        "sollol.log_request": (4, "gone"),
        "sollol.hybrid_router.HybridRouter": (5, "later"),
        "sollol.cluster.start_ray": (6, "gone"),
        "sollol.nothing.at_all": (7, "unknown"),
        "sollol.compat.names": (8, "ours"),
        "sollol.vram_monitor.VRAMMonitor": (13, "here"),
        "OllamaPool(enable_ray=)": (14, "here"),
        "generate(routing_mode=)": (15, "here"),
        "sollol.get_tracer": (16, "here"),
        "sollol.prioritization.PRIORITY_HIGH": (16, "here"),
        "sollol.prioritization.PRIORITY_LOWEST": (16, "unknown"),
    }


def test_the_command_prints_them_and_its_exit_code_tells(tmp_path: Path) -> None:
    path = tmp_path / "program.py"
    path.write_text(PROGRAM)
    shown = run(str(path))
    assert shown.returncode == 1
    assert f"{path}:6: gone    sollol.cluster.start_ray: one process is enough" in shown.stdout
    assert f"{path}:5: later   sollol.hybrid_router.HybridRouter: " in shown.stdout
    assert shown.stdout.endswith("10 works, 1 later, 2 gone, 3 unknown\n")
    rows = json.loads(run("--json", str(path)).stdout)
    assert rows[0]["path"] == str(path)
    assert {row["fate"] for row in rows} == {"works", "later", "gone", "unknown"}
    path.write_text("from sollol import OllamaPool\n")
    assert run(str(path)).returncode == 0


@pytest.mark.parametrize("text", ["def", "\x00"])
def test_what_is_no_program_is_named(tmp_path: Path, text: str) -> None:
    path = tmp_path / "program.py"
    path.write_text(text)
    shown = run(str(path))
    assert (shown.returncode, shown.stdout) == (2, "")
    assert "program.py is no Python" in shown.stderr
    with pytest.raises(BadInput, match="expected a Python file"):
        read_program(tmp_path / "missing.py")
