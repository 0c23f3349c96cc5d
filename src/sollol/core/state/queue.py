"""Queue the tasks of one model: by priority, fair between applications, without starvation.

Between priorities, age decides: a priority gains one step for every AGEING_INTERVAL since it was last served. So a
LOW task under a flood of HIGH ones is served now and then, and a flood of old LOW ones does not block an urgent one.
Within a priority, applications share by tokens: next is the one that had the fewest (start-time fair queueing, Goyal
1996; an application that was away resumes at the present, with neither credit nor debt). Within an application, first
come, first served. A batch is queued again after each of its chunks.
"""

from __future__ import annotations

import heapq
from bisect import insort
from typing import Final

from sollol.core.bounds import keep_largest
from sollol.core.types import SECOND, Key, Micros

APPS_MAX: Final = 10_000  # applications whose share is remembered
AGEING_INTERVAL: Final[Micros] = (
    5 * SECOND
)  # after which a waiting task counts one priority higher: LOW passes HIGH in half a minute


class _AppShare:
    """Count the tokens given to one application, and its queued tasks."""

    __slots__ = ("given", "waiting")

    def __init__(self) -> None:
        self.given = 0.0  # tokens
        self.waiting = 0  # queued tasks


class FairShares:
    """Count the tokens given to each application, over all queues: the nodes are the same."""

    __slots__ = ("_apps", "_now")

    def __init__(self) -> None:
        self._apps: dict[str, _AppShare] = {}
        self._now = 0.0  # tokens of the application served last, at that time

    def _of(self, app: str) -> _AppShare:
        share = self._apps.get(app)
        if share is None:
            if len(self._apps) >= APPS_MAX:
                self._forget()
            share = self._apps[app] = _AppShare()
        return share

    def _forget(self) -> None:
        """Remove applications without a queued task, those with the smallest lead first."""
        waiting = {app: share for app, share in self._apps.items() if share.waiting}
        ahead = {a: s.given for a, s in self._apps.items() if not s.waiting and s.given > self._now}
        self._apps = waiting | {app: self._apps[app] for app in keep_largest(ahead, APPS_MAX // 2)}

    def enter(self, app: str) -> _AppShare:
        """Record a queued task."""
        share = self._of(app)
        if not share.waiting and share.given < self._now:
            share.given = self._now
        share.waiting += 1
        return share

    def leave(self, share: _AppShare) -> None:
        """Record that a task has left the queue."""
        share.waiting -= 1

    def charge(self, share: _AppShare, tokens: float) -> None:
        """Charge tokens to an application whose turn it was."""
        given = share.given
        if given > self._now:
            self._now = given
        share.given = given + tokens

    def pass_by(self, app: str, tokens: float) -> None:
        """Charge a task that was started without a queue."""
        share = self._of(app)
        self._now = given = max(share.given, self._now)
        share.given = given + tokens

    def correct(self, app: str, tokens: float) -> None:
        """Charge the difference after an answer was longer or, if negative, shorter than expected."""
        self._of(app).given += tokens


class _PriorityLevel:
    """Hold the tasks of one priority, by application and arrival."""

    __slots__ = ("apps", "count", "priority", "since")

    def __init__(self, priority: int) -> None:
        self.priority = priority
        self.apps: dict[str, list[_QueueEntry]] = {}
        self.count = 0
        self.since: Micros = 0  # when it was last served, or began to wait


class _QueueEntry:
    __slots__ = ("app", "left", "level", "share", "since", "task", "tokens")

    def __init__(
        self, task: Key, level: _PriorityLevel, app: str, share: _AppShare, since: Micros, tokens: float
    ) -> None:
        self.task = task
        self.level = level
        self.app = app
        self.share = share
        self.since = since
        self.tokens = tokens
        self.left = False  # it is no longer queued


def _arrival(place: _QueueEntry) -> tuple[Micros, Key]:
    """Return the sort key of an entry: tasks of the same moment stand in the order of their ids."""
    return place.since, place.task


def _goes_before(one: _QueueEntry, other: _QueueEntry) -> bool:
    """Compare the heads of two applications: fewer tokens first, then by arrival."""
    if one.share.given != other.share.given:
        return one.share.given < other.share.given
    return _arrival(one) < _arrival(other)


class WaitQueue:
    """Order task ids by priority, application and arrival. Removal is lazy."""

    __slots__ = ("_levels", "_shares", "waiting")

    def __init__(self, shares: FairShares | None = None) -> None:
        self._shares = shares or FairShares()
        self._levels: dict[int, _PriorityLevel] = {}
        self.waiting: dict[Key, _QueueEntry] = {}  # a look at it spares a call

    def push(self, task: Key, priority: int, since: Micros, now: Micros, app: str = "", tokens: float = 1.0) -> None:
        """Queue a task.

        Args:
            since: Its arrival, which orders it within its application.
            tokens: Its expected use.
        """
        if task in self.waiting:
            self.remove(task)
        level = self._levels.get(priority)
        if level is None:
            level = self._levels[priority] = _PriorityLevel(priority)
            level.since = now
        level.count += 1
        place = _QueueEntry(task, level, app, self._shares.enter(app), since, tokens)
        self.waiting[task] = place
        line = level.apps.get(app)
        if line is None:
            level.apps[app] = [place]
        elif since > line[-1].since or (since == line[-1].since and task > line[-1].task):  # nearly always
            line.append(place)
        else:
            insort(line, place, key=_arrival)

    def peek(self, now: Micros) -> Key | None:
        """Return the next task, or None."""
        if len(self.waiting) < 2:
            for place in self.waiting.values():
                return place.task
            return None
        apps = self._first_level(now).apps
        best: _QueueEntry | None = None
        for line in apps.values():
            head = line[0]
            if best is None or _goes_before(head, best):
                best = head
        assert best is not None
        return best.task

    def _first_level(self, now: Micros) -> _PriorityLevel:
        levels = self._levels
        if len(levels) == 1:
            for level in levels.values():
                return level
        return levels[self._order(now)[0]]

    def head(self, now: Micros) -> tuple[int, Micros, str, Micros]:
        """Return priority, age of that priority, application and arrival of the next task. Not if empty."""
        task = self.peek(now)
        assert task is not None
        place = self.waiting[task]
        return place.level.priority, place.level.since, place.app, place.since

    def charge(self, task: Key, now: Micros, tokens: float | None = None) -> float:
        """Remove a task, or a chunk of it, that is bound to a node, and charge its application."""
        place = self.waiting[task]
        place.level.since = now
        paid = place.tokens if tokens is None else tokens
        self._shares.charge(place.share, paid)
        self._take(place)
        return paid

    def remove(self, task: Key) -> None:
        """Remove a task without a charge."""
        place = self.waiting.get(task)
        if place is not None:
            self._take(place)

    def _take(self, place: _QueueEntry) -> None:
        del self.waiting[place.task]
        self._shares.leave(place.share)
        place.left = True
        level = place.level
        level.count -= 1
        if level.count == 0:
            del self._levels[level.priority]
            return
        line = level.apps[place.app]
        while line and line[0].left:  # so the first entry always waits
            line.pop(0)
        if not line:
            del level.apps[place.app]
        elif len(line) > 64 and len(line) > 4 * level.count:
            level.apps[place.app] = [other for other in line if not other.left]

    def rebuild_without(self, task: Key) -> None:
        """Rebuild a damaged queue without one task."""
        places = [place for place in self.waiting.values() if place.task != task]
        self.waiting, self._levels = {}, {}
        for place in places:
            place.share.waiting -= 1
            self.push(place.task, place.level.priority, place.since, place.level.since, place.app, place.tokens)

    def first(self, count: int, now: Micros) -> list[Key]:
        """Return the next `count` tasks in order, as predicted now."""
        found: list[Key] = []
        for priority in self._order(now):
            lines = list(self._levels[priority].apps.values())
            if len(lines) == 1:
                for place in lines[0]:
                    if len(found) == count:
                        break
                    if not place.left:
                        found.append(place.task)
            else:
                self._merge(lines, found, count)
            if len(found) >= count:
                break
        return found

    def _merge(self, lines: list[list[_QueueEntry]], found: list[Key], count: int) -> None:
        """Merge applications by the tokens that they will have had."""
        queues = [[place for place in line if not place.left][:count] for line in lines]
        merge = [(queue[0].share.given, _arrival(queue[0]), number, 0) for number, queue in enumerate(queues)]
        heapq.heapify(merge)
        while merge and len(found) < count:
            given, _, number, turn = merge[0]
            queue = queues[number]
            found.append(queue[turn].task)
            if turn + 1 == len(queue):
                heapq.heappop(merge)
            else:
                given += queue[turn].tokens
                heapq.heapreplace(merge, (given, _arrival(queue[turn + 1]), number, turn + 1))

    def _order(self, now: Micros) -> list[int]:
        """Return the priorities, the next first."""
        levels = self._levels
        return sorted(levels, key=lambda p: (-(p + (now - levels[p].since) / AGEING_INTERVAL), -p))

    def __contains__(self, task: Key) -> bool:
        return task in self.waiting

    def __len__(self) -> int:
        return len(self.waiting)
