"""What new collections and indexes may be called and made of, on every engine."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
from llama_index.core.vector_stores.types import VectorStoreQuery
from pymilvus import DataType

from llama_index_milvus_async import ConfigurationError
from llama_index_milvus_async._translation.engine import Engine
from llama_index_milvus_async._translation.index_types import ignored_params
from llama_index_milvus_async._translation.schema import new_schema
from llama_index_milvus_async._translation.settings import (
    CollectionSettings,
    ScalarField,
    VectorField,
)
from tests.fixtures.stores import DIM, make_nodes

ENGINE = Engine.parse("v2.6.0")
SETTINGS = CollectionSettings(
    collection_name="c",
    id_field="id",
    doc_id_field="doc_id",
    text_key="text",
    dense=[VectorField("embedding", DataType.FLOAT_VECTOR, 8, "L2", {})],
    sparse=None,
    scalar_fields={},
    create_index=True,
    properties={},
    consistency_level="Session",
)


@pytest.mark.parametrize(
    ("index_type", "ignored"),
    [
        ("FLAT", ["ef", "nprobe"]),
        ("HNSW", ["nprobe"]),
        ("HNSW_SQ", ["nprobe"]),
        ("IVF_FLAT", ["ef"]),
        ("AUTOINDEX", []),
        ("", []),
        ("OF_A_NEWER_MILVUS", []),
    ],
)
def test_search_parameters_of_other_index_types_are_known(
    index_type: str, ignored: list[str]
) -> None:
    params = {"ef": 64, "nprobe": 8, "radius": 0.5, "anything": 1}
    assert ignored_params(index_type, params) == ignored


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"collection_name": "my docs"}, "collection_name is 'my docs'; .* 'my_docs' is such a"),
        ({"collection_name": "2024"}, "collection_name is '2024'; .* '_2024' is such a name"),
        ({"collection_name": "höhle"}, "collection_name is 'höhle'; .* 'h_hle' is such a name"),
        ({"collection_name": "x" * 256}, "255 characters at most"),
        ({"text_key": "the text"}, "text_key is 'the text'; .* 'the_text' is such a name"),
        (
            {"scalar_fields": {"a-b": ScalarField("a-b", DataType.INT64)}},
            "scalar_field_names is 'a-b'; .* 'a_b' is",
        ),
        ({"doc_id_field": "id"}, "doc_id_field is 'id', which is also id_field; the fields"),
        ({"text_key": "doc_id"}, "text_key is 'doc_id', which is also doc_id_field"),
        ({"text_key": "RowID"}, "text_key is 'RowID', the name of a column that Milvus itself has"),
        (
            {"scalar_fields": {"text": ScalarField("text", DataType.INT64)}},
            "scalar_field_names is 'text', which is also text_key",
        ),
    ],
)
def test_names_that_a_server_refuses_are_refused_for_new_collections(
    changes: dict[str, Any], message: str
) -> None:
    new_schema(replace(SETTINGS, collection_name="_a$1"), ENGINE)
    with pytest.raises(ConfigurationError, match=message):
        new_schema(replace(SETTINGS, **changes), ENGINE)


@pytest.mark.engines("lite")
async def test_a_name_that_a_server_refuses_makes_no_collection(make_store, coloured, raw):
    store = coloured(make_store(collection_name="my docs"))
    with pytest.raises(ConfigurationError, match="'my_docs' is such a name"):
        await store.add(make_nodes(1))
    assert not raw.has_collection("my docs")


@pytest.mark.engines("standalone")
async def test_an_index_that_lacks_parameters_makes_no_collection(make_store, coloured, raw):
    store = make_store(index_config={"index_type": "hnsw", "M": 16})
    with pytest.raises(ConfigurationError, match="lacks efConstruction"):
        await coloured(store).add(make_nodes(1))
    assert not raw.has_collection(store.collection_name)


@pytest.mark.engines("lite")
async def test_a_collection_that_exists_keeps_its_name(make_store, coloured, raw):
    name = "its own name"
    raw.create_collection(name, dimension=DIM, id_type="string", max_length=100)
    arguments = {"collection_name": name, "similarity_metric": "COSINE"}
    store = coloured(make_store(embedding_field="vector", **arguments))
    await store.add(make_nodes(2))
    assert len(await store.get_nodes(["node-0", "node-1"])) == 2


@pytest.mark.engines("lite")
async def test_search_parameters_that_the_index_ignores_are_warned_of_once(
    make_store, coloured, caplog
):
    store = coloured(make_store(search_config={"ef": 64}))
    await store.add(nodes := make_nodes(1))
    query = VectorStoreQuery(query_embedding=nodes[0].embedding, similarity_top_k=1)
    for _ in range(2):
        assert (await store.query(query)).ids == ["node-0"]
    [message] = [each.getMessage() for each in caplog.records if "effect" in each.getMessage()]
    assert message.startswith("search parameters ['ef'] have no effect: the index of 'embedding'")
