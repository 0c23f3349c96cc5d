"""`.jsonl`: one object a line with `text`, `source`, `unit`, `number`, `start`, `model`, `vector`.

For anything that reads JSON. Each line stands alone, so it carries the model. Numbers are written with nine
digits: as many as a float32 needs to come back exactly, and half of what a float64 would take.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import msgspec
import numpy as np

from sollol.cli.documents import Passage
from sollol.cli.index.format import About, Block, Content, NotAnIndex, Vectors, in_blocks


class _Line(msgspec.Struct):
    text: str
    source: str
    unit: str
    number: int
    start: int
    model: str
    vector: list[float]


def write(path: Path, content: Content) -> None:
    model, numbers = content.about.model, "[" + ", ".join(["%.9g"] * content.about.dim) + "]"
    with path.open("w", encoding="utf-8", newline="\n") as file:
        for block in content:
            for passage, vector in zip(block.passages, block.vectors.tolist(), strict=True):
                head = json.dumps(passage._asdict() | {"model": model}, ensure_ascii=False)
                file.write(f'{head[:-1]}, "vector": {numbers % tuple(vector)}}}\n')


def about(path: Path) -> About:
    for line in _lines(path):
        return About(line.model, len(line.vector))
    raise NotAnIndex(f"{path} is empty; it is not an index that `sollol embed` wrote")


def blocks(path: Path) -> Iterator[Block]:
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
    with path.open("rb") as file:
        for number, line in enumerate(file, 1):
            try:
                yield decode(line)
            except (msgspec.DecodeError, UnicodeDecodeError) as error:
                raise NotAnIndex(f"{path}, line {number}: not what `sollol embed` writes ({error})") from error
