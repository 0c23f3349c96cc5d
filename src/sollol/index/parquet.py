"""`.parquet`: columns `text`, `source`, `unit`, `number`, `start`, `vector` (a fixed-size list of float32).

The smallest of the three and the best for large collections: pandas, polars, duckdb and lancedb read it in pieces. The
model is in the schema's metadata.
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
_OLDER = {"model", "dim", "chunk_size", "overlap"}  # metadata of older files, without a check


def write(path: Path, content: Content) -> None:
    """Write the content."""
    about = content.about
    size, overlap = about.cut or (0, 0)
    metadata = {"model": about.model, "dim": about.dim, "count": content.count, "chunk_size": size, "overlap": overlap}
    metadata["check"] = _check(metadata)
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
        metadata={_KEY: json.dumps(metadata)},
    )
    with pq.ParquetWriter(path, schema, compression="zstd", write_page_checksum=True) as writer:
        for block in content:
            columns: list[Any] = [list(column) for column in zip(*block.passages, strict=True)]
            flat = pa.array(block.vectors.ravel(), pa.float32())
            columns.append(pa.FixedSizeListArray.from_arrays(flat, about.dim))
            writer.write_batch(pa.record_batch(columns, schema=schema))


def about(path: Path) -> About:
    """Return the model, the dimension and the cut."""
    try:
        metadata = _metadata(pq.read_schema(path))
        cut = Cut(metadata["chunk_size"], metadata["overlap"])
        return About(str(metadata["model"]), int(metadata["dim"]), cut if cut.size else None)
    except (pa.ArrowInvalid, KeyError, TypeError, ValueError) as error:
        raise _not_an_index(path) from error


def blocks(path: Path) -> Iterator[Block]:
    """Yield the blocks."""
    dim, rows_read = about(path).dim, 0
    try:
        with pq.ParquetFile(path, page_checksum_verification=True) as file:
            count = _metadata(file.schema_arrow).get("count")
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
                raise ValueError("its number of rows differs from its metadata")
    except (pa.ArrowInvalid, ValueError, TypeError) as error:
        raise _not_an_index(path) from error


def _metadata(schema: Any) -> dict[str, Any]:
    """Return the metadata of a file; older files have no `check`.

    Raises:
        ValueError: It is damaged.
    """
    metadata: dict[str, Any] = json.loads((schema.metadata or {})[_KEY])
    if metadata.pop("check", None) != (_check(metadata) if set(metadata) != _OLDER else None):
        raise ValueError("its metadata are damaged")
    return metadata


def _check(metadata: dict[str, Any]) -> int:
    return zlib.crc32(json.dumps(metadata).encode())


def _not_an_index(path: Path) -> NotAnIndex:
    return NotAnIndex(f"{path} is not an index that `sollol embed` wrote, or it is damaged")
