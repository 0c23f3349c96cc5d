"""Send findings to webhooks and to addresses of Apprise: once per finding and hour, and again when it is mended.

A finding is sent after it was seen for a while, so that a restart of a node sends no alert.
"""

from __future__ import annotations

import http.client
import json
import urllib.request
from collections.abc import Sequence
from typing import Any, Final, NamedTuple
from urllib.parse import urlsplit

import msgspec

from sollol.observe.findings import SEVERITIES, Finding

HOLD_S: Final = 20.0  # a finding must be seen for this time before it is sent
WELL_S: Final = 60.0  # and be away for this time before it counts as mended
EVERY_S: Final = 3_600.0  # least time between two messages about one finding
TIMEOUT_S: Final = 10.0
MESSAGES_MOST: Final = 10  # of one look; the others are counted in the last one


class AlertMessage(NamedTuple):
    """Hold one message; `finding` is None where several were left out."""

    title: str
    text: str
    finding: Finding | None
    resolved: bool = False

    def as_dict(self) -> dict[str, Any]:
        """Return the message as a JSON value for a webhook. `text` alone is what chat services show."""
        found = {"text": f"{self.title}\n{self.text}", "title": self.title, "resolved": self.resolved}
        return found | ({"finding": msgspec.to_builtins(self.finding)} if self.finding else {})


class _Known:
    """Hold what was seen of one finding; times in seconds."""

    __slots__ = ("finding", "first", "is_open", "last", "sent")

    def __init__(self, finding: Finding, at: float) -> None:
        self.finding = finding
        self.first: float | None = at  # since when it is seen; None while it is away
        self.last = at
        self.sent: float | None = None
        self.is_open = False  # sent, and not mended yet


class AlertPolicy:
    """Decide which findings are worth a message now.

    Args:
        severity: The least severity that is sent.
        every_s: Least time between two messages about one finding.
        hold_s: Time that a finding must be seen before it is sent.
        well_s: Time that it must be away before it counts as mended.
    """

    def __init__(
        self, severity: str = "warning", every_s: float = EVERY_S, hold_s: float = HOLD_S, well_s: float = WELL_S
    ) -> None:
        self._severities = SEVERITIES[: SEVERITIES.index(severity) + 1]
        self._every_s = every_s
        self._hold_s = hold_s
        self._well_s = well_s
        self._known: dict[tuple[str, str], _Known] = {}

    def look(self, findings: Sequence[Finding], at: float) -> list[AlertMessage]:
        """Return the messages that the present findings cause."""
        messages: list[AlertMessage] = []
        for finding in findings:
            if finding.severity not in self._severities:
                continue
            known = self._known.setdefault((finding.id, finding.subject), _Known(finding, at))
            known.finding, known.last = finding, at
            if known.first is None:
                known.first = at
            if self._is_due(known, at) and at - known.first >= self._hold_s:
                known.sent, known.is_open = at, True
                text = f"{finding.cost}\nFix: {finding.fix}"
                messages.append(AlertMessage(f"{finding.severity}: {finding.summary}", text, finding))
        for key, known in list(self._known.items()):
            if known.last == at:
                continue
            if not known.is_open:
                known.first = None
                if self._is_due(known, at):  # else it is remembered, because it may come and go
                    del self._known[key]
            elif at - known.last >= self._well_s:
                known.first, known.is_open = None, False
                subject = known.finding.subject or "the cluster"
                text = f"It was: {known.finding.summary}"
                messages.append(AlertMessage(f"Well again: {subject}", text, known.finding, resolved=True))
        if len(messages) > MESSAGES_MOST:
            left = len(messages) - MESSAGES_MOST
            messages[MESSAGES_MOST:] = [AlertMessage(f"{left} more findings", "`sollol doctor` lists them.", None)]
        return messages

    def _is_due(self, known: _Known, at: float) -> bool:
        return known.sent is None or at - known.sent >= self._every_s


def send(url: str, message: AlertMessage) -> None:
    """Send a message to one address. Raises OSError or ValueError if it cannot be sent."""
    if urlsplit(url).scheme in ("http", "https"):
        body = json.dumps(message.as_dict()).encode()
        request = urllib.request.Request(url, body, {"Content-Type": "application/json", "User-Agent": "sollol"})
        try:
            with urllib.request.urlopen(request, timeout=TIMEOUT_S) as answer:
                answer.read(1_000)
        except http.client.HTTPException as error:
            raise ValueError(f"it does not answer in HTTP ({type(error).__name__})") from None
        return
    try:
        import apprise  # type: ignore[import-untyped, unused-ignore]
    except ImportError:
        raise ValueError("only http and https are sent without Apprise; pip install '.[alerts]'") from None
    sender = apprise.Apprise()
    if not sender.add(url) or not sender.notify(title=message.title, body=message.text):
        raise ValueError("Apprise could not send it")


def shown_address(url: str) -> str:
    """Return an address without its secrets, for messages: scheme and host."""
    parts = urlsplit(url)
    return f"{parts.scheme}://{parts.hostname or ''}" if parts.scheme in ("http", "https") else f"{parts.scheme}://..."
