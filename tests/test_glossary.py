"""The glossary names what exists, and everything of the core and the policies that has a name."""

from __future__ import annotations

import ast
import re
from importlib import import_module
from pathlib import Path
from typing import Any

import pytest

from sollol.compat.names import MODULES

ROOT = Path(__file__).parents[1]
PAGE = (ROOT / "docs" / "glossary.md").read_text()
ROWS = re.findall(r"^\| ([^|]+) \| `([\w.]+)` \| ([^|]+) \|$", PAGE, re.MULTILINE)


def is_assigned(owner: Any, name: str) -> bool:
    """Check that the constructor of a class sets an attribute."""
    if not isinstance(owner, type):
        return False
    file = ROOT / "src" / Path(*owner.__module__.split(".")).with_suffix(".py")
    return re.search(rf"^        self\.{name}\b.* = ", file.read_text(), re.M) is not None


def resolve(path: str) -> Any:
    """Return the class or the attribute that a row names. Raises AssertionError if there is none."""
    parts = path.split(".")
    for length in range(len(parts), 0, -1):
        try:
            found: Any = import_module(".".join(["sollol", *parts[:length]]))
        except ModuleNotFoundError:
            continue
        for name in parts[length:]:
            declared = name in getattr(found, "__annotations__", {}) or is_assigned(found, name)
            assert hasattr(found, name) or declared, f"sollol.{path} does not exist"
            found = None if declared and not hasattr(found, name) else getattr(found, name)
        return found
    raise AssertionError(f"sollol.{path} does not exist")


@pytest.mark.parametrize(("term", "path", "text"), ROWS, ids=[row[0] for row in ROWS])
def test_a_term_is_in_the_code_and_explained_in_one_sentence(term: str, path: str, text: str) -> None:
    resolve(path)
    assert re.fullmatch(r"[^.?!]+(\.\d[^.?!]*)*\.", text.replace("`/api/ps`", "x").replace("`group`", "x")), text
    assert text[0].isupper()


def test_no_term_stands_twice() -> None:
    terms = [term for term, _, _ in ROWS]
    assert len(terms) == len(set(terms)) > 100


def test_every_class_of_the_core_and_the_policies_is_explained() -> None:
    known = {path for _, path, _ in ROWS}
    for room in ("core", "policies"):
        for file in (ROOT / "src" / "sollol" / room).rglob("*.py"):
            module = ".".join(file.relative_to(ROOT / "src" / "sollol").with_suffix("").parts)
            for item in ast.parse(file.read_text()).body:
                if isinstance(item, ast.ClassDef) and not item.name.startswith("_"):
                    assert f"{module}.{item.name}" in known, f"docs/glossary.md lacks {module}.{item.name}"


def test_no_class_has_the_name_of_another() -> None:
    """In the whole project, a name stands for one class. The names of 0.9 are not counted."""
    former = {f"compat.{module}" for module in MODULES} | {"compat.client", "compat.app_config"}
    where: dict[str, set[str]] = {}
    for file in (ROOT / "src" / "sollol").rglob("*.py"):
        module = ".".join(file.relative_to(ROOT / "src" / "sollol").with_suffix("").parts)
        for item in ast.walk(ast.parse(file.read_text())):
            if isinstance(item, ast.ClassDef) and module not in former:
                where.setdefault(item.name, set()).add(module)
    assert {name: modules for name, modules in where.items() if len(modules) > 1} == {}
