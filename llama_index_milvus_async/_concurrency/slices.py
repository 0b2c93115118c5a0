"""Long conversions in slices, between which the event loop serves others."""

from __future__ import annotations

import asyncio
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from typing import Any, TypeVar

Item = TypeVar("Item")
Result = TypeVar("Result")

#: How long the conversions of one iteration of the loop may take together, in seconds.
SLICE = 0.004
#: How long those of one call may take before the next call has its turn, in seconds.
TURN = 0.001


@dataclass(slots=True, eq=False)
class _Job:
    """The conversions of one call."""

    items: Iterator[Any]
    convert: Callable[[Any], Any]
    done: asyncio.Future[None]
    converted: list[Any] = field(default_factory=list)
    error: Exception | None = None

    def run(self, until: float) -> bool:
        """Convert until a point in time, one item at least; returns whether all are done."""
        try:
            for item in self.items:
                self.converted.append(self.convert(item))
                if time.perf_counter() >= until:
                    return False
        except Exception as error:
            # Not in the future: one that nobody retrieves is reported by the loop, and that
            # happens where the caller is cancelled just when it is woken.
            self.error = error
        # Ctrl-C cancels the main task in the midst of whatever runs, so also of a conversion.
        if not self.done.done():
            self.done.set_result(None)
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
        loop = asyncio.get_running_loop()
        job = _Job(iter(items), convert, loop.create_future())
        began = time.perf_counter()
        if self._jobs or self._left <= 0 or not job.run(began + self._left):
            self._jobs.append(job)
            if len(self._jobs) == 1:
                loop.call_soon(self._slice)
        if not self._jobs:
            self._left -= time.perf_counter() - began
        await job.done
        if job.error is not None:
            raise job.error
        return job.converted

    def _slice(self) -> None:
        """Convert for one slice, and come back in the next iteration while there is more."""
        now = time.perf_counter()
        until = now + self._seconds
        while self._jobs and now < until:
            job = self._jobs.popleft()
            # A caller that was cancelled has left.
            if not job.done.done() and not job.run(min(until, now + TURN)):
                self._jobs.append(job)
            now = time.perf_counter()
        self._left = until - now
        if self._jobs:
            asyncio.get_running_loop().call_soon(self._slice)
