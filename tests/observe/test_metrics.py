"""Metrics: each finished request once, in valid text, with bounded labels and documented names."""

from __future__ import annotations

import re
import shutil
import subprocess
import time
from pathlib import Path

import pytest

from sollol.core.actions import Complete, Start
from sollol.core.types import Cause, Decision, Kind, Outcome, Status, Task, Timing
from sollol.observe import metrics as metrics_module
from sollol.observe.attempt_log import AttemptLog
from sollol.observe.metrics import FAMILIES, OTHER, Metrics
from sollol.observe.record_builder import MODEL_MOST, record_of_call
from sollol.observe.recorder import Recorder
from sollol.observe.request_record import RequestRecord
from sollol.observe.subscription import Subscription
from sollol.sim import sim_cluster
from tests.gateway.stage import MODEL, gateway_over, talker

DOCS = Path(__file__).parents[2] / "docs" / "metrics.md"


def values(text: str) -> dict[str, float]:
    """Return sample -> value of a text in Prometheus' format."""
    samples = (line.rpartition(" ") for line in text.splitlines() if line and not line.startswith("#"))
    return {name: float(value) for name, _, value in samples}


def log_of(*attempts: tuple[str, Cause, Outcome], model: str = "m", first_us: int = 0) -> tuple[AttemptLog, Complete]:
    """Return the log of attempts of one second each, and the end of the task by the last one."""
    log = AttemptLog(Task(1, Kind.CHAT, model, app="app"))
    log.submitted_us, log.first_us = 1_000_000, first_us
    for number, (node, cause, outcome) in enumerate(attempts, 1):
        decision = Decision(node, 500_000, "fastest", first_us=100_000)
        start = Start(number, 1, node, decision, cause=cause)
        log.attempts.append((start, outcome, number * 1_000_000, number * 1_000_000 + 1_000_000))
    outcome = attempts[-1][2] if attempts else Outcome(Status.DEADLINE, "no answer in 1.0 s")
    return log, Complete(1, outcome, len(attempts) if outcome.status is Status.OK else None)


ANSWERED = Outcome(Status.OK, "", 200, Timing(total_us=900_000, prompt_tokens=7, tokens=10, decode_us=400_000))


def test_a_record_measures_queue_first_token_and_prediction() -> None:
    failed = Outcome(Status.FAILED, "500: broken", 500)
    log, settled = log_of(("a", Cause.FIRST, failed), ("b", Cause.RETRY, ANSWERED), first_us=2_250_000)
    record = record_of_call(settled, log, 3_000_000, 0.0)
    assert (record.node, record.queue_s, record.actual_s, record.total_s) == ("b", 1.0, 1.0, 2.0)
    assert (record.first_token_s, record.predicted_s, record.tokens_out) == (1.25, 0.5, 10)
    assert [(a.node, a.cause, a.outcome, a.error) for a in record.attempts] == [
        ("a", "first", "failed", "500: broken"),
        ("b", "retry", "ok", ""),
    ]


def test_a_whole_answer_has_its_first_token_by_the_clock_of_the_node() -> None:
    log, settled = log_of(("a", Cause.FIRST, ANSWERED))
    assert record_of_call(settled, log, 2_000_000, 0.0).first_token_s == pytest.approx(0.6)


def test_a_request_without_a_node_has_no_times_of_one() -> None:
    log, settled = log_of()
    record = record_of_call(settled, log, 2_000_000, 0.0)
    assert (record.node, record.queue_s, record.actual_s, record.outcome) == ("", 1.0, 0.0, "deadline")
    counted = Metrics()
    counted.count(record)
    text = counted.render({}).decode()
    assert values(text)['sollol_requests_total{kind="chat",model="m",node="",outcome="deadline"}'] == 1
    assert "sollol_prediction_ratio_count" not in text


def test_buckets_are_cumulative_and_end_with_all() -> None:
    counted = Metrics()
    for _ in range(3):
        log, settled = log_of(("a", Cause.FIRST, ANSWERED))
        counted.count(record_of_call(settled, log, 2_000_000, 0.0))
    found = values(counted.render({}).decode())
    name = 'sollol_request_duration_seconds_bucket{kind="chat",model="m",le="%s"}'
    assert [found[name % bound] for bound in ("0.5", "1", "2.5", "+Inf")] == [0, 3, 3, 3]
    assert found['sollol_request_duration_seconds_sum{kind="chat",model="m"}'] == 3.0
    assert found['sollol_prediction_ratio_bucket{kind="chat",model="m",le="2"}'] == 3


@pytest.mark.parametrize("name", ['quo"te', "back\\slash", "line\nfeed", "émoji"])
def test_any_name_is_a_valid_label(name: str) -> None:
    counted = Metrics()
    log, settled = log_of(("a", Cause.FIRST, ANSWERED), model=name)
    counted.count(record_of_call(settled, log, 2_000_000, 0.0))
    text = counted.render({}).decode()
    quoted = name.replace("\\", "\\\\").replace('"', '\\"').replace("\n", "\\n")
    assert f'model="{quoted}"' in text
    assert all(re.fullmatch(r"#.*|sollol_\w+(\{.*\})? \S+", line) for line in text.splitlines())


def test_labels_are_bounded() -> None:
    counted = Metrics()
    for number in range(metrics_module.MODELS_MOST + 5):
        log, settled = log_of(("a", Cause.FIRST, ANSWERED), model=f"m{number}")
        counted.count(record_of_call(settled, log, 2_000_000, 0.0))
    found = values(counted.render({}).decode())
    assert found[f'sollol_requests_total{{kind="chat",model="{OTHER}",node="a",outcome="ok"}}'] == 5


def test_invented_names_leave_room_for_real_ones() -> None:
    counted = Metrics()
    for number in range(2 * metrics_module.MODELS_MOST):
        log, settled = log_of(model=f"{number}-{'x' * 100_000}")
        counted.count(record_of_call(settled, log, 2_000_000, 0.0))
    log, settled = log_of(("a", Cause.FIRST, ANSWERED), model="real")
    counted.count(record_of_call(settled, log, 2_000_000, 0.0))
    text = counted.render({}).decode()
    assert values(text)['sollol_requests_total{kind="chat",model="real",node="a",outcome="ok"}'] == 1
    assert max(map(len, text.splitlines())) < MODEL_MOST + 200


def test_counters_count_all_and_the_sample_goes_to_history_and_subscribers() -> None:
    recorder = Recorder(lambda: 2_000_000)
    queue = recorder.subscribe("test")
    recorder.sample(0.0)
    log, settled = log_of(("a", Cause.FIRST, ANSWERED))
    recorder.add_call(settled, log)
    assert (recorder.history.recent(), queue.take()) == ([], [])
    assert b'sollol_app_requests_total{app="app",outcome="ok"} 1\n' in recorder.metrics.render({})
    recorder.sample(1.0)
    recorder.add_call(settled, log)
    assert [row.id for row in recorder.history.recent()] == [1]
    assert [record.node for record in queue.take()] == ["a"]


def test_a_slow_subscriber_loses_the_oldest_and_is_counted() -> None:
    queue: Subscription[int] = Subscription("slow", 3)
    for number in range(5):
        queue.put(number)
    assert (queue.lost, queue.take(2), queue.take()) == (2, [2, 3], [4])


def test_a_gateway_counts_what_its_clients_did() -> None:
    with sim_cluster([talker(1, 5_000.0)]) as cluster, gateway_over(cluster.urls) as stage:
        body = {"model": MODEL, "prompt": "a", "stream": False, "options": {"num_predict": 4}}
        with stage.client() as client:
            for _ in range(3):
                assert client.post("/api/generate", json=body).status_code == 200
            assert client.post("/api/generate", json={**body, "model": "absent"}).status_code == 404
            answer = client.get("/metrics")
        assert answer.headers["content-type"].startswith("text/plain; version=0.0.4")
        found, node = values(answer.text), cluster.urls[0].removeprefix("http://")
        assert found[f'sollol_requests_total{{kind="generate",model="{MODEL}:latest",node="{node}",outcome="ok"}}'] == 3
        assert found[f'sollol_node_up{{node="{node}"}}'] == 1
        assert found[f'sollol_output_tokens_total{{model="{MODEL}:latest",node="{node}"}}'] == 12
        assert found["sollol_faults_total"] == 0
        promtool = shutil.which("promtool")
        if promtool:
            checked = subprocess.run([promtool, "check", "metrics"], input=answer.content, capture_output=True)
            assert checked.returncode == 0, checked.stdout + checked.stderr


def test_the_page_of_the_docs_has_every_family() -> None:
    rows = re.findall(r"^\| `(sollol_\w+)` \| (\w+) \| ([^|]*) \| ([^|]*) \|$", DOCS.read_text(), re.MULTILINE)
    written = {name: (type_, labels.strip(), help_.strip()) for name, type_, labels, help_ in rows}
    assert written == {
        name: (family.type, ", ".join(f"`{label}`" for label in family.labels), family.help)
        for name, family in FAMILIES.items()
    }


def test_two_thousand_replicas_render_while_a_node_would_answer() -> None:
    """A scrape must not hold the loop: the bound is in `bench`; here only that all lines are there."""
    counted = Metrics()
    pairs = [(f"model-{model}", f"10.0.0.{node}:11434") for node in range(200) for model in range(10)]
    labels: list[tuple[str, ...]] = [*pairs]
    of_replicas = [name for name, family in FAMILIES.items() if family.labels == ("model", "node")]
    present = {name: dict.fromkeys(labels, 1.0) for name in of_replicas}
    began = time.perf_counter()
    text = counted.render(present)
    print(f"{len(text)} bytes in {time.perf_counter() - began:.3f} s")
    assert text.count(b"\nsollol_") == 2_000 * len(present)


def test_records_are_plain_values() -> None:
    log, settled = log_of(("a", Cause.FIRST, ANSWERED))
    record = record_of_call(settled, log, 2_000_000, 0.0)
    import msgspec

    assert msgspec.json.decode(msgspec.json.encode(record), type=RequestRecord) == record
