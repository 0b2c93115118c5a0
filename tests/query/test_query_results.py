"""Dense queries: which nodes are found, with which fields, restricted by what."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from llama_index.core.indices.query.embedding_utils import get_top_k_mmr_embeddings
from llama_index.core.vector_stores.types import (
    FilterCondition,
    FilterOperator,
    MetadataFilter,
    MetadataFilters,
    VectorStoreQuery,
)
from pymilvus import DataType

from llama_index_milvus_async import (
    FilterOperatorFunction,
    QueryError,
    RequestTimeoutError,
    ScalarMetadataFilter,
    ScalarMetadataFilters,
)
from tests.fixtures.stores import collection_name, make_nodes
from tests.query.corpus import (
    ARCHIVED,
    BY_ID,
    FULL_PRECISION,
    KINDS,
    MMR,
    NODES,
    QUERIES,
    N,
    assert_same,
    filters,
    query_for,
    reference,
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
@settings(max_examples=40, suppress_health_check=[HealthCheck.function_scoped_fixture])
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


# Without an embedding: what an auto-retriever asks where a question is only about metadata


ALL = {"similarity_top_k": N, "query_embedding": None, "query_str": ""}


@pytest.mark.parametrize("embedding", [None, []], ids=repr)
async def test_without_an_embedding_the_nodes_that_match_come_without_similarities(
    store, coloured, embedding
):
    wanted = [node.node_id for node in NODES[3:7]]
    query = query_for(**{**ALL, "query_embedding": embedding, "node_ids": wanted})
    result = await coloured(store).query(query)
    assert result.ids == sorted(wanted)
    assert [node.node_id for node in result.nodes] == result.ids
    assert result.similarities is None
    query.similarity_top_k = 3
    assert (await coloured(store).query(query)).ids == sorted(wanted)[:3]
    assert (await coloured(store).query(query, offset=2)).ids == sorted(wanted)[2:]


async def test_filters_documents_and_expressions_select_as_in_a_search(store, coloured):
    store = coloured(store)
    node = NODES[0]
    poems = MetadataFilters(filters=[MetadataFilter(key="kind", value="poem")])
    matching = sorted(n.node_id for n in NODES if n.metadata["kind"] == "poem")
    assert (await store.query(query_for(**ALL, filters=poems))).ids == matching
    expression = {"string_expr": f'id == "{node.node_id}"'}
    assert (await store.query(query_for(**ALL), **expression)).ids == [node.node_id]
    assert (await store.query(query_for(**ALL, doc_ids=[]))).ids == []
    both = await store.query_many(
        [query_for(**ALL, node_ids=[node.node_id]), query_for(similarity_top_k=1)]
    )
    assert [len(result.ids) for result in both] == [1, 1]
    assert both[0].similarities is None
    assert len(both[1].similarities) == 1


@pytest.mark.parametrize(
    "nothing", [{}, {"filters": MetadataFilters(filters=[])}, {"node_ids": []}], ids=str
)
async def test_without_an_embedding_and_a_restriction_a_query_is_refused(store, coloured, nothing):
    with pytest.raises(QueryError, match="needs query_embedding, and it is missing"):
        await coloured(store).query(query_for(**ALL, **nothing))


@pytest.mark.parametrize("option", [{"score_threshold": 0.5}, {"group_by_field": "id"}], ids=str)
async def test_without_an_embedding_what_needs_similarities_is_refused(store, coloured, option):
    with pytest.raises(QueryError, match="is for hits of a search"):
        await coloured(store).query(query_for(**ALL, node_ids=["a"]), **option)
