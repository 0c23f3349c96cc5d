"""Content of index files of every kind. Files are written beside their place, then renamed.

A reader that opens the file at any moment gets the old one or the new one, never a part.
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
    """Model, dimension and cut of a file. `cut` is None where the kind of file does not record it."""

    model: str
    dim: int
    cut: Cut | None = None


class Block(NamedTuple):
    """Some consecutive passages with their vectors, one row each."""

    passages: list[Passage]
    vectors: Vectors


class Content(Protocol):
    """The content of a file.

    Iterating (repeatedly) yields its blocks in order; `passages()` yields them without the vectors, which is faster.
    """

    count: int
    widths: tuple[int, int]  # lengths of the longest text and source, in characters

    @property
    def about(self) -> About:
        """Model, dimension and cut."""
        ...

    def __iter__(self) -> Iterator[Block]: ...
    def passages(self) -> Iterator[list[Passage]]:
        """Yield the passages without vectors."""
        ...


def digest(model: str, text: str) -> bytes:
    """Return the key of a vector: equal for the same text with the same model."""
    return hashlib.blake2b(f"{canonical_model(model)}\0{text}".encode(), digest_size=16).digest()


def kind_of(path: Path) -> ModuleType:
    """Return the module for the file's suffix.

    Raises:
        BadInput: The suffix is none of SUFFIXES.
    """
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
    """Return the model and the dimension of a file.

    Raises:
        BadInput: There is no such file, or it is no index.
    """
    with _named_errors(path):
        found: About = _existing(path).about(path)
        return found


def blocks(path: Path) -> Iterator[Block]:
    """Yield the blocks of a file."""
    with _named_errors(path):
        yield from _existing(path).blocks(path)


def _existing(path: Path) -> ModuleType:
    module = kind_of(path)
    if not path.is_file():
        raise BadInput(f"{path}: no such file")
    return module


@contextlib.contextmanager
def _named_errors(path: Path) -> Iterator[None]:
    try:
        yield
    except SollolError:
        raise
    except OSError as error:
        raise SollolError(f"{path} cannot be read: {error.strerror or error}") from error
    except Exception as error:  # a reader may raise anything for a damaged file
        raise NotAnIndex(f"{path} is not an index that `sollol embed` wrote, or it is damaged ({error})") from error


def write(path: Path, content: Content) -> None:
    """Write the file beside its place, synchronise it to the disk, and rename it."""
    try:
        with replacing(path) as beside:
            kind_of(path).write(beside, content)
    except OSError as error:
        raise SollolError(sentence(path, error)) from error


def in_blocks(rows: Iterable[tuple[Passage, Vectors]]) -> Iterator[Block]:
    """Yield rows as blocks of BLOCK_ROWS."""
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
