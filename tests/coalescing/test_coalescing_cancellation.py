"""Callers that leave, deadlines that pass and loops that end disturb nobody."""

from __future__ import annotations

import asyncio
import gc
import sys
import weakref
from collections.abc import Callable, Sequence
from contextlib import suppress
from typing import Any

import pytest

from llama_index_milvus_async._concurrency.backoff import NotSentError
from llama_index_milvus_async._concurrency.coalescing import RequestKind
from tests.coalescing.server import (
    Clock,
    DataError,
    LostError,
    OverloadError,
    Server,
    frozen,
    new_coalescer,
    occupied,
    outcomes,
    submitted,
    timers,
    turns,
)

#

if sys.platform == "win32":
    RUNNERS: list[Callable[..., Any]] = [asyncio.run]
else:
    import uvloop

    RUNNERS = [asyncio.run, uvloop.run]


# Cancellation


async def test_an_item_withdrawn_before_sending_is_never_sent(server):
    coalescer, kind = new_coalescer(max_in_flight=1), server.kind()
    first, task = await occupied(coalescer, server, kind)
    tasks = await submitted(coalescer, kind, range(4))
    tasks[0].cancel()
    await turns()
    first.answer()
    tasks[2].cancel()  # in the very iteration in which the call ends
    await turns()
    assert server.received == [["first"], [1, 3]]
    await server.answer_all()
    await task
    assert [t.cancelled() for t in tasks] == [True, False, True, False]
    assert tasks[1].result() == "re 1"
    assert coalescer.stats()["insert"].cancelled == 2
    assert coalescer.stats()["insert"].timed_out == 0


@pytest.mark.parametrize("iterations", [0, 1])
async def test_an_item_withdrawn_before_its_task_starts_is_never_sent(server, iterations):
    coalescer, kind = new_coalescer(), server.kind()
    tasks = [asyncio.create_task(coalescer.submit(kind, "k", item)) for item in range(3)]
    await turns(iterations)
    tasks[0].cancel()
    await turns()
    assert server.received == [[1, 2]]
    await server.answer_all()
    assert (await outcomes(tasks))[1:] == ["re 1", "re 2"]
    assert coalescer.stats()["insert"].timed_out == 0


async def test_a_lone_item_withdrawn_before_its_task_starts_makes_no_call(server):
    coalescer, kind = new_coalescer(), server.kind()
    task = asyncio.create_task(coalescer.submit(kind, "k", 1))
    await turns(1)
    task.cancel()
    await turns()
    assert server.calls == []
    assert coalescer.is_idle
    assert coalescer.stats()["insert"].rpcs == 0


async def test_an_item_withdrawn_after_sending_disturbs_nobody(server):
    coalescer, kind = new_coalescer(), server.kind()
    tasks = await submitted(coalescer, kind, range(3))
    tasks[1].cancel()
    await turns()
    assert tasks[1].cancelled()
    assert len(server.open) == 1
    await server.answer_all()
    assert (tasks[0].result(), tasks[2].result()) == ("re 0", "re 2")


async def test_a_call_that_nobody_waits_for_is_cancelled(server):
    coalescer, kind = new_coalescer(max_in_flight=1), server.kind()
    tasks = await submitted(coalescer, kind, range(2))
    waiting = await submitted(coalescer, kind, [2])
    for task in tasks:
        task.cancel()
    await turns()
    assert server.calls[0].cancelled
    assert server.received == [[0, 1], [2]]  # its slot is free
    await server.answer_all()
    assert await outcomes(waiting) == ["re 2"]
    assert coalescer.is_idle


@pytest.mark.parametrize("error", [None, DataError(), LostError(), OverloadError()])
async def test_a_caller_cancelled_while_its_answer_arrives(server, error):
    coalescer, kind = new_coalescer(), server.kind()
    tasks = await submitted(coalescer, kind, [1])
    if error is None:
        server.calls[0].answer()
    else:
        server.calls[0].refuse(error)
    await turns(1)  # the call has ended, its caller is about to be woken
    tasks[0].cancel()
    await turns()
    assert tasks[0].cancelled()
    assert coalescer.is_idle
    # The harness fails the test where an exception was never retrieved.


async def test_a_call_that_is_cancelled_from_outside_cancels_its_callers(server):
    coalescer, kind = new_coalescer(), server.kind()
    before = asyncio.all_tasks()
    tasks = await submitted(coalescer, kind, range(2))
    (call,) = asyncio.all_tasks() - before - set(tasks)
    assert call.get_name() == "coalesced insert"
    call.cancel()
    await turns()
    assert all(task.cancelled() for task in tasks)
    assert coalescer.is_idle


async def test_a_task_that_is_cancelled_from_outside_before_it_starts_is_replaced(server):
    coalescer, kind = new_coalescer(), server.kind()
    before = asyncio.all_tasks()
    task = asyncio.create_task(coalescer.submit(kind, "k", 1))
    await turns(1)
    (call,) = asyncio.all_tasks() - before - {task}
    call.cancel()
    await turns()
    assert server.received == [[1]]
    await server.answer_all()
    assert await task == "re 1"


# Deadlines


async def test_a_deadline_is_its_callers_own(server):
    with frozen() as clock:
        coalescer, kind = new_coalescer(max_in_flight=1, clock=clock), server.kind()
        tasks = await submitted(coalescer, kind, [0])  # under way
        tasks += await submitted(coalescer, kind, [1], timeout=5)
        tasks += await submitted(coalescer, kind, [2], timeout=15)
        await clock.advance(5)
        assert [task.done() for task in tasks] == [False, True, False]
        await clock.advance(5)
        server.calls[0].answer()
        await turns()
        assert server.received == [[0], [2]]
        assert server.calls[1].timeout == 5  # what is left of its time
        tasks += await submitted(coalescer, kind, [3])
        await clock.advance(5)
        assert server.calls[1].cancelled
        await server.answer_all()
        results = await outcomes(tasks)
    assert [type(result) for result in results] == [
        str,
        NotSentError,
        asyncio.TimeoutError,
        str,
    ]
    assert str(results[1]) == "insert: no result in time"
    assert coalescer.stats()["insert"].timed_out == 2


async def test_a_deadline_after_sending_disturbs_nobody(server):
    with frozen() as clock:
        coalescer, kind = new_coalescer(clock=clock), server.kind()
        tasks = [
            asyncio.create_task(coalescer.submit(kind, "k", i, timeout=[5, 7][i])) for i in (0, 1)
        ]
        await turns()
        await clock.advance(5)
        assert server.calls[0].timeout == 7  # the most patient caller's
        await server.answer_all()
        impatient, patient = await outcomes(tasks)
    assert isinstance(impatient, asyncio.TimeoutError)
    assert patient == "re 1"


async def test_a_caller_without_a_deadline_gives_the_call_all_the_time(server):
    coalescer, kind = new_coalescer(), server.kind()
    tasks = [asyncio.create_task(coalescer.submit(kind, "k", t, timeout=t)) for t in (60, None)]
    await turns()
    assert server.calls[0].timeout is None
    await server.answer_all()
    await outcomes(tasks)


@pytest.mark.parametrize("timeout", [0, -1])
async def test_no_time_is_a_time_out_and_no_call(server, timeout):
    coalescer = new_coalescer()
    with pytest.raises(asyncio.TimeoutError):
        await coalescer.submit(server.kind(), "k", 1, timeout=timeout)
    await turns()
    assert server.calls == []
    assert coalescer.is_idle


async def test_what_expired_while_the_loop_stood_still_is_not_sent(server):
    with frozen() as clock:
        coalescer, kind = new_coalescer(clock=clock), server.kind()
        tasks = [
            asyncio.create_task(coalescer.submit(kind, "k", i, timeout=i)) for i in (3, 1, 2, 4)
        ]
        await turns(1)
        await clock.advance(2)
        assert server.received == [[3, 4]]
        await server.answer_all()
        results = await outcomes(tasks)
    assert [isinstance(result, asyncio.TimeoutError) for result in results] == [0, 1, 1, 0]


async def test_what_expired_before_the_loop_says_so_is_not_sent(server):
    clock = Clock()  # ahead of the loop's
    coalescer, kind = new_coalescer(clock=clock), server.kind()
    tasks = [asyncio.create_task(coalescer.submit(kind, "k", t, timeout=t)) for t in (600, 900)]
    await turns(1)
    await clock.advance(700)
    assert server.received == [[900]]
    assert isinstance(tasks[0].exception(), asyncio.TimeoutError)
    await server.answer_all()
    await outcomes(tasks)


async def test_one_timer_serves_all_deadlines(server):
    with frozen() as clock:
        coalescer, kind = new_coalescer(clock=clock), server.kind()
        before = len(timers())
        tasks = [
            asyncio.create_task(coalescer.submit(kind, "k", t, timeout=t))
            for t in (30, 10, 20, None, 40)
        ]
        await turns(1)
        for passed in range(1, 4):
            assert len(timers()) == before + 1
            await clock.advance(10)
            assert sum(task.done() for task in tasks) == passed
        await server.answer_all()
        assert [task.done() for task in tasks] == [True] * 5
        assert len(timers()) == before
    with suppress(asyncio.TimeoutError):
        await asyncio.gather(*tasks)


# The end of things


def run(runner: Callable[..., Any], main: Callable[[], Any]) -> Any:
    """Runs a program on a new loop; fails where the loop reports anything, then or later."""
    reports: list[Any] = []

    async def watched() -> Any:
        asyncio.get_running_loop().set_exception_handler(lambda _, context: reports.append(context))
        return await main()

    try:
        return runner(watched())
    finally:
        gc.collect()
        assert reports == []


@pytest.mark.parametrize("runner", RUNNERS)
def test_it_works_on_every_loop(runner):
    async def main() -> None:
        server, coalescer = Server(), new_coalescer(max_in_flight=2)
        kind = server.kind(max_items=10)
        tasks = await submitted(coalescer, kind, range(20))
        late = await submitted(coalescer, kind, ["late"], timeout=0.001)
        tasks[5].cancel()
        (error,) = await outcomes(late)
        assert isinstance(error, asyncio.TimeoutError)
        await server.answer_all()
        results = await outcomes(tasks)
        assert sum(isinstance(result, str) for result in results) == 19
        assert coalescer.is_idle

    run(runner, main)


@pytest.mark.parametrize("runner", RUNNERS)
@pytest.mark.parametrize("iterations", [0, 1, 2, 8])
def test_the_end_of_the_loop_cancels_whoever_waits(runner, iterations):
    server, coalescer = Server(), new_coalescer(max_in_flight=2, max_queued_bytes=50)
    ends: list[Any] = []

    async def caller(item: int) -> None:
        try:
            ends.append(await coalescer.submit(server.kind(), item % 3, item, size=10, timeout=60))
        except BaseException as error:
            ends.append(type(error))
            raise

    async def main() -> list[Any]:
        tasks = [asyncio.create_task(caller(item)) for item in range(10)]
        await turns(iterations)
        return tasks

    run(runner, main)
    assert ends == [asyncio.CancelledError] * 10
    assert coalescer.is_idle
    assert all(call.cancelled for call in server.calls)


@pytest.mark.parametrize("runner", RUNNERS)
def test_a_caller_that_tidies_up_at_the_end_of_the_loop_can(runner):
    server, coalescer = Server(), new_coalescer(max_in_flight=2)
    kind, tidied = server.kind(), []

    async def answer_tidy() -> None:
        while not (calls := [call for call in server.open if call.items == ["tidy"]]):
            await turns()
        calls[0].answer()

    async def caller() -> None:
        try:
            await coalescer.submit(kind, "k", "long")
        finally:
            answering = asyncio.create_task(answer_tidy())
            tidied.append(await coalescer.submit(kind, "k", "tidy"))
            await answering

    async def main() -> Any:
        task = asyncio.create_task(caller())
        await turns(2)
        return task

    run(runner, main)
    assert tidied == ["re tidy"]


@pytest.mark.parametrize("runner", RUNNERS)
@pytest.mark.parametrize("error", [KeyboardInterrupt, SystemExit])
def test_an_interrupt_in_a_call_is_not_swallowed(runner, error):
    server, coalescer = Server(), new_coalescer()
    tasks: list[asyncio.Task[Any]] = []

    async def main() -> None:
        tasks.extend(await submitted(coalescer, server.kind(), range(2)))
        server.calls[0].refuse(error())
        await asyncio.gather(*tasks)

    with pytest.raises(error):
        run(runner, main)
    assert all(task.cancelled() for task in tasks)
    assert coalescer.is_idle


def test_an_interrupt_is_raised_once_where_the_loop_goes_on():
    server, coalescer = Server(), new_coalescer()
    loop = asyncio.new_event_loop()
    kind = server.kind()
    tasks = [loop.create_task(coalescer.submit(kind, "k", item)) for item in range(2)]
    loop.run_until_complete(turns())
    server.calls[0].refuse(KeyboardInterrupt())
    with pytest.raises(KeyboardInterrupt):
        loop.run_until_complete(turns())
    loop.run_until_complete(turns())  # as IPython does, for one
    assert all(task.cancelled() for task in tasks)
    assert coalescer.is_idle
    for task in asyncio.all_tasks(loop):  # the interrupted turns
        loop.run_until_complete(task)
    loop.close()


async def test_other_base_exceptions_reach_the_callers(server):
    class StopTheTest(BaseException):
        pass

    tasks = await submitted(new_coalescer(), server.kind(), range(2))
    server.calls[0].refuse(StopTheTest())
    assert [type(result) for result in await outcomes(tasks)] == [StopTheTest] * 2


def test_an_idle_coalescer_does_not_hold_its_loop():
    loops = []
    coalescer = new_coalescer()

    async def main() -> None:
        server = Server()
        kind = server.kind()
        tasks = await submitted(coalescer, kind, range(3), timeout=60)
        server.calls[0].refuse(OverloadError())
        await turns()
        for task in tasks:
            task.cancel()
        tasks = await submitted(coalescer, kind, range(3))
        await server.answer_all()
        await outcomes(tasks)
        loops.append(weakref.ref(asyncio.get_running_loop()))
        server.calls.clear()  # the futures of the fake

    asyncio.run(main())
    gc.collect()
    assert loops[0]() is None


async def test_items_results_and_errors_are_freed_without_the_garbage_collector():
    class Row:
        pass

    async def call(key: Any, items: Sequence[Any], timeout: float | None) -> Sequence[Any]:
        if key == "bad":
            raise DataError
        return [Row() for _ in items]

    coalescer = new_coalescer()
    kind = RequestKind("insert", call, 4, 10, 10, lambda error: True, lambda key, error: False)
    rows: list[weakref.ref[Row]] = []

    async def caller(key: str) -> None:
        row = Row()
        rows.append(weakref.ref(row))
        with suppress(DataError):
            rows.append(weakref.ref(await coalescer.submit(kind, key, row)))

    gc.collect()
    gc.disable()
    try:
        await asyncio.gather(*(caller(key) for key in ["good", "bad"] * 10))
        await turns()
        assert len(rows) == 30
        assert [ref() for ref in rows] == [None] * 30
    finally:
        gc.enable()
