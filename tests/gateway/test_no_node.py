"""A gateway is no node: every answer says so, and no search and no other gateway takes it for one."""

from __future__ import annotations

import asyncio
from functools import partial
from urllib.parse import urlsplit

import httpx
import pytest

import sollol
from sollol.backends.probe import ProbeFailed, probe
from sollol.core.endpoint import parse_endpoint
from sollol.discovery.verify import identify
from sollol.gateway.app import Gateway
from sollol.gateway.auth.keys import Key, Keyring, hash_of
from sollol.sim import sim_cluster
from sollol.transport.http import HttpTransport
from tests.gateway.stage import MODEL, Stage, gateway_over, talker, until


@pytest.mark.parametrize("locked", [False, True], ids=["open", "with keys"])
@pytest.mark.parametrize("path", ["/", "/api/version", "/api/tags", "/api/ps", "/nothing", "//api/tags"])
def test_every_answer_says_so(path: str, locked: bool) -> None:
    keyring = Keyring([Key("one", hash_of("some-key-of-somebody"), app="one")], required=True) if locked else None
    with sim_cluster([talker(1)]) as nodes, gateway_over(nodes.urls, keyring=keyring) as stage:
        answer = httpx.get(stage.url + path)
    assert answer.headers["x-sollol-gateway"] == sollol.__version__


def test_it_is_not_discovered() -> None:
    async def look(url: str) -> tuple[object, str]:
        transport = HttpTransport()
        transport.refuses_gateways = True
        try:
            found = await identify(transport, parse_endpoint(url), 2.0, lambda: None)
            with pytest.raises(ProbeFailed) as refused:
                await probe(transport, parse_endpoint(url))
        finally:
            await transport.aclose()
        return found, str(refused.value)

    with sim_cluster([talker(1)]) as nodes, gateway_over(nodes.urls) as stage:
        found, words = asyncio.run(look(stage.url))
    assert found is None
    assert "is a SOLLOL gateway, not a node" in words


def add(gateway: Gateway, url: str) -> None:
    gateway.pool.add_node(url)


def test_two_gateways_are_no_nodes_of_each_other() -> None:
    """Also added by hand: the work goes to the node alone, and the reason is told."""
    with sim_cluster([talker(1)]) as nodes, gateway_over(nodes.urls) as one, gateway_over(nodes.urls) as two:
        for stage, other in ((one, two), (two, one)):
            stage.look(partial(add, url=other.url))
            key = urlsplit(other.url).netloc
            until(partial(_why, stage, key))
            assert "is a SOLLOL gateway" in _why(stage, key)
        for stage in (one, two):
            asked: dict[str, object] = {"model": MODEL, "messages": [{"role": "user", "content": "a"}], "stream": False}
            asked["options"] = {"num_predict": 3}
            answer = httpx.post(f"{stage.url}/api/chat", json=asked)
            assert answer.headers["x-sollol-node"] == urlsplit(nodes.urls[0]).netloc


def _why(stage: Stage, key: str) -> str:
    return stage.look(lambda gateway: next((node.why for node in gateway.pool.nodes if node.key == key), ""))
