"""Index files: written by `sollol embed`, read by `sollol search`.

    format.py   the content of every kind of index file, and the module for each suffix
    npz.py  jsonl.py  parquet.py      one kind each: `write`, `about`, `blocks`
    partial.py  the log of finished vectors, which lets an interrupted run continue
    build.py    combines passages, log and file
    nearest.py  the passages nearest to a vector

Everything streams: a file larger than the memory can be written and searched. These modules import numpy; a command
calls `need("numpy")` before it imports them.
"""
