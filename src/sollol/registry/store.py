"""Keep blobs and manifests in a folder, within a bound.

Blobs are files named by their digest. A file gets that name only after its bytes were hashed. The blob that was unused
for longest goes first when room is needed; blobs of running transfers stay. All methods wait for the disk, so callers
on an event loop run them in a thread.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import secrets
import shutil
import threading
import time
from collections import Counter
from collections.abc import Iterable
from pathlib import Path
from typing import BinaryIO, Final

from sollol.errors import SollolError
from sollol.registry.manifest import BadManifest, Manifest, parse_manifest

LEFT_S: Final = 3600.0
RESERVE: Final = 1024**3  # bytes of the disk that are never used
PIECE: Final = 1024 * 1024
PARTIAL: Final = ".partial"  # behind the name of a blob that has not come whole


class NoRoom(SollolError):
    """There is no room for a model, on the disk or within the bound."""


class BlobStore:
    """The blobs and manifests of a registry."""

    def __init__(self, folder: Path, most_bytes: int) -> None:
        """Use a folder; make it if it is not there. Old uploads that a killed process left are deleted.

        Raises:
            OSError: The folder cannot be used.
        """
        self.folder = folder
        self.most_bytes = most_bytes
        self._lock = threading.Lock()
        self._held: Counter[str] = Counter()
        folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        for left in folder.glob("*.upload"):
            with contextlib.suppress(FileNotFoundError):
                if time.time() - left.stat().st_mtime > LEFT_S:  # another process may use the folder
                    left.unlink()

    def path(self, digest: str) -> Path:
        """Return the file of a digest that was checked before."""
        return self.folder / digest.replace(":", "-")

    def size(self, digest: str) -> int | None:
        """Return the bytes of a blob, None if it is not here."""
        try:
            return self.path(digest).stat().st_size
        except FileNotFoundError:
            return None

    def used(self, digests: Iterable[str]) -> None:
        """Record that blobs are used now."""
        for digest in digests:
            with contextlib.suppress(FileNotFoundError):
                os.utime(self.path(digest))

    # --- room ---

    def hold(self, digests: Iterable[str]) -> None:
        """Keep blobs until they are released."""
        with self._lock:
            self._held.update(digests)

    def release(self, digests: Iterable[str]) -> None:
        """End a `hold`."""
        with self._lock:
            self._held.subtract(digests)
            self._held = +self._held

    def make_room(self, needed: int) -> None:
        """Delete blobs until `needed` bytes can be written, the one unused for longest first.

        Raises:
            NoRoom: They cannot, even without the blobs that no transfer uses. Nothing was deleted.
        """
        with self._lock:
            files = [(file, file.stat()) for file in self.folder.iterdir() if file.is_file()]
            taken = sum(found.st_size for _, found in files)
            idle = sorted(
                (found.st_mtime, found.st_size, file)
                for file, found in files
                if file.suffix != ".upload" and not self._held[file.name.removesuffix(PARTIAL).replace("-", ":", 1)]
            )
            free = min(self.most_bytes - taken, shutil.disk_usage(self.folder).free - RESERVE)
            possible = free + sum(size for _, size, _ in idle)
            if needed > possible:
                raise NoRoom(
                    f"{needed:,} bytes are needed in {self.folder}, and {max(0, possible):,} can be had; "
                    "raise max_gb in [registry], or make room on the disk"
                )
            for _, size, file in idle:
                if free >= needed:
                    return
                file.unlink(missing_ok=True)
                free += size

    # --- blobs ---

    def commit(self, file: Path, digest: str) -> bool:
        """Name a written file by its digest; return False and delete it if its bytes have another one."""
        if hash_file(file) != digest:
            file.unlink(missing_ok=True)
            return False
        self.adopt(file, digest)
        return True

    def adopt(self, file: Path, digest: str) -> None:
        """Name a file by the digest that its bytes are known to have. An equal blob is replaced."""
        file.chmod(0o600)
        os.replace(file, self.path(digest))

    # --- manifests ---

    def save_manifest(self, manifest: Manifest) -> None:
        """Keep a manifest beside the blobs."""
        file = self.path(manifest.digest)
        new = file.with_name(f"{secrets.token_hex(8)}.upload")  # several may be written at the same time
        new.write_bytes(manifest.raw)
        os.replace(new, file)

    def manifest(self, digest: str) -> Manifest | None:
        """Return the manifest with a digest if it is here with all its blobs."""
        try:
            found = parse_manifest(self.path(digest).read_bytes())
        except (FileNotFoundError, BadManifest):
            return None
        return found if not self.missing(found) else None

    def missing(self, manifest: Manifest) -> dict[str, int]:
        """Return the blobs of a manifest that are not here, with their sizes."""
        return {digest: size for digest, size in manifest.blobs.items() if self.size(digest) != size}


def write_whole(out: BinaryIO, data: bytes) -> None:
    """Write all bytes to an unbuffered file. Just before a disk is full, one write takes only a part of them."""
    left = memoryview(data)
    while left:
        left = left[out.write(left) :]


def hash_file(file: Path) -> str:
    """Return the digest of a file."""
    found = hashlib.sha256()
    with open(file, "rb") as source:
        while piece := source.read(PIECE):
            found.update(piece)
    return f"sha256:{found.hexdigest()}"
