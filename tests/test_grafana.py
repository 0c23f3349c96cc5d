"""The dashboard and alert rules in deploy/grafana use metrics that exist, and a real Prometheus evaluates them."""

from __future__ import annotations

import json
import re
import shutil
import signal
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
import yaml

from sollol.observe.metrics import FAMILIES
from sollol.sim import free_port, sim_cluster
from tests.gateway.stage import MODEL, Stage, gateway_over, talker, until

FOLDER = Path(__file__).parents[1] / "deploy" / "grafana"
PROMTOOL, PROMETHEUS = shutil.which("promtool"), shutil.which("prometheus")
needs_promtool = pytest.mark.skipif(PROMTOOL is None, reason="promtool is not installed (Debian: prometheus)")
needs_prometheus = pytest.mark.skipif(PROMETHEUS is None, reason="prometheus is not installed (Debian: prometheus)")
SUFFIX = re.compile(r"_(bucket|sum|count)$")
WORDS = {"by", "on", "and", "or", "le", "job", "offset", "vector", "bool"}


def rules() -> list[dict[str, Any]]:
    (group,) = yaml.safe_load((FOLDER / "rules.yaml").read_text())["groups"]
    found: list[dict[str, Any]] = group["rules"]
    return found


def panels() -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = json.loads((FOLDER / "dashboard.json").read_text())["panels"]
    return found


def expressions() -> Iterator[tuple[str, str]]:
    """Yield each expression of rules and panels, and the text that shows its labels."""
    for rule in rules():
        yield rule["expr"], " ".join(rule["annotations"].values())
    for panel in panels():
        for target in panel["targets"]:
            yield target["expr"], target["legendFormat"]


def families_in(expression: str) -> set[str]:
    """Return the families that an expression reads; a histogram by its base name."""
    found = set()
    for name in re.findall(r"\bsollol_\w+", expression):
        base = SUFFIX.sub("", name)
        family = FAMILIES.get(base)
        found.add(base if family is not None and family.type == "histogram" else name)
    return found


def test_each_metric_exists_with_the_labels_that_are_used() -> None:
    for expression, shown in expressions():
        families = families_in(expression)
        assert families, expression
        assert families <= FAMILIES.keys(), expression
        known = set.union(*(set(FAMILIES[name].labels) for name in families)) | {"job", "instance", "le"}
        grouped = re.findall(r"\b(?:by|on) \(([^)]*)\)", expression)
        used = {label.strip() for labels in grouped for label in labels.split(",")}
        used |= set(re.findall(r"[{,] ?(\w+)(?:=|!=|=~|!~)\"", expression))
        used |= set(re.findall(r"\{\{(?: ?\$labels\.)?(\w+) ?\}\}", shown))
        assert used <= known, expression


def test_buckets_are_read_of_histograms_alone_and_rates_of_counters() -> None:
    for expression, _ in expressions():
        for name in re.findall(r"\bsollol_\w+", expression):
            base = SUFFIX.sub("", name)
            assert name in FAMILIES or FAMILIES[base].type == "histogram", name
        for name in re.findall(r"(?:rate|increase)\((sollol_\w+)", expression):
            family = FAMILIES.get(name) or FAMILIES[SUFFIX.sub("", name)]
            assert family.type in ("counter", "histogram"), expression


def test_panels_do_not_overlap_and_have_ids_of_their_own() -> None:
    taken: set[tuple[int, int]] = set()
    for panel in panels():
        place = panel["gridPos"]
        cells = {
            (x, y)
            for x in range(place["x"], place["x"] + place["w"])
            for y in range(place["y"], place["y"] + place["h"])
        }
        assert not taken & cells, panel["title"]
        assert max(x for x, _ in cells) < 24
        taken |= cells
    assert len({panel["id"] for panel in panels()}) == len(panels())


def test_each_rule_has_a_case_in_which_it_fires_and_one_in_which_it_is_silent() -> None:
    cases = yaml.safe_load((FOLDER / "rules-test.yaml").read_text())["tests"]
    for rule in rules():
        expected = [
            [alert["exp_labels"] for alert in case["exp_alerts"]]
            for test in cases
            for case in test["alert_rule_test"]
            if case["alertname"] == rule["alert"]
        ]
        assert any(expected), rule["alert"]
        if "absent(" in rule["expr"]:  # of no series: it is silent at another time
            assert not all(expected), rule["alert"]
            continue
        series = [
            dict(re.findall(r'(\w+)="([^"]*)"', one["series"]))
            for test in cases
            if any(case["alertname"] == rule["alert"] for case in test["alert_rule_test"])
            for one in test["input_series"]
        ]
        fired = [labels for alerts in expected for labels in alerts]
        well = [s for s in series if not any(all(s.get(k, v) == v for k, v in labels.items()) for labels in fired)]
        assert well, rule["alert"]


@needs_promtool
@pytest.mark.parametrize("words", [("check", "rules", "rules.yaml"), ("test", "rules", "rules-test.yaml")])
def test_promtool_accepts_the_rules(words: tuple[str, ...]) -> None:
    ran = subprocess.run([str(PROMTOOL), *words], cwd=FOLDER, capture_output=True, text=True)
    assert ran.returncode == 0, ran.stdout + ran.stderr


CONFIG = """
global: {{scrape_interval: 1s, scrape_timeout: 1s, evaluation_interval: 1s}}
rule_files: ["{rules}"]
scrape_configs:
  - job_name: sollol
    static_configs: [{{targets: ["127.0.0.1:{port}"]}}]
"""


@pytest.fixture
def stage() -> Iterator[Stage]:
    """A gateway over a node that answers and one that is down."""
    with sim_cluster([talker(1, 2_000.0)]) as cluster, gateway_over([*cluster.urls, "127.0.0.1:9"]) as running:
        body = {"model": MODEL, "prompt": "a", "stream": False, "options": {"num_predict": 4}}
        with running.client() as client:
            for _ in range(5):
                assert client.post("/api/generate", json=body).status_code == 200
        yield running


@pytest.fixture
def prometheus(stage: Stage, tmp_path: Path) -> Iterator[httpx.Client]:
    """A client of a Prometheus that scrapes the gateway each second."""
    port, config = free_port(), tmp_path / "prometheus.yml"
    config.write_text(CONFIG.format(rules=FOLDER / "rules.yaml", port=stage.port))
    command = [str(PROMETHEUS), f"--config.file={config}", f"--storage.tsdb.path={tmp_path / 'data'}"]
    command += [f"--web.listen-address=127.0.0.1:{port}", "--log.level=error"]
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)
    assert process.stderr is not None
    try:
        with httpx.Client(base_url=f"http://127.0.0.1:{port}/api/v1", timeout=10, trust_env=False) as client:
            yield client
    finally:
        process.send_signal(signal.SIGTERM)
        _, complaints = process.communicate(timeout=30)
    assert "level=error" not in complaints


def read(client: httpx.Client, route: str, **query: str) -> Any:
    """Return the data of an answer, or None while Prometheus starts."""
    try:
        answer = client.get(route, params=query)
    except httpx.TransportError:
        return None
    if answer.status_code == 503:
        return None
    assert answer.status_code == 200, answer.text
    return answer.json()["data"]


@needs_prometheus
def test_a_real_prometheus_scrapes_and_evaluates(prometheus: httpx.Client) -> None:
    until(lambda: (read(prometheus, "/query", query="sollol_node_up == 0") or {}).get("result"))

    def alerts() -> list[dict[str, str]]:
        return [alert["labels"] for alert in (read(prometheus, "/alerts") or {}).get("alerts", ())]

    until(
        lambda: (
            [(labels["alertname"], labels.get("node")) for labels in alerts()] == [("SollolNodeDown", "127.0.0.1:9")]
        )
    )
    (group,) = read(prometheus, "/rules")["groups"]
    assert [(rule["name"], rule["health"]) for rule in group["rules"]] == [(rule["alert"], "ok") for rule in rules()]
    (target,) = read(prometheus, "/targets", state="active")["activeTargets"]
    assert (target["health"], target["lastError"]) == ("up", "")
    found = {}
    for panel in panels():
        for target in panel["targets"]:
            expression = (
                target["expr"].replace("$__rate_interval", "1m").replace("$instance", ".*").replace("$model", ".*")
            )
            found[panel["title"]] = read(prometheus, "/query", query=expression)["result"]
    assert found["Nodes up"][0]["value"][1] == "1"
    assert found["Nodes down"][0]["value"][1] == "1"
