"""Log of finished vectors, `FILE.partial`, with which an interrupted run continues and embeds nothing twice.

One header line (JSON), then records of one size: a 16-byte key of (model, text), the vector as little-endian float32,
and a CRC-32 of both. Every record is passed to the operating system at once, so a killed process loses none; every few
seconds it is synchronised to the disk, so a power cut loses little. The checksum finds records that a crash damaged:
the log is cut there.

A record is found by its text, not by its position, since documents may be added, changed or moved in between. Memory is
about 180 bytes per vector, for any dimension.
"""

from __future__ import annotations

import contextlib
import json
import os
import sys
import time
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from sollol.core.types import canonical_model
from sollol.errors import BadInput, SollolError
from sollol.files import sentence
from sollol.index.chunks import Cut
from sollol.index.format import About, Vectors

_MAGIC = b'{"sollol_partial": 1, '
_DIGEST, _CHECK = 16, 4
_SYNC_EVERY_S = 5.0
_READ_BYTES = 1 << 20
_WINDOWS = os.name == "nt"


class Partial:
    """Vectors by the digest of their text. A context manager.

    The file is locked while it is open, and has no content before its first record.
    """

    def __init__(self, path: Path, model: str, cut: Cut, *, discard: bool = False) -> None:
        self.path, self.model, self.cut = path, model, cut
        self.dim = 0
        self._records: dict[bytes, int] = {}
        self._begin = self._size = 0  # offset of the first record; size of a record
        self._synced_at = time.monotonic()
        with self._named_errors():
            self._file = open(path, "a+b", buffering=0)  # noqa: SIM115 (closed by close())
        try:
            _lock(self._file, path)
            with self._named_errors():
                self._load(discard)
        except BaseException:
            self._file.close()
            raise

    def __enter__(self) -> Partial:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()

    def __len__(self) -> int:
        return len(self._records)

    def __contains__(self, key: bytes) -> bool:
        return key in self._records

    def add(self, key: bytes, vector: Any) -> None:
        """Append the vector of a text."""
        row = np.asarray(vector, "<f4")
        if not self.dim:
            self._write_head(len(row))
        self.check_dim(len(row))
        if not np.isfinite(row).all():
            raise SollolError(
                f"model {self.model} returned a vector with numbers that are not finite; expected finite ones"
            )
        body = key + row.tobytes()
        self._append(body + zlib.crc32(body).to_bytes(_CHECK, "little"))
        self._records[key] = len(self._records)

    def check_dim(self, dim: int) -> None:
        """Check that a dimension equals the one of the log.

        Raises:
            BadInput: It differs.
        """
        if self.dim and dim != self.dim:
            raise BadInput(
                f"model {self.model} now returns vectors of {dim} numbers, but the kept ones have {self.dim}: it is "
                "another model with the same name. Use --force to embed everything again"
            )

    def vector(self, key: bytes) -> Vectors:
        """Return the vector of a key."""
        self._file.seek(self._begin + self._records[key] * self._size + _DIGEST)
        return np.frombuffer(self._file.read(self.dim * 4), "<f4")

    def close(self, *, discard: bool = False) -> None:
        """Close the file; delete it if `discard` is set or it is empty."""
        if self._file.closed:
            return
        remove = discard or not self._records
        with self._named_errors():
            try:
                if not remove:
                    os.fsync(self._file.fileno())
                if remove and not _WINDOWS:  # while locked, so that no log of another run is deleted
                    self.path.unlink(missing_ok=True)
            finally:
                self._file.close()
            if remove and _WINDOWS:
                self.path.unlink(missing_ok=True)

    def _append(self, data: bytes) -> None:
        with self._named_errors():
            while data:  # an unbuffered write may be partial
                data = data[self._file.write(data) :]
            if time.monotonic() - self._synced_at > _SYNC_EVERY_S:
                os.fsync(self._file.fileno())
                self._synced_at = time.monotonic()

    @contextlib.contextmanager
    def _named_errors(self) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            raise SollolError(sentence(self.path, error)) from error

    def _write_head(self, dim: int) -> None:
        metadata = {"model": self.model, "dim": dim, "chunk_size": self.cut.size, "overlap": self.cut.overlap}
        head = _MAGIC + json.dumps(metadata).encode()[1:] + b"\n"
        self._append(head)
        self._set_sizes(dim, len(head))

    def _set_sizes(self, dim: int, begin: int) -> None:
        self.dim, self._begin, self._size = dim, begin, _DIGEST + dim * 4 + _CHECK

    def _load(self, discard: bool) -> None:
        self._file.seek(0)
        head = self._file.read(64 * 1024).partition(b"\n")
        if not head[0].startswith(_MAGIC[: len(head[0])]):
            raise BadInput(f"{self.path} exists and is no log of `sollol embed`; move it away")
        found = _about(head[0]) if head[1] else None
        if discard or found is None:  # empty, or with an incomplete header
            self._file.truncate(0)
            return
        if canonical_model(found.model) != canonical_model(self.model):
            raise BadInput(
                f"{self.path} keeps an interrupted run with the model {found.model}, not {self.model}. Continue "
                "with that model, or discard it with --force"
            )
        self._set_sizes(found.dim, len(head[0]) + 1)
        self._records = {key: row for row, key in enumerate(self._whole_records())}
        self._file.truncate(self._begin + len(self._records) * self._size)

    def _whole_records(self) -> Iterator[bytes]:
        """Yield the digests of the records before the first damaged one."""
        self._file.seek(self._begin)
        rows = max(_READ_BYTES // self._size, 1)
        while data := _read(self._file, rows * self._size):
            for at in range(0, len(data), self._size):
                record = data[at : at + self._size]
                check = int.from_bytes(record[-_CHECK:], "little")
                if len(record) < self._size or zlib.crc32(record[:-_CHECK]) != check:
                    return
                yield record[:_DIGEST]


def _read(file: Any, size: int) -> bytes:
    """Return up to `size` bytes; a single unbuffered read may return fewer."""
    pieces = []
    while size and (piece := file.read(size)):
        pieces.append(piece)
        size -= len(piece)
    return b"".join(pieces)


def _about(head: bytes) -> About | None:
    try:
        metadata = json.loads(head)
        return About(metadata["model"], metadata["dim"], Cut(metadata["chunk_size"], metadata["overlap"]))
    except (ValueError, KeyError, TypeError):
        return None


def _lock(file: Any, path: Path) -> None:
    """Lock the file: two runs with the same file would damage each other's log."""
    if sys.platform == "win32":
        return
    import fcntl

    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        raise SollolError(f"another `sollol embed` is writing {path}; wait for it or stop it") from None
    except OSError:  # a file system without locks
        return
