"""Import optional packages on demand; name the remedy for a missing one.

So the core install is small, and `sollol --help` is fast.
"""

from __future__ import annotations

import importlib
from typing import Any

from sollol.errors import SollolError

_EXTRA = {"pyarrow": "parquet", "pyarrow.parquet": "parquet"}


class MissingExtra(SollolError):
    """A package that this command needs is not installed."""


def need(module: str) -> Any:
    """Import and return a module.

    Raises:
        MissingExtra: It is not installed. The message has the command to install it.
    """
    try:
        return importlib.import_module(module)
    except ImportError as error:
        extra = _EXTRA.get(module, "index")
        raise MissingExtra(
            f"this needs the package {module.partition('.')[0]!r}, which is not installed ({error}). "
            f"In SOLLOL's checkout:  pip install '.[{extra}]'"
        ) from error
