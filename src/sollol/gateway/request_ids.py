"""Find the task of a request by its number, or by the id that its client chose."""

from __future__ import annotations

import re
from typing import Final

from sollol.errors import BadInput
from sollol.gateway.auth.access import sees_all
from sollol.http_server.request import Request

IDS_MOST: Final = 10_000  # the oldest are forgotten
_ID: Final = re.compile(r"[A-Za-z0-9._-]{1,64}")


class RequestIds:
    """Map `X-Sollol-Request-Id` of clients to tasks.

    Each application of a key has ids of its own: a key can neither read nor replace those of another.
    """

    def __init__(self) -> None:
        self._tasks: dict[tuple[str | None, str], int] = {}  # (application of the key, id)

    def add(self, request: Request, task: int) -> None:
        """Record the task under the id in the request's header, if there is one.

        Raises:
            BadInput: The id has other characters, or more than 64.
        """
        name = request.header(b"x-sollol-request-id")
        if name:
            if not _ID.fullmatch(name):
                raise BadInput(f"X-Sollol-Request-Id: {name!r}; expected 1 to 64 letters, digits, '.', '_' or '-'")
            if len(self._tasks) >= IDS_MOST:
                del self._tasks[next(iter(self._tasks))]
            self._tasks[_owner(request), name] = task

    def find(self, request: Request, name: str) -> int | None:
        """Return the task of a number or an id, as far as the caller may see it."""
        found = self._tasks.get((_owner(request), name))
        if found is None and sees_all(request):
            found = next((task for (_, given), task in reversed(self._tasks.items()) if given == name), None)
        return found if found is not None else int(name) if name.isdecimal() and len(name) < 19 else None


def _owner(request: Request) -> str | None:
    return request.key.app if request.key is not None else None
