"""What a store, a collection and an engine need for sparse, full-text and hybrid queries."""

from __future__ import annotations

import pytest
from pymilvus import DataType

from llama_index_milvus_async import (
    CollectionError,
    ConfigurationError,
    MilvusVectorStore,
    QueryError,
)
from llama_index_milvus_async._translation.engine import Engine
from llama_index_milvus_async.sparse import BM25BuiltInFunction
from tests.fixtures.labels import label
from tests.fixtures.stores import DIM, collection_name, make_nodes
from tests.hybrid.corpus import (
    BY_ID,
    DEFAULT,
    FULL_PRECISION,
    HYBRID,
    MMR,
    NODES,
    SPARSE,
    TEXT,
    TEXT_SEARCH,
    WORDS,
    BagOfWords,
    N,
    assert_best,
    best,
    bm25_scores,
    filters,
    ids_in,
    inner_products,
    lite,
    query_for,
    restricted,
    restrictions,
)

# Engines without sparse vectors, and stores without a half


async def test_dense_alone_is_hybrid_with_alpha_1_on_every_engine(dense, coloured):
    store = coloured(dense.store)
    expected = await store.query(query_for(DEFAULT))
    for kwargs in ({}, {"query_str": None}, {"hybrid_top_k": 10, "similarity_top_k": 20}):
        result = await store.query(query_for(alpha=1.0, **kwargs))
        assert result.ids == expected.ids
        assert result.similarities == pytest.approx(expected.similarities, abs=FULL_PRECISION)
        assert result.nodes == expected.nodes


async def test_mmr_over_hybrid_with_alpha_1_on_every_engine(dense, coloured):
    store = coloured(dense.store)
    expected = await store.query(query_for(MMR))
    result = await store.query(query_for(MMR, alpha=1, query_str=None), mmr_over="hybrid")
    assert result.ids == expected.ids
    assert result.similarities == pytest.approx(expected.similarities, abs=FULL_PRECISION)


@restrictions
async def test_restrictions_of_hybrid_with_alpha_1_on_every_engine(dense, coloured, name):
    query, options, nodes = restricted(name, HYBRID, alpha=1.0)
    result = await coloured(dense.store).query(query, **options)
    metric, distances = dense.dense(query, nodes)
    assert result.ids == best((metric, distances), 10)


async def test_a_store_without_sparse_embeddings_says_so(dense, coloured):
    for mode, alpha in (
        (SPARSE, None),
        (TEXT_SEARCH, None),
        (HYBRID, None),
        (HYBRID, 0.0),
        (HYBRID, 0.25),
        (MMR, None),
    ):
        message = (
            f"mode {mode.name} searches sparse embeddings, and the store has none; "
            "pass enable_sparse=True"
        )
        with pytest.raises(QueryError, match=message):
            await coloured(dense.store).query(query_for(mode, alpha=alpha), mmr_over="hybrid")


@pytest.mark.engines("standalone")
@pytest.mark.parametrize("function", [None, "encoder", "bm25"])
async def test_an_engine_without_sparse_vectors_says_so(
    engine, raw, make_store, coloured, function
):
    if Engine.parse(engine.version).has_sparse_vectors:
        pytest.skip("this server has sparse vectors")
    encoder = BagOfWords() if function == "encoder" else None
    store = make_store(
        enable_sparse=True,
        sparse_embedding_function=BM25BuiltInFunction() if function == "bm25" else encoder,
    )
    for operation in (
        coloured(store).connect,
        lambda: coloured(store).add(NODES[:2]),
        lambda: coloured(store).query(query_for()),
    ):
        with pytest.raises(
            ConfigurationError, match=r"enable_sparse=True: Milvus 2\.3.* has no sparse vectors"
        ):
            await operation()
    assert not raw.has_collection(store.collection_name)
    assert encoder is None or encoder.calls == []


@pytest.mark.engines("standalone")
async def test_an_engine_that_cannot_group_says_so(engine, dense, coloured):
    if Engine.parse(engine.version).has_grouping:
        pytest.skip("this server groups")
    with pytest.raises(QueryError, match=r"group_by_field: Milvus 2\.3.* cannot group"):
        await coloured(dense.store).query(query_for(DEFAULT), group_by_field="kind")


# What the store, the collection and the engine have to be set up for


@pytest.mark.parametrize(
    ("kwargs", "message"),
    [
        ({"enable_sparse": True, "sparse_embedding_function": 3}, "sparse_embedding_function is"),
        ({"sparse_embedding_function": BagOfWords()}, "no effect without enable_sparse=True"),
        ({"enable_dense": False}, "enable_dense=False and enable_sparse=False leave nothing"),
        (
            {
                "enable_sparse": True,
                "sparse_embedding_function": BM25BuiltInFunction("text", "words"),
            },
            r"writes \['words'\], and sparse_embedding_field is 'sparse_embedding'; name the same",
        ),
        (
            {"enable_sparse": True, "sparse_embedding_field": "text"},
            "text",
        ),
        (
            {"enable_sparse": True, "sparse_embedding_field": "embedding"},
            "sparse_embedding_field is 'embedding', which is also embedding_field",
        ),
    ],
    ids=label,
)
def test_arguments_that_do_not_fit_are_refused(kwargs, message):
    with pytest.raises(ConfigurationError, match=message):
        MilvusVectorStore(uri="http://127.0.0.1:1", dim=DIM, **kwargs)


@lite
@pytest.mark.parametrize("column", ["title", "year"])
async def test_bm25_of_what_is_no_text_column_creates_nothing(make_store, raw, coloured, column):
    store = make_store(
        enable_sparse=True,
        sparse_embedding_function=BM25BuiltInFunction(column),
        scalar_field_names=["year"],
        scalar_field_types=[DataType.INT64],
    )
    with pytest.raises(
        ConfigurationError, match=rf"sparse_embedding_function reads \['{column}'\], which are no"
    ):
        await coloured(store).add(NODES)
    assert not raw.has_collection(store.collection_name)


@lite
@pytest.mark.parametrize("function", [None, BagOfWords()], ids=["bm25", "encoder"])
async def test_a_collection_without_a_sparse_field(make_store, raw, coloured, function):
    name = collection_name("without_sparse")
    await coloured(make_store(collection_name=name)).add(NODES[:3])
    before = raw.describe_collection(name)
    store = coloured(
        make_store(collection_name=name, enable_sparse=True, sparse_embedding_function=function)
    )
    message = (
        "sparse vector field 'sparse_embedding': found no such field, asked for enable_sparse=True"
    )
    for operation in (
        store.connect,
        lambda: store.add(NODES[3:6]),
        lambda: store.query(query_for()),
        lambda: store.query(query_for(DEFAULT)),
    ):
        with pytest.raises(CollectionError, match=message):
            await operation()
    assert raw.describe_collection(name) == before
    assert len(raw.query(name, filter='id != ""', output_fields=["id"])) == 3


@lite
async def test_a_sparse_field_of_another_name_is_offered(on_encoded, coloured):
    message = r"'words'.*Pass sparse_embedding_field= one of \['sparse_embedding'\]"
    with pytest.raises(CollectionError, match=message):
        await coloured(on_encoded(sparse_embedding_field="words")).connect()


@lite
async def test_an_encoder_for_a_field_that_milvus_fills(full_text, reopen, coloured):
    encoder = BagOfWords()
    store = reopen(
        collection_name=full_text.store.collection_name,
        similarity_metric="COSINE",
        enable_sparse=True,
        sparse_embedding_function=encoder,
    )
    message = "found a field that a function of Milvus fills.*Leave sparse_embedding_function out"
    for operation in (
        lambda: coloured(store).add(NODES),
        lambda: coloured(store).query(query_for(SPARSE)),
    ):
        with pytest.raises(CollectionError, match=message):
            await operation()
    assert encoder.calls == []


@lite
@pytest.mark.parametrize("function", [None, BM25BuiltInFunction()], ids=["default", "given"])
async def test_bm25_for_a_field_that_an_encoder_fills(on_encoded, coloured, function):
    """Milvus would not be asked for what it cannot compute, nor would a model be guessed."""
    store = coloured(on_encoded(sparse_embedding_function=function))
    message = (
        "found a field that no function of Milvus fills, asked for "
        "sparse_embedding_function=BM25BuiltInFunction.*whose vectors it has"
    )
    for mode in (SPARSE, HYBRID, DEFAULT):
        with pytest.raises(CollectionError, match=message):
            await store.query(query_for(mode))


@lite
async def test_a_dense_store_on_a_hybrid_collection(encoded, full_text, reopen, coloured):
    for setup in (encoded, full_text):
        store = reopen(collection_name=setup.store.collection_name, similarity_metric="COSINE")
        result = await coloured(store).query(query_for(DEFAULT))
        assert result.ids == best(setup.dense(query_for()), 10)
        with pytest.raises(QueryError, match="pass enable_sparse=True"):
            await coloured(store).query(query_for(HYBRID))
        if setup is encoded:
            with pytest.raises(CollectionError, match=r"fields \['sparse_embedding'\] as well"):
                await coloured(store).add(make_nodes(1, prefix="never"))


@lite
async def test_a_second_store_finds_the_full_text_of_the_first(full_text, reopen, coloured):
    store = reopen(
        collection_name=full_text.store.collection_name,
        similarity_metric="COSINE",
        enable_sparse=True,
    )
    result = await coloured(store).query(query_for(TEXT_SEARCH))
    assert_best(result, full_text.sparse(query_for())[1], 10)


@lite
async def test_full_text_of_a_metadata_column(make_store, coloured):
    store = coloured(
        make_store(
            enable_sparse=True,
            sparse_embedding_function=BM25BuiltInFunction("title"),
            scalar_field_names=["title"],
            scalar_field_types=[DataType.VARCHAR],
        )
    )
    nodes = make_nodes(6, title=lambda i: f"{WORDS[i]} {WORDS[i + 1]}")
    for node in nodes:
        node.text = "apple"
    await store.add(nodes)
    result = await store.query(query_for(TEXT_SEARCH, query_str="birch"))
    assert sorted(result.ids) == ["node-0", "node-1"]
    result = await store.query(query_for(HYBRID, query_str="apple", alpha=0))
    assert result.ids == ["node-0"]


@lite
async def test_words_as_a_filter_of_every_leg(make_store, coloured):
    store = coloured(
        make_store(
            enable_sparse=True, sparse_embedding_function=BM25BuiltInFunction(enable_match=True)
        )
    )
    await store.add(NODES)
    with_hazel = {node.node_id for node in NODES if "hazel" in node.text}
    for kwargs in ({}, {"alpha": 0}, {"alpha": 0.5}, {"alpha": 1}):
        query = query_for(similarity_top_k=N, **kwargs)
        result = await store.query(query, string_expr="TEXT_MATCH(text, 'hazel')")
        assert 5 < len(result.ids) <= len(with_hazel)
        assert set(result.ids) <= with_hazel


# Sparse embeddings alone


@pytest.fixture(params=["encoder", "bm25"])
def sparse_only(make_store, request):
    return make_store(
        dim=None,
        enable_dense=False,
        enable_sparse=True,
        sparse_embedding_function=BagOfWords() if request.param == "encoder" else None,
    )


def without_embeddings(nodes):
    return [node.model_copy(update={"embedding": None}) for node in nodes]


@lite
async def test_a_store_of_sparse_embeddings_alone(sparse_only, raw, coloured):
    store, nodes = coloured(sparse_only), without_embeddings(NODES)
    assert await store.add(nodes) == list(BY_ID)
    scores = inner_products(TEXT) if sparse_only._encoder else bm25_scores(TEXT)
    for mode, alpha in ((SPARSE, None), (TEXT_SEARCH, None), (HYBRID, 0)):
        result = await store.query(query_for(mode, alpha=alpha, query_embedding=None))
        assert_best(result, scores, 10)
        assert result.nodes == [BY_ID[i].model_copy(update={"embedding": None}) for i in result.ids]
    assert await store.get_nodes(["node-7", "node-3"]) == [nodes[7], nodes[3]]
    fields = raw.describe_collection(sparse_only.collection_name)["fields"]
    assert not [f for f in fields if f["type"] == DataType.FLOAT_VECTOR]

    await store.delete("doc-0")
    await store.delete_nodes(["node-10"])
    await store.delete_nodes(filters=filters(("year", ">=", 1930)))
    left = {f"node-{i}" for i in range(4, 30) if i != 10}
    assert set(await ids_in(store)) == left
    result = await store.query(query_for(SPARSE, similarity_top_k=N))
    assert set(result.ids) == left & scores.keys()
    await store.clear()
    assert (await store.query(query_for(SPARSE))).ids == []


@lite
async def test_a_store_without_dense_embeddings_says_so(sparse_only, coloured):
    for mode, alpha in ((DEFAULT, None), (HYBRID, None), (HYBRID, 1), (MMR, None)):
        message = (
            f"mode {mode.name} searches dense embeddings, and the store has none; "
            "pass enable_dense=True"
        )
        with pytest.raises(QueryError, match=message):
            await coloured(sparse_only).query(query_for(mode, alpha=alpha))


@lite
async def test_embeddings_that_have_no_field_are_left_out(sparse_only, coloured):
    store = coloured(sparse_only)
    await store.add(NODES[:3])
    [node] = await store.get_nodes(["node-1"])
    assert node == BY_ID["node-1"].model_copy(update={"embedding": None})
