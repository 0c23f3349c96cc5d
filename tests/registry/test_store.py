"""Blobs on the disk: within their bound, the oldest first, none that is in use."""

from __future__ import annotations

import errno
import hashlib
import io
import os
from pathlib import Path
from typing import Any

import pytest

from sollol.registry.store import BlobStore, NoRoom, write_whole


def put(store: BlobStore, text: str, age: int) -> str:
    digest = f"sha256:{hashlib.sha256(text.encode()).hexdigest()}"
    file = store.folder / "new.upload"
    file.write_text(text)
    assert store.commit(file, digest)
    os.utime(store.path(digest), (1_000 - age, 1_000 - age))
    return digest


def test_the_blob_that_is_unused_for_longest_goes_first(tmp_path: Path) -> None:
    store = BlobStore(tmp_path / "blobs", 100)
    old, mid, new = (put(store, letter * 30, age) for letter, age in (("a", 3), ("b", 2), ("c", 1)))
    store.make_room(10)
    assert [store.size(digest) for digest in (old, mid, new)] == [30, 30, 30]
    store.used([old])
    store.make_room(40)
    assert [store.size(digest) for digest in (old, mid, new)] == [30, None, 30]
    store.hold([new])
    with pytest.raises(NoRoom, match=r"80 bytes are needed .* and 70 can be had; raise max_gb"):
        store.make_room(80)
    assert [store.size(digest) for digest in (old, new)] == [30, 30], "nothing is deleted in vain"
    store.make_room(70)
    assert [store.size(digest) for digest in (old, new)] == [None, 30]
    store.release([new])
    store.make_room(100)
    assert store.size(new) is None


def test_what_a_fetch_left_goes_too_unless_it_runs(tmp_path: Path) -> None:
    store = BlobStore(tmp_path / "blobs", 100)
    digest = "sha256:" + "a" * 64
    left = store.path(digest).with_name(f"{store.path(digest).name}.partial")
    left.write_text("x" * 60)
    upload = store.folder / "b.upload"
    upload.write_text("x" * 20)
    store.hold([digest])
    with pytest.raises(NoRoom, match="and 20 can be had"):
        store.make_room(80)
    store.release([digest])
    store.make_room(80)
    assert (left.exists(), upload.exists()) == (False, True)


def test_a_full_disk_counts_too(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    store = BlobStore(tmp_path, 10**15)
    with pytest.raises(NoRoom, match="or make room on the disk"):
        store.make_room(10**14)


def test_bytes_with_another_digest_get_no_name(tmp_path: Path) -> None:
    store = BlobStore(tmp_path, 100)
    file = tmp_path / "new.upload"
    file.write_text("x")
    assert not store.commit(file, "sha256:" + "0" * 64)
    assert list(tmp_path.iterdir()) == []


def test_old_uploads_of_a_killed_process_are_deleted(tmp_path: Path) -> None:
    for name in ("old.upload", "new.upload", "sha256-0.partial"):
        (tmp_path / name).write_text("x")
    os.utime(tmp_path / "old.upload", (1_000, 1_000))
    BlobStore(tmp_path, 100)
    assert sorted(file.name for file in tmp_path.iterdir()) == ["new.upload", "sha256-0.partial"]


def test_a_write_that_takes_only_a_part_is_repeated() -> None:
    """As just before a disk is full."""

    class Full(io.BytesIO):
        def write(self, data: Any, /) -> int:
            if len(self.getvalue()) >= 5:
                raise OSError(errno.ENOSPC, "No space left on device")
            return super().write(bytes(data)[:2])

    out = Full()
    write_whole(out, b"1234")
    assert out.getvalue() == b"1234"
    with pytest.raises(OSError, match="No space left"):
        write_whole(out, b"567")
