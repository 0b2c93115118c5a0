"""Dense queries and MMR: what is found, in which order, with which score, and what is refused."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from llama_index.core.indices.query.embedding_utils import get_top_k_mmr_embeddings
from llama_index.core.postprocessor import SimilarityPostprocessor
from llama_index.core.schema import NodeWithScore
from llama_index.core.vector_stores import SimpleVectorStore
from llama_index.core.vector_stores.types import (
    FilterCondition,
    FilterOperator,
    MetadataFilter,
    MetadataFilters,
    VectorStoreQuery,
    VectorStoreQueryMode,
)
from pymilvus import DataType

from llama_index_milvus_async import (
    CollectionError,
    ConfigurationError,
    FilterOperatorFunction,
    QueryError,
    RequestTimeoutError,
    ScalarMetadataFilter,
    ScalarMetadataFilters,
    ServerError,
)
from tests.fixtures.labels import label
from tests.fixtures.stores import collection_name, make_nodes

N = 60
KINDS = ("essay", "poem", "letter")
ARCHIVED = 20  # the last nodes, in a partition of their own
MMR = VectorStoreQueryMode.MMR
FULL_PRECISION = 1e-5  # Milvus computes in 32 bits


def make_collection():
    """Nodes with metadata of many shapes, and vectors of lengths 1 to 3."""
    nodes = make_nodes(
        N,
        year=lambda i: 1900 + i,
        kind=lambda i: KINDS[i % 3],
        tags=lambda i: ["even", "all"] if i % 2 == 0 else ["all"],
        place=lambda i: {"city": f"city-{i}", "at": [i / 4, None]},
    )
    for i, node in enumerate(nodes):
        node.embedding = (np.float32(node.embedding) * np.float32(1 + i % 3)).tolist()
    return nodes


NODES = make_collection()
BY_ID = {node.node_id: node for node in NODES}
QUERIES = [node.embedding for node in make_nodes(8, seed=1)]


@pytest.fixture(scope="module")
def make_filled_store(make_shared_store):
    """Makes stores that hold `NODES`."""

    def make(**kwargs):
        name = collection_name("query")
        writer = make_shared_store(collection_name=name, **kwargs)
        writer.connect()
        writer.client.create_partition(name, "archive")
        writer.add(NODES[:-ARCHIVED])
        # An index is built of sealed rows only, and HNSW is tested, too.
        writer.add(NODES[-ARCHIVED:], milvus_partition_name="archive", force_flush=True)
        assert len(writer.query(query_for(similarity_top_k=N)).ids) == N
        # What one Strong read has seen every later read sees, without waiting for a time tick.
        return make_shared_store(
            **{"collection_name": name, "consistency_level": "Eventually", **kwargs}
        )

    return make


@pytest.fixture(scope="module")
def store(make_filled_store):
    return make_filled_store(similarity_metric="COSINE")


@pytest.fixture(scope="module")
def on_same_collection(store, make_shared_store):
    """Makes further stores on the collection."""

    def make(**kwargs):
        shared = {
            "collection_name": store.collection_name,
            "similarity_metric": "COSINE",
            "consistency_level": "Eventually",
        }
        return make_shared_store(**{**shared, **kwargs})

    return make


def query_for(**kwargs):
    return VectorStoreQuery(**{"query_embedding": QUERIES[0], "similarity_top_k": 10, **kwargs})


def reference(query):
    """What LlamaIndex' own store answers; it has no `doc_ids`."""
    simple = SimpleVectorStore()
    docs = query.doc_ids
    simple.add([node for node in NODES if docs is None or node.ref_doc_id in docs])
    return simple.query(query)


def assert_same(result, expected):
    assert result.ids == expected.ids
    assert result.similarities == pytest.approx(expected.similarities, abs=FULL_PRECISION)
    assert [node.node_id for node in result.nodes] == result.ids


def filters(*triples, condition="and"):
    return MetadataFilters(
        filters=[MetadataFilter(key=k, operator=o, value=v) for k, o, v in triples],
        condition=condition,
    )


# What is found


@pytest.mark.parametrize("top_k", [1, 2, 10, N - 1, N])
async def test_the_nearest_are_found_best_first(store, coloured, top_k):
    query = query_for(similarity_top_k=top_k)
    assert_same(await coloured(store).query(query), reference(query))


leaves = st.one_of(
    st.builds(
        MetadataFilter,
        key=st.just("year"),
        operator=st.sampled_from(["==", "!=", ">", "<", ">=", "<="]),
        value=st.integers(1895, 1965),
    ),
    st.builds(
        MetadataFilter,
        key=st.just("kind"),
        operator=st.sampled_from(["in", "nin"]),
        value=st.lists(st.sampled_from([*KINDS, "none"]), max_size=3),
    ),
)
groups = st.builds(
    MetadataFilters,
    filters=st.lists(leaves, min_size=1, max_size=3),
    condition=st.sampled_from(list(FilterCondition)),
)


@given(
    vector=st.sampled_from(QUERIES),
    top_k=st.integers(1, N + 20),
    filters=st.none() | groups,
    node_ids=st.none() | st.lists(st.sampled_from([*BY_ID, "unknown"]), min_size=1, max_size=40),
    doc_ids=st.none() | st.lists(st.sampled_from([f"doc-{i}" for i in range(18)]), max_size=9),
)
@settings(
    max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
async def test_any_query_is_answered_as_by_llama_index(
    store, coloured, vector, top_k, filters, node_ids, doc_ids
):
    query = VectorStoreQuery(
        query_embedding=vector,
        similarity_top_k=top_k,
        filters=filters,
        node_ids=node_ids,
        doc_ids=doc_ids,
    )
    assert_same(await coloured(store).query(query), reference(query))


async def test_filters_and_both_kinds_of_ids_all_restrict(store, coloured):
    query = query_for(
        filters=filters(("kind", FilterOperator.EQ, "poem")),
        node_ids=[f"node-{i}" for i in range(4, 12)],
        doc_ids=["doc-1", "doc-5"],
    )
    result = await coloured(store).query(query)
    assert sorted(result.ids) == ["node-4", "node-7"]


async def test_an_empty_list_of_documents_matches_nothing(store, coloured):
    result = await coloured(store).query(query_for(doc_ids=[]))
    assert (result.nodes, result.similarities, result.ids) == ([], [], [])


async def test_an_empty_list_of_nodes_restricts_nothing(store, coloured):
    # VectorStoreIndex.as_retriever() passes it, for every store that keeps the nodes itself.
    assert_same(await coloured(store).query(query_for(node_ids=[])), reference(query_for()))


async def test_ids_that_are_not_there_match_nothing(store, coloured):
    assert (await coloured(store).query(query_for(node_ids=["no", "node-999"]))).ids == []
    assert (await coloured(store).query(query_for(doc_ids=["doc-99"]))).ids == []


async def test_a_node_comes_back_as_it_was_stored_without_its_embedding(store, coloured):
    result = await coloured(store).query(query_for(similarity_top_k=N))
    expected = [BY_ID[i].model_copy(update={"embedding": None}) for i in result.ids]
    assert len(expected) == N
    assert result.nodes == expected


async def test_an_array_is_taken_as_query(store, coloured):
    result = await coloured(store).query(query_for(query_embedding=np.array(QUERIES[0])))
    assert_same(result, reference(query_for()))


async def test_a_top_k_past_the_collection_returns_what_there_is(store, coloured):
    result = await coloured(store).query(query_for(similarity_top_k=16_384))
    assert_same(result, reference(query_for(similarity_top_k=N)))


# Fields


async def test_the_embedding_comes_exactly_as_stored_where_the_query_names_it(store, coloured):
    result = await coloured(store).query(query_for(output_fields=["embedding"]))
    assert [node.embedding for node in result.nodes] == [BY_ID[i].embedding for i in result.ids]
    assert len(result.ids) == 10


async def test_the_embedding_comes_where_the_store_names_it(on_same_collection, coloured):
    store = coloured(on_same_collection(output_fields=["embedding"]))
    result = await store.query(query_for())
    assert result.nodes == [BY_ID[i] for i in result.ids]
    assert len(result.ids) == 10


@pytest.mark.parametrize("fields", [[], ["year"]])
async def test_the_query_s_output_fields_replace_the_store_s(on_same_collection, coloured, fields):
    store = coloured(on_same_collection(output_fields=["embedding"]))
    result = await store.query(query_for(output_fields=fields))
    assert [node.embedding for node in result.nodes] == [None] * 10


@pytest.mark.parametrize("fields", [["year"], ["kind", "embedding"], ["text"], ["id"]])
async def test_id_text_and_metadata_come_whatever_the_output_fields(store, coloured, fields):
    result = await coloured(store).query(query_for(output_fields=fields))
    for node, node_id in zip(result.nodes, result.ids, strict=True):
        assert node.node_id == node_id
        assert node.text == BY_ID[node_id].text
        assert node.metadata == BY_ID[node_id].metadata


async def test_a_query_leaves_the_caller_s_lists_as_they_were(store, coloured):
    query = query_for(output_fields=["year"], node_ids=["node-1"], doc_ids=["doc-0"])
    await coloured(store).query(query)
    assert query == query_for(output_fields=["year"], node_ids=["node-1"], doc_ids=["doc-0"])


# Restrictions that only Milvus knows


async def test_an_expression_and_filters_and_scalar_filters_all_restrict(store, coloured):
    result = await coloured(store).query(
        query_for(similarity_top_k=N, filters=filters(("year", FilterOperator.GTE, 1910))),
        string_expr="year < 1915 or year == 1918 or year == 1900",
        milvus_scalar_filters=ScalarMetadataFilters(
            filters=[ScalarMetadataFilter(key="tags", value="even")]
        ),
    )
    # Without parentheses "and" would bind more tightly than "or", and 1900 would pass.
    assert sorted(node.metadata["year"] for node in result.nodes) == [1910, 1912, 1914, 1918]


async def test_an_expression_restricts_alone(store, coloured):
    result = await coloured(store).query(query_for(), string_expr='kind == "poem"')
    assert_same(result, reference(query_for(filters=filters(("kind", "==", "poem")))))


@pytest.mark.parametrize(
    ("operator", "value", "expected"),
    [
        (FilterOperatorFunction.ARRAY_CONTAINS, "even", 30),
        (FilterOperatorFunction.NARRAY_CONTAINS, "even", 30),
        (FilterOperatorFunction.ARRAY_CONTAINS_ALL, ["all", "even"], 30),
        (FilterOperatorFunction.ARRAY_CONTAINS_ANY, ["all", "even"], 60),
        (FilterOperatorFunction.ARRAY_LENGTH, 1, 30),
    ],
)
async def test_scalar_filters_restrict_as_objects_and_as_dictionaries(
    store, coloured, operator, value, expected
):
    scalar = ScalarMetadataFilters(
        filters=[ScalarMetadataFilter(key="tags", value=value, operator=operator)]
    )
    for form in (scalar, scalar.to_dict()):
        result = await coloured(store).query(
            query_for(similarity_top_k=N), milvus_scalar_filters=form
        )
        assert len(result.ids) == expected


@pytest.mark.parametrize(
    ("names", "expected"),
    [
        ("archive", NODES[-ARCHIVED:]),
        (["archive"], NODES[-ARCHIVED:]),
        ("_default", NODES[:-ARCHIVED]),
        (["_default", "archive"], NODES),
        (None, NODES),
    ],
)
async def test_only_the_named_partitions_are_searched(store, coloured, names, expected):
    result = await coloured(store).query(
        query_for(similarity_top_k=N), milvus_partition_names=names
    )
    assert set(result.ids) == {node.node_id for node in expected}


# Scores


@pytest.fixture(scope="module", params=["COSINE", "IP", "L2"])
def metric_store(request, make_filled_store):
    if request.param == "COSINE":
        return request.getfixturevalue("store")
    return make_filled_store(similarity_metric=request.param)


def expected_similarities(metric, vector):
    """Id to similarity of every node, best first."""
    vector, matrix = np.array(vector), np.array([node.embedding for node in NODES])
    similarities = {
        "COSINE": matrix @ vector / np.linalg.norm(matrix, axis=1) / np.linalg.norm(vector),
        "IP": matrix @ vector,
        "L2": 1 / (1 + ((matrix - vector) ** 2).sum(axis=1)),
    }[metric]
    best_first = np.argsort(-similarities)
    return {NODES[i].node_id: float(similarities[i]) for i in best_first}


@pytest.mark.parametrize("mode", ["all", "filtered"])
async def test_similarity_rises_with_relevance_in_every_metric(metric_store, coloured, mode):
    expected = expected_similarities(metric_store.similarity_metric, QUERIES[1])
    restriction = None
    if mode == "filtered":
        restriction = filters(("kind", FilterOperator.EQ, "essay"))
        expected = {i: s for i, s in expected.items() if BY_ID[i].metadata["kind"] == "essay"}
    result = await coloured(metric_store).query(
        query_for(query_embedding=QUERIES[1], similarity_top_k=N, filters=restriction)
    )
    assert result.ids == list(expected)
    assert result.similarities == pytest.approx(list(expected.values()), abs=FULL_PRECISION)
    assert result.similarities == sorted(result.similarities, reverse=True)


async def test_a_similarity_cutoff_cuts_right_in_every_metric(metric_store, coloured):
    expected = list(expected_similarities(metric_store.similarity_metric, QUERIES[2]).items())
    cutoff = (expected[6][1] + expected[7][1]) / 2
    result = await coloured(metric_store).query(
        query_for(query_embedding=QUERIES[2], similarity_top_k=N)
    )
    scored = [
        NodeWithScore(node=node, score=similarity)
        for node, similarity in zip(result.nodes, result.similarities, strict=True)
    ]
    kept = SimilarityPostprocessor(similarity_cutoff=cutoff).postprocess_nodes(scored)
    assert [each.node.node_id for each in kept] == [node_id for node_id, _ in expected[:7]]


@pytest.mark.parametrize("metric_store", ["L2"], indirect=True)
async def test_for_l2_the_node_itself_has_similarity_one_and_no_other(metric_store, coloured):
    result = await coloured(metric_store).query(query_for(query_embedding=NODES[5].embedding))
    assert (result.ids[0], result.similarities[0]) == ("node-5", 1.0)
    assert all(0 < similarity < 1 for similarity in result.similarities[1:])


# Search parameters

# A range search shows that the parameters arrive: hits at or below the radius are left out.
RADIUS = 0.3


@pytest.mark.parametrize(
    "config",
    [
        {"radius": RADIUS},
        {"params": {"radius": RADIUS}},
        {"metric_type": "COSINE", "params": {"radius": RADIUS}},
        {"metric_type": "COSINE", "radius": RADIUS},
    ],
)
@pytest.mark.parametrize("given_to", ["call", "store"])
async def test_search_parameters_apply_flat_and_nested(
    store, on_same_collection, coloured, config, given_to
):
    everything = reference(query_for(similarity_top_k=N)).similarities
    expected = [similarity for similarity in everything if similarity > RADIUS]
    kwargs = {"milvus_search_config": config} if given_to == "call" else {}
    searched = store if given_to == "call" else on_same_collection(search_config=config)
    result = await coloured(searched).query(query_for(similarity_top_k=N), **kwargs)
    assert result.similarities == pytest.approx(expected, abs=FULL_PRECISION)
    assert 0 < len(expected) < N


async def test_the_call_s_search_parameters_replace_the_store_s(on_same_collection, coloured):
    store = coloured(on_same_collection(search_config={"radius": 0.99}))
    assert (await store.query(query_for())).ids == []
    assert len((await store.query(query_for(), milvus_search_config={})).ids) == 10


@pytest.fixture(scope="module")
def hnsw_store(make_filled_store):
    store = make_filled_store(
        similarity_metric="COSINE",
        index_config={"index_type": "HNSW", "M": 16, "efConstruction": 200},
        search_config={"ef": 4},
    )
    build_index(store)
    return store


def build_index(store):
    """Waits for the index, which is built in the background: until then rows are compared."""
    store.client.release_collection(store.collection_name)
    store.client.load_collection(store.collection_name)


@pytest.mark.parametrize(
    "kwargs",
    [
        {},
        {"milvus_search_config": {"ef": 8}},
        {"milvus_search_config": {"params": {"ef": 8}}},
        {"milvus_search_config": {"metric_type": "COSINE", "params": {"ef": 8}}},
        {"milvus_search_config": {"ef": 200}},
        {"milvus_search_config": {}},
    ],
    ids=label,
)
@pytest.mark.parametrize("top_k", [1, 40, N + 100])
async def test_an_hnsw_index_finds_top_k_also_beyond_ef(hnsw_store, coloured, top_k, kwargs):
    query = query_for(similarity_top_k=top_k)
    assert_same(await coloured(hnsw_store).query(query, **kwargs), reference(query))


@pytest.mark.parametrize("top_k", [1, 5, 20])
async def test_an_hnsw_index_finds_top_k_of_what_passes_a_filter(hnsw_store, coloured, top_k):
    query = query_for(similarity_top_k=top_k, filters=filters(("kind", "==", "poem")))
    result = await coloured(hnsw_store).query(query, milvus_search_config={})
    assert_same(result, reference(query))


@pytest.fixture(scope="module")
def tenants(make_shared_store):
    store = make_shared_store(
        similarity_metric="COSINE",
        index_config={"index_type": "HNSW", "M": 16, "efConstruction": 64},
        batch_size=2_000,
    )
    store.add(make_nodes(2_000, tenant=lambda i: i % 100), force_flush=True)
    build_index(store)
    return store


async def test_an_hnsw_index_finds_the_few_among_many_that_pass_a_filter(tenants, coloured):
    # The search of the index looks at some rows only, and nearly all of them are refused.
    query = query_for(similarity_top_k=20, filters=filters(("tenant", "==", 7)))
    found = (await coloured(tenants).query(query)).ids
    assert sorted(found) == sorted(f"node-{i}" for i in range(7, 2_000, 100))


@pytest.mark.engines("lite")
@pytest.mark.parametrize("index_type", ["AUTOINDEX", "IVF_FLAT", "IVF_SQ8", "HNSW_SQ"])
async def test_every_approximate_index_of_lite_finds_the_few(make_store, coloured, index_type):
    # `AUTOINDEX` is an HNSW there.
    store = make_store(
        similarity_metric="COSINE", index_config={"index_type": index_type}, batch_size=2_000
    )
    store.add(make_nodes(2_000, tenant=lambda i: i % 100), force_flush=True)
    build_index(store)
    query = query_for(similarity_top_k=20, filters=filters(("tenant", "==", 7)))
    expected = sorted(f"node-{i}" for i in range(7, 2_000, 100))
    assert sorted((await coloured(store).query(query)).ids) == expected
    query = query_for(similarity_top_k=500)
    assert len((await coloured(store).query(query)).ids) == 500


# Consistency and time


async def test_a_query_with_a_level_of_its_own_sees_at_once_what_others_wrote(
    make_store, raw, coloured
):
    store = coloured(make_store(consistency_level="Eventually"))
    await store.connect()
    node = make_nodes(1)[0]
    row = {
        "id": node.node_id,
        "doc_id": "doc-0",
        "text": node.text,
        "_node_content": node.model_dump_json(exclude={"embedding", "text"}),
        "_node_type": node.class_name(),
        "embedding": node.embedding,
    }
    raw.insert(store.store.collection_name, [row])
    result = await store.query(query_for(), consistency_level="Strong")
    assert result.ids == ["node-0"]


async def test_a_query_gives_up_after_a_timeout_of_its_own(faulty, make_store, coloured):
    store = make_store(uri=faulty.proxy.uri)
    store.add(NODES)
    await coloured(store).query(query_for())  # it has a connection, in its colour
    faulty.proxy.delay(to_client=1.0)
    with pytest.raises(RequestTimeoutError, match="in time"):
        await coloured(store).query(query_for(), timeout=0.05)
    faulty.proxy.heal()
    assert len((await coloured(store).query(query_for(), timeout=30)).ids) == 10


# MMR


def core_mmr(vector, top_k, threshold, candidates=NODES):
    return get_top_k_mmr_embeddings(
        vector,
        [node.embedding for node in candidates],
        similarity_top_k=top_k,
        embedding_ids=[node.node_id for node in candidates],
        mmr_threshold=threshold,
    )


@pytest.mark.parametrize("threshold", [None, 0.0, 0.3, 1.0])
@pytest.mark.parametrize("given_by", ["query", "keyword"])
async def test_mmr_on_all_candidates_chooses_as_llama_index_does(
    metric_store, coloured, threshold, given_by
):
    by_query = threshold if given_by == "query" else None
    kwargs = {"mmr_threshold": threshold} if given_by == "keyword" else {}
    result = await coloured(metric_store).query(
        query_for(mode=MMR, mmr_threshold=by_query), mmr_prefetch_k=N, **kwargs
    )
    if threshold == 0.0:
        # Every candidate scores zero at first, so that the first of them is chosen: the nearest.
        ranked = expected_similarities(metric_store.similarity_metric, QUERIES[0])
        candidates = [BY_ID[node_id] for node_id in ranked]
        scores, ids = core_mmr(QUERIES[0], 10, threshold, candidates)
    else:
        scores, ids = core_mmr(QUERIES[0], 10, threshold)
    assert result.ids == ids
    assert result.similarities == pytest.approx(scores, abs=FULL_PRECISION)
    assert [node.node_id for node in result.nodes] == ids


async def test_the_keyword_s_threshold_goes_before_the_query_s(store, coloured):
    result = await coloured(store).query(
        query_for(mode=MMR, mmr_threshold=0.1), mmr_threshold=1.0, mmr_prefetch_k=N
    )
    assert result.ids == reference(query_for()).ids


async def test_mmr_returns_stored_nodes_and_no_embedding_unless_named(store, coloured):
    plain = await coloured(store).query(query_for(mode=MMR))
    assert plain.nodes == [BY_ID[i].model_copy(update={"embedding": None}) for i in plain.ids]
    named = await coloured(store).query(query_for(mode=MMR, output_fields=["embedding"]))
    assert named.nodes == [BY_ID[i] for i in named.ids]
    assert len(named.ids) == 10


@pytest.mark.parametrize(
    ("kwargs", "candidates"),
    [
        ({"mmr_prefetch_factor": 1}, 10),
        ({"mmr_prefetch_factor": 2.5}, 25),
        ({"mmr_prefetch_factor": np.float64(2.5)}, 25),
        ({}, 40),
        ({"mmr_prefetch_k": 10}, 10),
        ({"mmr_prefetch_k": 33}, 33),
        ({"mmr_prefetch_k": 3}, 10),  # fewer than top k cannot be meant
    ],
)
async def test_mmr_chooses_among_as_many_candidates_as_asked(store, coloured, kwargs, candidates):
    result = await coloured(store).query(query_for(mode=MMR, mmr_threshold=0.2), **kwargs)
    nearest = [BY_ID[i] for i in reference(query_for(similarity_top_k=candidates)).ids]
    assert result.ids == core_mmr(QUERIES[0], 10, 0.2, nearest)[1]


async def test_mmr_chooses_among_what_passes_the_filters(store, coloured):
    poems = [node for node in NODES if node.metadata["kind"] == "poem"]
    result = await coloured(store).query(
        query_for(mode=MMR, filters=filters(("kind", FilterOperator.EQ, "poem"))),
        mmr_prefetch_k=N,
    )
    assert result.ids == core_mmr(QUERIES[0], 10, None, poems)[1]


async def test_mmr_of_nothing_and_of_less_than_top_k(store, coloured):
    nothing = await coloured(store).query(query_for(mode=MMR, node_ids=["unknown"]))
    assert (nothing.nodes, nothing.similarities, nothing.ids) == ([], [], [])
    two = await coloured(store).query(query_for(mode=MMR, node_ids=["node-1", "node-2"]))
    assert sorted(two.ids) == ["node-1", "node-2"]


@pytest.mark.parametrize(
    ("kwargs", "message"),
    [
        ({"mmr_prefetch_factor": 4, "mmr_prefetch_k": 20}, "exclude each other"),
        ({"mmr_prefetch_factor": 0.9}, "mmr_prefetch_factor is 0.9"),
        ({"mmr_prefetch_factor": "4"}, "mmr_prefetch_factor is '4'"),
        ({"mmr_prefetch_factor": float("nan")}, "mmr_prefetch_factor is nan"),
        ({"mmr_prefetch_factor": float("inf")}, "mmr_prefetch_factor is inf"),
        ({"mmr_prefetch_k": 0}, "mmr_prefetch_k is 0"),
        ({"mmr_prefetch_k": 16_385}, "mmr_prefetch_k is 16385"),
        ({"mmr_prefetch_k": 20.0}, "mmr_prefetch_k is 20.0"),
        ({"mmr_threshold": -0.1}, "mmr_threshold is -0.1"),
        ({"mmr_threshold": 1.1}, "mmr_threshold is 1.1"),
        ({"mmr_threshold": float("nan")}, "mmr_threshold is nan"),
        ({"mmr_threshold": "0.5"}, "mmr_threshold is '0.5'"),
    ],
)
async def test_a_bad_argument_of_mmr_is_refused_and_named(store, coloured, kwargs, message):
    with pytest.raises(QueryError, match=message):
        await coloured(store).query(query_for(mode=MMR), **kwargs)


async def test_a_bad_threshold_of_the_query_is_refused(store, coloured):
    with pytest.raises(QueryError, match=r"mmr_threshold is 1\.5"):
        await coloured(store).query(query_for(mode=MMR, mmr_threshold=1.5))


# Several vector fields

SMALL = 4


@pytest.fixture(scope="module")
def two_vectors(engine, raw, make_shared_store):
    """A store on a collection with a second vector field, of another dimension and metric."""
    if not engine.is_lite:
        pytest.skip("Milvus before 2.4 has one vector field in a collection")
    name = collection_name("two_vectors")
    schema = raw.create_schema(enable_dynamic_field=True)
    schema.add_field("id", DataType.VARCHAR, is_primary=True, max_length=64)
    schema.add_field("text", DataType.VARCHAR, max_length=256)
    schema.add_field("embedding", DataType.FLOAT_VECTOR, dim=8)
    schema.add_field("small", DataType.FLOAT_VECTOR, dim=SMALL)
    indexes = raw.prepare_index_params()
    indexes.add_index("embedding", index_type="FLAT", metric_type="COSINE")
    indexes.add_index("small", index_type="HNSW", metric_type="L2", M=8, efConstruction=64)
    raw.create_collection(name, schema=schema, index_params=indexes)
    raw.insert(
        name,
        [
            {
                "id": node.node_id,
                "text": node.text,
                "embedding": node.embedding,
                "small": node.embedding[:SMALL],
            }
            for node in NODES
        ],
    )
    return make_shared_store(collection_name=name, similarity_metric="COSINE")


def expected_small(vector):
    distances = {
        node.node_id: float(((np.array(node.embedding[:SMALL]) - vector) ** 2).sum())
        for node in NODES
    }
    ids = sorted(distances, key=distances.__getitem__)
    return ids, [1 / (1 + distances[node_id]) for node_id in ids]


async def test_the_query_names_another_embedding_field(two_vectors, coloured):
    vector = QUERIES[3][:SMALL]
    ids, similarities = expected_small(vector)
    result = await coloured(two_vectors).query(
        query_for(query_embedding=vector, embedding_field="small", similarity_top_k=N)
    )
    assert result.ids == ids
    assert result.similarities == pytest.approx(similarities, abs=FULL_PRECISION)


async def test_the_embedding_that_comes_is_that_of_the_field_searched(two_vectors, coloured):
    result = await coloured(two_vectors).query(
        query_for(
            query_embedding=QUERIES[3][:SMALL], embedding_field="small", output_fields=["small"]
        )
    )
    assert [n.embedding for n in result.nodes] == [BY_ID[i].embedding[:SMALL] for i in result.ids]
    assert len(result.ids) == 10


async def test_mmr_on_another_embedding_field(two_vectors, coloured):
    vector = QUERIES[3][:SMALL]
    result = await coloured(two_vectors).query(
        query_for(query_embedding=vector, embedding_field="small", mode=MMR), mmr_prefetch_k=N
    )
    scores, ids = get_top_k_mmr_embeddings(
        vector,
        [node.embedding[:SMALL] for node in NODES],
        similarity_top_k=10,
        embedding_ids=[node.node_id for node in NODES],
    )
    assert result.ids == ids
    assert result.similarities == pytest.approx(scores, abs=FULL_PRECISION)
    assert [node.embedding for node in result.nodes] == [None] * 10


async def test_a_query_of_the_other_field_s_dimension_is_refused(two_vectors, coloured):
    with pytest.raises(QueryError, match=r"has 8 dimensions, the collection 4 \(field 'small'\)"):
        await coloured(two_vectors).query(query_for(embedding_field="small"))


# Bad input


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


async def test_an_unknown_keyword_is_refused_with_those_known(store, coloured):
    with pytest.raises(ConfigurationError, match=r"\['milvus_partition'\].*milvus_partition_names"):
        await coloured(store).query(query_for(), milvus_partition="archive")


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


@pytest.mark.parametrize(
    ("given", "options", "message"),
    [
        ({"query_str": 5}, {}, "query_str is 5; it must be a text"),
        ({"embedding_field": ["x"]}, {}, r"embedding_field is \['x'\]; it must be a text"),
        ({"query_embedding": 5}, {}, "query_embedding is 5; it must be a list of numbers"),
        ({"node_ids": 5}, {}, "node_ids is 5; it must be a list of ids"),
        ({"doc_ids": "doc-1"}, {}, "doc_ids is 'doc-1'; it must be a list of ids"),
        ({"output_fields": "embedding"}, {}, "output_fields is 'embedding'; it must be a list"),
        ({"output_fields": [5]}, {}, r"output_fields is \[5\]"),
        ({}, {"string_expr": 5}, "string_expr is 5; it must be a text"),
        ({}, {"milvus_partition_names": 5}, "milvus_partition_names is 5; name partitions"),
        ({}, {"milvus_partition_names": [5]}, r"milvus_partition_names is \[5\]"),
        ({}, {"hybrid_fields": 5}, "hybrid_fields is 5; it must be a list of dense vector"),
        ({}, {"hybrid_fields": [["x"]]}, "hybrid_fields is"),
        ({}, {"mmr_prefetch_k": -1}, "mmr_prefetch_k is -1"),
        ({}, {"mmr_threshold": 99}, "mmr_threshold is 99"),
    ],
    ids=label,
)
async def test_what_is_of_another_type_is_refused(store, coloured, given, options, message):
    query = query_for()
    for name, value in given.items():
        setattr(query, name, value)
    with pytest.raises(QueryError, match=message):
        await coloured(store).query(query, **options)


@pytest.mark.parametrize("ranker", ["junk", 12345])
async def test_a_bad_ranker_is_refused_where_there_is_nothing_to_rank(store, coloured, ranker):
    with pytest.raises(ConfigurationError, match="milvus_ranker is"):
        await coloured(store).query(query_for(), milvus_ranker=ranker)
