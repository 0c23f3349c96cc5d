"""Draw the progress of a batch on stderr."""

from __future__ import annotations

from collections.abc import Callable


def progress_bar(shown: bool, what: str, total: int | None) -> tuple[Callable[[int], None], Callable[[], None]]:
    """Return functions that advance a bar by a number of items, and end it; without effect unless `shown`."""
    if not shown:
        return (lambda count: None), (lambda: None)
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    bar = Progress(
        TextColumn(what), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn(), console=Console(stderr=True)
    )
    task = bar.add_task(what, total=total)
    bar.start()
    return (lambda count: bar.advance(task, count)), bar.stop
