"""The fair lock for threads and event loops, and what it keeps Milvus Lite from."""

import asyncio
import itertools
import random
import threading
import time
from functools import partial

import pytest
from llama_index.core.vector_stores.types import VectorStoreQuery

from llama_index_milvus_async._concurrency.fair_lock import FairLock
from llama_index_milvus_async._transport.transport import LITE_SETTLES_AFTER
from tests.fixtures.stores import make_nodes

LONG = 30.0  # seconds that nothing here takes


def done(*turns):
    return [turn.done() for turn in turns]


def test_one_has_its_turn_after_the_other():
    lock = FairLock()
    first, second, third = (lock.enqueue(None) for _ in range(3))
    assert done(first, second, third) == [True, False, False]
    lock.release(first)
    assert done(second, third) == [True, False]
    lock.release(second)
    assert done(third) == [True]


def test_a_turn_may_be_followed_by_a_rest():
    lock = FairLock()
    lock.release(lock.enqueue(None), cooldown=0.2)
    assert done(lock.enqueue(None)) == [True]
    assert 0 < lock.cooldown() <= 0.2
    time.sleep(0.2)
    assert lock.cooldown() == 0


def test_those_who_share_have_their_turns_together_and_do_not_overtake():
    lock = FairLock()
    one, two = lock.enqueue(None, shared=True), lock.enqueue(None, shared=True)
    alone = lock.enqueue(None)
    three = lock.enqueue(None, shared=True)
    assert done(one, two, alone, three) == [True, True, False, False]
    lock.release(one)
    assert done(alone, three) == [False, False]
    lock.release(two)
    assert done(alone, three) == [True, False]
    lock.release(alone)
    assert done(three) == [True]


def test_who_leaves_while_waiting_is_passed_over():
    lock = FairLock()
    first, gone, last = (lock.enqueue(None) for _ in range(3))
    lock.release(gone)
    lock.release(first)
    assert gone.cancelled()
    assert done(last) == [True]


@pytest.fixture
def stopped():
    """An event loop that does not run."""
    loop = asyncio.new_event_loop()
    yield loop
    loop.close()


def test_turns_in_which_nothing_moves_are_taken_for_abandoned(stopped):
    lock = FairLock()
    one, two = lock.enqueue(stopped, shared=True), lock.enqueue(stopped, shared=True)
    alone, last = lock.enqueue(stopped), lock.enqueue(None)
    before = lock.generation
    lock.release(two)
    lock.evict_stalled(before)  # somebody has left
    assert done(alone) == [False]
    lock.evict_stalled(lock.generation)
    lock.evict_stalled(before)  # and another one has noticed
    assert done(alone, last) == [True, False]
    lock.release(one)  # it was not abandoned after all
    assert done(last) == [False]
    lock.release(alone)
    assert done(last) == [True]


async def test_holders_at_work_are_waited_for_however_long_they_take(stopped):
    """A second writer beside a slow one costs Milvus Lite rows that it has acknowledged."""
    lock = FairLock()
    thread, last = lock.enqueue(None), lock.enqueue(None)
    lock.evict_stalled(lock.generation)
    assert done(last) == [False]
    lock.release(thread)
    running, waiting = lock.enqueue(asyncio.get_running_loop()), lock.enqueue(None)
    lock.release(last)
    lock.evict_stalled(lock.generation)
    assert done(running, waiting) == [True, False]


def test_the_turn_of_a_closed_loop_is_passed_over():
    lock = FairLock()
    loop = asyncio.new_event_loop()
    first, abandoned = lock.enqueue(None), lock.enqueue(loop)
    loop.close()
    last = lock.enqueue(None)
    lock.release(first)
    assert done(abandoned, last) == [False, True]


async def test_a_cancelled_waiter_leaves_the_line():
    lock, loop = FairLock(), asyncio.get_running_loop()
    first = lock.enqueue(None)

    async def wait():
        turn = lock.enqueue(loop)
        try:
            await asyncio.wrap_future(turn)
        finally:
            lock.release(turn)

    waiter = asyncio.ensure_future(wait())
    await asyncio.sleep(0)
    assert lock.needs(loop)
    waiter.cancel()
    with pytest.raises(asyncio.CancelledError):
        await waiter
    assert not lock.needs(loop)
    lock.release(first)
    assert done(lock.enqueue(None)) == [True]


def test_many_threads_are_never_in_it_together():
    lock, inside, most = FairLock(), [], []

    def work():
        for _ in range(50):
            turn = lock.enqueue(None)
            turn.result(LONG)
            inside.append(turn)
            most.append(len(inside))
            inside.remove(turn)
            lock.release(turn)

    threads = [threading.Thread(target=work) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert most == [1] * 400


# What the store makes of it


class Overlaps:
    """Which requests were under way at the same time; for `Recorder.intercept`."""

    METHODS = ("Insert", "Delete", "Flush", "Query", "Search")

    def __init__(self):
        self.lock = threading.Lock()
        self.under_way = []
        self.seen = set()

    def __call__(self, call):
        if call.method not in self.METHODS:
            return
        with self.lock:
            self.seen.update(frozenset((call.method, other)) for other in self.under_way)
            self.under_way.append(call.method)
        time.sleep(0.02)  # without it they would seldom meet
        with self.lock:
            self.under_way.remove(call.method)


@pytest.mark.engines("lite")
async def test_what_overlaps_on_milvus_lite(recorder, make_store):
    name = make_store().collection_name
    stores = [make_store(uri=recorder.uri, collection_name=name, batch_size=5) for _ in range(2)]
    for store in stores:
        await store.aconnect()
    recorder.intercept = overlaps = Overlaps()
    work, reads = [], []
    for number, store in enumerate(stores):
        prefix, [node] = f"store-{number}", make_nodes(1)
        query = VectorStoreQuery(query_embedding=node.embedding, similarity_top_k=1)
        work += [
            store.async_add(make_nodes(20, prefix=f"{prefix}-bulk")),
            *(store.async_add(make_nodes(1, prefix=f"{prefix}-{i}")) for i in range(10)),
            store.adelete_nodes([f"{prefix}-other"]),
            store.adelete(f"{prefix}-other"),
            asyncio.to_thread(store.add, make_nodes(20, prefix=f"{prefix}-sync")),
            asyncio.to_thread(asyncio.run, store.async_add(make_nodes(9, prefix=f"{prefix}-loop"))),
            store.async_add(make_nodes(1, prefix=f"{prefix}-flushed"), force_flush=True),
        ]
        reads += [
            partial(store.aget_nodes, [f"{prefix}-1"]),
            partial(store.aquery, query),
            partial(asyncio.to_thread, store.query, query),
        ]
    writing = asyncio.gather(*work)

    async def read_on(read):
        while not writing.done():
            await read()

    await asyncio.gather(writing, *map(read_on, reads))
    seen = {tuple(sorted(pair)) if len(pair) == 2 else (*pair, *pair) for pair in overlaps.seen}
    for apart in (
        *itertools.combinations_with_replacement(["Delete", "Flush", "Insert"], 2),
        ("Flush", "Query"),
        ("Flush", "Search"),
    ):
        assert apart not in seen
    assert ("Query", "Search") in seen
    assert ("Insert", "Search") in seen


@pytest.mark.engines("lite")
async def test_a_blocking_call_among_asynchronous_ones_of_its_loop_does_not_wait_for_them(
    recorder, make_store
):
    store = make_store(uri=recorder.uri)
    await store.aconnect()
    recorder.intercept = Overlaps()
    adding = asyncio.ensure_future(store.async_add(make_nodes(3)))
    await asyncio.sleep(0.01)
    began = time.monotonic()
    store.add(make_nodes(3, prefix="blocking"))
    assert time.monotonic() - began < LONG / 3  # a turn is waited for that long
    await adding
    ids = [f"{prefix}-{i}" for prefix in ("node", "blocking") for i in range(3)]
    assert [node.node_id for node in await store.aget_nodes(ids)] == ids


@pytest.mark.engines("lite")
async def test_reads_see_all_rows_while_milvus_lite_flushes(make_store, colour):
    store = make_store(batch_size=50)
    known, random_ = [], random.Random(0)

    async def read(wanted):
        if colour == "sync":
            return await asyncio.to_thread(store.get_nodes, wanted)
        return await store.aget_nodes(wanted)

    async def write():
        for number in range(40):
            known.extend(await store.async_add(make_nodes(100, prefix=f"row-{number}")))
            if number % 4 == 3:
                await store.async_add(make_nodes(1, prefix=f"last-{number}"), force_flush=True)

    writing = asyncio.ensure_future(write())
    reads = 0
    while not writing.done():
        wanted = random_.sample(known, min(10, len(known)))
        if wanted:
            assert [node.node_id for node in await read(wanted)] == wanted
            reads += 1
        await asyncio.sleep(0)
    await writing
    assert reads > 10


@pytest.mark.engines("lite")
async def test_a_write_whose_answer_is_lost_is_waited_for(faulty, make_store, coloured):
    """Milvus Lite may still be at it, and does not bear two at a time."""
    store = coloured(make_store(uri=faulty.proxy.uri))
    [first, second] = make_nodes(2)
    await store.add([first])
    faulty.proxy.trap("Insert", at="request", do=faulty.proxy.cut)
    began = time.monotonic()
    await store.add([second])
    assert time.monotonic() - began >= LITE_SETTLES_AFTER
    assert len(await store.get_nodes([first.node_id, second.node_id])) == 2


@pytest.mark.engines("lite")
async def test_a_cancelled_read_is_not_waited_for(recorder, make_store):
    store = make_store(uri=recorder.uri)
    await store.async_add(make_nodes(1))
    begun, end = threading.Event(), threading.Event()

    def hold(call):
        if call.method == "Query" and not begun.is_set():
            begun.set()
            end.wait(LONG)

    recorder.intercept = hold
    reading = asyncio.ensure_future(store.aget_nodes(["node-0"]))
    assert await asyncio.to_thread(begun.wait, LONG)
    reading.cancel()
    with pytest.raises(asyncio.CancelledError):
        await reading
    locks = store._connections.memory(store.collection_name).locks
    assert [lock.cooldown() for lock, _ in locks.needed("query")] == [0.0]
    end.set()
