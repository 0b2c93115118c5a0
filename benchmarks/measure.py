"""One measurement: seconds, processor time, and how long the event loop stood still."""

from __future__ import annotations

import asyncio
import gc
import math
import statistics
import time
from collections.abc import Awaitable, Callable, Sequence
from typing import TypeAlias, TypeVar

from tests.fixtures.loops import measure_stall

T = TypeVar("T")

#: Name of a figure to its value; seconds, milliseconds or bytes as the name says.
Figures: TypeAlias = dict[str, float]


async def settle(rest: float) -> None:
    """Start every measurement alike: no garbage of the one before, and an engine at rest.

    What is there already is frozen, so that no collection during the measurement looks at it.

    Args:
        rest: Seconds to wait.
    """
    gc.unfreeze()
    gc.collect()
    gc.freeze()
    await asyncio.sleep(rest)


async def measure(
    operation: Callable[[], Awaitable[T]], operations: int, rest: float
) -> tuple[T, Figures]:
    """Run an operation that stands for a number of `operations`, and measure it.

    A ticker on the loop and one in another process run beside it. They cost about one per cent
    of a core each, whichever contender runs.
    """
    await settle(rest)
    async with measure_stall() as stall:
        processor, began = time.process_time(), time.perf_counter()
        result = await operation()
        seconds = time.perf_counter() - began
        processor = time.process_time() - processor
    return result, {
        "seconds": seconds,
        "operations": operations,
        "cpu_seconds_per_1000": processor / operations * 1_000,
        "stall_ms": stall.loop_ms,
        "bystander_stall_ms": stall.bystander_ms,
        "net_stall_ms": stall.net_ms,
    }


class CallClock:
    """Takes the time of one call after the other, as a context manager around each.

    Processor time is that of this process with all its threads.
    """

    def __init__(self) -> None:
        self._seconds: list[float] = []
        self._cpu_seconds: list[float] = []
        self._began = self._cpu_began = 0.0

    def __enter__(self) -> None:
        self._cpu_began = time.process_time()
        self._began = time.perf_counter()

    def __exit__(self, *_failure: object) -> None:
        self._seconds.append(time.perf_counter() - self._began)
        self._cpu_seconds.append(time.process_time() - self._cpu_began)

    def figures(self) -> Figures:
        """Percentiles of the seconds, and of the processor's, of all calls so far."""
        cpu = percentiles(self._cpu_seconds, "cpu_")
        return {**percentiles(self._seconds), **cpu, "operations": len(self._seconds)}


def percentile(values: Sequence[float], share: float) -> float:
    """The value that a share of all values does not exceed, by the nearest rank."""
    # Rounded first: 0.07 * 100 is a little more than 7.
    rank = math.ceil(round(share * len(values), 6))
    return sorted(values)[max(rank, 1) - 1]


def percentiles(values: Sequence[float], prefix: str = "") -> Figures:
    """Median, 95th and 99th percentile, under the names `p50`, `p95` and `p99`."""
    if not values:
        return {}
    return {
        f"{prefix}p50": statistics.median(values),
        f"{prefix}p95": percentile(values, 0.95),
        f"{prefix}p99": percentile(values, 0.99),
    }
