"""`.npz`: readable by `numpy.load`: `vectors`, `texts`, `sources`, `units`, `numbers`, `starts`, `metadata`.

`numpy.savez` needs every array in memory at once; here rows are streamed into the zip members, and out of them again.
Texts are arrays of fixed width, which numpy can load without pickle, so they are compressed; vectors cannot be
compressed and are stored. Entries have no time: the same content gives the same bytes.
"""

from __future__ import annotations

import json
import zipfile
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import IO, Any

import numpy as np
from numpy.lib import format as npy

from sollol.index.chunks import Cut
from sollol.index.documents import Passage
from sollol.index.format import BLOCK_ROWS, About, Block, Content, NotAnIndex

_COLUMNS = ("vectors", "texts", "sources", "units", "numbers", "starts")
_FASTEST = 1  # texts of fixed width are mostly zeros: more effort costs minutes and saves little


def write(path: Path, content: Content) -> None:
    """Write the content."""
    text_width, source_width = (max(width, 1) for width in content.widths)
    count, dim = content.count, content.about.dim
    columns: list[tuple[str, str, Callable[[Passage], Any]]] = [
        ("texts", f"<U{text_width}", lambda passage: passage.text),
        ("sources", f"<U{source_width}", lambda passage: passage.source),
        ("units", "<U4", lambda passage: passage.unit),
        ("numbers", "<i8", lambda passage: passage.number),
        ("starts", "<i8", lambda passage: passage.start),
    ]
    with zipfile.ZipFile(path, "w", allowZip64=True) as archive:
        with _member(archive, "vectors", zipfile.ZIP_STORED) as member:
            _head(member, "<f4", (count, dim))
            for block in content:
                member.write(np.ascontiguousarray(block.vectors, "<f4").tobytes())
        for name, kind, value in columns:
            with _member(archive, name, zipfile.ZIP_DEFLATED) as member:
                _head(member, kind, (count,))
                for passages in content.passages():
                    member.write(np.array([value(passage) for passage in passages], kind).tobytes())
        with _member(archive, "metadata", zipfile.ZIP_STORED) as member:
            npy.write_array(member, np.array(_metadata(content.about, count)), allow_pickle=False)


def _member(archive: zipfile.ZipFile, name: str, compression: int) -> IO[bytes]:
    # An entry given by name has the archive's compression, and 1980 as its time.
    archive.compression, archive.compresslevel = compression, _FASTEST
    return archive.open(f"{name}.npy", "w", force_zip64=True)


def _head(member: IO[bytes], kind: str, shape: tuple[int, ...]) -> None:
    npy.write_array_header_2_0(member, {"descr": kind, "fortran_order": False, "shape": shape})


def _metadata(about: About, count: int) -> str:
    size, overlap = about.cut or (0, 0)
    return json.dumps(
        {
            "format": "sollol index 1",
            "model": about.model,
            "dim": about.dim,
            "count": count,
            "chunk_size": size,
            "overlap": overlap,
        }
    )


def about(path: Path) -> About:
    """Return the model, the dimension and the cut."""
    try:
        with zipfile.ZipFile(path) as archive, archive.open("metadata.npy") as member:
            metadata = json.loads(str(npy.read_array(member, allow_pickle=False)))
        cut = Cut(metadata["chunk_size"], metadata["overlap"])
        return About(str(metadata["model"]), int(metadata["dim"]), cut if cut.size else None)
    except (zipfile.BadZipFile, zlib.error, KeyError, TypeError, ValueError) as error:
        raise _not_an_index(path) from error


def blocks(path: Path) -> Iterator[Block]:
    """Yield the blocks."""
    try:
        with zipfile.ZipFile(path) as archive:
            members = [archive.open(f"{name}.npy") for name in _COLUMNS]
            try:
                yield from _zipped(members)
            finally:
                for member in members:
                    member.close()
    except (zipfile.BadZipFile, zlib.error, KeyError, EOFError, ValueError) as error:
        raise _not_an_index(path) from error


def _zipped(members: list[IO[bytes]]) -> Iterator[Block]:
    heads = [_read_head(member) for member in members]
    count = heads[0][0][0]
    for start in range(0, count, BLOCK_ROWS):
        rows = min(BLOCK_ROWS, count - start)
        vectors, *others = (_rows(m, rows, *head) for m, head in zip(members, heads, strict=True))
        yield Block([Passage(*row) for row in zip(*(o.tolist() for o in others), strict=True)], vectors)


def _read_head(member: IO[bytes]) -> tuple[tuple[int, ...], Any]:
    version = npy.read_magic(member)
    read = npy.read_array_header_1_0 if version == (1, 0) else npy.read_array_header_2_0
    shape, fortran, kind = read(member)
    if fortran or kind.hasobject:
        raise ValueError("an array of another layout")
    return shape, kind


def _rows(member: IO[bytes], rows: int, shape: tuple[int, ...], kind: Any) -> Any:
    block_shape = (rows, *shape[1:])
    size = int(np.prod(block_shape)) * kind.itemsize
    data = member.read(size)
    if len(data) != size:
        raise EOFError("the file ends early")
    return np.frombuffer(data, kind).reshape(block_shape)


def _not_an_index(path: Path) -> NotAnIndex:
    return NotAnIndex(f"{path} is not an index that `sollol embed` wrote, or it is damaged")
