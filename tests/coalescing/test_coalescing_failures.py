"""A call that is refused, overloaded or lost fails whom it has to fail, and nobody else."""

from __future__ import annotations

import asyncio
import math
from dataclasses import replace
from typing import Any

import pytest

from llama_index_milvus_async._concurrency import backoff
from llama_index_milvus_async._concurrency.coalescing import RequestKind
from tests.coalescing.server import (
    Call,
    DataError,
    LostError,
    OverloadError,
    frozen,
    new_coalescer,
    outcomes,
    submitted,
    timers,
    turns,
)

# Isolation


def refuse_bad(call: Call, bad: set[int]) -> None:
    if bad.isdisjoint(call.items):
        call.answer()
    else:
        call.refuse(DataError(sorted(bad.intersection(call.items))))


@pytest.mark.parametrize("bad", [{0}, {63}, {31, 32}, {5, 20, 50}, set(range(64))])
async def test_a_refused_item_fails_alone(server, bad):
    coalescer, kind = new_coalescer(), server.kind()
    tasks = await submitted(coalescer, kind, range(64))
    while server.open:
        assert len(server.open) <= 3
        for call in server.open:
            refuse_bad(call, bad)
        await turns()
    for item, outcome in enumerate(await outcomes(tasks)):
        if item in bad:
            assert isinstance(outcome, DataError)
            assert outcome.args == ([item],)
        else:
            assert outcome == f"re {item}"
    assert len(server.calls) <= 1 + 2 * len(bad) * math.log2(64)
    stats = coalescer.stats()["insert"]
    assert stats.bisections == stats.retries == (len(server.calls) - 1) / 2


async def test_halves_are_sent_at_once_and_before_what_arrived_later(server):
    coalescer, kind = new_coalescer(max_in_flight=3), server.kind()
    tasks = await submitted(coalescer, kind, range(4))
    tasks += await submitted(coalescer, kind, [4], key="other")
    tasks += await submitted(coalescer, kind, [5])
    server.calls[0].refuse(DataError())
    await turns()
    assert [call.items for call in server.open] == [[4], [0, 1]]
    server.calls[1].answer()
    await turns()
    assert [call.items for call in server.open] == [[0, 1], [2, 3]]
    await server.answer_all()
    assert server.received[-1] == [5]
    assert await outcomes(tasks) == [f"re {i}" for i in range(6)]


async def test_who_is_left_of_a_refused_call_is_sent_again(server):
    coalescer, kind = new_coalescer(), server.kind()
    tasks = await submitted(coalescer, kind, range(3))
    tasks[0].cancel()
    tasks[1].cancel()
    await turns()
    server.calls[0].refuse(DataError("perhaps one of those that have left"))
    await turns()
    assert server.received == [[0, 1, 2], [2]]
    await server.answer_all()
    assert (await outcomes(tasks))[2] == "re 2"


async def test_other_errors_go_to_every_item_of_the_call(server):
    coalescer, kind = new_coalescer(), server.kind()
    tasks = await submitted(coalescer, kind, range(3))
    tasks += await submitted(coalescer, kind, [3], key="other")
    cause = ValueError("cause")
    error = LostError("lost")
    error.__cause__ = cause
    server.calls[0].refuse(error)
    await server.answer_all()
    *failed, other = await outcomes(tasks)
    assert other == "re 3"
    assert len(server.calls) == 2
    assert [repr(e) for e in failed] == ["LostError('lost')"] * 3
    assert len({id(e) for e in failed}) == 3
    assert all(e.__cause__ is cause for e in failed)


def depth(error: BaseException) -> int:
    count, traceback = 0, error.__traceback__
    while traceback is not None:
        count, traceback = count + 1, traceback.tb_next
    return count


async def test_callers_do_not_see_each_others_tracebacks(server):
    coalescer, kind = new_coalescer(), server.kind()

    async def caller(nested: int) -> Any:
        return await (caller(nested - 1) if nested else coalescer.submit(kind, "k", nested))

    tasks = [asyncio.create_task(caller(nested)) for nested in [0, 5, 0]]
    await turns()
    server.calls[0].refuse(LostError())
    shallow, deep, again = await outcomes(tasks)
    assert depth(deep) == depth(shallow) + 5
    assert depth(again) == depth(shallow)
    frames, traceback = [], shallow.__traceback__
    while traceback is not None:
        frames.append(traceback.tb_frame.f_code.co_name)
        traceback = traceback.tb_next
    assert frames[-1] == "receive"  # the place where it was raised is shown as well


async def test_an_exception_that_cannot_be_copied_is_shared(server):
    class OddError(LostError):
        def __init__(self, code: int, text: str) -> None:
            super().__init__(f"{code}: {text}")

    coalescer, kind = new_coalescer(), server.kind()
    tasks = await submitted(coalescer, kind, range(2))
    server.calls[0].refuse(OddError(7, "odd"))
    assert [str(error) for error in await outcomes(tasks)] == ["7: odd"] * 2


@pytest.mark.parametrize("results", [[], ["one"], ["one"] * 3, None])
async def test_a_wrong_number_of_results_is_an_error_of_all(server, results):
    coalescer, kind = new_coalescer(), server.kind()
    tasks = await submitted(coalescer, kind, range(2))
    server.calls[0].reply.set_result(results)
    for error in await outcomes(tasks):
        assert isinstance(error, TypeError if results is None else RuntimeError)
    assert len(server.calls) == 1
    assert coalescer.is_idle


async def test_a_predicate_that_fails_does_not_leave_callers_waiting(server):
    kind = server.kind()
    broken = RequestKind(
        "insert", kind.call, 10, 10, 10, kind.is_separable, lambda _, error: error.missing
    )
    coalescer = new_coalescer()
    tasks = await submitted(coalescer, broken, range(2))
    server.calls[0].refuse(LostError())
    assert [type(error) for error in await outcomes(tasks)] == [AttributeError] * 2
    assert coalescer.is_idle


# Overload


async def test_overload_halves_the_calls_in_flight_and_sends_again_after_a_pause(
    server, monkeypatch
):
    monkeypatch.setattr(backoff, "FIRST_PAUSE", 1)
    monkeypatch.setattr(backoff, "LONGEST_PAUSE", 5)
    with frozen() as clock:
        coalescer = new_coalescer(max_in_flight=9, clock=clock)
        kind, search = server.kind(max_items=1), server.kind("search")
        tasks = await submitted(coalescer, kind, range(40))
        assert len(server.open) == 8
        for call in server.open:  # of the same moment: halved once, from 9 to 4
            call.refuse(OverloadError())
        await turns()
        assert server.open == []
        tasks += await submitted(coalescer, search, ["?"])
        assert server.received[8:] == [["?"]]  # another kind has no pause
        server.open[0].answer()
        await clock.advance(0.49)
        assert server.open == []
        await clock.advance(0.51)
        assert [call.items for call in server.open] == [[0], [1], [2], [3]]
        server.open[0].refuse(OverloadError())  # to 2, and a pause of one to two seconds
        for call in server.open:  # sent before the halving: they tell nothing about it
            call.answer()
        await turns()
        await clock.advance(0.99)
        assert server.open == []
        await clock.advance(1.01)
        assert [call.items for call in server.open] == [[0], [4]]
        # A round of successes adds one: 2, then 3, then 4 in flight.
        for expected in 3, 4, 5:
            for call in server.open:
                call.answer()
            await turns()
            assert len(server.open) == expected
        await server.answer_all()
        results = await outcomes(tasks)
    assert results == [f"re {i}" for i in [*range(40), "?"]]
    assert coalescer.stats()["insert"].resends == 9
    assert coalescer.stats()["insert"].bisections == 0


async def test_a_batch_refused_for_overload_goes_again_as_it_was_and_first(server):
    with frozen() as clock:
        coalescer, kind = new_coalescer(max_in_flight=3, clock=clock), server.kind(max_items=2)
        tasks = await submitted(coalescer, kind, range(5))
        assert server.received == [[0, 1], [2, 3]]
        server.calls[1].refuse(OverloadError())
        server.calls[0].refuse(OverloadError())
        tasks[2].cancel()
        await turns()
        await clock.advance(1)
        assert [call.items for call in server.open] == [[0, 1]]  # one at a time now
        server.open[0].answer()
        await turns()
        assert [call.items for call in server.open] == [[3], [4]]  # and two after a success
        await server.answer_all()
        await outcomes(tasks)


async def test_success_forgets_earlier_overload(server, monkeypatch):
    monkeypatch.setattr(backoff, "FIRST_PAUSE", 1)
    monkeypatch.setattr(backoff, "LONGEST_PAUSE", 5)
    with frozen() as clock:
        coalescer, kind = new_coalescer(max_in_flight=5, clock=clock), server.kind(max_items=1)
        for _ in range(3):
            # Back at its most, and not beyond: half of it is two.
            tasks = await submitted(coalescer, kind, range(20))
            await server.answer_all()
            tasks += await submitted(coalescer, kind, range(4))
            await clock.advance(0.5)
            for call in server.open:
                call.refuse(OverloadError())
            await turns()
            await clock.advance(1)  # the longest of first pauses
            assert len(server.open) == 2
            server.open[0].answer()
            await turns()
            assert len(server.open) == 2  # not yet a round of successes
            await server.answer_all()
            await outcomes(tasks)
        stats = coalescer.stats()["insert"]
    assert stats.resends == 12
    # In each round four items: half a second on the wire, then a pause.
    assert (stats.wire_seconds, stats.waiting_seconds) == (6, 12)


async def test_overload_is_told_after_a_bounded_number_of_tries(server):
    with frozen() as clock:
        coalescer, kind = new_coalescer(clock=clock), server.kind()
        tasks = await submitted(coalescer, kind, [0, 1])
        begin = clock.now
        while server.open:
            server.open[0].refuse(OverloadError(len(server.calls)))
            await turns()
            if not tasks[0].done():
                await clock.advance(backoff.LONGEST_PAUSE)
        results = await outcomes(tasks)
        assert clock.now - begin == backoff.MAX_RESENDS * backoff.LONGEST_PAUSE
        assert timers() == []
    assert [type(result) for result in results] == [OverloadError] * 2
    assert results[0].args == (backoff.MAX_RESENDS + 1,)
    assert coalescer.is_idle


async def test_the_last_error_tells_of_the_earlier_ones(server):
    def after(earlier, last):
        last.args = (*earlier.args, *last.args)
        return last

    with frozen() as clock:
        coalescer = new_coalescer(clock=clock)
        tasks = await submitted(coalescer, replace(server.kind(), after=after), [0, 1])
        for error in (OverloadError("first"), OverloadError("second"), LostError("last")):
            server.open[0].refuse(error)
            await turns()
            await clock.advance(backoff.LONGEST_PAUSE)
        told = await outcomes(tasks)
    assert [type(error) for error in told] == [LostError] * 2
    assert [error.args for error in told] == [("first", "second", "last")] * 2


async def test_under_overload_a_deadline_decides(server):
    with frozen() as clock:
        coalescer, kind = new_coalescer(clock=clock), server.kind()
        (task,) = await submitted(coalescer, kind, [0], timeout=200 * backoff.LONGEST_PAUSE)
        while not task.done():
            if server.open:
                server.open[0].refuse(OverloadError(len(server.calls)))
            await clock.advance(backoff.LONGEST_PAUSE)
        (error,) = await outcomes([task])
    assert len(server.calls) == 100
    assert isinstance(error, asyncio.TimeoutError)
    assert isinstance(error.__cause__, OverloadError)
    assert coalescer.is_idle


async def test_a_pause_ends_when_nobody_waits_for_it(server):
    coalescer, kind = new_coalescer(), server.kind(max_items=1)
    before = len(timers())
    tasks = await submitted(coalescer, kind, [0, 1], timeout=60)
    for call in server.open:
        call.refuse(OverloadError())
    await turns()
    assert len(timers()) == before + 2  # one for the deadlines, and the pause
    for task in tasks:
        task.cancel()
    await turns()
    assert len(timers()) == before
    assert coalescer.is_idle
