"""Record what a node cannot do, for a bounded time: a missing route, a refused model, a missing key.

Such a node is used last. A record ends with UNABLE_FOR (longer each time that it is confirmed), with a good answer of
the same kind, or when the node comes back or has another version. A model that does not fit into the memory is not
tried at all for TOO_LARGE_FOR, since Ollama has made all the room that there is before it refuses.
"""

from __future__ import annotations

from typing import Final, NamedTuple

from sollol.core.types import SECOND, Micros, Outcome, Status, Task

UNABLE_FOR: Final[Micros] = 60 * SECOND
UNABLE_MAX: Final[Micros] = 960 * SECOND
TOO_LARGE_FOR: Final[Micros] = 3_600 * SECOND
KNOWN_MAX: Final = 256  # things that are remembered of one node
CONTRADICTED: Final = 3  # requests in a row that a node refused and another one answered
OF_THE_ROUTE: Final = frozenset((404, 405, 421, 426, 501))  # status by which a node lacks a route, for all models
OF_THE_REQUEST: Final = frozenset((408, 413, 499))  # status that is about one request only


class Incapability(NamedTuple):
    """Hold one thing that a node cannot do, and until when."""

    until_us: Micros
    for_us: Micros
    why: str
    is_final: bool = False  # it is not tried before, even if nothing else is left


class Incapabilities:
    """Hold what one node cannot do, by (route, model); "" stands for all."""

    __slots__ = ("_known",)

    def __init__(self) -> None:
        self._known: dict[tuple[str, str], Incapability] = {}

    def learn(self, task: Task, outcome: Outcome, now: Micros) -> bool:
        """Record an outcome. Return False if it is about one request only."""
        status = outcome.http_status
        if outcome.status is Status.LOCKED:
            self._add(("", ""), outcome.message, now)
        elif outcome.status is Status.TOO_LARGE:
            self.learn_too_large(task.model, outcome, now)
        elif status in OF_THE_REQUEST:
            return False
        elif (outcome.status is not Status.MISSING and status in OF_THE_ROUTE) or 300 <= status < 400:
            self._add((task.route, ""), outcome.message, now)
        else:
            self._add((task.route, task.model), outcome.message, now)
        return True

    def learn_too_large(self, model: str, outcome: Outcome, now: Micros) -> None:
        """Record that a model does not fit into the memory."""
        self._known["", model] = Incapability(now + TOO_LARGE_FOR, TOO_LARGE_FOR, outcome.message, True)

    def too_large(self, now: Micros) -> set[str]:
        """Return the models that do not fit into the memory."""
        return {
            model
            for (route, model), found in self._known.items()
            if not route and found.is_final and found.until_us > now
        }

    def _add(self, key: tuple[str, str], why: str, now: Micros) -> None:
        before = self._known.get(key)
        for_us = UNABLE_FOR if before is None else before.for_us
        if before is not None and before.until_us <= now:
            for_us = min(2 * for_us, UNABLE_MAX)
        if before is None and len(self._known) >= KNOWN_MAX:  # routes are named by callers
            del self._known[next(iter(self._known))]
        self._known[key] = Incapability(now + for_us, for_us, why)

    def stops(self, task: Task, now: Micros) -> bool:
        """Check that the node cannot serve this task."""
        return self.of(task, now) is not None

    def of(self, task: Task, now: Micros) -> Incapability | None:
        """Return what keeps the node from serving this task; None if nothing does."""
        known, route = self._known, task.route
        for key in (("", ""), ("", task.model), (route, ""), (route, task.model)):
            found = known.get(key)
            if found is not None and found.until_us > now:
                return found
        return None

    def forget(self, model: str) -> None:
        """Remove what is recorded of a model, because it has changed."""
        for key in [key for key in self._known if key[1] == model]:
            del self._known[key]

    def served(self, task: Task) -> None:
        """Remove what contradicts an answer to this task."""
        route = task.route
        for key in (("", ""), ("", task.model), (route, ""), (route, task.model)):
            self._known.pop(key, None)

    def words(self, now: Micros) -> list[str]:
        """Return one sentence for each thing that the node cannot do now."""
        sentences = []
        for (route, model), incapable in self._known.items():
            if incapable.until_us > now:
                of = f"{route} with {model}" if route and model else route or model or "any call"
                seconds = round((incapable.until_us - now) / SECOND)
                sentences.append(f"cannot serve {of}: {incapable.why}; tried again in {seconds} s")
        return sentences

    def clear(self) -> None:
        """Remove all records."""
        self._known.clear()

    @property
    def is_empty(self) -> bool:
        """Return whether there is no record."""
        return not self._known
