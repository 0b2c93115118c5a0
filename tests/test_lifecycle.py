"""Making ready, overwriting, validating what exists, and closing."""

import asyncio
import copy
import pickle
import threading
from concurrent.futures import ThreadPoolExecutor

import grpc
import pytest
from llama_index.core.vector_stores.types import MetadataFilters, VectorStoreQuery
from pymilvus import AsyncMilvusClient, DataType, MilvusClient
from pymilvus.client.types import LoadState

from llama_index_milvus_async import IndexManagement, MilvusVectorStore
from llama_index_milvus_async.errors import (
    CollectionError,
    ConfigurationError,
    ServerError,
    StoreClosedError,
    UnreachableError,
)
from tests.fixtures.stores import DIM, collection_name, make_nodes

#: A thread of a test that does not end by itself is a failure, not a hang.
SECONDS_TO_WAIT = 60


def query(**kwargs):
    return VectorStoreQuery(query_embedding=[1.0] * DIM, similarity_top_k=10, **kwargs)


def ids_in(store):
    return sorted(node.node_id for node in store.get_nodes(filters=MetadataFilters(filters=[])))


def is_loaded(raw, name):
    return raw.get_load_state(name)["state"] == LoadState.Loaded


class Gate:
    """Holds requests of one method until it is opened; for `Recorder.intercept`."""

    def __init__(self, method):
        self.method = method
        self.reached = threading.Event()
        self.open = threading.Event()

    def __call__(self, call):
        if call.method == self.method:
            self.reached.set()
            assert self.open.wait(SECONDS_TO_WAIT)

    async def was_reached(self):
        assert await asyncio.to_thread(self.reached.wait, SECONDS_TO_WAIT)


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
    assert len(recorder.named("CreateIndex")) == 1
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
    store = MilvusVectorStore(lite_server.uri, collection_name="left", dim=DIM, timeout=0.5)
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


async def test_overwrite_acts_at_the_first_use_of_the_original_after_its_copies(make_store):
    store = make_store(overwrite=True)
    with copy.copy(store) as copied:
        copied.add(make_nodes(1, prefix="of-the-copy"))
    await store.async_add(make_nodes(1, prefix="new"))
    assert ids_in(store) == ["new-0"]


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


# A new collection


async def test_a_new_collection_needs_dim(make_store, raw, coloured):
    store = make_store(dim=None)
    with pytest.raises(ConfigurationError) as caught:
        await coloured(store).connect()
    assert "dim is missing" in str(caught.value)
    assert store.collection_name in str(caught.value)
    assert not raw.has_collection(store.collection_name)


async def test_an_existing_collection_needs_no_dim(reopen, coloured):
    assert len((await coloured(reopen(dim=None)).query(query())).ids) == 4


async def test_a_new_collection_has_the_columns_index_and_level_asked_for(engine, make_store, raw):
    store = make_store(
        id_field="key",
        doc_id_field="document",
        text_key="body",
        embedding_field="vector",
        scalar_field_names=["year", "author"],
        scalar_field_types=[DataType.INT64, DataType.VARCHAR],
        index_config={"index_type": "HNSW", "M": 8, "efConstruction": 64},
        similarity_metric="COSINE",
        consistency_level="Bounded",
    )
    await store.aconnect()
    name = store.collection_name
    description = raw.describe_collection(name)
    fields = {field["name"]: field for field in description["fields"]}
    assert fields["key"]["is_primary"]
    types = {name: field["type"] for name, field in fields.items()}
    assert types["vector"] == DataType.FLOAT_VECTOR
    assert types["year"] == DataType.INT64
    for text in ("key", "document", "body", "author"):
        assert types[text] == DataType.VARCHAR
    assert fields["vector"]["params"]["dim"] == DIM
    index = raw.describe_index(name, raw.list_indexes(name)[0])
    assert (index["index_type"], index["metric_type"]) == ("HNSW", "COSINE")
    assert index["field_name"] == "vector"
    if not engine.is_lite:  # it tells no parameters, and is always Strong
        assert index["M"] == "8"
        assert description["consistency_level_name"] == "Bounded"
    assert is_loaded(raw, name)


# An existing collection


@pytest.fixture(scope="module")
def make_collection(raw):
    """Makes collections with pymilvus itself, each once; dropped with the module."""
    names = {}

    def make(fields, dynamic=True, index=None):
        key = repr((fields, dynamic, index))
        if key not in names:
            collection = collection_name("existing")
            schema = raw.create_schema(enable_dynamic_field=dynamic)
            for name, options in fields.items():
                schema.add_field(name, **options)
            raw.create_collection(collection, schema=schema)
            names[key] = collection
            if index:
                params = raw.prepare_index_params()
                params.add_index("embedding", index_name="embedding", **index)
                raw.create_index(names[key], params)
        return names[key]

    yield make
    for name in names.values():
        raw.drop_collection(name)


TEXT = {"datatype": DataType.VARCHAR, "max_length": 1000}
INTEGER = {"datatype": DataType.INT64}
VECTOR = {"datatype": DataType.FLOAT_VECTOR, "dim": DIM}
FIELDS = {
    "id": {**TEXT, "is_primary": True},
    "doc_id": TEXT,
    "text": TEXT,
    "year": INTEGER,
    "embedding": VECTOR,
}
FLAT = {"index_type": "FLAT", "metric_type": "IP"}


def fields(**changes):
    """The usual fields, some of them changed, or left out by None."""
    return {name: field for name, field in {**FIELDS, **changes}.items() if field}


# What exists; what is asked for; and what the message names: field, found, asked, what to do.
MISMATCHES = {
    "primary key": (
        {"fields": {"pk": {**INTEGER, "is_primary": True}, **fields(id=None)}},
        {"id_field": "key"},
        ("primary key", "found 'pk'", "asked for id_field='key'", "Pass id_field='pk'"),
    ),
    "primary key elsewhere": (
        {"fields": {"pk": {**TEXT, "is_primary": True}, **fields(id=TEXT)}},
        {},
        ("primary key", "found 'pk'", "asked for id_field='id'", "Pass id_field='pk'"),
    ),
    "vector field missing": (
        {"fields": fields()},
        {"embedding_field": "vector"},
        ("'vector'", "found no such field", "asked for a FLOAT_VECTOR", "['embedding']"),
    ),
    "no vector field but a scalar": (
        {"fields": fields()},
        {"embedding_field": "year"},
        ("'year'", "found INT64", "asked for a FLOAT_VECTOR", "['embedding']"),
    ),
    "dimension": (
        {"fields": fields()},
        {"dim": 384},
        ("'embedding'", f"found dimension {DIM}", "asked for dim=384", f"Pass dim={DIM}"),
    ),
    "text missing": (
        {"fields": fields(), "dynamic": False},
        {"text_key": "body"},
        ("'body'", "found no such field", "asked for text_key='body'", "Pass text_key= one of"),
    ),
    "text of another type": (
        {"fields": fields()},
        {"text_key": "year"},
        ("'year'", "found INT64", "asked for VARCHAR", "Pass text_key= one of"),
    ),
    "doc id of another type": (
        {"fields": fields()},
        {"doc_id_field": "year"},
        ("'year'", "found INT64", "asked for VARCHAR", "Pass doc_id_field= one of"),
    ),
    "scalar of another type": (
        {"fields": fields()},
        {"scalar_field_names": ["year"], "scalar_field_types": [DataType.VARCHAR]},
        ("'year'", "found INT64", "asked for VARCHAR", "Pass DataType.INT64"),
    ),
    "scalar missing": (
        {"fields": fields(), "dynamic": False},
        {"scalar_field_names": ["author"], "scalar_field_types": [DataType.VARCHAR]},
        ("'author'", "found no such field", "asked for VARCHAR", "Leave it out"),
    ),
    "metric": (
        {"fields": fields(), "index": FLAT},
        {"similarity_metric": "L2"},
        ("'embedding'", "found metric IP", "similarity_metric='L2'", "similarity_metric='IP'"),
    ),
    "metric of the index": (
        {"fields": fields(), "index": FLAT},
        {"index_config": {"metric_type": "L2"}},
        ("found metric IP", "index_config={'metric_type': 'L2'}. Pass index_config={'metric_type'"),
    ),
}


@pytest.mark.parametrize("case", MISMATCHES)
async def test_a_mismatch_names_field_found_asked_and_what_to_do(
    case, make_collection, reopen, raw, coloured
):
    existing, arguments, fragments = MISMATCHES[case]
    await assert_refused(make_collection(**existing), arguments, fragments, reopen, raw, coloured)


async def test_a_vector_field_of_another_type_is_a_mismatch(
    engine, make_collection, reopen, raw, coloured
):
    # Neither engine has the other's second vector type.
    sparse, binary = {"datatype": DataType.SPARSE_FLOAT_VECTOR}, DataType.BINARY_VECTOR
    vector = sparse if engine.is_lite else {**VECTOR, "datatype": binary}
    name = make_collection(fields(embedding=vector))
    found = f"found {vector['datatype'].name}"
    fragments = ("'embedding'", found, "asked for a FLOAT_VECTOR", "embedding_field=")
    await assert_refused(name, {}, fragments, reopen, raw, coloured)


async def assert_refused(name, arguments, fragments, reopen, raw, coloured):
    before = raw.describe_collection(name), raw.list_indexes(name), raw.get_load_state(name)
    store = coloured(reopen(**{"collection_name": name, "dim": DIM, **arguments}))
    for _ in range(2):  # as loud the second time
        with pytest.raises(CollectionError) as caught:
            await store.add(make_nodes(1))
        for fragment in (f"Collection {name!r}", *fragments):
            assert fragment in str(caught.value)
    after = raw.describe_collection(name), raw.list_indexes(name), raw.get_load_state(name)
    assert after == before


async def test_an_integer_primary_key_of_any_name_is_found(make_collection, reopen):
    case, _, _ = MISMATCHES["primary key"]
    store = reopen(collection_name=make_collection(**case, index=FLAT))
    (node,) = make_nodes(1, year=2000)
    await store.async_add([node.model_copy(update={"id_": "17"})])
    assert ids_in(store) == ["17"]


async def test_a_missing_index_is_created_and_the_collection_loaded(make_collection, reopen, raw):
    name = make_collection(fields(not_yet_indexed=INTEGER))
    assert raw.list_indexes(name) == []
    store = reopen(collection_name=name, similarity_metric="COSINE")
    await store.aconnect()
    index = raw.describe_index(name, raw.list_indexes(name)[0])
    assert (index["index_type"], index["metric_type"]) == ("FLAT", "COSINE")
    assert is_loaded(raw, name)
    assert (await store.aquery(query())).ids == []


async def test_without_index_management_no_index_is_made_and_nothing_loaded(
    make_collection, reopen, raw, coloured
):
    name = make_collection(fields(unindexed=INTEGER))
    before = raw.get_load_state(name)
    store = coloured(reopen(collection_name=name, index_management=IndexManagement.NO_VALIDATION))
    await store.connect()
    assert raw.list_indexes(name) == []
    assert raw.get_load_state(name) == before


async def test_without_index_management_an_index_made_by_others_is_used(
    make_collection, reopen, raw
):
    name = make_collection(fields(managed=INTEGER))
    params = raw.prepare_index_params()
    params.add_index("embedding", index_name="of_others", **FLAT)
    raw.create_index(name, params)
    indexes = raw.list_indexes(name)
    store = reopen(collection_name=name, index_management=IndexManagement.NO_VALIDATION)
    assert (await store.aquery(query())).ids == []
    assert raw.list_indexes(name) == indexes


async def test_a_released_collection_is_loaded(shared, reopen, raw):
    raw.release_collection(shared.collection_name)
    assert len((await reopen().aquery(query())).ids) == 4


# Properties


TTL = "collection.ttl.seconds"


async def test_collection_properties_are_set_where_they_differ_and_only_there(
    recorder, make_store, raw
):
    first = make_store(collection_properties={TTL: 3600})
    await first.aconnect()
    name = first.collection_name
    assert raw.describe_collection(name)["properties"][TTL] == "3600"

    async def connect(properties):
        recorder.calls.clear()
        arguments = {"uri": recorder.uri, "collection_name": name}
        await make_store(**arguments, collection_properties=properties).aconnect()
        return len(recorder.named("AlterCollection"))

    assert await connect({TTL: 3600}) == 0
    assert await connect({TTL: "3600"}) == 0
    assert await connect(None) == 0
    assert await connect({TTL: 7200}) == 1
    assert raw.describe_collection(name)["properties"][TTL] == "7200"


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
