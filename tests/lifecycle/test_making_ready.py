"""The first operation makes a store ready, once, whoever calls it and whatever fails meanwhile."""

import asyncio
import copy
import pickle
import threading
from concurrent.futures import ThreadPoolExecutor

import grpc
import pytest

from llama_index_milvus_async import MilvusVectorStore
from llama_index_milvus_async.errors import (
    ConfigurationError,
    ServerError,
    UnreachableError,
)
from tests.fixtures.stores import DIM, collection_name, make_nodes
from tests.lifecycle.helpers import (
    SECONDS_TO_WAIT,
    Gate,
    ids_in,
    query,
)

#


class FailOnce:
    """Refuses the first request of one method; for `Recorder.intercept`."""

    def __init__(self, method):
        self.method = method
        self.failed = False

    def __call__(self, call):
        if call.method == self.method and not self.failed:
            self.failed = True
            # Unlike overload and lost connections nothing to try again.
            return grpc.StatusCode.INVALID_ARGUMENT, "not now"
        return None


# Ready once


async def test_first_calls_of_all_colours_loops_and_threads_at_once_make_ready_once(
    recorder, make_store
):
    store = make_store(uri=recorder.uri)
    threads = 3
    start = threading.Barrier(2 * threads + 1)

    async def query_from_many_tasks():
        await asyncio.gather(*(store.aquery(query()) for _ in range(5)))

    def in_a_loop():
        start.wait(SECONDS_TO_WAIT)
        asyncio.run(query_from_many_tasks())

    def in_a_thread():
        start.wait(SECONDS_TO_WAIT)
        store.query(query())

    with ThreadPoolExecutor(2 * threads) as pool:
        others = [pool.submit(run) for run in [in_a_loop, in_a_thread] * threads]
        start.wait(SECONDS_TO_WAIT)
        await query_from_many_tasks()
        for other in others:
            await asyncio.wrap_future(other)
    assert len(recorder.named("CreateCollection")) == 1
    assert len(recorder.named("CreateIndex")) == 2  # of the embedding, and of the document id
    assert recorder.connected("sync") == 1
    assert recorder.connected("async") == 1 + threads


async def test_a_sync_call_beside_an_unfinished_first_call_of_its_own_loop_does_not_hang(
    recorder, reopen
):
    store = reopen(uri=recorder.uri)
    first = asyncio.create_task(store.aquery(query()))
    await asyncio.sleep(0)
    assert len(store.query(query()).ids) == 4
    await first
    assert times_made_ready(recorder) == 1


def times_made_ready(recorder):
    # Which is the only time that the store asks for the version; clients do not by themselves.
    return len(recorder.named("GetVersion"))


async def test_a_cancelled_first_caller_does_not_undo_it_for_the_others(recorder, reopen):
    recorder.intercept = gate = Gate("GetVersion")
    store = reopen(uri=recorder.uri)
    first = asyncio.create_task(store.aquery(query()))
    await gate.was_reached()
    second = asyncio.create_task(store.aquery(query()))
    await asyncio.sleep(0)
    first.cancel()
    with pytest.raises(asyncio.CancelledError):
        await first
    gate.open.set()
    assert len((await second).ids) == 4
    assert times_made_ready(recorder) == 1


async def test_making_ready_outlives_the_loop_that_began_it(recorder, reopen):
    recorder.intercept = gate = Gate("GetVersion")
    store = reopen(uri=recorder.uri)

    async def begin_only():
        task = asyncio.create_task(store.aquery(query()))
        await gate.was_reached()
        task.cancel()

    await asyncio.to_thread(asyncio.run, begin_only())
    gate.open.set()
    assert len((await store.aquery(query())).ids) == 4
    assert times_made_ready(recorder) == 1


async def test_the_next_call_tries_again_when_the_server_was_down(lite_server, coloured):
    store = coloured(MilvusVectorStore(uri=lite_server.uri, dim=DIM, timeout=1))
    lite_server.stop()
    for _ in range(2):
        with pytest.raises(UnreachableError):
            await store.query(query())
    lite_server.start()
    await store.add(make_nodes(1))
    assert (await store.query(query())).ids == ["node-0"]
    await store.close()


async def test_all_who_wait_for_a_failed_making_ready_are_told(lite_server):
    lite_server.stop()
    store = MilvusVectorStore(uri=lite_server.uri, dim=DIM, timeout=1)
    outcomes = await asyncio.gather(
        *(store.aquery(query()) for _ in range(5)), return_exceptions=True
    )
    assert [type(outcome) for outcome in outcomes] == [UnreachableError] * 5
    await store.aclose()


async def test_a_collection_that_another_process_is_creating_is_waited_for(lite_server):
    """Milvus Lite makes a collection's folder first, and refuses all others until it is done."""
    folder = lite_server.directory / "data" / "collections" / "begun"
    folder.mkdir(parents=True)
    store = MilvusVectorStore(lite_server.uri, collection_name="begun", dim=DIM)
    adding = asyncio.create_task(store.async_add(make_nodes(1)))
    await asyncio.sleep(0.3)
    assert not adding.done()
    folder.rmdir()
    assert await adding == ["node-0"]
    assert (await store.aquery(query())).ids == ["node-0"]
    await store.aclose()


async def test_a_collection_that_nobody_finishes_creating_is_an_error(lite_server):
    folder = lite_server.directory / "data" / "collections" / "left"
    folder.mkdir(parents=True)
    store = MilvusVectorStore(lite_server.uri, collection_name="left", dim=DIM, timeout=2)
    with pytest.raises(ServerError, match=f"create_collection failed.* '{folder}'"):
        await store.async_add(make_nodes(1))
    await store.aclose()


@pytest.mark.parametrize("method", ["CreateCollection", "CreateIndex"])
async def test_the_next_call_goes_on_where_making_ready_failed(recorder, make_store, method):
    recorder.intercept = FailOnce(method)
    store = make_store(uri=recorder.uri)
    with pytest.raises(ServerError, match="not now"):
        await store.async_add(make_nodes(1))
    await store.async_add(make_nodes(1))
    assert ids_in(store) == ["node-0"]


# Overwrite


async def test_overwrite_drops_what_is_there_once(make_store, coloured):
    first = make_store()
    first.add(make_nodes(2, prefix="old"))
    # The dimension shows that the collection is a new one.
    store = make_store(collection_name=first.collection_name, dim=4, overwrite=True)
    await coloured(store).connect()
    assert ids_in(store) == []
    await coloured(store).add(make_nodes(1, dim=4, prefix="new"))
    await coloured(store).connect()
    assert ids_in(store) == ["new-0"]


def test_copies_of_a_store_never_overwrite(reopen):
    store = reopen(dim=DIM, overwrite=True)  # itself never used
    arguments = store.to_dict()
    before = ["node-0", "node-1", "node-2", "node-3"]
    for copied in (
        copy.copy(store),
        copy.deepcopy(store),
        store.model_copy(),
        pickle.loads(pickle.dumps(store)),
        MilvusVectorStore.from_dict(arguments, token=store.token),
        MilvusVectorStore.from_dict({**arguments, "overwrite": True}, token=store.token),
        MilvusVectorStore.from_json(store.to_json(), token=store.token),
    ):
        with copied:
            assert ids_in(copied) == before


async def test_overwrite_does_not_drop_what_was_written_since_the_store_was_built(
    make_store, coloured
):
    before = make_store()
    name = before.collection_name
    before.add(make_nodes(1, prefix="before"))
    store = make_store(collection_name=name, overwrite=True)
    # Also of another loop, colour, spelling, ...: the process remembers it of the collection.
    await make_store(collection_name=name).async_add(make_nodes(1, prefix="since"))
    for operation in (
        lambda: coloured(store).add(make_nodes(1, prefix="new")),
        lambda: coloured(store).connect(),
    ):
        with pytest.raises(ConfigurationError, match=r"=True: another store.*connect\(\)"):
            await operation()
    assert ids_in(before) == ["before-0", "since-0"]
    # What was written before a store is built, it drops, and what it has written it keeps.
    again = make_store(collection_name=name, overwrite=True)
    await coloured(again).connect()
    await coloured(again).add(make_nodes(1, prefix="new"))
    await coloured(again).connect()
    assert ids_in(again) == ["new-0"]


async def test_a_copy_counts_as_another_store(make_store):
    store = make_store(overwrite=True)
    with copy.copy(store) as copied:
        copied.add(make_nodes(1, prefix="of-the-copy"))
        with pytest.raises(ConfigurationError, match="overwrite=True: another store"):
            await store.aconnect()
        assert ids_in(copied) == ["of-the-copy-0"]


async def test_overwrite_of_a_collection_that_is_not_there_makes_it_and_is_spent(
    recorder, make_store
):
    # Another store may have written in between: a second attempt must not drop that.
    recorder.intercept = FailOnce("CreateIndex")
    store = make_store(uri=recorder.uri, overwrite=True)
    with pytest.raises(ServerError, match="not now"):
        await store.aconnect()
    await store.aconnect()
    assert recorder.named("DropCollection") == []


async def test_overwrite_that_failed_is_done_by_the_next_call(recorder, make_store):
    first = make_store()
    first.add(make_nodes(2, prefix="old"))
    recorder.intercept = FailOnce("DropCollection")
    name = first.collection_name
    store = make_store(uri=recorder.uri, collection_name=name, overwrite=True)
    with pytest.raises(ServerError, match="not now"):
        await store.aconnect()
    await store.aconnect()
    assert ids_in(store) == []


# Aliases


@pytest.fixture(scope="module")
def alias(raw, shared):
    name = collection_name("alias")
    raw.create_alias(shared.collection_name, name)
    yield name
    raw.drop_alias(name)


async def test_an_alias_works_as_a_collection_name(reopen, alias, coloured):
    store = coloured(reopen(collection_name=alias, dim=DIM))
    assert len((await store.query(query())).ids) == 4
    await store.add(make_nodes(1, prefix="through-alias"))
    assert [n.node_id for n in await store.get_nodes(["through-alias-0"])] == ["through-alias-0"]
    await store.delete_nodes(["through-alias-0"])
    assert await store.get_nodes(["through-alias-0"]) == []


async def test_an_alias_is_not_overwritten_however_often_one_tries(reopen, alias, coloured, shared):
    store = coloured(reopen(collection_name=alias, dim=DIM, overwrite=True))
    for _ in range(2):
        with pytest.raises(ConfigurationError) as caught:
            await store.add(make_nodes(1, prefix="wrong"))
        assert f"{alias!r} is an alias of {shared.collection_name!r}" in str(caught.value)
    assert len(ids_in(shared)) == 4
