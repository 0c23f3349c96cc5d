"""Measurements of one finished request, as plain values: what metrics, the store and exporters receive.

Prompts and answers are not part of it.
"""

from __future__ import annotations

from typing import Final

import msgspec

from sollol.core.types import OK, Cause

ANSWERED: Final = OK.value  # looked up once: the value of an enum is a call


class AttemptRecord(msgspec.Struct, frozen=True, array_like=True, gc=False):
    """Measurements of one attempt; times in seconds. `started_s` counts from the submission."""

    node: str
    cause: str
    outcome: str
    error: str
    started_s: float
    duration_s: float
    predicted_s: float
    http_status: int = 0


class RequestRecord(msgspec.Struct, frozen=True, gc=False):
    """Measurements of one finished request; times in seconds.

    Attributes:
        at: End of the request, in seconds since 1970.
        node: Address of the node that answered; "" if none did, several for a batch.
        options: Runner options that decide whether the model is loaded again; "" for none.
        outcome: A value of `core.types.Status`.
        queue_s: Time from the submission to the start of the answering attempt.
        actual_s: Duration of the answering attempt.
        total_s: Time from the submission to the end.
        first_token_s: Time from the submission to the first part of the answer; None if it was not measured.
        predicted_s: Predicted duration of the answering attempt; 0.0 without a prediction.
        predicted_first_s: Predicted time from that attempt's start to the first token; 0.0 without a prediction.
        load_s: Time that the node spent loading the model.
        items: Texts of a batch; 0 for a single request.
    """

    id: int
    at: float
    app: str
    kind: str
    model: str
    task_type: str
    priority: int
    mode: str
    stream: bool
    options: str
    node: str
    outcome: str
    error: str
    http_status: int
    attempts: list[AttemptRecord]
    queue_s: float
    actual_s: float
    total_s: float
    first_token_s: float | None
    predicted_s: float
    predicted_first_s: float
    tokens_in: int = 0
    tokens_out: int = 0
    load_s: float = 0.0
    prefill_s: float = 0.0
    decode_s: float = 0.0
    resumptions: int = 0
    items: int = 0
    failed_items: int = 0
    takeovers: int = 0

    @property
    def ok(self) -> bool:
        """Return whether the request was answered."""
        return self.outcome == ANSWERED

    def caused_by(self, cause: Cause) -> int:
        """Return the number of attempts with this cause."""
        return sum(attempt.cause == cause.value for attempt in self.attempts)
