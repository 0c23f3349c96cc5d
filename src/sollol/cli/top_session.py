"""Interpret the keys of `sollol top`: selection, filter, order, and actions, which need a confirmation."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Final, NamedTuple

from rich.text import Text

from sollol.cli.console import one_line
from sollol.cli.listings import Drawn, Listing, Order, Row, arrange, lines

Verb = str  # drain, resume, unload, cancel or explain
ASKS: Final[Mapping[Verb, tuple[str, str]]] = {  # the question, and what follows
    "drain": ("Drain {node}?", "New requests go elsewhere."),
    "resume": ("Resume {node}?", "It gets new requests again."),
    "unload": ("Unload {model} from {node}?", "The next request loads it again."),
    "cancel": ("Cancel request {id} ({kind}, {model})?", "Its caller gets an error."),
}
KEYS: Final = (
    ("↑ ↓  k j", "select a row"),
    ("PgUp PgDn  Home End", "move by a page, to the first, to the last"),
    ("Tab  Shift-Tab", "go to the next list, to the one before"),
    ("/", "filter all lists by words; Esc shows all again"),
    ("s  S", "sort this list by the next column, by the one before"),
    ("r", "reverse the order"),
    ("d", "drain the selected node, or resume it"),
    ("u", "unload a model from the selected node"),
    ("c", "cancel the selected request, or its batch"),
    ("e  Enter", "explain the selected request"),
    ("?", "this page"),
    ("q  Ctrl-C", "end"),
)
HINTS: Final = "? help  / filter  s sort  d drain  u unload  c cancel  e explain  q end"
FILTER_MOST: Final = 100  # characters
PAGE: Final = 10  # rows
_DIM, _ASK, _GOOD, _BAD = "dim", "bold yellow", "green", "red"


class Action(NamedTuple):
    """Name what is to be done: a verb, with a node, a model, or the number of a request."""

    verb: Verb
    node: str = ""
    model: str = ""
    kind: str = ""
    id: int = 0


class _Place:
    """Hold the selection and order of one list."""

    def __init__(self) -> None:
        self.cursor = 0
        self.selected: object = None  # key of the row, so that the selection follows it
        self.offset = 0
        self.order = Order()


class Session:
    """Hold what the user has chosen, and turn keys into actions.

    Args:
        listings: Return the lists of a frame.
        refusal: Return why a verb cannot be used here, "" if it can.
    """

    def __init__(self, listings: Callable[[Row], list[Listing]], refusal: Callable[[Verb, Row], str]) -> None:
        self._sections_of = listings
        self._refusal = refusal
        self._focus = 0
        self._words = ""
        self._mode = "list"  # or: filter, choose, confirm, page
        self._places: dict[str, _Place] = {}
        self._widths: dict[tuple[str, str], int] = {}
        self._message = Text()
        self._asked: Action | None = None
        self._choices: list[Action] = []
        self._page: list[Text] = []
        self._page_at = 0
        self._drawn: list[Drawn] = []
        self.frame: Row = {}
        self.is_ended = False

    # --- what is shown ---

    def update(self, frame: Row) -> None:
        """Take in a new frame, and keep the selected rows selected."""
        self.frame = frame
        focused = self._drawn[self._focus].listing.name if self._drawn else ""
        self._drawn = [arrange(s, frame, self._place(s).order, self._words) for s in self._sections_of(frame)]
        names = [drawn.listing.name for drawn in self._drawn]
        self._focus = names.index(focused) if focused in names else min(self._focus, len(names) - 1)
        for drawn in self._drawn:
            place = self._place(drawn.listing)
            keys = [drawn.listing.key(row) for row in drawn.rows]
            if place.selected in keys:
                place.cursor = keys.index(place.selected)
            place.cursor = max(0, min(place.cursor, len(keys) - 1))

    def tell(self, text: str, *, failed: bool = False) -> None:
        """Show a message in the last line until the next key."""
        self._message = Text(one_line(text), style=_BAD if failed else _GOOD)

    def show_page(self, page: Sequence[Text]) -> None:
        """Show lines in place of the lists until a key closes them."""
        self._mode, self._page, self._page_at = "page", list(page), 0

    def screen(self, head: Sequence[Text], width: int, height: int) -> list[Text]:
        """Return the lines of the whole screen."""
        body = height - len(head) - 1
        if self._mode == "page":
            self._page_at = max(0, min(self._page_at, len(self._page) - body))
            middle = self._page[self._page_at : self._page_at + body]
        else:
            middle = self._lists(width, body)
        middle += [Text()] * (body - len(middle))
        return [*head, *middle[:body], self._footer(width)]

    def _lists(self, width: int, height: int) -> list[Text]:
        from sollol.cli.screen import APART, share_out

        apart = 1 if height >= APART else 0
        shares = share_out([len(drawn.rows) for drawn in self._drawn], height - apart * len(self._drawn), self._focus)
        found: list[Text] = []
        for number, (drawn, share) in enumerate(zip(self._drawn, shares, strict=True)):
            place, focused = self._place(drawn.listing), number == self._focus
            found += [Text()] * apart
            shown = share if share >= len(drawn.rows) else max(1, share - 1)  # one line counts the others
            if place.cursor < place.offset or not focused:
                place.offset = place.cursor if focused else 0
            place.offset = max(place.offset, place.cursor - shown + 1) if focused else 0
            place.offset = max(0, min(place.offset, len(drawn.rows) - shown))
            found += lines(
                drawn,
                width,
                share,
                offset=place.offset,
                cursor=place.cursor if focused else None,
                focused=focused,
                order=place.order,
                widths=self._widths,
            )[: share + 1]
        return found

    def _footer(self, width: int) -> Text:
        if self._mode == "filter":
            line = Text.assemble(("/", _ASK), one_line(self._words), ("▏", "blink"), ("   Enter keeps, Esc ends", _DIM))
        elif self._mode == "confirm" and self._asked is not None:
            line = self._question(self._asked)
        elif self._mode == "choose":
            names = "  ".join(f"{number} {one_line(a.model)}" for number, a in enumerate(self._choices, 1))
            line = Text.assemble(("Unload which?  ", _ASK), names, ("  Esc none", "bold"))
        elif self._message:
            line = self._message.copy()
        elif self._mode == "page":
            line = Text("Esc back", style=_DIM)
        elif self._words:
            line = Text.assemble(
                ("filter: ", _ASK), one_line(self._words), ("   Esc shows all   ", _DIM), (HINTS, _DIM)
            )
        else:
            line = Text(HINTS, style=_DIM)
        line.no_wrap, line.overflow = True, "ellipsis"
        line.truncate(width, overflow="ellipsis")
        return line

    def _question(self, action: Action) -> Text:
        question, after = ASKS[action.verb]
        values = {"node": action.node, "model": action.model, "kind": action.kind}
        asked = question.format(id=action.id, **{name: one_line(value) for name, value in values.items()})
        return Text.assemble((asked, _ASK), ("  y yes  n no  ", "bold"), (after, _DIM))

    # --- keys ---

    def press(self, key: str) -> Action | None:
        """Take in a key; return the action that it starts."""
        if key == "resize":
            return None
        self._message = Text()
        self.is_ended = key == "gone"
        handler = {"filter": self._edit, "confirm": self._confirm, "choose": self._choose, "page": self._turn}
        return handler.get(self._mode, self._command)(key)

    def _command(self, key: str) -> Action | None:
        moves = {
            "up": -1,
            "k": -1,
            "down": 1,
            "j": 1,
            "pageup": -PAGE,
            "pagedown": PAGE,
            "home": -1 << 30,
            "end": 1 << 30,
        }
        moves |= {"g": -1 << 30, "G": 1 << 30}
        if key in moves:
            self._move(moves[key])
        elif key in ("tab", "right", "backtab", "left"):
            self._focus = (self._focus + (1 if key in ("tab", "right") else -1)) % max(1, len(self._drawn))
        elif key == "/":
            self._mode = "filter"
        elif key == "esc":
            self._filter("")
        elif key in ("s", "S"):
            self._sort(1 if key == "s" else -1)
        elif key == "r":
            place = self._focused_place()
            place.order = place.order._replace(descending=not place.order.descending)
            self.update(self.frame)
        elif key in ("?", "h"):
            self.show_page(help_page())
        elif key == "q":
            self.is_ended = True
        elif key in ("d", "u", "c", "e", "enter"):
            return self._act({"d": "drain", "u": "unload", "c": "cancel"}.get(key, "explain"))
        return None

    def _act(self, verb: Verb) -> Action | None:
        listing, row = self._selected()
        if row is not None and verb == "drain" and row.get("drained"):
            verb = "resume"
        if refusal := self._refusal(verb, self.frame):
            self.tell(refusal, failed=True)
            return None
        if row is None:
            self.tell(f"{verb}: no row is selected", failed=True)
            return None
        if verb in ("drain", "resume", "unload"):
            if listing != "nodes":
                self.tell(f"{verb}: select a node in the first list; Tab goes from list to list", failed=True)
                return None
            if verb == "unload":
                self._unload(row)
            else:
                self._confirm_first(Action(verb, node=row["host"]))
            return None
        if verb == "cancel":
            if listing not in ("running", "waiting"):
                self.tell("cancel: select a running or waiting request; Tab goes from list to list", failed=True)
            else:
                self._confirm_first(Action(verb, model=row["model"], kind=row["kind"], id=row["id"]))
            return None
        if "id" not in row or listing not in ("running", "waiting", "recent"):
            self.tell("explain: select a request; Tab goes from list to list", failed=True)
            return None
        return Action(verb, id=row["id"])

    def _unload(self, row: Row) -> None:
        models = [model["model"] for model in row.get("loaded") or ()][:9]
        if not models:
            self.tell(f"unload: no model is in the memory of {row['host']}", failed=True)
        elif len(models) == 1:
            self._confirm_first(Action("unload", row["host"], models[0]))
        else:
            self._choices = [Action("unload", row["host"], model) for model in models]
            self._mode = "choose"

    def _choose(self, key: str) -> Action | None:
        self._mode = "list"
        if key.isdecimal() and 1 <= int(key) <= len(self._choices):
            self._confirm_first(self._choices[int(key) - 1])
        return None

    def _confirm_first(self, action: Action) -> None:
        self._asked, self._mode = action, "confirm"

    def _confirm(self, key: str) -> Action | None:
        asked, self._asked, self._mode = self._asked, None, "list"
        if key in ("y", "Y"):
            return asked
        self.tell("nothing was done")
        return None

    def _edit(self, key: str) -> Action | None:
        if key == "enter":
            self._mode = "list"
        elif key == "esc":
            self._mode = "list"
            self._filter("")
        elif key == "backspace":
            self._filter(self._words[:-1])
        elif len(key) == 1 and len(self._words) < FILTER_MOST:
            self._filter(self._words + key)
        return None

    def _turn(self, key: str) -> Action | None:
        moves = {"up": -1, "k": -1, "down": 1, "j": 1, "pageup": -PAGE, "pagedown": PAGE, " ": PAGE}
        if key in moves:
            self._page_at += moves[key]
        elif key in ("esc", "q", "enter", "e", "?", "h", "backspace"):
            self._mode, self._page = "list", []
        return None

    def _filter(self, words: str) -> None:
        self._words = words
        self.update(self.frame)

    def _sort(self, step: int) -> None:
        drawn, place = self._drawn[self._focus], self._focused_place()
        columns = len(drawn.listing.columns)
        now = -1 if place.order.column is None else place.order.column
        found = (now + 1 + step) % (columns + 1) - 1  # after the last column, the order of the frame again
        is_number = found >= 0 and drawn.listing.columns[found].right
        place.order = Order(None if found < 0 else found, is_number)  # numbers: the highest first
        self.update(self.frame)

    def _move(self, step: int) -> None:
        drawn, place = self._drawn[self._focus], self._focused_place()
        if drawn.rows:
            place.cursor = max(0, min(place.cursor + step, len(drawn.rows) - 1))
            place.selected = drawn.listing.key(drawn.rows[place.cursor])

    def _selected(self) -> tuple[str, Row | None]:
        drawn, place = self._drawn[self._focus], self._focused_place()
        return drawn.listing.name, drawn.rows[place.cursor] if drawn.rows else None

    def _focused_place(self) -> _Place:
        return self._place(self._drawn[self._focus].listing)

    def _place(self, listing: Listing) -> _Place:
        return self._places.setdefault(listing.name, _Place())


def _hints() -> Text:
    parts = (hint.partition(" ") for hint in HINTS.split("  "))
    return Text("  ").join(Text.assemble((key, "bold"), (f" {meaning}", _DIM)) for key, _, meaning in parts)


def help_page() -> list[Text]:
    """Return the keys with their meaning."""
    widest = max(len(keys) for keys, _ in KEYS) + 3
    found = [Text("Keys", style="bold"), Text()]
    found += [Text.assemble((keys.ljust(widest), "cyan"), meaning) for keys, meaning in KEYS]
    found += [
        Text(),
        Text("d, u and c need a confirmation: y does it, any other key does not."),
        Text("They need a gateway (`sollol serve`), with an admin key where it requires keys."),
        Text("Yellow: longer than 1.5 times the prediction, or a part of a model on the CPU."),
    ]
    return found
