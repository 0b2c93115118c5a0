"""`update_metadata`: node and filterable copy change together, and all else stays as it was."""

from __future__ import annotations

import asyncio

import pytest
from llama_index.core.schema import Document, ImageNode, IndexNode, TextNode
from llama_index.core.vector_stores.types import MetadataFilters
from pymilvus import DataType, MilvusClient

from llama_index_milvus_async.errors import (
    CollectionError,
    ConfigurationError,
    FilterError,
    NodeError,
    QueryError,
    ServerError,
)
from tests.fixtures.stores import collection_name, make_nodes
from tests.maintenance.conftest import DIM, ids, nodes_of, set_document, where

EVERYTHING = MetadataFilters(filters=[])


async def read(store, filters):
    return [node async for node in store.iter_nodes(filters, include_embeddings=True)]


async def test_keys_are_set_and_removed_and_all_else_stays(store, nodes, mine):
    assert await store.update_metadata(mine, set={"number": 7, "new": ["a", 1]}, unset=["no"]) == 12
    expected = [node.model_copy(deep=True) for node in nodes]
    for node in expected:
        node.metadata |= {"number": 7, "new": ["a", 1]}
    assert await read(store, mine) == expected

    assert await store.update_metadata(mine, unset=["number", "new"], set={"other": None}) == 12
    for node in expected:
        del node.metadata["number"], node.metadata["new"]
        node.metadata["other"] = None
    assert await read(store, mine) == expected


async def test_filters_see_the_change(store, prefix, mine):
    for number, changed in ((3, {"number": 100}), (4, {"number": 100, "sub": {"key": 1}})):
        matching = where(test=prefix, number=number)
        assert await store.update_metadata(matching, set=changed) == 1
        assert await store.count(matching) == 0
    assert await store.count(where(test=prefix, number=100)) == 2
    assert await store.count(where(**{"test": prefix, "sub.key": 1})) == 1
    assert await store.update_metadata(mine, unset=["number"]) == 12
    assert await store.count(where(test=prefix, number=100)) == 0
    assert await store.count(where(test=prefix, number=0)) == 0


async def test_columns_change_with_the_node(store, nodes, prefix, mine):
    assert await store.update_metadata(mine, set={"rating": 50, "language": "en"}) == 12
    assert await store.count(where(test=prefix, rating=50, language="en")) == 12
    assert {node.metadata["rating"] for node in await read(store, mine)} == {50}


async def test_ids_and_filters_together_are_combined_by_and(store, nodes, prefix, mine):
    asked = [*ids(nodes[:4]), "no such id"]
    assert await store.update_metadata(where(test=prefix, number=2), node_ids=asked, set={"a": 1})
    assert await store.update_metadata(node_ids=asked, set={"b": 1}) == 4
    assert await store.update_metadata(node_ids=[], set={"c": 1}) == 0
    found = await read(store, mine)
    assert [node.metadata["number"] for node in found if "a" in node.metadata] == [2]
    assert [node.metadata["number"] for node in found if "b" in node.metadata] == [0, 1, 2, 3]


async def test_doing_it_again_changes_and_writes_nothing(store, nodes, mine):
    assert await store.update_metadata(mine, set={"a": 1}) == 12
    first = await read(store, mine)
    assert await store.update_metadata(mine, set={"a": 1}, unset=["b"]) == 12
    assert await read(store, mine) == first


async def test_every_class_of_nodes_stays_what_it_is(store, prefix):
    metadata = {"test": f"{prefix} classes", "rating": 1, "language": "en"}
    common = {"embedding": [0.0, 1.0], "metadata": metadata}
    several = [
        Document(id_=f"{prefix} a", text="a", **common),
        ImageNode(id_=f"{prefix} b", text="b", image_url="http://b", **common),
        IndexNode(id_=f"{prefix} c", text="c", index_id="i", **common),
        TextNode(id_=f"{prefix} d", text="d", excluded_llm_metadata_keys=["rating"], **common),
    ]
    set_document(several[3], f"{prefix} doc")
    await store.add(several)
    mine = where(test=f"{prefix} classes")
    before = await read(store, mine)
    assert await store.update_metadata(mine, set={"a": "b"}) == 4
    for node in before:
        node.metadata["a"] = "b"
    assert await read(store, mine) == before
    await store.delete(f"{prefix} doc")
    assert ids(await read(store, mine)) == ids(several[:3])


async def test_rows_stay_in_their_partitions(shared, raw, coloured, colour, prefix, nodes, mine):
    store, partition = coloured(shared), f"updated_{colour}"
    raw.create_partition(shared.collection_name, partition)
    other = nodes_of(prefix, ["other 1", "other 2"])
    await store.add(other, milvus_partition_name=partition)
    only = {"milvus_partition_names": partition}
    assert await store.update_metadata(mine, set={"a": 1}) == 14
    assert await store.count(where(a=1, test=prefix), **only) == 2
    assert await store.update_metadata(mine, set={"a": 2}, **only) == 2
    assert await store.count(where(a=2, test=prefix)) == 2
    assert await store.count(where(a=2, test=prefix), **only) == 2
    assert await store.count(mine) == 14


async def test_what_is_written_and_deleted_meanwhile_is_not_undone(shared, nodes, prefix, mine):
    """Each delete and each add comes before an update, or after it, and never in its midst."""
    deleted, changed = nodes[::2], [node.model_copy(deep=True) for node in nodes[1::2]]
    for node in changed:
        node.metadata["number"] = "changed"

    async def update() -> None:
        for i in range(6):
            await shared.aupdate_metadata(mine, set={"round": i})

    async def write() -> None:
        for gone, new in zip(deleted, changed, strict=True):
            await shared.adelete_nodes([gone.node_id])
            await shared.async_add([new])

    await asyncio.gather(update(), write(), update())
    assert await shared.aupdate_metadata(mine, set={"round": 6}) == len(changed)
    found = [node async for node in shared.aiter_nodes(mine)]
    assert ids(found) == ids(changed)
    assert {(node.metadata["number"], node.metadata["round"]) for node in found} == {("changed", 6)}


async def test_a_blocking_call_on_the_loop_does_not_wait_for_an_update_there(shared, nodes, mine):
    update = asyncio.create_task(shared.aupdate_metadata(mine, set={"a": 1}))
    await asyncio.sleep(0.001)
    shared.delete_nodes(["no such id"])
    assert await update == 12


async def test_an_update_beside_a_bulk_insert_comes_to_an_end(shared, nodes, mine, prefix):
    many = make_nodes(400, dim=DIM, prefix=f"{prefix} many", test="many", rating=1, language="de")
    adds = [shared.async_add([node]) for node in many]
    deletes = [shared.adelete(f"no such document {i}") for i in range(20)]
    *_, count = await asyncio.gather(*adds, *deletes, shared.aupdate_metadata(mine, set={"a": 1}))
    assert count == 12
    assert await shared.acount(where(test="many")) == 400
    await shared.adelete_nodes(filters=where(test="many"))


async def test_a_cancelled_update_leaves_the_collection_free(shared, nodes, mine):
    for delay in (0.0, 0.001, 0.01):
        task = asyncio.create_task(shared.aupdate_metadata(mine, set={"delay": delay}))
        await asyncio.sleep(delay)
        task.cancel()
        await asyncio.wait([task])
    assert await shared.aupdate_metadata(mine, set={"delay": 1}, timeout=30) == 12
    await shared.adelete_nodes(ids(nodes))


async def test_a_node_that_becomes_too_large_is_named_and_stays(store, nodes, mine):
    with pytest.raises(NodeError) as caught:
        await store.update_metadata(mine, set={"a": [f"{i:010}" for i in range(40_000)]})
    assert {node_id for node_id, _ in caught.value.problems} == set(ids(nodes))
    assert [node.metadata for node in await read(store, mine)] == [n.metadata for n in nodes]


# Collections of others


def rows_of(n):
    return [
        {"pk": i - 5, "year": 2000 + i, "text": str(i), "vec": [0.0, i / 8], "other": [1.0, 0.0]}
        for i in range(n)
    ]


@pytest.fixture
def byo(raw, make_store, engine):
    """Makes collections that LlamaIndex did not, and a store of each."""

    def make(*, dynamic, auto_id=False):
        name = collection_name("byo")
        schema = MilvusClient.create_schema(enable_dynamic_field=dynamic)
        schema.add_field("pk", DataType.INT64, is_primary=True, auto_id=auto_id)
        schema.add_field("year", DataType.INT64)
        schema.add_field("text", DataType.VARCHAR, max_length=64)
        schema.add_field("vec", DataType.FLOAT_VECTOR, dim=DIM)
        schema.add_field("data", DataType.JSON)
        index = MilvusClient.prepare_index_params()
        index.add_index("vec", index_type="FLAT", metric_type="IP")
        if engine.is_lite:  # 2.3 has one vector field
            schema.add_field("other", DataType.FLOAT_VECTOR, dim=DIM)
            index.add_index("other", index_type="FLAT", metric_type="IP")
        raw.create_collection(name, schema=schema, index_params=index, consistency_level="Strong")
        rows = [{**row, "data": {"of": str(row["pk"])}} for row in rows_of(6)]
        if not engine.is_lite:
            rows = [{k: v for k, v in row.items() if k != "other"} for row in rows]
        if auto_id:
            rows = [{k: v for k, v in row.items() if k != "pk"} for row in rows]
        if dynamic:
            rows = [{**row, "tag": "x", "deep": {"a": [1]}} for row in rows]
        raw.insert(name, rows)
        return make_store(collection_name=name, id_field="pk", embedding_field="vec", dim=DIM), rows

    return make


async def stored(raw, store):
    fields = ["*"]
    rows = raw.query(store.store.collection_name, filter="pk > -100", output_fields=fields)
    return sorted((dict(row) for row in rows), key=lambda row: row["pk"])


async def test_rows_of_others_keep_their_columns_and_vectors(byo, raw, coloured):
    store, rows = byo(dynamic=False)
    store = coloured(store)
    assert await store.update_metadata(where(year=2003), set={"year": 1999}) == 1
    assert await store.update_metadata(node_ids=["-5", "0"], set={"data": {"of": "me"}}) == 2
    expected = [dict(row) for row in rows]
    expected[3]["year"] = 1999
    expected[0]["data"] = expected[5]["data"] = {"of": "me"}
    assert await stored(raw, store) == expected
    with pytest.raises(NodeError, match="'tag' cannot be stored"):
        await store.update_metadata(EVERYTHING, set={"tag": 1})
    with pytest.raises(QueryError, match="unset has 'year', a column that needs a value"):
        await store.update_metadata(EVERYTHING, unset=["year"])
    assert await stored(raw, store) == expected


async def test_rows_of_others_get_no_node(byo, raw, coloured):
    store, rows = byo(dynamic=True)
    store = coloured(store)
    assert await store.update_metadata(EVERYTHING, set={"tag": "y", "n": 1}, unset=["deep"]) == 6
    expected = [{**row, "tag": "y", "n": 1} for row in rows]
    for row in expected:
        del row["deep"]
    assert await stored(raw, store) == expected


async def test_rows_that_milvus_numbers_are_not_updated(byo, coloured):
    store, _ = byo(dynamic=False, auto_id=True)
    with pytest.raises(CollectionError, match="auto_id"):
        await coloured(store).update_metadata(EVERYTHING, set={"year": 1})


async def test_keys_that_are_not_of_the_node_are_kept(store, raw, shared, nodes, mine, prefix):
    name, node_id = shared.collection_name, f"{prefix} foreign"
    [node] = make_nodes(1, dim=DIM, test=prefix, rating=1, language="de")
    node.id_ = node_id
    await store.add([node])
    [row] = raw.query(name, ids=[node_id], output_fields=["*"])
    raw.upsert(name, [{**row, "foreign": {"a": 1}}])
    assert await store.update_metadata(node_ids=[node_id], set={"rating": 2}, timeout=30) == 1
    [after] = raw.query(name, ids=[node_id], output_fields=["*"], consistency_level="Strong")
    assert after["foreign"] == {"a": 1}
    assert after["rating"] == 2


@pytest.mark.engines("lite")
async def test_sparse_vectors_are_kept(make_store, coloured):
    def encode(texts):
        return [{len(text): 0.5, 100_000: 1.5} for text in texts]

    store = make_store(
        dim=DIM, enable_sparse=True, sparse_embedding_function=(encode, encode), upsert_mode=True
    )
    fields = {"output_fields": ["sparse_embedding", "embedding"]}
    await store.async_add(make_nodes(3, dim=DIM))
    before = await store.aget_nodes(["node-0", "node-1", "node-2"], **fields)
    assert await coloured(store).update_metadata(EVERYTHING, set={"a": 1}) == 3
    after = await store.aget_nodes(["node-0", "node-1", "node-2"], **fields)
    assert {node.metadata.pop("a") for node in after} == {1}
    assert after == before


# Bad input


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({"set": {"a": 1}}, QueryError, "needs filters or node_ids"),
        ({"filters": EVERYTHING}, QueryError, "needs set={key: value} or unset"),
        ({"filters": EVERYTHING, "set": {}, "unset": []}, QueryError, "needs set={key: value}"),
        ({"filters": EVERYTHING, "set": [("a", 1)]}, QueryError, "set is .* must be a dictionary"),
        ({"filters": EVERYTHING, "unset": "a"}, QueryError, "unset is 'a'; it must be a list"),
        ({"filters": EVERYTHING, "unset": [1]}, QueryError, "unset has the key 1"),
        ({"filters": EVERYTHING, "set": {1: 1}}, QueryError, "set has the key 1"),
        ({"filters": EVERYTHING, "set": {"a": 1}, "unset": ["a"]}, QueryError, r"both name \['a'"),
        ({"filters": EVERYTHING, "set": {"a": object()}}, QueryError, r"^set\['a'\] is of type"),
        (
            {"filters": EVERYTHING, "set": {"rating": "x"}},
            QueryError,
            r"set\['rating'\] \(a column",
        ),
        (
            {"filters": EVERYTHING, "set": {"rating": None}},
            QueryError,
            r"set\['rating'\].* is None",
        ),
        ({"filters": EVERYTHING, "unset": ["rating"]}, QueryError, "needs a value in every row"),
        ({"filters": 5, "set": {"a": 1}}, FilterError, "must be MetadataFilters"),
        ({"node_ids": "a", "set": {"a": 1}}, QueryError, "node_ids is 'a'"),
        ({"node_ids": ["a"], "set": {"a": 1}, "partition": "p"}, ConfigurationError, "unknown"),
        (
            {"node_ids": ["a"], "set": {"a": 1}, "consistency_level": "Strong"},
            ConfigurationError,
            "unknown",
        ),
        (
            {"node_ids": ["a"], "set": {"a": 1}, "milvus_partition_names": "no_such"},
            ServerError,
            "no_such",
        ),
    ],
)
async def test_bad_arguments_are_refused_and_nothing_changes(
    store, nodes, mine, arguments, error, message
):
    with pytest.raises(error, match=message):
        await store.update_metadata(**arguments)
    assert [node.metadata for node in await read(store, mine)] == [n.metadata for n in nodes]
