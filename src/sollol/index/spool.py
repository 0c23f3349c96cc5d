"""Passages of this run, in order, on the disk until their vectors arrive.

Vectors arrive in any order and the file is written in the order of the documents; keeping every text in memory would
limit the collection to the memory. The file has no name on POSIX, so a killed run leaves none.
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
    """Append passages with `add`; then this is the content of an index file, for passages with a vector in `log`."""

    def __init__(self, folder: Path, log: Partial) -> None:
        self._folder = folder
        with self._named_errors():
            self._file = tempfile.TemporaryFile(dir=folder, prefix=".sollol-")  # noqa: SIM115 (closed by close())
        self._log = log
        self.total = 0
        self.count = 0  # passages with a vector; set by the caller
        self.widths = (0, 0)

    @property
    def about(self) -> About:
        """Model, dimension and cut."""
        return About(self._log.model, self._log.dim, self._log.cut)

    def add(self, key: bytes, passage: Passage) -> None:
        """Append a passage."""
        with self._named_errors():
            self._file.write(msgspec.json.encode((key.hex(), *passage)) + b"\n")
        text, source = self.widths
        self.widths = (max(text, len(passage.text)), max(source, len(passage.source)))
        self.total += 1

    def close(self) -> None:
        """Close and delete the file."""
        with contextlib.suppress(OSError):  # unwritten data is no longer needed
            self._file.close()

    @contextlib.contextmanager
    def _named_errors(self) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            raise SollolError(sentence(self._folder / ".sollol-*", error)) from error

    def without_vector(self) -> list[Passage]:
        """Return the passages without a vector."""
        return [passage for key, passage in self._rows() if key not in self._log]

    def passages(self) -> Iterator[list[Passage]]:
        """Yield the passages with a vector."""
        rows = (passage for key, passage in self._rows() if key in self._log)
        while block := list(islice(rows, BLOCK_ROWS)):
            yield block

    def __iter__(self) -> Iterator[Block]:
        return in_blocks((p, self._log.vector(key)) for key, p in self._rows() if key in self._log)

    def _rows(self) -> Iterator[tuple[bytes, Passage]]:
        with self._named_errors():
            self._file.seek(0)  # flushes the buffer
        decode = msgspec.json.Decoder(tuple[str, str, str, str, int, int]).decode
        for line in self._file:
            key, *fields = decode(line)
            yield bytes.fromhex(key), Passage._make(fields)
