"""Show a live page of nodes, queue and requests.

The page reads `pool.snapshot()` once a second while a browser has it open, and changes nothing.
"""

from __future__ import annotations

from sollol.dashboard.server import CannotListen, UnifiedDashboard, run_unified_dashboard
from sollol.dashboard.watch import Watch

__all__ = ["CannotListen", "UnifiedDashboard", "Watch", "run_unified_dashboard"]
