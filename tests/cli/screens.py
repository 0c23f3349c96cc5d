"""A command in a real terminal (a pty), whose screen is read as a person would see it."""

from __future__ import annotations

import contextlib
import fcntl
import os
import pty
import select
import signal
import struct
import subprocess
import sys
import termios
import time
from collections.abc import Callable, Iterator

import pyte

WAIT_S = 20


class Screen:
    """The screen of a process, and its keyboard."""

    def __init__(self, process: subprocess.Popen[bytes], master: int, slave: int, columns: int, lines: int) -> None:
        self.process = process
        self._master, self._slave = master, slave
        self.display = pyte.Screen(columns, lines)
        self._stream = pyte.ByteStream(self.display)
        self.written = b""  # since the last look at it
        self.modes = termios.tcgetattr(slave)

    def read(self, seconds: float = 0.05) -> None:
        if select.select([self._master], [], [], seconds)[0]:
            try:
                data = os.read(self._master, 1 << 16)
            except OSError:  # the other end is closed
                return
            self.written += data
            self._stream.feed(data)

    @property
    def lines(self) -> list[str]:
        return [line.rstrip() for line in self.display.display]

    @property
    def text(self) -> str:
        return "\n".join(self.lines)

    def until(self, true: Callable[[], object]) -> None:
        end = time.monotonic() + WAIT_S
        while not true():
            assert time.monotonic() < end, self.text
            self.read()

    def shows(self, *words: str) -> None:
        self.until(lambda: all(word in self.text for word in words))

    def hides(self, word: str) -> None:
        self.until(lambda: word not in self.text)

    def press(self, *keys: str) -> None:
        for key in keys:
            os.write(self._master, key.encode())
            self.read(0.01)

    def resize(self, columns: int, lines: int) -> None:
        self.display.resize(lines, columns)
        fcntl.ioctl(self._slave, termios.TIOCSWINSZ, struct.pack("HHHH", lines, columns, 0, 0))
        self.process.send_signal(signal.SIGWINCH)

    def selected(self) -> str:
        """The row in reverse."""
        for number in range(self.display.lines):
            row = self.display.buffer[number]
            if row[0].reverse and row[self.display.columns - 1].reverse:
                return self.display.display[number].strip()
        return ""

    def ended(self) -> int:
        """Wait for the end; return the exit code."""
        end = time.monotonic() + WAIT_S
        while self.process.poll() is None:
            assert time.monotonic() < end, self.text
            self.read()
        while select.select([self._master], [], [], 0)[0]:
            self.read(0)
        return self.process.returncode

    def is_restored(self) -> bool:
        """Check that the terminal is as it was: echo, lines, cursor, main screen."""
        return (
            termios.tcgetattr(self._slave)[3] == self.modes[3]
            and self.written.rstrip().endswith(b"\x1b[?25h\x1b[?1049l")
            and not self.display.cursor.hidden
        )


@contextlib.contextmanager
def screen_of(*words: str, columns: int = 80, lines: int = 24, **environment: str) -> Iterator[Screen]:
    """`sollol WORDS` in a terminal of its own."""
    master, slave = pty.openpty()
    fcntl.ioctl(slave, termios.TIOCSWINSZ, struct.pack("HHHH", lines, columns, 0, 0))
    kept = {name: value for name, value in os.environ.items() if name not in ("COLUMNS", "LINES", "NO_COLOR")}
    process = subprocess.Popen(
        [sys.executable, "-m", "sollol", *words],
        stdin=slave,
        stdout=slave,
        stderr=slave,
        env={**kept, "TERM": "xterm-256color", **environment},
        preexec_fn=_own_terminal,
    )
    screen = Screen(process, master, slave, columns, lines)
    try:
        yield screen
    finally:
        process.kill()
        process.wait()
        os.close(master)
        os.close(slave)


def _own_terminal() -> None:
    """Let Ctrl-C of this terminal reach the process, also where the tests run in the background of a shell."""
    os.setsid()
    fcntl.ioctl(0, termios.TIOCSCTTY, 0)
    signal.signal(signal.SIGINT, signal.SIG_DFL)
