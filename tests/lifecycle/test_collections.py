"""Collections that a store makes, finds, loads, or refuses because they do not fit."""

import copy
import pickle

import pytest
from pymilvus import DataType
from pymilvus.client.types import LoadState

from llama_index_milvus_async import IndexManagement
from llama_index_milvus_async._transport.backend import Backend
from llama_index_milvus_async.errors import CollectionError
from tests.fixtures.stores import DIM, collection_name, make_nodes
from tests.lifecycle.helpers import ids_in, query

#


def is_loaded(raw, name):
    return raw.get_load_state(name)["state"] == LoadState.Loaded


# A new collection


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
    [index_name] = raw.list_indexes(name, field_name="vector")
    index = raw.describe_index(name, index_name)
    assert (index["index_type"], index["metric_type"]) == ("HNSW", "COSINE")
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


@pytest.mark.parametrize(
    ("arguments", "copied"),
    [
        ({}, lambda store: store),
        ({"index_config": {"index_type": "HNSW", "M": 8, "efConstruction": 64}}, copy.deepcopy),
        ({"similarity_metric": "euclidean"}, lambda store: pickle.loads(pickle.dumps(store))),
        (
            {"index_config": {"metric_type": "L2"}},
            lambda store: type(store).from_dict(store.to_dict()),
        ),
    ],
    ids=["neither", "another index type", "metric", "metric of the index"],
)
async def test_the_metric_of_an_existing_index_decides(
    make_collection, reopen, raw, coloured, arguments, copied
):
    """Scores, MMR's candidates and thresholds are those of L2, whether it was named or not."""
    name = make_collection(fields(), index={**FLAT, "metric_type": "L2"})
    store = coloured(copied(reopen(collection_name=name, **arguments)))
    nodes = make_nodes(4, year=2000)
    await store.add(nodes)
    wanted = [1 / (1 + sum((1.0 - x) ** 2 for x in node.embedding)) for node in nodes]
    ranked = sorted(wanted, reverse=True)
    assert (await store.query(query())).similarities == pytest.approx(ranked)
    kept = await store.query(query(), score_threshold=ranked[1] - 1e-6)
    assert kept.similarities == pytest.approx(ranked[:2])
    index = raw.describe_index(name, "embedding")
    assert (index["index_type"], index["metric_type"]) == ("FLAT", "L2")
    await store.clear()


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


@pytest.mark.engines("standalone")
async def test_a_collection_that_another_process_loaded_with_fewer_indexes_is_loaded(
    make_store, raw, monkeypatch
):
    """Milvus refuses to load it again; it is loaded, with the indexes that it had."""
    store = make_store(index_doc_id=False)
    await store.aconnect()
    index = raw.prepare_index_params()
    index.add_index("doc_id", index_type="Trie")
    raw.create_index(store.collection_name, index)
    other = make_store(collection_name=store.collection_name)
    loaded = [False]
    is_loaded = Backend.is_loaded

    async def not_yet_loaded(backend, name):
        return loaded.pop() if loaded else await is_loaded(backend, name)

    monkeypatch.setattr(Backend, "is_loaded", not_yet_loaded)
    await other.aconnect()
    assert not loaded
    assert await other.async_add(make_nodes(1)) == ["node-0"]
