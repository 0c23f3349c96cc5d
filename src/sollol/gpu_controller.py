"""Models on GPUs: `SOLLOLGPUController(pool).optimize_cluster()`."""

from __future__ import annotations

from sollol.compat.gpu_controller import (
    ModelPlacement,
    SOLLOLGPUController,
    integrate_with_router,
)

__all__ = [
    "ModelPlacement",
    "SOLLOLGPUController",
    "integrate_with_router",
]
