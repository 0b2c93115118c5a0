"""Stores are opened and closed, and hand out their clients."""

import asyncio
import copy
import threading

import pytest
from pymilvus import AsyncMilvusClient, MilvusClient

from llama_index_milvus_async.errors import (
    ConfigurationError,
    ServerError,
    StoreClosedError,
)
from tests.fixtures.stores import FLUSHING, make_nodes
from tests.lifecycle.helpers import Gate, ids_in, query

# Opening and closing


async def test_connect_makes_ready_and_returns_the_store(make_store, raw, coloured):
    store = make_store()
    assert await coloured(store).connect() is store
    assert await coloured(store).connect() is store
    assert raw.has_collection(store.collection_name)


async def test_connect_connects_the_running_loop(recorder, reopen):
    store = reopen(uri=recorder.uri)
    await store.aconnect()
    assert (recorder.connected("sync"), recorder.connected("async")) == (1, 1)
    await store.aquery(query())
    assert (recorder.connected("sync"), recorder.connected("async")) == (1, 1)


def test_a_with_statement_opens_and_closes(reopen):
    with reopen() as store:
        assert len(store.query(query()).ids) == 4
    assert_closed(store)


async def test_an_async_with_statement_opens_and_closes(reopen):
    async with reopen() as store:
        assert len((await store.aquery(query())).ids) == 4
    await assert_closed_async(store)


async def test_an_exception_leaves_a_with_statement_and_closes(reopen):
    with pytest.raises(ZeroDivisionError):
        async with reopen() as asynchronous:
            raise ZeroDivisionError
    with pytest.raises(ZeroDivisionError), reopen() as blocking:
        raise ZeroDivisionError
    assert_closed(blocking)
    await assert_closed_async(asynchronous)


def assert_closed(store):
    for use in (
        *(store.connect, store.clear, lambda: store.client, store.__enter__),
        *(lambda: store.add(make_nodes(1)), lambda: store.query(query())),
        *(lambda: store.delete("doc-0"), lambda: store.delete_nodes(["node-0"])),
        lambda: store.get_nodes(["node-0"]),
    ):
        with pytest.raises(StoreClosedError, match="closed"):
            use()


async def assert_closed_async(store):
    for use in (
        *(store.aconnect, store.aclear, store.__aenter__),
        *(lambda: store.async_add(make_nodes(1)), lambda: store.aquery(query())),
        *(lambda: store.adelete("doc-0"), lambda: store.adelete_nodes(["node-0"])),
        lambda: store.aget_nodes(["node-0"]),
    ):
        with pytest.raises(StoreClosedError, match="closed"):
            await use()
    with pytest.raises(StoreClosedError, match="closed"):
        _ = store.aclient


@pytest.mark.parametrize("use_async_client", [True, False])
@pytest.mark.parametrize("used", [True, False], ids=["used", "unused"])
async def test_a_closed_store_that_is_used_again_says_so(reopen, coloured, used, use_async_client):
    store = reopen(use_async_client=use_async_client)
    if used:
        await store.aquery(query())
        store.query(query())
    for _ in range(2):
        await coloured(store).close()
    await store.aclose()
    store.close()
    assert_closed(store)
    if use_async_client:
        await assert_closed_async(store)


async def test_closing_one_store_leaves_its_copies_and_siblings_open(reopen, coloured):
    store, sibling = reopen(), reopen()
    copied = copy.copy(store)
    for one in (store, sibling, copied):
        await coloured(one).query(query())
    await coloured(store).close()
    for one in (sibling, copied):
        assert len((await coloured(one).query(query())).ids) == 4
    await copied.aclose()


@pytest.mark.engines("lite")
async def test_closing_waits_for_what_is_flushed(make_store, coloured):
    """Milvus Lite complains where its process ends meanwhile."""
    store = coloured(make_store())
    await store.add(make_nodes(1_000))
    await store.close()
    assert FLUSHING not in {thread.name for thread in threading.enumerate()}


async def test_closing_while_it_is_made_ready_ends_in_that_error(recorder, reopen):
    recorder.intercept = gate = Gate("GetVersion")
    store = reopen(uri=recorder.uri)
    first = asyncio.create_task(store.aquery(query()))
    await gate.was_reached()
    closing = asyncio.create_task(asyncio.to_thread(store.close))
    gate.open.set()
    await closing
    with pytest.raises((StoreClosedError, ServerError)):
        await first
    assert_closed(store)


# The clients


def test_client_is_a_ready_client(make_store):
    store = make_store()
    client = store.client
    assert isinstance(client, MilvusClient)
    assert client.has_collection(store.collection_name)
    assert store.client is client


async def test_a_client_that_its_user_closed_is_replaced(reopen, coloured):
    store = reopen()
    await store.aconnect()
    closed = store.client, store.aclient
    store.client.close()
    await store.aclient.close()
    assert sorted((await coloured(store).query(query())).ids)[0] == "node-0"
    assert [node.node_id for node in await coloured(store).get_nodes(["node-1"])] == ["node-1"]
    await coloured(store).delete_nodes(["node-9"])
    assert store.client is not closed[0]
    assert store.aclient is not closed[1]


async def test_aclient_is_a_ready_client_of_the_running_loop(reopen):
    store = reopen()
    client = store.aclient
    assert isinstance(client, AsyncMilvusClient)
    found = await client.query(store.collection_name, filter='id == "node-1"', limit=1)
    assert [row["id"] for row in found] == ["node-1"]
    await store.aquery(query())
    assert store.aclient is client


async def test_each_loop_has_its_own_aclient(reopen):
    store = reopen()

    async def client():
        return store.aclient

    assert await asyncio.to_thread(asyncio.run, client()) is not store.aclient


async def test_concurrent_first_calls_on_aclient_make_one_connection(recorder, make_store):
    store = make_store(uri=recorder.uri)
    expression = {"filter": 'id == "x"', "limit": 1}
    await asyncio.gather(
        *(store.aclient.query(store.collection_name, **expression) for _ in range(10)),
        *(store.aquery(query()) for _ in range(10)),
    )
    assert recorder.connected("async") == 1
    assert len(recorder.named("CreateCollection")) == 1


def test_aclient_outside_a_loop_is_a_clear_error(reopen):
    with pytest.raises(ConfigurationError, match="event loop, and none is running here"):
        _ = reopen().aclient


# Without the asynchronous client


async def test_without_the_async_client_async_methods_run_in_threads(recorder, reopen):
    store = reopen(uri=recorder.uri, use_async_client=False)
    await store.aconnect()
    recorder.intercept = gate = Gate("Search")
    searching = asyncio.create_task(store.aquery(query()))
    # Were the loop held by the search, this line would never be reached.
    await gate.was_reached()
    gate.open.set()
    assert len((await searching).ids) == 4
    assert recorder.of("async") == []


async def test_without_the_async_client_there_is_no_aclient(reopen):
    with pytest.raises(ConfigurationError, match="use_async_client=False"):
        _ = reopen(use_async_client=False).aclient


async def test_without_the_async_client_every_async_method_works(make_store):
    async with make_store(use_async_client=False) as store:
        assert await store.async_add(make_nodes(3)) == ["node-0", "node-1", "node-2"]
        assert len((await store.aquery(query())).ids) == 3
        assert [n.node_id for n in await store.aget_nodes(["node-1"])] == ["node-1"]
        await store.adelete_nodes(["node-1"])
        assert ids_in(store) == ["node-0", "node-2"]
        await store.adelete("doc-0")
        assert ids_in(store) == []
        await store.async_add(make_nodes(1))
        await store.aclear()
        assert ids_in(store) == []
