"""Write the scheduler's events to a file, and replay them.

The same events give the same state and the same actions. A line is one event as JSON with its time. The first line has
the seed of the scheduler's random numbers; every few hundred lines, and at the end, there is a digest of all lines and
of the actions so far, which a replay compares. Of the start of an attempt it has the node and the prediction, which
depends on all that was learned. Prompts and answers are in no event. Keys of nodes are left out.
"""

from __future__ import annotations

import contextlib
import hashlib
import random
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Final, NamedTuple

import msgspec

from sollol.core import events
from sollol.core.actions import Action, Complete, SchedulerException, Start
from sollol.core.endpoint import Endpoint
from sollol.core.policy import Policies
from sollol.core.scheduler import Scheduler
from sollol.core.types import (
    Kind,
    LoadedModel,
    NodeFacts,
    Outcome,
    RoutingStrategy,
    Status,
    Timing,
    task_from_values,
    task_to_values,
)
from sollol.core.value import Value, fields_of
from sollol.errors import BadInput
from sollol.observe.journal import Entry

FORM: Final = 2
DIGEST_EVERY: Final = 500  # events
MOST_BYTES: Final = 500_000_000


def event_to_values(event: events.Event) -> dict[str, Any]:
    """Return the fields of an event as values that JSON can hold."""
    if isinstance(event, events.Submitted):  # every request brings these two; their fields are plain already
        return {"task": task_to_values(event.task)}
    if isinstance(event, events.Finished):
        outcome = fields_of(event.outcome)
        return {
            "attempt": event.attempt,
            "outcome": {**outcome, "status": outcome["status"].value, "timing": fields_of(outcome["timing"])},
        }
    fields = fields_of(event) if isinstance(event, Value) else event._asdict()
    return {name: _plain(value) for name, value in fields.items()}


def _plain(value: Any) -> Any:
    if isinstance(value, Endpoint):
        return value._replace(auth="", api_key="")._asdict()
    if isinstance(value, Value):
        return {name: _plain(held) for name, held in fields_of(value).items()}
    if hasattr(value, "_asdict"):
        return {name: _plain(held) for name, held in value._asdict().items()}
    if isinstance(value, Mapping):
        return {name: _plain(held) for name, held in value.items()}
    if isinstance(value, str | int | float | bool | None):
        return value.value if isinstance(value, RoutingStrategy) else value
    if isinstance(value, Status):
        return value.value
    return f"{type(value).__name__}: {value}" if isinstance(value, BaseException) else [_plain(held) for held in value]


def event_from_values(name: str, values: Mapping[str, Any]) -> events.Event:
    """Return the event that `event_to_values` was given. Raises KeyError, TypeError or ValueError for other values."""
    given = dict(values)
    read = READERS.get(name)
    if read is not None:
        return read(given)
    event: events.Event = PLAIN[name](**given)
    return event


def _outcome(values: Mapping[str, Any]) -> Outcome:
    return Outcome(**{**values, "status": Status(values["status"]), "timing": Timing(**values["timing"])})


def _facts(values: Mapping[str, Any]) -> NodeFacts:
    loaded = {model: LoadedModel(**held) for model, held in values["loaded"].items()}
    return NodeFacts(**{**values, "loaded": loaded, "late": tuple(values["late"])})


def _configured(values: Mapping[str, Any]) -> events.Configure:
    strategy = values["strategy"]
    return events.Configure(**{**values, "strategy": None if strategy is None else RoutingStrategy(strategy)})


READERS: Final[dict[str, Callable[[dict[str, Any]], events.Event]]] = {
    "Submitted": lambda given: events.Submitted(task_from_values(given["task"])),
    "Finished": lambda given: events.Finished(given["attempt"], _outcome(given["outcome"])),
    "TaskFailed": lambda given: events.TaskFailed(given["task"], RuntimeError(given["error"])),
    "LoadEnded": lambda given: events.LoadEnded(given["node"], given["model"], _outcome(given["outcome"])),
    "LoadRequested": lambda given: events.LoadRequested(**{**given, "kind": Kind(given["kind"])}),
    "NodeAdded": lambda given: events.NodeAdded(Endpoint(**given["endpoint"])),
    "NodeSeen": lambda given: events.NodeSeen(given["node"], _facts(given["facts"])),
    "Silent": lambda given: events.Silent(tuple(events.Silence(**stream) for stream in given["streams"])),
    "Configure": _configured,
}
PLAIN: Final[dict[str, Any]] = {
    kind.__name__: kind
    for kind in (
        events.ItemsAdded, events.FirstToken, events.Responding, events.Cancelled, events.NodeRemoved, events.NodeLost,
        events.NodeDrained, events.NodeOwned, events.GpuReported, events.WakeRequested, events.Retested,
        events.UnloadRequested, events.Refresh, events.LearnedRestored, events.Tick,
    )
}  # fmt: skip


class JournalFile:
    """Write entries of a journal to a file, until it is closed, MOST_BYTES are written, or it cannot be written.

    Args:
        path: The file.
        seed: Seed of the scheduler's random numbers.
        notify: Show a sentence to the operator.

    Raises:
        OSError: The file cannot be opened.
    """

    def __init__(self, path: Path, seed: int, notify: Callable[[str], None]) -> None:
        path.touch(0o600, exist_ok=True)  # names of models and applications are for its owner only
        self._path = path
        self._notify = notify
        self._file = path.open("wb")
        self._encode = msgspec.json.Encoder().encode
        self._digest = _LineDigest()
        self._count = self._bytes = 0
        self._line({"form": FORM, "seed": seed})

    def __call__(self, entry: Entry) -> None:
        """Write one entry."""
        if self._file.closed:
            return
        try:
            self._write(entry)
        except OSError as error:
            with contextlib.suppress(OSError):  # the buffered lines fail again
                self._file.close()
            self._end(error.strerror or str(error))
        if self._bytes > MOST_BYTES and not self._file.closed:
            self.close()
            self._end(f"{MOST_BYTES / 1e6:,.0f} MB are written")

    def _end(self, why: str) -> None:
        self._notify(f"the journal {self._path} ends here: {why}")

    def _write(self, entry: Entry) -> None:
        event = entry.event
        line = self._line({"at": entry.at, "event": type(event).__name__, **event_to_values(event)})
        self._digest.add(line, entry.actions)
        self._count += 1
        if self._count % DIGEST_EVERY == 0:
            self._line({"digest": self._digest.hexdigest()})
            self._file.flush()

    def close(self) -> None:
        """Write the last digest and close the file."""
        if self._file.closed:
            return
        try:
            self._line({"digest": self._digest.hexdigest()})
            self._file.close()
        except OSError as error:
            with contextlib.suppress(OSError):
                self._file.close()
            self._end(error.strerror or str(error))

    def _line(self, values: Mapping[str, Any]) -> bytes:
        line = self._encode(values) + b"\n"
        self._bytes += len(line)
        self._file.write(line)
        return line


class _LineDigest:
    """Hash the lines of a journal and the actions that followed."""

    def __init__(self) -> None:
        self._hash = hashlib.blake2b(digest_size=16)

    def add(self, line: bytes, actions: Sequence[Action]) -> None:
        """Add the line of an event, and its actions."""
        self._hash.update(line)
        self._hash.update("".join([_named(action) for action in actions]).encode())

    def hexdigest(self) -> str:
        """Return the hash so far."""
        return self._hash.hexdigest()


def _named(action: Action) -> str:
    """Return the decision in an action. The text of an exception may name an address in memory, so it is left out."""
    if isinstance(action, Start):
        return (
            f"{action.attempt} {action.task} {action.node} {action.decision.predicted_us} {action.decision.num_ctx} "
            f"{action.cause} {action.items}"
        )
    if isinstance(action, Complete):
        return f"{action.task} {action.outcome.status} {action.attempt}"
    return "exception" if isinstance(action, SchedulerException) else repr(action)


class Replay(NamedTuple):
    """Hold the result of a replay; `differs_at` is the number of the first event after the last equal digest."""

    events: int
    digests: int
    differs_at: int | None
    digest: str
    scheduler: Scheduler


def replay(path: Path, policies: Policies) -> Replay:
    """Feed the events of a file to a new scheduler and compare the digests.

    Raises:
        BadInput: The file is no journal.
    """
    lines = _lines(path)
    head = next(lines, (b"", {}))[1]
    if head.get("form") != FORM or not isinstance(head.get("seed"), int):
        raise BadInput(f"{path} is no journal of this version; expected a file that `sollol serve --journal` wrote")
    scheduler = Scheduler(policies, random.Random(head["seed"]))
    digest, number, digests, differs_at, equal = _LineDigest(), 0, 0, None, 0
    for raw, line in lines:
        if "digest" in line:
            digests += 1
            if line["digest"] == digest.hexdigest():
                equal = number
            elif differs_at is None:
                differs_at = equal + 1
            continue
        try:
            at, name = line.pop("at"), line.pop("event")
            event = event_from_values(name, line)
            if not isinstance(at, int):
                raise TypeError("`at` is no number of microseconds")
        except (AttributeError, KeyError, TypeError, ValueError) as error:
            raise BadInput(f"{path}, event {number + 1}: it cannot be read ({error})") from None
        try:
            digest.add(raw, scheduler.handle(event, at))
        except Exception as error:
            raise BadInput(f"{path}, event {number + 1}: the scheduler failed at it ({error!r})") from error
        number += 1
    return Replay(number, digests, differs_at, digest.hexdigest(), scheduler)


def _lines(path: Path) -> Iterator[tuple[bytes, dict[str, Any]]]:
    decode = msgspec.json.Decoder(dict[str, Any]).decode
    with path.open("rb") as file:
        for line in file:
            if not line.endswith(b"\n"):
                return  # the program was killed while it wrote
            try:
                yield line, decode(line)
            except msgspec.DecodeError as error:
                raise BadInput(f"{path} is no journal: {error}") from None
