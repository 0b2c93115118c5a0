"""From queries to searches, and from hits to a choice, without Milvus."""

from __future__ import annotations

import re
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
from pymilvus import DataType, Function, FunctionScore, FunctionType, RRFRanker, WeightedRanker

from llama_index_milvus_async._retrieval import plan
from llama_index_milvus_async._retrieval.checks import check_query
from llama_index_milvus_async._retrieval.modes import MODES
from llama_index_milvus_async._retrieval.options import SearchOptions, StoreOptions
from llama_index_milvus_async._retrieval.plan import SearchMemory, SearchPlanner
from llama_index_milvus_async._retrieval.ranking import (
    CallableRanker,
    RelativeScore,
    Rrf,
    Weighted,
)
from llama_index_milvus_async._retrieval.rerank_functions import read_functions
from llama_index_milvus_async._retrieval.results import choose_hits, takes_long
from llama_index_milvus_async._rpc import Hits
from llama_index_milvus_async._translation.engine import Engine
from llama_index_milvus_async._translation.layout import Column, Index, Layout
from llama_index_milvus_async._translation.vectors import packed
from llama_index_milvus_async.errors import FilterError, QueryError, RowError

DEFAULT, SPARSE, TEXT_SEARCH, HYBRID, MMR = (
    VectorStoreQueryMode.DEFAULT,
    VectorStoreQueryMode.SPARSE,
    VectorStoreQueryMode.TEXT_SEARCH,
    VectorStoreQueryMode.HYBRID,
    VectorStoreQueryMode.MMR,
)
STORE = StoreOptions("Session", [], {}, "RRFRanker", {})
MILVUS = Engine("Milvus", (2, 6))
TYPES = [
    DataType.FLOAT_VECTOR,
    DataType.FLOAT16_VECTOR,
    DataType.BFLOAT16_VECTOR,
    DataType.INT8_VECTOR,
    DataType.BINARY_VECTOR,
]


def planner(
    kind: DataType = DataType.FLOAT_VECTOR,
    dim: int = 8,
    store: StoreOptions = STORE,
    engine: Engine = MILVUS,
    **options: Any,
) -> SearchPlanner:
    layout = Layout(
        collection_name="c",
        columns={
            "id": Column("id", DataType.VARCHAR),
            "text": Column("text", DataType.VARCHAR),
            "year": Column("year", DataType.INT64),
            "at": Column("at", DataType.TIMESTAMPTZ),
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
        engine=engine,
    )
    indexes = {"dense": Index("IP", "FLAT"), "sparse": Index("BM25", "FLAT")}
    return SearchPlanner(SearchOptions(**options), layout, indexes, store)


def test_calls_share_requests_that_are_the_same() -> None:
    first = planner()
    memory = first._memory
    requests = []
    for ef in (16, 16, 32):
        config = {"params": {"ef": ef}}
        another = planner(milvus_search_config=config)
        another._memory = memory
        [leg] = another.prepare(query(VectorStoreQueryMode.DEFAULT)).legs
        config["params"]["ef"] = 1  # whoever passed it may change it later
        requests.append(leg.request)
    assert requests[0] is requests[1]
    assert [request.params["params"]["ef"] for request in requests] == [16, 16, 32]


def test_expressions_that_are_remembered_are_those_of_their_filters() -> None:
    memory = SearchMemory()
    only = MetadataFilter(key="flag", value=0)
    values: list[Any] = [1, True, 1.0, "1", 1, [1], "1" * 300, None, 2]
    changes = [{"value": value} for value in values]
    changes += [{"operator": ">"}, {"key": "text", "value": "x", "operator": "=="}]
    groups = [MetadataFilters(filters=[only, only], condition=one) for one in ("and", "or", "not")]
    found, expected = [], []
    for change in changes:
        only.__dict__.update(change)
        for filters in (*groups, MetadataFilters(filters=[groups[1], only])):
            for expressions, memory_of_planner in ((found, memory), (expected, SearchMemory())):
                asking = planner()
                asking._memory = memory_of_planner
                try:
                    prepared = asking.prepare(query(DEFAULT, filters=filters))
                    expressions.append(prepared.legs[0].request.expression)
                except FilterError as error:
                    expressions.append(str(error))
    assert found == expected
    assert len(set(found)) > 20


def test_requests_that_are_remembered_have_a_bound() -> None:
    memory = SearchMemory()
    for number in range(10 * plan.MAX_REMEMBERED):
        assert memory.get(number, lambda number=number: [number]) == [number]
        assert memory.get(number, lambda: []) == [number]
    assert len(memory._made) <= plan.MAX_REMEMBERED


def query(mode: VectorStoreQueryMode, **arguments: Any) -> VectorStoreQuery:
    embedding = [1.0, 0.0, 0.0, 0.0, 0.0, 0.0, 0.0, 0.0]
    return VectorStoreQuery(
        query_embedding=embedding, query_str="x", mode=mode, similarity_top_k=2, **arguments
    )


YEARS = {"reranker": "decay", "function": "exp", "origin": 2000, "scale": 10}


def rerank(*fields: str, **params: Any) -> Function:
    return Function("r", FunctionType.RERANK, list(fields), params=params)


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
    plans = planner(dim=768, mmr_prefetch_k=2_000)
    embedding = [1.0] * 768
    asked = replace(query(MMR), query_embedding=embedding, similarity_top_k=10)
    assert takes_long(plans.prepare(asked), count) is expected
    plain = replace(asked, mode=VectorStoreQueryMode.DEFAULT)
    assert not takes_long(plans.prepare(plain), count)


# What ranks


def first(query: VectorStoreQuery, legs: Any) -> Any:
    return legs[0]


def store(
    query_ranker: Any = None, hybrid_ranker: Any = "RRFRanker", **params: Any
) -> StoreOptions:
    return StoreOptions("Session", [], {}, hybrid_ranker, params, query_ranker)


DECAY = rerank("year", **YEARS)
BOOST = FunctionScore([rerank(reranker="boost", weight=w) for w in (2, 3)])


@pytest.mark.parametrize("ranker", [DECAY, BOOST], ids=["decay", "boost"])
@pytest.mark.parametrize(
    ("mode", "asked"), [(DEFAULT, 8), (SPARSE, 8), (TEXT_SEARCH, 8), (MMR, 32)]
)
def test_functions_are_sent_with_the_one_search_of_a_mode(
    mode: VectorStoreQueryMode, asked: int, ranker: Any
) -> None:
    """It ranks four times the hits that are wanted; for MMR, which wants 8 candidates, of these."""
    functions = read_functions(ranker, "milvus_ranker")
    for search in (
        planner(milvus_ranker=ranker).prepare(query(mode)),
        planner(store=store(ranker)).prepare(query(mode)),
        planner(store=store(first), milvus_ranker=ranker).prepare(query(mode)),
    ):
        [leg] = search.legs
        assert (leg.request.ranker, leg.request.limit) == (functions, asked)
        assert search.hybrid is None
        assert not search.ranks_here
    [leg] = planner(milvus_ranker=ranker, ranker_prefetch_k=50).prepare(query(mode)).legs
    assert leg.request.limit == 50


@pytest.mark.parametrize("mode", [DEFAULT, SPARSE, TEXT_SEARCH, MMR])
def test_a_callable_is_not_sent_and_needs_no_engine(mode: VectorStoreQueryMode) -> None:
    old = Engine("Milvus", (2, 3, 5))
    for plans in (
        planner(engine=old, milvus_ranker=first),
        planner(engine=old, store=store(first)),
        planner(engine=old, store=store(DECAY), milvus_ranker=first),
    ):
        search = plans.prepare(query(mode))
        assert search.ranks_here
        assert search.legs[0].request.ranker is None
        assert "text" in search.legs[0].request.output_fields


@pytest.mark.parametrize("old", [Engine("Milvus", (2, 3, 5)), Engine("Milvus Lite", (2, 5, 1))])
@pytest.mark.parametrize("mode", MODES)
def test_engines_that_would_ignore_a_function_are_named(
    mode: VectorStoreQueryMode, old: Engine
) -> None:
    lacks = (
        f"_ranker: {old} has no functions that rerank; Milvus 2.6 and newer, and Milvus Lite 3 "
        "and newer, have them; a callable ranks on every engine"
    )
    for plans in (
        planner(engine=old, milvus_ranker=DECAY),
        planner(engine=old, store=store(BOOST)),
    ):
        with pytest.raises(QueryError, match=lacks):
            plans.prepare(query(mode))


@pytest.mark.parametrize(
    ("given", "alpha", "expected"),
    [
        (store(), None, Rrf()),
        (store(first), None, CallableRanker(first)),
        (store(first, k=60), None, Rrf()),
        (store(first, RRFRanker(7)), None, Rrf(7)),
        (store(first, "WeightedRanker"), None, Weighted((1.0, 1.0))),
        (store(first), 0.5, RelativeScore((0.5, 0.5))),
    ],
)
def test_what_ranks_a_hybrid_search(given: StoreOptions, alpha: Any, expected: Any) -> None:
    """`query_ranker` does where hybrid searches have no ranker of their own."""
    search = planner(store=given).prepare(query(HYBRID, alpha=alpha))
    if isinstance(expected, CallableRanker):
        assert search.ranks_here
    else:
        assert search.ranker == expected
    search = planner(store=given, milvus_ranker=RRFRanker(3)).prepare(query(HYBRID))
    assert search.ranker == Rrf(3)


@pytest.mark.parametrize("alpha", [0, 1])
def test_one_leg_of_a_hybrid_search_is_ranked_and_not_fused(alpha: int) -> None:
    asked = query(HYBRID, alpha=alpha, hybrid_top_k=1)
    for given, ranker in ((store(first), None), (store(first, k=7), DECAY), (STORE, first)):
        search = planner(store=given, milvus_ranker=ranker).prepare(asked)
        assert search.ranker is not None
        assert [leg.request.limit for leg in search.legs] == [2]  # similarity_top_k, as in any
    for given, ranker in ((store(first, k=7), None), (store(DECAY), RRFRanker()), (STORE, None)):
        search = planner(store=given, milvus_ranker=ranker).prepare(asked)
        assert search.ranker is None
        assert [leg.request.limit for leg in search.legs] == [1]


def test_functions_of_a_hybrid_search_are_not_those_of_its_legs() -> None:
    search = planner(milvus_ranker=DECAY).prepare(query(HYBRID))
    assert search.hybrid is not None
    assert search.hybrid.ranker == read_functions(DECAY, "milvus_ranker")
    assert [leg.ranker for leg in search.hybrid.legs] == [None, None]


def test_what_is_ranked_alike_shares_an_rpc() -> None:
    """By what the functions say, not by which objects they are."""

    def request(ranker: Any) -> Any:
        return planner(milvus_ranker=ranker).prepare(query(DEFAULT)).legs[0].request

    assert request(DECAY) == request(rerank("year", **YEARS))
    model = {"reranker": "model", "provider": "tei"}
    different = [
        *(request(ranker) for ranker in (DECAY, BOOST, first)),
        *(request(rerank("year", **YEARS, offset=offset)) for offset in (1, 1.0)),
        *(request(rerank("text", **model)) for _ in range(2)),
    ]
    assert len({(r.ranker, r) for r in different}) == len(different)
    plans = planner(store=store(rerank("text", **model)))
    assert len({plans.prepare(query(DEFAULT)).legs[0].request for _ in range(3)}) == 3


def test_pages_are_of_one_ranking() -> None:
    request = planner(milvus_ranker=DECAY, offset=3).prepare(query(DEFAULT)).legs[0].request
    assert (request.limit, request.options) == (8, ())
    search = planner(milvus_ranker=DECAY, offset=3).prepare(query(DEFAULT))
    [chosen] = choose_hits(search, [hits_of(None, 8)])
    assert [position for _, position in chosen.hits] == [3, 4]
    with pytest.raises(
        QueryError, match="3 and 2 hits are more than the 4 that are ranked; pass a"
    ):
        planner(milvus_ranker=DECAY, offset=3, ranker_prefetch_k=4).prepare(query(DEFAULT))
    with pytest.raises(QueryError, match=r"7 and 2 hits .* the 8 .* larger ranker_prefetch_k"):
        planner(milvus_ranker=first, offset=7).prepare(query(DEFAULT))


def test_groups_are_ranked_by_milvus_or_not_at_all() -> None:
    search = planner(milvus_ranker=BOOST, group_by_field="year", offset=1).prepare(query(DEFAULT))
    request = search.legs[0].request
    assert (request.limit, dict(request.options)) == (2, {"offset": 1, "group_by_field": "year"})
    assert search.is_paged
    for mode in (DEFAULT, HYBRID):
        with pytest.raises(QueryError, match="group_by_field: Milvus groups where it ranks itself"):
            planner(milvus_ranker=first, group_by_field="year").prepare(query(mode))


@pytest.mark.parametrize(
    ("metric", "ranker", "expected"),
    [
        ("IP", DECAY, [3.0, 1.0]),
        ("L2", DECAY, [3.0, 1.0]),
        ("L2", BOOST, [0.25, 0.5]),
        ("L2", first, [0.25, 0.5]),
        ("BM25", BOOST, [3.0, 1.0]),
    ],
)
def test_a_boost_leaves_what_the_metric_says(metric: str, ranker: Any, expected: Any) -> None:
    """Everything else gives scores, which rise with relevance whatever the metric is."""
    plans = planner(milvus_ranker=ranker)
    plans._indexes = {"dense": Index(metric, "FLAT")}
    hits = Hits(["a", "b"], [3.0, 1.0], Rows(None), range(2))
    [chosen] = choose_hits(plans.prepare(query(DEFAULT)), [hits])
    assert chosen.similarities == expected


@pytest.mark.parametrize(
    ("ranker", "message"),
    [
        (
            rerank("date", **YEARS),
            "reads the column 'date', .* 'c' has none of that name.*'date': Dat",
        ),
        (
            rerank("text", **YEARS),
            "columns of the types .*'DOUBLE'.*, and 'text' is of type VARCHAR",
        ),
        (rerank("at", **YEARS), "'at' is of type TIMESTAMPTZ; name another column, or pass a call"),
        (
            rerank("year", reranker="model", provider="x"),
            "'VARCHAR'.*, and 'year' is of type INT64",
        ),
    ],
)
@pytest.mark.parametrize("mode", [DEFAULT, HYBRID])
def test_columns_that_functions_read(mode: VectorStoreQueryMode, ranker: Any, message: str) -> None:
    with pytest.raises(QueryError, match=message):
        planner(milvus_ranker=ranker).prepare(query(mode))


@pytest.mark.parametrize(
    ("expression", "unseen"),
    [
        (r"""year > 2000 and id in ['dyn', "a \" b"] or not (text like 'x%')""", None),
        ("array_contains(text, 1e5) AND year is not null", None),
        ("year > 2000 && author == 'x'", ["author"]),
        ('$meta["a"] == 1 or exists b["c"]', ["$meta", "b"]),
        ("", None),
    ],
)
def test_milvus_lite_boosts_by_columns_only(expression: str, unseen: list[str] | None) -> None:
    """It takes the others, and boosts nothing."""
    ranker = rerank(reranker="boost", weight=2, filter=expression)
    planner(milvus_ranker=ranker).prepare(query(DEFAULT))
    on_lite = planner(milvus_ranker=ranker, engine=Engine("Milvus Lite", (3, 2, 2)))
    if unseen is None:
        on_lite.prepare(query(DEFAULT))
        return
    message = re.escape(f"milvus_ranker boosts by {unseen}, which no column of the collection has")
    with pytest.raises(QueryError, match=f"{message}: Milvus Lite 3.2.2 sees only columns there"):
        on_lite.prepare(query(DEFAULT))


@pytest.mark.parametrize(
    ("mode", "options", "message"),
    [
        *(
            (mode, {"milvus_ranker": ranker}, f"fuses .* mode {mode.name} makes one: .* nothing to")
            for mode, ranker in zip(
                (DEFAULT, SPARSE, TEXT_SEARCH, MMR),
                (RRFRanker(), WeightedRanker(1, 1), "RRFRanker", rerank(reranker="rrf")),
                strict=True,
            )
        ),
        (HYBRID, {"ranker_prefetch_k": 9}, "ranker_prefetch_k is for searches of one field"),
        (
            DEFAULT,
            {"ranker_prefetch_k": 9, "milvus_ranker": BOOST, "group_by_field": "year"},
            "ranker_prefetch_k has no effect with group_by_field",
        ),
    ],
)
def test_rankers_that_have_nothing_to_do(
    mode: VectorStoreQueryMode, options: dict[str, Any], message: str
) -> None:
    with pytest.raises(QueryError, match=message):
        check_query(query(mode), SearchOptions(**options))


def test_a_number_to_rank_needs_a_ranker() -> None:
    with pytest.raises(QueryError, match="ranker_prefetch_k has no effect without milvus_ranker"):
        planner(ranker_prefetch_k=9).prepare(query(DEFAULT))
    planner(ranker_prefetch_k=9, store=store(first)).prepare(query(DEFAULT))


def test_a_query_without_an_embedding_has_nothing_to_rank() -> None:
    asked = VectorStoreQuery(filters=year(1))
    check_query(asked, SearchOptions())
    with pytest.raises(QueryError, match="milvus_ranker is for hits of a search"):
        check_query(asked, SearchOptions(milvus_ranker=first))
