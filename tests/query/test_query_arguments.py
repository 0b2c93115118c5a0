"""Arguments of a query that are refused, and the errors that name them."""

from __future__ import annotations

import numpy as np
import pytest
from llama_index.core.vector_stores.types import (
    VectorStoreQueryMode,
)

from llama_index_milvus_async import (
    CollectionError,
    ConfigurationError,
    QueryError,
    ServerError,
)
from tests.fixtures.labels import label
from tests.query.corpus import MMR, query_for


@pytest.mark.parametrize("top_k", [0, -1, 16_385, True, 2.0, "10", None])
async def test_a_bad_top_k_is_refused_and_named(store, coloured, top_k):
    with pytest.raises(QueryError, match=f"similarity_top_k is {top_k!r}"):
        await coloured(store).query(query_for(similarity_top_k=top_k))


async def test_a_top_k_of_numpy_is_an_integer_too(store, coloured):
    assert len((await coloured(store).query(query_for(similarity_top_k=np.int64(3)))).ids) == 3


@pytest.mark.parametrize("mode", [VectorStoreQueryMode.DEFAULT, MMR])
@pytest.mark.parametrize("embedding", [None, [], np.array([])], ids=["none", "list", "array"])
async def test_a_missing_embedding_is_refused(store, coloured, mode, embedding):
    with pytest.raises(QueryError, match=f"mode {mode.name} needs query_embedding"):
        await coloured(store).query(
            query_for(query_embedding=embedding, query_str="a question", mode=mode)
        )


@pytest.mark.parametrize(
    ("embedding", "message"),
    [
        ([0.1] * 7, r"has 7 dimensions, the collection 8 \(field 'embedding'\)"),
        ([0.1] * 9, r"has 9 dimensions, the collection 8 \(field 'embedding'\)"),
        ([[0.1] * 8], r"shape \(1, 8\)"),
        ([0.1] * 7 + [float("nan")], "not a finite 32-bit number"),
        ([0.1] * 7 + [float("-inf")], "not a finite 32-bit number"),
        ([0.1] * 7 + [1e39], "not a finite 32-bit number"),
        (np.array([0.1] * 7 + [1e39]), "not a finite 32-bit number"),
        (["a"] * 8, "query_embedding is not a list of numbers"),
        ([0.1] * 7 + [None], "query_embedding"),
        ([[0.1], [0.1, 0.2]], "query_embedding is not a list of numbers"),
        ("embedding", "query_embedding is not a list of numbers"),
    ],
    ids=label,
)
async def test_a_bad_embedding_is_refused_and_described(store, coloured, embedding, message):
    with pytest.raises(QueryError, match=message):
        await coloured(store).query(query_for(query_embedding=embedding))


@pytest.mark.parametrize(
    "mode", ["semantic_hybrid", "svm", "logistic_regression", "linear_regression"]
)
async def test_an_unsupported_mode_is_refused_with_those_supported(store, coloured, mode):
    supported = "is not supported; supported are DEFAULT, SPARSE, TEXT_SEARCH, HYBRID, MMR$"
    with pytest.raises(QueryError, match=supported) as info:
        query = query_for(mode=VectorStoreQueryMode(mode), query_str="a question")
        await coloured(store).query(query)
    assert mode in str(info.value).lower()


@pytest.mark.parametrize("level", ["strongest", "", 1])
async def test_an_unknown_consistency_level_is_refused_with_those_known(store, coloured, level):
    with pytest.raises(ConfigurationError, match=r"consistency_level is .*Strong.*Eventually"):
        await coloured(store).query(query_for(), consistency_level=level)


@pytest.mark.parametrize("timeout", [0, -1, True, "3", float("nan"), float("inf")])
async def test_a_bad_timeout_is_refused(store, coloured, timeout):
    with pytest.raises(ConfigurationError, match=r"timeout is .* seconds above 0"):
        await coloured(store).query(query_for(), timeout=timeout)


@pytest.mark.parametrize("mode", [VectorStoreQueryMode.DEFAULT, MMR])
@pytest.mark.parametrize("field", ["vectors", "text"])
async def test_an_embedding_field_that_is_none_is_refused_with_those_there(
    store, coloured, field, mode
):
    with pytest.raises(CollectionError, match=rf"'{field}' was asked for.*\['embedding'\]"):
        await coloured(store).query(query_for(embedding_field=field, mode=mode))


async def test_a_wrong_expression_surfaces_with_the_server_s_reason(store, coloured):
    with pytest.raises(ServerError, match="search failed"):
        await coloured(store).query(query_for(), string_expr="year >")


@pytest.mark.parametrize("config", [{"ef": "many"}, {"params": {"ef": None}}])
async def test_bad_search_parameters_raise_the_package_s_errors_or_none(
    hnsw_store, coloured, config
):
    # Milvus 2.3 takes a text for its default; a raw ValueError would be of no use to anybody.
    try:
        result = await coloured(hnsw_store).query(query_for(), milvus_search_config=config)
    except (QueryError, ServerError) as error:
        assert "ef" in str(error)
    else:
        assert len(result.ids) == 10


@pytest.mark.parametrize("name", ["milvus_search_config", "sparse_search_config"])
@pytest.mark.parametrize(
    ("config", "message"),
    [
        ("ef=4", "it must be a mapping"),
        ({"params": 7}, "it must be a mapping"),
        ({"offset": 2}, "has an offset; pass it to the query itself"),
    ],
)
async def test_bad_search_parameters_are_refused(store, coloured, name, config, message):
    with pytest.raises(QueryError, match=f"{name} .*{message}"):
        await coloured(store).query(query_for(), **{name: config})


@pytest.mark.parametrize("ranker", ["junk", 12345])
async def test_a_bad_ranker_is_refused_where_there_is_nothing_to_rank(store, coloured, ranker):
    with pytest.raises(ConfigurationError, match="milvus_ranker is"):
        await coloured(store).query(query_for(), milvus_ranker=ranker)


@pytest.mark.parametrize("expression", ["year = 2020", "year ==", "name like", "year in 5"])
async def test_an_expression_that_milvus_cannot_parse_is_explained(shared, coloured, expression):
    message = (
        rf"search failed \(code \d+\): string_expr is {expression!r}, which is not in Milvus' "
        r"language \(https://milvus.io/docs/boolean.md\): equality is ==;"
    )
    with pytest.raises(ServerError, match=message) as error:
        await coloured(shared).query(query_for(), string_expr=expression)
    assert error.value.is_answer
    assert isinstance(error.value.__cause__, ServerError)
