"""Nodes behind something else: bearer tokens, and answers that were compressed on the way."""

from __future__ import annotations

import gzip
import os
from pathlib import Path
from typing import Any

import pytest

from sollol.config import load_settings
from sollol.core.endpoint import Endpoint, parse_endpoint
from sollol.errors import BadInput, ConfigError
from sollol.pool.aio import AsyncOllamaPool
from sollol.transport.base import Call, Fault, TransportFault
from tests.transport.raw_server import OK, on_both_loops, run, saying, serving

GET = Call("GET", "/api/tags")


@on_both_loops
def test_a_key_is_sent_as_a_bearer_token(new_loop: Any) -> None:
    async def main() -> None:
        async with serving(saying(OK)) as (server, http):
            node = parse_endpoint({"host": server.node.host, "port": server.node.port, "api_key": "s3cret-t0ken"})
            await http.send(node, GET)
            assert server.heard[-1].headers["authorization"] == "Bearer s3cret-t0ken"

    run(new_loop, main())


def test_where_a_key_may_be_given(tmp_path: Path) -> None:
    expected = Endpoint("gate", 11435, api_key="k1")
    assert parse_endpoint({"url": "http://gate:11435", "api_key": "k1"}) == expected
    assert parse_endpoint({"host": "gate", "port": 11435, "api_key": "k1"}) == expected
    file = tmp_path / "sollol.toml"
    file.write_text('nodes = ["a", {url = "http://gate:11435", api_key = "k1"}]\n')
    assert load_settings({}, config=os.fspath(file)).nodes == (Endpoint("a"), expected)
    pool = AsyncOllamaPool()
    assert pool.add_node("gate", 11435, api_key="k1")
    assert pool._endpoints["gate:11435"] == expected


@pytest.mark.parametrize("key", ["", "two words", "line\r\nX: y", "schlüssel", 7])
def test_a_key_that_cannot_be_sent_is_refused_without_repeating_it(key: Any) -> None:
    with pytest.raises(BadInput, match="api_key of node http://gate:11434 is") as caught:
        parse_endpoint({"host": "gate", "api_key": key})
    assert not key or str(key) not in str(caught.value)


def test_a_key_reaches_no_message(tmp_path: Path) -> None:
    assert "s3cret" not in repr(Endpoint("gate", api_key="s3cret"))
    with pytest.raises(BadInput) as caught:
        parse_endpoint({"hots": "gate", "api_key": "s3cret"})
    assert "s3cret" not in str(caught.value)
    file = tmp_path / "sollol.toml"
    file.write_text('nodes = [{hots = "gate", api_key = "s3cret"}]\n')
    with pytest.raises(ConfigError) as in_file:
        load_settings({}, config=os.fspath(file))
    assert "s3cret" not in str(in_file.value)


@on_both_loops
@pytest.mark.parametrize("stream", [False, True])
def test_an_answer_that_was_compressed_unasked_is_refused_in_words(new_loop: Any, stream: bool) -> None:
    body = gzip.compress(b'{"models":[]}')
    answer = b"HTTP/1.1 200 OK\r\nContent-Encoding: gzip\r\nContent-Length: %d\r\n\r\n%b" % (len(body), body)

    async def main() -> None:
        async with serving(saying(answer)) as (server, http):
            with pytest.raises(TransportFault, match="answers in gzip; expected no content encoding") as caught:
                await (await http.send(server.node, Call("GET", "/api/tags", stream=stream))).read()
            assert caught.value.fault is Fault.PROTOCOL
            assert "authorization" not in server.heard[-1].headers

    run(new_loop, main())


@on_both_loops
def test_identity_is_no_coding(new_loop: Any) -> None:
    async def main() -> None:
        async with serving(saying(OK.replace(b"\r\n\r\n", b"\r\nContent-Encoding: identity\r\n\r\n"))) as (
            server,
            http,
        ):
            assert await (await http.send(server.node, GET)).read() == b"ok"

    run(new_loop, main())
