"""What an index file holds, whatever its kind, and how one comes to be: written beside, then renamed.

A reader that opens the file at any moment sees the old one or the new one, never half of one.
"""

from __future__ import annotations

import contextlib
import hashlib
from collections.abc import Iterable, Iterator
from pathlib import Path
from types import ModuleType
from typing import NamedTuple, Protocol

import numpy as np
import numpy.typing as npt

from sollol.core.types import canonical_model
from sollol.errors import BadInput, SollolError
from sollol.files import replacing, sentence
from sollol.index.chunks import Cut
from sollol.index.documents import Passage
from sollol.index.extras import need

Vectors = npt.NDArray[np.float32]
BLOCK_ROWS = 1024
SUFFIXES = (".npz", ".jsonl", ".parquet")


class NotAnIndex(BadInput):
    """The file was not written by `sollol embed`, or is damaged."""


class About(NamedTuple):
    """What the file as a whole says. `cut` is None where the kind of file does not record it."""

    model: str
    dim: int
    cut: Cut | None = None


class Block(NamedTuple):
    """Some consecutive passages with their vectors, one row each."""

    passages: list[Passage]
    vectors: Vectors


class Content(Protocol):
    """Everything that goes into a file. Iterating (again and again) gives its blocks in order; `passages()` gives
    them without the vectors, which is quicker."""

    count: int
    widths: tuple[int, int]  # the longest text and the longest source, in characters

    @property
    def about(self) -> About: ...
    def __iter__(self) -> Iterator[Block]: ...
    def passages(self) -> Iterator[list[Passage]]: ...


def digest(model: str, text: str) -> bytes:
    """What identifies a vector: the same text under the same model has the same one."""
    return hashlib.blake2b(f"{canonical_model(model)}\0{text}".encode(), digest_size=16).digest()


def kind_of(path: Path) -> ModuleType:
    """The module for the file's suffix, or BadInput."""
    suffix = path.suffix.lower()
    if suffix == ".npz":
        from sollol.index import npz

        return npz
    if suffix == ".jsonl":
        from sollol.index import jsonl

        return jsonl
    if suffix == ".parquet":
        need("pyarrow.parquet")
        from sollol.index import parquet

        return parquet
    raise BadInput(f"{path}: the name of an index ends in {', '.join(SUFFIXES)}")


def about(path: Path) -> About:
    """The model and the dimension. Raises BadInput where there is no such file, or another one."""
    with _told_reading(path):
        found: About = _existing(path).about(path)
        return found


def blocks(path: Path) -> Iterator[Block]:
    with _told_reading(path):
        yield from _existing(path).blocks(path)


def _existing(path: Path) -> ModuleType:
    module = kind_of(path)
    if not path.is_file():
        raise BadInput(f"{path}: no such file")
    return module


@contextlib.contextmanager
def _told_reading(path: Path) -> Iterator[None]:
    try:
        yield
    except SollolError:
        raise
    except OSError as error:
        raise SollolError(f"{path} cannot be read: {error.strerror or error}") from error
    except Exception as error:  # a damaged file can make its reader raise anything
        raise NotAnIndex(f"{path} is not an index that `sollol embed` wrote, or it is damaged ({error})") from error


def write(path: Path, content: Content) -> None:
    """Write the file beside its place, make sure it is on the disk, then rename it there."""
    try:
        with replacing(path) as beside:
            kind_of(path).write(beside, content)
    except OSError as error:
        raise SollolError(sentence(path, error)) from error


def in_blocks(rows: Iterable[tuple[Passage, Vectors]]) -> Iterator[Block]:
    passages: list[Passage] = []
    vectors: list[Vectors] = []
    for passage, vector in rows:
        passages.append(passage)
        vectors.append(vector)
        if len(passages) == BLOCK_ROWS:
            yield Block(passages, np.stack(vectors))
            passages, vectors = [], []
    if passages:
        yield Block(passages, np.stack(vectors))
