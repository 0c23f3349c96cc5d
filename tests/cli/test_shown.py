"""Text of others commands no terminal, wherever it is printed."""

from __future__ import annotations

import io
import json
import logging

import pytest
from rich.live import Live
from rich.text import Text

from sollol.cli import console
from sollol.cli.console import Shown, ShownFormatter, print_json, table

EVIL = "a\x1b[2Jb\x1b]52;c;ZXZpbA==\x07c\x9b31md\x7fe\u202ef"
CODES = {*map(chr, range(32)), *map(chr, range(127, 160)), "\u202e"} - {"\n", "\t"}


def commands(text: str) -> set[str]:
    return CODES & set(text)


@pytest.mark.parametrize("how", ["line", "table", "text", "live"])
def test_a_console_shows_control_codes_as_escapes(how: str) -> None:
    out = io.StringIO()
    shown = Shown(file=out, width=200, force_terminal=False)
    made = table("node")
    made.add_row(EVIL)
    if how == "live":
        with Live(made, console=shown):
            pass
    else:
        shown.print({"line": EVIL, "table": made, "text": Text(EVIL)}[how], soft_wrap=True)
    assert not commands(out.getvalue())
    assert "a\\x1b[2Jb\\x1b]52" in out.getvalue()


def test_json_shows_them_as_its_own_escapes(capsys: pytest.CaptureFixture[str]) -> None:
    print_json({"version": EVIL})
    told = capsys.readouterr().out
    assert not commands(told)
    assert json.loads(told) == {"version": EVIL}


def test_say_note_and_errors_do(capsys: pytest.CaptureFixture[str]) -> None:
    console.say(EVIL)
    console.note(EVIL)
    console.tell_error(ValueError(EVIL))
    console.warn(EVIL)
    told = capsys.readouterr()
    assert not commands(told.out + told.err)


def test_log_lines_do() -> None:
    record = logging.LogRecord("sollol", logging.WARNING, "", 0, "%s", (EVIL,), None)
    assert not commands(ShownFormatter("%(message)s").format(record))
