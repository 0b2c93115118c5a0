"""How far something long has come: what callers are told, and who counts it."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass

from .._retrieval.values import described
from ..errors import ConfigurationError


@dataclass(frozen=True)
class Progress:
    """How far a copy, a check, an export or the like has come.

    Attributes:
        operation: What it is: `"copy"`, `"check"`, ..., or `"compare"` where a copy compares ids.
        done: The rows that are done, those of an earlier run included.
        total: All rows, as they were counted at the beginning; `None` where nobody knows.
        seconds: The time since it began.
        already: The rows of `done` that were so at the beginning.
    """

    operation: str
    done: int
    total: int | None
    seconds: float
    already: int = 0

    @property
    def rate(self) -> float:
        """Rows a second, those of an earlier run not counted."""
        return (self.done - self.already) / self.seconds if self.seconds > 0 else 0.0

    @property
    def seconds_left(self) -> float | None:
        """The time that is left at this rate; `None` where it is not known."""
        if self.total is None or self.rate <= 0:
            return None
        return max(0, self.total - self.done) / self.rate


#: What is told how far something has come, a few times a second at most times. It is called on the
#: event loop, and must return soon.
ProgressCallback = Callable[[Progress], object]


#: Rows that are counted one by one until the callback is told.
_TOLD_AT_ONCE = 1_000


class Meter:
    """Counts rows, and tells a callback of them.

    Args:
        operation: What is counted.
        total: All rows, where that is known.
        callback: What is told.
        already: The rows that are done at the beginning.
    """

    def __init__(
        self,
        operation: str,
        total: int | None,
        callback: ProgressCallback | None,
        *,
        already: int = 0,
    ) -> None:
        self._operation = operation
        self._total = total
        self._callback = callback
        self._already = already
        self._done = self._told = already
        self._began = time.perf_counter()

    @property
    def progress(self) -> Progress:
        """How far it has come."""
        seconds = time.perf_counter() - self._began
        # There may be more by now.
        total = None if self._total is None else max(self._total, self._done)
        return Progress(self._operation, self._done, total, seconds, self._already)

    def add(self, rows: int) -> None:
        """Count rows that are done, and tell the callback."""
        self._done += rows
        self._told = self._done
        if self._callback is not None:
            self._callback(self.progress)

    def count(self) -> None:
        """Count a row that is done; the callback is told now and then, and by `add(0)`."""
        self._done += 1
        if self._done - self._told >= _TOLD_AT_ONCE:
            self.add(0)


def count_of(count: int) -> str:
    """A number of nodes, for people."""
    return f"{count:,} node{'' if count == 1 else 's'}"


def check_callback(callback: object) -> None:
    """Check that what is to be told of the progress can be called.

    Raises:
        ConfigurationError: It cannot.
    """
    if callback is not None and not callable(callback):
        raise ConfigurationError(
            f"on_progress is {described(callback)}; it must be a function that takes a Progress"
        )
