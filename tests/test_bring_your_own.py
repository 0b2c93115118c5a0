"""Collections that were made with raw pymilvus and know nothing of LlamaIndex."""

from __future__ import annotations

import functools
from collections.abc import Callable
from dataclasses import dataclass, field

import pytest
from llama_index.core.schema import NodeRelationship, RelatedNodeInfo, TextNode
from llama_index.core.vector_stores.types import (
    FilterOperator,
    MetadataFilter,
    MetadataFilters,
    VectorStoreQuery,
    VectorStoreQueryMode,
)
from pymilvus import DataType

from llama_index_milvus_async import CollectionError, FilterError, NodeError
from tests.fixtures.stores import DIM, collection_name, make_nodes

ROWS = 12
VECTORS = [node.embedding for node in make_nodes(ROWS + 4)]
METRIC = "COSINE"


def schema_of(client, *, primary, auto_id=False, dynamic=False, text="passage", vector="vec"):
    schema = client.create_schema(auto_id=auto_id, enable_dynamic_field=dynamic)
    name, data_type = primary
    length = {"max_length": 64} if data_type is DataType.VARCHAR else {}
    schema.add_field(name, data_type, is_primary=True, **length)
    schema.add_field(text, DataType.VARCHAR, max_length=200)
    schema.add_field(vector, DataType.FLOAT_VECTOR, dim=DIM)
    return schema


def create(client, name, schema, vector="vec"):
    indexes = client.prepare_index_params()
    indexes.add_index(vector, index_type="FLAT", metric_type=METRIC)
    client.create_collection(name, schema=schema, index_params=indexes, consistency_level="Strong")


def rows(first=0, n=ROWS, *, key=None, text="passage", vector="vec", **columns):
    """Rows of a raw collection; a column's value is a function of the row's number."""
    return [
        {
            **({key[0]: key[1](i)} if key else {}),
            text: f"passage {i}",
            vector: VECTORS[i],
            **{name: value(i) for name, value in columns.items()},
        }
        for i in range(first, first + n)
    ]


YEAR = {"year": lambda i: 1900 + i}
DYNAMIC = {"year": lambda i: 1900 + i, "tags": lambda i: [f"tag-{i % 3}", "all"]}


def integers_static(client, name):
    schema = schema_of(client, primary=("pk", DataType.INT64))
    schema.add_field("year", DataType.INT64)
    schema.add_field("source", DataType.VARCHAR, max_length=64)
    create(client, name, schema)


def integers_numbered_static(client, name):
    schema = schema_of(client, primary=("pk", DataType.INT64), auto_id=True)
    schema.add_field("year", DataType.INT64)
    create(client, name, schema)


def texts_dynamic(client, name):
    create(client, name, schema_of(client, primary=("uuid", DataType.VARCHAR), dynamic=True))


def texts_numbered_dynamic(client, name):
    primary = ("pk", DataType.VARCHAR)
    create(client, name, schema_of(client, primary=primary, auto_id=True, dynamic=True))


def quick_setup(client, name):
    client.create_collection(name, dimension=DIM, consistency_level="Strong")


@dataclass(frozen=True)
class Shape:
    """A kind of collection.

    `key` makes the primary key of a row, `None` where Milvus does.
    """

    create: Callable
    columns: dict
    key: tuple | None = None
    text: str = "passage"
    vector: str = "vec"
    store: dict = field(default_factory=dict)

    def rows(self, first=0, n=ROWS):
        return rows(
            first, n, key=self.key, text=self.text, vector=self.vector, **dict(self.columns)
        )

    @property
    def store_arguments(self):
        names = {"text_key": self.text, "embedding_field": self.vector}
        return {**names, "similarity_metric": METRIC, **self.store}

    def metadata(self, i):
        return {name: value(i) for name, value in self.columns.items()}


SHAPES = {
    "integers-static": Shape(
        integers_static, YEAR | {"source": lambda i: f"file-{i % 4}"}, ("pk", lambda i: i * 7 - 14)
    ),
    "integers-auto-static": Shape(integers_numbered_static, YEAR),
    "texts-dynamic": Shape(texts_dynamic, DYNAMIC, ("uuid", lambda i: f'u-{i} "x"')),
    "texts-auto-dynamic": Shape(texts_numbered_dynamic, DYNAMIC),
    "quick-setup": Shape(
        quick_setup, DYNAMIC, ("id", lambda i: 2**62 + i), text="text", vector="vector"
    ),
}


@dataclass
class Collection:
    shape: Shape
    name: str
    ids: list  # of the rows, as texts


@pytest.fixture(scope="module")
def get_collection(engine, raw):
    """Returns the collection of a shape, with its rows; makes it at the first call."""
    made = []

    @functools.cache
    def get(shape_name):
        if shape_name == "texts-auto-dynamic" and engine.is_lite:
            pytest.skip("Milvus Lite numbers INT64 keys only")
        shape, name = SHAPES[shape_name], collection_name(shape_name)
        made.append(name)
        shape.create(raw, name)
        ids = raw.insert(name, shape.rows())["ids"]
        return Collection(shape, name, [str(each) for each in ids])

    yield get
    for name in made:
        raw.drop_collection(name)


@pytest.fixture(params=list(SHAPES))
def collection(request, get_collection):
    return get_collection(request.param)


@pytest.fixture
def open_store(make_shared_store):
    """Opens a store on a collection, with the arguments that its names ask for."""

    def open_(collection, **kwargs):
        arguments = {
            "collection_name": collection.name,
            "dim": None,
            "consistency_level": "Session",  # sees what `raw` wrote, too: it is the same process
        }
        return make_shared_store(**{**arguments, **collection.shape.store_arguments, **kwargs})

    return open_


def query_for(i=0, **kwargs):
    return VectorStoreQuery(**{"query_embedding": VECTORS[i], "similarity_top_k": 4, **kwargs})


def year(operator, value):
    return MetadataFilters(filters=[MetadataFilter(key="year", operator=operator, value=value)])


# Reading


async def test_rows_are_found_as_nodes_with_text_and_every_scalar_field(
    collection, open_store, coloured
):
    store = coloured(open_store(collection))
    result = await store.query(query_for(3, similarity_top_k=ROWS + 5))
    assert result.ids[0] == collection.ids[3]
    assert result.similarities[0] == pytest.approx(1, abs=1e-5)
    assert sorted(result.ids) == sorted(collection.ids)
    for node in result.nodes:
        i = collection.ids.index(node.node_id)
        assert isinstance(node, TextNode)
        assert node.text == f"passage {i}"
        assert node.metadata == collection.shape.metadata(i)
        assert node.embedding is None


async def test_mmr_finds_rows_as_well(collection, open_store, coloured):
    store = coloured(open_store(collection))
    result = await store.query(query_for(3, mode=VectorStoreQueryMode.MMR), mmr_prefetch_k=ROWS)
    assert result.ids[0] == collection.ids[3]
    assert len(set(result.ids)) == 4
    assert result.nodes[0].metadata == collection.shape.metadata(3)


async def test_rows_are_read_by_id_in_the_order_asked(collection, open_store, coloured):
    store = coloured(open_store(collection))
    wanted = [collection.ids[i] for i in (5, 0, 9)]
    nodes = await store.get_nodes([*wanted, wanted[0]])
    assert [node.node_id for node in nodes] == wanted
    assert [node.text for node in nodes] == ["passage 5", "passage 0", "passage 9"]
    assert [node.metadata for node in nodes] == [collection.shape.metadata(i) for i in (5, 0, 9)]


async def test_rows_are_read_by_filter(collection, open_store, coloured):
    store = coloured(open_store(collection))
    nodes = await store.get_nodes(filters=year(FilterOperator.GTE, 1900 + ROWS - 2))
    assert sorted(node.metadata["year"] for node in nodes) == [1900 + ROWS - 2, 1900 + ROWS - 1]


async def test_queries_are_restricted_by_filters_and_ids(collection, open_store, coloured):
    store = coloured(open_store(collection))
    result = await store.query(
        query_for(3, filters=year(FilterOperator.LT, 1903), node_ids=collection.ids[1:6])
    )
    assert sorted(result.ids) == sorted(collection.ids[1:3])


async def test_only_the_named_fields_become_metadata(collection, open_store, coloured):
    store = coloured(open_store(collection, output_fields=["year"]))
    result = await store.query(query_for(2))
    assert result.ids[0] == collection.ids[2]
    assert result.nodes[0].text == "passage 2"
    assert result.nodes[0].metadata == {"year": 1902}
    assert (await store.get_nodes([collection.ids[4]]))[0].metadata == {"year": 1904}


async def test_the_query_names_the_fields_as_well(collection, open_store, coloured):
    store = coloured(open_store(collection))
    result = await store.query(query_for(2, output_fields=["year"]))
    assert result.nodes[0].metadata == {"year": 1902}
    nodes = await store.get_nodes([collection.ids[2]], output_fields=["year"])
    assert nodes[0].metadata == {"year": 1902}


async def test_the_embedding_comes_where_it_is_named_and_is_no_metadata(
    collection, open_store, coloured
):
    vector = collection.shape.vector
    store = coloured(open_store(collection, output_fields=["year", vector]))
    (node,) = (await store.query(query_for(2, similarity_top_k=1))).nodes
    assert node.embedding == VECTORS[2]
    assert node.metadata == {"year": 1902}
    (node,) = await store.get_nodes([collection.ids[2]])
    assert node.embedding == VECTORS[2]
    assert node.metadata == {"year": 1902}


async def test_the_embedding_alone_leaves_every_scalar_field_in_the_metadata(
    collection, open_store, coloured
):
    store = coloured(open_store(collection, output_fields=[collection.shape.vector]))
    (node,) = (await store.query(query_for(2, similarity_top_k=1))).nodes
    assert node.embedding == VECTORS[2]
    assert node.metadata == collection.shape.metadata(2)


async def test_a_star_among_the_fields_names_every_scalar_field(collection, open_store, coloured):
    store = coloured(open_store(collection, output_fields=["*"]))
    (hit,) = (await store.query(query_for(2, similarity_top_k=1))).nodes
    (node,) = await store.get_nodes([collection.ids[2]])
    assert hit.metadata == node.metadata == collection.shape.metadata(2)
    assert (hit.embedding, node.embedding) == (None, VECTORS[2])


@pytest.mark.parametrize("output_fields", [[], ["year"]])
async def test_the_column_of_document_ids_names_the_source_document(
    get_collection, open_store, coloured, output_fields
):
    collection = get_collection("integers-static")
    store = coloured(open_store(collection, doc_id_field="source", output_fields=output_fields))
    (node,) = (await store.query(query_for(2, similarity_top_k=1))).nodes
    assert node.ref_doc_id == "file-2"
    assert node.metadata == {"year": 1902}
    (node,) = await store.get_nodes([collection.ids[3]])
    assert node.ref_doc_id == "file-3"


async def test_any_text_field_serves_as_text(get_collection, open_store, coloured):
    collection = get_collection("integers-static")
    store = coloured(open_store(collection, text_key="source"))
    (node,) = (await store.query(query_for(2, similarity_top_k=1))).nodes
    assert node.text == "file-2"
    assert node.metadata == {"year": 1902, "passage": "passage 2"}


async def test_an_id_that_is_no_integer_is_refused_where_ids_are(
    get_collection, open_store, coloured
):
    store = coloured(open_store(get_collection("integers-static")))
    for call in (
        store.get_nodes(["seven"]),
        store.query(query_for(node_ids=["seven"])),
        store.delete_nodes(["seven"]),
    ):
        with pytest.raises(FilterError, match="seven"):
            await call


# Deleting


async def test_rows_are_deleted_by_id_and_by_filter(collection, open_store, coloured, raw):
    store = coloured(open_store(collection))
    extra = [
        str(each) for each in raw.insert(collection.name, collection.shape.rows(ROWS, 3))["ids"]
    ]
    await store.delete_nodes(extra[:1])
    assert [node.node_id for node in await store.get_nodes(extra)] == extra[1:]
    await store.delete_nodes(filters=year(FilterOperator.GTE, 1900 + ROWS))
    assert await store.get_nodes(extra) == []
    assert len(await store.get_nodes(collection.ids)) == ROWS


async def test_rows_are_deleted_by_document_where_a_column_names_it(
    get_collection, open_store, coloured, raw
):
    collection = get_collection("integers-static")
    store = coloured(open_store(collection, doc_id_field="source"))
    row = {**collection.shape.rows(ROWS, 1)[0], "source": "of this test"}
    raw.insert(collection.name, [row])
    assert (await store.query(query_for(doc_ids=["of this test"]))).ids == [str(row["pk"])]
    await store.delete("of this test")
    assert (await store.query(query_for(doc_ids=["of this test"]))).ids == []
    assert len(await store.get_nodes(collection.ids)) == ROWS


async def test_where_rows_are_documents_their_ids_are_those_of_documents(raw, make_store, coloured):
    name = collection_name("documents")
    raw.create_collection(name, dimension=DIM, consistency_level="Strong")
    raw.insert(name, rows(n=4, key=("id", lambda i: i), text="text", vector="vector"))
    names = {"collection_name": name, "embedding_field": "vector", "doc_id_field": "id"}
    store = coloured(make_store(**names, similarity_metric=METRIC))
    (found,) = (await store.query(query_for(2, doc_ids=["2", "7"]))).ids
    assert found == "2"
    await store.delete(["1", "2"])
    node = node_for(node_id="9")
    node.relationships = {NodeRelationship.SOURCE: RelatedNodeInfo(node_id="elsewhere")}
    await store.add([node])
    left = await store.get_nodes(filters=MetadataFilters(filters=[]))
    assert [each.node_id for each in left] == ["0", "3", "9"]
    assert left[-1].ref_doc_id == "elsewhere"


async def test_texts_that_share_a_column_with_ids_are_read_and_not_written(
    get_collection, open_store, coloured
):
    store = coloured(open_store(get_collection("texts-dynamic"), text_key="uuid"))
    (node,) = (await store.query(query_for(similarity_top_k=1))).nodes
    assert node.text == node.node_id
    with pytest.raises(CollectionError, match=r"'uuid' \(text_key\), which holds ids as well"):
        await store.add([node_for()])


async def test_documents_are_refused_where_there_are_none(get_collection, open_store, coloured):
    store = coloured(open_store(get_collection("integers-auto-static")))
    with pytest.raises(FilterError, match="doc"):
        await store.delete("doc-0")
    with pytest.raises(FilterError, match="doc"):
        await store.query(query_for(doc_ids=["doc-0"]))
    assert len(await store.get_nodes(get_collection("integers-auto-static").ids)) == ROWS


# Adding


def node_for(i=ROWS, node_id="1000", **metadata):
    return TextNode(id_=node_id, text=f"passage {i}", embedding=VECTORS[i], metadata=metadata)


@pytest.mark.parametrize("shape", ["integers-auto-static", "texts-auto-dynamic"])
async def test_adding_is_refused_where_milvus_makes_the_ids(
    get_collection, open_store, coloured, shape
):
    collection = get_collection(shape)
    store = coloured(open_store(collection))
    with pytest.raises(CollectionError, match=r"auto_id.*not added to"):
        await store.add([node_for(year=1)])
    assert len((await store.query(query_for(similarity_top_k=100))).ids) == ROWS


async def test_nodes_are_added_to_static_columns_and_come_back(
    get_collection, open_store, coloured, raw
):
    collection = get_collection("integers-static")
    store = coloured(open_store(collection))
    node = node_for(node_id="1001", year=2001, source="added")
    assert await store.add([node]) == ["1001"]
    (stored,) = await store.get_nodes(["1001"])
    assert (stored.text, stored.metadata) == (node.text, node.metadata)
    assert raw.get(collection.name, 1001, output_fields=["year"])[0]["year"] == 2001
    await store.delete_nodes(["1001"])


async def test_the_source_document_is_added_where_a_column_names_it(
    get_collection, open_store, coloured, raw
):
    collection = get_collection("integers-static")
    store = coloured(open_store(collection, doc_id_field="source"))
    node = make_nodes(ROWS + 1, prefix="x", year=2002)[ROWS]
    node.id_ = "1002"
    await store.add([node])
    (row,) = raw.get(collection.name, 1002, output_fields=["source"])
    assert row["source"] == node.ref_doc_id
    assert await store.get_nodes(["1002"]) == [node]
    await store.delete(node.ref_doc_id)
    assert await store.get_nodes(["1002"]) == []


@pytest.mark.parametrize("shape", ["texts-dynamic", "quick-setup"])
async def test_nodes_are_added_whole_where_there_is_a_dynamic_field(
    get_collection, open_store, coloured, shape
):
    store = coloured(open_store(get_collection(shape)))
    node = make_nodes(ROWS + 1, nested={"a": [1, None]}, year=2003)[ROWS]
    node.id_ = "1003"
    await store.add([node])
    try:
        assert await store.get_nodes(["1003"]) == [node]
        result = await store.query(query_for(ROWS, similarity_top_k=1))
        assert result.nodes == [node.model_copy(update={"embedding": None})]
    finally:
        await store.delete_nodes(["1003"])


@pytest.mark.parametrize(
    ("node_id", "metadata", "message"),
    [
        ("1", {"year": 1, "source": "s", "author": "a"}, "'author' cannot be stored.*no"),
        ("1", {"year": 1}, "'source'.* is missing"),
        ("1", {"year": 1, "source": None}, "'source'.* is None"),
        ("1", {"year": "1999", "source": "s"}, "'year'.*INT64.*not an integer"),
        ("1", {"year": 2**63, "source": "s"}, "'year'.*out of range"),
        ("1", {"year": 1, "source": "s" * 65}, "'source'.*65 bytes, Milvus allows 64"),
        ("one", {"year": 1, "source": "s"}, "'pk' is INT64, and the id is not an integer"),
        ("9" * 19, {"year": 1, "source": "s"}, "'pk' is INT64, and the id is not an integer"),
    ],
)
async def test_what_has_no_column_is_refused_and_nothing_is_written(
    get_collection, open_store, coloured, node_id, metadata, message
):
    collection = get_collection("integers-static")
    store = coloured(open_store(collection))
    good = node_for(node_id="1004", year=1, source="good")
    with pytest.raises(NodeError, match=f"node '{node_id}'.*{message}"):
        await store.add([good, node_for(node_id=node_id, **metadata)])
    assert await store.get_nodes(["1004"]) == []


async def test_a_text_too_long_for_its_column_is_refused(get_collection, open_store, coloured):
    store = coloured(open_store(get_collection("integers-static")))
    node = node_for(year=1, source="s")
    node.text = "é" * 101
    with pytest.raises(NodeError, match="text takes 202 bytes, Milvus allows 200"):
        await store.add([node])


async def test_a_node_for_a_second_vector_field_is_refused_and_the_field_named(
    engine, raw, make_store, coloured
):
    if not engine.is_lite:
        pytest.skip("Milvus before 2.4 has one vector field in a collection")
    schema = schema_of(raw, primary=("pk", DataType.VARCHAR), dynamic=True)
    schema.add_field("other", DataType.FLOAT_VECTOR, dim=4)
    name = collection_name("second_vector")
    create(raw, name, schema)
    names = {"collection_name": name, "text_key": "passage", "embedding_field": "vec"}
    store = coloured(make_store(**names, similarity_metric=METRIC))
    with pytest.raises(CollectionError, match=r"\['other'\].*not added to"):
        await store.add([node_for()])


# Types that only raw collections have


async def test_lists_objects_and_other_types_of_columns_become_metadata(raw, make_store, coloured):
    name = collection_name("types")
    schema = schema_of(raw, primary=("pk", DataType.INT64))
    schema.add_field("flag", DataType.BOOL)
    schema.add_field("small", DataType.INT8)
    schema.add_field("ratio", DataType.DOUBLE)
    schema.add_field("data", DataType.JSON)
    schema.add_field(
        "words", DataType.ARRAY, element_type=DataType.VARCHAR, max_capacity=8, max_length=20
    )
    create(raw, name, schema)
    metadata = {
        "flag": True,
        "small": -5,
        "ratio": 0.1,
        "data": {"a": [1, {"b": None}]},
        "words": ["one", "two"],
    }
    raw.insert(name, [{"pk": 1, "passage": "passage", "vec": VECTORS[0], **metadata}])
    names = {"collection_name": name, "text_key": "passage", "embedding_field": "vec"}
    store = coloured(make_store(**names, similarity_metric=METRIC))
    (node,) = (await store.query(query_for())).nodes
    assert node.metadata == metadata
    types = {name: type(value) for name, value in node.metadata.items()}
    assert types == {name: type(value) for name, value in metadata.items()}
    node.model_dump_json()  # nothing of pymilvus' own types is left inside
    (node,) = await store.get_nodes(["1"])
    assert node.metadata == metadata
    node.model_dump_json()
    node.id_, node.embedding = "2", VECTORS[1]
    await store.add([node])
    (added,) = await store.get_nodes(["2"])
    assert added.metadata == metadata
