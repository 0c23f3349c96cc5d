"""The log of finished vectors, `FILE.partial`: why an interrupted run continues and embeds nothing twice.

One header line (JSON), then records of one size: 16 bytes that identify (model, text), the vector as little-endian
float32, and a CRC-32 of both. Every record is handed to the operating system as soon as it exists, so a killed
process loses none; every few seconds the disk is made to have it, so a power cut loses little. What a crash tore
or garbled is found by its checksum: the log is cut off there.

A record is found by its text, not by its position: documents may have been added, changed or moved in between.
Memory is about 180 bytes per vector, whatever its dimension.
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
    """Vectors by the digest of their text. The file is locked while it is open, and begins to exist with its
    first record. A context manager."""

    def __init__(self, path: Path, model: str, cut: Cut, *, discard: bool = False) -> None:
        self.path, self.model, self.cut = path, model, cut
        self.dim = 0
        self._records: dict[bytes, int] = {}
        self._begin = self._size = 0  # of the first record; of one record
        self._synced_at = time.monotonic()
        with self._told():
            self._file = open(path, "a+b", buffering=0)  # noqa: SIM115 (closed by close())
        try:
            _lock(self._file, path)
            with self._told():
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
        row = np.asarray(vector, "<f4")
        if not self.dim:
            self._write_head(len(row))
        self.check_dim(len(row))
        if not np.isfinite(row).all():
            raise SollolError(f"model {self.model} answered a vector with numbers that are not finite")
        body = key + row.tobytes()
        self._append(body + zlib.crc32(body).to_bytes(_CHECK, "little"))
        self._records[key] = len(self._records)

    def check_dim(self, dim: int) -> None:
        if self.dim and dim != self.dim:
            raise BadInput(
                f"model {self.model} now answers {dim} numbers, but what was kept has {self.dim}: it is another "
                "model under the same name. Use --force to embed everything again"
            )

    def vector(self, key: bytes) -> Vectors:
        self._file.seek(self._begin + self._records[key] * self._size + _DIGEST)
        return np.frombuffer(self._file.read(self.dim * 4), "<f4")

    def close(self, *, discard: bool = False) -> None:
        """Close, and delete the file if told so or if nothing is in it."""
        if self._file.closed:
            return
        remove = discard or not self._records
        with self._told():
            try:
                if not remove:
                    os.fsync(self._file.fileno())
                if remove and not _WINDOWS:  # while it is locked, so that no other run's log is hit
                    self.path.unlink(missing_ok=True)
            finally:
                self._file.close()
            if remove and _WINDOWS:
                self.path.unlink(missing_ok=True)

    def _append(self, data: bytes) -> None:
        with self._told():
            while data:  # an unbuffered write may take only a part
                data = data[self._file.write(data) :]
            if time.monotonic() - self._synced_at > _SYNC_EVERY_S:
                os.fsync(self._file.fileno())
                self._synced_at = time.monotonic()

    @contextlib.contextmanager
    def _told(self) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            raise SollolError(sentence(self.path, error)) from error

    def _write_head(self, dim: int) -> None:
        told = {"model": self.model, "dim": dim, "chunk_size": self.cut.size, "overlap": self.cut.overlap}
        head = _MAGIC + json.dumps(told).encode()[1:] + b"\n"
        self._append(head)
        self._set_sizes(dim, len(head))

    def _set_sizes(self, dim: int, begin: int) -> None:
        self.dim, self._begin, self._size = dim, begin, _DIGEST + dim * 4 + _CHECK

    def _load(self, discard: bool) -> None:
        self._file.seek(0)
        head = self._file.read(64 * 1024).partition(b"\n")
        if not head[0].startswith(_MAGIC[: len(head[0])]):
            raise BadInput(f"{self.path} exists and is not sollol's; move it away")
        found = _about(head[0]) if head[1] else None
        if discard or found is None:  # empty, or torn before the first line was whole
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
        """The digests of the records up to the first that is torn or garbled."""
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
    """As many bytes as there are, up to `size`: an unbuffered read may give fewer."""
    pieces = []
    while size and (piece := file.read(size)):
        pieces.append(piece)
        size -= len(piece)
    return b"".join(pieces)


def _about(head: bytes) -> About | None:
    try:
        told = json.loads(head)
        return About(told["model"], told["dim"], Cut(told["chunk_size"], told["overlap"]))
    except (ValueError, KeyError, TypeError):
        return None


def _lock(file: Any, path: Path) -> None:
    """Two runs that write the same file would each spoil the other's log."""
    if sys.platform == "win32":
        return
    import fcntl

    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        raise SollolError(f"another `sollol embed` is writing {path}; wait for it or stop it") from None
    except OSError:  # a file system without locks
        return
