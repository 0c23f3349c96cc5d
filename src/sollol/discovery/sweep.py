"""Find open ports by many concurrent connection attempts.

Of the 254 addresses of a home network 250 are silent, so they must be tried together. A thread for each costs memory
and a second of starting, a coroutine for each some 60 µs. Plain non-blocking sockets, watched by the event loop, cost
about 25 µs each. The sweep sends no data; it reports each address that accepts, and `verify` identifies it.

Limits:

- file descriptors: at most 1,000 in flight, fewer where the system allows fewer (macOS: 256 in all);
- turns: 64 attempts, about 2 ms, then the event loop may run other work of the user;
- neighbours: Linux keeps at most gc_thresh3 (1,024) entries. An address without a machine holds its entry for 3 s, and
  beyond the limit packets are dropped **without an error** (measured: 4,096 attempts, all "in progress", 1,024 sent).
  So on a local link at most that many start within 3 s. A /22 fits; a /16 takes three minutes.
"""

from __future__ import annotations

import asyncio
import errno
import os
import socket
from collections import deque
from collections.abc import Callable, Iterator
from pathlib import Path

from sollol.discovery.candidates import CandidateSource, Target
from sollol.discovery.stop_policy import silence
from sollol.duties import PAUSE_S, log_fault

MAX_IN_FLIGHT = 1000
TURN = 64
NEIGHBOUR_S = 3.0
DEFAULT_NEIGHBOURS = 1024
RETRY_S = 0.02
_RESERVED_DESCRIPTORS = 48  # for `verify` and for other sockets of the program
_IN_PROGRESS = {errno.EINPROGRESS, getattr(errno, "WSAEWOULDBLOCK", errno.EINPROGRESS)}
_SCARCE = {errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM, errno.EAGAIN}


class Sweep:
    """Try targets in their order; call `opened(target)` for each that accepts, and `changed()` after any event.

    The receiver of an open address calls `release()` at its end. `close()` ends all attempts. The first `near`
    addresses of networks are the nearest; `pass_sent` is the time at which the last of them was tried. `slowest_s` is
    the slowest answer (yes or no) of another machine on the link.
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
        self._links: deque[float] = deque()  # times of attempts on the link within the last NEIGHBOUR_S
        self._flying: dict[int, tuple[socket.socket, Target, float]] = {}  # oldest first
        self._timer: asyncio.Handle | None = None
        self._identifying = 0  # open addresses under identification: each holds a descriptor
        self._exhausted = self._closed = False
        self.last_sent = self._loop.time()
        self.slowest_s = 0.0
        self._near = near  # untried addresses of the nearest pass
        self.pass_sent: float | None = None
        self._later(0.0)

    @property
    def listening(self) -> int:
        """The number of attempts in flight."""
        return len(self._flying)

    @property
    def unsent(self) -> bool:
        """True while untried targets may be left."""
        return not self._exhausted

    def add(self, target: Target) -> None:
        """Add a target, which is tried next."""
        self._more.append(target)
        self._exhausted = False
        self._later(0.0)

    def release(self) -> None:
        """Free the descriptor of an address that was given to `opened`."""
        self._identifying -= 1
        if self.unsent and not self._closed:
            self._later(0.0)

    def close(self) -> None:
        """End all attempts."""
        self._closed = True
        if self._timer is not None:
            self._timer.cancel()
        for fd in list(self._flying):
            self._drop(fd)

    def left(self) -> int:
        """Return the number of untried addresses. Consumes the targets."""
        return len(self._more) + sum(1 for _ in self._targets)

    # -- sending ---------------------------------------------------------------------------------------------------

    def _later(self, delay_s: float) -> None:
        if self._timer is not None:
            self._timer.cancel()
        self._timer = self._loop.call_later(delay_s, self._on_timer)

    def _on_timer(self) -> None:
        try:
            self._fill()
        except Exception as error:  # the other addresses are still tried
            log_fault("the search for nodes", error)
            if not self._closed:
                self._later(PAUSE_S)

    def _fill(self) -> None:
        self._timer = None
        for _ in range(TURN):
            if self._closed:
                return
            wait_s = self._wait_for_room_s()
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
            if target.source is CandidateSource.SUBNET:
                self._near -= 1
                if self._near <= 0:
                    self._end_pass()
        self._later(0.0)

    def _end_pass(self) -> None:
        if self.pass_sent is None:
            self.pass_sent = self._loop.time()

    def _next(self) -> Target | None:
        return self._more.popleft() if self._more else next(self._targets, None)

    def _wait_for_room_s(self) -> float:
        """Return the seconds until the next attempt, 0 for now. Ends attempts that were silent for too long."""
        now = self._loop.time()
        while self._links and self._links[0] <= now - NEIGHBOUR_S:
            self._links.popleft()
        if len(self._links) >= self._neighbours:
            return self._links[0] + NEIGHBOUR_S - now
        while len(self._flying) + self._identifying >= self._limit:
            if not self._flying:
                return RETRY_S
            fd, (_, _, sent_at) = next(iter(self._flying.items()))
            wait_s = sent_at + silence(self.slowest_s) - now
            if wait_s > 0.0:
                return wait_s
            self._drop(fd)
        return 0.0

    def _try(self, target: Target) -> bool:
        """Start one attempt. Returns False if the system lacks resources for it."""
        family = socket.AF_INET if target.ip.version == 4 else socket.AF_INET6
        try:
            sock = socket.socket(family, socket.SOCK_STREAM)
        except OSError as problem:  # no IPv6 here: the same as a refusal
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
            self._report_open(target)
        return True

    # -- receiving -------------------------------------------------------------------------------------------------

    def _on_answer(self, fd: int) -> None:
        sock, target, sent_at = self._flying[fd]
        code = sock.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR)
        self._drop(fd)
        if code in (0, errno.ECONNREFUSED) and target.on_link:
            self.slowest_s = max(self.slowest_s, self._loop.time() - sent_at)
        if code == 0:
            self._report_open(target)
        if self.unsent and not self._closed:
            self._later(0.0)
        self._changed()

    def _report_open(self, target: Target) -> None:
        self._identifying += 1
        self._opened(target)

    def _drop(self, fd: int) -> None:
        self._loop.remove_writer(fd)
        self._flying.pop(fd)[0].close()


def descriptors() -> int:
    """Return the number of sockets that may be in flight."""
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
    """Return the number of new neighbour entries within NEIGHBOUR_S. Containers cannot read the system's limit."""
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
