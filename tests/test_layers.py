"""The import law of the house: who may know whom. The folder is the diagram, and this test keeps it true."""

from __future__ import annotations

import ast
import re
import subprocess
import sys
from pathlib import Path

import pytest

from tests.test_docs import module_at

SOURCE = Path(__file__).parents[1] / "src" / "sollol"

# A room and what it may import of the project, itself apart. `core.types` and `core.endpoint` are words for all.
WORDS = {"errors", "core.types", "core.endpoint"}
PURE_ROOMS = {"errors", "core", "policies", "workload"}
ENGINE = PURE_ROOMS | {
    "answers",
    "duties",
    "config",
    "node_options",
    "transport",
    "backends",
    "printable",
    "observe",
    "exporters",
}
FACES = ENGINE | {
    "http_server",
    "engine",
    "models",
    "discovery",
    "pool",
    "files",
    "version",
    "former",
    "registry",
    "agent",
}
LAW: dict[str, set[str]] = {
    "errors": set(),
    "version": set(),
    "former": {"errors"},  # names of 0.9, looked up in compat only when a program imports one
    "printable": set(),
    "answers": set(),
    "signals": set(),
    "files": set(),
    "node_options": {"errors"},
    "duties": set(),
    "config": WORDS | {"files", "former", "node_options"},  # files imports nothing, and reads without waiting for pipes
    "core": {"errors"},
    "policies": {"errors", "core"},
    "workload": {"errors", "core"},
    "transport": {"errors", "config", "core", "duties"},
    "backends": {"errors", "config", "core", "workload", "transport", "printable"},
    "http_server": {"errors", "core", "duties", "transport"},
    "registry": {"errors", "core", "duties", "transport", "http_server", "former"},
    "agent": {"errors", "core", "duties", "transport", "backends", "http_server", "registry", "version", "observe"},
    "observe": {"errors", "answers", "core", "version"},
    "exporters": {"errors", "config", "core", "observe", "duties"},
    "discovery": {"errors", "config", "core", "transport", "backends", "printable", "duties", "former"},
    "engine": ENGINE,
    "models": {"errors", "answers", "core", "transport", "backends", "registry"},
    "pool": ENGINE | {"engine", "files", "models", "discovery", "version", "former"},
    "sim": {"errors", "core", "transport", "backends", "signals"},
    "gateway": FACES | {"dashboard"},
    "dashboard": FACES,
    "compat": FACES | {"dashboard", "gateway"},
    "index": FACES,
    "cli": FACES | {"index", "signals", "sim", "dashboard", "gateway"},
    "__main__": {"cli", "sim", "compat", "errors", "printable"},
    "routing_modes": {"core", "former"},
    "routing_strategy": {"core"},
    "hedging": {"compat", "former"},
    "gpu_controller": {"compat", "former"},
    "intelligence": {"compat", "former"},
    "network_observer": {"compat", "former"},
    "": {"errors", "version", "former", "answers", "core", "discovery", "pool", "dashboard", "compat"},
}
PURE = ("core", "policies", "workload")
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


def test_the_root_is_imported_only_where_the_law_allows() -> None:
    for path in FILES:
        allowed = "" in LAW[room_of(path)] or room_of(path) == ""
        for item in ast.walk(ast.parse(path.read_text())):
            if not isinstance(item, ast.Import | ast.ImportFrom):
                continue
            root = isinstance(item, ast.Import) and any(alias.name == "sollol" for alias in item.names)
            root = root or (isinstance(item, ast.ImportFrom) and item.module == "sollol" and not is_module(item))
            assert allowed or not root, f"{path.relative_to(SOURCE)}, line {item.lineno} imports the root"


def is_module(item: ast.ImportFrom) -> bool:
    """Check that only modules are imported from the root, whose own law applies."""
    return all((SOURCE / f"{a.name}.py").exists() or (SOURCE / a.name).is_dir() for a in item.names)


# --- private names ---


def private_names(tree: ast.AST) -> set[str]:
    """Return the names with one underscore that a file defines: functions, variables, attributes, slots."""
    found: set[str] = set()
    for item in ast.walk(tree):
        if isinstance(item, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
            found.add(item.name)
        elif isinstance(item, ast.Name | ast.Attribute) and isinstance(item.ctx, ast.Store):
            found.add(item.id if isinstance(item, ast.Name) else item.attr)
        elif isinstance(item, ast.Constant) and isinstance(item.value, str):
            found.add(item.value)
    return {name for name in found if is_private(name)}


def is_private(name: str) -> bool:
    return name.startswith("_") and not name.startswith("__")


# Private names that files of other rooms still use. Each is to go; none may come.
CROSSING: set[str] = set()
STANDARD = {"_fields", "_replace", "_asdict", "_make", "_value_", "_name_", "_exit"}


def test_no_private_name_crosses_a_room() -> None:
    own: dict[str, set[str]] = {}
    trees = {path: ast.parse(path.read_text()) for path in FILES}
    for path, tree in trees.items():
        own.setdefault(room_of(path), set()).update(private_names(tree))
    everybody = set.union(*own.values())
    for path, tree in trees.items():
        room = room_of(path)
        for item in ast.walk(tree):
            names: list[str] = []
            if isinstance(item, ast.Attribute) and not isinstance(item.ctx, ast.Store):
                names = [item.attr] if item.attr not in own[room] | STANDARD and item.attr in everybody else []
            elif isinstance(item, ast.ImportFrom) and (item.module or "").startswith("sollol."):
                other = (item.module or "").split(".")[1]
                parts = [*(item.module or "").split("."), *(alias.name for alias in item.names)]
                names = parts if other != room else []
            crossing = {name for name in names if is_private(name)} - CROSSING
            line = getattr(item, "lineno", 0)
            assert not crossing, f"{path.relative_to(SOURCE)}, line {line} uses {crossing} of another room"


# --- state is written by the scheduler alone ---


def tainted_writes(tree: ast.AST) -> list[int]:
    """Return the lines that assign to an attribute or an item of what came from a scheduler."""
    lines: list[int] = []
    for function in ast.walk(tree):
        if not isinstance(function, ast.FunctionDef | ast.AsyncFunctionDef):
            continue
        names = {"scheduler"}

        def reaches(item: ast.AST, names: set[str] = names) -> bool:
            return any(
                (isinstance(part, ast.Attribute) and part.attr == "scheduler")
                or (isinstance(part, ast.Name) and part.id in names)
                for part in ast.walk(item)
            )

        before = 0
        while len(names) != before:
            before = len(names)
            for item in ast.walk(function):
                if isinstance(item, ast.Assign) and reaches(item.value) and not isinstance(item.value, ast.Call):
                    names |= {name.id for target in item.targets for name in locals_of(target)}
                elif isinstance(item, ast.For | ast.comprehension) and reaches(item.iter):
                    names |= {name.id for name in locals_of(item.target)}
        for item in ast.walk(function):
            targets = item.targets if isinstance(item, ast.Assign | ast.Delete) else []
            targets = [item.target] if isinstance(item, ast.AugAssign | ast.AnnAssign) else targets
            lines += [t.lineno for t in targets if isinstance(t, ast.Attribute | ast.Subscript) and reaches(t.value)]
    return lines


def locals_of(target: ast.expr) -> list[ast.Name]:
    """Return the local names that an assignment to this target binds."""
    if isinstance(target, ast.Tuple | ast.List):
        return [name for part in target.elts for name in locals_of(part)]
    return [target] if isinstance(target, ast.Name) else []


def test_nobody_but_the_scheduler_writes_its_state() -> None:
    for path in FILES:
        if room_of(path) not in PURE:
            lines = tainted_writes(ast.parse(path.read_text()))
            assert not lines, f"{path.relative_to(SOURCE)}, lines {lines}: send an event instead (`core.events`)"


def test_a_write_from_outside_would_be_found() -> None:
    for code in (
        "def f(self):\n for node in self.scheduler.view().nodes.values():\n  node.up = True",
        "def f(engine):\n engine.scheduler.queue_bound = 5",
        "def f(engine):\n nodes = engine.scheduler.nodes\n nodes['a'] = 1",
        "def f(engine):\n node = engine.scheduler.nodes['a']\n del node.models",
    ):
        assert tainted_writes(ast.parse(code)), code
    assert not tainted_writes(ast.parse("def f(self):\n self.scheduler = 1\n self.found[1] = self.scheduler.view()"))


# --- sizes ---

LINES_MOST, FUNCTION_MOST = 400, 60
LONG_FUNCTIONS = {
    "serve",  # the options of the command, with their help
    "_predict",  # one loop without calls, which runs for every replica of every decision
    "__init__",  # the fields of a replica, each with its meaning
}


@pytest.mark.parametrize("path", FILES, ids=lambda p: str(p.relative_to(SOURCE)))
def test_a_file_or_function_is_short_or_says_why(path: Path) -> None:
    text = path.read_text()
    tree = ast.parse(text)
    about = " ".join((ast.get_docstring(tree) or "").split())
    assert len(text.splitlines()) <= LINES_MOST or re.search(r"[Oo]ver 400 lines,? because", about), (
        "split it, or say why"
    )
    for item in ast.walk(tree):
        if isinstance(item, ast.FunctionDef | ast.AsyncFunctionDef) and item.name not in LONG_FUNCTIONS:
            length = (item.end_lineno or 0) - item.lineno + 1
            assert length <= FUNCTION_MOST, f"{item.name} has {length} lines"


# --- circles ---


def imports_of(path: Path) -> set[str]:
    """Return the modules a file imports anywhere: at its top, for types only, or inside a function."""
    return {name.removeprefix("sollol.") for name in imports(path) if name.startswith("sollol.")}


def circles(folder: str) -> list[set[str]]:
    """Return the sets of files of a folder that import each other in a circle."""
    names = {".".join(path.relative_to(SOURCE).with_suffix("").parts): path for path in (SOURCE / folder).rglob("*.py")}
    reach = {name: imports_of(path) & names.keys() for name, path in names.items()}
    for _ in names:
        for name, found in reach.items():
            reach[name] = found.union(*(reach[other] for other in found))
    rings = {frozenset(o for o in reach[name] if name in reach[o]) for name in names if name in reach[name]}
    return [set(ring) for ring in rings]


def test_no_circle_of_imports_even_for_types() -> None:
    assert not circles("policies")
    assert not circles("gateway")
    assert not any("gateway.app" in imports_of(path) for path in FILES if room_of(path) == "gateway")
    assert not circles("core")


@pytest.mark.parametrize("path", [p for p in FILES if room_of(p) in PURE], ids=lambda p: str(p.relative_to(SOURCE)))
def test_core_and_policies_are_pure(path: Path) -> None:
    assert not {name.split(".")[0] for name in imports(path)} & IMPURE


def test_nothing_that_is_compiled_awaits_in_a_finally() -> None:
    """docs/decisions/compiled.md says why."""
    build = module_at(SOURCE.parents[1] / "hatch_build.py")
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
