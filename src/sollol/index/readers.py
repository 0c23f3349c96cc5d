"""Readers, one per kind of file: from a path to its sections of text.

A section is the natural place of a passage: a page of a PDF, a row of a table, a line of JSON, or the file. A reader
yields sections lazily, raises Unreadable for a file that cannot be read, and calls `note` for a damaged part, so that
one bad page does not cost the other fifty.
"""

from __future__ import annotations

import csv
import io
import json
import logging
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

from sollol.files import open_regular
from sollol.index.decoding import Unreadable, clean, decode_page, open_text, slices
from sollol.index.extras import need
from sollol.index.html_text import visible_text

Note = Callable[[str], None]

HTML_LIMIT_BYTES = 64 * 1024 * 1024  # limit, since pages are read at once
LINE_LIMIT_CHARS = 16 * 1024 * 1024  # limit of a JSON line or CSV cell; a longer one means a broken file
_TEXT_FIELDS = ("text", "content", "body", "passage", "chunk", "page_content")


class Section(NamedTuple):
    """A part of a file.

    `unit` is "page", "row", "line" or ""; `number` counts from 1 (0 for none); `done` is the share of the file read
    after this section, 0 to 1 (0 if unknown).
    """

    unit: str
    number: int
    text: Iterable[str]
    done: float = 0.0


Reader = Callable[[Path, Note], Iterator[Section]]


def read_text(path: Path, note: Note) -> Iterator[Section]:
    """Yield a text file as one section."""
    with open_text(path) as file:
        yield Section("", 0, slices(file))


def read_html(path: Path, note: Note) -> Iterator[Section]:
    """Yield the visible text of a page as one section."""
    with open_regular(path) as file:
        data = file.read(HTML_LIMIT_BYTES + 1)
    if len(data) > HTML_LIMIT_BYTES:
        raise Unreadable(f"is larger than {HTML_LIMIT_BYTES // 2**20} MB, too much for one page of HTML")
    if not data.strip():
        raise Unreadable("is empty")
    if b"\0" in data and not data.startswith((b"\xff\xfe", b"\xfe\xff")):
        raise Unreadable("is not text (binary data)")
    yield Section("", 0, [clean(visible_text(decode_page(data)))])


def read_jsonl(path: Path, note: Note) -> Iterator[Section]:
    """Yield the text of each line."""
    size, read, bad = max(path.stat().st_size, 1), 0, _Counted("line", "not JSON with text", note)
    with open_text(path) as file:
        for number, line in enumerate(_bounded_lines(file), 1):
            read += len(line)
            if not line.strip():
                continue
            try:
                text = _text_of(json.loads(line))
            except (ValueError, RecursionError):
                text = ""
            if text.strip():
                yield Section("line", number, [clean(text)], min(read / size, 1.0))
            else:
                bad.add(number)
    bad.close()


def _bounded_lines(file: io.TextIOWrapper) -> Iterator[str]:
    while line := file.readline(LINE_LIMIT_CHARS):
        if len(line) == LINE_LIMIT_CHARS:
            raise Unreadable(f"has a line of more than {LINE_LIMIT_CHARS // 2**20} million characters")
        yield line


def _text_of(value: Any) -> str:
    """Return a line's text: the string itself, its field for text, or all its strings."""
    if isinstance(value, str):
        return value
    if isinstance(value, dict):
        for name in _TEXT_FIELDS:
            if isinstance(value.get(name), str):
                return str(value[name])
        return "\n".join(f"{key}: {item}" for key, item in value.items() if isinstance(item, str))
    return ""


def read_csv(path: Path, note: Note) -> Iterator[Section]:
    """Yield the text of each row."""
    csv.field_size_limit(LINE_LIMIT_CHARS)
    size, read = max(path.stat().st_size, 1), 0
    number, header = 0, None
    with open_text(path) as file:
        delimiter = _delimiter(file.read(8 * 1024))
        file.seek(0)
        try:
            for number, row in enumerate(csv.reader(file, delimiter=delimiter), 1):
                if number == 1 and _is_header(row):
                    header = row
                    continue
                read += sum(map(len, row)) + len(row)
                if text := _row_text(row, header):
                    yield Section("row", number, [clean(text)], min(read / size, 1.0))
        except csv.Error as error:
            note(f"is not CSV after row {number} ({error})")


def _delimiter(sample: str) -> str:
    try:
        return csv.Sniffer().sniff(sample, ",;\t|").delimiter
    except csv.Error:
        return ","


def _is_header(row: list[str]) -> bool:
    """Check for names of columns: complete, distinct, no numbers, none as long as a sentence."""
    names = [cell.strip() for cell in row]
    return (
        len(names) > 1
        and all(name and len(name) < 60 and not name[0].isdigit() for name in names)
        and len(set(names)) == len(names)
    )


def _row_text(row: list[str], header: list[str] | None) -> str:
    cells = [(i, cell.strip()) for i, cell in enumerate(row) if cell.strip()]
    if header is None:
        return ", ".join(cell for _, cell in cells)
    named = [(header[i].strip() if i < len(header) else "", cell) for i, cell in cells]
    return "\n".join(f"{name}: {cell}" if name else cell for name, cell in named)


def read_pdf(path: Path, note: Note) -> Iterator[Section]:
    """Yield the text of each page."""
    pypdf = need("pypdf")
    logging.getLogger("pypdf").setLevel(logging.CRITICAL)  # errors arrive as exceptions or empty pages
    if path.stat().st_size == 0:
        raise Unreadable("is empty")
    with open_regular(path) as file:
        try:
            reader = pypdf.PdfReader(file)
            locked = reader.is_encrypted and not reader.decrypt("")
            count = 0 if locked else len(reader.pages)
        except Exception as error:  # pypdf may raise anything for a damaged file
            raise Unreadable(f"is not a PDF that can be read ({_brief(error)})") from error
        if locked:
            raise Unreadable("is encrypted; decrypt it first (qpdf --decrypt --password=… IN.pdf OUT.pdf)")
        empty, bad = 0, _Counted("page", "damaged", note)
        for number in range(1, count + 1):
            try:
                text = clean(reader.pages[number - 1].extract_text())
            except Exception:
                bad.add(number)
                continue
            empty += not text.strip()
            yield Section("page", number, [text], number / count)
        bad.close()
        if empty == count and count:
            raise Unreadable("has pages without text (scanned?); recognise the text first (ocrmypdf IN.pdf OUT.pdf)")


class _Counted:
    """Report many bad parts of one file in one line."""

    def __init__(self, unit: str, what: str, note: Note) -> None:
        self._unit, self._what, self._note = unit, what, note
        self._count = self._first = 0

    def add(self, number: int) -> None:
        self._first = self._first or number
        self._count += 1

    def close(self) -> None:
        if self._count == 1:
            self._note(f"{self._unit} {self._first} is {self._what}")
        elif self._count:
            self._note(f"{self._count} {self._unit}s are {self._what} (the first is {self._unit} {self._first})")


def _brief(error: BaseException) -> str:
    text = " ".join(str(error).split()) or type(error).__name__
    return text if len(text) <= 100 else text[:97] + "..."


READERS: dict[str, Reader] = {
    ".txt": read_text,
    ".md": read_text,
    ".markdown": read_text,
    ".html": read_html,
    ".htm": read_html,
    ".jsonl": read_jsonl,
    ".ndjson": read_jsonl,
    ".csv": read_csv,
    ".pdf": read_pdf,
}
KINDS = ".txt .md .html .jsonl .csv .pdf"
