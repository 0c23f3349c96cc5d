"""Searches on loopback: real sockets, no network. Only 127.0.0.0/8 and this machine's own addresses are asked."""

import asyncio
import socket
import threading
import time
from typing import Any

import pytest

from sollol.core.endpoint import Endpoint
from sollol.discovery import CandidateSource, discover, discover_ollama_nodes, physical_hosts
from sollol.errors import BadInput, ConfigError

NEAR = ["127.0.0.0/28"]
FOR_EVER_S = 60.0  # a timeout that no search here is to reach


def find(port: Any, timeout: Any = 2.0, **options: Any) -> Any:
    given: dict[str, Any] = {"subnets": NEAR, "ports": (port,), "auto_resolve_docker": False} | options
    return asyncio.run(discover(timeout, **given))


def hosts(found: Any) -> Any:
    return [node.endpoint.host for node in found]


def test_nodes_are_found_with_what_they_say(serve: Any, port: Any) -> None:
    serve(f"127.0.0.2:{port}=ollama:red", f"127.0.0.3:{port}=ollama:blue")
    first, second = find(port)
    assert (first.endpoint, second.endpoint) == (Endpoint("127.0.0.2", port), Endpoint("127.0.0.3", port))
    assert (first.version, first.models, first.source) == ("0.33.0", ("llama3.2:latest",), CandidateSource.SUBNET)
    assert 0 < first.latency_s < 1
    assert first.host_id == second.host_id


def test_the_synchronous_form_gives_host_and_port(serve: Any, port: Any) -> None:
    serve(f"127.0.0.2:{port}=ollama:red")
    nodes = discover_ollama_nodes(2.0, auto_resolve_docker=False, subnets=NEAR, ports=[port])
    assert nodes == [{"host": "127.0.0.2", "port": port}]


def test_it_works_inside_a_running_loop(serve: Any, port: Any) -> None:
    serve(f"127.0.0.2:{port}=ollama:red")

    async def notebook() -> Any:
        return discover_ollama_nodes(2.0, auto_resolve_docker=False, subnets=NEAR, ports=(port,))

    assert len(asyncio.run(notebook())) == 1


def test_the_callers_event_loop_is_left_alone(port: Any) -> None:
    loop = asyncio.new_event_loop()
    asyncio.set_event_loop(loop)
    try:
        discover_ollama_nodes(2.0, auto_resolve_docker=False, subnets=NEAR, ports=(port,))
        assert asyncio.get_event_loop_policy().get_event_loop() is loop
    finally:
        asyncio.set_event_loop(None)
        loop.close()


def test_nothing_found_is_an_empty_list_at_once_when_everybody_refused(port: Any) -> None:
    start = time.perf_counter()
    assert find(port, timeout=FOR_EVER_S) == []
    assert time.perf_counter() - start < FOR_EVER_S


@pytest.mark.parametrize("kind", ["html", "silent", "garbage", "endless", "gateway", "version-only", "closing"])
def test_what_is_not_ollama_is_not_a_node(serve: Any, port: Any, kind: Any) -> None:
    serve(f"127.0.0.2:{port}={kind}:x", f"127.0.0.3:{port}=ollama:blue")
    start = time.perf_counter()
    assert hosts(find(port, timeout=FOR_EVER_S)) == ["127.0.0.3"]
    assert time.perf_counter() - start < FOR_EVER_S


def test_a_silent_server_alone_is_bounded_by_the_timeout(serve: Any, port: Any) -> None:
    serve(f"127.0.0.2:{port}=silent")
    start = time.perf_counter()
    assert find(port, timeout=0.4) == []  # the server is silent for ever
    assert time.perf_counter() - start > 0.3


def test_a_node_that_listens_everywhere_is_one_node(serve: Any, port: Any) -> None:
    serve(f"0.0.0.0:{port}=ollama:red")
    (node,) = find(port)
    assert f"127.0.0.5:{port}" in node.aliases or node.endpoint.host == "127.0.0.5"
    assert node.source is CandidateSource.LOCALHOST


def test_two_ports_are_two_nodes_on_one_machine(serve: Any, port: Any) -> None:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        other = probe.getsockname()[1]
    serve(f"127.0.0.1:{port}=ollama:red", f"127.0.0.1:{other}=ollama:red")
    found = find(port, ports=(port, other), subnets=[])
    assert len(found) == 2
    ids = physical_hosts([node.endpoint for node in found])
    assert len(ids) == 2
    assert len(set(ids.values())) == 1


def test_ipv6_loopback(serve: Any, port: Any) -> None:
    try:
        serve(f"[::1]:{port}=ollama:red")
    except OSError:
        pytest.skip("this machine has no IPv6 loopback")
    (node,) = find(port, subnets=[])
    assert node.endpoint == Endpoint("::1", port)
    assert hosts(find(port, subnets=["::1"])) == ["::1"]


def test_without_localhost(serve: Any, port: Any) -> None:
    serve(f"127.0.0.1:{port}=ollama:red", f"127.0.0.2:{port}=ollama:blue")
    assert find(port, exclude_localhost=True) == []


def test_without_localhost_not_even_when_named(serve: Any, port: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    serve(f"127.0.0.1:{port}=ollama:red")
    monkeypatch.setenv("OLLAMA_HOST", f"localhost:{port}")
    assert find(port, exclude_localhost=True) == []


def test_nodes_from_the_environment_need_no_sweep(serve: Any, port: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    serve(f"127.0.0.1:{port}=ollama:red", f"127.0.0.9:{port}=ollama:blue")
    monkeypatch.setenv("SOLLOL_NODES", f"127.0.0.9:{port}, http://127.0.0.1:{port}/")
    found = find(1, subnets=[])
    assert hosts(found) == ["127.0.0.1", "127.0.0.9"]
    assert {node.source for node in found} == {CandidateSource.SETTINGS}


def test_a_named_node_that_does_not_answer_is_not_returned(port: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OLLAMA_HOST", f"127.0.0.1:{port}")
    monkeypatch.setenv("SOLLOL_NODES", f"no-such-host.invalid:{port}")
    assert find(port, timeout=1.0) == []


def test_a_name_server_that_hangs_holds_nobody_up(serve: Any, port: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    serve(f"127.0.0.1:{port}=ollama:red")
    monkeypatch.setenv("SOLLOL_NODES", f"slow.invalid:{port}")
    over = threading.Event()  # set at the end: until then no look-up returns
    monkeypatch.setattr(socket, "getaddrinfo", lambda *a, **k: over.wait() and [])
    try:
        assert hosts(find(port, timeout=0.4, subnets=[])) == ["127.0.0.1"]
        ids = physical_hosts([Endpoint("slow.invalid")], timeout=0.2)
        assert ids == {"slow.invalid:11434": "name slow.invalid"}
    finally:
        over.set()


def test_subnets_and_ports_from_the_settings_and_arguments_over_them(
    serve: Any, port: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    serve(f"127.0.0.2:{port}=ollama:red", f"127.0.0.20:{port}=ollama:blue")
    monkeypatch.setenv("SOLLOL_DISCOVERY_SUBNETS", "127.0.0.16/28")
    monkeypatch.setenv("SOLLOL_DISCOVERY_PORTS", str(port))
    assert hosts(asyncio.run(discover(2.0, auto_resolve_docker=False))) == ["127.0.0.20"]
    assert hosts(find(port)) == ["127.0.0.2"]


def test_a_whole_loopback_24_with_few_descriptors(serve: Any, port: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sollol.discovery.sweep.descriptors", lambda: 16)
    serve(f"127.0.0.2:{port}=ollama:red", f"127.0.0.254:{port}=ollama:blue")
    assert hosts(find(port, timeout=5.0, subnets=["127.0.0.0/24"])) == ["127.0.0.2", "127.0.0.254"]


def test_the_rest_is_said_when_time_runs_out(port: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sollol.discovery.sweep.TURN", 1)
    with pytest.warns(UserWarning, match=r"addresses were not tried within 0.05 s; raise timeout="):
        find(port, timeout=0.05, subnets=["127.0.0.0/17"])


@pytest.mark.parametrize("timeout", [0, -1, None, "1", True, float("nan")])
def test_a_bad_timeout_is_named(port: Any, timeout: Any) -> None:
    with pytest.raises(BadInput, match="timeout"):
        find(port, timeout=timeout)


def test_bad_subnets_ports_and_settings_are_the_callers_errors(port: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(BadInput, match="not a private network"):
        discover_ollama_nodes(subnets=["8.8.8.0/24"])
    with pytest.raises(BadInput, match="expected port numbers"):
        discover_ollama_nodes(subnets=NEAR, ports=[0])
    monkeypatch.setenv("SOLLOL_NODES", "http://")
    with pytest.raises(ConfigError, match="SOLLOL_NODES"):
        find(port)


def test_physical_hosts_of_nothing_is_nothing() -> None:
    assert physical_hosts([]) == {}


def test_a_busy_machine_makes_one_pass_over_the_nearest_addresses(
    serve: Any, port: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As if the loop had its turn only now and then: 64 attempts, then a fifth of a second for others."""
    from sollol.discovery.sweep import Sweep

    fill, turns = Sweep._fill, []

    def slowly(self: Sweep) -> None:
        turns.append(self)
        time.sleep(0.2)
        fill(self)

    monkeypatch.setattr(Sweep, "_fill", slowly)
    serve(f"127.0.0.3:{port}=ollama:red", f"127.0.0.250:{port}=ollama:blue")
    found = discover_ollama_nodes(timeout=0.5, subnets=["127.0.0.0/24"], ports=[port])
    assert {node["host"] for node in found} >= {"127.0.0.3", "127.0.0.250"}
    assert len(turns) < 50  # 254 addresses would be 254 turns
