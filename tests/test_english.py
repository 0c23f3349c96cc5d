"""Docstrings and comments are plain: an imperative first sentence of at most 20 words, and no riddles.

Ruff checks the form (`pydocstyle`).
"""

from __future__ import annotations

import ast
import re
import tokenize
from collections.abc import Iterator
from pathlib import Path

import pytest

SOURCE = Path(__file__).parents[1] / "src" / "sollol"
FILES = sorted(SOURCE.rglob("*.py"))
WORDS_MOST = 20
BANNED = re.compile(
    r"\b(tells?|told|hears?|heard|says?|said|asks?|asked|knows?|knew|want(s|ed)?|sees|speaks?|lies|believe[ds]?"
    r"|guess(es|ed)?|hopes?|promises?|meant|who(ever|m)|(no|any|some|every)body|as yet)\b(?!:)",
    re.IGNORECASE,
)
SUBJECTS = re.compile(r"(What|Who|Whoever|Whom|Nobody|Somebody|Everybody|It|Of|Is|May|Has|Can|Would)\b")
CLAUSES = re.compile(r"(?:^|[.;:?] )(What|Who|Whose)\b|[;,] (?:what|who) (?:is|was|has|comes|runs|waits)\b|\?(?: |$)")
# Words of the queue that earlier names used; one term for each concept (docs/glossary.md).
OLD = re.compile(r"\b(lanes?|markets?|ledgers?|fleet|roomy|singles|tongues?)\b", re.IGNORECASE)


def docstrings(path: Path) -> Iterator[tuple[str, str]]:
    """Yield the name and the docstring of everything in a file that has one."""
    for item in ast.walk(ast.parse(path.read_text())):
        if isinstance(item, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
            text = ast.get_docstring(item)
            if text:
                yield getattr(item, "name", path.name), text


def first_sentence(text: str) -> str:
    paragraph = " ".join(text.split("\n\n")[0].split())
    return re.split(r"(?<=[.?!]) ", paragraph)[0]


def faults(text: str) -> list[str]:
    """Return what is wrong with a docstring."""
    plain = re.sub(r"`[^`]*`", "x", " ".join(text.split()))
    found = [f"the word {match.group()!r}" for match in BANNED.finditer(plain)]
    found += [f"the old word {match.group()!r}" for match in OLD.finditer(plain)]
    found += [f"the clause {match.group()!r}" for match in CLAUSES.finditer(plain)]
    first = re.sub(r"\([^)]*\)", "", re.sub(r"`[^`]*`", "x", first_sentence(text)))
    if len(first.split()) > WORDS_MOST:
        found.append(f"{len(first.split())} words in the first sentence")
    if SUBJECTS.match(first):
        found.append(f"the first word of {first!r}")
    if first.endswith("?"):
        found.append("a question")
    return found


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(SOURCE)))
def test_docstrings_are_plain(path: Path) -> None:
    wrong = [f"{name}: {fault}" for name, text in docstrings(path) for fault in faults(text)]
    assert not wrong, "\n".join(wrong)


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(SOURCE)))
def test_comments_use_plain_words(path: Path) -> None:
    with path.open() as file:
        tokens = [t for t in tokenize.generate_tokens(file.readline) if t.type == tokenize.COMMENT]
    patterns = (BANNED, OLD, re.compile(r"# ([Ww]hat|[Ww]ho)\b"))
    wrong = [(t.start[0], t.string) for t in tokens if any(p.search(t.string) for p in patterns)]
    assert not wrong, wrong


# Lists of words, and a script in a language of its own. A message of Ollama's keeps its words.
WORD_LISTS = {"sim/words.py", "workload/task_words.py", "cli/demo.py", "agent/owner.py"}
FIXED = {"not asked"}  # an outcome that programs compare


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(SOURCE)))
def test_messages_use_plain_words(path: Path) -> None:
    if str(path.relative_to(SOURCE)) in WORD_LISTS:
        return
    texts = [item for item in ast.walk(ast.parse(path.read_text())) if isinstance(item, ast.Constant)]
    wrong = [
        (item.lineno, item.value)
        for item in texts
        if isinstance(item.value, str) and " " in item.value and item.value not in FIXED
        if BANNED.search(re.sub(r"`[^`]*`|downloaded again: want ", "x", item.value))
    ]
    assert not wrong, wrong


PAGES = [*(SOURCE.parents[1] / "docs").rglob("*.md"), *(SOURCE.parents[1] / f"{n}.md" for n in ("README", "SECURITY"))]


@pytest.mark.parametrize("path", PAGES, ids=lambda path: path.name)
def test_pages_use_plain_words(path: Path) -> None:
    """In a page, code is free: examples and quoted messages."""
    text = re.sub(r"```.*?```|`[^`]*`", "x", path.read_text(), flags=re.DOTALL)
    wrong = [line for line in text.splitlines() if BANNED.search(line)]
    assert not wrong, "\n".join(wrong)


@pytest.mark.parametrize(
    "text",
    [
        "The body as far as it was not told, which it is now.",
        "Would it choose as it did?",
        "What a node said of itself.",
        "Who decides on second copies.",
        "Return the lanes of a market.",
        "Return " + "word " * 20 + "end.",
        "Nobody waits any more.",
        "Stop a fetch; what has arrived is kept.",
        "Record an answer. What follows is lost.",
        "Send a trial, so that a node which lies is found.",
    ],
)
def test_riddles_are_found(text: str) -> None:
    assert faults(text)


def test_plain_sentences_pass() -> None:
    assert not faults("Return and clear the body bytes not yet delivered.\n\nArgs:\n    now: The present moment.")
