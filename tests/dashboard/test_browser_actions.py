"""The page at a gateway in a real browser: logging in with a key, and acting on the cluster."""

from __future__ import annotations

import re
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from sollol.gateway.auth.keys import Key, Keyring, hash_of
from sollol.gateway.settings import GatewaySettings
from sollol.sim import sim_cluster
from tests.agent.test_agent import KEY
from tests.dashboard.conftest import CHROMIUM
from tests.gateway.stage import MODEL, Stage, gateway_over, talker, until
from tests.gateway.test_agents import agent_at, look

pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
pytestmark = pytest.mark.skipif(CHROMIUM is None, reason="no Chromium on this machine")


@pytest.fixture
def stage() -> Iterator[Stage]:
    with sim_cluster([talker(1, 20.0), talker(2, 20.0)]) as nodes, gateway_over(nodes.urls) as running:
        yield running


def opened(browser: Any, stage: Stage) -> Any:
    tab = browser.new_page(viewport={"width": 1440, "height": 1000})
    tab.problems = []
    tab.on("pageerror", lambda error: tab.problems.append(str(error)))
    tab.goto(f"{stage.url}/dashboard/")
    return tab


def drained(stage: Stage) -> list[bool]:
    found: list[bool] = stage.look(lambda gateway: [node["drained"] for node in gateway.pool.snapshot()["nodes"]])
    return found


def test_an_action_drains_a_node_after_a_question(browser: Any, stage: Stage) -> None:
    tab = opened(browser, stage)
    first = tab.locator("#nodes .node").first
    first.get_by_role("button", name="Keep new work away from").click()
    tab.wait_for_selector("#confirm[open]")
    assert drained(stage) == [False, False]
    tab.locator("#confirm-no").click()
    assert drained(stage) == [False, False]
    first.get_by_role("button", name="Keep new work away from").click()
    tab.locator("#confirm-yes").click()
    until(lambda: drained(stage) == [True, False])
    first.get_by_text("drained", exact=True).wait_for()
    first.get_by_role("button", name="Let work come to").click()
    tab.locator("#confirm-yes").click()
    until(lambda: drained(stage) == [False, False])
    assert not tab.problems
    tab.close()


def test_a_card_has_what_the_agent_reports_with_its_source(browser: Any, tmp_path: Path) -> None:
    with sim_cluster([talker(1), talker(2)]) as nodes, agent_at(nodes[0], tmp_path) as port:
        # Both nodes have the address of this machine, and so the same agent.
        with gateway_over(nodes.urls, GatewaySettings(agents_key=KEY, agents_port=port)) as stage:
            look(stage)
            tab = opened(browser, stage)
            card = tab.locator("#nodes .node").first
            card.locator(".machine .meter").wait_for()
            words = card.locator(".machine").inner_text()
            assert "RTX 3060 5.0 GB of 12.0 GB · 50 % busy · 61 °C · 121 W" in words
            assert "disk" in words
            assert re.fullmatch(r"by its agent, \d+ s ago", card.locator(".source").inner_text())
        with gateway_over(
            nodes.urls, GatewaySettings(agents_key="another-key-of-the-gateway", agents_port=port)
        ) as stage:
            look(stage)
            other = opened(browser, stage)
            other.locator(".machine .why").first.wait_for()
            words = other.locator(".machine").first.inner_text()
            assert words == "its agent cannot be used: it has another key than [agents] in the settings"
            assert other.locator(".source").first.is_hidden()
        for each in (tab, other):
            assert not each.problems
            each.close()


def test_history_and_settings_have_views_of_their_own(browser: Any, stage: Stage) -> None:
    for words in ("one", "two"):
        body = {"model": MODEL, "prompt": words, "stream": False, "options": {"num_predict": 2}}
        httpx.post(f"{stage.url}/api/generate", json=body, timeout=60, trust_env=False)
    tab = opened(browser, stage)
    tab.locator("[data-tab=history]").click()
    tab.wait_for_selector("#history-table tbody tr:nth-child(2)")
    tab.keyboard.press("/")
    tab.keyboard.type("failed")
    tab.get_by_text("No stored request fits.").wait_for()
    assert "filter=failed" in tab.evaluate("location.hash")
    tab.keyboard.press("Escape")
    tab.wait_for_selector("#history-table tbody tr:nth-child(2)")
    tab.keyboard.press("5")
    tab.get_by_role("rowheader", name="gateway.port").wait_for()
    tab.locator("#mode").get_by_role("button", name="reliable").click()
    tab.get_by_text("Route requests without a mode in mode reliable?").wait_for()
    tab.locator("#confirm-yes").click()
    until(lambda: stage.look(lambda gateway: gateway.pool.snapshot()["routing_mode"]) == "reliable")
    tab.locator("#mode [aria-pressed=true]", has_text="reliable").wait_for()
    assert not tab.problems
    tab.close()


def test_a_running_call_is_cancelled_from_its_explanation(browser: Any, stage: Stage) -> None:
    body = {"model": MODEL, "prompt": "a", "stream": False, "options": {"num_predict": 2_000}}
    answers: list[httpx.Response] = []
    asking = threading.Thread(
        target=lambda: answers.append(httpx.post(f"{stage.url}/api/generate", json=body, timeout=60, trust_env=False))
    )
    asking.start()
    tab = opened(browser, stage)
    tab.locator("#running-table .call").first.click()
    tab.get_by_role("button", name="Cancel call").click()
    tab.locator("#confirm-yes").click()
    asking.join(20)
    assert answers[0].status_code == 410
    assert not tab.problems
    tab.close()


def test_a_model_is_unloaded_from_its_chip(browser: Any, stage: Stage) -> None:
    tab = opened(browser, stage)
    tab.get_by_role("button", name=f"Unload {MODEL}:latest from").first.click()
    tab.locator("#confirm-yes").click()
    until(
        lambda: (
            stage.look(lambda gateway: [bool(n["loaded"]) for n in gateway.pool.snapshot()["nodes"]]) != [True, True]
        )
    )
    tab.close()


def test_a_key_opens_a_session(browser: Any) -> None:
    keyring = Keyring([Key("ops", hash_of("secret"), admin=True)], required=True)
    with sim_cluster([talker(1)]) as nodes, gateway_over(nodes.urls, keyring=keyring) as stage:
        tab = opened(browser, stage)
        tab.get_by_label("A key of this gateway").fill("wrong")
        tab.get_by_role("button", name="Open the dashboard").click()
        tab.wait_for_selector("#problem >> text=this key is unknown, or was revoked")
        tab.get_by_label("A key of this gateway").fill("secret")
        tab.keyboard.press("Enter")
        tab.wait_for_selector("#nodes .node")
        assert tab.evaluate("document.cookie") == ""  # scripts cannot read it
        assert not tab.problems
        tab.get_by_role("button", name="Log out").click()
        tab.wait_for_selector("#login")
        tab.close()


def test_a_key_without_admin_rights_sees_its_own_application(browser: Any) -> None:
    tokens = {"ann": "ann-0123456789", "bob": "bob-0123456789"}
    keyring = Keyring([Key(name, hash_of(token), app=f"{name}s-app") for name, token in tokens.items()], required=True)
    with sim_cluster([talker(1)]) as nodes, gateway_over(nodes.urls, keyring=keyring) as stage:
        for token in tokens.values():
            with stage.client(headers={"Authorization": f"Bearer {token}"}) as client:
                body = {"model": MODEL, "prompt": "x", "stream": False, "options": {"num_predict": 2}}
                assert client.post("/api/generate", json=body).status_code == 200
        tab = opened(browser, stage)
        tab.get_by_label("A key of this gateway").fill(tokens["ann"])
        tab.keyboard.press("Enter")
        tab.wait_for_selector("#nodes .node")
        tab.get_by_text("1 of 1 nodes up. This key shows the requests of 'anns-app' only.").wait_for()
        assert tab.locator("#recent-table tbody tr").count() == 1
        assert not tab.locator("#tiles").get_by_text("Requests/s").is_visible()  # a 0 that nobody measured
        tab.locator("#tiles").get_by_text("of 1 requests").wait_for()
        assert "bobs-app" not in tab.content()
        for hidden in ("#chart", "#events", "#applications-section", "[data-tab=settings]"):
            assert not tab.locator(hidden).is_visible()
        assert tab.get_by_role("button", name="Keep new work away from").count() == 0
        assert tab.get_by_role("button", name="Unload").count() == 0
        tab.locator("#recent-table .call").first.click()
        tab.get_by_text("would finish in").or_(tab.locator("#explain-body")).first.wait_for()
        tab.keyboard.press("Escape")
        tab.locator("[data-tab=history]").click()
        tab.wait_for_selector("#history-table tbody tr")
        assert tab.locator("#history-table tbody tr").count() == 1
        assert not tab.problems
        tab.close()
