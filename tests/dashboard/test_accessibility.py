"""axe-core finds no serious fault in any view of the page, in light and dark. Needs a Chromium."""

from __future__ import annotations

from collections.abc import Iterator
from importlib.resources import files
from typing import Any

import pytest

from sollol import OllamaPool, UnifiedDashboard
from sollol.sim import Cluster
from tests.dashboard.conftest import CHAT, CHROMIUM, EMBED

pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
pytest.importorskip("axe_playwright_python", reason="axe-playwright-python is not installed")
pytestmark = pytest.mark.skipif(CHROMIUM is None, reason="no Chromium on this machine")
AXE = files("axe_playwright_python").joinpath("axe.min.js").read_text()
GRAVE = ("serious", "critical")


def faults(tab: Any) -> list[str]:
    """Return the serious and critical faults of what a tab shows, one line each."""
    found = tab.evaluate("() => axe.run({resultTypes: ['violations']})")
    return [
        f"{rule['id']}: {node['target']} {node['failureSummary']}"
        for rule in found["violations"]
        if rule["impact"] in GRAVE
        for node in rule["nodes"]
    ]


@pytest.fixture
def served(cluster: Cluster) -> Iterator[str]:
    """The address of a dashboard with finished requests, a node down and a model partly on the CPU."""
    with OllamaPool([*cluster, "127.0.0.1:9"], app_name="trial") as pool, UnifiedDashboard(pool, 0) as dashboard:
        for _ in range(3):
            pool.chat(CHAT, [{"role": "user", "content": "Hello"}], options={"num_predict": 5})
        pool.embed_batch(EMBED, [f"text {number}" for number in range(10)])
        yield dashboard.url


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_no_view_has_a_serious_fault(browser: Any, served: str, scheme: str) -> None:
    """The page's policy forbids foreign scripts, so the browser passes by it for axe alone."""
    context = browser.new_context(bypass_csp=True, color_scheme=scheme, viewport={"width": 1440, "height": 2400})
    tab = context.new_page()
    try:
        tab.goto(served)
        tab.wait_for_selector("#recent-table tbody tr:nth-child(4)")
        tab.get_by_role("button", name="Pause").click()  # so that axe checks what stands still
        tab.add_script_tag(content=AXE)
        tab.locator("#verdict-line").click()
        found = {"overview": faults(tab)}
        tab.locator("#recent-table .call").last.click()
        tab.wait_for_selector("#explain[open] dl")
        found["request"] = faults(tab)
        tab.keyboard.press("Escape")
        tab.locator("#help-open").click()
        found["help"] = faults(tab)
        tab.keyboard.press("Escape")
        for name in ("models", "calibration", "history"):
            tab.locator(f"[data-tab={name}]").click()
            found[name] = faults(tab)
    finally:
        context.close()
    assert not {view: lines for view, lines in found.items() if lines}


def test_axe_would_find_a_fault(browser: Any) -> None:
    tab = browser.new_page()
    tab.set_content("<html><body><button></button><p style='color:#ddd;background:#fff'>pale</p></body></html>")
    tab.add_script_tag(content=AXE)
    assert {line.partition(":")[0] for line in faults(tab)} >= {"button-name", "color-contrast", "html-has-lang"}
    tab.close()
