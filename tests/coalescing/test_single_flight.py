"""Equal items that are asked for together, and kinds that go first."""

from __future__ import annotations

import asyncio
from dataclasses import replace

from llama_index_milvus_async._concurrency.exceptions import own_copy
from llama_index_milvus_async._concurrency.single_flight import SingleFlight
from tests.coalescing.server import DataError, new_coalescer, occupied, outcomes, submitted, turns


def asked(flights, kind, *lists):
    return [
        asyncio.create_task(flights.submit(kind, [(item, 1) for item in items])) for items in lists
    ]


async def test_equal_items_are_sent_once_and_all_get_the_result(server):
    flights, kind = SingleFlight(new_coalescer()), server.kind()
    tasks = asked(flights, kind, "ab", "bab", "c")
    await turns()
    assert server.received == [["a", "b", "c"]]
    await server.answer_all()
    assert await outcomes(tasks) == [["re a", "re b"], ["re b", "re a", "re b"], ["re c"]]
    assert flights.coalescer.stats()["insert"].calls == 6
    assert not flights._flights


async def test_what_is_under_way_is_joined_and_what_is_done_is_not(server):
    flights, kind = SingleFlight(new_coalescer()), server.kind()
    tasks = asked(flights, kind, "a")
    await turns()
    tasks += asked(flights, kind, "a")
    await turns()
    await server.answer_all()
    tasks += asked(flights, kind, "a")
    await turns()
    assert server.received == [["a"], ["a"]]
    await server.answer_all()
    assert await outcomes(tasks) == [["re a"]] * 3


async def test_an_item_is_withdrawn_when_the_last_who_asked_has_left(server):
    coalescer = new_coalescer(max_in_flight=1)
    flights, kind = SingleFlight(coalescer), server.kind()
    first, task = await occupied(coalescer, server, kind)
    one, two = asked(flights, kind, "ab", "bc")
    await turns()
    one.cancel()
    await turns()
    first.answer()
    await turns()
    assert server.received == [["first"], ["b", "c"]]
    two.cancel()
    await turns()
    assert server.calls[-1].cancelled
    assert coalescer.is_idle
    await outcomes([task, one, two])


async def test_a_refused_item_fails_those_who_asked_for_it(server):
    flights, kind = SingleFlight(new_coalescer()), server.kind()
    tasks = asked(flights, kind, "a", "ab", "b")
    await turns()
    server.calls[0].refuse(DataError("no"))
    await turns()
    for call in server.open:
        call.refuse(DataError("no")) if call.items == ["b"] else call.answer()
    await turns()
    good, *bad = await outcomes(tasks)
    assert good == ["re a"]
    assert [type(error) for error in bad] == [DataError, DataError]
    assert bad[0] is not bad[1]


async def test_a_kind_of_higher_priority_goes_first(server):
    coalescer = new_coalescer(max_in_flight=1)
    low = server.kind("low", max_items=1)
    high = replace(server.kind("high", max_items=1), priority=1)
    _, task = await occupied(coalescer, server, low)
    tasks = await submitted(coalescer, low, "ab")
    tasks += await submitted(coalescer, high, "cd")
    await server.answer_all()
    assert server.received == [["first"], ["c"], ["d"], ["a"], ["b"]]
    await outcomes([task, *tasks])


def test_a_copy_says_what_the_exception_says():
    class Telling(Exception):
        def __init__(self, status):
            super().__init__(f"status {status}")

    class Keyword(Exception):
        def __init__(self, message, *, response):
            super().__init__(message)
            self.response = response

    for error in (Telling(3), Keyword("no", response=404), OSError(2, "gone"), KeyError("a")):
        twin = own_copy(error)
        assert twin is not error
        assert (type(twin), str(twin), vars(twin)) == (type(error), str(error), vars(error))
