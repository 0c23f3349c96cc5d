"""Create, store and find API keys, of which only hashes are kept.

A key has 32 random bytes, so a plain SHA-256 suffices: slow password hashes protect against word lists, and a look-up
here costs a microsecond. The file is private to its user (mode 0600), written whole and renamed, under a lock, so that
a reader never gets a part of it.
"""

from __future__ import annotations

import contextlib
import fnmatch
import hashlib
import hmac
import os
import re
import secrets
from collections.abc import Iterable, Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated, Final

import msgspec

from sollol.backends.decoding import json_reader
from sollol.core.types import canonical_model
from sollol.errors import BadInput, ConfigError
from sollol.files import PRIVATE, read_bounded, replace_file

PREFIX: Final = "sk-sollol-"
_NAME: Final = re.compile(r"[A-Za-z0-9._@-]{1,64}")
Count = Annotated[int, msgspec.Meta(ge=1)]


class Key(msgspec.Struct, frozen=True, forbid_unknown_fields=True, omit_defaults=True):
    """The rights and limits of a key. `models`: patterns (empty: all). `app`: its name for fairness and displays."""

    name: str
    hash: str
    start: str = ""
    """Its first characters, for displays."""
    app: str = ""
    models: tuple[str, ...] = ()
    requests_per_minute: Count | None = None
    tokens_per_minute: Count | None = None
    priority_max: Annotated[int, msgspec.Meta(ge=0, le=10)] = 10
    admin: bool = False
    created: str = ""

    def allows(self, model: str) -> bool:
        """Check the right to use a model. The pattern `llama3.2` is `llama3.2:latest`; `llama3*` matches every tag."""
        if not self.models:
            return True
        name = canonical_model(model)
        return any(_matches(name, pattern) for pattern in self.models)


class _KeysFile(msgspec.Struct, forbid_unknown_fields=True):
    keys: list[Key] = []


_read_file: Final = json_reader(_KeysFile)


def _matches(name: str, pattern: str) -> bool:
    """Compare a model with a pattern. One that ends in `*` matches every tag; otherwise no tag is `latest`."""
    if pattern.endswith("*") and fnmatch.fnmatchcase(name, pattern):
        return True
    return fnmatch.fnmatchcase(name, canonical_model(pattern))


def hash_of(token: str) -> str:
    """Return the hash under which a key is stored."""
    return hashlib.sha256(token.encode("utf-8", "replace")).hexdigest()


class Keyring:
    """The keys of a file and of SOLLOL_API_KEYS."""

    def __init__(self, keys: Iterable[Key] = (), path: Path | None = None, *, required: bool = False) -> None:
        self.required = required
        self.path = path
        self._fixed = tuple(keys)  # of the environment, not of the file
        self._by_hash: dict[str, Key] = {}
        self._seen: Version | None = None
        self.is_used = required  # keys of requests are looked up
        self.reload()

    def __len__(self) -> int:
        return len(self._by_hash)

    def find(self, token: str) -> Key | None:
        """Return the key of a token, or None. The look-up uses the hash, so its time reveals nothing of the token."""
        digest = hash_of(token)
        key = self._by_hash.get(digest)
        return key if key is not None and hmac.compare_digest(key.hash, digest) else None

    def with_hash(self, digest: str) -> Key | None:
        """Return the key with a hash, or None if it was revoked."""
        return self._by_hash.get(digest)

    def reload(self) -> bool:
        """Read the file if it has changed; return True if the keys have. Without a change it costs a `stat`.

        Raises:
            ConfigError: The content cannot be used (raised once), or the file cannot be opened (raised each time).
                The keys stay as they were.
        """
        seen = _version(self.path)
        if seen == self._seen:
            return False
        try:
            read = read_keys(self.path) if self.path else []
        except NotOpened:
            raise
        except ConfigError:
            self._seen = seen
            raise
        self._seen = seen
        keys = {key.hash: key for key in (*self._fixed, *read)}
        changed = keys != self._by_hash
        self._by_hash = keys
        self.is_used = self.required or bool(keys)
        return changed

    def follow(self, path: Path, *, required: bool) -> None:
        """Use a file of new settings from the next `reload` on."""
        self.required = required
        self.is_used = required or bool(self._by_hash)
        if path != self.path:
            self.path, self._seen = path, None


class NotOpened(ConfigError):
    """A file of keys could not be opened, perhaps only now."""


Version = tuple[int, ...]


def _version(path: Path | None) -> Version:
    """Return a value that changes with the file: its inode at a rename, its second time at a `chmod`."""
    try:
        found = path.stat() if path is not None else None
    except (OSError, ValueError):  # ValueError: a name with a NUL
        found = None
    return (found.st_mtime_ns, found.st_ctime_ns, found.st_ino, found.st_size) if found is not None else ()


def read_keys(path: Path) -> list[Key]:
    """Return the keys of a file, none if there is no file.

    Raises:
        ConfigError: It cannot be opened, or cannot be used.
    """
    try:
        keys = _read_file(read_bounded(path)).keys
    except FileNotFoundError:
        return []
    except (OSError, ValueError) as error:
        if isinstance(error, msgspec.DecodeError):
            raise ConfigError(
                f"keys file {path} cannot be read: {error}; restore it, or move it away and make new keys"
            ) from None
        raise NotOpened(f"keys file {path}: {getattr(error, 'strerror', None) or error}") from None
    # A key written by hand may have no app. Keys of one app may read each other's requests, so each gets its own.
    return [key if key.app else msgspec.structs.replace(key, app=key.name) for key in keys]


def keys_of_environment(text: str) -> list[Key]:
    """Return the keys of SOLLOL_API_KEYS: `token`, `name=token` or `name:admin=token`, separated by commas or spaces.

    Errors have the position of an entry and not its text, which may be a token.

    Raises:
        ConfigError: An entry cannot be used.
    """
    found: list[Key] = []
    for place, item in enumerate(re.split(r"[\s,]+", text.strip()) if text.strip() else (), 1):
        name, equals, token = item.partition("=")
        if not equals:
            name, token = f"key-{place}", item
        name, colon, right = name.partition(":")
        if not token or not _NAME.fullmatch(name) or (colon and right != "admin"):
            raise ConfigError(
                f"environment variable SOLLOL_API_KEYS: entry {place} cannot be used; expected TOKEN, NAME=TOKEN or "
                "NAME:admin=TOKEN"
            )
        if len(token) < 16:
            raise ConfigError(
                f"environment variable SOLLOL_API_KEYS: the token of entry {place} has under 16 characters: "
                "too easy to find by trying"
            )
        found.append(Key(name, hash_of(token), app=name, admin=right == "admin"))
    return found


def add_key(path: Path, key: Key) -> str:
    """Add a key without a hash to the file; return its token, which is stored nowhere.

    Raises:
        BadInput: The name cannot be used, or the file cannot be written.
    """
    if not _NAME.fullmatch(key.name):
        raise BadInput(f"name {key.name!r} cannot be used; expected 1 to 64 letters, digits, '.', '_', '@' or '-'")
    token = PREFIX + secrets.token_urlsafe(32)
    with _locked(path):
        keys = read_keys(path)
        if any(other.name == key.name for other in keys):
            raise BadInput(f"a key is called {key.name!r} already; choose another name, or revoke it first")
        made = msgspec.structs.replace(
            key,
            hash=hash_of(token),
            start=token[: len(PREFIX) + 4],
            app=key.app or key.name,
            created=datetime.now(UTC).isoformat(timespec="seconds"),
        )
        _write(path, [*keys, made])
    return token


def revoke_key(path: Path, name: str) -> Key:
    """Remove a key from the file and return it.

    Raises:
        BadInput: No key has this name.
    """
    with _locked(path):
        keys = read_keys(path)
        found = next((key for key in keys if key.name == name), None)
        if found is None:
            known = ", ".join(key.name for key in keys) or "none"
            raise BadInput(f"no key is called {name!r}; there are: {known}")
        _write(path, [key for key in keys if key is not found])
    return found


def _write(path: Path, keys: list[Key]) -> None:
    data = msgspec.json.format(msgspec.json.encode(_KeysFile(keys)), indent=2)
    try:
        replace_file(path, data, PRIVATE)
    except OSError as error:
        raise _unwritable(path, error) from None


@contextlib.contextmanager
def _locked(path: Path) -> Iterator[None]:
    """Exclude other writers, if the system has file locks."""
    try:
        path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        # Nothing is written into it, and a symbolic link is not followed.
        flags = os.O_CREAT | os.O_RDWR | getattr(os, "O_NOFOLLOW", 0)
        handle = os.open(path.parent / f"{path.name}.lock", flags, PRIVATE)
    except OSError as error:
        raise _unwritable(path, error) from None
    with os.fdopen(handle, "r+") as file:
        try:
            import fcntl
        except ImportError:
            yield
        else:
            fcntl.flock(file, fcntl.LOCK_EX)
            yield


def _unwritable(path: Path, error: OSError) -> BadInput:
    return BadInput(f"keys file {path}: cannot be written: {error.strerror or error}; set keys_file in [gateway]")
