"""The passages of this run, in order, waiting on the disk for their vectors.

Vectors come back in any order and the file is written in the order of the documents; holding every text in memory
until then would bound the collection by the memory. The spool has no name on POSIX: a killed run leaves nothing.
"""

from __future__ import annotations

import contextlib
import tempfile
from collections.abc import Iterator
from itertools import islice
from pathlib import Path

import msgspec

from sollol.errors import SollolError
from sollol.files import sentence
from sollol.index.documents import Passage
from sollol.index.format import BLOCK_ROWS, About, Block, in_blocks
from sollol.index.partial import Partial


class Spool:
    """Append with `add`; then it is the content of an index file, as far as `log` has vectors."""

    def __init__(self, folder: Path, log: Partial) -> None:
        self._folder = folder
        with self._told():
            self._file = tempfile.TemporaryFile(dir=folder, prefix=".sollol-")  # noqa: SIM115 (closed by close())
        self._log = log
        self.total = 0
        self.count = 0  # of those with a vector; whoever knows it sets it
        self.widths = (0, 0)

    @property
    def about(self) -> About:
        return About(self._log.model, self._log.dim, self._log.cut)

    def add(self, key: bytes, passage: Passage) -> None:
        with self._told():
            self._file.write(msgspec.json.encode((key.hex(), *passage)) + b"\n")
        text, source = self.widths
        self.widths = (max(text, len(passage.text)), max(source, len(passage.source)))
        self.total += 1

    def close(self) -> None:
        with contextlib.suppress(OSError):  # what is not on the disk yet is not needed any more
            self._file.close()

    @contextlib.contextmanager
    def _told(self) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            raise SollolError(sentence(self._folder / ".sollol-*", error)) from error

    def without_vector(self) -> list[Passage]:
        """The passages that got no vector."""
        return [passage for key, passage in self._rows() if key not in self._log]

    def passages(self) -> Iterator[list[Passage]]:
        rows = (passage for key, passage in self._rows() if key in self._log)
        while block := list(islice(rows, BLOCK_ROWS)):
            yield block

    def __iter__(self) -> Iterator[Block]:
        return in_blocks((p, self._log.vector(key)) for key, p in self._rows() if key in self._log)

    def _rows(self) -> Iterator[tuple[bytes, Passage]]:
        with self._told():
            self._file.seek(0)  # writes what is still in memory
        decode = msgspec.json.Decoder(tuple[str, str, str, str, int, int]).decode
        for line in self._file:
            key, *fields = decode(line)
            yield bytes.fromhex(key), Passage._make(fields)
