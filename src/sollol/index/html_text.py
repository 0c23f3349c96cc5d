"""Extract the text of a page that a browser shows: a line per block, without inline markup.

A tree needs ten times the memory of its page, and time quadratic in its depth. This module reads the page once, from
left to right, with a stack of the names of open elements: each byte is read a limited number of times, with any nesting
and with unclosed elements.
"""

from __future__ import annotations

import html
import re
from typing import Final

_BLOCKS: Final = frozenset(
    (
        *("h1", "h2", "h3", "h4", "h5", "h6", "p", "pre", "blockquote", "hr", "title", "address", "summary", "details"),
        *("div", "section", "article", "aside", "main", "nav", "header", "footer", "form", "fieldset"),
        *("ul", "ol", "li", "dl", "dt", "dd", "table", "caption", "tr", "figure", "figcaption"),
    )
)
_LINES: Final = frozenset(("li", "tr", "dt", "dd"))  # blocks without an empty line before them
_CELLS: Final = frozenset(("td", "th"))
_INVISIBLE: Final = frozenset(("script", "style", "noscript", "template", "svg"))
_RAW: Final = {name: re.compile(f"</{name}[\\s/>]", re.IGNORECASE) for name in ("script", "style")}
_VOID: Final = frozenset(
    ("area", "base", "br", "col", "embed", "hr", "img", "input", "link", "meta", "param", "source", "track", "wbr")
)
_NAME: Final = re.compile(r"[a-zA-Z][^\s/>]{0,63}")
_IN_TAG: Final = re.compile(r"=\s*[\"']|>")
_LONG_NUMBER: Final = re.compile(r"&#(?:[0-9]{8,}|[xX][0-9a-fA-F]{8,});?")  # not a character; int() refuses long ones


def visible_text(page: str) -> str:
    """Return the lines of text that a browser would show."""
    found = _Page(page)
    found.read()
    lines = [line.strip() for line in "".join(found.pieces).split("\n")]
    kept = [line for place, line in enumerate(lines) if line or (place and lines[place - 1])]
    return "\n".join(kept).strip()


class _Page:
    def __init__(self, page: str) -> None:
        self._page = page
        self._open: list[str] = []
        self._counts: dict[str, int] = {}  # open elements by name
        self._hidden = 0  # open elements that are hidden
        self._node: list[str] = []  # text before the next tag
        self._last_quotes = {quote: page.rfind(quote) for quote in "\"'"}
        self.pieces: list[str] = []

    def read(self) -> None:
        page, at = self._page, 0
        while (tag := page.find("<", at)) >= 0:
            self._node.append(page[at:tag])
            at = self._markup(tag)
        self._node.append(page[at:])
        self._end_node()
        while self._open:
            self._pop()

    def _markup(self, at: int) -> int:
        """Parse the markup that begins with `<` here; return its end."""
        page = self._page
        if page.startswith("<!--", at):
            self._end_node()
            return _after(page, "-->", at + 2)
        if page.startswith("<![CDATA[", at):
            self._end_node()
            end = _after(page, "]]>", at)
            self._text(page[at + 9 : end].removesuffix("]]>"))
            return end
        if page.startswith(("<!", "<?"), at):
            self._end_node()
            return _after(page, ">", at)
        closes = page.startswith("</", at)
        name = _NAME.match(page, at + 1 + closes)
        if name is None:
            self._node.append("<")
            return at + 1
        self._end_node()
        end = self._end_of_tag(name.end())
        if closes:
            self._close(name[0].lower())
        else:
            end = self._begin(name[0].lower(), end, page.endswith("/>", at, end))
        return end

    def _end_of_tag(self, at: int) -> int:
        """Return the end of a tag; a `>` in the quotes of an attribute does not end it."""
        page = self._page
        while (found := _IN_TAG.search(page, at)) is not None:
            quote = found[0][-1]
            if quote == ">":
                return found.end()
            at = found.end()
            if at <= self._last_quotes[quote]:  # else the quote is never closed
                at = page.index(quote, at) + 1
        return len(page)

    def _begin(self, name: str, end: int, closed: bool) -> int:
        """Open an element; return the next position, which is after the text of a raw element."""
        if name == "br":
            self._add("\n")
        if name in _BLOCKS:
            self._add("\n" if name in _LINES else "\n\n")
        self._open.append(name)
        self._counts[name] = self._counts.get(name, 0) + 1
        self._hidden += name in _INVISIBLE
        if closed or name in _VOID:
            self._pop()
        elif name in _RAW:
            close = _RAW[name].search(self._page, end)
            return len(self._page) if close is None else close.start()
        return end

    def _close(self, name: str) -> None:
        if self._counts.get(name):
            while self._pop() != name:
                pass

    def _pop(self) -> str:
        name = self._open.pop()
        self._counts[name] -= 1
        if name in _CELLS:
            self._add(" ")
        if name in _BLOCKS:
            self._add("\n")
        self._hidden -= name in _INVISIBLE
        return name

    def _end_node(self) -> None:
        text = "".join(self._node)
        self._node.clear()
        if text and not self._hidden:
            self._text(html.unescape(_LONG_NUMBER.sub("\N{REPLACEMENT CHARACTER}", text)))

    def _text(self, text: str) -> None:
        if self._hidden or not text:
            return
        if not self._counts.get("pre"):
            squeezed = " ".join(text.split())
            lead = " " if text[0].isspace() else ""
            text = lead + squeezed + (" " if squeezed and text[-1].isspace() else "")
        self.pieces.append(text)

    def _add(self, text: str) -> None:
        if not self._hidden:
            self.pieces.append(text)


def _after(page: str, mark: str, at: int) -> int:
    """Return the place after the next mark, or the end of the page."""
    found = page.find(mark, at)
    return len(page) if found < 0 else found + len(mark)
