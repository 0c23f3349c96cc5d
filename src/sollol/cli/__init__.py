"""Run the command line, of one file for each command.

`main` is the entry point of `sollol` and of `python -m sollol`.
"""

from __future__ import annotations

from typing import Any

from sollol.former import find_former


def main() -> None:
    """Run the command in `sys.argv`, and end with SystemExit."""
    from sollol.cli.app import app
    from sollol.cli.console import tell_warnings

    tell_warnings()
    app(prog_name="sollol")


def __getattr__(name: str) -> Any:
    return find_former("cli", name)
