"""Read the items of `batch_chat` and `batch_generate`, for both pools."""

from __future__ import annotations

from collections.abc import AsyncIterable, Callable, Iterable, Mapping
from typing import Any, NamedTuple

from sollol.answers import Answer
from sollol.engine.call_batch import CallEnded
from sollol.engine.engine import finish
from sollol.engine.inference_request import InferenceRequest
from sollol.errors import BadInput
from sollol.pool.requests import chat_request, generate_request
from sollol.workload.call_options import CallOptions
from sollol.workload.validation import check_count, check_model, short


class AnswerBatch(NamedTuple):
    """A validated call of `batch_chat` or `batch_generate`. `request` builds the request of an item."""

    model: str
    call: CallOptions
    width: int | None
    on_error: str
    request: Callable[[int, Any], InferenceRequest]

    def request_or_error(self, item: int, given: Any) -> InferenceRequest | BadInput:
        """Return the request of an item, or the error of one that cannot be sent."""
        try:
            return self.request(item, given)
        except BadInput as error:
            return error


def chat_batch(
    model: str, call: CallOptions, max_workers: int | None, on_error: str, extra: Mapping[str, Any]
) -> AnswerBatch:
    """Validate a call of `batch_chat`."""

    def request(item: int, given: Any) -> InferenceRequest:
        messages = [{"role": "user", "content": given}] if isinstance(given, str) else given
        return chat_request(model, messages, False, call, extra)

    return _batch("batch_chat", model, call, max_workers, on_error, request)


def generate_batch(
    model: str, call: CallOptions, max_workers: int | None, on_error: str, extra: Mapping[str, Any]
) -> AnswerBatch:
    """Validate a call of `batch_generate`."""

    def request(item: int, given: Any) -> InferenceRequest:
        if not isinstance(given, str):
            raise BadInput(f"it is {short(given)} ({type(given).__name__}); expected a string")
        return generate_request(model, given, False, call, extra)

    return _batch("batch_generate", model, call, max_workers, on_error, request)


def _batch(
    verb: str,
    model: str,
    call: CallOptions,
    width: int | None,
    on_error: str,
    request: Callable[[int, Any], InferenceRequest],
) -> AnswerBatch:
    check_model(model)
    if call.hedge is not None and not isinstance(call.hedge, bool):
        raise BadInput("hedge=<a policy>; for a batch expected True, False or None")
    if on_error not in ("raise", "return"):
        raise BadInput(f"on_error={short(on_error)}; expected 'raise' or 'return'")
    if width is not None:
        check_count("max_workers", width)

    def numbered(item: int, given: Any) -> InferenceRequest:
        try:
            return request(item, given)
        except BadInput as error:
            raise BadInput(f"{verb}: inputs[{item}]: {error}") from None

    return AnswerBatch(model, call, width, on_error, numbered)


def listed(batch: AnswerBatch, inputs: Iterable[Any] | AsyncIterable[Any]) -> list[Any] | tuple[Any, ...] | None:
    """Validate and return inputs that are a list or a tuple; None for other iterables.

    Raises:
        BadInput: The inputs are one text or no iterable, or an item cannot be sent.
    """
    if isinstance(inputs, (str, bytes, Mapping)) or (
        isinstance(inputs, (list, tuple)) and inputs and isinstance(inputs[0], Mapping)
    ):
        raise BadInput(f"inputs={short(inputs)}; expected a list with an item for each answer: [...] for one")
    if not isinstance(inputs, (list, tuple)):
        if not isinstance(inputs, (Iterable, AsyncIterable)):
            raise BadInput(f"inputs={short(inputs)}; expected a list or an iterator of items")
        return None
    for item, given in enumerate(inputs):
        batch.request(item, given)
    return inputs


def answer_of(ended: CallEnded) -> Answer | Exception:
    """Return the answer of an item, or its error."""
    if ended.job is None or ended.request is None:
        assert ended.error is not None
        return ended.error
    try:
        return finish(ended.job, ended.request)
    except Exception as error:
        return error
