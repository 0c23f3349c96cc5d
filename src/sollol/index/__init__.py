"""Index files: what `sollol embed` writes and `sollol search` reads.

    format.py   what every kind of index file holds, and which module writes which suffix
    npz.py  jsonl.py  parquet.py      one kind each: `write`, `about`, `blocks`
    partial.py  the log of finished vectors, which makes an interrupted run continue
    build.py    puts passages, log and file together
    nearest.py  the passages nearest to a vector

Everything streams: a file larger than the memory can be written and searched. These modules import numpy;
a command calls `need("numpy")` before it imports them.
"""
