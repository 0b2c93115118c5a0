"""What the command line tells from a collection, in order to make another one like it."""

from __future__ import annotations

from datetime import datetime, timezone

import pytest
from pymilvus import DataType

from llama_index_milvus_async import BM25BuiltInFunction, MilvusVectorStore
from llama_index_milvus_async._lifecycle import Found
from llama_index_milvus_async._translation.engine import Engine
from llama_index_milvus_async._translation.schema import new_index_params, new_schema
from llama_index_milvus_async.migration._places import arguments_of, new_arguments

SERVER, LITE = Engine.parse("v2.6.6"), Engine.parse("milvus_lite-3.2.2")
NAMES = {
    "id_field": "key",
    "doc_id_field": "document",
    "text_key": "body",
    "embedding_field": "vector",
    "sparse_embedding_field": "words",
}
#: Everything that both engines have, and that can be told from a collection.
COMMON = {
    **NAMES,
    "dim": 8,
    "index_config": {"index_type": "HNSW", "metric_type": "L2", "M": 8, "efConstruction": 80},
    "dense_fields": {"image": {"dim": 4, "index_type": "HNSW", "metric_type": "COSINE", "M": 9}},
    "enable_sparse": True,
    "sparse_embedding_function": BM25BuiltInFunction(
        "body", "words", "count", "counts words", analyzer_params={"type": "english"}
    ),
    "sparse_index_config": {
        "index_type": "SPARSE_INVERTED_INDEX",
        "metric_type": "BM25",
        "bm25_k1": 1.3,
    },
    "scalar_fields": {
        "tenant": {"type": "VARCHAR", "max_length": 64, "index": True},
        "year": {"type": "INT64", "nullable": True, "index": True},
        "weight": {"type": "DOUBLE", "default": 0.5},
        "draft": {"type": "BOOL", "default": False},
        "since": {"type": "TIMESTAMPTZ", "default": "2026-01-01T00:00:00+00:00"},
        "tags": {"type": "ARRAY", "element_type": "VARCHAR", "max_capacity": 9, "max_length": 99},
        "extra": {"type": "JSON", "nullable": True},
    },
    "partition_key_field": "tenant",
    "num_partitions": 7,
}
#: What only a server has.
ON_A_SERVER = {
    "scalar_fields": {
        **COMMON["scalar_fields"],
        "kind": {"type": "VARCHAR", "index": "BITMAP"},
        "title": {"type": "VARCHAR", "index": {"index_type": "NGRAM", "min_gram": 2}},
        "parts": {"type": "ARRAY", "element_type": "INT64", "index": True},
    },
    "metadata_indexes": {
        "author": "VARCHAR",
        "numbers": {"type": "ARRAY", "element_type": "DOUBLE"},
    },
    "index_doc_id": False,
    "num_shards": 3,
    "partition_key_isolation": True,
    "description": "notes of last year",
    "collection_properties": {"collection.ttl.seconds": "60", "timezone": "Europe/Berlin"},
    "consistency_level": "Bounded",
}


def made_by(store, engine):
    """The collection that a store makes, as Milvus describes it."""
    settings = store._settings()
    description = {
        **new_schema(settings, engine).to_dict(),
        "collection_name": "notes",
        "num_partitions": settings.num_partitions,
    }
    if engine is SERVER:
        isolated = {"partitionkey.isolation": str(settings.partition_key_isolation)}
        description |= {
            "num_shards": settings.num_shards,
            "properties": {**settings.properties, **isolated, "collection.replica.number": "1"},
            "consistency_level_name": settings.consistency_level,
        }
    indexes = []
    for one in new_index_params(settings, engine):
        config = dict(one._configs)
        config |= config.pop("params", {})
        described = {"field_name": one.field_name, "index_type": one.index_type, **config}
        indexes.append({key: str(value) for key, value in described.items()})
    return Found(
        description,
        {one["field_name"]: one for one in indexes if "json_path" not in one},
        [one for one in indexes if "json_path" in one],
    )


def store_like(found, *, on_server):
    arguments = {**NAMES, **arguments_of(found, NAMES)}
    arguments |= new_arguments(found, arguments, on_server=on_server)
    return MilvusVectorStore(**arguments)


@pytest.mark.parametrize(
    ("arguments", "kind"),
    [
        ({**COMMON, **ON_A_SERVER}, SERVER),
        ({**COMMON, **ON_A_SERVER, "index_doc_id": True, "partition_key_isolation": False}, SERVER),
        (COMMON, LITE),
    ],
)
def test_a_store_is_told_from_its_collection(arguments, kind):
    found = made_by(MilvusVectorStore(**arguments), kind)
    assert made_by(store_like(found, on_server=kind is SERVER), kind) == found


@pytest.mark.parametrize("kind", ["FLOAT16_VECTOR", "BINARY_VECTOR"])
def test_vectors_keep_their_type(kind):
    given = {"dim": 8, "dense_fields": {"image": {"dim": 16, "type": DataType[kind]}}, **NAMES}
    found = made_by(MilvusVectorStore(**given), SERVER)
    assert made_by(store_like(found, on_server=True), SERVER) == found


def test_what_milvus_lite_does_not_have_is_left_out():
    found = made_by(MilvusVectorStore(**{**COMMON, **ON_A_SERVER}), SERVER)
    store = store_like(found, on_server=False)
    assert not made_by(store, LITE).path_indexes
    assert store.scalar_fields["kind"]["index"] is True


def test_an_index_that_no_argument_makes_is_told(caplog):
    paths = [
        {"field_name": "$meta", "json_path": "a", "json_cast_type": "JSON"},
        {"field_name": "$meta", "json_path": "b", "json_cast_type": "BOOL"},
    ]
    found = made_by(MilvusVectorStore(dim=8, **NAMES), SERVER)
    store = store_like(Found(found.description, found.indexes, paths), on_server=True)
    assert store.metadata_indexes == {"b": {"type": DataType.BOOL}}
    assert "the index of 'a' is not made: metadata_indexes has none for values" in caplog.text


def test_collections_of_the_other_package_get_an_index_of_the_document_id():
    found = made_by(MilvusVectorStore(dim=8, index_doc_id=False, **NAMES), SERVER)
    fields = [one for one in found.fields if not one["name"].startswith("_")]
    theirs = Found({**found.description, "fields": fields}, found.indexes)
    assert store_like(theirs, on_server=True).index_doc_id is None
    assert store_like(found, on_server=True).index_doc_id is False


def test_milvus_lite_tells_points_in_time_as_numbers():
    found = made_by(MilvusVectorStore(**COMMON), LITE)
    [since] = [one for one in found.fields if one["name"] == "since"]
    since["default_value"] = 1_767_225_600_000_000
    settings = store_like(found, on_server=False).scalar_fields["since"]
    default = datetime.fromisoformat(settings["default"])
    assert default == datetime(2026, 1, 1, tzinfo=timezone.utc)
