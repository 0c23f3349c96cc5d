"""One run of `sollol embed` without network and screen: what is still to embed, what came back, what is written.

    build = Build(out, model, cut)                  refuses at once what cannot be written
    for index, vector in embed(build.inputs(passages)):
        build.take(index, vector)
    build.finish()                                  the file is there, the log is gone

Texts that have a vector already are not asked for again, wherever it comes from: this run (two equal passages),
the log of an interrupted run, or the finished file of an earlier one. That file's vectors are copied into the log
first, so that there is one place to look and the old file stays as it is until the new one replaces it.
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
    """A context manager. Left without `finish()`, it keeps the log, and the old file is untouched."""

    def __init__(self, out: Path, model: str, cut: Cut, *, force: bool = False) -> None:
        self.out = Path(os.path.realpath(out))
        self.model, self.force = model, force
        self.reused = 0  # passages whose vector was there already
        self.embedded = 0  # vectors that this run received
        self.repeated = 0  # passages whose text occurred before in this run
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
        self._asked: dict[int, tuple[bytes, Passage]] = {}
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
        """The texts to embed, in order; the rest of each passage is put aside."""
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
                self._asked[self._next] = (key, passage)
                self._next += 1
                yield passage.text

    def take(self, index: int, vector: Any) -> None:
        """Keep the vector of the index-th input, safely on its way to the disk when this returns."""
        key, _ = self._asked.pop(index)
        self.log.add(key, vector)
        self._pending.discard(key)
        self._fresh.add(key)
        self.embedded += 1

    def refuse(self, index: int) -> Passage:
        """The index-th input will get no vector. Returns where it came from."""
        key, passage = self._asked.pop(index)
        self._pending.discard(key)
        self._fresh.add(key)
        self._refused = True
        return passage

    def finish(self) -> list[Passage]:
        """Write the file. Returns the passages that have no vector, and so are not in it."""
        if self._asked:
            raise SollolError(f"{len(self._asked):,} passages got no answer; the index was not written")
        missing = self._spool.without_vector() if self._refused else []
        self._spool.count = self.total - len(missing)
        if not self._spool.count:
            raise BadInput("nothing to embed: no text was found; the index was not written")
        index_format.write(self.out, self._spool)
        self.log.close(discard=True)
        return missing

    @property
    def done(self) -> int:
        """Passages that wait for nothing any more."""
        return self.total - len(self._asked)

    @property
    def count(self) -> int:
        return self._spool.count

    @property
    def dim(self) -> int:
        return self.log.dim

    def _copy_old(self) -> None:
        for block in index_format.blocks(self.out):
            for passage, vector in zip(block.passages, block.vectors, strict=True):
                key = digest(self.model, passage.text)
                if key not in self.log:
                    self.log.add(key, vector)


def _may_write(out: Path, model: str, force: bool) -> bool:
    """Whether there is an older index to reuse. Raises BadInput, with nothing touched, if `out` must not be
    written."""
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
