"""Many connection attempts at once: who has an open port?

The problem: of the 254 addresses of a home network 250 are silent, so they must be tried together, not in turn. A
thread for each costs memory and a second of starting; a coroutine for each some 60 µs.
The answer: plain non-blocking sockets, watched by the event loop itself, about 25 µs each. Nothing is sent over
them; an address that accepts is handed on, and the question whether it is Ollama is asked elsewhere.

Limits, each for a reason:

- file descriptors: at most 1,000 in flight, fewer where the system allows fewer (macOS: 256 in all);
- turns: 64 attempts, about 2 ms, then the event loop does something else. It may be the user's;
- neighbours: Linux keeps at most gc_thresh3 (1,024) of them, an address where nobody is holds its entry for 3 s, and
  beyond the limit packets are dropped **without an error** (tried: 4,096 attempts, all "in progress", 1,024 sent).
  So on a local link at most that many are begun within 3 s. A /22 fits; a /16 takes three minutes.
"""

from __future__ import annotations

import asyncio
import errno
import os
import socket
from collections import deque
from collections.abc import Callable, Iterator
from pathlib import Path

from sollol.discovery.candidates import Source, Target
from sollol.discovery.patience import silence
from sollol.duties import PAUSE_S, log_fault

MAX_IN_FLIGHT = 1000
TURN = 64
NEIGHBOUR_S = 3.0
DEFAULT_NEIGHBOURS = 1024
RETRY_S = 0.02
_RESERVED_DESCRIPTORS = 48  # for the verification, and for whatever else the program opens meanwhile
_IN_PROGRESS = {errno.EINPROGRESS, getattr(errno, "WSAEWOULDBLOCK", errno.EINPROGRESS)}
_SCARCE = {errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM, errno.EAGAIN}


class Sweep:
    """Tries targets in their order. Calls `opened(target)` for each that accepts, `changed()` when anything happens.

    Whoever is given an open address calls `release()` when done with it. `close()` ends everything in flight.
    `near`: so many addresses of networks come first, and when they are tried, `pass_sent` tells.
    `slowest_s` is the slowest answer (yes or no) from another machine on the link.
    """

    def __init__(
        self,
        targets: Iterator[Target],
        opened: Callable[[Target], None],
        changed: Callable[[], None],
        near: int = 0,
    ) -> None:
        self._loop = asyncio.get_running_loop()
        self._targets = targets
        self._more: deque[Target] = deque()
        self._opened = opened
        self._changed = changed
        self._limit = descriptors()
        self._neighbours = neighbour_limit()
        self._links: deque[float] = deque()  # when neighbours were asked for, within the last NEIGHBOUR_S
        self._flying: dict[int, tuple[socket.socket, Target, float]] = {}  # the oldest first
        self._timer: asyncio.Handle | None = None
        self._taken = 0  # open addresses that are being asked: they hold a descriptor, too
        self._exhausted = self._closed = False
        self.last_sent = self._loop.time()
        self.slowest_s = 0.0
        self._near = near  # addresses of the pass that is made in any case, still to be tried
        self.pass_sent: float | None = None
        self._later(0.0)

    @property
    def listening(self) -> int:
        return len(self._flying)

    @property
    def unsent(self) -> bool:
        return not self._exhausted

    def add(self, target: Target) -> None:
        """One more, to be tried next."""
        self._more.append(target)
        self._exhausted = False
        self._later(0.0)

    def release(self) -> None:
        """An address that was handed to `opened` needs its socket no more."""
        self._taken -= 1
        if self.unsent and not self._closed:
            self._later(0.0)

    def close(self) -> None:
        self._closed = True
        if self._timer is not None:
            self._timer.cancel()
        for fd in list(self._flying):
            self._drop(fd)

    def left(self) -> int:
        """How many addresses were never tried. Uses the targets up."""
        return len(self._more) + sum(1 for _ in self._targets)

    # -- sending ---------------------------------------------------------------------------------------------------

    def _later(self, delay_s: float) -> None:
        if self._timer is not None:
            self._timer.cancel()
        self._timer = self._loop.call_later(delay_s, self._on_timer)

    def _on_timer(self) -> None:
        try:
            self._fill()
        except Exception as error:  # the other addresses are tried all the same
            log_fault("the search for nodes", error)
            if not self._closed:
                self._later(PAUSE_S)

    def _fill(self) -> None:
        self._timer = None
        for _ in range(TURN):
            if self._closed:
                return
            wait_s = self._no_room_for()
            if wait_s > 0.0:
                self._later(wait_s)
                return
            target = self._next()
            if target is None:
                self._exhausted = True
                self._end_pass()
                self._changed()
                return
            if not self._try(target):
                self._more.appendleft(target)
                self._limit = max(16, min(self._limit, len(self._flying)))
                self._later(RETRY_S)
                return
            if target.source is Source.SUBNET:
                self._near -= 1
                if self._near <= 0:
                    self._end_pass()
        self._later(0.0)

    def _end_pass(self) -> None:
        if self.pass_sent is None:
            self.pass_sent = self._loop.time()

    def _next(self) -> Target | None:
        return self._more.popleft() if self._more else next(self._targets, None)

    def _no_room_for(self) -> float:
        """Seconds until another attempt may be made; 0 for now. Attempts that were silent for too long make room."""
        now = self._loop.time()
        while self._links and self._links[0] <= now - NEIGHBOUR_S:
            self._links.popleft()
        if len(self._links) >= self._neighbours:
            return self._links[0] + NEIGHBOUR_S - now
        while len(self._flying) + self._taken >= self._limit:
            if not self._flying:
                return RETRY_S
            fd, (_, _, sent_at) = next(iter(self._flying.items()))
            wait_s = sent_at + silence(self.slowest_s) - now
            if wait_s > 0.0:
                return wait_s
            self._drop(fd)
        return 0.0

    def _try(self, target: Target) -> bool:
        """Begin one attempt. False: the system has no room for it now."""
        family = socket.AF_INET if target.ip.version == 4 else socket.AF_INET6
        try:
            sock = socket.socket(family, socket.SOCK_STREAM)
        except OSError as problem:  # without IPv6: as good as refused
            return problem.errno not in _SCARCE
        sock.setblocking(False)
        code = sock.connect_ex((str(target.ip), target.port))
        if code in _SCARCE:
            sock.close()
            return False
        self.last_sent = now = self._loop.time()
        if target.on_link:
            self._links.append(now)
        if code in _IN_PROGRESS:
            self._flying[sock.fileno()] = (sock, target, now)
            self._loop.add_writer(sock.fileno(), self._on_answer, sock.fileno())
            return True
        sock.close()
        if code == 0:
            self._hand_on(target)
        return True

    # -- hearing ---------------------------------------------------------------------------------------------------

    def _on_answer(self, fd: int) -> None:
        sock, target, sent_at = self._flying[fd]
        code = sock.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR)
        self._drop(fd)
        if code in (0, errno.ECONNREFUSED) and target.on_link:
            self.slowest_s = max(self.slowest_s, self._loop.time() - sent_at)
        if code == 0:
            self._hand_on(target)
        if self.unsent and not self._closed:
            self._later(0.0)
        self._changed()

    def _hand_on(self, target: Target) -> None:
        self._taken += 1
        self._opened(target)

    def _drop(self, fd: int) -> None:
        self._loop.remove_writer(fd)
        self._flying.pop(fd)[0].close()


def descriptors() -> int:
    """How many sockets may be in flight at once."""
    try:
        import resource
    except ImportError:
        return 400  # Windows: select() takes 512
    soft, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft == resource.RLIM_INFINITY:
        return MAX_IN_FLIGHT
    try:
        used = len(os.listdir("/dev/fd"))
    except OSError:
        used = 64
    return max(16, min(MAX_IN_FLIGHT, soft - used - _RESERVED_DESCRIPTORS))


def neighbour_limit(root: Path = Path("/")) -> int:
    """How many new neighbours may be asked for within NEIGHBOUR_S. Containers are not told the system's limit."""
    limit = _number(root / "proc/sys/net/ipv4/neigh/default/gc_thresh3", DEFAULT_NEIGHBOURS)
    try:
        known = len((root / "proc/net/arp").read_text().splitlines()) - 1
    except OSError:
        known = 0
    return max(64, min(limit, 1 << 16) - known)


def _number(path: Path, otherwise: int) -> int:
    try:
        return int(path.read_text())
    except (OSError, ValueError):
        return otherwise
