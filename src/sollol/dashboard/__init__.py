"""The dashboard: one live page of nodes, queue and requests, in the extra `dashboard`.

It is a face: it reads `pool.snapshot()` once a second while somebody looks, and changes nothing. Importing it costs
little; starlette and uvicorn are imported when a dashboard starts.
"""

from __future__ import annotations

from sollol.dashboard.server import CannotListen, NotInstalled, UnifiedDashboard, run_unified_dashboard
from sollol.dashboard.watch import Watch

__all__ = ["CannotListen", "NotInstalled", "UnifiedDashboard", "Watch", "run_unified_dashboard"]
