"""The waiting line of one model: by priority, fair between applications, and nobody starves.

Between priority levels, age decides: a level gains one step of priority for every AGEING since it was last served,
so a LOW call under an endless flood of HIGH ones is served now and then, and no flood of old LOW ones bars an
urgent call.
Within a level, applications share by tokens: next is the one that was given least (start-time fair queueing,
Goyal 1996; an application that was away resumes at the present, with neither credit nor debt).
Within an application, first come, first served. A batch stands in line anew after each of its chunks.
"""

from __future__ import annotations

import heapq

from sollol.core.types import SECOND, Micros

AGEING: Micros = 5 * SECOND  # a LOW call passes HIGH ones after half a minute


class Shares:
    """Tokens given to each application: one for all lines, because the nodes are the same."""

    __slots__ = ("_given", "_now", "_waiting")

    def __init__(self) -> None:
        self._given: dict[str, float] = {}
        self._waiting: dict[str, int] = {}
        self._now = 0.0  # what the application served last had then

    def enter(self, app: str) -> None:
        count = self._waiting.get(app, 0)
        if count == 0:
            self._given[app] = max(self._given.get(app, 0.0), self._now)
        self._waiting[app] = count + 1

    def leave(self, app: str) -> None:
        self._waiting[app] -= 1
        if self._waiting[app] == 0:
            del self._waiting[app]
            if len(self._given) > 10_000:  # keys come and go; those that are not behind the present say nothing
                self._given = {a: t for a, t in self._given.items() if a in self._waiting or t > self._now}

    def serve(self, app: str, tokens: float) -> None:
        given = self._given.get(app, 0.0)
        self._now = max(self._now, given)
        self._given[app] = given + tokens

    def pass_by(self, app: str, tokens: float) -> None:
        """Served at once, without waiting."""
        given = max(self._given.get(app, 0.0), self._now)
        self._now = given
        self._given[app] = given + tokens

    def correct(self, app: str, tokens: float) -> None:
        """An answer was longer (or shorter, if negative) than expected."""
        self._given[app] = self._given.get(app, 0.0) + tokens

    def given(self, app: str) -> float:
        return self._given.get(app, 0.0)


class _Level:
    """The tasks of one priority: a heap by arrival for each application."""

    __slots__ = ("apps", "count", "since")

    def __init__(self) -> None:
        self.apps: dict[str, list[tuple[Micros, int, int]]] = {}
        self.count = 0
        self.since: Micros = 0  # when it was last served, or began to wait


class _Place:
    __slots__ = ("app", "key", "priority", "tokens")

    def __init__(self, priority: int, app: str, key: tuple[Micros, int, int], tokens: float) -> None:
        self.priority = priority
        self.app = app
        self.key = key
        self.tokens = tokens


class WaitingLine:
    """Task ids in the order in which they are to be served. Removal is lazy."""

    __slots__ = ("_levels", "_serial", "_shares", "waiting")

    def __init__(self, shares: Shares | None = None) -> None:
        self._shares = shares or Shares()
        self._levels: dict[int, _Level] = {}
        self.waiting: dict[int, _Place] = {}  # a look at it spares a call
        self._serial = 0

    def push(self, task: int, priority: int, since: Micros, at: Micros, app: str = "", tokens: float = 1.0) -> None:
        """`since`: when it came, which orders it among its application's; `tokens`: what it will probably use."""
        if task in self.waiting:
            self.remove(task)
        self._serial += 1
        place = self.waiting[task] = _Place(priority, app, (since, self._serial, task), tokens)
        level = self._levels.get(priority)
        if level is None:
            level = self._levels[priority] = _Level()
        if level.count == 0:
            level.since = at
        level.count += 1
        heap = level.apps.get(app)
        if heap is None:
            heap = level.apps[app] = []
        heapq.heappush(heap, place.key)
        self._shares.enter(app)

    def peek(self, at: Micros) -> int | None:
        """Who is next."""
        if len(self.waiting) < 2:
            return next(iter(self.waiting), None)
        level = self._first_level(at)
        if len(level.apps) == 1:
            app = next(iter(level.apps))
            head = self._head(level, app)
            assert head is not None
            return head[2]
        best: tuple[float, tuple[Micros, int, int]] | None = None
        for app in list(level.apps):
            head = self._head(level, app)
            if head is not None and (best is None or (self._shares.given(app), head) < best):
                best = self._shares.given(app), head
        assert best is not None
        return best[1][2]

    def _first_level(self, at: Micros) -> _Level:
        levels = self._levels
        if len(levels) > 1:
            return levels[self._order(at)[0]]
        level = next(iter(levels.values()))
        return level

    def urgency(self, at: Micros) -> tuple[float, Micros]:
        """Sorts lines: the one whose first task is the most urgent comes first."""
        priority = self._order(at)[0]
        level = self._levels[priority]
        return -(priority + (at - level.since) / AGEING), level.since

    def serve(self, task: int, at: Micros, tokens: float | None = None) -> float:
        """It (or a chunk of it, of so many tokens) is bound to a node: it leaves, and its application pays."""
        place = self.waiting[task]
        self._levels[place.priority].since = at
        self.remove(task)
        paid = place.tokens if tokens is None else tokens
        self._shares.serve(place.app, paid)
        return paid

    def remove(self, task: int) -> None:
        place = self.waiting.pop(task, None)
        if place is None:
            return
        self._shares.leave(place.app)
        level = self._levels[place.priority]
        level.count -= 1
        if level.count == 0:
            del self._levels[place.priority]
            return
        heap = level.apps[place.app]
        if heap[0][1] == place.key[1]:  # compiled, a tuple has no identity; its serial has
            heapq.heappop(heap)
        elif len(heap) > 64 and len(heap) > 4 * level.count:
            level.apps[place.app] = heap = [key for key in heap if self._is_live(key)]
            heapq.heapify(heap)
        if not heap:
            del level.apps[place.app]

    def first(self, count: int, at: Micros) -> list[int]:
        """The tasks to be served next, first one first, as far as that can be told now."""
        found: list[int] = []
        for priority in self._order(at):
            level = self._levels[priority]
            if len(level.apps) == 1:
                (heap,) = level.apps.values()
                found += [key[2] for key in sorted(heap) if self._is_live(key)][: count - len(found)]
                if len(found) >= count:
                    break
                continue
            queues = [
                (self._shares.given(app), iter(heapq.nsmallest(count, (k for k in heap if self._is_live(k)))), app)
                for app, heap in level.apps.items()
            ]
            merge = [(given, key, i) for i, (given, keys, _) in enumerate(queues) if (key := next(keys, None))]
            heapq.heapify(merge)
            while merge and len(found) < count:
                given, key, i = merge[0]
                found.append(key[2])
                following = next(queues[i][1], None)
                if following is None:
                    heapq.heappop(merge)
                else:
                    heapq.heapreplace(merge, (given + self.waiting[key[2]].tokens, following, i))
            if len(found) >= count:
                break
        return found

    def _order(self, at: Micros) -> list[int]:
        """Levels, the one to be served first."""
        levels = self._levels
        return sorted(levels, key=lambda p: (-(p + (at - levels[p].since) / AGEING), -p))

    def _head(self, level: _Level, app: str) -> tuple[Micros, int, int] | None:
        heap = level.apps[app]
        while heap:
            key = heap[0]
            place = self.waiting.get(key[2])
            if place is not None and place.key[1] == key[1]:
                return key
            heapq.heappop(heap)
        del level.apps[app]
        return None

    def _is_live(self, key: tuple[Micros, int, int]) -> bool:
        place = self.waiting.get(key[2])
        return place is not None and place.key[1] == key[1]

    def __contains__(self, task: int) -> bool:
        return task in self.waiting

    def __len__(self) -> int:
        return len(self.waiting)
