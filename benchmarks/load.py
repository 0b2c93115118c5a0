"""Open and closed loops of calls, and what is read off them.

Times are those of the event loop's clock, so that the tests can run this on a loop whose time is
made up.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias

import numpy as np

from .measure import Figures, percentiles

Call: TypeAlias = Callable[[], Awaitable[Any]]

#: Calls at once with which `find_capacity` begins, and the factor by which it goes on.
FEW_CALLS = 16
MORE_CALLS = 4


@dataclass(frozen=True)
class Outcome:
    """What became of one call of an open loop; times are seconds since the loop began.

    Attributes:
        arrival: When it was to be made.
        end: When it was answered, had failed, or was given up.
        failed: Whether it failed or was given up.
        result: What it returned.
    """

    arrival: float
    end: float
    failed: bool = False
    result: Any = None

    @property
    def latency(self) -> float:
        """Seconds from the arrival to the end, whenever the call was really made."""
        return self.end - self.arrival


@dataclass(frozen=True)
class Capacity:
    """The throughput of a closed loop.

    Attributes:
        rate: Calls answered per second.
        concurrency: Calls under way at once.
    """

    rate: float
    concurrency: int


def arrivals_at(rate: float, seconds: float, least: int) -> int:
    """How many calls to make at a rate: for so many seconds, or twice as long for the `least`."""
    return max(2, min(max(least, int(rate * seconds)), int(2 * rate * seconds)))


def poisson_arrivals(rate: float, n: int, seed: int) -> list[float]:
    """The times of `n` arrivals of a Poisson process within `n / rate` seconds.

    Given their number, the arrivals of a Poisson process are independent and uniform. Drawn like
    this they come at exactly the rate asked for; of 60 drawn by their gaps, one run in three would
    be off by 13 per cent or more, and 95 per cent of the capacity be more than all of it.
    """
    times: list[float] = np.sort(np.random.default_rng(seed).uniform(0, n / rate, n)).tolist()
    return times


async def open_loop(
    calls: Sequence[Call], arrivals: Sequence[float], patience: float
) -> list[Outcome]:
    """Make each call at its time, whether or not the ones before are done.

    A loop that comes late with a call cannot hide it: the latency counts from the arrival.

    Args:
        calls: The calls.
        arrivals: Their times, in seconds from now and in order.
        patience: Seconds after the last arrival when calls that are not answered are given up.

    Returns:
        The outcomes, in the order of the calls.
    """
    now = asyncio.get_running_loop().time
    began = now()

    async def make(call: Call, arrival: float) -> Outcome:
        try:
            result = await call()
        except (Exception, asyncio.CancelledError):
            return Outcome(arrival, now() - began, failed=True)
        return Outcome(arrival, now() - began, result=result)

    tasks = []
    for call, arrival in zip(calls, arrivals, strict=True):
        wait = began + arrival - now()
        if wait > 0:
            await asyncio.sleep(wait)
        tasks.append(asyncio.create_task(make(call, arrival)))
    _, pending = await asyncio.wait(tasks, timeout=patience)
    for task in pending:
        task.cancel()
    return await asyncio.gather(*tasks)


async def closed_loop(calls: Sequence[Call], concurrency: int) -> float:
    """Make calls, each as soon as one before is done, so many at once; returns the seconds.

    Raises:
        Exception: That of a call, when all are over.
    """
    now = asyncio.get_running_loop().time
    began = now()
    left = iter(calls)

    async def caller() -> None:
        for call in left:
            await call()

    ends = await asyncio.gather(*(caller() for _ in range(concurrency)), return_exceptions=True)
    for end in ends:
        if isinstance(end, BaseException):
            raise end
    return now() - began


async def find_capacity(
    make_calls: Callable[[int], Sequence[Call]], most: int, seconds: float
) -> Capacity:
    """The throughput of a closed loop of about so many `seconds`.

    `most` calls are under way at once, or fewer where that many would take longer than `seconds`.
    How many that is, is found by making more and more at once.

    Args:
        make_calls: Makes so many calls, outside the measurement.
        most: Most calls at once.
        seconds: The length of the loop.
    """
    concurrency = min(FEW_CALLS, most)
    spent = await closed_loop(make_calls(concurrency), concurrency)
    while concurrency < most and MORE_CALLS * spent <= seconds:
        concurrency = min(most, MORE_CALLS * concurrency)
        spent = await closed_loop(make_calls(concurrency), concurrency)
    calls = make_calls(max(concurrency, int(seconds * concurrency / spent)))
    return Capacity(len(calls) / await closed_loop(calls, concurrency), concurrency)


def load_figures(outcomes: Sequence[Outcome]) -> Figures:
    """Percentiles and maximum of the latencies, the rate of answers, and how many calls failed.

    Calls that failed count in the latencies, with the time until then, and not in the rate. The
    rate is that from the beginning to the last answer.
    """
    latencies = [each.latency for each in outcomes]
    answered = [each.end for each in outcomes if not each.failed]
    return {
        **percentiles(latencies),
        "max": max(latencies),
        "served": len(answered) / max(answered) if answered else 0.0,
        "failed": len(outcomes) - len(answered),
    }
