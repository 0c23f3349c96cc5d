"""Draw the rooms of src/sollol and what each imports of the others: the picture in docs/architecture.md.

python tools/house.py            write the picture into the page
python tools/house.py --lines    files, lines and functions of each room
"""

from __future__ import annotations

import ast
import sys
from collections import defaultdict
from pathlib import Path
from statistics import median
from typing import NamedTuple

ROOT = Path(__file__).parents[1]
SOURCE = ROOT / "src" / "sollol"
PAGE = ROOT / "docs" / "architecture.md"
BEGIN, END = "<!-- rooms: written by tools/house.py -->\n", "<!-- end of rooms -->\n"
VOCABULARY = ("core.types", "core.endpoint", "errors")  # for every room, so it is not drawn


class Room(NamedTuple):
    """A folder of src/sollol and what it imports, measured."""

    files: int
    lines: int
    functions: list[int]


def room_of(path: Path) -> str:
    """Return the room of a file; "" for the modules beside the rooms."""
    parts = path.relative_to(SOURCE).parts
    return parts[0] if len(parts) > 1 else ""


def rooms() -> dict[str, Room]:
    """Return every room with its size."""
    paths = defaultdict(list)
    for path in sorted(SOURCE.rglob("*.py")):
        paths[room_of(path)].append(path)
    found = {}
    for room, files in paths.items():
        texts = [path.read_text() for path in files]
        sizes = [
            (item.end_lineno or item.lineno) - item.lineno + 1
            for text in texts
            for item in ast.walk(ast.parse(text))
            if isinstance(item, ast.FunctionDef | ast.AsyncFunctionDef)
        ]
        found[room] = Room(len(files), sum(text.count("\n") for text in texts), sizes)
    return found


def imports() -> dict[str, set[str]]:
    """Return the rooms that each room imports at run time, without the vocabulary."""
    names = set(rooms()) - {""}
    found: dict[str, set[str]] = {name: set() for name in sorted(names)}
    for path in SOURCE.rglob("*.py"):
        room = room_of(path)
        if not room or path.stem == "__main__":
            continue
        for name in _imported(ast.parse(path.read_text())):
            inner = name.removeprefix("sollol.")
            target = inner.split(".")[0]
            if target in names - {room} and not inner.startswith(VOCABULARY):
                found[room].add(target)
    return found


def _imported(tree: ast.AST) -> set[str]:
    names = set()
    for item in ast.walk(tree):
        if isinstance(item, ast.ImportFrom) and item.module and item.module.startswith("sollol"):
            names |= {f"{item.module}.{alias.name}" for alias in item.names}
        elif isinstance(item, ast.Import):
            names |= {alias.name for alias in item.names if alias.name.startswith("sollol.")}
    return names


def picture() -> str:
    """Return the rooms as a Mermaid diagram. An arrow that another path implies is left out."""
    edges = imports()
    lines = ["```mermaid", "flowchart TD"]
    for room, targets in edges.items():
        implied = set().union(*(_reachable(edges, target) for target in targets)) if targets else set()
        lines += [f"    {room} --> {target}" for target in sorted(targets - implied)]
    return "\n".join([*lines, "```", ""])


def _reachable(edges: dict[str, set[str]], start: str) -> set[str]:
    found: set[str] = set()
    ahead = list(edges[start])
    while ahead:
        room = ahead.pop()
        if room not in found:
            found.add(room)
            ahead += edges[room]
    return found


def page(text: str) -> str:
    """Return the page with today's picture."""
    before, _, rest = text.partition(BEGIN)
    _, _, after = rest.partition(END)
    return before + BEGIN + picture() + END + after


if __name__ == "__main__":
    if "--lines" in sys.argv:
        found = rooms()
        for name, room in sorted(found.items()):
            usual = median(room.functions) if room.functions else 0
            print(f"{name or '(beside)':12} {room.files:4} files {room.lines:6} lines, functions of {usual:g} lines")
        print(
            f"{'all':12} {sum(r.files for r in found.values()):4} files {sum(r.lines for r in found.values()):6} lines"
        )
    else:
        PAGE.write_text(page(PAGE.read_text()))
