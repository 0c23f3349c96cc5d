"""The controller of a gateway: its plan over HTTP and in `sollol models plan`."""

from __future__ import annotations

import json
from typing import Any

import httpx
import msgspec
import pytest
from typer.testing import CliRunner

from sollol.cli import attach
from sollol.cli.app import app
from sollol.gateway.settings import ControllerSettings, GatewaySettings
from sollol.sim import sim_cluster
from tests.gateway.stage import MODEL, gateway_over, talker, until


def settings(**more: Any) -> GatewaySettings:
    controller = ControllerSettings(enabled=True, priority_models=(MODEL,), every_s=5.0, **more)
    return msgspec.structs.replace(GatewaySettings(), controller=controller)


def test_without_a_controller_there_is_no_plan() -> None:
    with sim_cluster([talker(1)]) as nodes, gateway_over(nodes.urls) as stage:
        answer = httpx.get(f"{stage.url}/sollol/plan", trust_env=False)
    assert answer.status_code == 404
    assert "sollol serve --controller" in answer.text


@pytest.mark.parametrize("dry_run", [True, False])
def test_the_plan_and_its_reasons_are_shown(dry_run: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(attach, "LOCAL", ())
    with sim_cluster([talker(1, loaded=())]) as nodes, gateway_over(nodes.urls, settings(dry_run=dry_run)) as stage:

        def plan() -> dict[str, Any]:
            found: dict[str, Any] = httpx.get(f"{stage.url}/sollol/plan", trust_env=False).json()
            return found

        until(lambda: plan()["steps"] or plan()["actions"])
        found = plan()
        printed = CliRunner().invoke(app, ["models", "plan", "--url", stage.url])
        as_json = CliRunner().invoke(app, ["models", "plan", "--url", stage.url, "--json"])
        assert printed.exit_code == as_json.exit_code == 0, printed.output
        assert f"{MODEL}:latest" in printed.output
        assert json.loads(as_json.stdout)["dry_run"] is dry_run
        if dry_run:
            assert found["not_carried_out"] == "it is a dry run"
            assert not found["actions"]
        else:
            until(lambda: nodes.do(lambda running: bool(running[0].runners.look())))
            assert found["actions"][0]["reason"]
