"""Describe the loads in progress. No node reports them: they are followed by time, against their prediction."""

from __future__ import annotations

from sollol.core.state.replica import Replica
from sollol.core.types import Micros
from sollol.observe.rows import LoadingRow


def is_being_loaded(replica: Replica, now: Micros) -> bool:
    """Check that a load is under way, with a request or without."""
    return replica.is_loading or replica.loading_until > now


def load_row(replica: Replica, now: Micros) -> LoadingRow:
    """Return model, state ("loading", or "stuck" by the load watch), times, `progress` (0.0 to 1.0) and `eta_ms`.

    Progress and `eta_ms` are None where no load of the node was measured, and after the predicted end.
    """
    began = [attempt.started_us for attempt in replica.attempts.values() if attempt.loads]
    elapsed_us, predicted_us = now - min(began, default=replica.loading_since), replica.load_us()
    is_known = replica.node.load_time.is_measured and elapsed_us < predicted_us
    return LoadingRow(
        model=replica.model,
        state="stuck" if replica.node.loads_barred_until > now else "loading",
        elapsed_ms=elapsed_us / 1000,
        predicted_ms=predicted_us / 1000,
        progress=round(elapsed_us / predicted_us, 3) if is_known else None,
        eta_ms=(predicted_us - elapsed_us) / 1000 if is_known else None,
    )
