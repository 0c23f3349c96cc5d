"""Make vectors by hashing words and character trigrams, so that similar texts lie near each other.

A word's vector is a sum of pseudo-random small integers, one set for the word and one for each of its trigrams (feature
hashing without the buckets). A text's vector is the sum over its words, divided by its length. All sums are of
integers, so they are bit for bit the same in every order, with numpy or without, on every node. The JSON of a text's
vector is kept, because a node only sends it.
"""

from __future__ import annotations

import hashlib
import math
import re
import zlib
from collections.abc import Sequence
from functools import lru_cache
from importlib import util
from typing import Any

import msgspec

_WORD = re.compile(r"\w+")
_SHOWN = 10_000_000.0  # seven decimals: all that float32 has for a unit vector
_KEPT_BYTES = 64_000_000
_KEPT_WORDS = 100_000
_BATCH = 512
_HAS_NUMPY = util.find_spec("numpy") is not None


def _numpy() -> Any:
    import numpy

    return numpy


def _noise(feature: str, dim: int) -> bytes:
    return hashlib.shake_128(feature.encode("utf-8", "surrogatepass")).digest(dim)


def _features_of(word: str) -> list[str]:
    """Return the word, which counts three times, and its trigrams with its ends marked."""
    framed = f"<{word}>"
    return [word, word, word, *(f"\0{framed[i : i + 3]}" for i in range(len(framed) - 2))]


@lru_cache(maxsize=50_000)
def _word_vector(word: str, dim: int) -> tuple[int, ...]:
    columns = zip(*(_noise(feature, dim) for feature in _features_of(word)), strict=True)
    return tuple(sum(column) - 128 * len(column) for column in columns)


def _words(text: str) -> list[str]:
    return _WORD.findall(text.lower()) or [text]


def _unit(total: Sequence[int]) -> list[float]:
    norm = math.sqrt(sum(value * value for value in total)) or 1.0
    return [round(value / norm * _SHOWN) / _SHOWN for value in total]


def _plain(texts: Sequence[str], dim: int, cut: int) -> list[list[float]]:
    found = []
    for text in texts:
        columns = zip(*(_word_vector(word, dim) for word in _words(text)), strict=True)
        found.append(_unit([sum(column) for column in columns][:cut]))
    return found


class _Rows:
    """Hold names and their rows in one array that grows."""

    def __init__(self, dim: int) -> None:
        self.dim = dim
        self.places: dict[str, int] = {}
        self.array = _numpy().zeros((1024, dim), dtype=_numpy().int32)

    def add(self, names: Sequence[str], rows: Any) -> None:
        np, have = _numpy(), len(self.places)
        while have + len(names) > len(self.array):
            self.array = np.concatenate([self.array, np.zeros_like(self.array)])
        self.array[have : have + len(names)] = rows
        self.places.update(zip(names, range(have, have + len(names)), strict=True))


class _Table:
    """Hold the vectors of words and of their features. New ones are made in one pass."""

    def __init__(self, dim: int) -> None:
        self.dim = dim
        self._features = _Rows(dim)
        self._words = _Rows(dim)

    def vectors(self, texts: Sequence[str], cut: int) -> list[list[float]]:
        np = _numpy()
        split = [_words(text) for text in texts]
        self._learn(list(dict.fromkeys(word for words in split for word in words)))
        sums = _sums(self._words, split)[:, :cut].astype(np.float64)
        norms = np.sqrt((sums * sums).sum(axis=1, keepdims=True))
        norms[norms == 0.0] = 1.0
        found: list[list[float]] = (np.rint(sums / norms * _SHOWN) / _SHOWN).tolist()
        return found

    def _learn(self, words: list[str]) -> None:
        np = _numpy()
        if len(self._words.places) > _KEPT_WORDS:
            self._words, self._features = _Rows(self.dim), _Rows(self.dim)
        new = [word for word in words if word not in self._words.places]
        if not new:
            return
        split = [_features_of(word) for word in new]
        unknown = self._features.places
        fresh = [f for f in dict.fromkeys(f for features in split for f in features) if f not in unknown]
        if fresh:
            noise = np.frombuffer(b"".join(_noise(feature, self.dim) for feature in fresh), dtype=np.uint8)
            self._features.add(fresh, noise.reshape(-1, self.dim).astype(np.int32) - 128)
        self._words.add(new, _sums(self._features, split))


def _sums(rows: _Rows, groups: Sequence[Sequence[str]]) -> Any:
    """Return for each group of names the sum of their rows. No group is empty."""
    np, places = _numpy(), rows.places
    index = [places[name] for group in groups for name in group]
    starts = np.cumsum([0, *(len(group) for group in groups[:-1])])
    return np.add.reduceat(rows.array[index], starts, axis=0)


_tables: dict[int, _Table] = {}


def embed(texts: Sequence[str], dim: int, cut: int | None = None) -> list[list[float]]:
    """Return one unit vector for each text, of `dim` numbers, or of the first `cut` of them, normalised again."""
    width = min(cut or dim, dim)
    if not texts:
        return []
    if not _HAS_NUMPY or len(texts) < 8:
        return _plain(texts, dim, width)
    table = _tables.get(dim)
    if table is None:
        table = _tables[dim] = _Table(dim)
    found: list[list[float]] = []
    for start in range(0, len(texts), _BATCH):
        found += table.vectors(texts[start : start + _BATCH], width)
    return found


class Encoded:
    """Encode the vectors of texts as JSON, and keep them up to a bound on bytes."""

    def __init__(self) -> None:
        self._kept: dict[tuple[str, int, int], bytes] = {}
        self._bytes = 0
        self._encode = msgspec.json.Encoder().encode

    def fragments(self, texts: Sequence[str], dim: int, cut: int | None = None) -> list[bytes]:
        """Return the JSON of the vector of each text."""
        width = min(cut or dim, dim)
        kept = self._kept
        missing = [text for text in dict.fromkeys(texts) if (text, dim, width) not in kept]
        fresh: dict[str, bytes] = {}
        if missing:
            encode = self._encode
            fresh = {t: encode(v) for t, v in zip(missing, embed(missing, dim, width), strict=True)}
        found = [fresh.get(text) or kept[text, dim, width] for text in texts]
        self._keep(fresh, dim, width)
        return found

    def _keep(self, fresh: dict[str, bytes], dim: int, width: int) -> None:
        if self._bytes > _KEPT_BYTES:
            self._kept.clear()
            self._bytes = 0
        for text, fragment in fresh.items():
            self._kept[text, dim, width] = fragment
            self._bytes += len(fragment) + len(text)


encoded = Encoded()


@lru_cache(maxsize=16)
def _cheap_table(width: int) -> tuple[bytes, ...]:
    return tuple(msgspec.json.encode(_unit(_word_vector(f"cheap {i}", width))) for i in range(256))


def cheap_fragments(texts: Sequence[str], dim: int, cut: int | None = None) -> list[bytes]:
    """Return one of 256 ready vectors for each text: the same on every node, without meaning or cost."""
    table = _cheap_table(min(cut or dim, dim))
    crc = zlib.crc32
    return [table[crc(text.encode("utf-8", "surrogatepass")) & 255] for text in texts]
