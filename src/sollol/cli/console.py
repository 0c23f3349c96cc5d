"""What every command says, and where: results on stdout, everything else on stderr.

So `sollol embed … --json | jq` works while a progress bar runs. Text that came from files, nodes or users is
printed as it is, never read as markup.
"""

from __future__ import annotations

import contextlib
import json
import logging
import sys
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
EXIT_BUSY = 75  # EX_TEMPFAIL of sysexits.h: the address is taken, which may pass
EXIT_INTERRUPTED = 130
_PIPE_WIDTH = 160  # a pipe has no width; narrower, and rich would cut long names


class Stopped(SollolError):
    """The user pressed Ctrl-C; the message says how to continue."""


class Shown(Console):
    """A console on which text of others commands nothing, wherever it stands: in a line, a table or a live display."""

    def render(self, renderable: RenderableType, options: ConsoleOptions | None = None) -> Iterable[Segment]:
        for segment in super().render(renderable, options):
            if segment.control:
                yield segment
            else:
                yield Segment(printable(segment.text), segment.style)


def stdout() -> Console:
    return _console(stderr=False)


def stderr() -> Console:
    return _console(stderr=True)


_consoles: dict[bool, tuple[object, Console]] = {}


def _console(*, stderr: bool) -> Console:
    """One for each stream: a line that is printed on a live display's own console appears above it."""
    stream = sys.stderr if stderr else sys.stdout
    stream = getattr(stream, "rich_proxied_file", stream)
    known, console = _consoles.get(stderr, (None, None))
    if console is None or known is not stream:
        width = None if stream.isatty() else _PIPE_WIDTH
        console = Shown(stderr=stderr, highlight=False, markup=False, emoji=False, width=width)
        _consoles[stderr] = (stream, console)
    return console


def say(line: str = "") -> None:
    """A line of the result."""
    stdout().print(line, soft_wrap=True)


def note(line: str) -> None:
    """A line about the work, on stderr."""
    stderr().print(line, soft_wrap=True)


def print_json(value: Any) -> None:
    print(printable_json(json.dumps(value, indent=2, ensure_ascii=False)))


def table(*columns: str, right: Sequence[str] = ()) -> Table:
    """An empty table in the one look that all commands share; `right` names the columns of numbers."""
    made = Table(box=None, pad_edge=False, header_style="bold", padding=(0, 2, 0, 0))
    for name in columns:
        made.add_column(name, justify="right" if name in right else "left", overflow="fold")
    return made


def exit_code(error: BaseException) -> int:
    if isinstance(error, (Stopped, KeyboardInterrupt)):
        return EXIT_INTERRUPTED
    if isinstance(error, AddressUnavailable) and error.is_passing:
        return EXIT_BUSY
    return EXIT_USAGE if isinstance(error, BadInput) else EXIT_FAILED


def tell_error(error: BaseException) -> None:
    """One clear message on stderr, with the notes that were added on the way up."""
    if isinstance(error, KeyboardInterrupt):
        note("Interrupted.")
        return
    head = ("Interrupted: ", "bold") if isinstance(error, Stopped) else ("Error: ", "bold red")
    notes = getattr(error, "__notes__", ())
    stderr().print(Text.assemble(head, "\n".join([str(error), *notes])), soft_wrap=True)


def tell_failure(error: OSError) -> None:
    """One sentence on stderr for what the system refused: a full disk, a file that cannot be read."""
    where = f"{error.filename}: " if error.filename is not None else ""
    with contextlib.suppress(OSError):  # stderr may be on the same disk
        note(f"Error: {where}{error.strerror or error}")
    try:
        sys.stdout.flush()
    except OSError:  # what it still holds would be written at the end, and fail there once more
        with contextlib.suppress(OSError):
            sys.stdout.close()


def tell_warnings() -> None:
    """Show warnings as a line for a user, not as a place in the source."""

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
    if logging.lastResort is not None:  # what is logged goes to stderr where nobody has set it up otherwise
        logging.lastResort.setFormatter(ShownFormatter("%(message)s"))


class ShownFormatter(logging.Formatter):
    """Writes log lines in which text of others commands nothing."""

    def format(self, record: logging.LogRecord) -> str:
        return printable(super().format(record))


def warn(message: str) -> None:
    """A line on stderr about what may make the result worth less."""
    stderr().print(Text.assemble(("Warning: ", "bold yellow"), message), soft_wrap=True)


def plural(count: int, noun: str) -> str:
    """`1 file`, `2 files`, `1,234 passages`."""
    return f"{count:,} {noun}" if count == 1 else f"{count:,} {noun}s"


def millis(value: float | None) -> str:
    """Milliseconds at a glance: `812 ms`, `3.4 s`, `2 min 05 s`; `-` for none."""
    if value is None:
        return "-"
    return f"{value:.0f} ms" if value < 999.5 else seconds(value / 1000)


def size(count: int) -> str:
    """Bytes as Ollama shows them: `274 MB`, `2.0 GB`; `-` for none."""
    if count <= 0:
        return "-"
    return f"{count / 1e9:.1f} GB" if count >= 1e9 else f"{count / 1e6:.0f} MB"


def seconds(value: float) -> str:
    """A duration at a glance: `0.8 s`, `42 s`, `3 min 05 s`, `2 h 10 min`."""
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
