"""What is in deploy/ agrees with the code: names, ports, paths and times. Docker and Kubernetes do not run here."""

from __future__ import annotations

import configparser
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml

from sollol.cli.app import app
from sollol.config import load_settings
from sollol.errors import ConfigError
from sollol.gateway.auth.keys import keys_of_environment
from sollol.gateway.routes.table import ROUTES
from sollol.gateway.settings import GatewaySettings, Listen, gateway_settings

ROOT = Path(__file__).parents[1]
DEPLOY = ROOT / "deploy"
UNIT = DEPLOY / "sollol.service"
CLOSING_S = 10  # besides drain_s: what has to be cut off, and a slow machine
DEFAULTS = Listen()


def manifest(name: str) -> Any:
    (found,) = yaml.safe_load_all((DEPLOY / "kubernetes" / f"{name}.yaml").read_text())
    return found


@pytest.fixture
def unit() -> configparser.SectionProxy:
    read = configparser.ConfigParser(strict=False, interpolation=None)
    read.optionxform = str  # type: ignore[assignment]
    read.read(UNIT)
    return read["Service"]


def check_command(words: list[str], tmp_path: Path) -> None:
    """Its options are options of `sollol serve`."""
    import typer

    assert words[0] == "serve"
    serve = typer.main.get_command(app).commands["serve"]  # type: ignore[attr-defined]
    serve.make_context("serve", words[1:])


def is_public(path: str) -> bool:
    return ROUTES[("GET", path)].public


# --- systemd ---


def test_the_unit_waits_for_what_runs_and_gives_up_on_settings(unit: configparser.SectionProxy, tmp_path: Path) -> None:
    assert float(unit["TimeoutStopSec"]) >= DEFAULTS.drain_s + CLOSING_S
    assert unit["RestartPreventExitStatus"] == "2"  # and not EX_TEMPFAIL, which a port that is taken ends it with
    assert unit["Restart"] == "on-failure"
    assert "HUP" in unit["ExecReload"]
    assert int(unit["LimitNOFILE"]) > 2 * GatewaySettings().limits.max_connections
    check_command(unit["ExecStart"].split()[1:], tmp_path)
    assert unit["User"] == "sollol"


@pytest.mark.skipif(shutil.which("systemd-analyze") is None, reason="systemd is not installed")
def test_systemd_has_nothing_against_the_unit(tmp_path: Path) -> None:
    copy = tmp_path / "sollol.service"
    copy.write_text(UNIT.read_text().replace("/opt/sollol/bin/sollol", sys.executable))
    told = subprocess.run(["systemd-analyze", "verify", copy], capture_output=True, text=True, check=False)
    complaints = [line for line in told.stderr.splitlines() if "sollol.service" in line]
    assert not complaints
    rated = subprocess.run(
        ["systemd-analyze", "security", "--offline=yes", copy], capture_output=True, text=True, check=False
    )
    level = re.search(r"exposure level for sollol.service: ([\d.]+)", rated.stdout)
    if level is None:
        pytest.skip("this systemd cannot rate a unit that is not installed")
    assert float(level[1]) <= 2.0


# --- containers ---


def test_the_image_has_its_own_user_and_asks_how_it_is() -> None:
    text = (DEPLOY / "Dockerfile").read_text()
    froms = re.findall(r"^FROM (\S+)", text, re.M)
    assert froms == ["python:3.12-slim"] * 2
    assert re.search(r"^USER 10001:10001$", text, re.M)
    url = re.search(r"http://127\.0\.0\.1:(\d+)(/[\w/]+)", text[text.index("HEALTHCHECK") :])
    assert url is not None
    assert int(url[1]) == DEFAULTS.port
    assert is_public(url[2])
    for line in re.findall(r"^COPY (?!--from)(.+) \S+$", text, re.M):
        for name in line.split():
            assert (ROOT / name).exists(), name
            assert f"!{name}" in (DEPLOY / "Dockerfile.dockerignore").read_text().splitlines()


def test_compose_publishes_the_gateway_to_this_machine_only() -> None:
    services = yaml.safe_load((DEPLOY / "compose.yaml").read_text())["services"]
    gateway = services.pop("gateway")
    assert gateway["ports"] == [f"127.0.0.1:{DEFAULTS.port}:{DEFAULTS.port}"]
    assert (DEPLOY / gateway["build"]["context"] / gateway["build"]["dockerfile"]).resolve() == DEPLOY / "Dockerfile"
    assert int(gateway["stop_grace_period"].removesuffix("s")) >= DEFAULTS.drain_s + CLOSING_S
    nodes = load_settings(gateway["environment"]).nodes
    assert {node.host for node in nodes} == set(services) == set(gateway["depends_on"])
    assert not any("ports" in service for service in services.values()), "a node has no keys of its own"


# --- Kubernetes ---


def test_the_config_map_is_a_configuration(tmp_path: Path) -> None:
    path = tmp_path / "sollol.toml"
    path.write_text(manifest("configmap")["data"]["sollol.toml"])
    settings = gateway_settings(load_settings({}, config=path), str(path))
    assert len(settings.nodes) == 2
    pod = manifest("deployment")["spec"]["template"]["spec"]
    pre_stop_s = float(pod["containers"][0]["lifecycle"]["preStop"]["exec"]["command"][1])
    assert pod["terminationGracePeriodSeconds"] >= pre_stop_s + settings.listen.drain_s + CLOSING_S


def test_the_example_of_a_secret_lets_nobody_in() -> None:
    for name, text in manifest("secret")["stringData"].items():
        assert name == "SOLLOL_API_KEYS"
        with pytest.raises(ConfigError, match="under 16 characters"):
            keys_of_environment(text)
        real = keys_of_environment(text.replace("CHANGE-ME", "0123456789abcdef"))
        assert [key.admin for key in real] == [False, True]


def test_the_deployment_fits_the_others(tmp_path: Path) -> None:
    deployment, service = manifest("deployment"), manifest("service")
    template = deployment["spec"]["template"]
    (container,) = template["spec"]["containers"]
    check_command(container["args"], tmp_path)
    assert container["args"][container["args"].index("--host") + 1] == "0.0.0.0"
    (port,) = container["ports"]
    (published,) = service["spec"]["ports"]
    assert (port["containerPort"], published["port"]) == (DEFAULTS.port, DEFAULTS.port)
    assert published["targetPort"] == port["name"]
    labels = template["metadata"]["labels"]
    assert deployment["spec"]["selector"]["matchLabels"] == service["spec"]["selector"] == labels
    for probe in ("startupProbe", "livenessProbe", "readinessProbe"):
        assert container[probe]["httpGet"]["port"] == port["name"]
        assert is_public(container[probe]["httpGet"]["path"])
    assert container["readinessProbe"]["httpGet"]["path"] == "/sollol/ready"
    volumes = {volume["name"]: volume for volume in template["spec"]["volumes"]}
    assert {mount["name"] for mount in container["volumeMounts"]} == set(volumes)
    assert volumes["settings"]["configMap"]["name"] == manifest("configmap")["metadata"]["name"]
    assert container["envFrom"] == [{"secretRef": {"name": manifest("secret")["metadata"]["name"]}}]
    assert f"USER {template['spec']['securityContext']['runAsUser']}:" in (DEPLOY / "Dockerfile").read_text()


# --- all ---


def test_no_file_names_a_registry_and_all_are_documented() -> None:
    page = (ROOT / "docs" / "deploy.md").read_text()
    for path in DEPLOY.rglob("*"):
        if path.is_file():
            assert not re.search(r"(docker\.io|ghcr\.io|quay\.io|pypi\.org|index-url)", path.read_text()), path
            name = path.relative_to(ROOT)
            assert str(name) in page or f"{name.parent}/" in page or name.suffix == ".dockerignore", name


def test_the_files_of_the_agent_start_it_and_keep_its_key_out() -> None:
    import plistlib

    found = configparser.ConfigParser(strict=False, interpolation=None)
    found.optionxform = str  # type: ignore[assignment,method-assign]
    found.read(DEPLOY / "sollol-agent.service")
    service = found["Service"]
    job = plistlib.loads((DEPLOY / "io.sollol.agent.plist").read_bytes())
    for command in (service["ExecStart"].split(), job["ProgramArguments"]):
        assert command[1:] == ["agent", "--host", "0.0.0.0"]
    assert service["RestartPreventExitStatus"] == "2"
    assert "SOLLOL_AGENT_KEY" in job["EnvironmentVariables"]
    assert "SOLLOL_AGENT_KEY" not in service["Environment"], "the unit is readable for all"
