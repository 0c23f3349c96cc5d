"""Optional packages: imported when a command needs them, and named with the remedy when they are missing.

The core install stays small, and `sollol --help` stays quick, because nothing here is imported before.
"""

from __future__ import annotations

import importlib
from typing import Any

from sollol.errors import SollolError

_EXTRA = {"pyarrow": "parquet", "pyarrow.parquet": "parquet"}


class MissingExtra(SollolError):
    """A package that this command needs is not installed."""


def need(module: str) -> Any:
    """The imported module, or MissingExtra with the command that installs it."""
    try:
        return importlib.import_module(module)
    except ImportError as error:
        extra = _EXTRA.get(module, "index")
        raise MissingExtra(
            f"this needs the package {module.partition('.')[0]!r}, which is not installed ({error}). "
            f"In SOLLOL's checkout:  pip install '.[{extra}]'"
        ) from error
