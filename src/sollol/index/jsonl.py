"""`.jsonl`: one object a line with `text`, `source`, `unit`, `number`, `start`, `model`, `vector`, `check`.

For any reader of JSON. Each line is complete by itself, so it has the model. Numbers have nine digits: enough to
restore a float32 exactly, and half of a float64's.

`check` is the number of following lines, and a CRC-32 of the line, of that number, and of the `check` before: a
changed, lost, moved or repeated line is detected. A file without any `check` is accepted: older ones have none, and
users who edit a file remove them.
"""

from __future__ import annotations

import json
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Final

import msgspec
import numpy as np

from sollol.files import open_regular
from sollol.index.documents import Passage
from sollol.index.format import About, Block, Content, NotAnIndex, Vectors, in_blocks

_MARK: Final = b', "check": "'
_AGAIN: Final = "make it again with `sollol embed`, or restore it"


class _Line(msgspec.Struct, forbid_unknown_fields=True):
    text: str
    source: str
    unit: str
    number: int
    start: int
    model: str
    vector: list[float]
    check: str = ""


def write(path: Path, content: Content) -> None:
    """Write the content."""
    model, numbers = content.about.model, "[" + ", ".join(["%.9g"] * content.about.dim) + "]"
    check, left = "", content.count
    with path.open("wb") as file:
        for block in content:
            for passage, vector in zip(block.passages, block.vectors.tolist(), strict=True):
                head = json.dumps(passage._asdict() | {"model": model}, ensure_ascii=False)
                line, left = f'{head[:-1]}, "vector": {numbers % tuple(vector)}'.encode(), left - 1
                check = _check(line, left, check)
                file.write(b'%b%b%b"}\n' % (line, _MARK, check.encode()))


def _check(line: bytes, left: int, before: str) -> str:
    """Return the check of a line. `left`: number of following lines. `before`: check of the line before."""
    return f"{left}-{zlib.crc32(line, zlib.crc32(f'{left} {before}'.encode())):08x}"


def about(path: Path) -> About:
    """Return the model and the dimension."""
    for line in _lines(path):
        return About(line.model, len(line.vector))
    raise NotAnIndex(f"{path} is empty; it is not an index that `sollol embed` wrote")


def blocks(path: Path) -> Iterator[Block]:
    """Yield the blocks."""
    return in_blocks(_rows(path))


def _rows(path: Path) -> Iterator[tuple[Passage, Vectors]]:
    first: _Line | None = None
    for line in _lines(path):
        first = first or line
        if line.model != first.model or len(line.vector) != len(first.vector):
            raise NotAnIndex(f"{path} mixes models or dimensions: {first.model} and {line.model}")
        place = (line.source, line.unit, line.number, line.start)
        yield Passage(line.text, *place), np.array(line.vector, np.float32)


def _lines(path: Path) -> Iterator[_Line]:
    decode = msgspec.json.Decoder(_Line).decode
    before, checked, left = "", False, 0
    with open_regular(path) as file:
        for number, raw in enumerate(file, 1):
            try:
                line = decode(raw)
            except (msgspec.DecodeError, UnicodeDecodeError) as error:
                raise NotAnIndex(f"{path}, line {number}: not in the format of `sollol embed` ({error})") from error
            checked = checked or (number == 1 and bool(line.check))
            if checked or line.check:
                left = left - 1 if number > 1 else _count(line.check)
                if left < 0 or line.check != _check(raw.rpartition(_MARK)[0], left, before):
                    raise NotAnIndex(f"{path}, line {number} is damaged, or a line before it is missing; {_AGAIN}")
                before = line.check
            yield line
    if checked and left:
        raise NotAnIndex(f"{path} ends early: {left:,} lines are missing; {_AGAIN}")


def _count(check: str) -> int:
    """Return the number of following lines by the check of the first line, -1 if it is malformed."""
    count = check.partition("-")[0]
    return int(count) if count.isascii() and count.isdecimal() and len(count) < 16 else -1
