"""The version, and how the pages say to install: another project has this name on PyPI."""

from __future__ import annotations

import re
import subprocess
import sys
import tomllib
from pathlib import Path

import sollol

ROOT = Path(__file__).parents[1]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md")), *sorted((ROOT / "deploy").rglob("*"))]
SOURCES = [*sorted((ROOT / "src").rglob("*.py")), ROOT / "Makefile", ROOT / "hatch_build.py"]


def test_the_version_is_above_the_other_projects() -> None:
    assert int(sollol.__version__.partition(".")[0]) >= 1  # that one is 0.9.66


def test_the_version_stands_in_one_place() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())
    assert project["project"]["dynamic"] == ["version"]
    assert "version" not in project["project"]
    place = ROOT / project["tool"]["hatch"]["version"]["path"]
    assert f'__version__ = "{sollol.__version__}"' in place.read_text()
    again = [
        str(path.relative_to(ROOT))
        for path in (*SOURCES, ROOT / "pyproject.toml")
        if path != place and re.search(rf"(?<![\d.]){re.escape(sollol.__version__)}(?![\d.])", path.read_text())
    ]
    assert again == []


def test_the_command_tells_it() -> None:
    command = [sys.executable, "-m", "sollol", "--version"]
    assert (
        subprocess.run(command, capture_output=True, text=True, check=True).stdout == f"sollol {sollol.__version__}\n"
    )


def test_every_page_and_message_installs_from_the_checkout() -> None:
    wrong = []
    for path in (*PAGES, *SOURCES):
        if not path.is_file():
            continue
        for number, line in enumerate(path.read_text().splitlines(), 1):
            by_name = re.search(r"(pip|uv|pipx) (pip )?install [^\n]*['\" ]sollol\b", line)
            if by_name and "installs\nother" not in line and "so `pip install sollol` installs" not in line:
                wrong.append(f"{path.relative_to(ROOT)}:{number}: {line.strip()}")
    assert wrong == []


def test_the_first_page_and_the_index_say_why() -> None:
    for name in ("README.md", "docs/index.md"):
        text = " ".join((ROOT / name).read_text().split())
        assert "PyPI" in text
        assert "older project of the same name" in text
        assert "pip install '.[index]'" in text
