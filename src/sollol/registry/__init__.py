"""A small registry of models, from which the nodes of one network pull what one of them has."""

from __future__ import annotations

from typing import Any

from sollol.former import find_former


def __getattr__(name: str) -> Any:
    return find_former("registry", name)
