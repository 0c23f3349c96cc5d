"""Pass class options to mypyc; without it, do nothing. Itself not compiled."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from mypy_extensions import mypyc_attr as mypyc_attr
else:

    def mypyc_attr(**_: bool) -> Any:
        """Return a decorator that changes nothing."""
        return lambda cls: cls
