"""From queries to searches, and from hits to a choice, without Milvus."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from llama_index.core.vector_stores.types import (
    MetadataFilter,
    MetadataFilters,
    VectorStoreQuery,
    VectorStoreQueryMode,
)
from pymilvus import DataType

from llama_index_milvus_async._retrieval import plan
from llama_index_milvus_async._retrieval.modes import MODES
from llama_index_milvus_async._retrieval.options import SearchOptions, StoreOptions
from llama_index_milvus_async._retrieval.plan import SearchPlanner
from llama_index_milvus_async._retrieval.results import choose_hits, takes_long
from llama_index_milvus_async._rpc import Hits
from llama_index_milvus_async._translation.engine import Engine
from llama_index_milvus_async._translation.layout import Column, Index, Layout
from llama_index_milvus_async._translation.vectors import packed
from llama_index_milvus_async.errors import RowError

MMR = VectorStoreQueryMode.MMR
TYPES = [
    DataType.FLOAT_VECTOR,
    DataType.FLOAT16_VECTOR,
    DataType.BFLOAT16_VECTOR,
    DataType.INT8_VECTOR,
    DataType.BINARY_VECTOR,
]


def planner(kind: DataType = DataType.FLOAT_VECTOR, dim: int = 8, **options: Any) -> SearchPlanner:
    layout = Layout(
        collection_name="c",
        columns={
            "id": Column("id", DataType.VARCHAR),
            "text": Column("text", DataType.VARCHAR),
            "dense": Column("dense", kind, dim=dim),
            "sparse": Column("sparse", DataType.SPARSE_FLOAT_VECTOR, generated=True),
        },
        primary_key="id",
        auto_id=False,
        doc_id_field=None,
        text_key="text",
        dense_fields=("dense",),
        sparse_field="sparse",
        dynamic=True,
        engine=Engine("Milvus", (2, 6)),
    )
    indexes = {"dense": Index("IP", "FLAT"), "sparse": Index("BM25", "FLAT")}
    store = StoreOptions("Session", [], {}, "RRFRanker", {})
    return SearchPlanner(SearchOptions(**options), layout, indexes, store)


def query(mode: VectorStoreQueryMode, **arguments: Any) -> VectorStoreQuery:
    embedding = [1.0, 0.0, 0.0, 0.0, 0.0, 0.0, 0.0, 0.0]
    return VectorStoreQuery(
        query_embedding=embedding, query_str="x", mode=mode, similarity_top_k=2, **arguments
    )


def year(value: Any) -> MetadataFilters:
    return MetadataFilters(filters=[MetadataFilter(key="year", value=value)])


@pytest.mark.parametrize("mode", MODES)
def test_each_mode_searches_what_its_entry_says(mode: VectorStoreQueryMode) -> None:
    search = planner().prepare(query(mode))
    fields = [leg.request.field_name for leg in search.legs]
    assert fields == ["dense"] * MODES[mode].dense + ["sparse"] * MODES[mode].sparse
    kinds = {"dense": DataType.FLOAT_VECTOR, "sparse": DataType.VARCHAR}
    assert [leg.request.data_type for leg in search.legs] == [kinds[field] for field in fields]


def test_an_expression_is_built_once_for_the_filters_of_all(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    built = []
    build = plan._filters.build_expression

    def counted(*arguments: Any, **named: Any) -> str:
        built.append(named["filters"])
        return build(*arguments, **named)

    monkeypatch.setattr(plan._filters, "build_expression", counted)
    plans, filters = planner(), year(1)
    searches = [
        plans.prepare(query(VectorStoreQueryMode.HYBRID, filters=filters)) for _ in range(5)
    ]
    assert built == [filters]
    assert len({search.legs[0].request for search in searches}) == 1


class Rows:
    """Rows that have nothing but vectors."""

    def __init__(self, vectors: Any) -> None:
        self._vectors = vectors

    def __len__(self) -> int:
        return len(self._vectors)

    def row(self, position: int) -> dict[str, Any]:
        return {}

    def vectors(self, name: str, positions: range) -> Any:
        return None if self._vectors is None else self._vectors[np.asarray(positions)]


def hits_of(vectors: Any, count: int) -> Hits:
    return Hits(range(count), [1.0] * count, Rows(vectors), range(count))


@pytest.mark.parametrize("kind", TYPES)
def test_mmr_compares_vectors_of_every_type(kind: DataType) -> None:
    """Of two that are alike it takes the first, and then the one that is different."""
    numbers = [[1, 1, 0, 0, 0, 0, 0, 0], [1, 1, 0, 0, 0, 0, 0, 0], [1, 0, 1, 1, 1, 1, 1, 1]]
    dtype = "<f4" if kind == DataType.FLOAT_VECTOR else np.uint8
    vectors = np.stack([np.frombuffer(packed(one, kind, 8), dtype) for one in numbers])
    search = planner(kind).prepare(query(MMR))
    [chosen] = choose_hits(search, [hits_of(vectors, 3)])
    assert [position for _, position in chosen.hits] == [0, 2]


def test_mmr_over_hits_of_several_searches() -> None:
    search = planner(mmr_over="hybrid").prepare(query(MMR, alpha=0.5))
    eye = np.eye(8, dtype=np.float32)
    legs = [hits_of(eye[[0, 1]], 2), Hits(["x"], [1.0], Rows(eye[[2]]), range(1))]
    [chosen] = choose_hits(search, legs)
    assert len(chosen.hits) == 2
    assert chosen.hits[0] == (legs[0], 0)


def test_mmr_over_rows_without_vectors() -> None:
    search = planner().prepare(query(MMR))
    with pytest.raises(RowError, match="no vector in the field 'dense'"):
        choose_hits(search, [hits_of(None, 3)])


@pytest.mark.parametrize(("count", "expected"), [(40, False), (2_000, True)])
def test_a_choice_from_many_takes_long(count: int, expected: bool) -> None:
    plans = planner(dim=768)
    embedding = [1.0] * 768
    asked = replace(query(MMR), query_embedding=embedding, similarity_top_k=10)
    assert takes_long(plans.prepare(asked), [hits_of(None, count)]) is expected
    plain = replace(asked, mode=VectorStoreQueryMode.DEFAULT)
    assert not takes_long(plans.prepare(plain), [hits_of(None, count)])
