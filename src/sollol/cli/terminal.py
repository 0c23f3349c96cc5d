"""Fill the screen of a terminal, read its keys and its size, and restore it on every exit.

A frame is compared with the one before, and only the lines that differ are written.
"""

from __future__ import annotations

import asyncio
import codecs
import contextlib
import os
import signal
import sys
from collections.abc import Callable, Iterator, Sequence
from typing import Any

from rich.console import Console
from rich.text import Text

ENTER = "\x1b[?1049h\x1b[?25l\x1b[2J"  # alternate screen, no cursor
LEAVE = "\x1b[?25h\x1b[?1049l"
BEGIN, END = "\x1b[?2026h", "\x1b[?2026l"  # a terminal that supports these shows all changes at once
ESCAPE_S = 0.05  # after which an escape alone is the key Esc
POLL_S = 0.05  # between looks at the keyboard of Windows
LEAST = (20, 5)  # columns and lines
_SEQUENCES = {
    "[A": "up", "[B": "down", "[C": "right", "[D": "left", "OA": "up", "OB": "down", "OC": "right", "OD": "left",
    "[H": "home", "[F": "end", "OH": "home", "OF": "end", "[1~": "home", "[4~": "end", "[5~": "pageup",
    "[6~": "pagedown", "[3~": "delete", "[Z": "backtab",
}  # fmt: skip
_NAMES = {"\r": "enter", "\n": "enter", "\t": "tab", "\x7f": "backspace", "\x08": "backspace"}
_WINDOWS = {"H": "up", "P": "down", "M": "right", "K": "left", "G": "home", "O": "end", "I": "pageup", "Q": "pagedown"}


class Keys:
    """Parse the bytes of a terminal into names of keys; letters are themselves."""

    def __init__(self) -> None:
        self._decode = codecs.getincrementaldecoder("utf-8")("replace").decode
        self._rest = ""

    @property
    def is_escaped(self) -> bool:
        """Check whether an escape waits for the rest of its sequence."""
        return bool(self._rest)

    def feed(self, data: bytes) -> list[str]:
        """Return the keys that are complete."""
        text, self._rest = self._rest + self._decode(data), ""
        found: list[str] = []
        while text:
            if text[0] != "\x1b":
                letter, text = text[0], text[1:]
                name = _NAMES.get(letter, letter)
                if len(name) > 1 or name.isprintable():
                    found.append(name)
                continue
            end = _end_of_sequence(text)
            if end == 0:
                self._rest = text
                break
            name = _SEQUENCES.get(text[1:end], "")
            if name:
                found.append(name)
            text = text[end:]
        return found

    def flush(self) -> list[str]:
        """Return the key Esc for an escape without a sequence."""
        rest, self._rest = self._rest, ""
        return ["esc"] if rest == "\x1b" else []


def _end_of_sequence(text: str) -> int:
    """Return the length of the sequence at the beginning, 0 if it is not complete."""
    if len(text) == 1:
        return 0
    if text[1] == "O":
        return 3 if len(text) > 2 else 0
    if text[1] != "[":
        return 1  # another escape, or Alt and a letter: the escape is dropped
    for place in range(2, len(text)):
        if "@" <= text[place] <= "~":
            return place + 1
    return 0


class Terminal:
    """Fill the screen of a console. `keys` receives the names of keys and, after a change of size, "resize"."""

    def __init__(self, console: Console) -> None:
        self.console = console
        self.keys: asyncio.Queue[str] = asyncio.Queue()
        self._shown: list[str] = []
        self._size = (0, 0)

    @property
    def size(self) -> tuple[int, int]:
        """Return columns and lines."""
        width, height = self.console.size
        return max(LEAST[0], width), max(LEAST[1], height)

    @contextlib.contextmanager
    def opened(self) -> Iterator[None]:
        """Use the screen and the keyboard in the block, on a running loop; leave them as they were."""
        loop, task = asyncio.get_running_loop(), asyncio.current_task()
        assert task is not None
        with contextlib.ExitStack() as stack:
            self._write(ENTER)
            stack.callback(lambda: self._write(LEAVE))
            if sys.stdin.isatty():
                stack.enter_context(self._keyboard(loop))
            for name, act in (("SIGTERM", task.cancel), ("SIGHUP", task.cancel), ("SIGWINCH", self._resized)):
                _on_signal(stack, loop, name, act)
            yield

    def show(self, lines: Sequence[Text]) -> None:
        """Write the lines that differ from those on the screen."""
        size = self.size
        if size != self._size:
            self._size, self._shown = size, []
        width, height = size
        with self.console.capture() as captured:
            for line in lines[:height]:
                self.console.print(line, no_wrap=True, overflow="ellipsis", crop=True, width=width)
        new = captured.get().split("\n")[: min(height, len(lines))]
        new += [""] * (height - len(new))
        old = self._shown
        parts = [
            f"\x1b[{number};1H{line}\x1b[0m\x1b[K"
            for number, line in enumerate(new, 1)
            if number > len(old) or old[number - 1] != line
        ]
        if parts:
            clear = "" if old else "\x1b[2J"
            self._write(BEGIN + clear + "".join(parts) + END)
        self._shown = new

    def _resized(self) -> None:
        self.keys.put_nowait("resize")

    def _write(self, text: str) -> None:
        """Write to the terminal, also more than its buffer takes at once."""
        file = self.console.file
        file.write(text)
        file.flush()

    @contextlib.contextmanager
    def _keyboard(self, loop: asyncio.AbstractEventLoop) -> Iterator[None]:
        try:
            import termios
            import tty
        except ImportError:
            with _windows_keyboard(self.keys):
                yield
            return
        fd = sys.stdin.fileno()
        before = termios.tcgetattr(fd)
        keys, timer = Keys(), [loop.call_later(0, lambda: None)]

        def flush() -> None:
            for key in keys.flush():
                self.keys.put_nowait(key)

        def read() -> None:
            timer[0].cancel()
            data = os.read(fd, 1024)
            if not data:  # the terminal is gone
                loop.remove_reader(fd)
                self.keys.put_nowait("gone")
                return
            for key in keys.feed(data):
                self.keys.put_nowait(key)
            if keys.is_escaped:
                timer[0] = loop.call_later(ESCAPE_S, flush)

        def suspend() -> None:
            termios.tcsetattr(fd, termios.TCSADRAIN, before)
            self._write(LEAVE)
            os.kill(os.getpid(), signal.SIGSTOP)  # until `fg`
            tty.setcbreak(fd)
            self._write(ENTER)
            self._shown = []
            self.keys.put_nowait("resize")

        tty.setcbreak(fd)
        with contextlib.ExitStack() as stack:
            stack.callback(lambda: termios.tcsetattr(fd, termios.TCSADRAIN, before))
            loop.add_reader(fd, read)
            stack.callback(lambda: loop.remove_reader(fd))
            stack.callback(lambda: timer[0].cancel())
            _on_signal(stack, loop, "SIGTSTP", suspend)
            yield


def _on_signal(stack: contextlib.ExitStack, loop: asyncio.AbstractEventLoop, name: str, act: Callable[[], Any]) -> None:
    """Call `act` at a signal until the stack ends, where the system has it."""
    number = getattr(signal, name, None)
    if number is None:
        return
    try:
        loop.add_signal_handler(number, act)
    except (NotImplementedError, RuntimeError):  # Windows, or another thread than the main one
        return
    stack.callback(lambda: loop.remove_signal_handler(number))


@contextlib.contextmanager
def _windows_keyboard(keys: asyncio.Queue[str]) -> Iterator[None]:
    """Look at the keyboard of Windows a few times a second."""
    import msvcrt as found

    msvcrt: Any = found

    async def poll() -> None:
        while True:
            while msvcrt.kbhit():
                letter = msvcrt.getwch()
                if letter in "\x00\xe0":
                    name = _WINDOWS.get(msvcrt.getwch(), "")
                else:
                    name = "esc" if letter == "\x1b" else _NAMES.get(letter, letter)
                if name:
                    keys.put_nowait(name)
            await asyncio.sleep(POLL_S)

    task = asyncio.create_task(poll())
    try:
        yield
    finally:
        task.cancel()
