"""`python -m sollol.compat FILE...` shows which names a program uses, and what happens to each."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from sollol.compat.reading import read_program

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
    found = {use.name: (use.line, use.fate) for use in read_program(tmp_path)[0]}
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


@pytest.mark.parametrize(
    ("line", "name", "fate"),
    [
        ("import sollol as s; s.metrics_logger.log_metric()", "sollol.metrics_logger.log_metric", "gone"),
        ("from sollol import metrics_logger as m; m.log_metric()", "sollol.metrics_logger.log_metric", "gone"),
        ("import sollol.pool; sollol.pool.OllamaPool.chat", "sollol.pool.OllamaPool", "here"),
        ("import importlib; importlib.import_module('sollol.nothing')", "sollol.nothing", "unknown"),
        ("__import__('sollol.pool')", "sollol.pool", "here"),
    ],
)
def test_names_behind_modules_are_found(tmp_path: Path, line: str, name: str, fate: str) -> None:
    path = tmp_path / "program.py"
    path.write_text(line)
    assert (name, fate) in {(use.name, use.fate) for use in read_program(path)[0]}


def test_a_file_without_an_answer_does_not_hide_the_others(tmp_path: Path) -> None:
    (tmp_path / "package.py").mkdir()
    (tmp_path / ".venv").mkdir()
    (tmp_path / ".venv" / "module.py").write_text("from sollol import theirs")
    (tmp_path / "broken.py").write_text("print 'Python 2'")
    (tmp_path / "program.py").write_text("from sollol import OllamaPool\nx = '\\d'\n")
    shown = run(str(tmp_path))
    assert shown.returncode == 2
    assert "broken.py is no Python" in shown.stderr
    assert len(shown.stderr.splitlines()) == 1
    assert shown.stdout.endswith("1 works, 0 later, 0 gone, 0 unknown\n")


@pytest.mark.parametrize("text", ["def", "\x00", "x = " + "+".join(["1"] * 60_000), "x = " + "-" * 90_000 + "1"])
def test_what_is_no_program_is_named(tmp_path: Path, text: str) -> None:
    path = tmp_path / "program.py"
    path.write_text(text)
    shown = run(str(path))
    assert shown.returncode == 2
    assert "0 works" in shown.stdout
    assert "program.py is no Python" in shown.stderr or "nested too deeply" in shown.stderr
    assert "expected a Python file" in str(read_program(tmp_path / "missing.py")[1][0])
