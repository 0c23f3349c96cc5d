"""`.parquet`: columns `text`, `source`, `unit`, `number`, `start`, `vector` (a fixed-size list of float32).

The smallest of the three and the one for large collections: pandas, polars, duckdb and lancedb read it in pieces.
The model stands in the schema's metadata.
"""

from __future__ import annotations

import json
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from sollol.index.chunks import Cut
from sollol.index.documents import Passage
from sollol.index.format import BLOCK_ROWS, About, Block, Content, NotAnIndex

_KEY = b"sollol"
_OLDER = {"model", "dim", "chunk_size", "overlap"}  # that files without a check say of themselves


def write(path: Path, content: Content) -> None:
    about = content.about
    size, overlap = about.cut or (0, 0)
    told = {"model": about.model, "dim": about.dim, "count": content.count, "chunk_size": size, "overlap": overlap}
    told["check"] = _check(told)
    text, whole = pa.string(), pa.int64()
    schema = pa.schema(
        [
            ("text", text),
            ("source", text),
            ("unit", text),
            ("number", whole),
            ("start", whole),
            ("vector", pa.list_(pa.float32(), about.dim)),
        ],
        metadata={_KEY: json.dumps(told)},
    )
    with pq.ParquetWriter(path, schema, compression="zstd", write_page_checksum=True) as writer:
        for block in content:
            columns: list[Any] = [list(column) for column in zip(*block.passages, strict=True)]
            flat = pa.array(block.vectors.ravel(), pa.float32())
            columns.append(pa.FixedSizeListArray.from_arrays(flat, about.dim))
            writer.write_batch(pa.record_batch(columns, schema=schema))


def about(path: Path) -> About:
    try:
        told = _told(pq.read_schema(path))
        cut = Cut(told["chunk_size"], told["overlap"])
        return About(str(told["model"]), int(told["dim"]), cut if cut.size else None)
    except (pa.ArrowInvalid, KeyError, TypeError, ValueError) as error:
        raise _not_an_index(path) from error


def blocks(path: Path) -> Iterator[Block]:
    dim, rows_read = about(path).dim, 0
    try:
        with pq.ParquetFile(path, page_checksum_verification=True) as file:
            count = _told(file.schema_arrow).get("count")
            texts = file.schema_arrow.types[:3]
            if not all(pa.types.is_string(kind) or pa.types.is_large_string(kind) for kind in texts):
                raise ValueError("its columns are of other types")
            for batch in file.iter_batches(BLOCK_ROWS):
                *columns, vectors = batch.columns
                matrix = vectors.flatten().to_numpy(zero_copy_only=False).reshape(-1, dim)
                rows = zip(*(column.to_pylist() for column in columns), strict=True)
                rows_read += len(matrix)
                yield Block([Passage(*row) for row in rows], matrix.astype(np.float32, copy=False))
            if rows_read != (rows_read if count is None else count):
                raise ValueError("it has other rows than it says")
    except (pa.ArrowInvalid, ValueError, TypeError) as error:
        raise _not_an_index(path) from error


def _told(schema: Any) -> dict[str, Any]:
    """Return what the file says of itself. Raises ValueError where that is damaged; older files have no `check`."""
    told: dict[str, Any] = json.loads((schema.metadata or {})[_KEY])
    if told.pop("check", None) != (_check(told) if set(told) != _OLDER else None):
        raise ValueError("its metadata are damaged")
    return told


def _check(told: dict[str, Any]) -> int:
    return zlib.crc32(json.dumps(told).encode())


def _not_an_index(path: Path) -> NotAnIndex:
    return NotAnIndex(f"{path} is not an index that `sollol embed` wrote, or it is damaged")
