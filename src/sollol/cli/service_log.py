"""Log the attempts of requests for `sollol serve --log-level debug`."""

from __future__ import annotations

import logging
from typing import Final

from sollol.core.actions import Complete, Start
from sollol.core.events import Finished
from sollol.observe.journal import Entry
from sollol.printable import one_line

log: Final = logging.getLogger("sollol.requests")


def log_attempts(entry: Entry) -> None:
    """Log the starts and ends of attempts and requests, each with the number of its request."""
    if isinstance(entry.event, Finished):
        outcome = entry.event.outcome
        log.debug("attempt %s ended: %s %s", entry.event.attempt, outcome.status.value, one_line(outcome.message))
    for action in entry.actions:
        if isinstance(action, Start):
            decision = action.decision
            log.debug(
                "request %s: attempt %s on %s (%s), predicted %.3f s: %s",
                action.task,
                action.attempt,
                action.node,
                action.cause.value,
                decision.predicted_us / 1e6,
                decision.reason,
            )
        elif isinstance(action, Complete):
            log.debug(
                "request %s ended: %s %s", action.task, action.outcome.status.value, one_line(action.outcome.message)
            )
