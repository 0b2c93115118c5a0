"""Keys that no row has: a warning, once, and nothing else."""

from __future__ import annotations

import asyncio
import logging

import grpc
import pytest
from llama_index.core.vector_stores.types import (
    MetadataFilter,
    MetadataFilters,
    VectorStoreQuery,
)

from llama_index_milvus_async.filters import (
    FilterOperatorFunction,
    ScalarMetadataFilter,
    ScalarMetadataFilters,
)
from tests.fixtures.stores import make_nodes, store_factory

NAME = "llama_index_milvus_async._operations.missing_keys"
KEYS = {"year": 2000, "two words": "x", "m": {"x": 1}, "nothing": "", "empty": []}


@pytest.fixture(scope="module")
def filled(make_shared_store):
    store = make_shared_store()
    store.add(make_nodes(3, **KEYS))
    return store


@pytest.fixture
def reopen(engine, filled, recorder):
    """Makes stores on the collection, seen through the recorder; each looks keys up by itself."""
    stores = []
    make = store_factory(engine, "", stores)
    yield lambda **kwargs: make(
        **{"collection_name": filled.collection_name, "uri": recorder.uri, **kwargs}
    )
    for store in stores:
        store.close()


def query(*keys, value="not there", **kwargs):
    filters = [MetadataFilter(key=key, value=value) for key in keys]
    given = {"query_embedding": [1.0] * 8, "similarity_top_k": 3}
    given["filters"] = MetadataFilters(filters=filters)
    return VectorStoreQuery(**{**given, **kwargs})


def warned(caplog):
    return [each.getMessage() for each in caplog.records if each.name == NAME]


async def test_a_misspelt_key_is_told_once(reopen, filled, coloured, caplog, recorder):
    store = coloured(reopen())
    for _ in range(2):
        assert (await store.query(query("year", "yaer"))).ids == []
        assert (await store.query_many([query("yaer"), query("two  words")])) != []
    expected = f"no row of collection {filled.collection_name!r} has a value under the key "
    texts = warned(caplog)
    assert [text.removeprefix(expected) for text in texts] == [
        "'yaer', which a filter compares; is it misspelt?",
        "'two  words', which a filter compares; is it misspelt?",
    ]
    assert len(recorder.named("Query")) == 1 + 2 + 2  # 'year' is found at once


async def test_keys_that_rows_have_are_not_told(reopen, coloured, caplog):
    store = coloured(reopen())
    for key in (*KEYS, "m.x", "doc_id", "text"):
        if key != "m":
            assert (await store.query(query(key))).ids == []
    lists = ScalarMetadataFilters(
        filters=[
            ScalarMetadataFilter(
                key="empty", operator=FilterOperatorFunction.ARRAY_CONTAINS, value=1
            )
        ]
    )
    found = await store.query(query(filters=None), milvus_scalar_filters=lists)
    assert (found.ids, warned(caplog)) == ([], [])


async def test_filters_on_lists_and_in_groups(reopen, coloured, caplog):
    store = coloured(reopen())
    inner = query("inner", "m.y").filters
    lists = ScalarMetadataFilters(
        filters=[
            ScalarMetadataFilter(
                key="lists", operator=FilterOperatorFunction.ARRAY_CONTAINS, value=1
            )
        ]
    )
    nested = MetadataFilters(filters=[inner])
    await store.query(query(filters=nested), milvus_scalar_filters=lists)
    assert [text.split("'")[3] for text in warned(caplog)] == ["inner", "m.y", "lists"]


async def test_an_output_field_that_no_row_has(reopen, coloured, caplog):
    store = coloured(reopen())
    fields = ["year", "yaer", "text", "embedding", "doc_id"]
    for _ in range(2):
        result = await store.query(query(filters=None, output_fields=fields))
        assert len(result.ids) == 3
    [text] = warned(caplog)
    assert "'yaer', which output_fields names" in text


async def test_reading_by_a_misspelt_key(reopen, coloured, caplog):
    store = coloured(reopen())
    assert await store.get_nodes(filters=query("yaer").filters) == []
    assert await store.get_nodes(["node-1"], filters=query("year", "yaer").filters) == []
    [text] = warned(caplog)
    assert "'yaer', which a filter compares" in text


READS = {
    "count": lambda store, filters: store.count(filters),
    "list_documents": lambda store, filters: store.list_documents(filters),
    "query without an embedding": lambda store, filters: store.query(
        VectorStoreQuery(filters=filters)
    ),
    "update_metadata": lambda store, filters: store.update_metadata(filters, set={"k": 1}),
}


@pytest.mark.parametrize("read", READS.values(), ids=READS)
async def test_whatever_matches_nothing_tells_a_misspelt_key(reopen, coloured, caplog, read):
    await read(coloured(reopen()), query("yaer").filters)
    [text] = warned(caplog)
    assert "'yaer', which a filter compares" in text


async def test_going_through_nodes_tells_a_misspelt_key(reopen, caplog):
    store = reopen()
    assert list(store.iter_nodes(query("yaer").filters)) == []
    assert [node async for node in reopen().aiter_nodes(query("yaer").filters)] == []
    assert len(warned(caplog)) == 2


async def test_what_finds_something_costs_nothing(reopen, coloured, caplog, recorder):
    store = coloured(reopen(output_fields=["year"]))
    assert len((await store.query(query("year", value=2000))).ids) == 3
    assert (await store.query(query(filters=None, doc_ids=["nowhere"]))).ids == []
    assert (recorder.named("Query"), warned(caplog)) == ([], [])


async def test_an_empty_collection_has_no_misspelt_keys(make_store, coloured, caplog):
    assert (await coloured(make_store()).query(query("yaer"))).ids == []
    assert warned(caplog) == []


async def test_concurrent_queries_look_a_key_up_together(reopen, caplog, recorder):
    store = reopen()
    results = await asyncio.gather(*(store.aquery(query("yaer")) for _ in range(50)))
    assert {len(result.ids) for result in results} == {0}
    assert len(warned(caplog)) == 1
    assert len(recorder.named("Query")) == 2


async def test_a_failure_to_look_is_not_the_query_s(reopen, coloured, caplog, recorder):
    def fail(call):
        return (grpc.StatusCode.PERMISSION_DENIED, "no") if call.method == "Query" else None

    recorder.intercept = fail
    with caplog.at_level(logging.DEBUG, NAME):
        assert (await coloured(reopen()).query(query("yaer"))).ids == []
    [record] = [each for each in caplog.records if each.name == NAME]
    assert record.levelno == logging.DEBUG


async def test_no_more_than_a_hundred_keys_are_looked_up(reopen, coloured, caplog, recorder):
    await coloured(reopen()).query(query(*(f"k{i}" for i in range(120))))
    assert len(warned(caplog)) == 100
