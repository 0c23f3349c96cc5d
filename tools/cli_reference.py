"""Write docs/cli-reference.md: every command with its arguments and options, from the commands themselves.

python tools/cli_reference.py
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import typer

from sollol.cli.app import app

PAGE = Path(__file__).parents[1] / "docs" / "cli-reference.md"
HEAD = """# Command reference

Written by `python tools/cli_reference.py` from the commands; a test compares. What they are for, with examples:
[cli.md](cli.md).
"""


def reference() -> str:
    """Return the page as Markdown."""
    group: Any = typer.main.get_command(app)
    return HEAD + "".join(_section(f"sollol {name}", command) for name, command in _commands(group))


def _commands(group: Any, prefix: str = "") -> Iterator[tuple[str, Any]]:
    for name, command in sorted(group.commands.items()):
        if hasattr(command, "commands"):
            yield from _commands(command, f"{prefix}{name} ")
        elif not command.hidden:
            yield f"{prefix}{name}", command


def _section(name: str, command: Any) -> str:
    arguments = [item for item in command.params if item.param_type_name == "argument"]
    options = [item for item in command.params if item.param_type_name == "option" and not item.hidden]
    usage = " ".join([name, "[OPTIONS]" if options else "", *map(_usage, arguments)]).replace("  ", " ").strip()
    rows = [(f"`{_usage(item)}`", item) for item in arguments]
    rows += [(_names(item), item) for item in options]
    text = f"\n## {name}\n\n{_plain(command.help or '')}\n\n    {usage}\n"
    if rows:
        text += "\n| argument or option | meaning | default |\n|---|---|---|\n"
        text += "".join(f"| {left} | {_help(item)} | {_default(item)} |\n" for left, item in rows)
    return text


def _usage(item: Any) -> str:
    word = (item.metavar or item.name.upper()).strip("[]")
    word += "..." if item.nargs == -1 and not word.endswith("...") else ""
    return word if item.required else f"[{word}]"


def _names(item: Any) -> str:
    names = ", ".join(f"`{name}`" for name in [*item.opts, *item.secondary_opts])
    return names if item.is_flag else f"{names} {item.metavar or item.type.name.upper()}"


def _help(item: Any) -> str:
    text = _plain(item.help or "")
    return f"{text} [`{item.envvar}`]" if getattr(item, "envvar", None) else text


def _default(item: Any) -> str:
    value = item.default
    if value is None or value == () or callable(value) or (item.is_flag if hasattr(item, "is_flag") else False):
        return ""
    return f"`{value}`"


def _plain(text: str) -> str:
    return re.sub(r"\[/?[a-z]+\]", "", " ".join(text.split())).replace("|", "\\|")


if __name__ == "__main__":
    PAGE.write_text(reference())
