"""API keys: who may ask for what. Shown once, kept as hashes.

A key is 32 random bytes, so a plain SHA-256 is enough to keep it: there is no word list to try, which is what slow
password hashes are for, and a look-up costs a microsecond. The file is the user's own (mode 0600), written whole and
renamed, under a lock, so that a reader never sees half of it.
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
    """What a key allows. `models`: patterns (empty: all). `app`: the name in fairness and displays."""

    name: str
    hash: str
    start: str = ""
    """Its first characters, to recognise it by."""
    app: str = ""
    models: tuple[str, ...] = ()
    requests_per_minute: Count | None = None
    tokens_per_minute: Count | None = None
    priority_max: Annotated[int, msgspec.Meta(ge=0, le=10)] = 10
    admin: bool = False
    created: str = ""

    def allows(self, model: str) -> bool:
        """May it use this model? `llama3.2` in a pattern is `llama3.2:latest`; of `llama3*`, every tag is meant."""
        if not self.models:
            return True
        name = canonical_model(model)
        return any(_matches(name, pattern) for pattern in self.models)


class _File(msgspec.Struct, forbid_unknown_fields=True):
    keys: list[Key] = []


_read_file: Final = json_reader(_File)


def _matches(name: str, pattern: str) -> bool:
    """Compare a model with a pattern. One that ends in `*` matches every tag; else no tag means `latest`."""
    if pattern.endswith("*") and fnmatch.fnmatchcase(name, pattern):
        return True
    return fnmatch.fnmatchcase(name, canonical_model(pattern))


def hash_of(token: str) -> str:
    return hashlib.sha256(token.encode("utf-8", "replace")).hexdigest()


class Keyring:
    """The keys of a file and of SOLLOL_API_KEYS."""

    def __init__(self, keys: Iterable[Key] = (), path: Path | None = None, *, required: bool = False) -> None:
        self.required = required
        self.path = path
        self._fixed = tuple(keys)  # of the environment: not in the file
        self._by_hash: dict[str, Key] = {}
        self._seen: Version | None = None
        self.asks = required  # is it to be asked about a request?
        self.reload()

    def __len__(self) -> int:
        return len(self._by_hash)

    def find(self, token: str) -> Key | None:
        """The key of a token, or None. What is looked up and compared is the hash: its timing tells nothing."""
        told = hash_of(token)
        key = self._by_hash.get(told)
        return key if key is not None and hmac.compare_digest(key.hash, told) else None

    def reload(self) -> bool:
        """Read the file if it has changed; True if the keys did. Costs a `stat`.

        Raises ConfigError, and keeps what it had: once for a content that cannot be used, each time for a file that
        cannot be opened, which may be read the next time."""
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
        self.asks = self.required or bool(keys)
        return changed

    def follow(self, path: Path, *, required: bool) -> None:
        """The settings have changed: the next `reload` reads this file."""
        self.required = required
        self.asks = required or bool(self._by_hash)
        if path != self.path:
            self.path, self._seen = path, None


class NotOpened(ConfigError):
    """A file of keys could not be opened, now."""


Version = tuple[int, ...]


def _version(path: Path | None) -> Version:
    """Another one after each change: a writer renames a new file into place, `chmod` moves the second time."""
    try:
        found = path.stat() if path is not None else None
    except (OSError, ValueError):  # a name with a NUL is no name
        found = None
    return (found.st_mtime_ns, found.st_ctime_ns, found.st_ino, found.st_size) if found is not None else ()


def read_keys(path: Path) -> list[Key]:
    """The keys of a file, none if there is no file. Raises ConfigError."""
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
    # Written by hand, it may have no app: all of those would be one, and see each other's requests.
    return [key if key.app else msgspec.structs.replace(key, app=key.name) for key in keys]


def keys_of_environment(text: str) -> list[Key]:
    """SOLLOL_API_KEYS: `token`, `name=token` or `name:admin=token`, separated by commas or spaces.

    Errors tell the place of an entry and none of its text: what looks like a name may be the token."""
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
                "too easy to guess"
            )
        found.append(Key(name, hash_of(token), app=name, admin=right == "admin"))
    return found


def add_key(path: Path, key: Key) -> str:
    """Write a new key (without its hash) into the file; the token, which is nowhere else. Raises BadInput."""
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
    """Take a key out of the file. Raises BadInput if there is none of that name."""
    with _locked(path):
        keys = read_keys(path)
        found = next((key for key in keys if key.name == name), None)
        if found is None:
            known = ", ".join(key.name for key in keys) or "none"
            raise BadInput(f"no key is called {name!r}; there are: {known}")
        _write(path, [key for key in keys if key is not found])
    return found


def _write(path: Path, keys: list[Key]) -> None:
    data = msgspec.json.format(msgspec.json.encode(_File(keys)), indent=2)
    try:
        replace_file(path, data, PRIVATE)
    except OSError as error:
        raise _unwritable(path, error) from None


@contextlib.contextmanager
def _locked(path: Path) -> Iterator[None]:
    """One writer at a time, where the system has file locks."""
    try:
        path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        # Nothing is written into it, and a link that somebody put there is not followed.
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
