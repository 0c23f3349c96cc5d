"""Show a live page of nodes, queue and requests.

The page reads `pool.snapshot()` once a second while a browser has it open, and changes nothing.
"""

from __future__ import annotations

from typing import Any

from sollol.dashboard.server import CannotListen, UnifiedDashboard, run_unified_dashboard
from sollol.dashboard.watch import Watch
from sollol.former import find_former

__all__ = ["CannotListen", "UnifiedDashboard", "Watch", "run_unified_dashboard"]


def __getattr__(name: str) -> Any:
    return find_former("dashboard", name)
