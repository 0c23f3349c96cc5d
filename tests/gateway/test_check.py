"""`sollol serve --check`: what it finds, each finding by itself."""

from __future__ import annotations

import asyncio
import socket
from pathlib import Path
from typing import Any

import msgspec
import pytest

from sollol.core.endpoint import parse_endpoint
from sollol.gateway import check as gateway_check
from sollol.gateway.auth.keys import Key, add_key
from sollol.gateway.check import CheckResult, check
from sollol.gateway.settings import AlertSettings, GatewaySettings, Listen, MetricsSettings, RegistrySettings
from sollol.sim import ModelSpec, NodeSpec
from sollol.sim.serve import free_port, sim_cluster


def findings(
    tmp_path: Path, urls: list[str], keys: int = 0, listen: dict[str, Any] | None = None, **more: Any
) -> dict[str, CheckResult]:
    where: dict[str, Any] = {"port": free_port(), "keys_file": str(tmp_path / "keys.json")} | (listen or {})
    settings = GatewaySettings(Listen(**where), **more)
    found = asyncio.run(check(settings, tuple(map(parse_endpoint, urls)), keys, "sollol.toml"))
    return {finding.subject: finding for finding in found}


def test_a_gateway_that_would_work(tmp_path: Path) -> None:
    add_key(tmp_path / "keys.json", Key("a", ""))
    with sim_cluster([NodeSpec(models=(ModelSpec("small"),))]) as nodes:
        found = findings(
            tmp_path,
            nodes.urls,
            1,
            {"host": "0.0.0.0"},
            aliases={"mini:latest": "small"},
            fallbacks={"big:70b": ("mini", "small")},
        )
        assert all(finding.ok for finding in found.values()), found
        assert found["file"].detail == "sollol.toml"
        assert found["keys"].detail == "1 key, required"
        assert found["fallback big:70b"].ok, "a fallback may be an alias"


def test_a_registry_that_cannot_start(tmp_path: Path) -> None:
    def checked(**more: Any) -> CheckResult | None:
        given = {"enabled": True, "port": free_port(), "folder": str(tmp_path / "blobs"), **more}
        return findings(tmp_path, [], registry=RegistrySettings(**given)).get("registry")

    def told(**more: Any) -> str:
        found = checked(**more)
        assert found is not None
        assert not found.ok
        return found.detail

    good = checked()
    assert good is not None
    assert good.ok
    assert not (tmp_path / "blobs").exists(), "a check leaves nothing behind"
    assert checked(enabled=False, host="8.8.8.8") is None
    assert "'8.8.8.8' is no private address" in told(host="8.8.8.8")
    assert "'no host' is no private address" in told(host="no host")
    (tmp_path / "file").write_text("")
    assert "cannot be a folder" in told(folder=str(tmp_path / "file" / "blobs"))
    with socket.create_server(("127.0.0.1", 0)) as taken:
        assert "cannot listen on" in told(port=taken.getsockname()[1])


def test_metrics_that_nobody_can_read_and_an_address_that_is_taken(tmp_path: Path) -> None:
    def checked(listen: str, who: Any = "admin", keys: int = 0) -> CheckResult:
        return findings(tmp_path, [], keys, metrics=MetricsSettings(listen, who))["metrics"]

    assert "`sollol keys add NAME --admin`" in checked("0.0.0.0:0").detail
    assert checked("0.0.0.0:0", keys=1).ok
    assert checked("0.0.0.0:0", "none").ok
    assert checked("127.0.0.1:0").ok
    with socket.create_server(("127.0.0.1", 0)) as taken:
        assert not checked(f"127.0.0.1:{taken.getsockname()[1]}").ok
    assert "metrics" not in findings(tmp_path, [])


def test_alerts_that_need_what_is_not_installed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def checked(*urls: str) -> CheckResult:
        return findings(tmp_path, [], alerts=AlertSettings(urls))["alerts"]

    monkeypatch.setattr(gateway_check, "find_spec", lambda name: None)
    assert checked("https://hooks.example/secret").ok
    assert not checked("https://hooks.example/x", "tgram://secret/1").ok
    assert "secret" not in checked("tgram://secret/1").detail
    monkeypatch.setattr(gateway_check, "find_spec", lambda name: name)
    assert checked("tgram://secret/1").ok
    assert "alerts" not in findings(tmp_path, [])


def test_nodes_that_are_down_and_none_at_all(tmp_path: Path) -> None:
    down = findings(tmp_path, ["127.0.0.1:1"])
    assert not down["node 127.0.0.1:1"].ok
    assert down["nodes"].detail.startswith("none answers")
    assert findings(tmp_path, [])["nodes"].detail.startswith("none is known")


def test_keys_that_are_missing_and_a_file_that_others_can_change(tmp_path: Path) -> None:
    found = findings(tmp_path, [], 0, {"host": "0.0.0.0"})
    assert not found["keys"].ok
    assert "sollol keys add" in found["keys"].detail
    assert "keys file" not in found
    path = tmp_path / "keys.json"
    add_key(path, Key("a", ""))
    path.chmod(0o640)
    assert findings(tmp_path, [])["keys file"].ok, "a mounted secret is often read by a group"
    path.chmod(0o660)
    found = findings(tmp_path, [])
    assert not found["keys file"].ok
    assert "chmod 600" in found["keys file"].detail


def test_an_address_that_cannot_be_listened_on(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        found = findings(tmp_path, [], 0, {"port": taken.getsockname()[1]})
        assert "cannot listen on 127.0.0.1" in found["address"].detail
    assert not findings(tmp_path, [], 1, {"host": "203.0.113.1"})["address"].ok


def test_models_that_no_node_has(tmp_path: Path) -> None:
    with sim_cluster([NodeSpec(models=(ModelSpec("small"),))]) as nodes:
        settings: dict[str, Any] = {"aliases": {"a:latest": "gone"}, "fallbacks": {"b:latest": ("small", "lost")}}
        told = asyncio.run(
            check(msgspec.structs.replace(GatewaySettings(), **settings), (parse_endpoint(nodes.urls[0]),), 0)
        )
        wrong = [
            f"{finding.subject}: {finding.detail}"
            for finding in told
            if not finding.ok and finding.subject != "address"
        ]
        assert wrong == [
            "alias a:latest: gone is on no node; pull it, or change the alias",
            "fallback b:latest: lost is on no node; pull it, or change the fallback",
        ]
