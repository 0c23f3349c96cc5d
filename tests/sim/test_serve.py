"""The same nodes over real HTTP: framing, faults made of real sockets, processes made of real signals."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import subprocess
import sys
import time
import urllib.error
import urllib.request
from typing import Any

import pytest

from sollol.sim import ModelSpec, NodeSpec, Served, SimNode, serve, sim_cluster, spawn, spawn_many
from tests.sim.wire import ask, read_answer, request_bytes

MODELS = (ModelSpec("chat", mean_words=float("inf")), ModelSpec("embed", "embed", dim=16))
SPEC = NodeSpec(models=MODELS)


def fetch(url: str, body: Any = None, timeout: float = 10) -> Any:
    data = None if body is None else json.dumps(body).encode()
    with urllib.request.urlopen(urllib.request.Request(url, data), timeout=timeout) as reply:
        return json.loads(reply.read())


def served(story: Any, spec: NodeSpec = SPEC) -> None:
    async def run() -> None:
        handle = await serve(spec)
        try:
            await story(handle)
        finally:
            await handle.close()

    asyncio.run(run())


def test_one_connection_serves_many_requests_in_order() -> None:
    async def story(handle: Served) -> None:
        reader, writer = await asyncio.open_connection("127.0.0.1", handle.port)
        host = {"Host": "localhost"}
        body = json.dumps({"model": "chat", "prompt": "x", "options": {"num_predict": 3}}).encode()
        writer.write(request_bytes("POST", "/api/generate", host, body))  # pipelined
        writer.write(request_bytes("HEAD", "/api/tags", host, None))
        writer.write(request_bytes("GET", "/api/version", host | {"Connection": "close"}, None))
        first, second, third = [await read_answer(reader, m) for m in ("POST", "HEAD", "GET")]
        assert len(first.chunks) == 4
        assert (second.status, second.chunks) == ("HTTP/1.1 200 OK", [])
        assert third.json() == {"version": "0.33.0"}
        assert await reader.read() == b""  # it closes when asked to
        writer.close()

    served(story)


def test_chunked_requests_and_nonsense() -> None:
    async def story(handle: Served) -> None:
        reader, writer = await asyncio.open_connection("127.0.0.1", handle.port)
        body = json.dumps({"model": "embed", "input": "a"}).encode()
        head = b"POST /api/embed HTTP/1.1\r\nHost: 127.0.0.1\r\nTransfer-Encoding: chunked\r\n\r\n"
        writer.write(head + b"%x\r\n%b\r\n0\r\n\r\n" % (len(body), body))
        assert len((await read_answer(reader)).json()["embeddings"][0]) == 16
        writer.write(b"\x16\x03\x01nonsense\r\n\r\n")
        assert (await read_answer(reader)).status == "HTTP/1.1 400 Bad Request"
        writer.close()

    served(story)


def test_leaving_a_stream_stops_the_node() -> None:
    async def story(handle: Served) -> None:
        reader, writer = await asyncio.open_connection("127.0.0.1", handle.port)
        body = json.dumps({"model": "chat", "prompt": "x"}).encode()
        writer.write(request_bytes("POST", "/api/generate", {"Host": "localhost"}, body))
        await reader.readuntil(b'"done":false')
        writer.close()
        await asyncio.sleep(0.2)
        assert handle.node.counters.inflight == 0
        assert handle.node.counters.aborted == 1
        assert handle.node.counters.tokens == 0

    served(story, NodeSpec(models=MODELS, decode_tokens_per_s=50))


def test_a_cut_leaves_the_body_unfinished() -> None:
    async def story(handle: Served) -> None:
        handle.node.cut_after(3)
        answer = await ask(handle.port, "POST", "/api/generate", {"model": "chat", "prompt": "x"})
        assert (answer.ended, len(answer.chunks)) == ("cut", 3)
        answer = await ask(handle.port, "POST", "/api/embed", {"model": "embed", "input": "x"})
        assert answer.ended == "cut"
        assert "Content-Length" in answer.headers

    served(story)


def test_a_dead_node_refuses_and_comes_back_on_its_port() -> None:
    async def story(handle: Served) -> None:
        reader, writer = await asyncio.open_connection("127.0.0.1", handle.port)
        handle.node.die()
        assert await reader.read() == b""
        writer.close()
        with pytest.raises(ConnectionRefusedError):
            await ask(handle.port, "GET", "/api/version")
        handle.node.revive()
        await asyncio.sleep(0.05)
        assert (await ask(handle.port, "GET", "/api/version")).status == "HTTP/1.1 200 OK"

    served(story)


def test_a_frozen_node_accepts_and_is_silent() -> None:
    async def story(handle: Served) -> None:
        handle.node.freeze()
        asking = asyncio.create_task(ask(handle.port, "GET", "/api/version"))
        await asyncio.sleep(0.1)
        assert not asking.done()
        handle.node.thaw()
        assert (await asking).json() == {"version": "0.33.0"}

    served(story)


def test_speeds_hold_in_real_time() -> None:
    async def story(handle: Served) -> None:
        began = time.perf_counter()
        await ask(handle.port, "POST", "/api/embed", {"model": "embed", "input": ["x"] * 20})
        assert time.perf_counter() - began > 0.19

    served(story, NodeSpec(models=MODELS, embed_items_per_s=100))


def test_a_schedule_over_http() -> None:
    async def story() -> None:
        from sollol.sim import FaultEvent

        handle = await serve(SPEC, schedule=[FaultEvent(0.05, "die")])
        await asyncio.sleep(0.1)
        assert handle.node.state == "down"
        await handle.close()

    asyncio.run(story())


def test_a_schedule_over_http_may_name_a_node() -> None:
    async def story() -> None:
        from sollol.sim import FaultEvent
        from sollol.sim.serve import free_port

        port = free_port()
        schedule = [FaultEvent(0.0, "die", f"127.0.0.1:{port}")]
        handles = [await serve(SPEC, port=number, schedule=schedule) for number in (port, 0)]
        await asyncio.sleep(0.05)
        assert [handle.node.state for handle in handles] == ["down", "up"]
        for handle in handles:
            await handle.close()

    asyncio.run(story())


def test_sim_cluster_gives_urls_and_switches() -> None:
    with sim_cluster([SPEC, SimNode(SPEC)]) as cluster:
        assert len(cluster) == len(set(cluster)) == 2
        body = {"model": "embed", "input": "a"}
        one, other = (fetch(url + "/api/embed", body)["embeddings"] for url in cluster)
        assert one == other
        cluster.do(lambda nodes: nodes[0].die())
        with pytest.raises(urllib.error.URLError):
            fetch(cluster[0] + "/api/version")
        cluster.do(lambda nodes: nodes[0].revive())
        assert fetch(cluster[0] + "/api/version") == {"version": "0.33.0"}
        assert cluster.do(lambda nodes: nodes[1].counters.items_embedded) == 1
    with pytest.raises(urllib.error.URLError):
        fetch(cluster[1] + "/api/version")


def test_ten_thousand_short_inputs_over_http() -> None:
    texts = [f"document {i} of the little collection" for i in range(10_000)]
    with sim_cluster([SPEC]) as cluster:
        found = fetch(cluster[0] + "/api/embed", {"model": "embed", "input": texts}, timeout=30)
    assert len(found["embeddings"]) == 10_000


def test_spawned_nodes_are_killed_stopped_and_continued() -> None:
    faulty = [{"at_s": 0, "do": "error_rate", "share": 1}]
    with spawn(SPEC) as one, spawn(SPEC, schedule=faulty) as two:
        assert fetch(one.url + "/api/embed", {"model": "embed", "input": "a"})["model"] == "embed"
        with pytest.raises(urllib.error.HTTPError) as refused:
            fetch(two.url + "/api/embed", {"model": "embed", "input": "a"})
        assert refused.value.code == 500
        refused.value.close()
        one.stop()
        with pytest.raises(TimeoutError):
            fetch(one.url + "/api/version", timeout=0.3)
        one.cont()
        assert fetch(one.url + "/api/version") == {"version": "0.33.0"}
        one.kill()
        assert not one.alive
        with pytest.raises(urllib.error.URLError):
            fetch(one.url + "/api/version")


def test_spawned_nodes_do_not_outlive_their_parent() -> None:
    code = (
        "import os, signal; from sollol.sim import spawn\n"
        "one, two = spawn(), spawn(); two.stop(); print(one.pid, two.pid, flush=True)\n"
        "os.kill(os.getpid(), signal.SIGKILL)"
    )
    parent = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert parent.returncode == -signal.SIGKILL
    for pid in map(int, parent.stdout.split()):
        assert gone(pid), pid


def gone(pid: int) -> bool:
    """Whether a process has ended (or waits only to be reaped), within five seconds."""
    for _ in range(100):
        try:
            with open(f"/proc/{pid}/stat") as stat:
                if stat.read().rsplit(")", 1)[1].split()[0] == "Z":
                    return True
        except OSError:
            return True
        time.sleep(0.05)
    os.kill(pid, signal.SIGKILL)
    return False


def test_a_node_that_cannot_start_says_so() -> None:
    with pytest.raises(RuntimeError, match="ended with"):
        spawn_many([SPEC], schedule=[{"at_s": 0, "do": "explode"}])


def test_the_command_serves_until_its_input_ends() -> None:
    command = [sys.executable, "-m", "sollol.sim", "--nodes", "2", "--until-stdin-ends"]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
        assert process.stdin is not None
        assert process.stdout is not None
        urls = [json.loads(process.stdout.readline())["url"] for _ in range(2)]
        assert [fetch(url + "/api/version")["version"] for url in urls] == ["0.33.0"] * 2
        process.stdin.close()
        assert process.wait(10) == 0


def test_a_spec_survives_json() -> None:
    spec = NodeSpec(models=MODELS, loaded=("chat",), jitter=0.5, vram_bytes=7)
    assert NodeSpec.from_json(json.loads(json.dumps(spec.to_json()))) == spec
    with pytest.raises(TypeError, match="wheels"):
        NodeSpec.from_json({"wheels": 4})
