"""The dashboard: one live page of nodes, queue and requests.

It reads `pool.snapshot()` once a second while somebody looks, and changes nothing.
"""

from __future__ import annotations

from sollol.dashboard.server import CannotListen, UnifiedDashboard, run_unified_dashboard
from sollol.dashboard.watch import Watch

__all__ = ["CannotListen", "UnifiedDashboard", "Watch", "run_unified_dashboard"]
