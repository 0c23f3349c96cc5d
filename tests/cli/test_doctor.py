"""`doctor`, `ping` and `report` over simulated nodes, a gateway, and a machine with faults."""

from __future__ import annotations

import json
from collections import namedtuple
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from typer.testing import Result

from sollol.cli import attach, local_checks
from sollol.cli.link import Link
from sollol.cli.report import redacted
from sollol.gateway.auth.keys import Key, Keyring, hash_of
from sollol.observe.findings import Finding
from sollol.observe.overview import Overview
from sollol.sim import Cluster, ModelSpec, NodeSpec, sim_cluster
from tests.gateway.stage import MODEL, Stage, gateway_over, talker

Run = Callable[..., Result]
CHAT = ModelSpec(MODEL, size_bytes=2_000_000_000)
HALF = NodeSpec(models=(CHAT,), vram_bytes=1_000_000_000, loaded=(MODEL,))


@pytest.fixture(autouse=True)
def _nothing_local(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(attach, "LOCAL", ())


def ids(result: Result) -> list[str]:
    return [finding["id"] for finding in json.loads(result.stdout)["findings"]]


def test_a_good_node_has_no_finding(run: Run) -> None:
    with sim_cluster([talker(1)]) as cluster:
        result = run("doctor", "--nodes", cluster.urls[0])
    assert result.stdout == ""
    assert "Nothing is wrong. Looked at 1 node (from --nodes)." in result.stderr


def test_faults_are_printed_with_their_fixes_and_fail(run: Run) -> None:
    with sim_cluster([talker(1), HALF]) as cluster:
        nodes = ",".join([*cluster.urls, "127.0.0.1:9"])
        printed = run("doctor", "--nodes", nodes, code=1)
        assert ids(run("doctor", "--json", "--nodes", nodes, code=1)) == ["node-down", "partly-on-cpu"]
    assert "error: 127.0.0.1:9 is down: " in printed.stdout
    assert "Fix: On it, run `ollama serve`" in printed.stdout
    assert "runs 50%/50% CPU/GPU" in printed.stdout
    assert "2 faults." in printed.stderr


def test_hints_do_not_fail(run: Run) -> None:
    with sim_cluster([talker(1), talker(2, version="0.20.1")]) as cluster:
        assert ids(run("doctor", "--json", "--nodes", ",".join(cluster.urls))) == ["version-skew"]


def test_a_gateway_tells_what_only_it_knows(run: Run) -> None:
    with sim_cluster([talker(1)]) as cluster, gateway_over([cluster.urls[0], "127.0.0.1:9"]) as stage:
        result = run("doctor", "--json", "--url", stage.url, code=1)
    assert ids(result) == ["node-down"]
    assert json.loads(result.stdout)["looked_at"]["source"] == stage.url


def test_two_gateways_on_the_same_nodes_are_found(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    keyed = Keyring([Key("ops", hash_of("secret"))], required=True)
    with (
        sim_cluster([talker(1)]) as nodes,
        sim_cluster([talker(2)]) as others,
        gateway_over(nodes.urls) as own,
        gateway_over(nodes.urls) as same,
        gateway_over(others.urls) as apart,
        gateway_over(nodes.urls, keyring=keyed) as closed,
    ):

        def found(at: Stage, *words: str) -> list[str]:
            monkeypatch.setattr(attach, "GATEWAY_PORT", int(at.url.rpartition(":")[2]))
            return ids(run("doctor", "--json", *words, code=None))

        by_nodes, by_own = ("--nodes", nodes.urls[0]), ("--url", own.url)
        assert found(same, *by_nodes) == found(same, *by_own) == ["two-gateways"]
        assert found(apart, *by_nodes) == found(apart, *by_own) == []
        assert found(own, *by_own) == []
        assert found(closed, *by_nodes) == []
        assert found(closed, *by_own) == ["two-gateways"]


def test_without_nodes_it_says_so(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    from sollol.cli import fleet

    monkeypatch.delenv("SOLLOL_NODES")
    monkeypatch.setattr(fleet, "search_networks", lambda timeout: [])
    assert ids(run("doctor", "--json", code=1)) == ["no-nodes"]


def test_url_and_nodes_exclude_each_other(run: Run) -> None:
    assert "--url and --nodes exclude each other" in run("doctor", "--url", "x", "--nodes", "y", code=2).stderr


def test_fix_loads_a_model_again_that_fell_to_the_cpu(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    from sollol.dashboard import watch

    with sim_cluster([talker(1)]) as cluster:
        overview = watch.Watch.overview

        async def fallen(self: watch.Watch) -> Overview:
            found = await overview(self)
            host = cluster.urls[0].removeprefix("http://")
            data, subject = {"model": f"{MODEL}:latest"}, f"{MODEL}:latest on {host}"
            found.findings = [Finding("on-cpu", "warning", subject, "It fell.", "It is slow.", "Load it again.", data)]
            return found

        monkeypatch.setattr(watch.Watch, "overview", fallen)
        result = run("doctor", "--fix", "--nodes", cluster.urls[0], code=1)
        loads = cluster.nodes[0].counters.requests.get("POST /api/generate", 0)
    assert "was unloaded and loaded again" in result.stderr
    assert loads == 2


def test_settings_that_cannot_be_used(run: Run, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    file = tmp_path / "sollol.toml"
    file.write_text('nodes = ["127.0.0.1:9"]\nnodez = 3\n')
    monkeypatch.setenv("SOLLOL_CONFIG", str(file))
    with sim_cluster([talker(1)]) as cluster:
        assert "settings" in ids(run("doctor", "--json", "--nodes", cluster.urls[0], code=1))


Usage = namedtuple("Usage", "total used free")


@pytest.mark.parametrize(("free", "found"), [(500_000_000, ["disk-full"]), (50_000_000_000, [])])
def test_a_full_disk(monkeypatch: pytest.MonkeyPatch, free: int, found: list[str]) -> None:
    monkeypatch.setattr("shutil.disk_usage", lambda path: Usage(10**12, 10**12 - free, free))
    assert [finding.id for finding in local_checks.disks()] == found


def test_a_full_disk_of_the_store(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    (tmp_path / "store").mkdir()
    (tmp_path / "sollol.toml").write_text(f'[store]\npath = "{(tmp_path / "store").as_posix()}/x.sqlite3"\n')
    monkeypatch.setenv("SOLLOL_CONFIG", str(tmp_path / "sollol.toml"))
    monkeypatch.setattr(Path, "home", lambda: tmp_path / "none")
    free = {tmp_path / "store": 5_000_000}
    monkeypatch.setattr("shutil.disk_usage", lambda path: Usage(10**12, 10**12, free[path]))
    assert [(finding.id, finding.subject) for finding in local_checks.disks()] == [
        ("disk-full", str(tmp_path / "store"))
    ]
    free[tmp_path / "store"] = 10**11
    assert list(local_checks.disks()) == []


@pytest.mark.parametrize(
    ("link", "found"),
    [
        (Link(0.001, 0.002, 0.0), []),
        (Link(0.25, 0.3, 0.0), ["slow-network"]),
        (Link(0.001, 0.9, 0.0), ["slow-node"]),
        (Link(0.001, 0.002, -300.0), ["clock-skew"]),
        (Link(error="no connection"), []),
    ],
)
def test_the_way_to_a_node(link: Link, found: list[str]) -> None:
    assert [finding.id for finding in local_checks.link_findings("a:1", link)] == found


def test_ping_measures_the_way(run: Run) -> None:
    with sim_cluster([talker(1)]) as cluster:
        found = json.loads(run("ping", cluster.urls[0], "--model", MODEL, "--json").stdout)
        assert "connect " in run("ping", cluster.urls[0]).stdout
    assert found["http_s"] > 0
    assert found["first_token_s"] > 0
    assert found["connect_s"] > 0
    assert found["upload_mb_s"] > 0


def test_ping_of_nobody_fails(run: Run) -> None:
    assert "no connection: Connection refused" in run("ping", "127.0.0.1:9", code=1).stderr


def test_a_report_has_no_address_and_no_application(run: Run, cluster: Cluster, tmp_path: Path) -> None:
    out = tmp_path / "report.json"
    with gateway_over([*cluster.urls, "127.0.0.1:9"]) as stage:
        body = {"model": MODEL, "prompt": "a secret prompt", "stream": False}
        with stage.client() as client:
            assert client.post("/api/generate", json=body).status_code == 200
        result = run("report", "--url", stage.url, "--out", out)
    text = out.read_text()
    assert "Read it before you send it" in result.stderr
    assert "127.0.0.1" not in text
    assert "secret prompt" not in text
    content = json.loads(text)
    assert [node["host"] for node in content["overview"]["nodes"]] == ["node-1", "node-2"]
    assert content["findings"][0]["id"] == "node-down"
    assert content["overview"]["recent"][0]["node"] == "node-1"


def test_names_are_replaced_everywhere() -> None:
    row = {"app": "payroll", "error": "gpu-1:11434 refused payroll"}
    node = {"host": "gpu-1:11434", "url": "http://gpu-1:11434", "why": "http://gpu-1:11434 (10.1.2.3) is silent"}
    content = {"overview": {"nodes": [node], "recent": [row], "app_name": "payroll", "keys": {"ann": 1}}}
    text = json.dumps(redacted(content))
    for secret in ("gpu-1", "payroll", "10.1.2.3", "ann"):
        assert secret not in text


@pytest.mark.parametrize("app", ["e", "up", "host", "llama3.2", "chat", "127", "apps", "node-1"])
def test_a_common_word_as_a_name_leaves_the_other_fields(app: str) -> None:
    node = {"host": "model:11434", "url": "http://model:11434", "state": "up", "models": ["llama3.2:latest"]}
    row = {"app": app, "kind": "chat", "model": "llama3.2:latest", "node": "model:11434", "outcome": "ok"}
    found = redacted({"overview": {"nodes": [node], "recent": [row], "app_name": ""}, "python": "3.12.7"})
    named = {"host": "node-1", "url": "node-1"}
    shown = row | {"app": "app-1", "node": "node-1"}
    assert found == {"overview": {"nodes": [node | named], "recent": [shown], "app_name": ""}, "python": "3.12.7"}


def test_applications_of_other_machines_are_replaced() -> None:
    process = {"id": "annes-laptop:7:ab12", "app": "payroll", "host": "annes-laptop", "work": {"payslips": {}}}
    shared = {"redis": "redis://redis.corp.example:6379", "problem": "redis.corp.example refused",
              "processes": [process], "apps": {"payroll": {"running": 1}}}  # fmt: skip
    war = {"id": "reload-war", "summary": "m was loaded 4 times (bonus, payroll).", "data": {"apps": "bonus, payroll"}}
    content = {"findings": [war], "overview": {"nodes": [], "applications": shared}}
    text = json.dumps(redacted(content))
    for secret in ("annes", "payroll", "payslips", "bonus", "corp"):
        assert secret not in text


@pytest.fixture
def cluster() -> Any:
    with sim_cluster([talker(1, 5_000.0)]) as running:
        yield running
