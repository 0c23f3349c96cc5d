"""The access log: a line for each request, which no name can end or forge."""

from __future__ import annotations

import json
import re

import pytest

from sollol.cli.access_log import json_line, text_line
from tests.observe.test_store import record

NAMES = ["a\n2026-11-30T07:00:00+0000 id=1 chat m ok", "a b", "a\tid=9", 'q"uote', "\x1b[31m", "\x85", "\u202e", "a=b"]


@pytest.mark.parametrize("name", NAMES)
def test_a_name_stays_in_its_field(name: str) -> None:
    line = text_line(record(model=name, app=name, error=name))
    assert line.isprintable()
    words = re.findall(r'(?:[^\s"]|"(?:[^"\\]|\\.)*")+', line)
    assert words[4:6] == ["ok", "node=n:1"]
    assert words[6].startswith("app=")
    assert words[7] == "total=1.500s"


@pytest.mark.parametrize("name", NAMES)
def test_a_line_of_json_has_no_command_of_a_terminal(name: str) -> None:
    line = json_line(record(model=name))
    assert line.isprintable()
    assert json.loads(line)["model"] == name
