"""Pieces cover the text, keep to the size, share what was asked, and do not depend on slicing."""

from __future__ import annotations

import itertools

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sollol.errors import BadInput
from sollol.index.chunks import Chunk, Cut, chunks

_words = st.lists(st.sampled_from(["a", "bee", "sea,", "end.", "Is it?", "\n\n", "\n", "  ", "zweihundert"]))
_texts = st.one_of(st.text(), _words.map(" ".join), st.text(alphabet="ab .\n", max_size=300))


@st.composite
def _cuts(draw: st.DrawFn) -> Cut:
    size = draw(st.integers(1, 60))
    return Cut(size, draw(st.integers(0, size // 2)))


@settings(max_examples=300, deadline=None)
@given(text=_texts, cut=_cuts())
def test_pieces_are_cut_from_the_text_cover_it_and_keep_the_limits(text: str, cut: Cut) -> None:
    pieces = list(chunks([text], cut))
    covered: set[int] = set()
    for piece in pieces:
        assert 0 < len(piece.text) <= cut.size
        assert text[piece.start : piece.start + len(piece.text)] == piece.text
        assert piece.text == piece.text.strip()
        covered.update(range(piece.start, piece.start + len(piece.text)))
    assert all(text[i].isspace() for i in range(len(text)) if i not in covered)
    for before, after in itertools.pairwise(pieces):
        assert before.start < after.start
        assert before.start + len(before.text) - after.start <= cut.overlap


@settings(max_examples=300, deadline=None)
@given(text=_texts, cut=_cuts(), data=st.data())
def test_pieces_do_not_depend_on_how_the_text_arrived(text: str, cut: Cut, data: st.DataObject) -> None:
    marks = sorted(data.draw(st.lists(st.integers(0, len(text)), max_size=6)))
    slices = [text[a:b] for a, b in zip([0, *marks], [*marks, len(text)], strict=True)]
    assert list(chunks(slices, cut)) == list(chunks([text], cut))


@settings(max_examples=300, deadline=None)
@given(words=st.lists(st.text("abcdefg", min_size=1, max_size=10), max_size=80), cut=_cuts())
def test_a_word_is_cut_only_when_it_cannot_be_helped(words: list[str], cut: Cut) -> None:
    if max(map(len, words), default=0) > cut.size - cut.overlap - 1:
        return
    text = " ".join(words)
    for piece in chunks([text], cut):
        assert set(piece.text.split()) <= set(words)


@settings(max_examples=100, deadline=None)
@given(count=st.integers(30, 200), overlap=st.integers(8, 25))
def test_the_overlap_is_as_large_as_whole_words_allow(count: int, overlap: int) -> None:
    pieces = list(chunks([" ".join(["abcd"] * count)], Cut(50, overlap)))
    for before, after in itertools.pairwise(pieces):
        shared = before.start + len(before.text) - after.start
        assert overlap - 5 <= shared + 1 <= overlap + 1


def test_a_paragraph_is_preferred_to_a_sentence_and_a_sentence_to_a_word() -> None:
    paragraph = "One two three four. Five six.\n\nSeven eight. Nine ten eleven"
    assert next(iter(chunks([paragraph], Cut(45, 0)))).text == "One two three four. Five six."
    sentence = "One two three four five. Six seven eight nine"
    assert next(iter(chunks([sentence], Cut(32, 0)))).text == "One two three four five."
    assert next(iter(chunks(["One two three four five"], Cut(12, 0)))).text == "One two"
    assert [p.text for p in chunks(["x" * 25], Cut(10, 2))] == ["x" * 10, "x" * 10, "x" * 9]


def test_text_without_spaces_still_ends_at_a_full_stop() -> None:
    text = "分散処理は速い。" * 6
    assert next(iter(chunks([text], Cut(20, 0)))) == Chunk("分散処理は速い。" * 2, 0)


@pytest.mark.parametrize(("cut", "named"), [(Cut(0, 0), "chunk-size 0"), (Cut(9, -1), "-1"), (Cut(9, 5), "half")])
def test_impossible_cuts_are_refused(cut: Cut, named: str) -> None:
    with pytest.raises(BadInput, match=named):
        cut.checked()
