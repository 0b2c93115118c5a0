"""Long conversions in slices, between which the event loop serves others."""

from __future__ import annotations

import asyncio
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import Any, TypeVar

Item = TypeVar("Item")
Result = TypeVar("Result")

#: How long the conversions of one iteration of the loop may take together, in seconds.
SLICE = 0.004
#: How long those of one call may take before the next call has its turn, in seconds.
TURN = 0.001
#: How many results one iteration of the loop hands over, about, to calls of more than one. Callers
#: use, and drop, them in the next iteration; until then they are alive, and the garbage collector
#: starts when there are 700 objects more (2,000 from Python 3.13 on). A node is seven.
HANDED_OVER = 64


@dataclass(slots=True, eq=False)
class _Job:
    """The conversions of one call."""

    items: Iterator[Any]
    convert: Callable[[Any], Any]
    converted: list[Any]
    done: asyncio.Future[None]
    error: Exception | None = None

    def run(self, until: float) -> bool:
        """Convert until a point in time, one item at least; returns whether all are done."""
        try:
            if not _convert(self.items, self.convert, self.converted, until):
                return False
        except Exception as error:
            # Not in the future: one that nobody retrieves is reported by the loop, and that
            # happens where the caller is cancelled just when it is woken.
            self.error = error
        # Ctrl-C cancels the main task in the midst of whatever runs, so also of a conversion.
        if not self.done.done():
            self.done.set_result(None)
        return True


def _convert(
    items: Iterator[Any], convert: Callable[[Any], Any], converted: list[Any], until: float
) -> bool:
    """Convert until a point in time, one item at least; returns whether all are done."""
    for item in items:
        converted.append(convert(item))
        if time.perf_counter() >= until:
            return False
    return True


class Slices:
    """Converts for the calls of one event loop, a slice of time in each iteration of the loop.

    Calls take turns within a slice. One that finds time left is served at once, which costs a
    lone call nothing.

    Args:
        seconds: The length of a slice.
    """

    def __init__(self, seconds: float = SLICE) -> None:
        self._seconds = seconds
        self._left = seconds
        self._jobs: deque[_Job] = deque()

    async def convert(
        self, items: Iterable[Item], convert: Callable[[Item], Result]
    ) -> list[Result]:
        """Convert items one by one.

        Raises:
            Exception: What `convert` raises; what follows is then not converted.
        """
        remaining = iter(items)
        converted: list[Result] = []
        if not self._jobs and self._left > 0:
            began = time.perf_counter()
            try:
                if _convert(remaining, convert, converted, began + self._left):
                    return converted
            finally:
                self._left -= time.perf_counter() - began
        loop = asyncio.get_running_loop()
        job = _Job(remaining, convert, converted, loop.create_future())
        self._jobs.append(job)
        if len(self._jobs) == 1:
            loop.call_soon(self._slice)
        await job.done
        if job.error is not None:
            raise job.error
        return converted

    def _slice(self) -> None:
        """Convert for one slice, and come back in the next iteration while there is more."""
        now = time.perf_counter()
        until = now + self._seconds
        handed_over = 0
        while self._jobs and now < until and handed_over < HANDED_OVER:
            job = self._jobs.popleft()
            if job.done.done():  # a caller that was cancelled has left
                continue
            if job.run(min(until, now + TURN)):
                if len(job.converted) > 1:
                    handed_over += len(job.converted)
            else:
                self._jobs.append(job)
            now = time.perf_counter()
        self._left = until - now
        if self._jobs:
            asyncio.get_running_loop().call_soon(self._slice)
