"""Read passages from paths, lazily: a folder of any size is read while its passages are embedded.

An unreadable file does not stop the run: `skipped` has its name and the reason, for a message at the end. A missing
path is a mistake in the command, and raises before anything starts.
"""

from __future__ import annotations

import os
import stat
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import NamedTuple

from sollol.errors import BadInput
from sollol.index.chunks import Cut, chunks
from sollol.index.decoding import Unreadable
from sollol.index.estimate import Estimate, Step
from sollol.index.extras import need
from sollol.index.readers import KINDS, READERS
from sollol.printable import one_line
from sollol.workload.cost import item_cost

Skip = Callable[[Path, str], None]
SAMPLE_AFTER = 300  # passages read before other files are sampled


class Passage(NamedTuple):
    """A piece of a document and its place.

    `start` is the offset in characters within its page, row or line (`unit` and `number`, from 1) or, for a `unit` of
    "", within the file.
    """

    text: str
    source: str
    unit: str = ""
    number: int = 0
    start: int = 0


class Skipped(NamedTuple):
    """A file that was skipped, and the reason."""

    file: str
    why: str


def place(passage: Passage) -> str:
    """Return the place of a passage for the user: `a.pdf, page 3`."""
    source = one_line(passage.source)
    if passage.unit:
        more = f", character {passage.start:,}" if passage.start and passage.unit != "page" else ""
        return f"{source}, {passage.unit} {passage.number}{more}"
    return f"{source}, character {passage.start:,}"


class Documents:
    """The readable files under some paths. Iterate `passages()` once; then `skipped` is complete."""

    def __init__(self, paths: Sequence[Path], *, leave_out: Sequence[Path] = ()) -> None:
        missing = [one_line(path) for path in paths if not path.exists() and not path.is_symlink()]
        if missing:
            raise BadInput(f"no such file or folder: {', '.join(missing)}")
        self.skipped: list[Skipped] = []
        self.others: Counter[str] = Counter()  # files of other kinds, by suffix
        leave_out_real = {os.path.realpath(path) for path in leave_out}
        self.files = self._find(paths, leave_out_real)
        self._sizes = {path: _size(path) for path in self.files}
        self.estimate = Estimate(self.files, self._sizes)

    def _find(self, paths: Sequence[Path], seen: set[str]) -> list[Path]:
        files: list[Path] = []
        for path in paths:
            for file in _walk(path) if path.is_dir() else [path]:
                real = os.path.realpath(file)
                if real in seen:
                    continue
                seen.add(real)
                if file.suffix.lower() in READERS:
                    if _has_name(file):
                        files.append(file)
                    else:
                        self.skipped.append(Skipped(str(file), "has a name that is not UTF-8; rename it"))
                elif path.is_dir():
                    self.others[file.suffix.lower()] += 1
                else:
                    kind = file.suffix.lower() or "no ending"
                    self.skipped.append(Skipped(str(file), f"is of another kind ({kind}); expected {KINDS}"))
        return files

    def passages(self, cut: Cut) -> Iterator[Passage]:
        """Yield every passage, in the order of the paths; within a folder by name."""
        self.estimate = Estimate(self.files, self._sizes)
        estimate = self.estimate
        for file in self.files:
            before, problems = estimate.passages, len(self.skipped)
            for passage, within in self._of_file(file, cut, self._skip):
                estimate.read(Step(item_cost(passage.text), within))
                if estimate.passages == SAMPLE_AFTER:  # the nodes are busy by then
                    estimate.sample(lambda other: self._steps(other, cut))
                yield passage
            if estimate.passages == before and len(self.skipped) == problems:
                self.skipped.append(Skipped(str(file), "holds no text"))
            estimate.finish()

    def check(self, cut: Cut) -> list[Skipped]:
        """Read everything without embedding; return the files that would be skipped (for --strict)."""
        for _ in self.passages(cut):
            pass
        problems, self.skipped = self.skipped, [s for s in self.skipped if "another kind" in s.why]
        return problems

    def _of_file(self, file: Path, cut: Cut, skip: Skip) -> Iterator[tuple[Passage, float]]:
        """Yield the passages of a file, each with the bytes read so far."""
        size = self._sizes[file]
        try:
            _refuse_unusual(file)
            for section in READERS[file.suffix.lower()](file, partial(skip, file)):
                for piece in chunks(section.text, cut):
                    done = section.done * size if section.done else piece.start + len(piece.text)
                    passage = Passage(piece.text, str(file), section.unit, section.number, piece.start)
                    yield passage, min(float(done), size)
        except Unreadable as error:
            skip(file, str(error))
        except OSError as error:
            skip(file, f"cannot be read ({error.strerror or error})")

    def _steps(self, file: Path, cut: Cut) -> Iterator[Step]:
        """Yield the steps of a file for the estimate. Its errors are reported when it is read."""
        for passage, within in self._of_file(file, cut, lambda file, why: None):
            yield Step(item_cost(passage.text), within)

    def _skip(self, file: Path, why: str) -> None:
        self.skipped.append(Skipped(str(file), why))

    @property
    def other_kinds(self) -> int:
        """The number of files of other kinds."""
        return self.others.total()

    @property
    def files_with_text(self) -> int:
        """The number of files with a passage so far."""
        return self.estimate.useful

    @property
    def all_read(self) -> bool:
        """True if all files were read."""
        return self.estimate.finished == len(self.files)

    def estimated_total(self) -> float:
        """Return the estimated number of passages; exact after all files, 0 if unknown."""
        return self.estimate.total().passages


def _walk(folder: Path) -> Iterator[Path]:
    """Yield the files below a folder by name, without hidden ones. Links to folders are not followed."""
    for parent, folders, names in os.walk(folder):
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        for name in sorted(names):
            if not name.startswith("."):
                yield Path(parent, name)


def _has_name(path: Path) -> bool:
    """Check that an index can hold the name: it must be UTF-8."""
    try:
        str(path).encode()
    except UnicodeEncodeError:
        return False
    return True


def _size(path: Path) -> int:
    try:
        return path.stat().st_size
    except OSError:
        return 0


def _refuse_unusual(path: Path) -> None:
    """Raise for a pipe or a device, which would block for ever."""
    if not stat.S_ISREG(path.stat().st_mode):
        raise Unreadable("is not a regular file")


def check_extras(documents: Documents) -> None:
    """Raise before the run if a reader's package is missing."""
    kinds = {file.suffix.lower() for file in documents.files}
    need("charset_normalizer")
    if ".pdf" in kinds:
        need("pypdf")
