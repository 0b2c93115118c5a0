"""When an item leaves, which items share a call, and how large and how many calls are."""

from __future__ import annotations

import asyncio
import contextvars
import logging
import sys
from collections.abc import Sequence
from typing import Any

import pytest

from llama_index_milvus_async._concurrency import coalescing as _coalescing
from llama_index_milvus_async._concurrency.coalescing import RequestKind
from tests.coalescing.server import (
    LostError,
    frozen,
    new_coalescer,
    occupied,
    outcomes,
    submitted,
    timers,
    turns,
)

# When an item leaves


async def iterations_of(awaitable: Any) -> int:
    """How many iterations of the loop a task takes for something."""
    count, loop = 0, asyncio.get_running_loop()

    def tick() -> None:
        nonlocal count, handle
        count += 1
        handle = loop.call_soon(tick)

    handle = loop.call_soon(tick)
    await awaitable
    handle.cancel()
    return count


async def test_a_lone_item_costs_two_iterations_of_the_loop():
    async def call(key: Any, items: Sequence[Any], timeout: float | None) -> Sequence[Any]:
        await asyncio.sleep(0)
        return items

    kind = RequestKind("search", call, 10, 10, 10, lambda error: False, lambda error: False)
    direct = await iterations_of(call("k", [1], None))
    assert await iterations_of(new_coalescer().submit(kind, "k", 1)) == direct + 2


async def test_all_of_one_gather_travel_together(server):
    coalescer, kind = new_coalescer(), server.kind()
    tasks = await submitted(coalescer, kind, range(1000))
    assert server.received == [list(range(1000))]
    await server.answer_all()
    assert await outcomes(tasks) == [f"re {i}" for i in range(1000)]


async def test_calls_start_in_iterations_of_their_own(server):
    coalescer = new_coalescer(max_in_flight=9)
    insert, search = server.kind("insert", max_items=1), server.kind("search")
    tasks = [asyncio.create_task(coalescer.submit(insert, key, 0)) for key in "aabbc"]
    tasks += [asyncio.create_task(coalescer.submit(search, "a", 0))]
    await turns(2)
    for received in range(1, 7):
        assert len(server.calls) == received
        await turns(1)
    await server.answer_all()
    await outcomes(tasks)


async def test_what_arrives_while_calls_are_under_way_shares_the_next(server):
    coalescer, kind = new_coalescer(max_in_flight=1), server.kind()
    first, task = await occupied(coalescer, server, kind)
    tasks = [*await submitted(coalescer, kind, [1, 2]), *await submitted(coalescer, kind, [3])]
    assert len(server.calls) == 1
    first.answer()
    # Waits as well when the call ends, though it has arrived just now.
    tasks += [asyncio.create_task(coalescer.submit(kind, "k", 4))]
    await turns()
    assert server.received == [["first"], [1, 2, 3, 4]]
    await server.answer_all()
    assert await outcomes([task, *tasks]) == ["re first", "re 1", "re 2", "re 3", "re 4"]


async def test_callers_that_are_woken_share_their_next_call(server):
    coalescer, kind = new_coalescer(max_in_flight=1), server.kind()

    async def caller(name: str) -> None:
        await coalescer.submit(kind, "k", f"{name}1")
        await coalescer.submit(kind, "k", f"{name}2")

    callers = [asyncio.create_task(caller(name)) for name in "abc"]
    await turns()
    await server.answer_all()
    await asyncio.gather(*callers)
    assert server.received == [["a1", "b1", "c1"], ["a2", "b2", "c2"]]


async def test_without_coalescing_each_item_is_a_call_within_the_same_limits(server):
    coalescer = new_coalescer(max_in_flight=4, coalesce=False)
    tasks = await submitted(coalescer, server.kind(), range(9))
    assert server.received == [[0], [1], [2]]
    await server.answer_all()
    assert server.received == [[i] for i in range(9)]
    assert await outcomes(tasks) == [f"re {i}" for i in range(9)]


async def test_items_share_a_call_only_with_equal_kind_and_key(server):
    coalescer = new_coalescer(max_in_flight=10)
    insert, search = server.kind("insert"), server.kind("search")
    tasks = []
    for item, (kind, key) in enumerate(
        [(insert, ("a", 1)), (insert, ("b", 1)), (search, ("a", 1))]
    ):
        for _ in range(2):
            tasks.append(asyncio.create_task(coalescer.submit(kind, (*key,), item)))
    await turns()
    assert [(call.kind, call.key, call.items) for call in server.calls] == [
        ("insert", ("a", 1), [0, 0]),
        # Turns: a kind that has had none goes before the second key of another.
        ("search", ("a", 1), [2, 2]),
        ("insert", ("b", 1), [1, 1]),
    ]
    await server.answer_all()
    assert await outcomes(tasks) == ["re 0", "re 0", "re 1", "re 1", "re 2", "re 2"]


async def test_what_a_task_awaited_comes_before_its_next_call(server):
    coalescer, kind = new_coalescer(), server.kind()

    async def caller() -> None:
        for item in range(5):
            await coalescer.submit(kind, "k", item)

    task = asyncio.create_task(caller())
    await turns()
    for item in range(5):
        assert server.received == [[i] for i in range(item + 1)]
        server.open[0].answer()
        await turns()
    await task


@pytest.mark.skipif(sys.version_info < (3, 12), reason="eager tasks came with Python 3.12")
async def test_eager_tasks_are_coalesced_too(server):
    loop = asyncio.get_running_loop()
    loop.set_task_factory(asyncio.eager_task_factory)
    try:
        tasks = await submitted(new_coalescer(), server.kind(), range(5))
    finally:
        loop.set_task_factory(None)
    assert server.received == [[0, 1, 2, 3, 4]]
    await server.answer_all()
    await outcomes(tasks)


# Turns


async def test_a_kind_leaves_the_last_slot_to_a_kind_that_has_none(server):
    coalescer = new_coalescer(max_in_flight=4)
    insert, search, delete = (server.kind(name, max_items=1) for name in ("in", "se", "de"))
    tasks = await submitted(coalescer, insert, range(100))
    assert [call.kind for call in server.open] == ["in"] * 3
    # A query does not wait behind the bulk of inserts, ...
    tasks += await submitted(coalescer, search, range(2))
    assert [call.kind for call in server.open] == ["in"] * 3 + ["se"]
    # ... and a third kind waits for one call at most.
    tasks += await submitted(coalescer, delete, range(2))
    server.open[0].answer()
    await turns()
    assert [call.kind for call in server.open] == ["in"] * 2 + ["se", "de"]
    await server.answer_all()
    assert all(isinstance(outcome, str) for outcome in await outcomes(tasks))


async def test_kinds_and_keys_take_turns(server):
    coalescer = new_coalescer(max_in_flight=1)
    insert, search = server.kind("insert", max_items=1), server.kind("search", max_items=1)
    _, task = await occupied(coalescer, server, server.kind("query"))
    tasks = [task]
    for kind, key in [(insert, "a"), (insert, "b"), (search, "a")]:
        tasks += await submitted(coalescer, kind, range(3), key)
    await server.answer_all()
    assert [(call.kind[0], call.key, *call.items) for call in server.calls[1:]] == [
        ("s", "a", 0),
        ("i", "a", 0),
        ("s", "a", 1),
        ("i", "b", 0),
        ("s", "a", 2),
        ("i", "a", 1),
        ("i", "b", 1),
        ("i", "a", 2),
        ("i", "b", 2),
    ]
    await outcomes(tasks)


# Bounds


@pytest.mark.parametrize(
    "bounds, sizes, calls",
    [
        ({"max_items": 3}, [1] * 7, [3, 3, 1]),
        ({"max_weight": 10}, [4, 4, 4, 10, 1], [2, 1, 1, 1]),
        ({"max_bytes": 10}, [4, 4, 4, 10, 1], [2, 1, 1, 1]),
        ({"max_weight": 10}, [1, 11, 1, 1], [1, 1, 2]),
        ({"max_bytes": 10}, [11, 11, 9, 1, 1], [1, 1, 2, 1]),
    ],
)
@pytest.mark.parametrize("max_in_flight", [1, 10])
async def test_calls_are_as_large_as_the_bounds_allow(server, bounds, sizes, calls, max_in_flight):
    coalescer, kind = new_coalescer(max_in_flight), server.kind(**bounds)
    _, task = await occupied(coalescer, server, server.kind("other"))
    unit = "weight" if "max_weight" in bounds else "size"
    tasks = [
        asyncio.create_task(coalescer.submit(kind, "k", item, **{unit: size}))
        for item, size in enumerate(sizes)
    ]
    await turns()
    await server.answer_all()
    assert [len(items) for items in server.received[1:]] == calls
    assert [item for call in server.calls[1:] for item in call.items] == list(range(len(sizes)))
    await outcomes([task, *tasks])


# Back-pressure


async def test_bytes_that_wait_or_travel_are_bounded(server):
    coalescer, kind = new_coalescer(max_in_flight=1, max_queued_bytes=10), server.kind()
    tasks = await submitted(coalescer, kind, range(8), size=4)
    assert server.received == [[0, 1]]
    server.calls[0].answer()
    await turns()
    assert server.received == [[0, 1], [2, 3]]  # the others were not in the queue
    tasks[4].cancel()
    await turns()
    await server.answer_all()
    assert server.received == [[0, 1], [2, 3], [5, 6], [7]]
    assert sum(task.cancelled() for task in tasks) == 1
    await outcomes(tasks)


async def test_the_line_is_first_in_first_out(server):
    coalescer, kind = new_coalescer(max_in_flight=9, max_queued_bytes=10), server.kind()
    tasks = await submitted(coalescer, kind, ["a"], size=8)
    tasks += await submitted(coalescer, kind, ["b"], size=9)
    tasks += await submitted(coalescer, kind, ["c"], size=1)  # would fit, but came after b
    assert server.received == [["a"]]
    tasks[1].cancel()  # and no longer stands before c
    await turns()
    assert server.received == [["a"], ["c"]]
    await server.answer_all()
    await outcomes(tasks)


async def test_the_bytes_of_a_withdrawn_item_count_until_its_call_ends(server):
    coalescer, kind = new_coalescer(max_in_flight=9, max_queued_bytes=10), server.kind()
    tasks = await submitted(coalescer, kind, [0, 1], size=5)
    tasks += await submitted(coalescer, kind, [2], size=5)
    tasks[0].cancel()
    await turns()
    assert server.received == [[0, 1]]
    await server.answer_all()
    assert server.received == [[0, 1], [2]]
    await outcomes(tasks)


async def test_an_item_beyond_the_bound_goes_alone(server):
    coalescer, kind = new_coalescer(max_queued_bytes=10), server.kind()
    tasks = await submitted(coalescer, kind, ["small"], size=1)
    tasks += await submitted(coalescer, kind, ["large"], size=11)
    tasks += await submitted(coalescer, kind, ["next"], size=1)
    for received in [["small"]], [["small"], ["large"]], [["small"], ["large"], ["next"]]:
        assert server.received == received
        server.calls[-1].answer()
        await turns()
    await outcomes(tasks)


async def test_a_full_queue_of_one_kind_does_not_hold_up_another(server):
    coalescer = new_coalescer(max_in_flight=2, max_queued_bytes=10)
    tasks = await submitted(coalescer, server.kind("insert"), range(5), size=10)
    tasks += await submitted(coalescer, server.kind("search"), ["?"], size=10)
    assert server.received == [[0], ["?"]]
    await server.answer_all()
    await outcomes(tasks)


# Context and log


async def test_a_call_runs_in_a_copy_of_the_context_of_its_first_caller(server):
    user = contextvars.ContextVar("user", default="nobody")
    seen = []
    receive = server.kind().call

    async def call(key: Any, items: Sequence[Any], timeout: float | None) -> Sequence[Any]:
        seen.append((list(items), user.get()))
        user.set("the call")
        return await receive(key, items, timeout)

    kind = RequestKind("insert", call, 2, 10, 10, lambda error: False, lambda error: False)
    coalescer = new_coalescer(max_in_flight=1)

    async def caller(name: str) -> str:
        user.set(name)
        await coalescer.submit(kind, "k", name)
        return user.get()

    tasks = [asyncio.create_task(caller(name)) for name in "abcdef"]
    await turns(1)
    tasks[0].cancel()  # it would have been the first
    await turns()
    await server.answer_all()
    assert seen == [(["b", "c"], "b"), (["d", "e"], "d"), (["f"], "f")]
    assert (await outcomes(tasks))[1:] == ["b", "c", "d", "e", "f"]
    assert user.get() == "nobody"


async def test_no_item_is_shown_where_the_loop_shows_its_tasks(server):
    coalescer, kind = new_coalescer(), server.kind()
    before = asyncio.all_tasks()
    tasks = await submitted(coalescer, kind, ["secret"], timeout=60)
    assert all("secret" not in repr(task) for task in asyncio.all_tasks() - before)
    assert all("secret" not in repr(timer) for timer in timers())
    await server.answer_all()
    await outcomes(tasks)


async def test_each_call_is_one_line_in_the_log(server, caplog):
    caplog.set_level(logging.DEBUG, logger=_coalescing.__name__)
    with frozen() as clock:
        coalescer = new_coalescer(max_in_flight=1, clock=clock)
        kind = server.kind(max_items=2)
        tasks = await submitted(coalescer, kind, range(5), size=10)
        await clock.advance(0.25)
        server.open[0].answer()
        await turns()
        server.open[0].refuse(LostError())
        await turns()
        tasks[4].cancel()
        await turns()
        await outcomes(tasks)
    assert caplog.messages == [
        "call kind=insert items=2 bytes=20 waited_ms=0.000 wire_ms=250.000 outcome=ok",
        "call kind=insert items=2 bytes=20 waited_ms=250.000 wire_ms=0.000 outcome=LostError",
        "call kind=insert items=1 bytes=10 waited_ms=250.000 wire_ms=0.000 outcome=cancelled",
    ]


async def test_stats_count_by_kind(server):
    with frozen() as clock:
        coalescer = new_coalescer(max_in_flight=1, clock=clock)
        insert, search = server.kind("insert", max_items=2), server.kind("search")
        tasks = await submitted(coalescer, insert, range(3), size=10)
        tasks += await submitted(coalescer, search, [3], size=1)
        assert coalescer.stats()["insert"].rpcs == 1
        assert not coalescer.is_idle
        for _ in range(3):
            await clock.advance(2)
            server.open[0].answer()
            await turns()
        await outcomes(tasks)
    stats = coalescer.stats()
    assert list(stats) == ["insert", "search"] or list(stats) == ["search", "insert"]
    inserts, searches = stats["insert"], stats["search"]
    assert (inserts.calls, inserts.rpcs, inserts.items, inserts.bytes) == (3, 2, 3, 30)
    assert inserts.items_per_rpc == 1.5
    assert (inserts.waiting_seconds, inserts.wire_seconds) == (4, 4)
    assert (searches.calls, searches.rpcs, searches.bytes) == (1, 1, 1)
    assert (searches.waiting_seconds, searches.wire_seconds) == (2, 2)
    assert inserts.retries == inserts.cancelled == inserts.timed_out == 0
