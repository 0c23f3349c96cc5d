"""Requests that wait too long for a load: 503 with the node, the progress and the time, while the load goes on."""

from __future__ import annotations

import threading
from pathlib import Path
from typing import Any

import httpx
import msgspec
import pytest

from sollol.config import load_settings
from sollol.errors import ConfigError
from sollol.gateway.settings import GatewaySettings, gateway_settings
from sollol.sim import sim_cluster
from tests.gateway.stage import MODEL, Stage, gateway_over, talker, until

BODIES: dict[str, dict[str, Any]] = {
    "/api/chat": {"messages": [{"role": "user", "content": "Hello"}]},
    "/api/generate": {"prompt": "Hello", "stream": False},
    "/v1/chat/completions": {"messages": [{"role": "user", "content": "Hello"}]},
    "/v1/messages": {"messages": [{"role": "user", "content": "Hello"}], "max_tokens": 4},
}


def ask(stage: Stage, path: str) -> httpx.Response:
    options = {"options": {"num_predict": 3}} if path.startswith("/api") else {"max_tokens": 3}
    body = {"model": MODEL, **options, **BODIES[path]}
    return httpx.post(f"{stage.url}{path}", json=body, timeout=30, trust_env=False)


def waiting(seconds: float) -> GatewaySettings:
    return msgspec.structs.replace(GatewaySettings(), load_wait_s=seconds)


@pytest.mark.parametrize("path", BODIES)
def test_who_waits_too_long_is_told_of_the_load(path: str) -> None:
    with (
        sim_cluster([talker(1, loaded=(), load_bytes_per_s=1e9)]) as nodes,  # 2 s
        gateway_over(nodes.urls, waiting(0.3)) as stage,
    ):
        others: list[int] = []
        behind = threading.Thread(target=lambda: others.append(ask(stage, path).status_code))
        behind.start()
        answer = ask(stage, path)
        behind.join(30)
        assert (answer.status_code, others) == (503, [503])
        assert int(answer.headers["retry-after"]) >= 1
        found = answer.json()["loading"]
        assert found["state"] == "loading"
        assert found["node"] == nodes.urls[0].removeprefix("http://")
        assert found["eta_seconds"] is None, "no load was measured yet"
        assert "error" in answer.json()
        until(lambda: nodes.do(lambda running: bool(running[0].runners.look())))
        assert nodes.do(lambda running: sum(running[0].runners.loads.values())) == 1
        until(lambda: ask(stage, path).status_code == 200)


def test_a_wait_for_a_slot_is_no_wait_for_a_load() -> None:
    with sim_cluster([talker(1, 20.0)]) as nodes, gateway_over(nodes.urls, waiting(0.2)) as stage:
        statuses: list[int] = []
        threads = [
            threading.Thread(target=lambda: statuses.append(ask(stage, "/api/generate").status_code)) for _ in range(4)
        ]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(30)
    assert statuses == [200] * 4


def test_the_setting_stands_beside_the_tables_of_models(tmp_path: Path) -> None:
    path = tmp_path / "sollol.toml"
    path.write_text('[models]\nload_wait_s = 60\n[models."llama3.2"]\npin = true\n')
    settings = gateway_settings(load_settings({}, config=path), str(path))
    assert settings.load_wait_s == 60
    assert list(settings.models) == ["llama3.2"]
    for wrong in ("0", "true", '"long"', "-1"):
        path.write_text(f"[models]\nload_wait_s = {wrong}\n")
        with pytest.raises(ConfigError, match=r"models.load_wait_s: .* cannot be used; expected seconds above 0"):
            gateway_settings(load_settings({}, config=path), str(path))
