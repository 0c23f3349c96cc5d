"""Write the headers of an answer that name its node, its task and its attempts."""

from __future__ import annotations

from sollol.core.types import Micros
from sollol.observe.attempt_log import AttemptLog


def routing_headers(task: int, nodes: str, attempts: int) -> list[tuple[str, str]]:
    """Return the headers. `nodes`: "" where no node has answered."""
    headers = [("X-Sollol-Request-Id", str(task)), ("X-Sollol-Attempts", str(attempts))]
    return [("X-Sollol-Node", nodes), *headers] if nodes else headers


def lines_of_attempt(log: AttemptLog, attempt: int | None) -> bytes:
    """Return the encoded header lines of an answer by one attempt. Without a node if it is not in the log."""
    for start, _, began_us, _ in log.attempts:
        if start.attempt == attempt:
            return routing_lines(log, start.node, start.decision.predicted_us, began_us, len(log.attempts))
    return routing_lines(log, "", 0, log.submitted_us, len(log.attempts))


def routing_lines(log: AttemptLog, node: str, predicted_us: Micros, began_us: Micros, attempts: int) -> bytes:
    """Return the encoded header lines of an answer from this node."""
    return (
        b"X-Sollol-Node: %b\r\nX-Sollol-Request-Id: %d\r\nX-Sollol-Queue-Ms: %d\r\nX-Sollol-Predicted-Ms: %d\r\n"
        b"X-Sollol-Attempts: %d\r\n"
    ) % (node.encode("latin-1"), log.task.id, (began_us - log.submitted_us) // 1000, predicted_us // 1000, attempts)
