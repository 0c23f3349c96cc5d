"""The next step after an error of a node about a model: the node and the command are named."""

from __future__ import annotations

import asyncio

import pytest

from sollol.core.endpoint import parse_endpoint
from sollol.errors import ResponseError
from sollol.models import operations
from sollol.models.hints import with_next_step
from sollol.sim import Cluster, ModelSpec, NodeSpec, sim_cluster
from sollol.transport.http import HttpTransport

NODE = "gpu-1:11434"
LLAMA, OTHER = ModelSpec("llama3.2", size_bytes=2_000_000_000), ModelSpec("other", size_bytes=10**9)


@pytest.mark.parametrize(
    ("text", "step"),
    [
        (
            "write /models/blobs/x: no space left on device",
            "`sollol models rm MODEL --on gpu-1:11434` makes room there",
        ),
        ("it has 2,000 bytes, and 1,000 are free on its disk", "`sollol models rm MODEL --on gpu-1:11434`"),
        (
            "model requires more system memory (40 GiB) than is available (7 GiB)",
            "`sollol models unload MODEL --on gpu-1",
        ),
        ("pull model manifest: file does not exist", "no registry has this name"),
        ("dial tcp: lookup registry.ollama.ai: no such host", "`sollol models pull llama3.2 --lan` brings it"),
        ("model 'llama3.2' not found", "`sollol models pull llama3.2 --on gpu-1:11434` brings it"),
        ("http://gpu-1:11434 refused the connection", "`sollol ping gpu-1:11434` tries the way"),
    ],
)
def test_the_next_step(text: str, step: str) -> None:
    found = with_next_step(text, "llama3.2", NODE)
    assert found.startswith(f"{text}; ")
    assert step in found
    assert with_next_step(found, "llama3.2", NODE) == found, "one step is enough"


def test_an_error_that_is_not_known_stays_as_it_is() -> None:
    assert with_next_step("the sky falls", "llama3.2", NODE) == "the sky falls"


@pytest.fixture
def cluster() -> object:
    with sim_cluster([NodeSpec(models=(LLAMA,)), NodeSpec(models=(OTHER,), ram_bytes=1, vram_bytes=1)]) as running:
        yield running


def test_each_node_that_lacks_or_refuses_is_named(cluster: Cluster) -> None:
    nodes = [parse_endpoint(url) for url in cluster.urls]

    async def main() -> None:
        transport = HttpTransport()
        try:
            with pytest.raises(ResponseError) as absent:
                await operations.show(transport, nodes, "nope")
            assert f"{nodes[0].key} has llama3.2:latest; {nodes[1].key} has other:latest" in absent.value.error
            assert "`sollol models pull nope` brings it" in absent.value.error
            with pytest.raises(ResponseError) as alone:
                await operations.holders(transport, nodes[:1], "other")
            assert f"`sollol models pull other --on {nodes[0].key}` brings it" in alone.value.error
            with pytest.raises(ResponseError) as refused:
                await operations.load(transport, nodes[1:], {"model": "other"})
            assert nodes[1].key in refused.value.error
            assert "`sollol models unload MODEL --on" in refused.value.error
            partly = (await operations.load(transport, nodes, {"model": "llama3.2"}))["nodes"]
            assert partly[nodes[0].key] == "success"
            assert f"`sollol models pull llama3.2 --on {nodes[1].key}` brings it" in partly[nodes[1].key]
        finally:
            await transport.aclose()

    asyncio.run(main())
