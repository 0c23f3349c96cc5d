"""Draw lists of rows as columns that fit a terminal: sorted, filtered, and with a cursor on one row."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

from rich.cells import cell_len
from rich.text import Text

from sollol.cli.console import one_line

Row = Mapping[str, Any]
GAP = 2  # spaces between columns
FLEXIBLE_LEAST = 12  # cells of the last column, before other columns are left out
CURSOR = "reverse"


class Column(NamedTuple):
    """Describe one column. On a narrow terminal the columns with the highest rank are left out first.

    Attributes:
        cell: Return the text of a row.
        key: Return the value by which rows are sorted; None sorts by the text.
    """

    name: str
    cell: Callable[[Row], str | Text]
    key: Callable[[Row], Any] | None = None
    right: bool = False
    rank: int = 0
    title: str = ""  # where it is not the name


class Listing(NamedTuple):
    """Describe one list of a frame. `key` returns what identifies a row, `empty` replaces a list without rows."""

    name: str
    columns: tuple[Column, ...]
    rows: Callable[[Row], Sequence[Row]]
    key: Callable[[Row], object]
    empty: str


class Order(NamedTuple):
    """Sort by the column with this number; None keeps the order of the frame."""

    column: int | None = None
    descending: bool = False


class Drawn(NamedTuple):
    """Hold the rows of a listing in the order in which they are shown, with their cells."""

    listing: Listing
    rows: list[Row]
    cells: list[list[Text]]
    total: int  # before the filter


def arrange(listing: Listing, frame: Row, order: Order = Order(), words: str = "") -> Drawn:
    """Return the rows of a listing that contain all of `words`, in order."""
    rows = listing.rows(frame)
    wanted = words.casefold().split()
    made = [(row, [_text(column.cell(row)) for column in listing.columns]) for row in rows]
    if wanted:
        made = [(row, cells) for row, cells in made if _matches(cells, wanted)]
    if order.column is not None:
        column, number = listing.columns[order.column], order.column
        read = column.key

        def key(item: tuple[Row, list[Text]]) -> tuple[int, Any]:
            value = item[1][number].plain.casefold() if read is None else read(item[0])
            return (0, 0) if value is None else (1, value)

        made.sort(key=key, reverse=order.descending)
    return Drawn(listing, [row for row, _ in made], [cells for _, cells in made], len(rows))


def _matches(cells: Sequence[Text], wanted: Sequence[str]) -> bool:
    text = "\n".join(cell.plain for cell in cells).casefold()
    return all(word in text for word in wanted)


def _text(cell: str | Text) -> Text:
    return cell if isinstance(cell, Text) else Text(one_line(cell))


def lines(
    drawn: Drawn,
    width: int,
    height: int,
    *,
    offset: int = 0,
    cursor: int | None = None,
    focused: bool = False,
    order: Order = Order(),
    widths: dict[tuple[str, str], int] | None = None,
) -> list[Text]:
    """Return the header and up to `height` lines of rows.

    Args:
        offset: The number of the first row that is shown.
        cursor: The number of the selected row.
        widths: The widest cells so far, by listing and column, kept so that columns do not move from frame to frame.
    """
    listing = drawn.listing
    if not drawn.rows:
        empty = f"{listing.name}: nothing matches the filter" if drawn.total else listing.empty
        return [Text(one_line(empty), style="bold dim" if focused else "dim", overflow="ellipsis", no_wrap=True)]
    shown = drawn.cells[offset : offset + height]
    rest = len(drawn.rows) - len(shown)
    if rest and len(shown) == height:
        shown = shown[: height - 1]
        rest = len(drawn.rows) - len(shown)
    titles = [_title(column, number, order) for number, column in enumerate(listing.columns)]
    widest = [
        max(cell_len(titles[number]), *(row[number].cell_len for row in shown), 0)
        for number in range(len(listing.columns))
    ]
    if widths is not None:
        for number, column in enumerate(listing.columns):
            name = (listing.name, column.name)
            widest[number] = widths[name] = max(widest[number], widths.get(name, 0))
    kept = _fitting(listing.columns, widest, width)
    style = "bold cyan" if focused else "bold"
    found = [_line([Text(titles[n], style=style) for n in kept], kept, listing.columns, widest, width)]
    for number, cells in enumerate(shown, offset):
        line = _line([cells[n] for n in kept], kept, listing.columns, widest, width)
        if number == cursor:
            line = Text(line.plain.ljust(width - line.cell_len + len(line.plain)), style=CURSOR)
        found.append(line)
    if rest:
        found.append(Text(f"and {rest:,} more", style="dim"))
    return found


def _title(column: Column, number: int, order: Order) -> str:
    name = column.title or column.name
    return name + ("" if order.column != number else " ▼" if order.descending else " ▲")


def _fitting(columns: Sequence[Column], widest: Sequence[int], width: int) -> list[int]:
    """Return the numbers of the columns that fit; the last one may be cut."""
    kept = list(range(len(columns)))
    while True:
        last = kept[-1]
        needed = sum(widest[n] + GAP for n in kept[:-1]) + min(widest[last], FLEXIBLE_LEAST)
        worst = max(kept, key=lambda n: (columns[n].rank, n))
        if needed <= width or columns[worst].rank == 0:
            return kept
        kept.remove(worst)


def _line(
    cells: Sequence[Text], kept: Sequence[int], columns: Sequence[Column], widest: Sequence[int], width: int
) -> Text:
    line = Text(no_wrap=True, overflow="ellipsis")
    for place, (cell, number) in enumerate(zip(cells, kept, strict=True)):
        is_last = place == len(kept) - 1
        made = cell.copy()
        if columns[number].right:
            made.pad_left(max(0, widest[number] - made.cell_len))
        elif not is_last:
            made.pad_right(max(0, widest[number] - made.cell_len))
        line.append_text(made)
        if not is_last:
            line.append(" " * GAP)
    line.truncate(width, overflow="ellipsis")
    return line
