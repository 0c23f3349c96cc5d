"""One run of `sollol embed` without network and screen: the passages to embed, their vectors, the file.

    build = Build(out, model, cut)                  raises at once if the file cannot be written
    for index, vector in embed(build.inputs(passages)):
        build.add(index, vector)
    build.finish()                                  the file exists, the log is deleted

A text with a vector is not embedded again. The vector may come from this run (two equal passages), from the log of an
interrupted run, or from the finished file of an earlier one. That file's vectors are copied into the log first, so that
there is one place to look up, and the old file stays unchanged until the new one replaces it.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from sollol.core.types import canonical_model
from sollol.errors import BadInput, SollolError
from sollol.index import format as index_format
from sollol.index.chunks import Cut
from sollol.index.documents import Passage
from sollol.index.format import NotAnIndex, digest
from sollol.index.partial import Partial
from sollol.index.spool import Spool


class Build:
    """One run. A context manager. Without `finish()` the log stays, and the old file is unchanged."""

    def __init__(self, out: Path, model: str, cut: Cut, *, force: bool = False) -> None:
        self.out = Path(os.path.realpath(out))
        self.model, self.force = model, force
        self.reused = 0  # passages with an earlier vector
        self.embedded = 0  # vectors that this run received
        self.repeated = 0  # passages with a text that occurred before in this run
        self.total = 0  # passages read so far
        self._reuse = _may_write(self.out, model, force)
        partial = self.out.with_name(self.out.name + ".partial")
        self.log = Partial(partial, model, cut, discard=force)
        self.continued = len(self.log)
        try:
            self._spool = Spool(self.out.parent, self.log)
            if self._reuse:
                self._copy_old()
        except BaseException:
            self.log.close()
            raise
        self._requested: dict[int, tuple[bytes, Passage]] = {}
        self._pending: set[bytes] = set()
        self._fresh: set[bytes] = set()
        self._next = 0
        self._refused = False

    def __enter__(self) -> Build:
        return self

    def __exit__(self, *exc: object) -> None:
        self._spool.close()
        self.log.close()

    def inputs(self, passages: Iterable[Passage]) -> Iterator[str]:
        """Yield the texts to embed, in order; keep the passages."""
        for passage in passages:
            key = digest(self.model, passage.text)
            self._spool.add(key, passage)
            self.total += 1
            if key in self._pending or key in self._fresh:
                self.repeated += 1
            elif key in self.log:
                self.reused += 1
            else:
                self._pending.add(key)
                self._requested[self._next] = (key, passage)
                self._next += 1
                yield passage.text

    def add(self, index: int, vector: Any) -> None:
        """Keep the vector of the index-th input; it is passed to the operating system before this returns."""
        key, _ = self._requested.pop(index)
        self.log.add(key, vector)
        self._pending.discard(key)
        self._fresh.add(key)
        self.embedded += 1

    def refuse(self, index: int) -> Passage:
        """Mark the index-th input as failed; return its passage."""
        key, passage = self._requested.pop(index)
        self._pending.discard(key)
        self._fresh.add(key)
        self._refused = True
        return passage

    def finish(self) -> list[Passage]:
        """Write the file; return the passages without a vector, which are not in it.

        Raises:
            SollolError: Some passages have no answer yet, or the file cannot be written.
            BadInput: There is no passage.
        """
        if self._requested:
            raise SollolError(f"{len(self._requested):,} passages got no answer; the index was not written")
        missing = self._spool.without_vector() if self._refused else []
        self._spool.count = self.total - len(missing)
        if not self._spool.count:
            raise BadInput("nothing to embed: no text was found; the index was not written")
        index_format.write(self.out, self._spool)
        self.log.close(discard=True)
        return missing

    @property
    def done(self) -> int:
        """The number of finished passages."""
        return self.total - len(self._requested)

    @property
    def count(self) -> int:
        """The number of passages with a vector."""
        return self._spool.count

    @property
    def dim(self) -> int:
        """The dimension of the vectors."""
        return self.log.dim

    def _copy_old(self) -> None:
        for block in index_format.blocks(self.out):
            for passage, vector in zip(block.passages, block.vectors, strict=True):
                key = digest(self.model, passage.text)
                if key not in self.log:
                    self.log.add(key, vector)


def _may_write(out: Path, model: str, force: bool) -> bool:
    """Return True if there is an older index to reuse.

    Raises:
        BadInput: `out` must not be written. Nothing was changed.
    """
    index_format.kind_of(out)
    if not out.parent.is_dir():
        raise BadInput(f"{out}: the folder {out.parent} does not exist")
    if out.is_dir():
        raise BadInput(f"{out} is a folder; --out names a file")
    if not out.exists() or force:
        return False
    try:
        found = index_format.about(out)
    except NotAnIndex as error:
        raise BadInput(f"{error}. Choose another name, or replace it with --force") from error
    if canonical_model(found.model) != canonical_model(model):
        raise BadInput(
            f"{out} was made with the model {found.model}, not {model}, and vectors of two models cannot be "
            "compared. Choose another name, or replace it with --force"
        )
    return True
