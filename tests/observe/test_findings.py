"""Findings: each check fires where its fault is, and says nothing where all is well."""

from __future__ import annotations

from typing import Any

import msgspec
import pytest

from sollol.observe import findings
from sollol.observe.findings import CHECKS, SEVERITIES, Evidence, Finding, ModelLoad, findings_of
from sollol.observe.overview import Verdict, verdict
from sollol.observe.rows import Snapshot

AT = 1_796_000_000.0
M = "llama3.2:latest"


def held(model: str = M, gpu: float = 1.0, **more: Any) -> dict[str, Any]:
    return {
        "model": model, "size": 1_000, "size_vram": round(1_000 * gpu), "processor": f"{gpu:.0%} GPU",
        "expires_at": "2026-12-01T00:00:00Z", "context_length": 8_192, "runners": 1, **more,
    }  # fmt: skip


def node(host: str, state: str = "up", **more: Any) -> dict[str, Any]:
    up = state == "up"
    return {
        "host": host, "url": f"http://{host}", "state": state, "why": "" if up else "it refused the connection",
        "version": "0.33.0" if up else "", "since": AT - 40, "unable": [], "loaded": [held()] if up else [],
        "loading": [], "breakers": [], "has_gpu": True, "slots": {M: 4}, **more,
    }  # fmt: skip


def snapshot(*nodes: dict[str, Any], **more: Any) -> Snapshot:
    found = {
        "app_name": "", "version": "", "routing_mode": None, "routing_strategy": "", "nodes": list(nodes), "totals": {},
        "calibration": {"median": 1.0, "p90": 1.3, "count": 500}, **more,
    }  # fmt: skip
    return msgspec.convert(found, Snapshot)


def seen(*nodes: dict[str, Any], evidence: dict[str, Any] | None = None, **more: Any) -> Evidence:
    return Evidence(snapshot(*nodes, **more), AT, **(evidence or {}))


def waiting(number: int, eta_ms: float) -> list[dict[str, Any]]:
    task = {"id": 1, "kind": "chat", "model": M, "app": "", "priority": 5, "waited_ms": 0.0, "position": 1}
    return [{**task, "eta_ms": eta_ms} for _ in range(number)]


def running() -> list[dict[str, Any]]:
    times = dict.fromkeys(("predicted_ms", "elapsed_ms", "queue_ms"), 1.0)
    task = {"id": 1, "kind": "chat", "model": M, "app": "", "priority": 5, "attempt": 1, "node": "a:1", "items": 0}
    return [{**task, **times, "phase": "decode", "cause": "first", "reason": ""}]


def loads(*options: str, model: str = M) -> tuple[ModelLoad, ...]:
    return tuple(ModelLoad(AT - 10 * i, "a:1", model, option, f"app-{option}") for i, option in enumerate(options))


GOOD = (node("a:1"), node("b:1"))
LOAD = {"model": M, "state": "stuck", "elapsed_ms": 600_000, "predicted_ms": 9_000, "progress": None, "eta_ms": None}
TWO = {"embeddings_use": "aaa", "nodes": {"aaa": ["a:1"], "bbb": ["b:1"]}}
FIRES: list[tuple[str, Evidence, str]] = [
    ("no-nodes", seen(), "No nodes are known"),
    ("all-down", seen(node("a:1", "down")), "The only node is down"),
    ("twin-runners", seen(node("a:1", loaded=[held() | {"runners": 2}])), "2 versions of"),
    ("node-asleep", seen(*GOOD, node("c:1", "asleep")), "c:1 is asleep"),
    ("node-down", seen(*GOOD, node("c:1", "down")), "c:1 is down for 40 s: it refused the connection"),
    ("hung-load", seen(node("a:1", loading=[LOAD])), "10 min"),
    ("requests-fail", seen(*GOOD, evidence={"failed": {"500: broken": 9}, "finished": 20}), "9 of the last 20"),
    ("key-needed", seen(node("a:1", unable=["needs a key"])), "a:1: needs a key"),
    ("incapable", seen(node("a:1", unable=["has no /v1/messages"])), "has no /v1/messages"),
    ("on-cpu", seen(node("a:1", loaded=[held(gpu=0.0)])), "runs on the CPU"),
    ("on-cpu", seen(node("a:1", loaded=[held(gpu=0.0)], has_gpu=False), node("b:1")), "runs on the CPU"),
    ("partly-on-cpu", seen(node("a:1", loaded=[held(gpu=0.5)])), f"{M} on a:1 runs 50% GPU"),
    ("mixed-digests", seen(*GOOD, mixed_digests={M: TWO}), "2 versions"),
    ("version-skew", seen(node("a:1"), node("b:1", version="0.30.1")), "2 versions: 0.30.1 on b:1; 0.33.0 on a:1"),
    ("reload-war", seen(*GOOD, evidence={"loads": loads("num_ctx=2048", "num_ctx=8192") * 2}), "num_ctx=2048 and num"),
    ("eviction-war", seen(*GOOD, evidence={"loads": loads("", "", "", "") + loads("", model="x")}), "by turns with x"),
    ("breaker-open", seen(node("a:1", breakers=[M])), "failed several times in a row"),
    ("stuck-unload", seen(node("a:1", loaded=[held(expires_at="2026-11-01T00:00:00Z")])), "should have left"),
    ("long-queue", seen(*GOOD, waiting=waiting(7, 90_000)), "7 requests wait"),
    ("context-full", seen(*GOOD, evidence={"prompts": {(M, "a:1"): 8_190}}), "8,190 tokens fills"),
    ("context-too-large", seen(node("a:1", loaded=[held(gpu=0.5, context_length=131_072)])), "131,072 tokens"),
    ("one-slot", seen(node("a:1", slots={M: 1}), waiting=waiting(3, 100)), "one request at a time, and 3 wait"),
    ("calibration", seen(*GOOD, calibration={"median": 2.4, "p90": 3, "count": 80}), "2.4 times their predicted"),
    ("faults", seen(*GOOD, totals={"faults": 2}), "2 unexpected errors"),
]  # fmt: skip


@pytest.mark.parametrize(("check", "evidence", "words"), FIRES, ids=[row[0] for row in FIRES])
def test_a_check_fires(check: str, evidence: Evidence, words: str) -> None:
    found = [finding for finding in findings_of(evidence) if finding.id == check]
    assert found, [finding.id for finding in findings_of(evidence)]
    assert words in found[0].summary
    assert found[0].cost
    assert found[0].fix
    assert found[0].severity in SEVERITIES


def test_every_check_has_a_row() -> None:
    by_check = {check for check in CHECKS for _, evidence, _ in FIRES if list(check(evidence))}
    assert by_check == set(CHECKS)


SILENT: list[Evidence] = [
    seen(*GOOD),
    seen(node("a:1", loaded=[])),
    seen(node("a:1", "unknown")),
    seen(node("cpu-box:1", loaded=[held(gpu=0.0)], has_gpu=False)),  # it has no GPU: that is what it is
    seen(node("a:1", loaded=[held(size=0)])),  # of an unknown size nothing is claimed
    seen(node("a:1", loading=[LOAD | {"elapsed_ms": 50_000}])),
    seen(*GOOD, evidence={"failed": {"500: broken": 4}, "finished": 20}),
    seen(*GOOD, evidence={"failed": {"500: broken": 9}, "finished": 2_000}),
    seen(*GOOD, evidence={"loads": loads("num_ctx=2048", "num_ctx=8192", "num_ctx=2048")}),
    seen(node("a:1", loaded=[held(expires_at="0001-01-01T00:00:00Z")])),
    seen(node("a:1", loaded=[held(expires_at="2318-02-01T10:00:00.123456789+01:00")])),
    seen(node("a:1", loaded=[held(expires_at="nonsense")])),
    seen(node("a:1", loaded=[held(expires_at="2026-11-01T00:00:00Z")]), running=running()),
    seen(*GOOD, waiting=waiting(7, 900)),
    seen(*GOOD, evidence={"prompts": {(M, "a:1"): 800}}),
    seen(node("a:1", slots={M: 1})),
    seen(*GOOD, calibration={"median": 9.0, "p90": 9, "count": 3}),
    seen(*GOOD, calibration={"median": None, "p90": None, "count": 0}),
]  # fmt: skip


@pytest.mark.parametrize("evidence", SILENT, ids=range(len(SILENT)))
def test_all_checks_are_silent_where_all_is_well(evidence: Evidence) -> None:
    assert findings_of(evidence) == []


def test_the_most_severe_comes_first() -> None:
    evidence = seen(node("a:1", version="0.1", loaded=[held(gpu=0.5)]), node("b:1"), node("c:1", "down"))
    severities = [finding.severity for finding in findings_of(evidence)]
    assert severities == sorted(severities, key=SEVERITIES.index)
    assert severities[0] == "error"


def test_the_verdict_is_one_sentence_about_the_worst() -> None:
    good = snapshot(*GOOD)
    assert verdict(good, [], 0.31) == Verdict("ok", "All well: 2 nodes up. A new chat starts in 310 ms.")
    evidence = seen(*GOOD, node("c:1", "down"), node("d:1", "down"))
    words = verdict(evidence.snapshot, findings_of(evidence), None)
    assert words.severity == "error"
    assert words.text.startswith("c:1 is down for 40 s")
    assert words.text.endswith("And 1 more like it.")


def test_a_finding_is_plain_values() -> None:
    for _, evidence, _ in FIRES:
        for finding in findings_of(evidence):
            assert isinstance(finding, Finding)
            assert msgspec.convert(msgspec.to_builtins(finding), Finding) == finding


@pytest.mark.parametrize(
    ("seconds", "words"), [(-3, "0 s"), (40, "40 s"), (125, "2 min"), (7_500, "2 h 05 min"), (200_000, "2 days")]
)
def test_durations_in_words(seconds: float, words: str) -> None:
    assert findings.duration(seconds) == words


def test_loads_of_different_nodes_are_no_war() -> None:
    spread = tuple(ModelLoad(AT, f"n{number}:1", M, f"num_ctx={number}", "") for number in range(8))
    assert findings_of(seen(*GOOD, evidence={"loads": spread})) == []
