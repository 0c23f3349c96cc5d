"""Decode text files of unknown encoding.

UTF-8 is tried on the whole file first: text in another encoding is practically never valid UTF-8. Only then
`charset-normalizer` estimates the encoding, among those of real files. (With all its encodings, it reads "Café" as two
Chinese characters.) A wrong estimate costs a few letters. A binary file would put noise into an index, so bytes that do
not occur in text are refused.
"""

from __future__ import annotations

import codecs
import io
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from sollol.files import open_regular
from sollol.index.extras import need

_SAMPLE_BYTES = 256 * 1024
_SLICE_CHARS = 64 * 1024
_BOMS = (
    (codecs.BOM_UTF8, "utf-8-sig"),
    (codecs.BOM_UTF32_LE, "utf-32"),
    (codecs.BOM_UTF32_BE, "utf-32"),
    (codecs.BOM_UTF16_LE, "utf-16"),
    (codecs.BOM_UTF16_BE, "utf-16"),
)
_LIKELY = [
    *("cp1252", "cp1250", "cp1251", "koi8_r", "cp1253", "cp1254", "cp1255", "cp1256"),
    *("cp932", "euc_jp", "gb18030", "big5", "euc_kr"),
]
# Control characters of text: tab, line feed, vertical tab, form feed, carriage return, escape.
_CONTROLS = bytes(set(range(32)) - {9, 10, 11, 12, 13, 27})


# The encoding that a page declares; only encodings of pages are used, not all codecs of Python.
_DECLARED = re.compile(
    rb"""<(?:meta\b[^>]{0,256}?\bcharset|\?xml\b[^>]{0,64}?\bencoding)\s*=\s*["']?\s*([\w.:-]{1,40})""", re.IGNORECASE
)
_OF_PAGES = ("utf-8", "iso8859-", "cp", "koi8", "mac", "shift_jis", "euc", "gb", "big5", "iso2022")
_DECLARED_WITHIN = 4096  # bytes searched; browsers search the first 1,024


class Unreadable(Exception):
    """A document cannot be read; `str()` is the reason for the user."""


def encoding_of(path: Path) -> str:
    """Return the encoding of a text file.

    Raises:
        Unreadable: The file is empty or not text.
    """
    with open_regular(path) as file:
        sample = file.read(_SAMPLE_BYTES)
        if not sample:
            raise Unreadable("is empty")
        for bom, name in _BOMS:
            if sample.startswith(bom):
                return name
        if b"\0" in sample:
            return _utf16_without_bom(sample)
        if len(sample.translate(None, _CONTROLS)) < 0.98 * len(sample):
            raise Unreadable("is not text (binary data)")
        if _is_utf8(sample, file):
            return "utf-8"
    return _guess(sample)


def decode_page(data: bytes) -> str:
    """Return the text of a page, by its byte order mark, its declaration, UTF-8, or an estimate."""
    for bom, name in _BOMS:
        if data.startswith(bom):
            return data.decode(name, "replace")
    declared = _DECLARED.search(data, 0, _DECLARED_WITHIN)
    for name in (*([declared[1].decode("ascii", "replace")] if declared else ()), "utf-8"):
        try:
            if codecs.lookup(name).name.startswith(_OF_PAGES):
                return data.decode(name)
        except (LookupError, UnicodeDecodeError):
            continue
    return data.decode(_guess(data[:_SAMPLE_BYTES]), "replace")


def _utf16_without_bom(sample: bytes) -> str:
    """Return the byte order of UTF-16: Latin letters have a zero in every second byte, other zeros mean binary data."""
    half = len(sample) // 2
    for zeros_at, name in ((1, "utf-16-le"), (0, "utf-16-be")):
        zeros, others = sample[zeros_at::2].count(0), sample[1 - zeros_at :: 2].count(0)
        if half and zeros > 0.4 * half and others == 0:
            return name
    raise Unreadable("is not text (binary data)")


def _is_utf8(sample: bytes, rest: io.BufferedReader) -> bool:
    decoder = codecs.getincrementaldecoder("utf-8")()
    try:
        piece = sample
        while piece:
            decoder.decode(piece)
            piece = rest.read(_SAMPLE_BYTES)
        decoder.decode(b"", final=True)
    except UnicodeDecodeError:
        return False
    return True


def _guess(sample: bytes) -> str:
    matches = list(need("charset_normalizer").from_bytes(sample, cp_isolation=_LIKELY))
    if not matches:
        raise Unreadable("is not text, or in an encoding that cannot be recognised; save it as UTF-8")
    best = matches[0]

    def as_good(match: Any) -> bool:
        return bool(match.chaos <= best.chaos and match.coherence >= best.coherence)

    # If Western and Central European fit equally well, Western is likelier.
    western = any("cp1252" in match.could_be_from_charset and as_good(match) for match in matches)
    return "cp1252" if western else str(best.encoding)


def open_text(path: Path) -> io.TextIOWrapper:
    """Open a file as text, with unchanged line ends."""
    encoding = encoding_of(path)
    return io.TextIOWrapper(open_regular(path), encoding=encoding, errors="replace", newline="")


def clean(text: str) -> str:
    """Replace characters that no index format can hold: zero characters and halves of surrogate pairs."""
    if "\0" in text:
        text = text.replace("\0", " ")
    try:
        text.encode()
    except UnicodeEncodeError:
        text = text.encode("utf-8", "replace").decode()
    return text


def slices(file: io.TextIOWrapper) -> Iterator[str]:
    """Yield the text of a file in slices."""
    while piece := file.read(_SLICE_CHARS):
        yield clean(piece)
