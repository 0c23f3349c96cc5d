"""The metrics at an address of their own, and who may read them."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest

from sollol import OllamaPool, UnifiedDashboard
from sollol.config import load_settings
from sollol.errors import AddressUnavailable, BadInput, ConfigError
from sollol.gateway.app import Gateway
from sollol.gateway.auth.keys import Key, Keyring, hash_of
from sollol.gateway.settings import GatewaySettings, MetricsSettings, gateway_settings
from sollol.pool.aio import AsyncOllamaPool
from sollol.sim import free_port
from sollol.sim.serve import Cluster, sim_cluster
from sollol.transport.http import HttpTransport
from tests.gateway.stage import MODEL, Stage, gateway_over, talker

ADMIN, PLAIN = "boss-0123456789abcdef", "ann-0123456789abcdef"
KEYS = [Key("boss", hash_of(ADMIN), app="boss", admin=True), Key("ann", hash_of(PLAIN), app="ann")]


@pytest.fixture(scope="module")
def nodes() -> Iterator[Cluster]:
    with sim_cluster([talker(1)]) as found:
        yield found


def with_metrics(keys: str = "admin", listen: str | None = "127.0.0.1:0") -> GatewaySettings:
    return GatewaySettings(metrics=MetricsSettings(listen, keys))  # type: ignore[arg-type]


def status(url: str, token: str = "", path: str = "/metrics", host: str = "") -> int:
    headers = {"Authorization": f"Bearer {token}"} if token else {}
    return httpx.get(f"{url}{path}", headers=headers | ({"Host": host} if host else {}), trust_env=False).status_code


def own(stage: Stage) -> str:
    return f"http://127.0.0.1:{stage.look(lambda gateway: gateway.metrics_port)}"


@pytest.mark.parametrize(
    ("keys", "nobody", "plain", "admin"), [("admin", 401, 403, 200), ("any", 401, 200, 200), ("none", 200, 200, 200)]
)
def test_the_rule_holds_on_both_addresses(nodes: Cluster, keys: str, nobody: int, plain: int, admin: int) -> None:
    with gateway_over(nodes.urls, with_metrics(keys), keyring=Keyring(KEYS, required=True)) as stage:
        for url in (stage.url, own(stage)):
            assert [status(url, token) for token in ("", PLAIN, ADMIN)] == [nobody, plain, admin], url
            assert status(url, "wrong-0123456789abcdef") == nobody


def test_without_required_keys_it_is_open_on_this_machine(nodes: Cluster) -> None:
    with gateway_over(nodes.urls, with_metrics()) as stage:
        assert status(own(stage)) == status(stage.url) == 200


def test_an_address_for_other_machines_needs_a_key_also_where_the_gateway_needs_none(nodes: Cluster) -> None:
    ring = Keyring(KEYS, required=False)
    with gateway_over(nodes.urls, with_metrics(listen="0.0.0.0:0"), keyring=ring) as stage:
        assert status(stage.url) == 200
        assert [status(own(stage), token) for token in ("", PLAIN, ADMIN)] == [401, 403, 200]
        assert status(own(stage), ADMIN, host="metrics.example") == 200  # a name is no danger behind a key
    with gateway_over(nodes.urls, with_metrics("none", "0.0.0.0:0")) as stage:
        assert status(own(stage)) == 200


def test_there_is_nothing_else(nodes: Cluster) -> None:
    with gateway_over(nodes.urls, with_metrics()) as stage:
        url = own(stage)
        found = httpx.get(f"{url}/metrics", trust_env=False)
        assert found.headers["content-type"].startswith("text/plain; version=0.0.4")
        assert "sollol_build_info" in found.text
        for path in ("/", "/api/tags", "/sollol/snapshot", "/dashboard/", "/metrics/"):
            assert status(url, path=path) == 404
        assert httpx.post(f"{url}/metrics", content=b"x" * 1000, trust_env=False).status_code == 405
        assert httpx.head(f"{url}/metrics", trust_env=False).status_code == 200
        assert status(url, host="evil.example") == 403  # a page of another site that points its name here


def test_it_ends_with_the_gateway(nodes: Cluster) -> None:
    with gateway_over(nodes.urls, with_metrics()) as stage:
        url = own(stage)
        assert status(url) == 200
    with pytest.raises(httpx.ConnectError):
        status(url)


def test_a_taken_address_is_named_and_nothing_is_left_open(nodes: Cluster) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        address = f"127.0.0.1:{taken.getsockname()[1]}"
        port = free_port()

        async def start() -> None:
            transport = HttpTransport()
            async with AsyncOllamaPool(nodes.urls, transport=transport) as pool:
                settings = with_metrics(listen=address).listening(port=port)
                await Gateway(pool, settings, transport=transport).start()

        with pytest.raises(AddressUnavailable, match=rf"{address}: .*choose another listen in \[metrics\]"):
            asyncio.run(start())
        with socket.socket() as free:
            assert free.connect_ex(("127.0.0.1", port))


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ('listen = "9464"', "metrics.listen: '9464' cannot be used"),
        ('listen = "127.0.0.1"', "metrics.listen: '127.0.0.1' cannot be used"),
        ('listen = "127.0.0.1:99999"', "metrics.listen: '127.0.0.1:99999' cannot be used"),
        ('keys = "all"', "metrics.keys: 'all' cannot be used"),
        ("port = 1", "metrics.port is not a setting; expected listen, keys"),
    ],
)
def test_wrong_settings_are_named(text: str, says: str, tmp_path: Path) -> None:
    path = tmp_path / "sollol.toml"
    path.write_text(f"[metrics]\n{text}\n")
    with pytest.raises(ConfigError, match=says):
        gateway_settings(load_settings({}, config=path), str(path))


@pytest.mark.parametrize(
    ("listen", "address"),
    [("127.0.0.1:9464", ("127.0.0.1", 9464)), ("[::1]:0", ("::1", 0)), ("gpu-box:1", ("gpu-box", 1)), (None, ("", 0))],
)
def test_an_address(listen: str | None, address: tuple[str, int], tmp_path: Path) -> None:
    path = tmp_path / "sollol.toml"
    path.write_text(f'[metrics]\nlisten = "{listen}"\n' if listen else "")
    assert gateway_settings(load_settings({}, config=path), str(path)).metrics.address == address


def test_a_dashboard_of_a_program_serves_the_metrics_of_its_pool(nodes: Cluster) -> None:
    with OllamaPool(list(nodes)) as pool, UnifiedDashboard(pool, 0) as dashboard:
        pool.generate(MODEL, "x", options={"num_predict": 2})
        text = httpx.get(f"{dashboard.url}/metrics", trust_env=False).text
        assert 'sollol_requests_total{kind="generate"' in text
        assert pool.metrics().decode().splitlines()[0] == text.splitlines()[0]
    with OllamaPool(list(nodes)) as pool, pytest.raises(BadInput, match="was not used yet"):
        pool.metrics()
