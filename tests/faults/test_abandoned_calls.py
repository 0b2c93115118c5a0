"""Calls that are cancelled, or whose loop or store ends: nothing is left behind."""

import asyncio
import contextlib
import gc
import sys
import threading
import time
from collections import Counter

import pytest
from llama_index.core.vector_stores.types import (
    MetadataFilters,
    VectorStoreQuery,
)

from llama_index_milvus_async import MilvusVectorStore
from llama_index_milvus_async._transport.transport import HOLDERS_GONE_AFTER
from llama_index_milvus_async.errors import (
    RequestTimeoutError,
    StoreClosedError,
    UnreachableError,
    WriteOutcomeUnknownError,
)
from tests.faults.cases import (
    LONG,
    RIGHT,
    ROOM,
    SHORT,
    Case,
    assert_kind,
    attempt,
    fault,
)
from tests.fixtures.stores import collection_name, make_nodes

# Cancellation


@pytest.mark.engines("lite")
@pytest.mark.parametrize("colour", ["async"], indirect=True)
@pytest.mark.parametrize("name", ["refused", "black hole", "answer stalled", "delayed"])
@pytest.mark.parametrize(
    "operation", ["add", "upsert", "delete", "delete_nodes", "query", "connect"]
)
async def test_a_cancelled_call_leaves_nothing_and_takes_nobody_along(
    faulty, make_case, operation, name, raw
):
    proxy = faulty.proxy
    case = make_case(operation)
    await case.prepare()
    companion = Case(operation, case.store, f"{case.prefix}-companion", case.is_lite)
    await companion.prepare()
    with fault(name, proxy, case.method):
        cancelled = asyncio.ensure_future(case.run())
        stays = asyncio.ensure_future(attempt(companion.run()))
        await asyncio.sleep(0.02 if name == "delayed" else 0.1)
        began = time.monotonic()
        cancelled.cancel()
        with pytest.raises(asyncio.CancelledError):
            await cancelled
        assert time.monotonic() - began < ROOM
    outcome, _ = await stays
    if operation == "connect" and isinstance(outcome, BaseException):
        assert isinstance(outcome, (UnreachableError, RequestTimeoutError))
    else:
        assert_kind(outcome, RIGHT)
    if operation != "clear":  # which clears what the other looks for
        companion.assert_rows(raw, outcome)
    await case.assert_usable()
    assert all(kind.calls >= kind.cancelled for kind in case.store.store.stats().values())


async def abandoned_by_timeout(case):
    with pytest.raises(TimeoutError):
        async with asyncio.timeout(0.1):
            await asyncio.gather(case.run(), *(case.store.query(q) for q in case.queries(50)))


async def abandoned_by_task_group(case):
    async def fail():
        await asyncio.sleep(0.1)
        raise ZeroDivisionError

    with pytest.raises(ExceptionGroup):  # noqa: F821
        async with asyncio.TaskGroup() as group:
            group.create_task(case.run())
            for query in case.queries(50):
                group.create_task(case.store.query(query))
            group.create_task(fail())


@pytest.mark.skipif(sys.version_info < (3, 11), reason="both came with Python 3.11")
@pytest.mark.engines("lite")
@pytest.mark.parametrize("colour", ["async"], indirect=True)
@pytest.mark.parametrize("abandon", [abandoned_by_timeout, abandoned_by_task_group])
async def test_calls_that_are_abandoned_together_leave_nothing(faulty, make_case, abandon, caplog):
    case = make_case("add")
    await case.prepare()
    before = asyncio.all_tasks()
    faulty.proxy.stall()
    await abandon(case)
    faulty.proxy.cut()
    faulty.proxy.heal()
    await case.assert_usable()
    gc.collect()
    assert asyncio.all_tasks() == before
    assert [record for record in caplog.records if record.name == "asyncio"] == []


@pytest.mark.engines("lite")
@pytest.mark.parametrize("method", ["Connect", "CreateCollection", "CreateIndex"])
async def test_making_ready_is_not_lost_with_a_cancelled_caller(faulty, raw, method):
    proxy = faulty.proxy
    name = collection_name("ready")
    store = MilvusVectorStore(proxy.uri, collection_name=name, dim=8, timeout=LONG)
    trap = proxy.trap(method, at="answer", do=proxy.stall)
    first = asyncio.ensure_future(store.aconnect())
    assert await asyncio.to_thread(trap.sprung.wait, LONG)
    others = [asyncio.ensure_future(store.aconnect()) for _ in range(3)]
    await asyncio.sleep(0.05)
    first.cancel()
    others[0].cancel()
    for task in (first, others[0]):
        with pytest.raises(asyncio.CancelledError):
            await task
    proxy.resume()
    await asyncio.gather(*others[1:])
    assert proxy.counts.requests["CreateCollection"] == 1
    await store.async_add(make_nodes(1))
    assert len(await store.aget_nodes(["node-0"])) == 1
    await store.aclose()
    raw.drop_collection(name)


# Loops that end with calls pending

ENDS = """
import asyncio, contextlib, gc, logging, os, signal, sys
logging.basicConfig(level=logging.WARNING)
from llama_index.core.vector_stores.types import VectorStoreQuery
from llama_index_milvus_async import MilvusVectorStore, UnreachableError
from tests.fixtures.faults import FaultyProxy
from tests.fixtures.stores import make_nodes

# A job of a shell without job control inherits SIGINT as ignored, and Python leaves it so.
signal.signal(signal.SIGINT, signal.default_int_handler)
engine, name, fault = sys.argv[1:]
proxy = FaultyProxy(engine)
store = MilvusVectorStore(proxy.uri, collection_name=name, dim=8, timeout=60)
query = VectorStoreQuery(query_embedding=[1.0] * 8, similarity_top_k=1)


async def main(how, ready):
    if ready:
        # The attempt of the loop before may still be about to fail.
        with contextlib.suppress(UnreachableError):
            await store.aconnect()
        await store.async_add(make_nodes(4))
    getattr(proxy, fault)()
    tasks = [
        asyncio.create_task(call)
        for call in (
            store.aquery(query),
            store.aquery_many([query, query]),
            store.async_add(make_nodes(3, prefix="new")),
            store.aget_nodes(["node-0"]),
            store.adelete("doc-0"),
            store.adelete_nodes(["node-1"]),
            store.aclear(),
        )
    ]
    for task in tasks:
        task.add_done_callback(lambda task: task.cancelled() or task.exception())
    await asyncio.sleep(0.3)
    if how == "raise":
        raise KeyError("the program's own")
    if how == "exit":
        sys.exit(3)
    if how == "interrupt":
        os.kill(os.getpid(), signal.SIGINT)
        await asyncio.sleep(60)
    if how == "close":
        await store.aclose()


def run(how, ready):
    with contextlib.suppress(KeyError, SystemExit, KeyboardInterrupt):
        asyncio.run(main(how, ready))
    gc.collect()
    proxy.cut()
    proxy.heal()


run("return", False)
for how in ("return", "raise", "exit", "interrupt"):
    run(how, True)
# The same store, on one more loop, and without one.
asyncio.run(store.async_add(make_nodes(2, prefix="after")))
assert len(store.get_nodes(["after-0", "after-1"])) == 2
run("close", True)
gc.collect()
print("done", flush=True)
"""


@pytest.mark.engines("lite")
@pytest.mark.parametrize("fault", ["stall", "black_hole", "refuse"])
def test_a_loop_that_ends_with_calls_pending(engine, raw, python_with_package, fault):
    name = collection_name("pending")
    ended = python_with_package.run("-W", "default", "-c", ENDS, engine.uri, name, fault)
    assert ended.stdout == "done\n"
    told = ("never retrieved", "was destroyed", "never awaited", "Exception ignored", "Unclosed")
    assert not [words for words in told if words in ended.stderr], ended.stderr
    raw.drop_collection(name)


# Calls under way


@pytest.fixture
def busy(recorder, make_store):
    """A store with nodes whose requests take long, and begin: the method, and how many."""

    @contextlib.asynccontextmanager
    async def busy_with(method, call, count, **kwargs):
        store = make_store(uri=recorder.uri, coalesce=False, **kwargs)
        await store.async_add(make_nodes(4))
        begun, end = threading.Semaphore(0), threading.Event()

        def hold(one):
            if one.method == method:
                begun.release()
                end.wait(LONG)

        recorder.intercept = hold
        calls = [asyncio.ensure_future(call(store, number)) for number in range(count)]
        assert await asyncio.to_thread(begun.acquire, timeout=LONG)
        await asyncio.sleep(0.1)
        try:
            yield store, calls
        finally:
            end.set()
            await asyncio.gather(*calls, return_exceptions=True)

    return busy_with


UNDER_WAY = {
    "Insert": lambda store, number: store.async_add(make_nodes(1, prefix=f"new-{number}")),
    "Search": lambda store, number: store.aquery(
        VectorStoreQuery(query_embedding=make_nodes(1)[0].embedding, similarity_top_k=1)
    ),
}


@pytest.mark.parametrize("method", UNDER_WAY)
async def test_calls_under_way_when_the_store_is_closed(busy, recorder, engine, method):
    """Nobody was cancelled; nothing is sent any more, and nothing stays open."""
    options = {"max_in_flight": 3, "upsert_mode": False}
    async with busy(method, UNDER_WAY[method], 6, **options) as (store, calls):
        sent = len(recorder.named(method))
        await store.aclose()
        outcomes = await asyncio.gather(*calls, return_exceptions=True)
    kinds = Counter(type(outcome) for outcome in outcomes)
    if method == "Insert":
        sent_now = sent - 1  # the nodes that are there
        unknown = UnreachableError if engine.is_lite else WriteOutcomeUnknownError
        assert kinds == {unknown: sent_now, StoreClosedError: 6 - sent_now}
    else:
        assert kinds == {StoreClosedError: 6}
    assert len(recorder.named(method)) == sent
    assert not store._connections._uses.loops


READ_ALL = {"filters": MetadataFilters(filters=[])}
WAITING = {
    "Query": lambda store, **kwargs: store.aget_nodes(**READ_ALL, **kwargs),
    "Delete": lambda store, **kwargs: store.adelete_nodes(["no such node"], **kwargs),
}


@pytest.mark.engines("lite")
@pytest.mark.parametrize("method", WAITING)
async def test_a_call_that_waits_for_others_keeps_its_deadline(busy, method):
    """For a slot, and on Milvus Lite for its turn to write."""
    call = WAITING[method]
    async with busy(method, lambda store, _: call(store), 4, max_in_flight=2) as (store, _):
        began = time.monotonic()
        with pytest.raises(RequestTimeoutError) as caught:
            await call(store, timeout=SHORT)
        assert time.monotonic() - began < SHORT + ROOM
        assert caught.value.nothing_done


@pytest.mark.engines("lite")
async def test_one_request_in_flight_at_a_time_is_enough(make_store):
    """Who has the slot does not wait for whoever has the turn, and waits for the slot."""
    store = make_store(max_in_flight=1)
    nodes = make_nodes(60)
    began = time.monotonic()
    await asyncio.gather(
        *(store.async_add([node]) for node in nodes),
        *(store.adelete_nodes([f"no such node {i}"]) for i in range(30)),
        *(store.aget_nodes(**READ_ALL) for _ in range(10)),
    )
    assert time.monotonic() - began < HOLDERS_GONE_AFTER
    assert len(await store.aget_nodes([node.node_id for node in nodes])) == 60
