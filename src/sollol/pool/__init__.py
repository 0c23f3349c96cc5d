"""The Python API: pools over the engine."""

from __future__ import annotations

from typing import Any

from sollol.former import find_former


def __getattr__(name: str) -> Any:
    return find_former("pool", name)
