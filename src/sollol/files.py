"""Write the files that belong to the user: whole, or not at all.

A file is written beside its place, brought onto the disk, and renamed. A full disk, a kill or a power failure leaves
the old file as it was. A symbolic link stays one: the file that it leads to is replaced.
"""

from __future__ import annotations

import contextlib
import errno
import os
import stat
from collections.abc import Iterator
from pathlib import Path

PRIVATE = 0o600
_NO_ROOM = {errno.ENOSPC, errno.EFBIG, errno.EDQUOT}
USUAL = 0o666  # less what the user's umask takes


@contextlib.contextmanager
def replacing(path: Path, mode: int = USUAL) -> Iterator[Path]:
    """Yield an empty file to write; at the end it replaces `path`. Raises OSError, and leaves `path` as it was.

    The name is fixed, so that what a killed program left is overwritten. An existing file keeps its mode."""
    target = path.resolve() if path.is_symlink() else path
    beside = target.with_name(f".{target.name}.new")
    if mode == USUAL:
        with contextlib.suppress(OSError):
            mode = stat.S_IMODE(target.stat().st_mode)
    try:
        beside.unlink(missing_ok=True)  # it may be a link that somebody put there
        os.close(os.open(beside, os.O_CREAT | os.O_EXCL | os.O_WRONLY, mode))
        yield beside
        _to_disk(beside)
        os.replace(beside, target)
    except BaseException:
        with contextlib.suppress(OSError):
            beside.unlink(missing_ok=True)
        raise
    with contextlib.suppress(OSError):  # not every system lets a folder be brought onto the disk
        _to_disk(target.parent)


def replace_file(path: Path, data: bytes, mode: int = USUAL) -> None:
    """Write `data` into `path`, whole or not at all. Raises OSError."""
    with replacing(path, mode) as beside:
        beside.write_bytes(data)


def sentence(path: Path, error: OSError) -> str:
    """Return in words that a file cannot be written, and what to do where the reason is known."""
    told = f"{path} cannot be written: {error.strerror or error}"
    return f"{told}; make room and run the same command again" if error.errno in _NO_ROOM else told


def _to_disk(path: Path) -> None:
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
