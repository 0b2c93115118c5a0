"""One store on many event loops and threads: used, left, forked, stalled, and read back."""

import asyncio
import gc
import multiprocessing
import sys
import textwrap
import threading
import time
from concurrent.futures import ProcessPoolExecutor, ThreadPoolExecutor
from contextlib import asynccontextmanager
from dataclasses import dataclass

import grpc
import pytest
from llama_index.core.vector_stores.types import (
    MetadataFilters,
    VectorStoreQuery,
    VectorStoreQueryMode,
)
from pymilvus.client.connection_manager import AsyncConnectionManager

from llama_index_milvus_async import MilvusVectorStore
from llama_index_milvus_async._transport import connections
from llama_index_milvus_async._transport.registry import registry
from llama_index_milvus_async.errors import (
    ConfigurationError,
    QueryError,
    RequestTimeoutError,
)
from tests.fixtures.memory import living
from tests.fixtures.stores import DIM, make_nodes

SECONDS_TO_WAIT = 240


def query(**kwargs):
    return VectorStoreQuery(query_embedding=[1.0] * DIM, similarity_top_k=10, **kwargs)


async def use_every_async_method(store, prefix):
    """Writes, reads and deletes nodes of its own; leaves the collection as it was."""
    nodes = make_nodes(5, prefix=prefix)
    ids = [node.node_id for node in nodes]
    assert await store.async_add(nodes) == ids
    assert {node.node_id for node in await store.aget_nodes(ids)} == set(ids)
    found, again = await asyncio.gather(
        store.aquery(query(node_ids=ids)), store.aquery(query(node_ids=ids))
    )
    assert set(found.ids) == set(again.ids) == set(ids)
    await store.adelete_nodes(ids)
    assert await store.aget_nodes(ids) == []


def use_every_sync_method(store, prefix):
    nodes = make_nodes(5, prefix=prefix)
    ids = [node.node_id for node in nodes]
    assert store.add(nodes) == ids
    assert {node.node_id for node in store.get_nodes(ids)} == set(ids)
    assert set(store.query(query(node_ids=ids)).ids) == set(ids)
    store.delete_nodes(ids)
    assert store.get_nodes(ids) == []


# Loops


def test_one_store_serves_one_loop_after_the_other(reopen):
    store = reopen()
    for run in range(5):
        asyncio.run(use_every_async_method(store, f"run-{run}"))
    use_every_sync_method(store, "afterwards")


def test_one_store_serves_loops_in_several_threads_at_once(reopen):
    store = reopen()
    start = threading.Barrier(4)

    def in_a_loop(number):
        start.wait(SECONDS_TO_WAIT)
        for run in range(2):
            asyncio.run(use_every_async_method(store, f"thread-{number}-{run}"))

    with ThreadPoolExecutor(4) as pool:
        list(pool.map(in_a_loop, range(4)))


async def test_sync_methods_work_inside_a_running_loop(reopen):
    store = reopen()
    use_every_sync_method(store, "before")
    await use_every_async_method(store, "between")
    use_every_sync_method(store, "after")


async def test_two_loops_of_one_thread_can_be_used_in_turns(reopen):
    store = reopen()
    await use_every_async_method(store, "outer")
    await asyncio.to_thread(asyncio.run, use_every_async_method(store, "inner"))
    await use_every_async_method(store, "outer-again")


def test_several_stores_can_connect_at_once_in_one_loop_after_the_other(reopen):
    # pymilvus keeps a lock for each id of a loop, and ids are used again.
    async def connect_many():
        stores = [reopen() for _ in range(4)]
        await asyncio.gather(*(store.aquery(query()) for store in stores))
        await asyncio.gather(*(store.aclose() for store in stores))

    for _ in range(4):
        asyncio.run(connect_many())
        gc.collect()


@pytest.mark.skipif(sys.platform == "win32", reason="uvloop")
def test_uvloop(reopen):
    uvloop = pytest.importorskip("uvloop")
    store = reopen()
    for run in range(3):
        loop = uvloop.new_event_loop()
        loop.run_until_complete(use_every_async_method(store, f"uvloop-{run}"))
        loop.run_until_complete(loop.shutdown_default_executor())
        loop.close()
    asyncio.run(use_every_async_method(store, "asyncio"))


# Scripts, for what would change this process: nest_asyncio and fork


PREAMBLE = """
import asyncio, os, signal, sys, threading, time
from llama_index.core.vector_stores.types import VectorStoreQuery
from llama_index_milvus_async import MilvusVectorStore
from llama_index_milvus_async._transport import connections
from llama_index_milvus_async._transport.registry import registry
uri, token, name, dim = sys.argv[1:]
store = MilvusVectorStore(
    uri=uri, token=token, collection_name=name, consistency_level="Strong", timeout=20
)
query = VectorStoreQuery(query_embedding=[1.0] * int(dim), similarity_top_k=10)

def sync():
    assert len(store.query(query).ids) == 4

async def use():
    results = await asyncio.gather(*(store.aquery(query) for _ in range(3)))
    assert [len(result.ids) for result in results] == [4, 4, 4]

def fork(child):
    pid = os.fork()
    if not pid:
        try:
            child()
        except BaseException:
            import traceback
            traceback.print_exc()
            os._exit(1)
        os._exit(0)
    deadline = time.monotonic() + 200
    while time.monotonic() < deadline:
        ended, status = os.waitpid(pid, os.WNOHANG)
        if ended:
            assert status == 0, f"the child ended with {status}"
            return
        time.sleep(0.02)
    os.kill(pid, signal.SIGKILL)
    os.waitpid(pid, 0)
    raise AssertionError("the child hung")

def everything():
    sync()
    asyncio.run(use())
    asyncio.run(use())
    sync()
"""


@pytest.fixture
def run_script(python_with_package, engine, shared):
    """Runs a script on the collection of `shared`."""

    def run_script(script):
        code = PREAMBLE + textwrap.dedent(script)
        arguments = [engine.uri, engine.token, shared.collection_name, str(DIM)]
        python_with_package.run("-W", "ignore", "-c", code, *arguments)

    return run_script


def test_nest_asyncio(run_script):
    pytest.importorskip("nest_asyncio")
    script = """
        import nest_asyncio
        nest_asyncio.apply()

        async def main():
            await use()
            asyncio.run(use())  # within the running loop
            asyncio.get_running_loop().run_until_complete(use())
            sync()
            await use()

        asyncio.run(main())
        asyncio.run(main())
    """
    run_script(script)


FORKS = {
    "before any use": """
        fork(everything)
        everything()
    """,
    "after sync use": """
        sync()
        fork(everything)
        everything()
    """,
    "after async use, the loop closed": """
        asyncio.run(use())
        fork(everything)
        everything()
    """,
    "after async use, the loop open": """
        loop = asyncio.new_event_loop()
        loop.run_until_complete(use())
        fork(everything)
        loop.run_until_complete(use())
        everything()
    """,
    "inside a running loop": """
        async def main():
            await use()

            def child():
                asyncio._set_running_loop(None)  # as multiprocessing's children do
                everything()

            fork(child)
            await use()

        asyncio.run(main())
    """,
    "while another thread runs a loop": """
        loop = asyncio.new_event_loop()
        threading.Thread(target=loop.run_forever, daemon=True).start()
        asyncio.run_coroutine_threadsafe(use(), loop).result()
        fork(everything)
        asyncio.run_coroutine_threadsafe(use(), loop).result()
    """,
    "twice, and of a child": """
        asyncio.run(use())

        def child():
            everything()
            fork(everything)

        fork(child)
        asyncio.run(use())
        fork(child)
    """,
    "after aclose of another store": """
        async def main():
            await use()
            async with store.model_copy() as other:
                await other.aquery(query)

        asyncio.run(main())
        fork(everything)
        everything()
    """,
}


@pytest.mark.skipif(sys.platform == "win32", reason="fork")
@pytest.mark.parametrize("when", FORKS)
def test_a_forked_child_and_its_parent_both_work(when, run_script):
    run_script(FORKS[when])


def ids_found(store):
    return sorted(asyncio.run(store.aquery(query())).ids + store.query(query()).ids)


def test_a_store_sent_to_a_spawned_process_works_there(reopen):
    store = reopen()
    here = ids_found(store)
    with ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("spawn")) as pool:
        assert pool.submit(ids_found, store).result(SECONDS_TO_WAIT) == here
    assert len(here) == 8


# What is left behind


def open_channels():
    return sum(not channel._channel.closed() for channel in living(grpc.aio.Channel))


def handlers():
    managers = AsyncConnectionManager._instances.values()
    return sum(len(m._dedicated) + len(m._registry) for m in managers)


def left_behind():
    gc.collect()  # stores of other tests
    while connections._dropped:
        time.sleep(0.001)
    registry.prune()  # and their loops
    return open_channels(), handlers()


async def test_aclose_leaves_no_channel_and_no_handler(reopen):
    before = left_behind()
    store = reopen()
    await asyncio.gather(*(store.aquery(query()) for _ in range(10)))
    assert left_behind() == (before[0] + 1, before[1] + 1)
    await store.aclose()
    assert left_behind() == before


def test_a_closed_loop_leaves_nothing_once_the_store_is_used_again(reopen):
    before = left_behind()
    store = reopen()
    for _ in range(5):
        asyncio.run(store.aconnect())
    assert (open_channels(), handlers()) == (before[0] + 1, before[1] + 1)
    store.close()
    assert left_behind() == before


def test_aclose_closes_what_other_loops_left(reopen):
    before = left_behind()
    store = reopen()
    still_open = asyncio.new_event_loop()
    still_open.run_until_complete(store.aconnect())
    asyncio.run(store.aconnect())
    asyncio.run(store.aclose())
    assert left_behind() == before
    still_open.close()


async def test_aclose_closes_the_clients_of_loops_that_run_in_other_threads(reopen):
    before = left_behind()
    store = reopen()
    other = asyncio.new_event_loop()
    thread = threading.Thread(target=other.run_forever)
    thread.start()
    asyncio.run_coroutine_threadsafe(store.aconnect(), other).result(SECONDS_TO_WAIT)
    await store.aconnect()
    await store.aclose()
    # What was asked of the other loop is done in the order in which it was asked.
    asyncio.run_coroutine_threadsafe(asyncio.sleep(0.01), other).result(SECONDS_TO_WAIT)
    other.call_soon_threadsafe(other.stop)
    await asyncio.to_thread(thread.join, SECONDS_TO_WAIT)
    other.close()
    assert left_behind() == before


async def test_close_inside_a_running_loop_closes_its_client(reopen):
    before = left_behind()
    store = reopen()
    await store.aquery(query())
    store.close()
    assert left_behind() == before


async def test_a_client_that_could_not_connect_leaves_nothing(reopen, recorder):
    def refuse_async(call):
        refuse = call.method == "Connect" and call.colour == "async"
        return (grpc.StatusCode.PERMISSION_DENIED, "no") if refuse else None

    before = left_behind()
    store = reopen(uri=recorder.uri, timeout=2)
    recorder.intercept = refuse_async
    for _ in range(3):
        with pytest.raises(Exception, match="no"):
            await store.aquery(query())
    recorder.intercept = None
    assert len((await store.aquery(query())).ids) == 4
    await store.aclose()
    assert left_behind() == before


async def test_stores_with_other_options_share_no_connection(reopen, recorder):
    # A server that ends the connection of an idle client must not take others with it.
    other = {"grpc_options": {"grpc.primary_user_agent": "other"}}
    for store in (reopen(uri=recorder.uri), reopen(uri=recorder.uri, **other)):
        await store.aconnect()
    for colour in ("sync", "async"):
        assert len({call.peer for call in recorder.of(colour)}) == 2


# Session consistency


def everything(store):
    nodes = store.get_nodes(filters=MetadataFilters(filters=[]))
    return {node.node_id: node.text for node in nodes}


async def test_a_read_sees_this_process_own_writes_at_once(make_store, coloured, colour):
    writer = make_store(consistency_level="Session")
    reader = make_store(collection_name=writer.collection_name, consistency_level="Session")
    reading_colours = [coloured(reader), coloured(writer)]
    other_loop = asyncio.new_event_loop()

    def read_elsewhere(ids):
        nodes = other_loop.run_until_complete(reader.aget_nodes(ids))
        found = other_loop.run_until_complete(reader.aquery(query()))
        return {node.node_id: node.text for node in nodes}, set(found.ids)

    async def assert_seen(expected):
        ids = ["node-0", "node-1"]
        there = asyncio.create_task(asyncio.to_thread(read_elsewhere, ids))
        store = reading_colours[turn % 2]
        if turn % 4 < 2:
            assert {n.node_id: n.text for n in await store.get_nodes(ids)} == expected
        else:
            assert set((await store.query(query())).ids) == set(expected)
        assert await there == (expected, set(expected))

    write = coloured(writer)
    for turn in range(10):  # in each colour
        nodes = make_nodes(2)
        for node in nodes:
            node.set_content(f"turn {turn}")
        await write.add(nodes)
        await assert_seen({"node-0": f"turn {turn}", "node-1": f"turn {turn}"})
        nodes[0].set_content("again")
        await write.add(nodes[:1])
        await assert_seen({"node-0": "again", "node-1": f"turn {turn}"})
        await write.delete_nodes(["node-0"])
        await assert_seen({"node-1": f"turn {turn}"})
        await (write.delete("doc-0") if turn % 2 else write.clear())
        await assert_seen({})
    other_loop.close()


@pytest.mark.parametrize("level", ["Strong", "session", "BOUNDED", "Eventually"])
async def test_every_read_takes_a_consistency_level(shared, coloured, level):
    store = coloured(shared)
    options = {"consistency_level": level}
    # Once everything is seen, the levels that promise nothing show it as well.
    await store.get_nodes(["node-1"], consistency_level="Strong")
    assert len((await store.query(query(), **options)).ids) == 4
    assert [n.node_id for n in await store.get_nodes(["node-1"], **options)] == ["node-1"]


async def test_a_read_with_strong_sees_what_others_have_just_written(raw, reopen, coloured):
    # pymilvus remembers writes by address: by another name of the host, these are not known here.
    elsewhere = reopen().uri.replace("127.0.0.1", "localhost")
    store = coloured(reopen(uri=elsewhere, consistency_level="Eventually"))
    await store.connect()
    name = store.store.collection_name
    row = raw.query(name, filter='id == "node-0"', output_fields=["*"])[0]
    for turn in range(10):
        raw.insert(name, [{**row, "id": f"others-{turn}"}])
        read = await store.get_nodes([f"others-{turn}"], consistency_level="Strong")
        assert len(read) == 1
        raw.delete(name, filter=f'id == "others-{turn}"')
        ids = (await store.query(query(), consistency_level="Strong")).ids
        assert f"others-{turn}" not in ids


async def test_a_read_refuses_an_unknown_consistency_level(shared, coloured):
    for read in (
        coloured(shared).query(query(), consistency_level="Weak"),
        coloured(shared).get_nodes(["node-0"], consistency_level="Weak"),
    ):
        with pytest.raises(ConfigurationError, match="consistency_level is 'Weak'; it must be"):
            await read


@pytest.mark.parametrize("operation", ["query", "get_nodes", "add", "delete_nodes"])
async def test_timeout_of_a_call_ends_it(reopen, recorder, coloured, operation):
    opened = threading.Event()
    store = coloured(reopen(uri=recorder.uri, timeout=50))
    await store.query(query())  # connects
    held = {"query": "Search", "get_nodes": "Query", "delete_nodes": "Delete"}

    def hold(call):
        if call.method == held.get(operation) or (call.adds and operation == "add"):
            opened.wait(SECONDS_TO_WAIT)
            return grpc.StatusCode.CANCELLED, "too late"
        return None

    recorder.intercept = hold
    calls = {
        "query": lambda: store.query(query(), timeout=0.3),
        "get_nodes": lambda: store.get_nodes(["node-0"], timeout=0.3),
        "add": lambda: store.add(make_nodes(1, prefix="held"), timeout=0.3),
        "delete_nodes": lambda: store.delete_nodes(["held-0"], timeout=0.3),
    }
    with pytest.raises(RequestTimeoutError, match="in time"):
        await calls[operation]()
    opened.set()
    recorder.intercept = None
    assert len((await store.query(query())).ids) == 4


# Stalls


#: The issue's bound on an otherwise idle machine.
STALL_MS = 25
RUNS = 5


def seconds_waited_for_a_processor():
    """What the scheduler made this thread wait while it wanted to run; 0 where it does not say."""
    try:
        with open(f"/proc/self/task/{threading.get_native_id()}/schedstat") as file:
            return int(file.read().split()[1]) / 1e9
    except FileNotFoundError:
        return 0.0


@dataclass
class Held:
    """The longest time between two ticks without the waiting for a processor, and CPU time."""

    wall_ms: float = 0.0
    cpu_ms: float = 0.0


@asynccontextmanager
async def what_holds_the_loop():
    """A second opinion to the heartbeat, which on a busy machine shows mostly the others.

    Computing shows in CPU time, whatever they do; waiting shows in the time that is left when
    the scheduler's part is taken off.
    """
    loop = asyncio.get_running_loop()
    held = Held()

    def clocks():
        return time.perf_counter() - seconds_waited_for_a_processor(), time.thread_time()

    last = clocks()

    def tick():
        nonlocal last, handle
        now = clocks()
        held.wall_ms = max(held.wall_ms, (now[0] - last[0]) * 1000)
        held.cpu_ms = max(held.cpu_ms, (now[1] - last[1]) * 1000)
        last = now
        handle = loop.call_later(0.001, tick)

    handle = loop.call_later(0, tick)
    try:
        yield held
    finally:
        handle.cancel()


async def assert_no_stall(heartbeat, work):
    """One run has to hold the bound: noise spoils some of them, a real stall all.

    The garbage collector is kept off what was there before, which takes it tens of milliseconds.
    """
    gc.collect()
    gc.freeze()  # for good: `unfreeze` would also bring back what has been there since collection
    seen = []
    for run in range(RUNS):
        async with heartbeat() as stall, what_holds_the_loop() as held:
            await work(run)
        seen.append((stall, held))
        print("stall", stall, held)
        if max(held.cpu_ms, min(held.wall_ms, stall.net_ms)) < STALL_MS:
            return
    raise AssertionError(f"the loop was held too long in every run: {seen}")


def large_nodes():
    nodes = make_nodes(5_000, dim=768)
    for node in nodes:
        node.set_content("x" * 500)
    return nodes


async def test_a_store_is_made_and_filled_without_holding_the_loop(make_store, heartbeat):
    nodes = large_nodes()

    async def work(run):
        store = make_store(dim=768)
        await store.async_add(nodes)

    await assert_no_stall(heartbeat, work)


async def test_concurrent_adds_do_not_add_up_to_a_stall(make_store, heartbeat):
    nodes = large_nodes()
    store = make_store(dim=768)
    await store.aconnect()

    async def work(run):
        await asyncio.gather(*(store.async_add(nodes[i::10]) for i in range(10)))

    await assert_no_stall(heartbeat, work)


async def test_embedded_lite_starts_without_holding_the_loop(tmp_path, heartbeat):
    pytest.importorskip("milvus_lite")

    async def work(run):
        store = MilvusVectorStore(uri=str(tmp_path / f"{run}.db"), dim=8)
        await store.aconnect()
        await store.aclose()

    await assert_no_stall(heartbeat, work)


async def test_mmr_over_many_candidates_does_not_hold_the_loop(make_store, heartbeat):
    nodes = make_nodes(2_000, dim=768)
    store = make_store(dim=768)
    await store.async_add(nodes)
    query = VectorStoreQuery(
        query_embedding=nodes[0].embedding, similarity_top_k=10, mode=VectorStoreQueryMode.MMR
    )

    async def work(run):
        result = await store.aquery(query, mmr_prefetch_k=2_000)
        assert len(result.ids) == 10

    await assert_no_stall(heartbeat, work)


async def test_many_queries_are_checked_without_holding_the_loop(make_store, heartbeat):
    """The last is refused, so that nothing is sent."""
    store = make_store()
    await store.aconnect()
    embedding = [1.0] * DIM
    queries = [VectorStoreQuery(query_embedding=embedding) for _ in range(10_000)]
    queries.append(VectorStoreQuery(query_embedding=None))

    async def work(run):
        with pytest.raises(QueryError, match="needs query_embedding"):
            await store.aquery_many(queries)
        assert "search" not in store.stats()

    await assert_no_stall(heartbeat, work)


async def test_nodes_are_gone_through_and_changed_without_holding_the_loop(make_store, heartbeat):
    store = make_store(dim=128)
    await store.async_add(make_nodes(2_500, dim=128, topic=lambda i: f"topic {i % 7}"))

    async def work(run):
        count = 0
        async for _ in store.aiter_nodes(include_embeddings=run % 2 == 1):
            count += 1
        assert count == 2_500
        everything = MetadataFilters(filters=[])
        assert await store.aupdate_metadata(everything, set={"run": run}) == 2_500
        assert len(await store.alist_documents()) == 625

    await assert_no_stall(heartbeat, work)
