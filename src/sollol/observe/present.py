"""Values of the scheduler's present state for the metrics, read at each scrape."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Mapping

from sollol.core.types import SECOND
from sollol.core.view import SchedulerView

Values = dict[tuple[str, ...], float]


def present_values(view: SchedulerView, *, version: str, faults: int, lost: Mapping[str, int]) -> dict[str, Values]:
    """Return the values of the gauges and of the scheduler's own counters, by family and labels.

    Args:
        faults: Unexpected exceptions so far.
        lost: Records lost so far, by subscriber.
    """
    found: dict[str, Values] = defaultdict(dict)
    found["sollol_build_info"][version,] = 1
    found["sollol_faults_total"][()] = faults
    for subscriber, number in lost.items():
        found["sollol_records_lost_total"][subscriber,] = number
    for node in view.nodes.values():
        key = node.key
        if node.up is not None:
            found["sollol_node_up"][key,] = int(node.up)
        if node.version:
            found["sollol_node_info"][key, node.version] = 1
        found["sollol_node_running"][key,] = node.running
        found["sollol_node_failed_attempts_total"][key,] = node.failed
        found["sollol_node_attempts_total"][key,] = node.attempted
        for model, replica in node.replicas.items():
            labels = (model, key)
            found["sollol_slots"][labels] = replica.limiter.limit
            found["sollol_breaker_open"][labels] = int(not replica.breaker.closed)
            found["sollol_items_total"][labels] = replica.embedded
            found["sollol_prompt_cost_total"][labels] = replica.prompt_cost
            found["sollol_prompt_cost_reused_total"][labels] = replica.prompt_cost_reused
            for family, rate in (
                ("sollol_decode_tokens_per_second", replica.decode.read()),
                ("sollol_prefill_tokens_per_second", replica.prefill.read()),
            ):
                if rate is not None:
                    found[family][labels] = rate * SECOND
        for model in node.models:
            found["sollol_model_loaded"][model, key] = 0
        for model, held in node.loaded.items() if node.up else ():
            found["sollol_model_loaded"][model, key] = 1
            if held.size:
                found["sollol_model_bytes"][model, key] = held.size
            if held.gpu_share is not None:
                found["sollol_model_gpu_share"][model, key] = held.gpu_share
    running = Counter(attempt.task.model for attempt in view.attempts.values())
    waiting = Counter((p.task.model, str(p.task.priority)) for p in view.tasks.values() if not p.attempts)
    found["sollol_running"] = {(model,): number for model, number in running.items()}
    found["sollol_waiting"] = {(model, priority): number for (model, priority), number in waiting.items()}
    return found
