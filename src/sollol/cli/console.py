"""Print results on stdout and everything else on stderr, for all commands.

Thus `sollol embed … --json | jq` works while a progress bar runs. Text from files, nodes or users is never parsed as
markup.
"""

from __future__ import annotations

import contextlib
import json
import logging
import os
import sys
import time
import traceback
import warnings
from collections.abc import Iterable, Sequence
from typing import Any, TextIO

from rich.console import Console, ConsoleOptions, RenderableType
from rich.segment import Segment
from rich.table import Table
from rich.text import Text

from sollol.errors import AddressUnavailable, BadInput, SollolError
from sollol.printable import one_line as one_line
from sollol.printable import printable as printable
from sollol.printable import printable_json

EXIT_FAILED = 1
EXIT_USAGE = 2
EXIT_BUSY = 75  # EX_TEMPFAIL of sysexits.h: the address is in use, perhaps for a short time
EXIT_INTERRUPTED = 130
_PIPE_WIDTH = 160  # a pipe has no width, and rich would cut long names at 80


class Stopped(SollolError):
    """Report that the user pressed Ctrl-C; the message describes how to continue."""


class Shown(Console):
    """Escape terminal commands in all text of a console, also in tables and live displays."""

    def render(self, renderable: RenderableType, options: ConsoleOptions | None = None) -> Iterable[Segment]:
        """Yield the segments of a renderable with their text escaped."""
        for segment in super().render(renderable, options):
            if segment.control:
                yield segment
            else:
                yield Segment(printable(segment.text), segment.style)


def stdout() -> Console:
    """Return the console of standard output."""
    return _console(stderr=False)


def stderr() -> Console:
    """Return the console of standard error."""
    return _console(stderr=True)


_consoles: dict[bool, tuple[object, Console]] = {}


def _console(*, stderr: bool) -> Console:
    """Return the one console of a stream, so that lines appear above a live display of it."""
    stream = sys.stderr if stderr else sys.stdout
    stream = getattr(stream, "rich_proxied_file", stream)
    known, console = _consoles.get(stderr, (None, None))
    if console is None or known is not stream:
        width = None if stream.isatty() else _PIPE_WIDTH
        console = Shown(stderr=stderr, highlight=False, markup=False, emoji=False, width=width)
        _consoles[stderr] = (stream, console)
    return console


def say(line: str = "") -> None:
    """Print a line of the result."""
    stdout().print(line, soft_wrap=True)


PLAIN, TIMED, JOURNAL = "plain", "timed", "journal"  # forms of lines on stderr
_SEVERITIES = {logging.DEBUG: 7, logging.INFO: 6, logging.WARNING: 4, logging.ERROR: 3}  # of syslog


class Messages:
    """Hold the form and the least level of lines on stderr, of the whole process."""

    form = ""  # "": JOURNAL if stderr is a stream of journald, else PLAIN
    level = logging.DEBUG


def is_plain() -> bool:
    """Check whether lines on stderr are for a person, and not for a log."""
    if not Messages.form:
        Messages.form = JOURNAL if _is_journal() else PLAIN
    return Messages.form == PLAIN


def _is_journal() -> bool:
    """Check whether journald reads stderr: it names device and inode of its stream."""
    try:
        found = os.fstat(sys.stderr.fileno())
    except (OSError, ValueError, AttributeError):
        return False
    return os.environ.get("JOURNAL_STREAM") == f"{found.st_dev}:{found.st_ino}"


def _print_message(level: int, text: str, label: tuple[str, str] = ("", "")) -> None:
    """Print a message on stderr: with its label for a person, severity for journald, or time for a file."""
    if level < Messages.level:
        return
    if is_plain():
        stderr().print(Text.assemble(label, text) if label[0] else text, soft_wrap=True)
        return
    if Messages.form == JOURNAL:
        begin = f"<{_SEVERITIES.get(level, 3)}>"
    else:
        begin = f"{time.strftime('%Y-%m-%dT%H:%M:%S%z')} {logging.getLevelName(level).lower()} "
    print("\n".join(begin + line for line in printable(text).split("\n")), file=sys.stderr, flush=True)


def note(line: str) -> None:
    """Print a line about the work on stderr."""
    _print_message(logging.INFO, line)


def print_json(value: Any) -> None:
    """Print a value as indented JSON."""
    print(printable_json(json.dumps(value, indent=2, ensure_ascii=False)))


def table(*columns: str, right: Sequence[str] = ()) -> Table:
    """Return an empty table in the style of all commands; `right` names the columns of numbers."""
    made = Table(box=None, pad_edge=False, header_style="bold", padding=(0, 2, 0, 0))
    for name in columns:
        made.add_column(name, justify="right" if name in right else "left", overflow="fold")
    return made


def exit_code(error: BaseException) -> int:
    """Return the exit code for an error."""
    if isinstance(error, (Stopped, KeyboardInterrupt)):
        return EXIT_INTERRUPTED
    if isinstance(error, AddressUnavailable) and error.is_passing:
        return EXIT_BUSY
    return EXIT_USAGE if isinstance(error, BadInput) else EXIT_FAILED


def tell_error(error: BaseException) -> None:
    """Print an error and its notes on stderr."""
    if isinstance(error, KeyboardInterrupt):
        note("Interrupted.")
        return
    head = ("Interrupted: ", "bold") if isinstance(error, Stopped) else ("Error: ", "bold red")
    notes = getattr(error, "__notes__", ())
    _print_message(logging.ERROR, "\n".join([str(error), *notes]), head)


def tell_failure(error: OSError) -> None:
    """Print an error of the operating system on stderr, such as a full disk or an unreadable file."""
    where = f"{error.filename}: " if error.filename is not None else ""
    with contextlib.suppress(OSError):  # stderr may be on the same disk
        note(f"Error: {where}{error.strerror or error}")
    try:
        sys.stdout.flush()
    except OSError:  # the rest of its buffer would fail again at the exit
        with contextlib.suppress(OSError):
            sys.stdout.close()


def tell_warnings() -> None:
    """Print warnings as one line for a user, without a place in the source."""

    def show(
        message: Warning | str,
        category: type[Warning],
        filename: str,
        lineno: int,
        file: TextIO | None = None,
        line: str | None = None,
    ) -> None:
        warn(str(message))

    warnings.showwarning = show
    if logging.lastResort is not None:  # prints log records on stderr if no handler is installed
        logging.lastResort.setFormatter(ShownFormatter("%(message)s"))


class ShownFormatter(logging.Formatter):
    """Escape terminal commands in log lines."""

    def format(self, record: logging.LogRecord) -> str:
        """Return the escaped line of a record."""
        return printable(super().format(record))


def warn(message: str) -> None:
    """Print a warning on stderr."""
    _print_message(logging.WARNING, message, ("Warning: ", "bold yellow"))


class MessageHandler(logging.Handler):
    """Print log records as messages on stderr."""

    def emit(self, record: logging.LogRecord) -> None:
        """Print a record, with its traceback if it has one."""
        text = record.getMessage()
        if record.exc_info:
            text += "\n" + "".join(traceback.format_exception(*record.exc_info)).rstrip()
        least = max((level for level in _SEVERITIES if level <= record.levelno), default=logging.DEBUG)
        _print_message(least, text)


def log_messages(level: str, form: str) -> None:
    """Print log records and messages from this level on, in this form ("auto": as `is_plain` finds)."""
    Messages.form = "" if form == "auto" else form
    Messages.level = logging.getLevelNamesMapping()[level.upper()]
    root = logging.getLogger()
    for handler in [handler for handler in root.handlers if isinstance(handler, MessageHandler)]:
        root.removeHandler(handler)
    root.addHandler(MessageHandler())
    logging.getLogger("sollol").setLevel(Messages.level)


def plural(count: int, noun: str) -> str:
    """Return a count with its noun: `1 file`, `2 files`, `1,234 passages`."""
    return f"{count:,} {noun}" if count == 1 else f"{count:,} {noun}s"


def millis(value: float | None) -> str:
    """Return milliseconds as text: `812 ms`, `3.4 s`, `2 min 05 s`; `-` for None."""
    if value is None:
        return "-"
    return f"{value:.0f} ms" if value < 999.5 else seconds(value / 1000)


def size(count: int) -> str:
    """Return bytes as Ollama prints them: `274 MB`, `2.0 GB`; `-` for zero."""
    if count <= 0:
        return "-"
    if count < 1e6:
        return f"{count / 1e3:.0f} kB"
    return f"{count / 1e9:.1f} GB" if count >= 1e9 else f"{count / 1e6:.0f} MB"


def seconds(value: float) -> str:
    """Return a duration as text: `0.8 s`, `42 s`, `3 min 05 s`, `2 h 10 min`."""
    if value < 9.95:
        return f"{value:.1f} s"
    whole = round(value)
    if whole < 60:
        return f"{whole} s"
    minutes, rest = divmod(whole, 60)
    if minutes < 60:
        return f"{minutes} min {rest:02} s"
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes:02} min"
