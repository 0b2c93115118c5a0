"""What `add` writes: nodes of every kind, in batches; upserts, partitions, scalar columns."""

from __future__ import annotations

import asyncio
import datetime
import json
import logging
import math
import threading
import time
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
from llama_index.core.schema import BaseNode, NodeRelationship, RelatedNodeInfo, TextNode
from llama_index.core.vector_stores.types import MetadataFilter, MetadataFilters
from pymilvus import DataType, MilvusClient
from pymilvus.grpc_gen import milvus_pb2

from llama_index_milvus_async import KindStats, MilvusVectorStore
from llama_index_milvus_async._transport.limits import MAX_INSERT_BYTES
from llama_index_milvus_async.errors import (
    CollectionError,
    NodeError,
    PartialWriteError,
    ServerError,
)
from tests.fixtures.recorder import Call, Recorder
from tests.fixtures.stores import collection_name, make_nodes
from tests.test_rows import CARRIED, KINDS

DIM = 2


@pytest.fixture(scope="module")
def store(make_shared_store) -> MilvusVectorStore:
    """One collection for all tests of this module, whose ids begin with `prefix`."""
    return make_shared_store(dim=DIM)


@pytest.fixture(scope="module")
def sibling(store, make_shared_store):
    """Makes stores of the same collection with other arguments."""
    return lambda **kwargs: make_shared_store(
        **{"collection_name": store.collection_name, "dim": DIM, **kwargs}
    )


@pytest.fixture
def prefix(request) -> str:
    """What the ids of this test begin with, so that no other test's rows are touched."""
    return request.node.name


def nodes_of(prefix: str, n: int, **kwargs: Any) -> list[TextNode]:
    return make_nodes(n, dim=DIM, prefix=prefix, **kwargs)


def ids(nodes: list[BaseNode]) -> list[str]:
    return [node.node_id for node in nodes]


def insert_rpcs(store: MilvusVectorStore) -> int:
    """How many inserts the store has sent; it tells of no kind that it has not sent."""
    return store.stats().get("insert", KindStats()).rpcs


def count(raw: MilvusClient, store: MilvusVectorStore, node_ids: list[str]) -> int:
    """How many rows have these ids, by Milvus' own count."""
    (row,) = raw.query(
        store.collection_name,
        filter=f"id in {json.dumps(node_ids)}",
        output_fields=["count(*)"],
        consistency_level="Strong",
    )
    return int(row["count(*)"])


def inserted(recorder: Recorder) -> list[milvus_pb2.InsertRequest]:
    """The rows that were sent; an upsert has them in the fields of an insert."""
    return [milvus_pb2.InsertRequest.FromString(call.body) for call in recorder.adds()]


def warnings(caplog: pytest.LogCaptureFixture) -> list[str]:
    """What the package has warned of."""
    ours = [one for one in caplog.records if one.name.startswith("llama_index_milvus_async")]
    return [one.getMessage() for one in ours]


# Nodes


async def test_every_kind_of_node_comes_back_equal(store, coloured, prefix):
    nodes = [node.model_copy(update={"id_": f"{prefix} {kind}"}) for kind, node in KINDS.items()]
    await coloured(store).add(nodes)
    stored = await coloured(store).get_nodes(ids(nodes))
    assert [type(node) for node in stored] == [type(node) for node in nodes]
    assert stored == nodes


async def test_values_come_back_as_json_carries_them(store, coloured, prefix):
    metadata = {kind: value for kind, (value, _) in CARRIED.items()}
    node = TextNode(id_=prefix, text="t", embedding=[1.0, 0.0], metadata=metadata)
    await coloured(store).add([node])
    (stored,) = await coloured(store).get_nodes([prefix])
    assert stored.metadata == {kind: carried for kind, (_, carried) in CARRIED.items()}


async def test_metadata_of_every_json_shape_comes_back(store, coloured, prefix):
    metadata = {
        "": "empty key",
        "a.b-c d": {"deep": [[], {}, [[None]], {"": {"x": [1, 2.5, "a", True]}}]},
        "null": None,
        "largest": 2**64 - 1,
        "smallest": -(2**63),
        "tiny": 5e-324,
        "huge": 1.7976931348623157e308,
        "nul\0and\n\"quotes'\\": "nul\0 \u2028 🎉 \x7f",
        "in": "a word of the filter language",
        "levels": json.loads("[" * 100 + "]" * 100),
    }
    node = TextNode(id_=prefix, text="nul\0\r\n\t🎉", embedding=[1.0, 0.0], metadata=metadata)
    await coloured(store).add([node])
    (stored,) = await coloured(store).get_nodes([prefix])
    assert json.dumps(stored.metadata) == json.dumps(metadata)
    assert stored.get_content() == node.get_content()


@pytest.mark.parametrize("kind", ["list", "tuple", "float16", "float32", "float64"])
@pytest.mark.parametrize("assigned", [True, False], ids=["assigned", "unvalidated"])
async def test_embeddings_may_be_lists_tuples_or_arrays(store, coloured, prefix, kind, assigned):
    makers = {"list": list, "tuple": tuple}
    values = np.array([0.1, -math.pi])
    embedding = makers[kind](values) if kind in makers else values.astype(kind)
    node = TextNode(id_=prefix, text="t")
    if assigned:
        node.embedding = embedding
    else:
        node = node.model_copy(update={"embedding": embedding})
    await coloured(store).add([node])
    (stored,) = await coloured(store).get_nodes([prefix], output_fields=["embedding"])
    assert stored.embedding == np.asarray(embedding).astype(np.float32).tolist()


# Rows


async def test_batches_are_bounded_by_rows(sibling, coloured, prefix, recorder):
    coloured = coloured(sibling(uri=recorder.uri, batch_size=10))
    nodes = nodes_of(prefix, 25)
    assert await coloured.add(nodes) == ids(nodes)
    assert sorted(message.num_rows for message in inserted(recorder)) == [5, 10, 10]
    assert ids(await coloured.get_nodes(ids(nodes))) == ids(nodes)


@pytest.mark.parametrize("letter", ["a", "中"])
async def test_batches_are_bounded_by_bytes(sibling, coloured, prefix, recorder, letter):
    coloured = coloured(sibling(uri=recorder.uri, batch_size=1_000))
    nodes = nodes_of(prefix, 20)
    for node in nodes:
        node.text = letter * (60_000 // len(letter.encode()))
    await coloured.add(nodes)
    texts = [
        field.scalars.string_data.data
        for message in inserted(recorder)
        for field in message.fields_data
        if field.field_name == "text"
    ]
    sizes = [sum(len(text.encode()) for text in batch) for batch in texts]
    assert sum(sizes) == 20 * 60_000
    assert max(sizes) <= MAX_INSERT_BYTES
    assert len(sizes) == math.ceil(20 / (MAX_INSERT_BYTES // 60_500))


async def test_several_batches_are_in_flight_within_the_limit(sibling, prefix, recorder, engine):
    store = sibling(uri=recorder.uri, batch_size=50, max_in_flight=3)
    lock = threading.Lock()
    in_flight, most = 0, 0

    def count(call: Call) -> None:
        nonlocal in_flight, most
        if not call.adds:
            return
        with lock:
            in_flight += 1
            most = max(most, in_flight)
        time.sleep(0.02)  # without it they would seldom meet
        with lock:
            in_flight -= 1

    await store.aconnect()
    recorder.intercept = count
    await store.async_add(nodes_of(prefix, 1_000))
    # One is kept for requests of another kind; Milvus Lite has one writer at a time.
    assert most == (1 if engine.is_lite else 2)


async def test_of_an_id_twice_in_one_call_the_last_is_kept_with_a_warning(
    store, raw, coloured, prefix, caplog
):
    nodes = nodes_of(prefix, 5)
    again = nodes[1].model_copy(update={"text": "the last"})
    with caplog.at_level(logging.WARNING, "llama_index_milvus_async"):
        added = await coloured(store).add([*nodes, again])
    assert added == [*ids(nodes), again.node_id]
    assert ["1 of 6" in text for text in warnings(caplog)] == [True]
    assert count(raw, store, ids(nodes)) == 5
    (stored,) = await coloured(store).get_nodes([again.node_id])
    assert stored.get_content() == "the last"


async def test_unique_ids_give_no_warning(store, coloured, prefix, caplog):
    with caplog.at_level(logging.WARNING, "llama_index_milvus_async"):
        await coloured(store).add(nodes_of(prefix, 3))
    assert warnings(caplog) == []


@pytest.mark.parametrize("batch_size", [1, 100])
async def test_the_ids_come_back_in_the_order_of_the_nodes(sibling, coloured, prefix, batch_size):
    nodes = nodes_of(prefix, 12)[::-1]
    assert await coloured(sibling(batch_size=batch_size)).add(nodes) == ids(nodes)


async def test_a_repeated_add_replaces(store, raw, coloured, prefix):
    coloured = coloured(store)
    first, other = nodes_of(prefix, 2, kept="old", gone=prefix)
    await coloured.add([first, other])
    second = first.model_copy(
        update={
            "text": "replaced",
            "metadata": {"kept": "new"},
            "embedding": [-1.0, 0.0],
            "relationships": {NodeRelationship.SOURCE: RelatedNodeInfo(node_id="elsewhere")},
        }
    )
    assert await coloured.add([second]) == [first.node_id]

    assert count(raw, coloured.store, [first.node_id]) == 1
    (stored,) = await coloured.get_nodes([first.node_id])
    assert stored == second
    # What filters see was replaced as well: a key that is gone matches no more.
    gone = MetadataFilters(filters=[MetadataFilter(key="gone", value=prefix)])
    assert ids(await coloured.get_nodes(filters=gone)) == [other.node_id]


async def test_an_id_twice_in_one_call_is_one_row(store, raw, coloured, prefix, caplog):
    coloured = coloured(store)
    (node,) = nodes_of(prefix, 1)
    await coloured.add([node])
    await coloured.add([node, node.model_copy(update={"text": "the last"})])
    assert "1 of 2" in caplog.text
    assert count(raw, coloured.store, [node.node_id]) == 1
    (stored,) = await coloured.get_nodes([node.node_id])
    assert stored.get_content() == "the last"


async def test_of_an_id_in_calls_that_share_an_rpc_the_last_wins(store, raw, prefix):
    await store.aconnect()
    versions = [nodes_of(prefix, 2, version=i) for i in range(20)]
    before = insert_rpcs(store)
    added = await asyncio.gather(*(store.async_add(nodes) for nodes in versions))
    assert insert_rpcs(store) == before + 1
    assert added == [ids(nodes) for nodes in versions]
    assert count(raw, store, ids(versions[0])) == 2
    assert await store.aget_nodes(ids(versions[0])) == versions[-1]


async def test_without_upsert_mode_a_server_keeps_both_rows(
    store, sibling, raw, engine, coloured, prefix
):
    (node,) = nodes_of(prefix, 1)
    loading = coloured(sibling(upsert_mode=False))
    await loading.add([node])
    await loading.add([node])
    # Milvus Lite has one row for each primary key, whatever is asked of it.
    assert count(raw, store, [prefix + "-0"]) == (1 if engine.is_lite else 2)
    await coloured(store).add([node])
    assert count(raw, store, [prefix + "-0"]) == 1


async def test_an_id_belongs_to_its_partition_on_a_server(
    store, raw, engine, coloured, colour, prefix
):
    (node,) = nodes_of(prefix, 1)
    partition = f"other_{colour}"
    raw.create_partition(store.collection_name, partition)
    await coloured(store).add([node])
    await coloured(store).add([node], milvus_partition_name=partition)
    # On Milvus Lite it belongs to the collection: the row has moved.
    left = await coloured(store).get_nodes(
        filters=MetadataFilters(filters=[]), milvus_partition_names="_default"
    )
    assert ids(left).count(node.node_id) == (0 if engine.is_lite else 1)


async def test_an_empty_list_of_nodes_is_no_rpc(coloured):
    unreachable = MilvusVectorStore(uri="http://127.0.0.1:1", dim=DIM, timeout=1)
    assert await coloured(unreachable).add([]) == []


async def test_a_single_node_and_any_iterable_are_taken(store, raw, coloured, prefix):
    nodes = nodes_of(prefix, 3)
    assert await coloured(store).add(nodes[0]) == [nodes[0].node_id]
    assert await coloured(store).add(node for node in nodes[1:]) == ids(nodes[1:])
    assert count(raw, store, ids(nodes)) == 3


async def test_force_flush_seals_the_rows_once_after_the_last_batch(
    sibling, coloured, prefix, recorder
):
    coloured = coloured(sibling(uri=recorder.uri, batch_size=2))

    def sent() -> tuple[int, int]:
        return len(recorder.adds()), len(recorder.named("Flush"))

    await coloured.add(nodes_of(prefix, 2))
    assert sent() == (1, 0)
    await coloured.add(nodes_of(prefix + "-flushed", 4), force_flush=True)
    assert sent() == (3, 1)
    assert not recorder.calls[-1].adds


async def test_nodes_go_into_the_partition_that_is_named(store, raw, coloured, colour, prefix):
    partition = f"of_{colour}"
    await coloured(store).add(nodes_of(prefix + "-default", 1))
    raw.create_partition(store.collection_name, partition)
    nodes = nodes_of(prefix, 2)
    await coloured(store).add(nodes, milvus_partition_name=partition)
    everything = MetadataFilters(filters=[])
    stored = await coloured(store).get_nodes(filters=everything, milvus_partition_names=partition)
    assert ids(stored) == ids(nodes)


async def test_an_unknown_partition_is_an_error_and_nothing_is_written(
    store, raw, coloured, prefix
):
    nodes = nodes_of(prefix, 2)
    with pytest.raises(ServerError, match="no_such_partition"):
        await coloured(store).add(nodes, milvus_partition_name="no_such_partition")
    assert count(raw, store, ids(nodes)) == 0


# Failures between batches


@pytest.fixture
def alias(raw, store) -> Iterator[str]:
    """Another name of the collection, which a test may take away."""
    store.connect()
    name = collection_name("alias")
    raw.create_alias(store.collection_name, name)
    yield name
    # Milvus drops no collection that has an alias.
    if name in raw.list_aliases(store.collection_name)["aliases"]:
        raw.drop_alias(name)


def drop_alias_before_insert(recorder: Recorder, raw: MilvusClient, name: str, number: int) -> None:
    """Takes the name away by which a store knows the collection, before its nth insert."""

    def drop(call: Call) -> None:
        if call.adds and len(recorder.adds()) == number:
            raw.drop_alias(name)

    recorder.intercept = drop


async def test_when_a_later_batch_fails_the_error_says_what_was_written(
    store, raw, sibling, alias, coloured, prefix, recorder, engine
):
    failing = coloured(
        sibling(uri=recorder.uri, collection_name=alias, batch_size=2, max_in_flight=1)
    )
    drop_alias_before_insert(recorder, raw, alias, 3)
    nodes = nodes_of(prefix, 9)
    with pytest.raises(PartialWriteError, match=alias) as caught:
        await failing.add(nodes)
    error = caught.value
    assert error.operation == ("insert" if engine.is_lite else "upsert")
    assert error.written == ids(nodes[:4])
    assert error.not_written == ids(nodes[4:])
    assert "4 nodes of this call were written, 5 were not" in str(error)
    assert ids(await coloured(store).get_nodes(ids(nodes))) == error.written


async def test_what_was_written_is_right_with_several_batches_in_flight(
    store, raw, sibling, alias, coloured, prefix, recorder
):
    failing = coloured(
        sibling(uri=recorder.uri, collection_name=alias, batch_size=1, max_in_flight=4)
    )
    drop_alias_before_insert(recorder, raw, alias, 6)
    nodes = nodes_of(prefix, 12)
    with pytest.raises(PartialWriteError) as caught:
        await failing.add(nodes)
    error = caught.value
    assert sorted(error.written + error.not_written) == sorted(ids(nodes))
    assert error.written
    assert ids(await coloured(store).get_nodes(ids(nodes))) == error.written


async def test_when_the_only_batch_fails_the_error_is_no_partial_one(
    raw, sibling, alias, coloured, prefix, recorder
):
    failing = coloured(sibling(uri=recorder.uri, collection_name=alias))
    drop_alias_before_insert(recorder, raw, alias, 1)
    with pytest.raises(CollectionError, match=f"no collection '{alias}' any more") as caught:
        await failing.add(nodes_of(prefix, 3))
    assert isinstance(caught.value.__context__, ServerError)
    assert not isinstance(caught.value.__context__, PartialWriteError)


# Scalar columns

SCALARS = {
    "year": DataType.INT64,
    "level": DataType.INT8,
    "score": DataType.DOUBLE,
    "weight": DataType.FLOAT,
    "lang": DataType.VARCHAR,
    "flag": DataType.BOOL,
    "extra": DataType.JSON,
}


@pytest.fixture(scope="module")
def scalar_store(make_shared_store) -> MilvusVectorStore:
    return make_shared_store(
        dim=DIM, scalar_field_names=list(SCALARS), scalar_field_types=list(SCALARS.values())
    )


def scalars(**changes: Any) -> dict[str, Any]:
    values = {
        "year": 2024,
        "level": -128,
        "score": 1e300,
        "weight": 0.5,
        "lang": 'de "é"',
        "flag": True,
        "extra": {"a": [1, None]},
    }
    return {**values, **changes}


async def test_metadata_fills_its_scalar_columns_and_comes_back(
    scalar_store, raw, coloured, prefix
):
    metadata = scalars(beside={"them": 1})
    (node,) = nodes_of(prefix, 1)
    node.metadata = metadata
    await coloured(scalar_store).add([node])
    (row,) = raw.query(
        scalar_store.collection_name,
        filter=f"id == {json.dumps(node.node_id)}",
        output_fields=list(SCALARS),
        consistency_level="Strong",
    )
    assert {name: row[name] for name in SCALARS} == scalars()
    (stored,) = await coloured(scalar_store).get_nodes([node.node_id])
    assert stored == node


async def test_values_that_json_carries_fill_scalar_columns(scalar_store, raw, coloured, prefix):
    (node,) = nodes_of(prefix, 1)
    node.metadata = scalars(
        year=np.int32(1999), score=np.float64(0.5), lang=datetime.date(2024, 2, 29), weight=1
    )
    await coloured(scalar_store).add([node])
    by_year = MetadataFilters(
        filters=[
            MetadataFilter(key="year", value=1999),
            MetadataFilter(key="lang", value="2024-02-29"),
        ]
    )
    found = await coloured(scalar_store).get_nodes(filters=by_year)
    assert node.node_id in ids(found)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("year", "2024"),
        ("year", 2**63),
        ("level", 128),
        ("score", None),
        ("weight", 1e39),
        ("lang", 5),
        ("lang", "é" * 32_768),
        ("flag", 1),
        ("extra", [1]),
        ("extra", "text"),
    ],
    ids=lambda value: str(value)[:8],
)
async def test_a_value_that_does_not_fit_its_column_is_refused_before_anything_is_written(
    scalar_store, raw, coloured, prefix, name, value
):
    good, bad = nodes_of(prefix, 2)
    good.metadata, bad.metadata = scalars(), scalars(**{name: value})
    with pytest.raises(NodeError, match=f"{SCALARS[name].name}") as caught:
        await coloured(scalar_store).add([good, bad])
    assert {node_id for node_id, _ in caught.value.problems} == {bad.node_id}
    assert count(raw, scalar_store, ids([good, bad])) == 0


async def test_metadata_that_lacks_a_scalar_column_is_refused_before_anything_is_written(
    scalar_store, raw, coloured, prefix
):
    good, bad = nodes_of(prefix, 2)
    good.metadata, bad.metadata = scalars(), scalars()
    del bad.metadata["year"], bad.metadata["lang"]
    with pytest.raises(NodeError, match="missing") as caught:
        await coloured(scalar_store).add([good, bad])
    assert [node_id for node_id, _ in caught.value.problems] == [bad.node_id] * 2
    assert {"'year'", "'lang'"} <= set(str(caught.value).split())
    assert count(raw, scalar_store, ids([good, bad])) == 0
