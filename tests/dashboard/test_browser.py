"""The page as a browser shows it, while requests run. Needs a Chromium (Debian: `apt-get install chromium`)."""

from __future__ import annotations

import os
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from sollol import OllamaPool, UnifiedDashboard
from sollol.sim import Cluster, NodeSpec, sim_cluster, spawn
from tests.dashboard.conftest import CHAT, CHROMIUM, EMBED, MODELS
from tests.gateway.stage import talker

pytest.importorskip("playwright.sync_api", reason="playwright is not installed")

SHOTS = os.environ.get("SOLLOL_TEST_SHOTS")  # a folder for screenshots, for a person to look at
pytestmark = pytest.mark.skipif(CHROMIUM is None, reason="no Chromium on this machine")
EVIL = "<img src=x onerror=document.title='taken'>"


@pytest.fixture
def busy(cluster: Cluster) -> Iterator[UnifiedDashboard]:
    """A dashboard of a pool that is at work until the end of the test; one of its nodes is down."""
    stop = threading.Event()
    with OllamaPool([*cluster, "127.0.0.1:9"], app_name=EVIL) as pool, UnifiedDashboard(pool, 0) as dashboard:

        def ask() -> None:
            while not stop.is_set():
                pool.chat(CHAT, [{"role": "user", "content": "Hello"}], options={"num_predict": 200})

        def embed() -> None:
            while not stop.is_set():
                pool.embed_batch(EMBED, [f"text {number}" for number in range(50)])

        threads = [threading.Thread(target=work) for work in [ask] * 6 + [embed]]
        for thread in threads:
            thread.start()
        yield dashboard
        stop.set()
        for thread in threads:
            thread.join()


class Page:
    """A page that notes what went wrong in it, and where it asked."""

    def __init__(self, browser: Any, url: str, **how: Any) -> None:
        self.problems: list[str] = []
        self.asked: list[str] = []
        self.tab = browser.new_page(**how)
        self.tab.on("pageerror", lambda error: self.problems.append(str(error)))
        self.tab.on("console", lambda said: self.problems.append(said.text) if said.type == "error" else None)
        self.tab.on("request", lambda request: self.asked.append(request.url))
        self.tab.goto(url)
        self.tab.wait_for_selector("#nodes article.node, #nodes .cell")

    def until(self, true: Callable[[], bool]) -> None:
        """Playwright's own `wait_for_function` evaluates a string, which the page's policy forbids."""
        for _ in range(100):
            if true():
                return
            self.tab.wait_for_timeout(100)
        raise AssertionError("it did not happen in 10 s")

    def texts(self, selector: str) -> list[str]:
        return [str(text) for text in self.tab.locator(selector).all_inner_texts()]


@pytest.fixture
def page(browser: Any, busy: UnifiedDashboard) -> Iterator[Page]:
    made = Page(browser, busy.url, viewport={"width": 1440, "height": 1000})
    yield made
    made.tab.close()
    assert not made.problems
    assert all(url.startswith((busy.url, "data:")) for url in made.asked)


def test_it_shows_nodes_queue_and_requests_as_they_happen(page: Page) -> None:
    tab = page.tab
    page.until(lambda: tab.locator("#recent-table tbody tr").count() >= 5)
    assert page.texts("#status") == ["Live"]
    assert page.texts("#nodes .node .state") == ["up", "up", "down"]
    assert "refused the connection" in page.texts("#nodes .is-down .why")[0]
    tab.wait_for_selector("#running-table tbody tr >> text= of ")
    tab.wait_for_selector("#waiting-table tbody tr")
    tab.wait_for_selector("#chart .u-legend")
    assert "127.0.0.1:9 is down" in page.texts("#events")[0]
    before = page.texts("#tiles .more")
    page.until(lambda: page.texts("#tiles .more") != before)


def test_a_node_that_is_down_shows_nothing_that_it_does_not_do(page: Page) -> None:
    down = page.tab.locator("#nodes .node.is-down")
    assert down.locator(".chips").inner_text() == ""
    assert down.locator(".facts-line").inner_text() == ""
    assert "last seen" in down.inner_text()


def test_the_verdict_says_what_is_wrong_and_how_to_mend_it(page: Page) -> None:
    tab = page.tab
    page.until(lambda: "is down" in page.texts("#verdict-text")[0])
    assert tab.locator("#verdict").get_attribute("data-severity") == "error"
    assert tab.locator("#findings").is_hidden()
    tab.locator("#verdict-line").press("Enter")
    fixes = page.texts("#findings .fix")
    assert any("ollama serve" in text for text in fixes)


def test_a_model_partly_on_the_cpu_is_marked_and_explained(browser: Any) -> None:
    half = NodeSpec(models=MODELS, vram_bytes=1_000_000_000, cpu_slowdown=2.0, loaded=(CHAT,))
    with sim_cluster([half]) as cluster, OllamaPool(list(cluster)) as pool, UnifiedDashboard(pool, 0) as dashboard:
        page = Page(browser, dashboard.url)
        page.tab.wait_for_selector("#nodes .chip.warn >> text=50%/50% CPU/GPU")
        page.until(lambda: "runs 50%/50% CPU/GPU" in page.texts("#verdict-text")[0])
        assert page.tab.locator("#verdict").get_attribute("data-severity") == "warning"
        page.tab.close()
        assert not page.problems


def test_a_node_that_dies_shows_within_two_seconds(browser: Any) -> None:
    with (
        spawn(talker(1)) as one,
        spawn(talker(2)) as two,
        OllamaPool([one.url, two.url]) as pool,
        UnifiedDashboard(pool, 0) as dashboard,
    ):
        page = Page(browser, dashboard.url)
        page.until(lambda: page.texts("#nodes .state") == ["up", "up"])
        assert page.texts("#verdict-text")[0].startswith("All well: 2 nodes up.")
        two.kill()
        page.tab.locator("#nodes .node.is-down").wait_for(timeout=4_000)
        page.until(lambda: "is down" in page.texts("#verdict-text")[0])
        page.tab.close()
        assert not page.problems


def test_each_number_is_the_pools_own(browser: Any, cluster: Cluster) -> None:
    with OllamaPool(list(cluster), app_name="numbers") as pool, UnifiedDashboard(pool, 0) as dashboard:
        for number in range(7):
            pool.chat(CHAT, [{"role": "user", "content": "Hello"}], options={"num_predict": 5 + number})
        pool.embed_batch(EMBED, [f"text {number}" for number in range(30)])
        page = Page(browser, dashboard.url)
        page.until(lambda: page.tab.locator("#recent-table tbody tr").count() == 8)
        stats = pool.get_stats()
        tiles = dict(zip(page.texts("#tiles dt"), page.texts("#tiles .more"), strict=True))
        assert tiles["Requests/s"] == f"{stats['total_requests']} in all"
        assert tiles["Failed"] == f"in 5 min; {stats['failed_requests']} in all"
        assert tiles["Nodes up"] == "0 calls running"
        facts = page.texts("#nodes .facts-line")
        for key, text in zip(stats["nodes"], facts, strict=True):
            requests = stats["node_performance"][key]["total_requests"]
            assert f"{requests} requests" in text if requests else "requests" not in text
        shown = [int(text) for text in page.texts("#recent-table tbody button")]
        assert shown == [row["id"] for row in pool.snapshot()["recent"]]
        tokens = page.texts("#recent-table tbody td:nth-child(11)")
        assert tokens == [str(row["tokens_out"] or "") for row in pool.snapshot()["recent"]]
        page.tab.close()


def test_the_filter_and_the_view_stand_in_the_address(browser: Any, busy: UnifiedDashboard) -> None:
    page = Page(browser, busy.url)
    tab = page.tab
    page.until(lambda: tab.locator("#recent-table tbody tr").count() >= 5)
    tab.keyboard.press("/")
    tab.keyboard.type("kind:embed")
    page.until(lambda: all("embed" in text for text in page.texts("#recent-table tbody td:nth-child(4)")))
    assert "filter=kind%3Aembed" in tab.evaluate("location.hash")
    again = Page(browser, tab.evaluate("location.href"))
    assert again.tab.locator("#filter").input_value() == "kind:embed"
    again.tab.keyboard.press("2")
    again.tab.wait_for_selector("#matrix td.warm")
    assert "tab=models" in again.tab.evaluate("location.hash")
    again.tab.keyboard.press("3")
    again.tab.wait_for_selector("#scatter circle")
    assert "predicted time" in again.texts("#calibration-text")[0]
    for each in (page, again):
        each.tab.close()
        assert not each.problems


def test_many_nodes_are_a_heat_map_with_a_search(browser: Any) -> None:
    hosts = [f"127.0.0.1:{port}" for port in range(1, 41)]
    with OllamaPool(hosts) as pool, UnifiedDashboard(pool, 0) as dashboard:
        page = Page(browser, dashboard.url)
        page.until(lambda: page.tab.locator("#nodes .cell.down").count() == 40)
        assert page.texts("#verdict-text")[0].startswith("All 40 nodes are down.")
        page.tab.locator("#node-search").fill("127.0.0.1:17:")
        page.until(lambda: page.tab.locator("#nodes .cell:visible").count() == 1)
        page.tab.close()
        assert not page.problems


def test_a_long_table_shows_fifty_rows_and_counts_the_others(browser: Any) -> None:
    from bench.page import RECENT, RUNNING, WAITING, crowd

    with crowd(200, 500) as url:
        page = Page(browser, url)
        for name, number in (("running", RUNNING), ("waiting", WAITING), ("recent", RECENT)):
            page.until(lambda name=name: page.tab.locator(f"#{name}-table tbody tr").count() == 50)  # type: ignore[misc]
            rest = page.tab.locator(f"#{name}-table .empty").text_content()
            assert rest == f"and {number - 50} more; the filter finds them"
        page.tab.close()
        assert not page.problems


def test_nothing_moves_while_numbers_come(page: Page) -> None:
    tab = page.tab
    page.until(lambda: tab.locator("#recent-table tbody tr").count() >= 5)
    tops = "[...document.querySelectorAll('h2, h3#running, h3#recent')].map((h) => h.getBoundingClientRect().top)"
    before = tab.evaluate(f"() => {tops}")
    tab.wait_for_timeout(3000)
    after = tab.evaluate(f"() => {tops}")
    fixed = [place for place, (a, b) in enumerate(zip(before, after, strict=True)) if abs(a - b) < 60]
    assert len(fixed) == len(before)


def test_what_a_program_says_is_text(page: Page) -> None:
    page.tab.wait_for_selector("#running-table tbody tr")
    assert EVIL in page.texts("#who")[0]
    assert page.tab.locator("img").count() == 0
    assert "taken" not in page.tab.evaluate("document.title").replace(EVIL, "")


def test_a_call_is_explained_with_the_keyboard_alone(page: Page) -> None:
    tab = page.tab
    a_chat = "#recent-table tbody tr:has-text('llama3.2') button"  # for a batch nothing is predicted as a whole

    def opened() -> bool:
        if not tab.locator("#explain[open]").count():
            tab.locator(a_chat).first.press("Enter")  # its row may be gone before the key comes
        return bool(tab.locator("#explain[open]").count())

    page.until(opened)
    tab.wait_for_selector("#explain[open] dl")
    text = page.texts("#explain")[0]
    assert "Predicted" in text
    assert "(chosen)" in text
    assert "decode" in text
    tab.keyboard.press("Escape")
    assert tab.locator("#explain[open]").count() == 0


def test_the_arrows_go_from_call_to_call(page: Page) -> None:
    tab = page.tab
    page.until(lambda: tab.locator("#recent-table tbody tr").count() >= 5)
    tab.get_by_role("button", name="Pause").click()
    buttons = tab.locator("#recent-table .call")
    buttons.first.focus()
    tab.keyboard.press("ArrowDown")
    assert tab.evaluate("document.activeElement.textContent") == buttons.nth(1).inner_text()
    tab.keyboard.press("ArrowUp")
    assert tab.evaluate("document.activeElement.textContent") == buttons.nth(0).inner_text()
    numbers = [int(text) for text in page.texts("#recent-table tbody button")]
    assert len(numbers) == len(set(numbers))


def test_pausing_stops_the_news(page: Page) -> None:
    tab = page.tab
    tab.wait_for_selector("#recent-table tbody tr")
    tab.get_by_role("button", name="Pause").click()
    shown = page.texts("#recent-table tbody button")
    tab.wait_for_timeout(2200)
    assert page.texts("#recent-table tbody button") == shown
    assert page.texts("#status")[0].startswith("Paused")
    tab.get_by_role("button", name="Go on").click()
    tab.wait_for_selector("#status >> text=Live")


def test_it_says_so_when_the_server_is_gone_and_comes_back(browser: Any, pool: OllamaPool) -> None:
    with UnifiedDashboard(pool, 0) as dashboard:
        page = Page(browser, dashboard.url)
        page.tab.wait_for_selector("#status >> text=Live")
        dashboard.stop()
        page.tab.wait_for_selector("#status[data-state=lost]")
        dashboard.start()
        page.tab.wait_for_selector("#status >> text=Live", timeout=15_000)
        page.tab.close()


def test_watched_nodes_have_no_numbers_of_requests(browser: Any, cluster: Cluster) -> None:
    from sollol.dashboard import Watch

    with UnifiedDashboard(Watch(cluster), 0) as dashboard:
        page = Page(browser, dashboard.url)
        assert page.texts("#tiles div:visible dd:first-of-type") == ["2 of 2"]
        assert "not seen here" in page.texts("#notice")[0]
        assert page.texts("#nodes .node .state") == ["up", "up"]
        assert page.tab.locator("#recent-table").is_hidden()
        assert page.tab.locator("#chart").is_hidden()
        page.tab.close()
        assert not page.problems


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize(
    ("name", "width", "height"), [("wide", 1440, 1000), ("middle", 900, 1000), ("phone", 360, 760)]
)
def test_it_fits_every_width_and_can_be_read(
    browser: Any, busy: UnifiedDashboard, name: str, width: int, height: int, scheme: str
) -> None:
    page = Page(browser, busy.url, viewport={"width": width, "height": height}, color_scheme=scheme)
    tab = page.tab
    tab.wait_for_selector("#recent-table tbody tr")
    assert tab.evaluate("document.documentElement.scrollWidth") <= width
    assert not tab.evaluate(LOW_CONTRAST)
    assert tab.get_by_role("table", name="Recent").count() == 1
    assert tab.get_by_role("columnheader", name="Outcome", exact=True).count() == 1
    if SHOTS:
        tab.screenshot(path=Path(SHOTS) / f"{name}-{scheme}.png", full_page=True)
    tab.close()
    assert not page.problems


# Text whose contrast with its ground is under 4.5 (WCAG AA): [text, ratio].
LOW_CONTRAST = """() => {
  const parse = (text) => text.match(/[\\d.]+/g).map(Number);
  const linear = (c) => c <= 0.03928 ? c / 12.92 : ((c + 0.055) / 1.055) ** 2.4;
  const light = ([r, g, b]) => 0.2126 * linear(r / 255) + 0.7152 * linear(g / 255) + 0.0722 * linear(b / 255);
  const ground = (el) => {
    for (; el; el = el.parentElement) {
      const color = parse(getComputedStyle(el).backgroundColor);
      if (color.length < 4 || color[3] > 0) return color;
    }
    return [255, 255, 255];
  };
  const says = (el) => [...el.childNodes].some((node) => node.nodeType === 3 && node.textContent.trim());
  const found = [];
  for (const el of document.querySelectorAll("main *, header *")) {
    if (!says(el) || !el.getClientRects().length) continue;
    const [a, b] = [light(parse(getComputedStyle(el).color)), light(ground(el))].sort((x, y) => y - x);
    const ratio = (a + 0.05) / (b + 0.05);
    if (ratio < 4.5) found.push([el.textContent.slice(0, 30), ratio]);
  }
  return found.length ? found : null;
}"""
