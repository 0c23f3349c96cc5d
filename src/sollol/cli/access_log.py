"""Print one line for each finished request, as text or as JSON, for `sollol serve --access-log`."""

from __future__ import annotations

import json
import time

from sollol.cli.console import one_line, say
from sollol.observe.request_record import RequestRecord
from sollol.observe.subscription import Subscription
from sollol.printable import printable_json


class AccessLog:
    """Print the records of a subscription. Prompts and answers are not part of them."""

    def __init__(self, records: Subscription[RequestRecord], form: str) -> None:
        self._records = records
        self._line = json_line if form == "json" else text_line
        self._lost = 0

    async def write(self) -> None:
        """Print what came since the last call."""
        for record in self._records.take():
            say(self._line(record))
        if self._records.lost > self._lost:
            say(f"# {self._records.lost - self._lost} lines were lost: the terminal or the pipe is too slow")
            self._lost = self._records.lost


def text_line(record: RequestRecord) -> str:
    """Return a record as a line of words and name=value pairs."""
    when = time.strftime("%Y-%m-%dT%H:%M:%S%z", time.localtime(record.at))
    parts = [when, f"id={record.id}", record.kind, _word(record.model), record.outcome]
    parts += [f"node={_word(record.node)}", f"app={_word(record.app)}"]
    parts += [f"total={record.total_s:.3f}s", f"queue={record.queue_s:.3f}s"]
    if record.first_token_s is not None:
        parts.append(f"first={record.first_token_s:.3f}s")
    if record.tokens_in or record.tokens_out:
        parts.append(f"tokens={record.tokens_in}+{record.tokens_out}")
    if record.items:
        parts.append(f"items={record.items}")
    if len(record.attempts) > 1:
        parts.append(f"attempts={len(record.attempts)}")
    return " ".join([*parts, one_line(record.error)]).rstrip()


def _word(name: str) -> str:
    """Return a name as one word: quoted if it has spaces or quotes, "-" if it is empty."""
    shown = one_line(name) or "-"
    return json.dumps(shown, ensure_ascii=False) if any(char.isspace() or char in '"=' for char in shown) else shown


def json_line(record: RequestRecord) -> str:
    """Return a record as one JSON object."""
    import msgspec

    return printable_json(msgspec.json.encode(record).decode())
