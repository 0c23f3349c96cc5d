"""Write files of the user atomically.

A new file is written beside the old one, synchronised to the disk, and renamed. A full disk, a kill or a power failure
leaves the old file unchanged. A symbolic link stays: its target is replaced.
"""

from __future__ import annotations

import contextlib
import errno
import io
import os
import stat
from collections.abc import Iterator
from pathlib import Path

PRIVATE = 0o600
_NO_ROOM = {errno.ENOSPC, errno.EFBIG, errno.EDQUOT}
USUAL = 0o666  # the umask applies
SETTINGS_MOST = 8 * 1024 * 1024  # bytes of a file of settings or keys


@contextlib.contextmanager
def replacing(path: Path, mode: int = USUAL) -> Iterator[Path]:
    """Yield the path of a new, empty file, which replaces `path` at the end of the block.

    Its name is fixed, so that a file that a killed program left is overwritten. An existing file keeps its mode.

    Raises:
        OSError: The file cannot be written. `path` is unchanged.
    """
    target = path.resolve() if path.is_symlink() else path
    new = target.with_name(f".{target.name}.new")
    if mode == USUAL:
        with contextlib.suppress(OSError):
            mode = stat.S_IMODE(target.stat().st_mode)
    try:
        new.unlink(missing_ok=True)  # an attacker may have put a link there
        os.close(os.open(new, os.O_CREAT | os.O_EXCL | os.O_WRONLY, mode))
        yield new
        _to_disk(new)
        os.replace(new, target)
    except BaseException:
        with contextlib.suppress(OSError):
            new.unlink(missing_ok=True)
        raise
    with contextlib.suppress(OSError):  # some systems cannot synchronise a folder
        _to_disk(target.parent)


def replace_file(path: Path, data: bytes, mode: int = USUAL) -> None:
    """Replace the content of `path` atomically.

    Raises:
        OSError: The file cannot be written. `path` is unchanged.
    """
    with replacing(path, mode) as new:
        new.write_bytes(data)


def read_bounded(path: Path | str, most: int = SETTINGS_MOST) -> bytes:
    """Return the content of a regular file of at most `most` bytes, without waiting for a pipe or a device.

    Raises:
        OSError: The file cannot be read, is another kind of file, or is too large.
        ValueError: The path has a NUL.
    """
    with open_regular(path) as file:
        data = file.read(most + 1)
    if len(data) > most:
        raise OSError(errno.EFBIG, f"is larger than {most} bytes", str(path))
    return data


def open_regular(path: Path | str) -> io.BufferedReader:
    """Open a regular file to read its bytes, without waiting for a pipe or a device.

    Raises:
        OSError: The file cannot be read, or is another kind of file.
        ValueError: The path has a NUL.
    """
    # Windows has no pipes and devices among its files, and must be kept from converting line ends.
    handle = os.open(path, os.O_RDONLY | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_BINARY", 0))
    try:
        if not stat.S_ISREG(os.fstat(handle).st_mode):
            raise OSError(errno.EINVAL, "is not a regular file", str(path))
        return os.fdopen(handle, "rb")
    except BaseException:
        os.close(handle)
        raise


def sentence(path: Path, error: OSError) -> str:
    """Return the message for a file that cannot be written, with the next step for a full disk."""
    message = f"{path} cannot be written: {error.strerror or error}"
    return f"{message}; make room and run the same command again" if error.errno in _NO_ROOM else message


def _to_disk(path: Path) -> None:
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
