"""Collections that are dropped and made again elsewhere while a store is in use."""

from __future__ import annotations

import asyncio
from types import SimpleNamespace

import pytest
from llama_index.core.schema import TextNode
from llama_index.core.vector_stores.types import (
    MetadataFilter,
    MetadataFilters,
    VectorStoreQuery,
)
from pymilvus import DataType

from llama_index_milvus_async import (
    CollectionError,
    ConfigurationError,
    FilterError,
    NodeError,
    QueryError,
    ServerError,
)
from llama_index_milvus_async._concurrency.once import Once
from llama_index_milvus_async._operations import Context, FirstNodes, Ready
from llama_index_milvus_async.errors import (
    PartialWriteError,
    RequestTimeoutError,
    UnreachableError,
    WriteOutcomeUnknownError,
)
from tests.fixtures.stores import DIM, make_nodes

YEAR = MetadataFilters(filters=[MetadataFilter(key="year", value=2001)])

OPERATIONS = {
    "add": lambda store, dim: store.add(make_nodes(2, dim=dim)),
    "delete": lambda store, dim: store.delete("doc-0"),
    "delete_nodes": lambda store, dim: store.delete_nodes(["node-0"]),
    "clear": lambda store, dim: store.clear(),
    "get_nodes by ids": lambda store, dim: store.get_nodes(["node-0"]),
    "get_nodes by filter": lambda store, dim: store.get_nodes(filters=YEAR),
    "query": lambda store, dim: store.query(query_for(dim)),
}


def query_for(dim):
    [node] = make_nodes(1, dim=dim)
    return VectorStoreQuery(query_embedding=node.embedding, similarity_top_k=3)


def make_again(raw, name):
    """Make a collection of other columns in place of one, and put a row into it."""
    raw.drop_collection(name)
    schema = raw.create_schema(enable_dynamic_field=False)
    schema.add_field("pk", DataType.VARCHAR, max_length=100, is_primary=True)
    schema.add_field("text", DataType.VARCHAR, max_length=1_000)
    schema.add_field("year", DataType.INT64)
    schema.add_field("embedding", DataType.FLOAT_VECTOR, dim=DIM)
    index = raw.prepare_index_params()
    index.add_index("embedding", index_type="FLAT", metric_type="IP")
    raw.create_collection(name, schema=schema, index_params=index)
    [node] = make_nodes(1)
    row = {"pk": "node-0", "text": "other", "year": 2001, "embedding": node.embedding}
    raw.insert(name, [row])


async def test_a_store_goes_on_with_the_dimension_of_another_ones_overwrite(make_store, coloured):
    store = make_store(dim=None)
    name = store.collection_name
    await coloured(store).connect()
    await coloured(make_store(collection_name=name)).add(make_nodes(3))
    await coloured(store).add(make_nodes(3))
    await coloured(make_store(collection_name=name, dim=16, overwrite=True)).connect()
    assert await coloured(store).add(make_nodes(3, dim=16)) == ["node-0", "node-1", "node-2"]
    found = await coloured(store).query(query_for(16))
    assert found.ids[0] == "node-0"
    # And with queries, which fail in a check of their own.
    await coloured(make_store(collection_name=name, dim=4, overwrite=True)).add(
        make_nodes(3, dim=4)
    )
    found = await coloured(store).query(query_for(4))
    assert found.ids[0] == "node-0"


@pytest.mark.engines("lite")
async def test_a_store_that_names_a_dimension_says_what_it_finds(make_store, coloured):
    store = make_store()
    await coloured(store).add(make_nodes(3))
    other = make_store(collection_name=store.collection_name, dim=16, overwrite=True)
    await coloured(other).add(make_nodes(3, dim=16))
    for dim in (8, 16):
        with pytest.raises(CollectionError, match=r"found dimension 16, asked for dim=8"):
            await coloured(store).add(make_nodes(3, dim=dim))


async def test_operations_go_on_with_other_columns(raw, make_store, coloured):
    first = make_store()
    await coloured(first).add(make_nodes(4, year=2001))
    # Each has the old columns in mind.
    stores = {name: make_store(collection_name=first.collection_name) for name in OPERATIONS}
    for store in stores.values():
        await coloured(store).connect()
    make_again(raw, first.collection_name)

    async def run(name):
        return await OPERATIONS[name](coloured(stores[name]), DIM)

    assert (await run("query")).ids == ["node-0"]
    assert [node.text for node in await run("get_nodes by ids")] == ["other"]
    assert [node.text for node in await run("get_nodes by filter")] == ["other"]
    with pytest.raises(FilterError, match="doc ids cannot be looked up"):
        await run("delete")
    await run("delete_nodes")
    assert await run("get_nodes by ids") == []
    await run("clear")


async def test_adding_to_other_columns_says_what_does_not_fit(raw, make_store, coloured):
    store = make_store()
    await coloured(store).add(make_nodes(4))
    make_again(raw, store.collection_name)
    node = TextNode(id_="a", text="text", embedding=[1.0] * DIM, metadata={"lang": "en"})
    with pytest.raises(NodeError, match="metadata key 'lang' cannot be stored"):
        await coloured(store).add([node])
    node.metadata = {"year": 2002}
    assert await coloured(store).add([node]) == ["a"]


async def test_a_collection_that_is_gone_is_named(raw, make_store, coloured):
    store = make_store()
    await coloured(store).add(make_nodes(4))
    raw.drop_collection(store.collection_name)
    name = store.collection_name
    gone = rf"no collection '{name}' any more: it was dropped after .* call refresh\(\)"
    for operation in OPERATIONS.values():
        with pytest.raises(CollectionError, match=gone):
            await operation(coloured(store), DIM)
    assert not raw.has_collection(name)


async def test_a_refresh_creates_the_collection_again(raw, make_store, coloured):
    store = make_store(overwrite=True)
    await coloured(store).add(make_nodes(4))
    await coloured(store).refresh()
    assert len(await coloured(store).get_nodes([f"node-{i}" for i in range(4)])) == 4
    raw.drop_collection(store.collection_name)
    await coloured(store).refresh()
    assert await coloured(store).add(make_nodes(1)) == ["node-0"]


@pytest.mark.engines("lite")
async def test_calls_at_the_same_time_all_go_on(make_store):
    store = make_store(dim=None, collection_name=make_store().collection_name)
    other = make_store(collection_name=store.collection_name)
    await other.async_add(make_nodes(3))
    await store.aconnect()
    again = make_store(collection_name=store.collection_name, dim=16, overwrite=True)
    await again.async_add(make_nodes(3, dim=16))
    results = await asyncio.gather(*(store.aquery(query_for(16)) for _ in range(20)))
    assert {result.ids[0] for result in results} == {"node-0"}


@pytest.mark.engines("lite")
async def test_an_error_of_the_callers_is_raised_where_nothing_has_changed(make_store, coloured):
    store = make_store()
    await coloured(store).add(make_nodes(3))
    made = store._ready.get()
    with pytest.raises(QueryError, match="4 dimensions"):
        await coloured(store).query(query_for(4))
    with pytest.raises(NodeError, match="4 dimensions"):
        await coloured(store).add(make_nodes(3, dim=4))
    assert store._ready.get() is made


# What is repeated, without Milvus


class Backend:
    """Where the collection is another one whenever somebody looks."""

    looked = 0

    async def once(self, once):
        return once.get()

    async def describe_collection(self, name, timeout=None):
        self.looked += 1
        return {"collection_id": self.looked}


def failed(kind=ServerError, **attributes):
    error = kind("insert", "no")
    for name, value in attributes.items():
        setattr(error, name, value)
    return error


@pytest.mark.parametrize(
    ("error", "runs"),
    [
        (failed(), 2),
        (QueryError("has 8 dimensions"), 2),
        (failed(PartialWriteError, not_written=["a", "b"]), 2),
        (failed(PartialWriteError, written=["a"], not_written=["b"]), 1),
        (failed(WriteOutcomeUnknownError, unknown=["a"]), 1),
        (failed(UnreachableError), 1),
        (failed(RequestTimeoutError), 1),
        (ServerError("insert", "no", 8), 1),  # a rate limit
        (ConfigurationError("timeout is 0"), 1),
    ],
)
async def test_an_operation_is_repeated_once_where_it_was_refused(error, runs):
    """And never where it may have written something."""
    made = []

    def make():
        made.append(Ready(SimpleNamespace(collection_name="c"), {}, {"collection_id": 0}))
        return made[-1]

    given = []

    async def operation(ready):
        given.append(ready)
        raise error

    backend = Backend()
    context = Context(backend, Once(make), False, 100, None, None, FirstNodes())
    with pytest.raises(type(error)):
        await context.with_ready(operation, missing=None)
    assert given == made
    assert len(made) == runs
    assert backend.looked == runs - 1
