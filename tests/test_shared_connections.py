"""Stores share connections and RPCs, and give them up; an address is one however it is spelled."""

import asyncio
import gc
import threading
import time

import pytest
from llama_index.core.vector_stores.types import VectorStoreQuery

from llama_index_milvus_async import MilvusVectorStore
from llama_index_milvus_async._transport.registry import LoopConnection, close_from_outside
from llama_index_milvus_async._wire.address import Address
from llama_index_milvus_async.errors import PartialWriteError
from tests.fixtures.stores import collection_name, make_nodes

DIM = 8


# Addresses


@pytest.mark.parametrize(
    "uri",
    ["http://localhost:19530", "http://LOCALHOST", "tcp://127.0.0.1/", "http://127.0.0.1:19530/"],
)
def test_spellings_of_an_address_are_one_place(uri):
    assert Address(uri).place == Address("http://127.0.0.1:19530").place


@pytest.mark.parametrize("uri", ["http://LOCALHOST", "tcp://localhost/", "http://localhost:19530/"])
def test_spellings_of_an_address_share_a_connection(uri):
    assert Address(uri).connection_key == Address("http://localhost:19530").connection_key


def test_other_hosts_are_other_places():
    """On one machine, [::1] and 127.0.0.1 may be two servers; certificates know `localhost`."""
    assert Address("http://[::1]").place != Address("http://127.0.0.1").place
    local = Address("http://localhost").connection_key
    assert local != Address("http://127.0.0.1").connection_key


def test_spellings_of_a_path_are_one_place(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "link").symlink_to(tmp_path)
    places = {Address(uri).place for uri in ("notes.db", "./notes.db", "link/notes.db")}
    assert places == {str(tmp_path.resolve() / "notes.db")}


@pytest.mark.parametrize(
    ("uri", "options", "database"),
    [
        ("http://h", {}, ""),
        ("http://h/", {"db_name": "default"}, ""),
        ("http://h", {"db_name": None}, ""),
        ("http://h/other", {}, "other"),
        ("http://h/other", {"db_name": "default"}, ""),
        ("notes.db", {"db_name": "other"}, "other"),
    ],
)
def test_the_default_database_has_one_name(uri, options, database):
    assert Address(uri, options=options).database == database


@pytest.mark.parametrize(
    "other",
    [
        Address("http://h", token="a:b"),
        Address("http://h", password="b", options={"user": "a"}),
        Address("http://h", options={"db_name": "other"}),
        Address("https://h"),
        Address("http://h:1"),
        Address("http://h", options={"server_name": "x"}),
        Address("http://h", options={"grpc_options": {"grpc.max_receive_message_length": 1}}),
    ],
    ids=["token", "password", "database", "scheme", "port", "tls", "grpc"],
)
def test_other_logins_and_options_never_share_a_connection(other):
    assert other.connection_key != Address("http://h").connection_key
    assert "'b'" not in repr(other.connection_key)


# Connections


async def of_many(recorder, make_store, count: int) -> None:
    stores = [make_store(uri=recorder.uri) for _ in range(count)]
    nodes = make_nodes(1)
    for store in stores:
        await store.async_add(nodes)
        assert [node.node_id for node in await store.aget_nodes(["node-0"])] == ["node-0"]
    assert len({store.collection_name for store in stores}) == count
    assert (recorder.connected("async"), recorder.connected("sync")) == (1, 1)


@pytest.mark.engines("lite")
async def test_stores_of_many_collections_use_one_channel_of_a_loop(recorder, make_store):
    await of_many(recorder, make_store, 30)


@pytest.mark.slow
@pytest.mark.engines("lite")
async def test_a_thousand_stores_use_one_channel_of_a_loop(recorder, make_store):
    await of_many(recorder, make_store, 1_000)


DROPPED = """
import asyncio, gc, os, sys, threading
from llama_index_milvus_async import MilvusVectorStore
from tests.fixtures.stores import make_nodes

uri, name, count = sys.argv[1], sys.argv[2], int(sys.argv[3])

async def use(number):
    store = MilvusVectorStore(uri=uri, collection_name=name, dim=8)
    await store.async_add(make_nodes(1, prefix=f"of-{number}"))

def state():
    gc.collect()
    with open("/proc/self/statm") as memory:
        pages = int(memory.read().split()[1])
    return len(os.listdir("/proc/self/fd")), threading.active_count(), pages * 4096

for number in range(20):
    asyncio.run(use(number))
before = state()
for number in range(count):
    asyncio.run(use(number))
after = state()
descriptors, threads, grown = (now - then for now, then in zip(after, before))
print(descriptors, threads, grown)
assert descriptors <= 4, f"{descriptors} more descriptors"
assert threads <= 2, f"{threads} more threads"
assert grown < 2**20 + count * 50_000, f"{grown} more bytes"
"""


@pytest.mark.skipif("sys.platform != 'linux'", reason="counts descriptors in /proc")
@pytest.mark.parametrize("count", [60, pytest.param(1_000, marks=pytest.mark.slow)])
@pytest.mark.engines("lite")
def test_stores_that_are_dropped_without_close_leave_nothing_open(
    engine, make_store, new_python, count
):
    store = make_store(dim=DIM).connect()
    new_python.run("-c", DROPPED, engine.uri, store.collection_name, str(count))


async def test_closing_a_store_leaves_the_connection_to_others(recorder, make_store):
    first = make_store(uri=recorder.uri)
    second = make_store(uri=recorder.uri, collection_name=first.collection_name)
    await first.async_add(make_nodes(2))
    await second.aget_nodes(["node-0"])
    first.get_nodes(["node-0"])
    second.get_nodes(["node-0"])
    reading = [asyncio.ensure_future(second.aget_nodes(["node-1"])) for _ in range(5)]
    await asyncio.sleep(0)
    await first.aclose()
    assert [len(found) for found in await asyncio.gather(*reading)] == [1] * 5
    assert len(second.get_nodes(["node-0"])) == len(await second.aget_nodes(["node-0"])) == 1
    assert (recorder.connected("async"), recorder.connected("sync")) == (1, 1)


async def test_a_store_that_is_forgotten_leaves_the_connection_to_others(recorder, make_store):
    store = make_store(uri=recorder.uri)
    await store.async_add(make_nodes(1))
    forgotten = MilvusVectorStore(uri=recorder.uri, collection_name=store.collection_name, dim=DIM)
    await forgotten.aget_nodes(["node-0"])
    del forgotten
    gc.collect()
    assert len(await store.aget_nodes(["node-0"])) == 1
    assert recorder.connected("async") == 1


# RPCs


async def test_equal_stores_of_one_collection_share_rpcs(recorder, make_store):
    first = make_store(uri=recorder.uri)
    others = [make_store(uri=recorder.uri, collection_name=first.collection_name) for _ in range(4)]
    stores = [first, *others]
    for store in stores:
        await store.aconnect()
    before = len(recorder.adds())
    await asyncio.gather(
        *(store.async_add(make_nodes(1, prefix=f"of-{i}")) for i, store in enumerate(stores))
    )
    assert len(recorder.adds()) - before < 5
    assert first.stats()["insert"].items == 5


@pytest.mark.parametrize("settings", [{"coalesce": False}, {"max_in_flight": 3}])
async def test_stores_with_other_settings_share_no_rpcs(recorder, make_store, settings):
    first = make_store(uri=recorder.uri)
    second = make_store(uri=recorder.uri, collection_name=first.collection_name, **settings)
    await first.aconnect()
    await second.aconnect()
    before = len(recorder.adds())
    await asyncio.gather(
        first.async_add(make_nodes(1, prefix="a")), second.async_add(make_nodes(1, prefix="b"))
    )
    assert len(recorder.adds()) - before == 2
    assert first.stats()["insert"].items == 1


@pytest.mark.engines("standalone")
async def test_documents_are_deleted_by_the_field_of_each_store(engine, make_store):
    """Equal in all but where the ids of documents are: a shared delete would look in one place."""
    first = make_store()
    nodes = make_nodes(4)
    for node in nodes:
        node.metadata["file_id"] = f"of-{node.node_id}"
    await first.async_add(nodes)
    second = make_store(collection_name=first.collection_name, doc_id_field="file_id")
    await second.aconnect()
    await asyncio.gather(first.adelete("of-node-2"), second.adelete("of-node-1"))
    left = await first.aget_nodes([node.node_id for node in nodes], consistency_level="Strong")
    assert [node.node_id for node in left] == ["node-0", "node-2", "node-3"]


async def test_a_closed_store_sends_nothing_more_over_a_shared_connection(recorder, make_store):
    first = make_store(uri=recorder.uri, batch_size=5, max_in_flight=2)
    other = make_store(uri=recorder.uri, collection_name=first.collection_name)
    await first.aconnect()
    await other.aconnect()
    began = asyncio.Event()
    loop = asyncio.get_running_loop()

    def slowly(call):
        if call.adds:
            loop.call_soon_threadsafe(began.set)
            time.sleep(0.05)

    recorder.intercept = slowly
    nodes = make_nodes(200)
    adding = asyncio.ensure_future(first.async_add(nodes))
    await began.wait()
    await first.aclose()
    with pytest.raises(PartialWriteError, match="the store is closed") as caught:
        await adding
    error = caught.value
    assert error.written
    assert sorted([*error.written, *error.not_written]) == sorted(node.node_id for node in nodes)
    ids = [node.node_id for node in nodes]
    stored = await other.aget_nodes(ids, consistency_level="Strong")
    assert {node.node_id for node in stored} == set(error.written)


def test_a_loop_that_ends_while_its_connection_is_to_close_leaves_no_coroutine():
    loop = asyncio.new_event_loop()
    running, asked = threading.Event(), threading.Event()

    def in_last_iteration():
        running.set()
        asked.wait(60)
        loop.stop()

    def run():
        loop.run_forever()
        loop.close()

    loop.call_soon(in_last_iteration)
    thread = threading.Thread(target=run)
    thread.start()
    assert running.wait(60)
    address = Address("http://localhost:19530")
    close_from_outside(LoopConnection(address, loop))
    asked.set()
    thread.join()
    gc.collect()  # a coroutine that was never awaited is a warning, and so an error


def test_counts_are_read_while_requests_are_sent(engine, make_store):
    store = make_store(timeout=60)
    ended = threading.Event()

    async def add():
        await asyncio.gather(*(store.async_add(make_nodes(1, prefix=str(i))) for i in range(60)))

    def send():
        asyncio.run(add())
        ended.set()

    thread = threading.Thread(target=send)
    thread.start()
    while not ended.is_set():
        store.stats()
    thread.join()
    assert store.stats()["insert"].calls == 60


# What the process remembers


@pytest.fixture
def respelled(raw, engine, make_store):
    """Makes a store, and another one of the same collection whose arguments are spelled so."""
    aliases = []

    def make(spelling: str, uri: str):
        first = make_store(uri=uri).connect()
        arguments = {"collection_name": first.collection_name, "uri": uri}
        if spelling == "alias":
            aliases.append(collection_name("alias"))
            raw.create_alias(first.collection_name, aliases[-1])
            arguments["collection_name"] = aliases[-1]
        elif spelling == "default":
            arguments["db_name"] = "default"
        elif spelling == "slash":
            arguments["uri"] = f"{uri}/"
        else:
            arguments["uri"] = uri.replace("127.0.0.1", "localhost")
        return first, MilvusVectorStore(dim=DIM, token=engine.token, **arguments)

    yield make
    for alias in aliases:
        raw.drop_alias(alias)


SPELLINGS = ["alias", "localhost", "slash", "default"]


@pytest.mark.engines("standalone")
@pytest.mark.parametrize("spelling", SPELLINGS)
async def test_a_delete_is_seen_by_every_spelling(respelled, engine, spelling):
    first, second = respelled(spelling, engine.uri)
    nodes = make_nodes(20)
    await first.async_add(nodes)
    async with second:
        for node in nodes:
            await first.adelete_nodes([node.node_id])
            query = VectorStoreQuery(query_embedding=node.embedding, similarity_top_k=1)
            found, result = await asyncio.gather(
                second.aget_nodes([node.node_id], consistency_level="Session"),
                second.aquery(query, consistency_level="Session"),
            )
            assert found == []
            assert node.node_id not in (result.ids or [])


@pytest.mark.engines("lite")
@pytest.mark.parametrize("spelling", SPELLINGS)
async def test_one_writer_at_a_time_under_every_spelling(respelled, recorder, spelling):
    first, second = respelled(spelling, recorder.uri)
    lock, under_way, most = threading.Lock(), [], []

    def count(call):
        if not call.adds:
            return
        with lock:
            under_way.append(call)
            most.append(len(under_way))
        time.sleep(0.02)  # without it they would seldom meet
        with lock:
            under_way.remove(call)

    async with second:
        await second.aconnect()
        recorder.intercept = count
        await asyncio.gather(
            *(
                store.async_add(make_nodes(1, prefix=f"{number}-{name}"))
                for number in range(5)
                for name, store in (("first", first), ("second", second))
            ),
            asyncio.to_thread(second.add, make_nodes(1, prefix="blocking")),
        )
        recorder.intercept = None
    assert most
    assert max(most) == 1
