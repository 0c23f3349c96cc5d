"""Files and names that nobody expects: told in words, in time and memory that follow their size."""

from __future__ import annotations

import json
import os
import random
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from typer.testing import Result

from sollol.index.decoding import decode_page
from sollol.index.html_text import visible_text
from tests.cli.fakes import FakePool

Run = Callable[..., Result]
Pool = Callable[..., FakePool]

NAMES = [b"bad\xff.txt", b"new\nline.txt", b"esc\x1b[2Jape.md", b"tab\t.txt", b"\xc3\x28.html", b"turn\xe2\x80\xae.txt"]
NO_UTF8 = {b"bad\xff.txt", b"\xc3\x28.html"}
UNITS = [
    "<div>", "<p>", "<b><i>", "<li>x", "<td>", "<pre> ", "<svg>", "<script>", "</div>", "<div/>", "<div></p>",
    "<a href='", '<a b="', "<a b='x' ", "<", "<!", "<!--", "<!-- -->", "<![CDATA[", "<?", "&", "&#1", "&#x1;",
    "<meta ", "<meta charset=", "<?xml ", "word ", "\n", "\xa0", "<title>", "<p", "</", "</script", "<ul><li>",
]  # fmt: skip


@pytest.mark.skipif(sys.platform != "linux", reason="other systems take no such names")
def test_names_are_skipped_or_shown_on_one_line(run: Run, pool: Pool, tmp_path: Path) -> None:
    folder = tmp_path / "docs"
    (folder / os.fsdecode(b"sub\xfe")).mkdir(parents=True)
    (folder / os.fsdecode(b"sub\xfe") / "inside.txt").write_text("not to be had")
    for name in NAMES:
        (folder / os.fsdecode(name)).write_text(f"the text of {name!r}")
    for strange in (folder / os.fsdecode(b"bad\xff.txt"), folder):
        pool()
        out = tmp_path / "x.jsonl"
        code = 0 if strange is folder else 2
        result = run("embed", strange, "--model", "m", "--out", out, code=code)
        assert "rename it" in result.stderr
    assert "\\xff" in result.stderr
    skipped = [line for line in result.stderr.split("\n") if "not UTF-8" in line]
    assert len(skipped) == len(NO_UTF8) + 1  # and the one in a folder of such a name
    sources = [json.loads(line)["source"] for line in out.read_text().splitlines()]
    assert sorted(os.fsencode(Path(source).name) for source in sources) == sorted(set(NAMES) - NO_UTF8)
    pool()
    told = run("search", out, "text", "-k", 10).stdout
    assert len([line for line in told.split("\n") if line[:1].isdigit()]) == len(sources)
    assert not set("\x1b\u202e") & set(told)
    (tmp_path / "x.npz").unlink(missing_ok=True)
    pool()
    found = json.loads(run("embed", folder, "--model", "m", "--out", tmp_path / "x.npz", "--json").stdout)
    assert len(found["skipped"]) == 3
    strict = run("embed", folder, "--model", "m", "--out", tmp_path / "y.npz", "--strict", code=1)
    assert "rename it" in strict.stderr


@pytest.mark.skipif(sys.platform != "linux", reason="other systems take no such names")
def test_an_index_may_have_such_a_name(run: Run, pool: Pool, docs: Path, tmp_path: Path) -> None:
    pool()
    out = tmp_path / os.fsdecode(b"in\xffdex.npz")
    assert "in\\xffdex.npz" in run("embed", docs, "--model", "m", "--out", out).stdout
    assert json.loads(run("embed", docs, "--model", "m", "--out", out, "--json").stdout)["reused"] == 36


def seconds(work: Callable[[], Any]) -> float:
    """Return the processor's time for the quickest of three runs."""
    found = []
    for _ in range(3):
        began = time.process_time()
        work()
        found.append(time.process_time() - began)
    return min(found)


@pytest.mark.parametrize("unit", UNITS)
def test_pages_take_time_that_grows_with_their_size(unit: str) -> None:
    """Eight times the size: eight times the time if that is linear, 64 times if it is quadratic."""
    small, large = (unit * size for size in (2_000, 16_000))
    assert seconds(lambda: visible_text(large)) < 24 * seconds(lambda: visible_text(small)) + 0.05
    bytes_small, bytes_large = small.encode(), large.encode()
    assert seconds(lambda: decode_page(bytes_large)) < 24 * seconds(lambda: decode_page(bytes_small)) + 0.05


def test_a_page_of_random_pieces_is_read_in_time() -> None:
    rng = random.Random(1)
    for _ in range(30):
        page = "".join(rng.choice(UNITS) * rng.choice((1, 2, 5_000)) for _ in range(40))
        text = visible_text(page)
        assert "\n\n\n" not in text
        assert text == text.strip()


def test_long_attributes_and_entities_are_read() -> None:
    assert visible_text('<a b="' + "x" * 10**7 + '">t</a>') == "t"
    assert visible_text("a&#" + "9" * 10**6 + ";b") == "a\N{REPLACEMENT CHARACTER}b"
    assert visible_text("<a title='>'>1</a> &lt;b&gt; <c") == "1 <b>"
    assert visible_text("5 < 6 <- 7") == "5 < 6 <- 7"


@pytest.mark.parametrize(
    ("page", "text"),
    [
        ("<meta charset=windows-1252>é€".encode("cp1252"), "é€"),
        ("<meta http-equiv=a content='text/html; charset=iso-8859-2'>ł".encode("iso8859-2"), "ł"),
        ("<?xml version='1.0' encoding='koi8-r'?>привет".encode("koi8-r"), "привет"),
        ("<p>привет".encode("utf-16"), "привет"),
        ("\ufeff<p>é".encode(), "é"),
        ("<meta charset=punycode>é".encode(), "é"),
        ("<meta charset=nonsense>é".encode(), "é"),
        ("<meta charset=ascii>é".encode(), "é"),
    ],
)
def test_pages_are_decoded_as_they_declare(page: bytes, text: str) -> None:
    assert visible_text(decode_page(page)) == text
