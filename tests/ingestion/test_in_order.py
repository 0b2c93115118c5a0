"""Work on several items at once, and the batches of a source: both without an engine."""

from __future__ import annotations

import asyncio
import threading

import pytest
from llama_index.core import Document

from llama_index_milvus_async import ConfigurationError
from llama_index_milvus_async._concurrency.in_order import map_in_order
from llama_index_milvus_async._ingestion.source import read_batches


class Items:
    """An async generator of numbers, which tells how far it was read and that it was closed."""

    def __init__(self, count: int, fails: bool = False) -> None:
        self.count = count
        self.fails = fails
        self.read = 0
        self.closed = False

    async def __call__(self):
        try:
            for item in range(self.count):
                self.read += 1
                yield item
            if self.fails:
                raise KeyError("source")
        finally:
            self.closed = True


async def collect(results):
    return [result async for result in results]


def only_this_task() -> bool:
    return asyncio.all_tasks() == {asyncio.current_task()}


async def test_results_have_the_order_of_the_items():
    done: list[int] = []

    async def work(item: int) -> int:
        for _ in range(3 - item % 4):
            await asyncio.sleep(0)
        done.append(item)
        return -item

    results = await collect(map_in_order(Items(8)(), work, 4))
    assert results == [-item for item in range(8)]
    assert done != sorted(done)
    assert only_this_task()


async def test_what_is_not_taken_stops_the_work():
    items = Items(100)
    begun: list[int] = []

    async def work(item: int) -> int:
        begun.append(item)
        return item

    results = map_in_order(items(), work, 3)
    assert await anext(results) == 0
    for _ in range(20):
        await asyncio.sleep(0)
    assert begun == [0, 1, 2, 3]
    assert items.read == 5
    await results.aclose()
    assert items.closed
    assert only_this_task()


@pytest.mark.parametrize("source_fails", [False, True], ids=["work fails", "source fails"])
async def test_a_failure_comes_after_the_results_before_it(source_fails):
    items = Items(3 if source_fails else 100, fails=source_fails)
    results: list[int] = []

    async def work(item: int) -> int:
        await asyncio.sleep(0)
        if item == 3:
            raise KeyError("work")
        return item

    with pytest.raises(KeyError, match="source" if source_fails else "work"):
        async for result in map_in_order(items(), work, 2):
            results.append(result)
    assert results == [0, 1, 2]
    assert items.closed
    assert only_this_task()


async def test_one_that_is_cancelled_leaves_nothing_running():
    items = Items(100)
    ended: list[int] = []
    under_way = asyncio.Semaphore(0)

    async def work(item: int) -> None:
        under_way.release()
        try:
            await asyncio.Event().wait()
        finally:
            ended.append(item)

    task = asyncio.create_task(collect(map_in_order(items(), work, 3)))
    for _ in range(3):
        await under_way.acquire()
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert sorted(ended) == [0, 1, 2]
    assert items.closed
    assert only_this_task()


def documents(*ids: str, text: str = "text") -> list[Document]:
    return [Document(text=text, id_=each) for each in ids]


async def batches_of(source, most=3, most_characters=1_000):
    read = [batch async for batch in read_batches(source, most, most_characters)]
    return [[document.id_ for document in batch] for batch in read]


async def asynchronous(items):
    for item in items:
        await asyncio.sleep(0)
        yield item


FIVE = documents(*"abcde")


@pytest.mark.parametrize(
    "source",
    [lambda: FIVE, lambda: iter(FIVE), lambda: (each for each in FIVE), lambda: asynchronous(FIVE)],
    ids=["list", "iterator", "generator", "async generator"],
)
async def test_a_source_is_read_in_batches(source):
    assert await batches_of(source()) == [["a", "b", "c"], ["d", "e"]]


@pytest.mark.parametrize("make", [list, asynchronous], ids=["plain", "async"])
async def test_batches_end_by_characters_and_before_a_second_version(make):
    long = documents("long", text="x" * 2_000)
    source = [*documents("a", "b"), *long, *documents("c", "c", "d")]
    assert await batches_of(make(source)) == [["a", "b", "long"], ["c"], ["c", "d"]]


async def test_lists_of_documents_are_read_like_documents():
    # As SimpleDirectoryReader.iter_data() yields them.
    assert await batches_of([FIVE[:2], [], FIVE[2:]]) == [["a", "b", "c"], ["d", "e"]]


@pytest.mark.parametrize("make", [list, asynchronous], ids=["plain", "async"])
async def test_what_is_not_a_document_is_named(make):
    with pytest.raises(ConfigurationError, match="source has 'text', a value of type str; it must"):
        await batches_of(make([*FIVE, "text"]))


async def failing():
    for document in FIVE:
        yield document
    raise OSError("the disk is gone")


def failing_plainly():
    yield from FIVE
    raise OSError("the disk is gone")


@pytest.mark.parametrize("source", [failing, failing_plainly], ids=["async", "plain"])
async def test_what_came_before_a_failure_is_read(source):
    read: list[int] = []
    with pytest.raises(OSError, match="the disk is gone"):
        async for batch in read_batches(source(), 3, 1_000):
            read.append(len(batch))
    assert read == [3, 2]


async def test_a_generator_is_read_and_closed_in_one_other_thread():
    threads: list[int] = []

    def source():
        try:
            for document in FIVE:
                threads.append(threading.get_ident())
                yield document
        finally:
            threads.append(threading.get_ident())

    batches = read_batches(source(), 2, 1_000)
    assert len(await anext(batches)) == 2
    await batches.aclose()
    assert len(threads) == 3
    assert len({*threads, threading.get_ident()}) == 2
    assert not [each for each in threading.enumerate() if each.name.startswith("source")]
