"""Load and unload models without a request: in advance, for a proof, or for a controller."""

from __future__ import annotations

from sollol.core.actions import Load, Notice, Unload
from sollol.core.events import LoadRequested, UnloadRequested
from sollol.core.state.memory import put_out
from sollol.core.state.replica import Replica
from sollol.core.state.scheduler_state import SchedulerState
from sollol.core.types import Kind, Micros


def load(state: SchedulerState, replica: Replica, kind: Kind, options: str, now: Micros, keep_alive: str = "") -> None:
    """Load the model of a replica with these runner options, without a request."""
    replica.loading_since, replica.loading_until = now, now + 2 * replica.load_us()
    replica.loading_options = options
    state.out.append(Load(replica.key, replica.model, kind, options, keep_alive))


def loaded(replica: Replica, now: Micros) -> None:
    """Record the end of a load without a request, unless requests have begun since with other options."""
    if replica.options_since_us < replica.loading_since or not replica.options_since_us:
        listed = replica.context  # by a list from after the load
        replica.hold_options(replica.loading_options, now)
        replica.options_answered_us, replica.context = now, listed


def load_requested(state: SchedulerState, event: LoadRequested, now: Micros) -> None:
    """Load a model, unless it is in memory, is being loaded, or the node takes no loads."""
    node = state.cluster.nodes.get(event.node)
    if node is None or not node.usable or node.drained or event.model not in node.models:
        return
    state.group(event.model, now)
    replica = node.replicas.get(event.model)
    if replica is None or replica.is_loaded or replica.loading_until > now or replica.is_barred(now):
        return
    load(state, replica, event.kind, event.options, now, event.keep_alive)
    state.out.append(Notice(f"{node.key} loads {event.model}: {event.why}."))


def unload_requested(state: SchedulerState, event: UnloadRequested) -> None:
    """Unload a model, unless a request runs there, or waits for this replica."""
    node = state.cluster.nodes.get(event.node)
    if node is None or not node.usable or event.model not in node.loaded:
        return
    replica = node.replicas.get(event.model)
    if replica is not None and (replica.attempts or replica.is_waited_for()):
        return
    put_out(node, event.model)
    state.out.append(Unload(node.key, event.model))
    state.out.append(Notice(f"{node.key} unloads {event.model}: {event.why}."))
