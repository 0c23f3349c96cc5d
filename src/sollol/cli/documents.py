"""From paths to passages, lazily: a folder of any size is read while its passages are being embedded.

What cannot be read is no reason to stop: it is collected in `skipped`, with the file's name and why, and told
at the end. A path that does not exist is a mistake in the command, and is refused before anything is done.
"""

from __future__ import annotations

import os
import stat
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

from sollol.cli.chunks import Cut, chunks
from sollol.cli.decoding import Unreadable
from sollol.cli.extras import need
from sollol.cli.readers import KINDS, READERS, Section
from sollol.errors import BadInput


class Passage(NamedTuple):
    """A piece of a document, and where it stands: `start` is the offset in characters within its page, row
    or line (`unit` and `number`, from 1) or, where `unit` is "", within the file."""

    text: str
    source: str
    unit: str = ""
    number: int = 0
    start: int = 0


class Skipped(NamedTuple):
    file: str
    why: str


def place(passage: Passage) -> str:
    """Where a passage stands, for a person: `a.pdf, page 3`."""
    if passage.unit:
        more = f", character {passage.start:,}" if passage.start and passage.unit != "page" else ""
        return f"{passage.source}, {passage.unit} {passage.number}{more}"
    return f"{passage.source}, character {passage.start:,}"


class Documents:
    """The readable files under some paths. Iterate `passages()` once; then `skipped` is complete."""

    def __init__(self, paths: Sequence[Path], *, leave_out: Sequence[Path] = ()) -> None:
        missing = [str(path) for path in paths if not path.exists() and not path.is_symlink()]
        if missing:
            raise BadInput(f"no such file or folder: {', '.join(missing)}")
        self.skipped: list[Skipped] = []
        self.other_kinds = 0
        leave_out_real = {os.path.realpath(path) for path in leave_out}
        self.files = self._find(paths, leave_out_real)
        self._sizes = {path: _size(path) for path in self.files}
        self._seen = _Seen()

    def _find(self, paths: Sequence[Path], seen: set[str]) -> list[Path]:
        files: list[Path] = []
        for path in paths:
            for file in _walk(path) if path.is_dir() else [path]:
                real = os.path.realpath(file)
                if real in seen:
                    continue
                seen.add(real)
                if file.suffix.lower() in READERS:
                    files.append(file)
                elif path.is_dir():
                    self.other_kinds += 1
                else:
                    self.skipped.append(Skipped(str(file), f"is of another kind; expected {KINDS}"))
        return files

    def passages(self, cut: Cut) -> Iterator[Passage]:
        """Every passage, in the order of the paths; within a folder by name."""
        self._seen = _Seen()
        for file in self.files:
            before, problems = self._seen.passages, len(self.skipped)
            for passage in self._of_file(file, cut):
                self._seen.passages += 1
                yield passage
            if self._seen.passages == before and len(self.skipped) == problems:
                self.skipped.append(Skipped(str(file), "holds no text"))
            self._seen.finish(file.suffix.lower(), self._sizes[file], self._seen.passages - before)

    def check(self, cut: Cut) -> list[Skipped]:
        """Read everything once and forget it: what would be skipped (for --strict)."""
        for _ in self.passages(cut):
            pass
        problems, self.skipped = self.skipped, [s for s in self.skipped if "another kind" in s.why]
        return problems

    def _of_file(self, file: Path, cut: Cut) -> Iterator[Passage]:
        try:
            _refuse_unusual(file)
            for section in READERS[file.suffix.lower()](file, lambda why: self._skip(file, why)):
                yield from self._of_section(file, section, cut)
        except Unreadable as error:
            self._skip(file, str(error))
        except OSError as error:
            self._skip(file, f"cannot be read ({error.strerror or error})")

    def _of_section(self, file: Path, section: Section, cut: Cut) -> Iterator[Passage]:
        for piece in chunks(section.text, cut):
            done = section.done * self._sizes[file] if section.done else piece.start
            self._seen.within = min(done, self._sizes[file])
            yield Passage(piece.text, str(file), section.unit, section.number, piece.start)

    def _skip(self, file: Path, why: str) -> None:
        self.skipped.append(Skipped(str(file), why))

    @property
    def files_with_text(self) -> int:
        """Files that gave a passage, so far."""
        return self._seen.useful

    @property
    def all_read(self) -> bool:
        return self._seen.files == len(self.files)

    def estimated_total(self) -> float:
        """How many passages there will be, judged by what was read; exact once all is read. 0: unknown."""
        seen = self._seen
        left: dict[str, float] = {}
        for file in self.files[seen.files :]:
            kind = file.suffix.lower()
            left[kind] = left.get(kind, 0.0) + self._sizes[file]
        if not seen.passages:
            return 0.0
        overall = seen.passages / max(seen.bytes + seen.within, 1.0)
        rest = sum(size * seen.rate(kind, overall) for kind, size in left.items())
        return max(float(seen.passages), seen.finished + rest)


class _Seen:
    """What has been read so far, for the estimate of the total."""

    def __init__(self) -> None:
        self.passages = self.finished = self.files = self.useful = 0
        self.bytes = self.within = 0.0  # of finished files; of the file being read
        self._by_kind: dict[str, tuple[int, float]] = {}

    def finish(self, kind: str, size: float, passages: int) -> None:
        count, total = self._by_kind.get(kind, (0, 0.0))
        self._by_kind[kind] = (count + passages, total + size)
        self.files += 1
        self.useful += passages > 0
        self.finished += passages
        self.bytes += size
        self.within = 0.0

    def rate(self, kind: str, overall: float) -> float:
        """Passages per byte of this kind of file: a PDF has far fewer than text."""
        count, size = self._by_kind.get(kind, (0, 0.0))
        return count / size if size else overall


def _walk(folder: Path) -> Iterator[Path]:
    """The files below a folder, by name, without hidden ones; links to folders are not followed."""
    for parent, folders, names in os.walk(folder):
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        for name in sorted(names):
            if not name.startswith("."):
                yield Path(parent, name)


def _size(path: Path) -> int:
    try:
        return path.stat().st_size
    except OSError:
        return 0


def _refuse_unusual(path: Path) -> None:
    """A pipe or a device with a text file's name would block for ever."""
    if not stat.S_ISREG(path.stat().st_mode):
        raise Unreadable("is not a regular file")


def check_extras(documents: Documents) -> None:
    """Fail before anything is embedded if a reader's package is missing."""
    kinds = {file.suffix.lower() for file in documents.files}
    need("charset_normalizer")
    if ".pdf" in kinds:
        need("pypdf")
    if kinds & {".html", ".htm"}:
        need("bs4")
