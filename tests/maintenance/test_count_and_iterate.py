"""`count`, `iter_nodes`, `list_documents` and limits: every node once, come what may."""

from __future__ import annotations

import asyncio
import contextlib

import pytest
from llama_index.core.schema import Document, TextNode
from llama_index.core.vector_stores.types import MetadataFilters
from pymilvus import DataType, MilvusClient

from llama_index_milvus_async import StoredDocument
from llama_index_milvus_async.errors import (
    CollectionError,
    ConfigurationError,
    FilterError,
    QueryError,
    StoreClosedError,
)
from tests.fixtures.stores import collection_name, make_nodes
from tests.maintenance.conftest import DIM, ids, nodes_of, set_document, where

EVERYTHING = MetadataFilters(filters=[])


# Counting


async def test_the_nodes_that_match_are_counted(store, nodes, mine):
    assert await store.count(mine) == 12
    assert await store.count(where(test="nobody")) == 0
    assert await store.count(mine, node_ids=[*ids(nodes[:3]), "no such id"]) == 3
    assert await store.count(node_ids=ids(nodes[:5])) == 5
    assert await store.count(node_ids=[nodes[0].node_id] * 2) == 1
    assert await store.count(node_ids=[]) == 0


async def test_without_filters_all_nodes_are_counted(store, nodes):
    assert await store.count() == await store.count(EVERYTHING) >= 12


async def test_many_ids_are_counted(store, nodes, mine):
    asked = [f"no such id {i}" for i in range(2_500)] + ids(nodes)
    assert await store.count(node_ids=asked) == 12


async def test_a_count_sees_what_this_process_has_written_and_deleted(store, prefix, mine):
    await store.add(nodes_of(f"{prefix} more", "ab"))
    more = where(test=f"{prefix} more")
    assert await store.count(more, consistency_level="Session") == 2
    await store.delete_nodes(filters=more)
    assert await store.count(more, consistency_level="Session") == 0


# Going through


async def test_every_node_comes_once_and_in_the_order_of_the_ids(store, nodes, mine):
    for size in (1, 5, 12, 1_000):
        assert ids([node async for node in store.iter_nodes(mine, batch_size=size)]) == ids(nodes)


async def test_an_iteration_begins_behind_an_id(store, nodes, mine):
    after = nodes[4].node_id
    assert ids([node async for node in store.iter_nodes(mine, after=after)]) == ids(nodes[5:])
    # Which need not be there.
    last = f"{nodes[-1].node_id} "
    assert [node async for node in store.iter_nodes(mine, after=last)] == []


async def test_ids_come_without_their_nodes(store, nodes, mine):
    for size in (5, 10_000):
        assert [node_id async for node_id in store.iter_ids(mine, batch_size=size)] == ids(nodes)
    after = nodes[4].node_id
    assert [node_id async for node_id in store.iter_ids(mine, after=after)] == ids(nodes[5:])


async def test_nodes_come_with_their_embeddings_where_these_are_wanted(store, nodes, mine):
    found = [node async for node in store.iter_nodes(mine, include_embeddings=True)]
    assert [node.embedding for node in found] == [node.embedding for node in nodes]
    assert {node.embedding async for node in store.iter_nodes(mine)} == {None}
    named = [node async for node in store.iter_nodes(mine, output_fields=["embedding"])]
    assert named == found


async def test_what_is_written_meanwhile_neither_hides_nor_repeats_a_node(
    store, nodes, mine, prefix
):
    seen = []
    async for node in store.iter_nodes(mine, batch_size=2):
        seen.append(node.node_id)
        if len(seen) == 5:
            await store.add([*nodes[:6], *nodes_of(prefix, ["!", "zzz"])])
            await store.delete_nodes([nodes[1].node_id, nodes[8].node_id])
    expected = [*ids(nodes[:8]), *ids(nodes[9:])]
    # One comes before the place, and is not seen; the other one is.
    assert sorted(seen) == sorted([*expected, f"{prefix}zzz"])
    assert len(seen) == len(set(seen))


async def test_leaving_early_leaves_nothing_behind(store, nodes, mine, colour):
    if colour == "sync":
        iterator = store.store.iter_nodes(mine, batch_size=2)
        assert next(iterator).node_id == nodes[0].node_id
        iterator.close()
        return
    async for _ in store.store.aiter_nodes(mine, batch_size=2):
        break
    async with contextlib.aclosing(store.store.aiter_nodes(mine, batch_size=2)) as iterator:
        assert (await anext(iterator)).node_id == nodes[0].node_id

    async def go_through() -> None:
        while True:
            async for _ in store.store.aiter_nodes(mine, batch_size=1):
                pass

    task = asyncio.create_task(go_through())
    await asyncio.sleep(0)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    # The test fails where a task is left.
    assert len([node async for node in store.iter_nodes(mine)]) == 12


async def test_a_page_whose_reading_fails_ahead_is_given_up_in_silence(reopen, nodes, mine):
    """The test fails where the loop reports an exception that nobody has retrieved."""
    store = reopen(dim=DIM)
    iterator = store.aiter_nodes(mine, batch_size=5)
    assert (await anext(iterator)).node_id == nodes[0].node_id
    await store.aclose()
    await asyncio.sleep(0)
    assert (await anext(iterator)).node_id == nodes[1].node_id
    await iterator.aclose()


async def test_an_iteration_that_outlives_its_store_says_so(reopen, coloured, nodes, mine):
    other = coloured(reopen(dim=DIM))
    iterator = other.iter_nodes(mine, batch_size=2)
    await anext(iterator)
    await other.close()
    with pytest.raises(StoreClosedError):
        # What was read before comes.
        assert len([node async for node in iterator]) < 4


async def test_a_caller_who_waits_for_nothing_does_not_hold_the_loop(shared, nodes, mine):
    turns = 0

    async def bystander() -> None:
        nonlocal turns
        while True:
            turns += 1
            await asyncio.sleep(0)

    task = asyncio.create_task(bystander())
    async for node in shared.aiter_nodes(mine):
        if node.node_id == nodes[0].node_id:
            before = turns
        for _ in range(1_000_000):  # longer than a slice
            pass
    task.cancel()
    assert turns - before >= 10


# Limits


async def test_no_more_nodes_come_than_the_limit_says(store, nodes, mine):
    asked = [ids(nodes)[i] for i in (7, 0, 3, 5)]
    assert ids(await store.get_nodes(filters=mine, limit=5)) == ids(nodes[:5])
    assert ids(await store.get_nodes(filters=mine, limit=99)) == ids(nodes)
    assert ids(await store.get_nodes(["no such id", *asked], limit=2)) == asked[:2]
    assert ids(await store.get_nodes(asked, mine, limit=3)) == asked[:3]


# Documents


async def test_documents_are_listed_with_the_number_of_their_nodes(store, nodes, mine, prefix):
    assert await store.list_documents(mine) == [
        StoredDocument(f"{prefix} doc {i}", 4) for i in range(3)
    ]
    await store.delete(f"{prefix} doc 1")
    await store.delete_nodes([nodes[0].node_id])
    assert await store.list_documents(mine) == [
        StoredDocument(f"{prefix} doc 0", 3),
        StoredDocument(f"{prefix} doc 2", 4),
    ]
    assert await store.list_documents(where(test="nobody")) == []


async def test_nodes_without_a_document_are_listed_as_such(store, prefix):
    metadata = {"test": f"{prefix} alone", "rating": 1, "language": "en"}
    alone = [
        Document(id_=f"{prefix} whole", text="a", embedding=[0.0, 1.0], metadata=metadata),
        TextNode(id_=f"{prefix} a", text="a", embedding=[0.0, 1.0], metadata=metadata),
        TextNode(id_=f"{prefix} b", text="b", embedding=[0.0, 1.0], metadata=metadata),
    ]
    of_document = TextNode(id_=f"{prefix} c", text="c", embedding=[0.0, 1.0], metadata=metadata)
    set_document(of_document, f"{prefix} whose")
    await store.add([*alone, of_document])
    assert await store.list_documents(where(test=f"{prefix} alone")) == [
        StoredDocument(f"{prefix} whole", 1),
        StoredDocument(f"{prefix} whose", 1),
        StoredDocument(None, 2),
    ]


# Partitions, duplicates, collections of others


async def test_reads_keep_to_their_partitions(shared, raw, coloured, colour, prefix, nodes):
    partition, other = f"of_{colour}", nodes_of(f"{prefix} other", "ab")
    raw.create_partition(shared.collection_name, partition)
    store = coloured(shared)
    await store.add(other, milvus_partition_name=partition)
    only = {"milvus_partition_names": partition}
    assert await store.count(**only) == 2
    assert ids([node async for node in store.iter_nodes(**only)]) == ids(other)
    assert [found.node_count for found in await store.list_documents(**only)] == [2]
    assert ids(await store.get_nodes(filters=EVERYTHING, limit=5, **only)) == ids(other)


@pytest.fixture(scope="module")
def doubled(make_shared_store):
    """Sixty nodes, half of which a server keeps twice: they were inserted twice."""
    store = make_shared_store(dim=DIM, upsert_mode=False)
    nodes = make_nodes(60, dim=DIM)
    store.add(nodes)
    store.add(nodes[:30])
    return store


async def test_rows_of_the_same_id_are_one_node_and_hide_no_other(doubled, coloured):
    store, expected = coloured(doubled), sorted(f"node-{i}" for i in range(60))
    for size in (1, 7, 20, 1_000):
        assert ids([node async for node in store.iter_nodes(batch_size=size)]) == expected
    assert sorted(ids(await store.get_nodes(expected))) == expected
    assert ids(await store.get_nodes(filters=EVERYTHING)) == expected
    assert ids(await store.get_nodes(filters=EVERYTHING, limit=40)) == expected[:40]
    assert sum(each.node_count for each in await store.list_documents()) == 60


async def test_a_page_from_which_equal_ids_were_dropped_is_not_the_last(
    doubled, coloured, monkeypatch
):
    monkeypatch.setattr("llama_index_milvus_async._operations.pages.PAGE_BYTES", 40 * 2**11)
    found = await coloured(doubled).get_nodes(filters=EVERYTHING)
    assert ids(found) == sorted(f"node-{i}" for i in range(60))


@pytest.fixture(scope="module")
def numbers(raw, make_shared_store):
    """A collection that others made: integers as ids, no dynamic field, nothing of LlamaIndex."""
    name = collection_name("numbers")
    schema = MilvusClient.create_schema(enable_dynamic_field=False)
    schema.add_field("pk", DataType.INT64, is_primary=True)
    schema.add_field("year", DataType.INT64)
    schema.add_field("text", DataType.VARCHAR, max_length=64)
    schema.add_field("embedding", DataType.FLOAT_VECTOR, dim=DIM)
    index = MilvusClient.prepare_index_params()
    index.add_index("embedding", index_type="FLAT", metric_type="IP")
    raw.create_collection(name, schema=schema, index_params=index, consistency_level="Strong")
    rows = [
        {"pk": i * 7 - 70, "year": 2000 + i % 2, "text": str(i), "embedding": [0.0, 1.0]}
        for i in range(20)
    ]
    raw.insert(name, rows)
    return make_shared_store(collection_name=name, id_field="pk", dim=DIM)


async def test_integer_ids_are_in_the_order_of_numbers(numbers, coloured):
    store = coloured(numbers)
    expected = [str(i * 7 - 70) for i in range(20)]
    for size in (3, 20):
        assert ids([node async for node in store.iter_nodes(batch_size=size)]) == expected
    even = where(year=2000)
    assert ids([node async for node in store.iter_nodes(even, batch_size=3)]) == expected[::2]
    assert ids(await store.get_nodes(filters=even, limit=4)) == expected[::2][:4]
    assert await store.count(even) == 10
    assert await store.count(even, node_ids=["-70", "-63", "63"]) == 1


async def test_documents_that_no_row_names_cannot_be_listed(numbers, coloured):
    with pytest.raises(CollectionError, match="documents cannot be listed"):
        await coloured(numbers).list_documents()


# Bad input


@pytest.mark.parametrize(
    ("method", "arguments", "error", "message"),
    [
        ("count", {"node_ids": "a"}, QueryError, "node_ids is 'a'; it must be a list"),
        ("count", {"node_ids": [1]}, QueryError, "node_ids contains 1"),
        ("count", {"filters": {"a": 1}}, FilterError, "must be MetadataFilters"),
        ("count", {"partition": "p"}, ConfigurationError, "unknown keyword arguments"),
        ("count", {"milvus_partition_names": []}, QueryError, "name partitions"),
        ("count", {"consistency_level": "strict"}, ConfigurationError, "must be one of"),
        ("count", {"timeout": 0}, ConfigurationError, "timeout is 0"),
        ("list_documents", {"filters": 5}, FilterError, "must be MetadataFilters"),
        ("list_documents", {"limit": 5}, ConfigurationError, "unknown keyword arguments"),
        ("get_nodes", {"filters": EVERYTHING, "limit": 0}, QueryError, "limit is 0"),
        ("get_nodes", {"node_ids": [], "limit": True}, QueryError, "limit is True"),
        ("get_nodes", {"node_ids": ["a"], "limit": 2.5}, QueryError, "limit is 2.5"),
    ],
)
async def test_bad_arguments_are_refused(store, method, arguments, error, message):
    with pytest.raises(error, match=message):
        await getattr(store, method)(**arguments)


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({"batch_size": 0}, QueryError, "batch_size is 0"),
        ({"batch_size": "5"}, QueryError, "batch_size is '5'"),
        ({"batch_size": None}, QueryError, "batch_size is None"),
        ({"output_fields": "text"}, QueryError, "must be a list of names"),
        ({"include_embeddings": 1}, ConfigurationError, "include_embeddings is 1"),
        ({"after": 5}, QueryError, "after is 5, .* the id of a node"),
        ({"limit": 5}, ConfigurationError, "unknown keyword arguments"),
        ({"milvus_partition_names": ""}, QueryError, "name partitions"),
        ({"filters": {"a": 1}}, FilterError, "must be MetadataFilters"),
    ],
)
async def test_bad_arguments_are_refused_before_the_first_node(shared, arguments, error, message):
    for method in (shared.iter_nodes, shared.aiter_nodes):
        with pytest.raises(error, match=message):
            method(**arguments)
