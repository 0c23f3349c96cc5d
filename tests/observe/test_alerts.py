"""Alerts: once per finding and hour, a note when it is mended, and never a flood."""

from __future__ import annotations

import itertools
import json
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler
from typing import Any, ClassVar

import pytest

from sollol.gateway import alerting
from sollol.gateway.settings import AlertSettings, GatewaySettings
from sollol.observe import alerts
from sollol.observe.alerts import MESSAGES_MOST, AlertMessage, AlertPolicy, send, shown_address
from sollol.observe.findings import Finding
from sollol.sim import sim_cluster
from tests.gateway.stage import answering, gateway_over, talker, until


def finding(check: str = "node-down", severity: str = "error", subject: str = "a:1") -> Finding:
    return Finding(check, severity, subject, f"{subject} is down.", "Others do its work.", "Start it.")


def titles(policy: AlertPolicy, findings: list[Finding], at: float) -> list[str]:
    return [message.title for message in policy.look(findings, at)]


def test_a_finding_is_sent_after_a_while_and_once_an_hour() -> None:
    policy = AlertPolicy(hold_s=20.0, every_s=3_600.0)
    assert titles(policy, [finding()], 0) == []
    assert titles(policy, [finding()], 10) == []
    assert titles(policy, [finding()], 20) == ["error: a:1 is down."]
    for at in range(30, 3_610, 10):
        assert titles(policy, [finding()], at) == []
    assert titles(policy, [finding()], 3_620) == ["error: a:1 is down."]


def test_what_passes_alarms_nobody() -> None:
    policy = AlertPolicy(hold_s=20.0)
    assert titles(policy, [finding()], 0) == []
    assert titles(policy, [], 10) == []
    assert titles(policy, [finding()], 20) == []


def test_a_note_when_it_is_well_again() -> None:
    policy = AlertPolicy(hold_s=0.0, well_s=60.0)
    assert titles(policy, [finding()], 0) == ["error: a:1 is down."]
    assert titles(policy, [], 30) == []
    (message,) = policy.look([], 60)
    assert (message.title, message.resolved) == ("Well again: a:1", True)
    assert titles(policy, [finding()], 3_600) == ["error: a:1 is down."]


@pytest.mark.parametrize("period_s", [40, 100, 200, 500, 1_900])
def test_what_comes_and_goes_is_sent_once_an_hour(period_s: int) -> None:
    policy, sent = AlertPolicy(), []
    for at in range(0, 4 * 3_600, 10):
        sent += [(at, message) for message in policy.look([finding()] if at // period_s % 2 == 0 else [], at)]
    alarms = [at for at, message in sent if not message.resolved]
    assert all(later - at >= 3_600 for at, later in itertools.pairwise(alarms))
    assert len(alarms) >= 3
    assert sum(message.resolved for _, message in sent) <= len(alarms)


def test_only_what_is_severe_enough() -> None:
    found = [finding("a", "info"), finding("b", "warning"), finding("c", "error")]
    assert len(titles(AlertPolicy("error", hold_s=0.0), found, 0)) == 1
    assert len(titles(AlertPolicy("warning", hold_s=0.0), found, 0)) == 2
    assert len(titles(AlertPolicy("info", hold_s=0.0), found, 0)) == 3


def test_many_at_once_are_not_a_flood() -> None:
    found = titles(AlertPolicy(hold_s=0.0), [finding(subject=f"n{number}:1") for number in range(200)], 0)
    assert len(found) == MESSAGES_MOST + 1
    assert found[-1] == "190 more findings"


class Webhook(BaseHTTPRequestHandler):
    received: ClassVar[list[dict[str, Any]]] = []
    status: ClassVar[int] = 200

    def log_message(self, *args: Any) -> None: ...

    def do_POST(self) -> None:
        self.received.append(json.loads(self.rfile.read(int(self.headers["content-length"]))))
        self.send_response(self.status)
        self.send_header("Content-Length", "0")
        self.end_headers()


@pytest.fixture
def webhook() -> Iterator[str]:
    Webhook.received.clear()
    Webhook.status = 200
    with answering(Webhook) as url:
        yield url


def test_a_webhook_gets_words_and_values(webhook: str) -> None:
    (message,) = AlertPolicy(hold_s=0.0).look([finding()], 0)
    send(f"{webhook}/hook", message)
    (body,) = Webhook.received
    assert body["text"] == "error: a:1 is down.\nOthers do its work.\nFix: Start it."
    assert body["finding"]["id"] == "node-down"
    assert body["resolved"] is False


@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # of Apprise's own imports
def test_apprise_sends_to_its_own_addresses(webhook: str) -> None:
    pytest.importorskip("apprise", reason="apprise is not installed")
    (message,) = AlertPolicy(hold_s=0.0).look([finding()], 0)
    send(webhook.replace("http://", "json://"), message)
    assert Webhook.received[0]["title"] == "error: a:1 is down."
    with pytest.raises(ValueError, match="Apprise could not"):
        send("nonsense://x", message)


def test_an_address_is_shown_without_its_secret() -> None:
    assert shown_address("https://hooks.slack.com/services/T0/B0/secret") == "https://hooks.slack.com"
    assert shown_address("https://user:secret@host/x") == "https://host"
    assert shown_address("tgram://secret/1") == "tgram://..."


def test_a_gateway_tells_that_a_node_is_down_and_well_again(webhook: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(alerting, "LOOK_EVERY_S", 0.05)
    monkeypatch.setattr(alerting, "AlertPolicy", lambda *given: AlertPolicy(hold_s=0.0, well_s=0.1))
    settings = GatewaySettings(alerts=AlertSettings(urls=(webhook,)))
    with sim_cluster([talker(1)]) as cluster, gateway_over([cluster.urls[0], "127.0.0.1:9"], settings) as stage:
        until(lambda: any("127.0.0.1:9 is down" in body["title"] for body in Webhook.received))
        stage.look(lambda gateway: gateway.pool.remove_node("127.0.0.1:9"))
        until(lambda: any(body["resolved"] for body in Webhook.received))
        assert len([body for body in Webhook.received if not body["resolved"]]) == 1


def test_what_was_not_sent_is_sent_later(webhook: str, monkeypatch: pytest.MonkeyPatch) -> None:
    Webhook.status = 503
    monkeypatch.setattr(alerting, "LOOK_EVERY_S", 0.05)
    monkeypatch.setattr(alerting, "AlertPolicy", lambda *given: AlertPolicy(hold_s=0.0))
    settings = GatewaySettings(alerts=AlertSettings(urls=(webhook,)))
    with sim_cluster([talker(1)]) as cluster, gateway_over([cluster.urls[0], "127.0.0.1:9"], settings):
        until(lambda: len(Webhook.received) >= 2)
        Webhook.status = 200
        before = len(Webhook.received)
        until(lambda: len(Webhook.received) > before)
    assert all(body["finding"]["id"] == "node-down" for body in Webhook.received)


@pytest.mark.parametrize("answer", [b"garbage\r\n\r\n", b""])
def test_an_address_that_answers_otherwise_is_an_error(answer: bytes) -> None:
    class Raw(Webhook):
        def do_POST(self) -> None:
            self.wfile.write(answer)
            self.close_connection = True

    with answering(Raw) as url, pytest.raises((OSError, ValueError)):
        send(url, AlertMessage("t", "x", None))


def test_a_webhook_that_fails_is_reported_once(webhook: str, monkeypatch: pytest.MonkeyPatch) -> None:
    Webhook.status = 500
    monkeypatch.setattr(alerting, "LOOK_EVERY_S", 0.05)
    policy = lambda *given: AlertPolicy("warning", 0.0, hold_s=0.0)  # noqa: E731
    monkeypatch.setattr(alerting, "AlertPolicy", policy)
    settings = GatewaySettings(alerts=AlertSettings(urls=(f"{webhook}/secret",)))
    with sim_cluster([talker(1)]) as cluster, gateway_over([cluster.urls[0], "127.0.0.1:9"], settings) as stage:
        until(lambda: len(Webhook.received) >= 3)
        notices = stage.look(lambda gateway: list(gateway.engine.dispatcher.notices))
    (notice,) = [text for text in notices if "was not sent" in text]
    assert "secret" not in notice
    assert alerts.TIMEOUT_S <= 10
