"""`get_nodes`, `delete`, `delete_nodes` and `clear`: the right rows, all of them, and no others."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import numpy as np
import pytest
from llama_index.core.schema import BaseNode, NodeRelationship, RelatedNodeInfo, TextNode
from llama_index.core.vector_stores.types import (
    FilterOperator,
    MetadataFilter,
    MetadataFilters,
    VectorStoreQuery,
)

from llama_index_milvus_async import MilvusVectorStore
from llama_index_milvus_async._operations.pages import ROWS_PER_PAGE
from llama_index_milvus_async._transport.limits import MAX_IDS
from llama_index_milvus_async.errors import (
    CollectionError,
    ConfigurationError,
    QueryError,
    ServerError,
)
from tests.fixtures.stores import Coloured, collection_name, make_nodes

DIM = 2
#: More than the 16,384 rows that Milvus gives for one request with a limit.
MANY = 17_000
EVERYTHING = MetadataFilters(filters=[])

NASTY_IDS = [
    "a",
    "x'] or id in ['a",
    'x"] or id in ["a',
    'x" or id != "',
    "' OR '1' == '1",
    'quo"te',
    "apo'strophe",
    "back\\slash",
    "ends in \\",
    "\\",
    '\\"',
    "two\nlines",
    "tab\tand\rreturn",
    "nul\0byte",
    "100%",
    "%",
    "_",
    "{a}",
    " ",
    " a ",
    "ünï",
    "u\u0308ni\u0308",  # the same to the eye, in other code points
    "中文",
    "🎉",
    "1",
    "true",
    "None",
]


@pytest.fixture(scope="module")
def shared(make_shared_store) -> MilvusVectorStore:
    """One collection for the tests of this module; ids and documents begin with `prefix`."""
    return make_shared_store(dim=DIM)


@pytest.fixture
async def store(shared, coloured, prefix) -> Coloured:
    """The shared store with eight nodes of this test: 0..3 of document 0, 4..7 of document 1."""
    await shared.async_add(nodes_of(prefix, 8))
    return coloured(shared)


@pytest.fixture
def prefix(request) -> str:
    return request.node.name


def nodes_of(prefix: str, n: int) -> list[TextNode]:
    """Nodes whose metadata name their test and the parity of their number."""
    nodes = make_nodes(n, dim=DIM, prefix=prefix, test=prefix, parity=lambda i: i % 2)
    for i, node in enumerate(nodes):
        set_document(node, f"{prefix} doc {i // 4}")
    return nodes


def set_document(node: BaseNode, doc_id: str) -> None:
    node.relationships[NodeRelationship.SOURCE] = RelatedNodeInfo(node_id=doc_id)


def ids(nodes: Iterable[BaseNode]) -> list[str]:
    return [node.node_id for node in nodes]


def where(**values: Any) -> MetadataFilters:
    return MetadataFilters(filters=[MetadataFilter(key=k, value=v) for k, v in values.items()])


async def left(store: Coloured, prefix: str) -> list[int]:
    """The numbers of the nodes of this test that are in the collection."""
    return sorted(int(i.removeprefix(f"{prefix}-")) for i in await all_ids(store, test=prefix))


async def all_ids(store: Coloured, **values: Any) -> list[str]:
    return ids(await store.get_nodes(filters=where(**values)))


# Reading


async def test_nodes_come_in_the_order_of_the_ids_asked_for(store, prefix):
    asked = [f"{prefix}-{i}" for i in (5, 0, 7, 2)]
    assert ids(await store.get_nodes(asked)) == asked


async def test_ids_that_are_not_there_are_left_out(store, prefix):
    asked = ["no such id", f"{prefix}-1", "", f"{prefix}-0"]
    assert ids(await store.get_nodes(asked)) == [f"{prefix}-1", f"{prefix}-0"]
    assert await store.get_nodes(["no such id"]) == []


async def test_ids_and_filters_together_are_combined_by_and(store, prefix):
    asked = [f"{prefix}-{i}" for i in (3, 2, 1)]
    found = await store.get_nodes(asked, filters=where(parity=1))
    assert ids(found) == [f"{prefix}-3", f"{prefix}-1"]


async def test_filters_alone_give_every_node_that_passes(store, prefix):
    found = await store.get_nodes(filters=where(test=prefix, parity=0))
    assert sorted(ids(found)) == [f"{prefix}-{i}" for i in (0, 2, 4, 6)]


async def test_an_empty_list_of_ids_gives_no_nodes(store, prefix):
    assert await store.get_nodes([]) == []
    assert await store.get_nodes([], filters=where(test=prefix)) == []


async def test_getting_without_ids_and_filters_is_an_error(store):
    with pytest.raises(QueryError, match="node_ids or filters"):
        await store.get_nodes()


async def test_nodes_carry_their_embeddings_unless_they_are_left_out(store, prefix):
    nodes = nodes_of(prefix, 8)
    for fields in (None, [], ["embedding"], ["parity"]):
        options = {} if fields is None else {"output_fields": fields}
        assert await store.get_nodes(ids(nodes), **options) == nodes
        read = await store.get_nodes(ids(nodes), include_embeddings=False, **options)
        if fields == ["embedding"]:
            assert read == nodes
        else:
            assert [node.embedding for node in read] == [None] * 8
    found = await store.get_nodes(filters=where(test=prefix))
    assert {node.node_id: node for node in found} == {node.node_id: node for node in nodes}
    with pytest.raises(ConfigurationError, match="include_embeddings is 'perhaps'"):
        await store.get_nodes(ids(nodes), include_embeddings="perhaps")


async def test_what_is_read_can_be_written(store, prefix):
    """The recipe for changed metadata, llama_index#17520: nothing is lost on the way."""
    read = await store.get_nodes(filters=where(test=prefix))
    for node in read:
        node.metadata["changed"] = True
    await store.delete_nodes(ids(read))
    await store.add(read)
    nodes = nodes_of(prefix, 8)
    for node in nodes:
        node.metadata["changed"] = True
    assert await store.get_nodes(ids(nodes)) == nodes
    found = await store.query(
        VectorStoreQuery(
            query_embedding=nodes[3].embedding, similarity_top_k=8, filters=where(test=prefix)
        )
    )
    assert sorted(found.ids) == ids(nodes)


async def test_the_output_fields_of_the_store_are_the_default(
    shared, make_shared_store, coloured, prefix
):
    await shared.async_add(nodes_of(prefix, 1))
    store = coloured(
        make_shared_store(
            collection_name=shared.collection_name, dim=DIM, output_fields=["embedding"]
        )
    )
    asked = [f"{prefix}-0"]
    (with_embedding,) = await store.get_nodes(asked)
    assert with_embedding == nodes_of(prefix, 1)[0]
    (without,) = await store.get_nodes(asked, include_embeddings=False, output_fields=[])
    assert without.embedding is None


# Deleting


async def test_delete_removes_the_nodes_of_a_document(store, prefix):
    await store.delete(f"{prefix} doc 0")
    assert await left(store, prefix) == [4, 5, 6, 7]


async def test_delete_takes_a_list_of_documents(store, shared, prefix):
    third = nodes_of(prefix, 10)[8:]
    await shared.async_add(third)
    await store.delete([f"{prefix} doc 0", "no such document", f"{prefix} doc 2"])
    assert await left(store, prefix) == [4, 5, 6, 7]


async def test_delete_removes_a_document_that_was_added_whole(store, prefix):
    """It has no source document; a passage that happens to have the id of a document has one."""
    whole = [
        TextNode(id_=f"{prefix}-{i}", text="whole", embedding=[0.5, 0.5], metadata={"test": prefix})
        for i in (8, 9)
    ]
    await store.add(whole)
    await store.delete(f"{prefix}-3")  # the id of a passage
    await store.delete("None")  # what is stored of nodes without a source document
    assert await left(store, prefix) == [*range(10)]
    await store.delete([whole[0].node_id, f"{prefix} doc 1"])
    assert await left(store, prefix) == [0, 1, 2, 3, 9]


async def test_a_whole_document_is_deleted_within_its_partition(shared, store, raw, colour, prefix):
    partition = f"whole_{colour}"
    raw.create_partition(shared.collection_name, partition)
    whole, other = (
        TextNode(id_=f"{prefix}-{i}", text="whole", embedding=[0.5, 0.5], metadata={"test": prefix})
        for i in (8, 9)
    )
    await store.add([whole], milvus_partition_name=partition)
    await store.add([other])
    await store.delete([whole.node_id, other.node_id], milvus_partition_name=partition)
    assert await left(store, prefix) == [*range(8), 9]


async def test_deleting_what_is_not_there_deletes_nothing(store, prefix):
    await store.delete("no such document")
    await store.delete(["no such document", f"{prefix} doc"])
    await store.delete_nodes(["no such id", prefix])
    await store.delete_nodes(filters=where(test="no such test"))
    assert len(await left(store, prefix)) == 8


async def test_an_empty_list_deletes_nothing(store, prefix):
    await store.delete([])
    await store.delete_nodes([])
    await store.delete_nodes([], filters=where(test=prefix))
    assert len(await left(store, prefix)) == 8


async def test_delete_nodes_by_ids(store, prefix):
    await store.delete_nodes([f"{prefix}-{i}" for i in (1, 6)])
    assert await left(store, prefix) == [0, 2, 3, 4, 5, 7]


async def test_delete_nodes_by_filters(store, prefix):
    await store.delete_nodes(filters=where(test=prefix, parity=0))
    assert await left(store, prefix) == [1, 3, 5, 7]


async def test_a_single_filter_is_taken_in_the_place_of_filters(store, prefix):
    [own] = where(test=prefix).filters
    assert len(await store.get_nodes(filters=own)) == 8
    query = VectorStoreQuery(
        query_embedding=nodes_of(prefix, 1)[0].embedding, similarity_top_k=10, filters=own
    )
    assert len((await store.query(query)).ids) == 8
    await store.delete_nodes(filters=own)
    assert await left(store, prefix) == []


async def test_delete_nodes_by_ids_and_filters_deletes_what_both_select(store, prefix):
    await store.delete_nodes([f"{prefix}-{i}" for i in (1, 2, 3)], filters=where(parity=0))
    assert await left(store, prefix) == [0, 1, 3, 4, 5, 6, 7]


@pytest.mark.parametrize("filters", [None, EVERYTHING], ids=["none", "empty"])
async def test_delete_nodes_with_neither_ids_nor_filters_is_an_error_and_deletes_nothing(
    store, prefix, filters
):
    with pytest.raises(QueryError, match=r"clear\(\)"):
        await store.delete_nodes(filters=filters)
    assert len(await left(store, prefix)) == 8


async def test_delete_nodes_with_filters_that_are_all_empty_deletes_nothing(store, prefix):
    # Groups without a filter in them restrict nothing, so that they would delete everything.
    nested = MetadataFilters(filters=[EVERYTHING, MetadataFilters(filters=[EVERYTHING])])
    with pytest.raises(QueryError, match=r"clear\(\)"):
        await store.delete_nodes(filters=nested)
    assert len(await left(store, prefix)) == 8


async def test_what_was_deleted_is_not_found_and_can_be_added_again(store, shared, prefix):
    node = nodes_of(prefix, 1)[0]
    await store.delete_nodes([node.node_id])
    assert await store.get_nodes([node.node_id]) == []
    await store.add([node])
    assert ids(await store.get_nodes([node.node_id])) == [node.node_id]


async def test_a_delete_stays_within_its_partition(shared, raw, coloured, colour, prefix):
    store = coloured(shared)
    inside, outside = nodes_of(prefix, 8)[:4], nodes_of(prefix, 8)[4:]
    for node in [*inside, *outside]:
        set_document(node, prefix)
    await store.add(outside)
    partition = f"of_{colour}"
    raw.create_partition(shared.collection_name, partition)
    within = {"milvus_partition_name": partition}
    await store.add(inside, **within)

    await store.delete_nodes([inside[0].node_id, outside[0].node_id], **within)
    assert await left(store, prefix) == [1, 2, 3, 4, 5, 6, 7]
    await store.delete_nodes(filters=where(test=prefix, parity=0), **within)
    assert await left(store, prefix) == [1, 3, 4, 5, 6, 7]
    await store.delete(prefix, **within)
    assert await left(store, prefix) == [4, 5, 6, 7]
    await store.delete([prefix])
    assert await left(store, prefix) == []


async def test_a_delete_in_an_unknown_partition_is_an_error_and_deletes_nothing(store, prefix):
    unknown = {"milvus_partition_name": "no_such_partition"}
    for method, argument in ((store.delete, f"{prefix} doc 0"), (store.delete_nodes, [prefix])):
        with pytest.raises(ServerError, match="no_such_partition"):
            await method(argument, **unknown)
    assert len(await left(store, prefix)) == 8


async def test_a_read_of_an_unknown_partition_is_refused(store, prefix):
    asked, unknown = [f"{prefix}-0"], {"milvus_partition_names": ["no_such_partition"]}
    with pytest.raises(ServerError, match="no_such_partition"):
        await store.get_nodes(asked, **unknown)


async def test_what_the_server_refuses_is_an_error(shared, make_shared_store, raw, coloured):
    shared.connect()
    alias = collection_name("alias")
    raw.create_alias(shared.collection_name, alias)
    store = coloured(make_shared_store(collection_name=alias, dim=DIM))
    await store.connect()
    raw.drop_alias(alias)
    refused: list[tuple[Any, dict[str, Any]]] = [
        (store.delete, {"ref_doc_id": "a"}),
        (store.delete_nodes, {"node_ids": ["a"]}),
        (store.delete_nodes, {"filters": where(test="a")}),
        (store.clear, {}),
        (store.get_nodes, {"node_ids": ["a"]}),
        (store.get_nodes, {"filters": where(test="a")}),
    ]
    for method, arguments in refused:
        with pytest.raises(CollectionError, match=alias):
            await method(**arguments)


# Ids are data


def nasty_nodes(prefix: str = "") -> list[TextNode]:
    nodes = make_nodes(len(NASTY_IDS), dim=DIM)
    for node, nasty in zip(nodes, NASTY_IDS, strict=True):
        node.id_ = prefix + nasty
        set_document(node, f"{prefix}{nasty}")
    return nodes


async def test_whatever_is_in_an_id_only_its_own_node_is_read_and_deleted(make_store, coloured):
    store = coloured(make_store(dim=DIM))
    assert await store.add(nasty_nodes()) == NASTY_IDS
    assert await store.get_nodes(NASTY_IDS) == nasty_nodes()
    for nasty in NASTY_IDS:
        # "Strong" would wait for the next tick, and the read above has waited already.
        found = await store.get_nodes([nasty], consistency_level="Eventually")
        assert ids(found) == [nasty]

    remaining = set(NASTY_IDS)
    half = len(NASTY_IDS) // 2
    for nasty in NASTY_IDS[:half]:
        await store.delete_nodes([nasty])
        remaining.remove(nasty)
        assert set(ids(await store.get_nodes(filters=EVERYTHING))) == remaining
    for nasty in NASTY_IDS[half:]:
        await store.delete(nasty)
        remaining.remove(nasty)
        assert set(ids(await store.get_nodes(filters=EVERYTHING))) == remaining


# Clearing


async def test_a_cleared_store_is_empty_and_can_be_used_at_once(make_store, raw, coloured, engine):
    store = coloured(make_store(dim=DIM))
    name = store.store.collection_name
    nodes = nodes_of("node", 8)
    await store.clear()  # as it is when it was just made
    assert await store.get_nodes(filters=EVERYTHING) == []
    await store.add(nodes[:4])
    raw.create_partition(name, "kept")
    await store.add(nodes[4:], milvus_partition_name="kept")
    before = raw.describe_collection(name)

    await store.clear()
    assert await store.get_nodes(filters=EVERYTHING) == []
    query = VectorStoreQuery(query_embedding=[1.0, 0.0], similarity_top_k=10)
    assert (await store.query(query)).ids == []

    assert await store.add(nodes[:2]) == ids(nodes[:2])
    assert sorted(ids(await store.get_nodes(filters=EVERYTHING))) == ids(nodes[:2])
    assert sorted((await store.query(query)).ids) == ids(nodes[:2])
    # The collection is still the one that others hold rights on and other names for.
    assert raw.describe_collection(name) == before
    assert raw.has_partition(name, "kept")


# Past the limit of one request


@pytest.fixture(scope="module")
def many(make_shared_store) -> MilvusVectorStore:
    """A store of `MANY` nodes, added in an order that is not that of their ids."""
    store = make_shared_store(dim=DIM, batch_size=2_000)
    store.add(many_nodes(MANY))
    return store


def many_nodes(n: int) -> list[TextNode]:
    return [
        TextNode(id_=f"node-{i}", text="", embedding=[1.0, 0.0], metadata={"number": i})
        for i in np.random.default_rng(0).permutation(n).tolist()
    ]


def names(numbers: Iterable[int]) -> list[str]:
    return [f"node-{i}" for i in numbers]


def numbers_below(limit: int) -> MetadataFilters:
    below = MetadataFilter(key="number", value=limit, operator=FilterOperator.LT)
    return MetadataFilters(filters=[below])


async def test_every_node_is_read_however_many_there_are(many, coloured):
    found = ids(await coloured(many).get_nodes(filters=EVERYTHING))
    assert len(found) == MANY
    assert sorted(found) == sorted(names(range(MANY)))


@pytest.mark.parametrize("rows", [ROWS_PER_PAGE, ROWS_PER_PAGE + 1, 2 * ROWS_PER_PAGE])
async def test_at_the_edge_of_a_page_no_node_is_lost_or_given_twice(many, coloured, rows):
    found = ids(await coloured(many).get_nodes(filters=numbers_below(rows)))
    assert len(found) == rows
    assert sorted(found) == sorted(names(range(rows)))


async def test_any_number_of_ids_is_read_in_the_order_asked_for(many, coloured):
    asked = names(np.random.default_rng(1).permutation(MANY)[:5_000])
    assert len(asked) > 4 * MAX_IDS
    assert ids(await coloured(many).get_nodes(asked)) == asked


async def test_any_number_of_nodes_is_deleted(make_store, coloured):
    store = coloured(make_store(dim=DIM, batch_size=2_000))
    nodes = many_nodes(MANY + 3_000)
    for node in nodes:
        set_document(node, f"document of {node.node_id}")
    await store.add(nodes)

    async def remaining() -> list[str]:
        return sorted(ids(await store.get_nodes(filters=EVERYTHING)))

    await store.delete_nodes(filters=numbers_below(MANY))
    assert await remaining() == sorted(names(range(MANY, MANY + 3_000)))
    await store.delete_nodes(names(range(MANY, MANY + 1_500)))
    assert await remaining() == sorted(names(range(MANY + 1_500, MANY + 3_000)))
    await store.delete([f"document of {name}" for name in names(range(MANY, MANY + 2_999))])
    assert await remaining() == names([MANY + 2_999])
