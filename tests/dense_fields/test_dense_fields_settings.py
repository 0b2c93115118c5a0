"""What `dense_fields` accepts, in a store, in its copies and on collections that exist."""

from __future__ import annotations

import copy
import json
import pickle

import pytest
from pymilvus import CollectionSchema, DataType, FieldSchema

from llama_index_milvus_async import (
    CollectionError,
    ConfigurationError,
    MilvusVectorStore,
)
from tests.dense_fields.corpus import (
    BY_ID,
    FIELDS,
    HNSW,
    IMAGE_DIM,
    IMAGES,
    QUERIES,
    assert_same,
    bare,
    best_first,
    lite,
    query_for,
    standalone,
)
from tests.fixtures.stores import DIM, collection_name, make_nodes

# Specifications


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        (["image"], r"dense_fields is \['image'\]; it must be a dictionary"),
        ("image", r"dense_fields is 'image'; it must be a dictionary"),
        ({"image": 4}, r"dense_fields\['image'\] is 4; it must be a dictionary"),
        ({"image": None}, r"dense_fields\['image'\] is None; it must be a dictionary"),
        ({"": {"dim": 4}}, r"dense_fields has the key ''; it must be a name"),
        ({7: {"dim": 4}}, r"dense_fields has the key 7; it must be a name"),
        ({"image": {"dim": 0}}, r"dense_fields\['image'\]: dim is 0; .* 1\.\.32768"),
        ({"image": {"dim": 32_769}}, r"dense_fields\['image'\]: dim is 32769"),
        ({"image": {"dim": "four"}}, r"dense_fields\['image'\]: dim is 'four'"),
        ({"image": {"dim": True}}, r"dense_fields\['image'\]: dim is True"),
        ({"image": {"dim": 4, "metric_type": "HAMMING"}}, r"\['image'\] has metric_type='HAMMING'"),
        ({"image": {"dim": 4, "metric_type": "nope"}}, r"one of \['IP', 'L2', 'COSINE'\]"),
        ({"image": {"dim": 4, "type": DataType.VARCHAR}}, r"\['image'\] has type=.*FLOAT16_VECTOR"),
        ({"image": {"dim": 4, "type": "FLOAT_VECTOR"}}, r"\['image'\] has type='FLOAT_VECTOR'"),
        (
            {"image": {"dim": 4, "type": DataType.SPARSE_FLOAT_VECTOR}},
            r"\['image'\] has type=.*BINARY_VECTOR",
        ),
        (
            {"bits": {"dim": 12, "type": DataType.BINARY_VECTOR}},
            r"\['bits'\] has dim=12; .* multiple of 8",
        ),
        (
            {"bits": {"dim": 8, "type": DataType.BINARY_VECTOR, "metric_type": "IP"}},
            r"\['bits'\] has metric_type='IP'; a BINARY_VECTOR has one of \['HAMMING', 'JACCARD'\]",
        ),
        ({"embedding": {"dim": 4}}, "dense_fields is 'embedding', which is also embedding_field"),
        ({"text": {"dim": 4}}, "dense_fields is 'text', which is also text_key"),
        ({"id": {"dim": 4}}, "dense_fields is 'id', which is also id_field"),
        ({"doc_id": {"dim": 4}}, "dense_fields is 'doc_id', which is also doc_id_field"),
        ({"_node_content": {"dim": 4}}, "'_node_content', which is also"),
    ],
)
def test_a_bad_specification_is_refused(fields, message):
    with pytest.raises(ConfigurationError, match=message):
        MilvusVectorStore(dense_fields=fields, dim=DIM)


def test_names_of_scalar_and_sparse_fields_are_taken():
    with pytest.raises(
        ConfigurationError, match="scalar_field_names is 'year', which is also dense"
    ):
        MilvusVectorStore(
            dim=DIM,
            dense_fields={"year": {"dim": 4}},
            scalar_field_names=["year"],
            scalar_field_types=[DataType.INT64],
        )
    with pytest.raises(
        ConfigurationError, match="dense_fields is 'sparse_embedding', which is also"
    ):
        MilvusVectorStore(
            dim=DIM, dense_fields={"sparse_embedding": {"dim": 4}}, enable_sparse=True
        )


@pytest.mark.parametrize("kind", [[], {}], ids=["list", "dict"])
def test_a_type_that_cannot_be_hashed_is_refused(kind):
    with pytest.raises(ConfigurationError, match=r"dense_fields\['image'\] has type="):
        MilvusVectorStore(dense_fields={"image": {"dim": 4, "type": kind}}, dim=DIM)


def test_a_specification_is_completed():
    store = MilvusVectorStore(
        dim=DIM,
        dense_fields={
            "image": {"dim": 4, "metric_type": "cosine", **HNSW},
            "bits": {"dim": 16, "type": DataType.BINARY_VECTOR},
        },
    )
    assert store.dense_fields == {
        "image": {"dim": 4, "type": DataType.FLOAT_VECTOR, "metric_type": "COSINE", **HNSW},
        "bits": {"dim": 16, "type": DataType.BINARY_VECTOR},
    }


def test_the_caller_s_specification_stays_as_it_was():
    given = copy.deepcopy(FIELDS)
    MilvusVectorStore(dim=DIM, dense_fields=given).dense_fields["image"]["dim"] = 9
    assert given == FIELDS


COPIES = {
    "pickle": lambda store: pickle.loads(pickle.dumps(store)),
    "copy": copy.copy,
    "deepcopy": copy.deepcopy,
    "model_copy": lambda store: store.model_copy(),
    "to_dict": lambda store: type(store).from_dict(store.to_dict()),
    "to_json": lambda store: type(store).from_json(store.to_json()),
    "json of to_dict": lambda store: type(store).from_dict(json.loads(json.dumps(store.to_dict()))),
}


@pytest.mark.parametrize("how", COPIES)
def test_copies_have_the_fields(how):
    kinds = [DataType.FLOAT16_VECTOR, DataType.INT8_VECTOR, DataType.BINARY_VECTOR]
    fields = {kind.name.lower(): {"dim": 8, "type": kind} for kind in kinds}
    store = MilvusVectorStore(dim=DIM, dense_fields={**FIELDS, **fields})
    copied = COPIES[how](store)
    assert copied.dense_fields == store.dense_fields
    assert {type(each["type"]) for each in copied.dense_fields.values()} == {DataType}


@lite
@pytest.mark.parametrize("how", COPIES)
async def test_copies_work(store, how):
    copied = COPIES[how](store)
    try:
        assert_same(
            await copied.aquery(query_for("image")), best_first("image", QUERIES["image"], 10)
        )
    finally:
        await copied.aclose()


# Existing collections


@lite
async def test_a_collection_without_the_field_is_refused(raw, make_store, coloured):
    name = collection_name("plain")
    await coloured(make_store(collection_name=name)).connect()
    other = coloured(make_store(collection_name=name, dense_fields={"image": {"dim": 4}}))
    with pytest.raises(CollectionError) as error:
        await other.connect()
    for part in ("'image'", "no such field", "FLOAT_VECTOR", "dense_fields", "['embedding']"):
        assert part in str(error.value)
    assert [f["name"] for f in raw.describe_collection(name)["fields"]].count("image") == 0


@lite
@pytest.mark.parametrize(
    ("fields", "parts"),
    [
        ({"image": {"dim": 5}}, ["dimension 4", "dense_fields={'image': {'dim': 4}}"]),
        (
            {"image": {"dim": 4, "type": DataType.FLOAT16_VECTOR}},
            ["'image'", "found FLOAT_VECTOR", "FLOAT16_VECTOR"],
        ),
        (
            {"image": {"dim": 8, "type": DataType.BINARY_VECTOR}},
            ["'image'", "found FLOAT_VECTOR", "BINARY_VECTOR"],
        ),
        ({"note": {"dim": 4}}, ["'note'", "found VARCHAR", "FLOAT_VECTOR"]),
        (
            {"image": {"dim": 4, "metric_type": "COSINE"}},
            ["metric L2", "dense_fields={'image': {'metric_type': 'L2'}}"],
        ),
    ],
    ids=["dimension", "type", "binary", "scalar", "metric"],
)
async def test_a_collection_whose_field_differs_is_refused(make_store, coloured, fields, parts):
    name = collection_name("other")
    scalar = {"scalar_field_names": ["note"], "scalar_field_types": [DataType.VARCHAR]}
    made = make_store(collection_name=name, dense_fields={"image": FIELDS["image"]}, **scalar)
    await coloured(made).connect()
    other = coloured(make_store(collection_name=name, dense_fields=fields))
    with pytest.raises(CollectionError) as error:
        await other.connect()
    assert all(part in str(error.value) for part in parts), str(error.value)


@lite
@pytest.mark.parametrize("settings", [{"metric_type": "COSINE"}, {"metric_type": "L2", "dim": 5}])
async def test_the_remedy_for_a_further_field_names_dense_fields(on_same_collection, settings):
    fields = {"image": {"dim": 4, **settings}}
    other = on_same_collection(dense_fields=fields)
    with pytest.raises(CollectionError) as error:
        other.connect()
    remedy = str(error.value).replace(other.collection_name, "")
    assert "dense_fields" in remedy
    assert "similarity_metric" not in remedy


@lite
async def test_the_collection_decides_what_is_not_given(on_same_collection, coloured):
    """Dimensions, and metrics other than those of new fields."""
    store = coloured(on_same_collection(dense_fields={"image": {}, "title": {}}, dim=None))
    for field in ("image", "title"):
        found = await store.query(query_for(field))
        assert_same(found, best_first(field, QUERIES[field], 10))


@lite
async def test_without_a_dimension_no_collection_is_made_before_nodes_come(
    make_store, coloured, raw
):
    store = make_store(dense_fields={"image": {"metric_type": "L2"}})
    await coloured(store).connect()
    assert not raw.has_collection(store.collection_name)


@lite
async def test_a_store_that_knows_one_field_reads_and_does_not_write(on_same_collection, coloured):
    one = coloured(on_same_collection(dense_fields=None))
    assert_same(await one.query(query_for("title")), best_first("title", QUERIES["title"], 10))
    (node,) = await one.get_nodes(["node-1"], output_fields=["image"])
    embedding = BY_ID["node-1"].embedding
    assert node == bare(BY_ID["node-1"], image=IMAGES[1]).model_copy(
        update={"embedding": embedding}
    )
    with pytest.raises(CollectionError, match=r"\['image', 'title'\].*dense_fields"):
        await one.add(make_nodes(1))


@lite
async def test_a_collection_made_by_hand(make_store, coloured, raw):
    """Its rows hold no nodes, and one of its fields may be left out."""
    name = collection_name("by_hand")
    fields = [
        FieldSchema("pk", DataType.VARCHAR, max_length=64, is_primary=True),
        FieldSchema("text", DataType.VARCHAR, max_length=1000),
        FieldSchema("embedding", DataType.FLOAT_VECTOR, dim=DIM),
        FieldSchema("image", DataType.FLOAT_VECTOR, dim=IMAGE_DIM),
    ]
    raw.create_collection(name, schema=CollectionSchema(fields))
    store = coloured(make_store(collection_name=name, dense_fields={"image": FIELDS["image"]}))
    nodes = make_nodes(3, image=lambda i: IMAGES[i])
    for node in nodes:
        node.relationships = {}
    await store.add(nodes)
    result = await store.query(query_for("image", query_embedding=IMAGES[1], similarity_top_k=1))
    assert (result.ids, result.similarities) == (["node-1"], [1.0])
    assert result.nodes[0].metadata == {}
    (node,) = await store.get_nodes(["node-2"], output_fields=["image", "embedding"])
    assert (node.embedding, node.metadata) == (nodes[2].embedding, {"image": IMAGES[2]})


# Servers with one vector field


@standalone
async def test_a_server_with_one_vector_field_says_so(make_store, coloured, raw, engine):
    if "2.3" not in engine.version:
        pytest.skip(f"{engine.version} has several")
    store = make_store(dense_fields={"image": {"dim": 4}})
    with pytest.raises(
        ConfigurationError, match=r"\['embedding', 'image'\].*Milvus v?2\.3\.5.*2\.4"
    ):
        await coloured(store).connect()
    assert not raw.has_collection(store.collection_name)


@lite
@pytest.mark.parametrize(
    "kind",
    [
        DataType.FLOAT16_VECTOR,
        DataType.BFLOAT16_VECTOR,
        DataType.INT8_VECTOR,
        DataType.BINARY_VECTOR,
    ],
    ids=lambda kind: kind.name,
)
async def test_a_type_that_the_engine_lacks_is_refused(make_store, coloured, raw, kind):
    store = make_store(dense_fields={"small": {"dim": 8, "type": kind}})
    lacks = rf"field 'small' of type {kind.name}: Milvus Lite .* has no {kind.name} fields; Milvus"
    with pytest.raises(ConfigurationError, match=lacks):
        await coloured(store).connect()
    assert not raw.has_collection(store.collection_name)
