"""Vectors that mean a little: hashed words and character trigrams, so that like texts lie near each other.

A word's vector is a sum of pseudo-random small integers, one set for the word and one for each of its trigrams
(feature hashing without the buckets). A text's vector is the sum over its words, divided by its length. All sums
are of integers, so they come out bit for bit the same in every order, with numpy or without, on every node.
What is kept is the JSON of a text's vector, because a node's only use of it is to send it.
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
_WORD_WEIGHT = 3
_SHOWN = 10_000_000.0  # seven decimals: all that float32 has for a unit vector
_KEPT_BYTES = 64_000_000
_BATCH = 512
_HAS_NUMPY = util.find_spec("numpy") is not None


def _numpy() -> Any:
    import numpy

    return numpy


def _noise(feature: str, dim: int) -> bytes:
    return hashlib.shake_128(feature.encode("utf-8", "surrogatepass")).digest(dim)


@lru_cache(maxsize=50_000)
def _word_vector(word: str, dim: int) -> tuple[int, ...]:
    framed = f"<{word}>"
    grams = [framed[i : i + 3] for i in range(len(framed) - 2)]
    total = [(value - 128) * _WORD_WEIGHT for value in _noise(word, dim)]
    for gram in grams:
        total = [have + value - 128 for have, value in zip(total, _noise(gram, dim), strict=True)]
    return tuple(total)


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


class _Table:
    """Word vectors as rows of one array, for the bulk path."""

    def __init__(self, dim: int) -> None:
        np = _numpy()
        self.dim, self.rows = dim, np.zeros((1024, dim), dtype=np.int32)
        self.places: dict[str, int] = {}

    def place(self, word: str) -> int:
        np = _numpy()
        if len(self.places) >= 200_000:
            self.places.clear()
        found = self.places[word] = len(self.places)
        if found >= len(self.rows):
            self.rows = np.concatenate([self.rows, np.zeros_like(self.rows)])
        framed = f"<{word}>"
        features = b"".join(_noise(framed[i : i + 3], self.dim) for i in range(len(framed) - 2))
        grams = np.frombuffer(features, dtype=np.uint8).reshape(-1, self.dim).astype(np.int32) - 128
        own = np.frombuffer(_noise(word, self.dim), dtype=np.uint8).astype(np.int32) - 128
        self.rows[found] = own * _WORD_WEIGHT + grams.sum(axis=0)
        return found

    def vectors(self, texts: Sequence[str], cut: int) -> list[list[float]]:
        np = _numpy()
        places, starts, at, known = [], [], 0, self.places.get
        for text in texts:
            words = _words(text)
            starts.append(at)
            at += len(words)
            for word in words:
                found = known(word)
                places.append(self.place(word) if found is None else found)
        sums = np.add.reduceat(self.rows[places], starts, axis=0)[:, :cut].astype(np.float64)
        norms = np.sqrt((sums * sums).sum(axis=1, keepdims=True))
        norms[norms == 0.0] = 1.0
        found_list: list[list[float]] = (np.rint(sums / norms * _SHOWN) / _SHOWN).tolist()
        return found_list


_tables: dict[int, _Table] = {}


def embed(texts: Sequence[str], dim: int, cut: int | None = None) -> list[list[float]]:
    """One unit vector a text, of `dim` numbers, or of the first `cut` of them, normalised again."""
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
    """Texts to the JSON of their vectors, remembered up to a bound on bytes."""

    def __init__(self) -> None:
        self._kept: dict[tuple[str, int, int], bytes] = {}
        self._bytes = 0
        self._encode = msgspec.json.Encoder().encode

    def fragments(self, texts: Sequence[str], dim: int, cut: int | None = None) -> list[bytes]:
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
    """One of 256 ready vectors a text: the same on every node, meaning nothing, costing nothing."""
    table = _cheap_table(min(cut or dim, dim))
    crc = zlib.crc32
    return [table[crc(text.encode("utf-8", "surrogatepass")) & 255] for text in texts]
