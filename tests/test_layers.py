"""The import law of the house: who may know whom. The folder is the diagram, and this test keeps it true."""

from __future__ import annotations

import ast
import importlib.util
import subprocess
import sys
from pathlib import Path

import pytest

SOURCE = Path(__file__).parents[1] / "src" / "sollol"

# A room and what it may import of the project, itself apart. `core.types` and `core.endpoint` are words for all.
WORDS = {"errors", "core.types", "core.endpoint"}
LAW: dict[str, set[str]] = {
    "errors": set(),
    "config": WORDS,
    "signals": set(),
    "files": set(),
    "duties": set(),
    "core": {"errors"},
    "policies": {"errors", "core"},
    "nodes": {"errors", "config", "core", "duties"},
    "observe": {"errors", "config", "core"},
    "discovery": {"errors", "config", "core", "nodes", "duties"},
    "pool": {"errors", "config", "core", "policies", "nodes", "observe", "discovery", "duties"},
    "sim": {"errors", "core", "nodes", "signals"},
    "gateway": {"errors", "config", "core", "policies", "nodes", "observe", "discovery", "pool", "files", "duties", ""},
    "dashboard": {"errors", "config", "core", "nodes", "pool", "duties", ""},
    "cli": {
        "errors",
        "config",
        "core",
        "policies",
        "discovery",
        "pool",
        "sim",
        "nodes",
        "dashboard",
        "gateway",
        "signals",
        "files",
        "duties",
        "",
    },
    "__main__": {"cli", "sim"},
    "compat": {"errors", "config", "core", "policies", "nodes", "observe", "pool", "duties"},
    "routing_modes": {"core"},
    "routing_strategy": {"core"},
    "hedging": {"compat"},
    "gpu_controller": {"compat"},
    "intelligence": {"compat"},
    "network_observer": {"compat"},
    "": {"errors", "core", "discovery", "pool", "dashboard", "compat"},
}
PURE = ("core", "policies")
IMPURE = {"asyncio", "time", "socket", "logging", "threading", "os", "subprocess", "datetime", "selectors"}


def imports(path: Path) -> set[str]:
    found: set[str] = set()
    for item in ast.walk(ast.parse(path.read_text())):
        if isinstance(item, ast.Import):
            found |= {alias.name for alias in item.names}
        elif isinstance(item, ast.ImportFrom) and item.module and not item.level:
            found.add(item.module)
            found |= {f"{item.module}.{alias.name}" for alias in item.names}
    return found


def room_of(path: Path) -> str:
    parts = path.relative_to(SOURCE).with_suffix("").parts
    return "" if parts == ("__init__",) else parts[-1] if parts[-1] == "__main__" else parts[0]


FILES = sorted(SOURCE.rglob("*.py"))


@pytest.mark.parametrize("path", FILES, ids=lambda p: str(p.relative_to(SOURCE)))
def test_imports_follow_the_law(path: Path) -> None:
    room = room_of(path)
    for name in imports(path):
        if not name.startswith("sollol."):
            continue
        inner = name.removeprefix("sollol.")
        target = inner.split(".")[0]
        if target == room or (not (SOURCE / target).exists() and not (SOURCE / f"{target}.py").exists()):
            continue
        assert target in LAW[room] or any(inner.startswith(word) for word in LAW[room] if "." in word), (
            f"{path.relative_to(SOURCE)} ({room or 'package'}) imports {name}"
        )


@pytest.mark.parametrize("path", [p for p in FILES if room_of(p) in PURE], ids=lambda p: str(p.relative_to(SOURCE)))
def test_core_and_policies_are_pure(path: Path) -> None:
    assert not {name.split(".")[0] for name in imports(path)} & IMPURE


def test_nothing_that_is_compiled_awaits_in_a_finally() -> None:
    """docs/decisions/compiled.md says why."""
    spec = importlib.util.spec_from_file_location("hatch_build", SOURCE.parents[1] / "hatch_build.py")
    assert spec is not None
    assert spec.loader is not None
    build = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(build)
    for module in build.modules():
        for item in ast.walk(ast.parse((SOURCE.parent / module).read_text())):
            last = ast.Module(item.finalbody if isinstance(item, ast.Try) else [], [])
            waits = [inner for inner in ast.walk(last) if isinstance(inner, ast.Await | ast.AsyncFor | ast.AsyncWith)]
            assert not waits, f"{module}, line {waits[0].lineno}"


def test_importing_starts_nothing() -> None:
    code = (
        "import sys, threading, sollol;"
        "assert threading.active_count() == 1;"
        "assert not {'asyncio', 'socket', 'httptools', 'msgspec', 'numpy'} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
