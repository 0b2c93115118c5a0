"""Conversions share the event loop: nobody starves, nobody holds it, nothing is lost."""

from __future__ import annotations

import asyncio
import time

import pytest

from llama_index_milvus_async._concurrency import slices as slices_module
from llama_index_milvus_async._concurrency.slices import HANDED_OVER, Slices


def spin(seconds: float) -> None:
    until = time.perf_counter() + seconds
    while time.perf_counter() < until:
        pass


def double(item: int) -> int:
    return 2 * item


async def count_iterations(until: asyncio.Future[object]) -> int:
    count = 0
    while not until.done():
        await asyncio.sleep(0)
        count += 1
    return count


async def test_results_come_in_the_order_of_the_items():
    slices = Slices(seconds=0.0005)

    def slow(item: int) -> int:
        spin(0.0001)
        return 2 * item

    calls = [range(start, start + 30) for start in range(0, 300, 30)]
    converted = await asyncio.gather(*(slices.convert(items, slow) for items in calls))
    assert converted == [[2 * item for item in items] for items in calls]


async def test_nothing_to_convert():
    assert await Slices().convert([], double) == []


async def test_a_call_that_finds_time_left_is_served_at_once():
    call = Slices(seconds=1).convert([1, 2, 3], double)
    with pytest.raises(StopIteration) as stop:
        call.send(None)
    assert stop.value.value == [2, 4, 6]


async def test_one_that_finds_none_waits_for_one_iteration_only():
    slices = Slices(seconds=0.001)
    await slices.convert([0.002], spin)
    converting = asyncio.ensure_future(slices.convert([1], double))
    assert await count_iterations(converting) <= 4
    assert converting.result() == [2]


async def test_a_long_call_is_spread_over_iterations():
    slices = Slices(seconds=0.001)
    converting = asyncio.ensure_future(slices.convert([0.0005] * 100, spin))
    # 50 ms of work in slices of 1 ms, each of which may run over by one item.
    assert await count_iterations(converting) >= 25


async def test_a_short_call_does_not_wait_for_a_long_one():
    slices = Slices(seconds=0.001)
    long = asyncio.ensure_future(slices.convert([0.0005] * 400, spin))
    await asyncio.sleep(0)
    short = asyncio.ensure_future(slices.convert([1], double))
    assert await count_iterations(short) <= 10
    assert not long.done()
    assert len(await long) == 400


async def test_calls_of_several_are_handed_their_results_in_small_lots(monkeypatch):
    """So that they can drop them before there are enough to start the garbage collector."""
    # Else calls whose turn ends on a busy machine keep what they have so far.
    monkeypatch.setattr(slices_module, "TURN", 1)
    slices, kept, most = Slices(seconds=1), 0, 0

    async def use() -> None:
        nonlocal kept, most

        def count(item: int) -> int:
            nonlocal kept, most
            kept += 1
            most = max(most, kept)
            return item

        converted = await slices.convert(range(10), count)
        kept -= len(converted)

    slices._left = 0  # else those that find time left are served at once
    await asyncio.gather(*(use() for _ in range(100)))
    assert kept == 0
    assert most < HANDED_OVER + 10


async def test_the_work_of_many_calls_grows_with_their_number_only():
    """What waits is not woken before its turn: a thousand calls take a thousand wake-ups."""
    slices = Slices(seconds=0.0005)
    loop = asyncio.get_running_loop()
    scheduled = 0
    call_soon = loop.call_soon

    def counting(*args, **kwargs):
        nonlocal scheduled
        scheduled += 1
        return call_soon(*args, **kwargs)

    loop.call_soon = counting
    try:
        await asyncio.gather(*(slices.convert([0.00005], spin) for _ in range(1_000)))
    finally:
        del loop.call_soon
    # Starting a task, waking it, ending it, and the slices: 50 ms of work in half milliseconds.
    assert scheduled < 5_000


async def test_an_exception_is_its_own_callers_and_ends_its_conversions():
    slices = Slices(seconds=0.0005)
    seen: list[int] = []

    def picky(item: int) -> int:
        spin(0.0002)
        seen.append(item)
        if item == 5:
            raise KeyError(item)
        return item

    good, bad = await asyncio.gather(
        slices.convert(range(100, 110), picky),
        slices.convert(range(10), picky),
        return_exceptions=True,
    )
    assert good == list(range(100, 110))
    assert isinstance(bad, KeyError)
    assert max(item for item in seen if item < 100) == 5


async def test_what_a_cancelled_caller_asked_for_is_not_converted():
    slices = Slices(seconds=0.0005)
    seen: list[int] = []

    def note(item: int) -> None:
        spin(0.0003)
        seen.append(item)

    cancelled = asyncio.ensure_future(slices.convert(range(100), note))
    other = asyncio.ensure_future(slices.convert(range(100, 105), note))
    await asyncio.sleep(0)
    await asyncio.sleep(0)
    cancelled.cancel()
    with pytest.raises(asyncio.CancelledError):
        await cancelled
    assert len(await other) == 5
    before = len(seen)
    await asyncio.sleep(0.01)
    assert len(seen) == before < 100


async def test_an_exception_after_a_cancellation_is_not_reported():
    """The caller is cancelled in the iteration in which its conversion fails."""
    slices = Slices(seconds=0.0005)
    await slices.convert([0.001], spin)
    reports: list[object] = []
    asyncio.get_running_loop().set_exception_handler(lambda _, context: reports.append(context))

    def fail(_: int) -> None:
        asyncio.get_running_loop().call_soon(task.cancel)
        raise KeyError

    task = asyncio.ensure_future(slices.convert([1], fail))
    with pytest.raises((asyncio.CancelledError, KeyError)):
        await task
    assert reports == []


async def test_a_caller_that_is_cancelled_in_the_midst_of_its_conversion_is_not_reported():
    """As by Ctrl-C, which cancels the main task between any two lines of it."""
    slices = Slices(seconds=0.0005)
    reports: list[object] = []
    asyncio.get_running_loop().set_exception_handler(lambda _, context: reports.append(context))
    before = asyncio.ensure_future(slices.convert([0.001] * 3, spin))
    task = asyncio.ensure_future(slices.convert([1], lambda _: task.cancel()))
    with pytest.raises(asyncio.CancelledError):
        await task
    await before
    assert reports == []
    assert await slices.convert([1], double) == [2]
