"""Results of batches: answers in the order of the inputs, their errors and a report."""

from __future__ import annotations

import json
from array import array
from collections.abc import Iterator, Sequence
from typing import Any, Generic, Self, TypeVar, overload

from sollol.answers import Answer, EmbedResponse
from sollol.engine.batch_job import BatchEnded, ItemsRefused, VectorsDelivered
from sollol.errors import BatchError, SollolError
from sollol.observe.batch_report import BatchReport

A = TypeVar("A", bound=Answer)


class BatchItems(Sequence[A | None], Generic[A]):
    """The answers of a batch, in the order of the inputs, None for a failed one; `errors` by position; `report`."""

    def __init__(self, model: str) -> None:
        self.model = model
        self.errors: dict[int, Exception] = {}
        self.report: BatchReport  # set at the end
        self._count = 0

    def __len__(self) -> int:
        return self._count

    @overload
    def __getitem__(self, index: int) -> A | None: ...
    @overload
    def __getitem__(self, index: slice) -> list[A | None]: ...
    def __getitem__(self, index: int | slice) -> A | list[A | None] | None:
        if isinstance(index, slice):
            return [self._item(i) for i in range(*index.indices(self._count))]
        position = index + self._count if index < 0 else index
        if not 0 <= position < self._count:
            raise IndexError(f"item {index} of a batch of {self._count}")
        return self._item(position)

    def __iter__(self) -> Iterator[A | None]:
        return map(self._item, range(self._count))

    def _item(self, position: int) -> A | None:
        raise NotImplementedError

    def raise_errors(self, on_error: str, cause: Exception | None = None) -> Self:
        """Return the result, or with `on_error="raise"` raise BatchError for failed items."""
        if self.errors and on_error == "raise":
            failed = BatchError(self.errors, self)
            failed.task_id = self.report.id or None
            raise failed from cause
        return self

    def __eq__(self, other: object) -> bool:
        """Compare with the items of another result, or of a list: an empty result equals []."""
        if isinstance(other, (list, tuple, BatchItems)):
            return len(self) == len(other) and all(mine == theirs for mine, theirs in zip(self, other, strict=True))
        return NotImplemented

    __hash__ = None  # type: ignore[assignment]

    def model_dump(self, **_: Any) -> list[dict[str, Any] | None]:
        """Return the items as plain dicts, None for a failed one, for `json.dumps` and similar."""
        return [None if item is None else item.model_dump() for item in self]

    def model_dump_json(self, *, indent: int | None = None, **_: Any) -> str:
        """Return `model_dump()` as JSON."""
        return json.dumps(self.model_dump(), indent=indent, ensure_ascii=False)


class BatchResult(BatchItems[EmbedResponse]):
    """The vectors of a batch, in the order of the inputs.

    Item `i` reads as an EmbedResponse of one input; `.vectors` is an (n, d) float32 numpy array (rows of failed items
    are NaN); `.report` has the times and the work of each node.
    """

    def __init__(self, model: str, count: int = 0) -> None:
        super().__init__(model)
        self._count = count
        self._have = bytearray(count)
        self._dim = 0
        self._flat: array[float] = array("f")

    def _add(self, message: VectorsDelivered) -> None:
        if not self._dim:
            self._dim = message.dim
        self._grow(message.items[-1][1])
        row, dim = 0, self._dim
        with memoryview(self._flat) as flat, memoryview(message.flat) as source:
            for lo, hi in message.items:
                flat[lo * dim : hi * dim] = source[row * dim : (row + hi - lo) * dim]
                self._have[lo:hi] = b"\x01" * (hi - lo)
                row += hi - lo

    def _grow(self, count: int) -> None:
        if count > self._count:
            self._have.extend(bytes(count - self._count))
            self._count = count
        missing = self._count * self._dim - len(self._flat)
        if missing > 0:
            self._flat.frombytes(bytes(4 * max(missing, min(len(self._flat), 1 << 22))))

    def _item(self, position: int) -> EmbedResponse | None:
        if position in self.errors:
            return None
        start = position * self._dim
        return EmbedResponse(model=self.model, embeddings=[self._flat[start : start + self._dim].tolist()])

    @property
    def vectors(self) -> Any:
        """All vectors as an (n, d) float32 numpy array. Needs numpy: pip install '.[index]' in SOLLOL's checkout."""
        try:
            import numpy as np
        except ImportError:
            raise SollolError("result.vectors needs numpy: pip install '.[index]' in SOLLOL's checkout") from None
        flat = np.frombuffer(self._flat, dtype=np.float32, count=self._count * self._dim)
        rows = flat.reshape(self._count, self._dim)
        if self.errors:
            rows = rows.copy()
            rows[sorted(self.errors)] = np.nan
        return rows

    def _refuse(self, message: ItemsRefused) -> None:
        for item in message.items.items():
            self.errors[item] = message.error
        self._grow(message.items[-1][1])

    def _finish(self, ended: BatchEnded, on_error: str) -> BatchResult:
        """Return the result, or raise its exception. A batch without any vector fails as a whole."""
        self.report = ended.report
        if ended.error is not None:
            if not any(self._have):
                raise ended.error
            for item in range(self._count):
                if not self._have[item]:
                    self.errors.setdefault(item, ended.error)
        self._grow(self._count)
        return self.raise_errors(on_error, ended.error)

    def __repr__(self) -> str:
        failed = f" ({len(self.errors)} failed)" if self.errors else ""
        return f"<BatchResult {self._count} x {self._dim} of {self.model}{failed}>"


class BatchAnswers(BatchItems[A]):
    """The answers of `batch_chat` and `batch_generate`, in the order of the inputs; None for a failed item."""

    def __init__(self, model: str) -> None:
        super().__init__(model)
        self._answers: dict[int, A] = {}

    def add(self, item: int, answer: A | Exception) -> None:
        """Set the answer or the error of an item."""
        self._count = max(self._count, item + 1)
        if isinstance(answer, Exception):
            self.errors[item] = answer
        else:
            self._answers[item] = answer

    def finish(self, report: BatchReport, on_error: str) -> Self:
        """Return the result, or raise its exception: the error of the first item if no item was answered."""
        self.report = report
        if self.errors and not self._answers and on_error == "raise":
            raise self.errors[min(self.errors)]
        return self.raise_errors(on_error)

    def _item(self, position: int) -> A | None:
        return self._answers.get(position)

    def __repr__(self) -> str:
        failed = f" ({len(self.errors)} failed)" if self.errors else ""
        return f"<BatchAnswers {self._count} of {self.model}{failed}>"
