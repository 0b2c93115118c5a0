"""What engines can do, by their versions, and what is said of those that cannot."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
from llama_index.core.vector_stores.types import VectorStoreQuery, VectorStoreQueryMode
from pymilvus import DataType, Function, FunctionType

from llama_index_milvus_async._retrieval.options import SearchOptions, StoreOptions
from llama_index_milvus_async._retrieval.plan import SearchPlanner
from llama_index_milvus_async._retrieval.rerank_functions import read_functions
from llama_index_milvus_async._translation.compatibility import check_engine, check_vector_types
from llama_index_milvus_async._translation.engine import Capability, Engine
from llama_index_milvus_async._translation.layout import Column, Index, Layout
from llama_index_milvus_async._translation.schema import new_index
from llama_index_milvus_async._translation.settings import CollectionSettings, VectorField
from llama_index_milvus_async.errors import ConfigurationError, QueryError
from llama_index_milvus_async.sparse import BM25BuiltInFunction

LITE = Engine.parse("milvus_lite-3.2.2")
LITE2 = Engine.parse("milvus_lite-2")
CAPABILITIES = {
    name: value for name, value in vars(Engine).items() if isinstance(value, Capability)
}


def milvus(*version: int) -> Engine:
    return Engine("Milvus", version)


@pytest.mark.parametrize("name", CAPABILITIES)
def test_a_capability_begins_with_a_version(name: str) -> None:
    capability = CAPABILITIES[name]
    assert getattr(LITE, name) == (capability.lite is not None)
    if not capability.milvus:
        assert getattr(milvus(2, 3, 5), name) == (capability.milvus is not None)
        return
    *major, minor = capability.milvus
    assert getattr(milvus(*capability.milvus), name)
    assert getattr(milvus(*capability.milvus, 7), name)
    assert not getattr(milvus(*major, minor - 1, 99), name)


@pytest.mark.parametrize("name", CAPABILITIES)
def test_an_engine_that_has_what_is_required_is_silent(name: str) -> None:
    capability = CAPABILITIES[name]
    for engine in (LITE, milvus(2, 3, 5), milvus(3, 0)):
        if getattr(engine, name):
            engine.require(capability, "x", QueryError)
        else:
            with pytest.raises(QueryError, match=f"^x: {engine} "):
                engine.require(capability, "x", QueryError)


@pytest.mark.parametrize(
    ("connected", "capability", "message"),
    [
        (
            milvus(2, 3, 5),
            Engine.has_sparse_vectors,
            "it: Milvus 2.3.5 has no sparse vectors; Milvus 2.4 and newer, and Milvus Lite, have "
            "them",
        ),
        (
            LITE,
            Engine.has_int8_vectors,
            "it: Milvus Lite 3.2.2 has no INT8_VECTOR fields; Milvus 2.6 and newer have them",
        ),
        (
            LITE,
            Engine.has_binary_vectors,
            "it: Milvus Lite 3.2.2 has no BINARY_VECTOR fields; Milvus has them",
        ),
    ],
)
def test_the_message_names_who_can(connected: Engine, capability: Any, message: str) -> None:
    with pytest.raises(ConfigurationError) as caught:
        connected.require(capability, "it", ConfigurationError)
    assert str(caught.value) == message


def settings(kind: DataType = DataType.FLOAT_VECTOR, **sparse: Any) -> CollectionSettings:
    """The settings of a store with one dense field and, where it is described, a sparse one."""
    sparse_field = VectorField("s", DataType.SPARSE_FLOAT_VECTOR, None, "BM25", {}, **sparse)
    return CollectionSettings(
        collection_name="c",
        id_field="id",
        doc_id_field="doc_id",
        text_key="text",
        dense=[VectorField("small", kind, 8, "L2", {}, in_dense_fields=True)],
        sparse=sparse_field if sparse else None,
        scalar_fields={},
        create_index=True,
        properties={},
        consistency_level="Session",
    )


def test_servers_without_defaults_are_told_every_parameter_of_an_index() -> None:
    """Before 2.5 they say "efConstruction out of range" of one that is missing."""
    field = VectorField("v", DataType.FLOAT_VECTOR, 8, "L2", {"index_type": "HNSW", "M": 16})
    for engine in (milvus(2, 5), milvus(3), LITE):
        new_index(field, engine)
    with pytest.raises(ConfigurationError) as caught:
        new_index(field, milvus(2, 3, 5))
    assert str(caught.value) == (
        "the index of 'v' is of type HNSW and lacks efConstruction, for which Milvus 2.3.5 has no "
        "default; add to its configuration, for example 'efConstruction': 360"
    )
    new_index(replace(field, index_config={"index_type": "FLAT"}), milvus(2, 3, 5))
    nested = {"index_type": "IVF_PQ", "params": {"nlist": 8, "m": 4}}
    new_index(replace(field, index_config=nested), milvus(2, 3, 5))


@pytest.mark.parametrize(
    ("kind", "first"),
    [
        (DataType.FLOAT16_VECTOR, (2, 4)),
        (DataType.BFLOAT16_VECTOR, (2, 4)),
        (DataType.INT8_VECTOR, (2, 6)),
    ],
    ids=lambda value: getattr(value, "name", str(value)),
)
def test_small_vectors_need_a_version(kind: DataType, first: tuple[int, int]) -> None:
    """Milvus 2.3.5 searches FLOAT16 vectors wrongly, and fails late with the others."""
    check_vector_types(settings(kind), milvus(*first))
    for engine in (milvus(2, 3, 5), milvus(first[0], first[1] - 1), LITE):
        lacks = rf"^field 'small' of type {kind.name}: {engine} has no {kind.name} fields; Milvus "
        with pytest.raises(ConfigurationError, match=lacks + ".".join(map(str, first))):
            check_vector_types(settings(kind), engine)


def test_milvus_lite_2_is_another_engine_than_3() -> None:
    """Its server, which tells no version, has the core of Milvus 2.5."""
    for engine in (LITE2, Engine.parse("milvus_lite-2.5.1"), Engine.parse("milvus_lite-2.4.12")):
        assert engine.is_lite_2
        for name, capability in CAPABILITIES.items():
            assert getattr(engine, name) == capability.lite2
        check_engine(settings(function=BM25BuiltInFunction(analyzer_params={})), engine)
        check_vector_types(settings(DataType.FLOAT16_VECTOR), engine)
    assert not LITE.is_lite_2
    assert str(LITE2) == "Milvus Lite 2"


def test_what_milvus_lite_2_lacks_is_said_before_anything_is_sent() -> None:
    field = VectorField("v", DataType.FLOAT_VECTOR, 8, "L2", {"index_type": "HNSW"})
    with pytest.raises(ConfigurationError) as caught:
        new_index(field, LITE2)
    assert str(caught.value) == (
        "the index of 'v' is of type HNSW: Milvus Lite 2 has only FLAT, IVF_FLAT and AUTOINDEX, "
        "BIN_FLAT for BINARY_VECTOR, and the sparse ones; Milvus, and Milvus Lite 3 and newer, "
        "have it"
    )
    for index_type in ("FLAT", "IVF_FLAT", "AUTOINDEX"):
        new_index(replace(field, index_config={"index_type": index_type}), LITE2)
    new_index(replace(field, type=DataType.BINARY_VECTOR, index_config={}), LITE2)
    new_index(replace(field, type=DataType.SPARSE_FLOAT_VECTOR, index_config={}), LITE2)
    asked = r"the properties \['mmap.enabled'\]: Milvus Lite 2"
    with pytest.raises(ConfigurationError, match=asked):
        check_engine(replace(settings(), properties={"mmap.enabled": True}), LITE2)


def test_several_analyzers_need_a_version() -> None:
    """Milvus Lite takes them, and uses its standard analyzer."""
    several = settings(function=BM25BuiltInFunction(multi_analyzer_params={"by_field": "lang"}))
    check_engine(several, milvus(2, 5, 11))
    for engine in (milvus(2, 5, 10), LITE):
        lacks = f"with multi_analyzer_params: {engine} has one analyzer .*; Milvus 2.5.11 and newer"
        with pytest.raises(ConfigurationError, match=lacks):
            check_engine(several, engine)
    check_engine(settings(function=BM25BuiltInFunction(analyzer_params={})), LITE)


def test_a_function_that_reranks_needs_a_version() -> None:
    """Before 2.6 servers ignore it, and rank by a default of their own."""
    ranker = Function("r", FunctionType.RERANK, [], [], params={"reranker": "rrf"})

    def search(engine: Engine) -> Any:
        layout = Layout(
            collection_name="c",
            columns={
                "id": Column("id", DataType.VARCHAR),
                "text": Column("text", DataType.VARCHAR),
                "dense": Column("dense", DataType.FLOAT_VECTOR, dim=2),
                "sparse": Column("sparse", DataType.SPARSE_FLOAT_VECTOR),
            },
            primary_key="id",
            auto_id=False,
            doc_id_field=None,
            text_key="text",
            dense_fields=("dense",),
            sparse_field="sparse",
            dynamic=True,
            engine=engine,
        )
        query = VectorStoreQuery(
            query_embedding=[1.0, 0.0], query_str="x", mode=VectorStoreQueryMode.HYBRID
        )
        indexes = {"dense": Index("IP", "FLAT"), "sparse": Index("IP", "FLAT")}
        store = StoreOptions("Session", [], {}, "RRFRanker", {})
        options = SearchOptions(milvus_ranker=ranker)
        return SearchPlanner(options, layout, indexes, store).prepare(query, {1: 1.0})

    for engine in (milvus(2, 6), LITE):
        assert search(engine).hybrid.ranker == read_functions(ranker, "milvus_ranker")
    with pytest.raises(QueryError, match=r"ranker: Milvus 2\.5\.4 has no functions that rerank"):
        search(milvus(2, 5, 4))
