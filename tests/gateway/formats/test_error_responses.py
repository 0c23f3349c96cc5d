"""No error answer carries characters that command a terminal, though JSON permits them."""

from __future__ import annotations

import json

import pytest

from sollol.gateway.formats.error_responses import error_body
from sollol.printable import printable, printable_body

COMMANDS = [chr(code) for code in (*range(1, 32), *range(127, 160), 0x061C, *range(0x202A, 0x202F), 0x2066, 0x2069)]


@pytest.mark.parametrize("path", ["/api/chat", "/v1/chat/completions", "/v1/messages", "/v1/responses"])
def test_commands_are_escaped_and_read_back(path: str) -> None:
    for command in COMMANDS:
        message = f"a{command}b"
        body = error_body(path, 502, message)
        assert command not in body.decode()
        told = json.loads(body)["error"]
        assert (told["message"] if isinstance(told, dict) else told) == message


@pytest.mark.parametrize("command", COMMANDS, ids=ascii)
def test_a_nodes_error_is_escaped_and_stays_what_it_is(command: str) -> None:
    raw = command.encode()
    assert json.loads(printable_body(b'{"error":"a%bb"}' % raw), strict=False)["error"] == f"a{command}b"
    assert printable_body(b"a%bb" % raw) == b"a%bb" % (raw if command in "\t\n\r" else printable(command).encode())


def test_other_bodies_are_left_as_they_are() -> None:
    for text in (
        '{"error":"model \\"x\\" not found"}',
        "404 page not found",
        '{\r\n\t"error": "žluťoučký 猫 🙂"}\n',
        "",
    ):
        assert printable_body(text.encode()) == text.encode()
