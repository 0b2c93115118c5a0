"""Sparse, full-text and hybrid queries, compared with the same computed here from the same data."""

from __future__ import annotations

import asyncio
import copy
import json
import math
import pickle
import re
import threading
import time
import zlib
from abc import ABC, abstractmethod
from collections import Counter

import numpy as np
import pytest
from llama_index.core.base.embeddings.base_sparse import BaseSparseEmbedding
from llama_index.core.bridge.pydantic import PrivateAttr
from llama_index.core.indices.query.embedding_utils import get_top_k_mmr_embeddings
from llama_index.core.schema import NodeWithScore, TextNode
from llama_index.core.vector_stores.types import (
    MetadataFilter,
    MetadataFilters,
    VectorStoreQuery,
    VectorStoreQueryMode,
)
from pymilvus import DataType, Function, FunctionType, RRFRanker, WeightedRanker
from pymilvus.grpc_gen.milvus_pb2 import SearchRequest

from llama_index_milvus_async import (
    CollectionError,
    ConfigurationError,
    MilvusVectorStore,
    NodeError,
    QueryError,
    ServerError,
)
from llama_index_milvus_async._operations import queries
from llama_index_milvus_async._translation.engine import Engine
from llama_index_milvus_async.errors import EncoderError
from llama_index_milvus_async.sparse import BaseSparseEmbeddingFunction, BM25BuiltInFunction
from tests.fixtures.labels import label
from tests.fixtures.stores import DIM, collection_name, make_nodes, store_factory
from tests.fixtures.waiting import wait_until

DEFAULT, SPARSE, TEXT_SEARCH, HYBRID, MMR = (
    VectorStoreQueryMode.DEFAULT,
    VectorStoreQueryMode.SPARSE,
    VectorStoreQueryMode.TEXT_SEARCH,
    VectorStoreQueryMode.HYBRID,
    VectorStoreQueryMode.MMR,
)
N = 40
KINDS = ("essay", "poem", "letter", "play")
WORDS = ("apple", "birch", "cedar", "daisy", "elder", "fern", "grass", "hazel")
FULL_PRECISION = 1e-5  # Milvus computes in 32 bits
EVERYTHING = MetadataFilters(filters=[])

lite = pytest.mark.engines("lite")


# The corpus, and who encodes it


def make_collection():
    """Nodes of words in all frequencies; no two have the same number of words."""
    nodes = make_nodes(N, year=lambda i: 1900 + i, kind=lambda i: KINDS[i % len(KINDS)])
    generator = np.random.default_rng(7)
    for i, node in enumerate(nodes):
        words = generator.choice(WORDS, size=3 + i % 7)
        node.text = " ".join([*words, *["and"] * (3 + i - i % 7)])
        node.embedding = (np.float32(node.embedding) * np.float32(1 + i % 3)).tolist()
    return nodes


NODES = make_collection()
BY_ID = {node.node_id: node for node in NODES}
QUERIES = [node.embedding for node in make_nodes(8, seed=1)]
TEXT = "cedar fern apple"


def words_of(text):
    return re.findall(r"\w+", text.lower())


def document_weight(word, text):
    """Another one in each document, so that no two documents score alike; exact in 32 bits."""
    return (4096 + zlib.crc32(f"{word} in {text}".encode()) % 4096) / 4096


def encode_document(text):
    return {
        WORDS.index(word): count * document_weight(word, text)
        for word, count in Counter(words_of(text)).items()
        if word in WORDS
    }


def encode_query(text):
    return {WORDS.index(w): 1.0 + WORDS.index(w) / 8 for w in words_of(text) if w in WORDS}


class BagOfWords(BaseSparseEmbeddingFunction):
    """Remembers the texts of each call."""

    def __init__(self):
        self.calls = []

    def encode_queries(self, queries):
        self.calls.append(list(queries))
        return [encode_query(text) for text in queries]

    def encode_documents(self, documents):
        self.calls.append(list(documents))
        return [encode_document(text) for text in documents]


# The same computed here


def dense_scores(metric, vector, nodes=NODES):
    """What Milvus calls the distances: similarities for COSINE and IP, squared for L2."""
    query, vectors = np.array(vector), np.array([node.embedding for node in nodes])
    found = ((vectors - query) ** 2).sum(axis=1) if metric == "L2" else vectors @ query
    if metric == "COSINE":
        found = found / np.linalg.norm(vectors, axis=1) / np.linalg.norm(query)
    return dict(zip([node.node_id for node in nodes], found.tolist(), strict=True))


def inner_products(text, nodes=NODES):
    """Those that have no word of the query are not found."""
    query = encode_query(text)
    found = {}
    for node in nodes:
        document = encode_document(node.text)
        if query.keys() & document.keys():
            found[node.node_id] = sum(query[i] * document.get(i, 0.0) for i in query)
    return found


def bm25_scores(text, nodes=NODES, collection=NODES, k1=1.5, b=0.75):
    """BM25 with the parameters of Milvus Lite; a filter leaves the statistics alone."""
    documents = {node.node_id: words_of(node.text) for node in collection}
    average = sum(map(len, documents.values())) / len(documents)
    found = {}
    for word, count in Counter(words_of(text)).items():
        df = sum(word in document for document in documents.values())
        idf = math.log((len(documents) - df + 0.5) / (df + 0.5) + 1)
        for node in nodes:
            document = documents[node.node_id]
            tf = document.count(word)
            if tf:
                norm = tf + k1 * (1 - b + b * len(document) / average)
                score = count * idf * tf * (k1 + 1) / norm
                found[node.node_id] = found.get(node.node_id, 0.0) + score
    return found


def similar(metric, distance):
    return 1 / (1 + distance) if metric == "L2" else distance


def normal(metric, distance):
    """https://milvus.io/docs/weighted-ranker.md"""
    if metric == "COSINE":
        return (1 + distance) / 2
    if metric == "IP":
        return 0.5 + math.atan(distance) / math.pi
    if metric == "BM25":
        return 2 * math.atan(distance) / math.pi
    return 1 - 2 * math.atan(distance) / math.pi


def unnormal(metric, distance):
    """What Milvus adds up without normalization, where the metrics of the legs differ."""
    return normal(metric, distance) if metric == "L2" else distance


def best(leg, limit):
    """The best of a leg, given as its metric and its distances."""
    metric, distances = leg
    ids = sorted(distances, key=distances.__getitem__, reverse=metric != "L2")
    return ids[:limit]


def rrf(legs, limits, k=60):
    fused = Counter()
    for leg, limit in zip(legs, limits, strict=True):
        for rank, node_id in enumerate(best(leg, limit), 1):
            fused[node_id] += 1 / (k + rank)
    return dict(fused)


def weighted(legs, limits, weights, score=normal):
    fused = Counter()
    for leg, limit, weight in zip(legs, limits, weights, strict=True):
        for node_id in best(leg, limit):
            fused[node_id] += weight * score(leg[0], leg[1][node_id])
    return dict(fused)


def relative(legs, limits, weights):
    """What `alpha` means: of each leg the least of its candidates is 0 and the most 1."""
    fused = Counter()
    for (metric, distances), limit, weight in zip(legs, limits, weights, strict=True):
        found = best((metric, distances), limit)
        scores = {node_id: similar(metric, distances[node_id]) for node_id in found}
        least, most = min(scores.values(), default=0), max(scores.values(), default=0)
        for node_id, score in scores.items():
            fused[node_id] += weight * ((score - least) / (most - least) if most > least else 1)
    return dict(fused)


def assert_best(result, expected, limit, offset=0):
    """The result is the best of `expected`; of equal scores any may come first."""
    scores = sorted(expected.values(), reverse=True)[offset : offset + limit]
    assert result.similarities == pytest.approx(scores, abs=FULL_PRECISION)
    assert [expected[node_id] for node_id in result.ids] == pytest.approx(scores, abs=1e-5)
    assert len(set(result.ids)) == len(result.ids)
    assert [node.node_id for node in result.nodes] == result.ids


def assert_same(result, expected):
    """Two results are the same, up to the order of equal scores."""
    assert result.similarities == pytest.approx(expected.similarities, abs=FULL_PRECISION)
    assert len(result.ids) == len(set(result.ids))
    last = min(result.similarities, default=0.0) + FULL_PRECISION
    for one, other in ((result, expected), (expected, result)):
        scores = dict(zip(other.ids, other.similarities, strict=True))
        for node_id, score in zip(one.ids, one.similarities, strict=True):
            assert scores.get(node_id, score) == pytest.approx(score, abs=FULL_PRECISION)
            assert node_id in scores or score <= last  # one of equals at the end
    assert [node.text for node in result.nodes] == [BY_ID[i].text for i in result.ids]


def query_for(mode=HYBRID, **kwargs):
    given = {"query_embedding": QUERIES[0], "query_str": TEXT, "similarity_top_k": 10}
    return VectorStoreQuery(mode=mode, **{**given, **kwargs})


class Setup:
    """A store that holds `NODES`, and what it should answer."""

    def __init__(self, store, metric, full_text):
        self.store = store
        self.metric = metric
        self.full_text = full_text
        self.sparse_metric = "BM25" if full_text else "IP"

    def dense(self, query, nodes=NODES):
        return self.metric, dense_scores(self.metric, query.query_embedding, nodes)

    def sparse(self, query, nodes=NODES):
        scores = bm25_scores if self.full_text else inner_products
        return self.sparse_metric, scores(query.query_str, nodes)

    def legs(self, query, nodes=NODES):
        return [self.dense(query, nodes), self.sparse(query, nodes)]

    def hybrid(self, query, fuse=weighted, *arguments, nodes=NODES):
        """Fused of as many candidates as are documented."""
        limit = query.hybrid_top_k or query.similarity_top_k
        limits = [
            max(query.similarity_top_k, limit),
            max(query.sparse_top_k or query.similarity_top_k, limit),
        ]
        return fuse(self.legs(query, nodes), limits, *arguments)


def make_setup(make, metric, full_text, **kwargs):
    store = make(
        collection_name=collection_name("hybrid"),
        similarity_metric=metric,
        enable_sparse=True,
        sparse_embedding_function=None if full_text else BagOfWords(),
        scalar_field_names=["kind", "year"],
        scalar_field_types=[DataType.VARCHAR, DataType.INT64],
        **kwargs,
    )
    # Milvus Lite takes the statistics of BM25 from sealed rows whatever the filter, and those of
    # others from the rows that pass it.
    store.add(NODES, force_flush=True)
    return Setup(store, metric, full_text)


@pytest.fixture(
    scope="module",
    params=[(metric, who) for metric in ("COSINE", "IP", "L2") for who in ("encoder", "bm25")],
    ids="-".join,
)
def setup(make_shared_store, request):
    """Each dense metric beside each kind of sparse embeddings."""
    metric, who = request.param
    return make_setup(make_shared_store, metric, who == "bm25")


@pytest.fixture(scope="module", params=["encoder", "bm25"])
def either(make_shared_store, request):
    """Each kind of sparse embeddings, for what does not depend on the dense metric."""
    return make_setup(make_shared_store, "COSINE", request.param == "bm25")


@pytest.fixture(scope="module")
def encoded(make_shared_store):
    return make_setup(make_shared_store, "COSINE", False)


@pytest.fixture(scope="module")
def full_text(make_shared_store):
    return make_setup(make_shared_store, "COSINE", True)


@pytest.fixture(scope="module")
def hnsw(make_shared_store):
    index = {"index_type": "HNSW", "M": 8, "efConstruction": 64}
    return make_setup(make_shared_store, "COSINE", False, index_config=index)


@pytest.fixture
def reopen(engine):
    """Makes stores on collections of others; nothing is dropped with them."""
    stores = []
    yield store_factory(engine, "", stores)
    for store in stores:
        store.close()


@pytest.fixture
def on_encoded(encoded, reopen):
    """Makes further stores on the collection of `encoded`."""

    def make(**kwargs):
        given = {
            "collection_name": encoded.store.collection_name,
            "similarity_metric": "COSINE",
            "enable_sparse": True,
            "sparse_embedding_function": BagOfWords(),
        }
        return reopen(**{**given, **kwargs})

    return make


@pytest.fixture(scope="module", params=["COSINE", "IP", "L2"])
def dense(make_shared_store, request):
    """A store without sparse embeddings, which every engine has."""
    store = make_shared_store(
        collection_name=collection_name("hybrid_dense"), similarity_metric=request.param
    )
    store.add(NODES, force_flush=True)
    setup = Setup(store, request.param, False)
    assert len(store.query(query_for(DEFAULT, similarity_top_k=N)).ids) == N
    return setup


@pytest.fixture
def unconnected():
    """A store without a server, for what is refused before anything is sent."""
    return MilvusVectorStore(uri="http://127.0.0.1:1", dim=DIM, enable_sparse=True)


def filters(*triples):
    return MetadataFilters(
        filters=[MetadataFilter(key=k, operator=o, value=v) for k, o, v in triples]
    )


def test_the_corpus_is_unambiguous():
    """Ties would be broken here in one way and in Milvus in another."""
    for scores in (inner_products(TEXT), bm25_scores(TEXT)):
        ordered = sorted(scores.values())
        assert min(np.diff(ordered)) > 10 * FULL_PRECISION
        assert N // 2 < len(ordered) < N
    assert len({len(words_of(node.text)) for node in NODES}) == N


# Modes


@lite
@pytest.mark.parametrize("top_k", [1, 10, N])
async def test_dense(setup, coloured, top_k):
    query = query_for(DEFAULT, similarity_top_k=top_k)
    metric, distances = setup.dense(query)
    expected = {node_id: similar(metric, distance) for node_id, distance in distances.items()}
    assert_best(await coloured(setup.store).query(query), expected, top_k)


@lite
@pytest.mark.parametrize("mode", [SPARSE, TEXT_SEARCH])
@pytest.mark.parametrize("text", [TEXT, "hazel", "daisy, DAISY! grass?", " ".join(WORDS)])
async def test_sparse(either, coloured, mode, text):
    query = query_for(mode, query_str=text, query_embedding=None)
    result = await coloured(either.store).query(query)
    assert_best(result, either.sparse(query)[1], 10)
    assert len(result.ids) == 10
    assert min(result.similarities) > 0


@lite
async def test_a_sparse_search_finds_what_has_a_word_of_the_query(either, coloured):
    query = query_for(SPARSE, query_str="hazel", similarity_top_k=N)
    result = await coloured(either.store).query(query)
    assert set(result.ids) == {node.node_id for node in NODES if "hazel" in node.text}


@lite
async def test_full_text_finds_nothing_by_unknown_words(full_text, coloured):
    result = await coloured(full_text.store).query(query_for(TEXT_SEARCH, query_str="zebra"))
    assert (result.ids, result.nodes, result.similarities) == ([], [], [])


@lite
async def test_hybrid_with_unknown_words_is_dense(full_text, coloured):
    store = coloured(full_text.store)
    result = await store.query(query_for(query_str="zebra"))
    assert result.ids == (await store.query(query_for(DEFAULT))).ids
    assert result.similarities == pytest.approx([1 / (61 + rank) for rank in range(10)])


@lite
@pytest.mark.parametrize("k", [60, 1, 0.5])
async def test_rrf(setup, coloured, k):
    query = query_for()
    result = await coloured(setup.store).query(query, milvus_ranker=RRFRanker(k))
    assert_best(result, setup.hybrid(query, rrf, k), 10)


@lite
async def test_hybrid_is_rrf_by_default(setup, coloured):
    result = await coloured(setup.store).query(query_for())
    assert_best(result, setup.hybrid(query_for(), rrf), 10)


@lite
@pytest.mark.parametrize("weights", [(0.7, 0.3), (1.0, 1.0), (1.0, 0.0), (0.0, 0.5)])
async def test_weights(setup, coloured, weights):
    ranker = WeightedRanker(*weights)
    result = await coloured(setup.store).query(query_for(), milvus_ranker=ranker)
    assert_best(result, setup.hybrid(query_for(), weighted, weights), 10)


@lite
@pytest.mark.parametrize("weights", [(0.7, 0.3), (1.0, 0.5)])
async def test_weights_of_scores_that_are_not_normalized(setup, coloured, weights):
    ranker = WeightedRanker(*weights, norm_score=False)
    result = await coloured(setup.store).query(query_for(), milvus_ranker=ranker)
    assert_best(result, setup.hybrid(query_for(), weighted, weights, unnormal), 10)


@lite
@pytest.mark.parametrize("threshold", [None, 0.3, 1.0])
async def test_mmr_over_hybrid(either, coloured, threshold):
    """Of all nodes as candidates, so that the ties of RRF do not matter."""
    query = query_for(MMR, mmr_threshold=threshold)
    result = await coloured(either.store).query(query, mmr_over="hybrid", mmr_prefetch_k=N)
    scores, ids = get_top_k_mmr_embeddings(
        query.query_embedding,
        [node.embedding for node in NODES],
        similarity_top_k=10,
        embedding_ids=list(BY_ID),
        mmr_threshold=threshold,
    )
    assert result.ids == ids
    assert result.similarities == pytest.approx(scores, abs=FULL_PRECISION)
    assert [node.embedding for node in result.nodes] == [None] * 10


@lite
@pytest.mark.parametrize("weights", [(0.5, 1.0), (1.0, 0.0)])
async def test_mmr_chooses_from_the_hybrid_candidates(setup, coloured, weights):
    query = query_for(MMR, similarity_top_k=4)
    candidates = setup.hybrid(query_for(similarity_top_k=12), weighted, weights)
    ids = best(("fused", candidates), 12)
    scores, chosen = get_top_k_mmr_embeddings(
        query.query_embedding,
        [BY_ID[node_id].embedding for node_id in ids],
        similarity_top_k=4,
        embedding_ids=ids,
    )
    result = await coloured(setup.store).query(
        query, mmr_over="hybrid", mmr_prefetch_k=12, milvus_ranker=WeightedRanker(*weights)
    )
    assert result.ids == chosen
    assert result.similarities == pytest.approx(scores, abs=FULL_PRECISION)


@lite
async def test_mmr_is_over_dense_by_default(either, coloured):
    store = coloured(either.store)
    result = await store.query(query_for(MMR, query_str=None), mmr_prefetch_k=12)
    nearest = (await store.query(query_for(DEFAULT, similarity_top_k=12))).ids
    assert set(result.ids) < set(nearest)
    again = await store.query(query_for(MMR), mmr_prefetch_k=12, mmr_over="dense")
    assert (again.ids, again.similarities) == (result.ids, result.similarities)


@lite
@pytest.mark.parametrize("mode", [SPARSE, TEXT_SEARCH, HYBRID, MMR])
async def test_nodes_come_back_as_they_were_stored(either, coloured, mode):
    result = await coloured(either.store).query(query_for(mode), mmr_over="hybrid")
    assert len(result.ids) == 10
    assert result.nodes == [
        BY_ID[node_id].model_copy(update={"embedding": None}) for node_id in result.ids
    ]


@lite
@pytest.mark.parametrize("mode", [SPARSE, HYBRID, MMR])
async def test_embeddings_come_on_request(either, coloured, mode):
    query = query_for(mode, output_fields=["embedding"])
    result = await coloured(either.store).query(query, mmr_over="hybrid")
    assert len(result.ids) == 10
    assert result.nodes == [BY_ID[node_id] for node_id in result.ids]


@pytest.mark.parametrize("mode", [SPARSE, TEXT_SEARCH, HYBRID, MMR])
@pytest.mark.parametrize("text", ["", "  \n", None], ids=repr)
async def test_a_missing_text_is_refused(unconnected, coloured, mode, text):
    with pytest.raises(QueryError, match=f"mode {mode.name} needs query_str, and it is missing"):
        await coloured(unconnected).query(query_for(mode, query_str=text), mmr_over="hybrid")


@pytest.mark.parametrize("mode", [DEFAULT, HYBRID, MMR])
@pytest.mark.parametrize("embedding", [None, []], ids=repr)
async def test_a_missing_embedding_is_refused(unconnected, coloured, mode, embedding):
    with pytest.raises(QueryError, match=f"mode {mode.name} needs query_embedding"):
        await coloured(unconnected).query(query_for(mode, query_embedding=embedding))


@pytest.mark.parametrize(
    "mode",
    [
        VectorStoreQueryMode.SEMANTIC_HYBRID,
        *map(VectorStoreQueryMode, ("svm", "logistic_regression", "linear_regression")),
    ],
)
async def test_an_unsupported_mode_is_refused_with_those_supported(unconnected, coloured, mode):
    message = (
        f"mode .*{mode.name}.* is not supported; supported are "
        "DEFAULT, SPARSE, TEXT_SEARCH, HYBRID, MMR$"
    )
    with pytest.raises(QueryError, match=message):
        await coloured(unconnected).query(query_for(mode))


# alpha, and the numbers of hits


@lite
@pytest.mark.parametrize("alpha", [0.25, 0.5, 0.9])
async def test_alpha_weighs(setup, coloured, alpha):
    query = query_for(alpha=alpha)
    result = await coloured(setup.store).query(query)
    assert_best(result, setup.hybrid(query, relative, (alpha, 1 - alpha)), 10)


@lite
@pytest.mark.parametrize("alpha", [0, 0.0])
async def test_alpha_0_is_sparse_alone(setup, coloured, alpha):
    query = query_for(alpha=alpha, query_embedding=None)
    assert_best(await coloured(setup.store).query(query), setup.sparse(query)[1], 10)


@lite
@pytest.mark.parametrize("alpha", [1, 1.0])
async def test_alpha_1_is_dense_alone(setup, coloured, alpha):
    query = query_for(alpha=alpha, query_str=None)
    metric, distances = setup.dense(query)
    expected = {node_id: similar(metric, distance) for node_id, distance in distances.items()}
    assert_best(await coloured(setup.store).query(query), expected, 10)


@lite
async def test_alpha_is_ignored_by_other_modes(either, coloured):
    store = coloured(either.store)
    for mode in (DEFAULT, SPARSE, MMR):
        plain = await store.query(query_for(mode))
        for alpha in (0.0, 1.0):
            given = await store.query(query_for(mode, alpha=alpha))
            assert (given.ids, given.similarities) == (plain.ids, plain.similarities)


@lite
async def test_with_alpha_0_the_candidates_of_mmr_are_those_of_the_sparse_search(either, coloured):
    store = coloured(either.store)
    query = query_for(MMR, similarity_top_k=8, alpha=0.0, mmr_threshold=1.0)
    result = await store.query(query, mmr_over="hybrid", mmr_prefetch_k=8)
    sparse = await store.query(query_for(SPARSE, similarity_top_k=8))
    assert set(result.ids) == set(sparse.ids)
    nearest = dense_scores(either.metric, query.query_embedding, NODES)
    assert result.ids == [one for one in best((either.metric, nearest), N) if one in result.ids]


@lite
async def test_alpha_weighs_the_candidates_of_mmr(setup, coloured):
    query = query_for(MMR, similarity_top_k=4, alpha=0.25)
    candidates = setup.hybrid(query_for(similarity_top_k=12), relative, (0.25, 0.75))
    ids = best(("fused", candidates), 12)
    _, chosen = get_top_k_mmr_embeddings(
        query.query_embedding,
        [BY_ID[node_id].embedding for node_id in ids],
        similarity_top_k=4,
        embedding_ids=ids,
    )
    result = await coloured(setup.store).query(query, mmr_over="hybrid", mmr_prefetch_k=12)
    assert result.ids == chosen


@lite
async def test_alpha_goes_before_the_ranker_of_the_store(on_encoded, encoded, coloured):
    store = on_encoded(hybrid_ranker=WeightedRanker(1.0, 0.5))
    query = query_for(alpha=0.25)
    result = await coloured(store).query(query)
    assert_best(result, encoded.hybrid(query, relative, (0.25, 0.75)), 10)


@pytest.mark.parametrize("alpha", [0.01, 0.25, 0.99])
async def test_alpha_and_a_ranker_of_the_query_exclude_each_other(unconnected, coloured, alpha):
    with pytest.raises(QueryError, match="alpha and milvus_ranker both say how to rank"):
        await coloured(unconnected).query(query_for(alpha=alpha), milvus_ranker=RRFRanker())


@pytest.mark.parametrize("mode", [HYBRID, DEFAULT])
@pytest.mark.parametrize("alpha", [-0.1, 1.1, math.nan, math.inf, "0.5", True, [0.5]])
async def test_a_bad_alpha_is_refused(unconnected, coloured, mode, alpha):
    query = query_for(mode)
    query.alpha = alpha
    with pytest.raises(QueryError, match=re.escape(f"alpha is {alpha!r}; it must be a number in")):
        await coloured(unconnected).query(query)


@lite
@pytest.mark.parametrize(
    "top_ks",
    [
        {"similarity_top_k": 3},
        {"similarity_top_k": 3, "sparse_top_k": 30},
        {"similarity_top_k": 30, "sparse_top_k": 3, "hybrid_top_k": 5},
        {"similarity_top_k": 2, "sparse_top_k": 1, "hybrid_top_k": 25},
        {"similarity_top_k": 20, "hybrid_top_k": 2},
        {"similarity_top_k": 1, "hybrid_top_k": N},
    ],
    ids=label,
)
async def test_numbers_of_hits(either, coloured, top_ks):
    store, weights = coloured(either.store), (0.6, 0.4)
    limit = top_ks.get("hybrid_top_k", top_ks["similarity_top_k"])
    query = query_for(**top_ks)
    result = await store.query(query, milvus_ranker=WeightedRanker(*weights))
    assert_best(result, either.hybrid(query, weighted, weights), limit)

    query = query_for(**top_ks, alpha=0.6)
    result = await store.query(query)
    assert_best(result, either.hybrid(query, relative, weights), limit)


ONE_LEG = [
    ({"similarity_top_k": 3}, 0),
    ({"similarity_top_k": 3, "hybrid_top_k": 5}, 0),
    ({"similarity_top_k": 20, "sparse_top_k": 20, "hybrid_top_k": 5}, 0),
    ({"similarity_top_k": 3}, 3),
    ({"similarity_top_k": 3, "hybrid_top_k": 5}, 3),
]


@lite
@pytest.mark.parametrize(
    ("top_ks", "offset"),
    ONE_LEG,
    ids=label,
)
@pytest.mark.parametrize("alpha", [0, 1])
async def test_numbers_of_hits_of_one_leg(either, coloured, top_ks, offset, alpha):
    query = query_for(**top_ks, alpha=alpha)
    result = await coloured(either.store).query(query, offset=offset)
    limit = query.hybrid_top_k or query.similarity_top_k
    assert_best(result, either.legs(query)[1 - alpha][1], limit, offset)
    assert len(result.ids) == limit


@lite
@pytest.mark.parametrize("mode", [SPARSE, TEXT_SEARCH])
@pytest.mark.parametrize(
    ("top_ks", "limit"),
    [
        ({"similarity_top_k": 4}, 4),
        ({"similarity_top_k": 4, "sparse_top_k": 7}, 7),
        ({"similarity_top_k": 7, "sparse_top_k": 4}, 4),
        ({"similarity_top_k": 4, "hybrid_top_k": 7}, 4),
    ],
    ids=label,
)
async def test_numbers_of_sparse_hits(either, coloured, mode, top_ks, limit):
    query = query_for(mode, **top_ks)
    result = await coloured(either.store).query(query)
    assert_best(result, either.sparse(query)[1], limit)
    assert len(result.ids) == limit


@lite
async def test_a_top_k_past_the_collection_returns_what_there_is(either, coloured):
    query = query_for(similarity_top_k=16_384)
    result = await coloured(either.store).query(query, milvus_ranker=WeightedRanker(0.5, 1.0))
    assert len(result.ids) == N
    assert_best(result, either.hybrid(query, weighted, (0.5, 1.0)), N)


@pytest.mark.parametrize("name", ["similarity_top_k", "sparse_top_k", "hybrid_top_k"])
@pytest.mark.parametrize("top_k", [0, -1, 16_385, True, 2.0, "10"])
async def test_a_bad_top_k_is_refused_and_named(unconnected, coloured, name, top_k):
    query = query_for()
    setattr(query, name, top_k)
    with pytest.raises(QueryError, match=f"{name} is {top_k!r}"):
        await coloured(unconnected).query(query)


# What restricts


RESTRICTIONS = {
    "filters": (
        {"filters": filters(("kind", "in", ["poem", "play"]))},
        {},
        lambda i: i % 4 in (1, 3),
    ),
    "dynamic": ({"filters": filters(("year", ">=", 1920))}, {}, lambda i: i >= 20),
    "doc_ids": ({"doc_ids": ["doc-1", "doc-4", "doc-7"]}, {}, lambda i: i // 4 in (1, 4, 7)),
    "node_ids": ({"node_ids": [f"node-{i}" for i in range(0, N, 3)]}, {}, lambda i: i % 3 == 0),
    "string_expr": ({}, {"string_expr": "year < 1915"}, lambda i: i < 15),
    "all": (
        {
            "filters": filters(("kind", "!=", "poem")),
            "doc_ids": [f"doc-{i}" for i in range(8)],
            "node_ids": [f"node-{i}" for i in range(4, N)],
        },
        {"string_expr": "year < 1930"},
        lambda i: i % 4 != 1 and 4 <= i < 30,
    ),
}


def restricted(name, mode, **kwargs):
    given, options, passes = RESTRICTIONS[name]
    nodes = [node for i, node in enumerate(NODES) if passes(i)]
    return query_for(mode, **{**given, **kwargs}), options, nodes


restrictions = pytest.mark.parametrize("name", list(RESTRICTIONS))


@lite
@restrictions
@pytest.mark.parametrize("mode", [SPARSE, TEXT_SEARCH])
async def test_restrictions_of_sparse_search(either, coloured, mode, name):
    query, options, nodes = restricted(name, mode)
    result = await coloured(either.store).query(query, **options)
    assert_best(result, either.sparse(query, nodes)[1], 10)


@lite
@restrictions
async def test_every_leg_is_restricted(either, coloured, name):
    store = coloured(either.store)
    query, options, nodes = restricted(name, HYBRID, similarity_top_k=6)
    legs, weights = either.legs(query, nodes), (0.25, 0.75)
    result = await store.query(query, milvus_ranker=WeightedRanker(*weights), **options)
    assert_best(result, weighted(legs, [6, 6], weights), 6)
    result = await store.query(restricted(name, HYBRID, alpha=0.25)[0], **options)
    assert_best(result, relative(legs, [10, 10], weights), 10)
    for alpha in (0, 1):
        result = await store.query(restricted(name, HYBRID, alpha=alpha)[0], **options)
        assert_best(result, legs[1 - alpha][1], 10)


@lite
@restrictions
async def test_mmr_over_hybrid_is_restricted(either, coloured, name):
    query, options, nodes = restricted(name, MMR)
    result = await coloured(either.store).query(query, mmr_over="hybrid", **options)
    assert set(result.ids) <= {node.node_id for node in nodes}
    assert len(result.ids) == min(10, len(nodes))


@lite
@pytest.mark.parametrize("mode", [SPARSE, TEXT_SEARCH, HYBRID, MMR])
async def test_no_documents_match_nothing(either, coloured, mode):
    result = await coloured(either.store).query(query_for(mode, doc_ids=[]), mmr_over="hybrid")
    assert (result.ids, result.nodes, result.similarities) == ([], [], [])


@lite
@pytest.mark.parametrize("mode", [SPARSE, HYBRID])
async def test_no_node_ids_restrict_nothing(either, coloured, mode):
    store = coloured(either.store)
    assert_same(await store.query(query_for(mode, node_ids=[])), await store.query(query_for(mode)))


@lite
@pytest.mark.parametrize("mode", [SPARSE, HYBRID])
async def test_ids_that_are_not_there_match_nothing(either, coloured, mode):
    assert (await coloured(either.store).query(query_for(mode, node_ids=["no"]))).ids == []


@lite
async def test_a_filter_does_not_change_the_scores_of_bm25(full_text, coloured):
    """Its statistics are of the whole collection."""
    store = coloured(full_text.store)
    everything = await store.query(query_for(TEXT_SEARCH, similarity_top_k=N))
    scores = dict(zip(everything.ids, everything.similarities, strict=True))
    some = await store.query(
        query_for(TEXT_SEARCH, similarity_top_k=N, filters=filters(("kind", "==", "poem")))
    )
    assert 3 < len(some.ids) < len(everything.ids)
    assert some.similarities == pytest.approx([scores[i] for i in some.ids])


@lite
async def test_a_wrong_expression_surfaces_with_the_server_s_reason(either, coloured):
    with pytest.raises(ServerError, match=r"hybrid.*failed"):
        await coloured(either.store).query(query_for(), string_expr="year >")


# Rankers


def rrf_here(k):
    """Reciprocal rank fusion as a callable."""

    def rank(query, legs):
        scores, nodes = Counter(), {}
        for leg in legs:
            for position, hit in enumerate(leg, 1):
                scores[hit.node.node_id] += 1 / (k + position)
                nodes[hit.node.node_id] = hit.node
        return [NodeWithScore(node=nodes[i], score=score) for i, score in scores.most_common()]

    return rank


def weighted_here(*weights):
    """Weighted fusion as a callable, of COSINE and of what the sparse embeddings have."""

    def rank(query, legs):
        scores, nodes = Counter(), {}
        for leg, weight, metric in zip(legs, weights, ("COSINE", "IP"), strict=True):
            for hit in leg:
                scores[hit.node.node_id] += weight * normal(metric, hit.score)
                nodes[hit.node.node_id] = hit.node
        return [NodeWithScore(node=nodes[i], score=score) for i, score in scores.most_common()]

    return rank


def rerank(**params):
    return Function("rerank", FunctionType.RERANK, [], params=params)


RANKERS = {
    "rrf name": ("RRFRanker", {"k": 5}, rrf, (5,)),
    "rrf object": (RRFRanker(5), {}, rrf, (5,)),
    "rrf function": (rerank(reranker="rrf", k=5), {}, rrf, (5,)),
    "rrf callable": (rrf_here(5), {}, rrf, (5,)),
    "weighted name": ("WeightedRanker", {"weights": [0.75, 0.5]}, weighted, ((0.75, 0.5),)),
    "weighted object": (WeightedRanker(0.75, 0.5), {}, weighted, ((0.75, 0.5),)),
    "weighted callable": (weighted_here(0.75, 0.5), {}, weighted, ((0.75, 0.5),)),
    "weighted function": (
        rerank(reranker="weighted", weights=[0.75, 0.5], norm_score=True),
        {},
        weighted,
        ((0.75, 0.5),),
    ),
    "not normalized": (
        "WeightedRanker",
        {"weights": [1, 0.25], "norm_score": False},
        weighted,
        ((1, 0.25), unnormal),
    ),
}


@lite
@pytest.mark.parametrize("name", list(RANKERS))
@pytest.mark.parametrize("offset", [0, 2])
async def test_a_ranker_of_the_store(on_encoded, encoded, coloured, name, offset):
    """Whoever computes it, Milvus or this side, it is the same."""
    ranker, params, fuse, arguments = RANKERS[name]
    store = coloured(on_encoded(hybrid_ranker=ranker, hybrid_ranker_params=params))
    query = query_for(hybrid_top_k=7, sparse_top_k=15)
    result = await store.query(query, offset=offset)
    assert_best(result, encoded.hybrid(query, fuse, *arguments), 7, offset)


@lite
@pytest.mark.parametrize("name", [name for name in RANKERS if not RANKERS[name][1]])
async def test_a_ranker_of_the_query(on_encoded, encoded, coloured, name):
    ranker, _, fuse, arguments = RANKERS[name]
    store = coloured(on_encoded(hybrid_ranker="WeightedRanker"))
    result = await store.query(query_for(), milvus_ranker=ranker)
    assert_best(result, encoded.hybrid(query_for(), fuse, *arguments), 10)
    result = await store.query(query_for())  # for that query alone
    assert_best(result, encoded.hybrid(query_for(), weighted, (1, 1)), 10)


@lite
async def test_a_ranker_of_the_query_by_name_has_milvus_defaults(on_encoded, encoded, coloured):
    store = coloured(on_encoded(hybrid_ranker_params={"k": 1}))
    result = await store.query(query_for(), milvus_ranker="RRFRanker")
    assert_best(result, encoded.hybrid(query_for(), rrf, 60), 10)


@lite
async def test_a_function_of_milvus_decays(either, coloured):
    decay = Function(
        "decay",
        FunctionType.RERANK,
        ["year"],
        params={
            "reranker": "decay",
            "function": "gauss",
            "origin": 1920,
            "offset": 0,
            "decay": 0.5,
            "scale": 1,
        },
    )
    query = query_for(similarity_top_k=N, hybrid_top_k=3)
    result = await coloured(either.store).query(query, milvus_ranker=decay)
    assert set(result.ids) <= {"node-18", "node-19", "node-20", "node-21", "node-22"}


@lite
async def test_rerankers_of_milvus_that_are_wrong_surface_with_its_reason(either, coloured):
    with pytest.raises(ServerError, match="weights"):
        await coloured(either.store).query(
            query_for(), milvus_ranker=rerank(reranker="weighted", weights=[1, 1, 1])
        )


@lite
async def test_a_callable_gets_the_query_and_the_hits_of_each_leg(setup, coloured):
    called = []

    def rank(*arguments):
        called.append(arguments)
        return []

    query = query_for(similarity_top_k=6, sparse_top_k=4, hybrid_top_k=3)
    result = await coloured(setup.store).query(query, milvus_ranker=rank)
    assert result.ids == []
    [(given, legs)] = called
    assert given is query
    for leg, (metric, distances), count in zip(legs, setup.legs(query), (6, 4), strict=True):
        expected = best((metric, distances), count)
        assert [hit.node.node_id for hit in leg] == expected
        assert [hit.node.text for hit in leg] == [BY_ID[i].text for i in expected]
        scores = [similar(metric, distances[i]) for i in expected]
        assert [hit.score for hit in leg] == pytest.approx(scores, abs=FULL_PRECISION)


@lite
async def test_a_callable_has_the_last_word(encoded, coloured):
    """On order, scores, nodes and number, up to what was asked for."""
    own = NodeWithScore(node=TextNode(id_="own", text="own"), score=None)

    def rank(query, legs):
        yield own
        yield from reversed(legs[0])

    store = coloured(encoded.store)
    result = await store.query(query_for(similarity_top_k=4), milvus_ranker=rank)
    nearest = (await store.query(query_for(DEFAULT, similarity_top_k=4))).ids
    assert result.ids == ["own", *nearest[:0:-1]]
    assert result.similarities[0] == 0.0
    assert result.nodes[0] is own.node


@lite
async def test_an_exception_of_a_callable_passes_through(encoded, coloured):
    error = KeyError("its own")

    def rank(query, legs):
        raise error

    with pytest.raises(KeyError) as raised:
        await coloured(encoded.store).query(query_for(), milvus_ranker=rank)
    assert raised.value is error
    assert len((await coloured(encoded.store).query(query_for())).ids) == 10


@lite
@pytest.mark.parametrize("answer", [None, 3, [TextNode(text="no score")], [("node-1", 0.5)]])
async def test_what_a_callable_must_not_return_is_refused(encoded, coloured, answer):
    with pytest.raises((QueryError, ConfigurationError), match="ranker"):
        await coloured(encoded.store).query(query_for(), milvus_ranker=lambda query, legs: answer)


@lite
@pytest.mark.parametrize("alpha", [0, 1])
async def test_a_ranker_of_the_store_is_not_asked_about_one_leg(on_encoded, coloured, alpha):
    def rank(query, legs):
        raise AssertionError("nothing to rank")

    for ranker in (rank, WeightedRanker(0.5, 0.5), rerank(reranker="rrf")):
        store = coloured(on_encoded(hybrid_ranker=ranker))
        assert len((await store.query(query_for(alpha=alpha))).ids) == 10


@lite
async def test_a_callable_runs_beside_the_event_loop(encoded, coloured, colour):
    here, threads = threading.get_ident(), []

    def rank(query, legs):
        threads.append(threading.get_ident())
        return legs[0]

    def generate(query, legs):
        threads.append(threading.get_ident())
        yield from legs[0]

    for ranker in (rank, generate):
        result = await coloured(encoded.store).query(query_for(), milvus_ranker=ranker)
        assert len(result.ids) == 10
    assert all((thread == here) == (colour == "sync") for thread in threads)


@lite
async def test_a_coroutine_function_ranks(encoded, coloured):
    async def rank(query, legs):
        await asyncio.sleep(0)
        return legs[1][:3]

    store = coloured(encoded.store)
    result = await store.query(query_for(), milvus_ranker=rank)
    expected = await store.query(query_for(SPARSE, similarity_top_k=3))
    assert (result.ids, result.similarities) == (expected.ids, expected.similarities)
    with pytest.raises(QueryError, match="returned a coroutine"):  # and no warning of it
        await store.query(query_for(), milvus_ranker=lambda query, legs: rank(query, legs))


@lite
async def test_a_ranker_that_is_assigned_is_the_next_query_s(on_encoded, encoded, coloured):
    store = on_encoded(hybrid_ranker="RRFRanker")
    store.hybrid_ranker = WeightedRanker(0.25, 1.0)
    result = await coloured(store).query(query_for())
    assert_best(result, encoded.hybrid(query_for(), weighted, (0.25, 1.0)), 10)


@lite
async def test_mmr_takes_no_callable(either, coloured):
    with pytest.raises(QueryError, match="mmr_over='hybrid' does not take a callable as ranker"):
        await coloured(either.store).query(
            query_for(MMR), mmr_over="hybrid", milvus_ranker=rrf_here(60)
        )


@lite
@pytest.mark.parametrize("weights", [(1.0,), (0.5, 0.3, 0.2)])
async def test_the_number_of_weights_has_to_fit(either, coloured, weights):
    message = (
        rf"the ranker has {len(weights)} weights and the query searches 2 fields, "
        r"\['embedding', 'sparse_embedding'\]"
    )
    for mode in (HYBRID, MMR):
        with pytest.raises(QueryError, match=message):
            await coloured(either.store).query(
                query_for(mode), mmr_over="hybrid", milvus_ranker=WeightedRanker(*weights)
            )


@lite
@pytest.mark.parametrize(
    ("ranker", "message"),
    [
        ("BestRanker", "milvus_ranker is 'BestRanker'; it must be one of"),
        ("", "milvus_ranker is ''"),
        (60, "milvus_ranker is 60"),
        ({"k": 60}, "milvus_ranker is {'k': 60}"),
        (BM25BuiltInFunction(), "milvus_ranker is a function of type BM25"),
        (RRFRanker(0), "has k=0"),
        (WeightedRanker(2, 1), r"has weights=\[2, 1\]"),
    ],
    ids=label,
)
async def test_what_is_no_ranker_is_refused_and_named(encoded, coloured, ranker, message):
    for mode in (HYBRID, MMR):
        with pytest.raises(ConfigurationError, match=message):
            await coloured(encoded.store).query(
                query_for(mode), milvus_ranker=ranker, mmr_over="hybrid"
            )


@pytest.mark.parametrize("over", ["sparse", "", None, "HYBRID"])
async def test_what_mmr_may_be_over(unconnected, coloured, over):
    with pytest.raises(QueryError, match=f"mmr_over is {over!r}; it must be 'dense' or 'hybrid'"):
        await coloured(unconnected).query(query_for(MMR), mmr_over=over)


# Engines without sparse vectors, and stores without a half


async def test_dense_alone_is_hybrid_with_alpha_1_on_every_engine(dense, coloured):
    store = coloured(dense.store)
    expected = await store.query(query_for(DEFAULT))
    for kwargs in ({}, {"query_str": None}, {"hybrid_top_k": 10, "similarity_top_k": 5}):
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


# Paging, groups, thresholds


@pytest.mark.parametrize("offset", [1, 5, N - 3, N + 3])
async def test_hits_are_skipped(dense, coloured, offset):
    result = await coloured(dense.store).query(query_for(DEFAULT), offset=offset)
    expected = best(dense.dense(query_for()), N)
    assert result.ids == expected[offset : offset + 10]


@lite
@pytest.mark.parametrize("mode", [SPARSE, TEXT_SEARCH])
@pytest.mark.parametrize("offset", [1, 5, 30, 100])
async def test_sparse_hits_are_skipped(either, coloured, mode, offset):
    result = await coloured(either.store).query(query_for(mode), offset=offset)
    assert_best(result, either.sparse(query_for())[1], 10, offset)


PAGED = {
    "rrf": (HYBRID, None, {}),
    "weights": (HYBRID, None, {"milvus_ranker": WeightedRanker(0.5, 1.0)}),
    "alpha": (HYBRID, 0.5, {}),
    "callable": (HYBRID, None, {"milvus_ranker": rrf_here(60)}),
    "mmr": (MMR, None, {"mmr_prefetch_k": 20}),
    "mmr over hybrid": (MMR, None, {"mmr_over": "hybrid", "mmr_prefetch_k": 20}),
}


@lite
@pytest.mark.parametrize("name", PAGED)
async def test_pages_are_of_one_ranking(either, coloured, name):
    mode, alpha, options = PAGED[name]
    store, pages = coloured(either.store), []
    size = (
        {"similarity_top_k": 20, "hybrid_top_k": 4} if mode is HYBRID else {"similarity_top_k": 4}
    )
    for offset in range(0, 20, 4):
        query = query_for(mode, alpha=alpha, **size)
        pages += (await store.query(query, offset=offset, **options)).ids
    everything = query_for(mode, alpha=alpha, similarity_top_k=20)
    assert len(set(pages)) == 20
    if name != "mmr over hybrid":  # of as many candidates, where RRF has ties at the end
        assert pages == (await store.query(everything, **options)).ids


@pytest.mark.parametrize(
    ("query", "options", "message"),
    [
        (
            query_for(),
            {"offset": 1},
            "offset is 1: 1 and 10 hits are more than each leg .* least 11",
        ),
        (query_for(alpha=0.5), {"offset": 5}, "at least 15"),
        (query_for(hybrid_top_k=3), {"offset": 8}, "at least 11, .*hybrid_top_k=3"),
        (query_for(hybrid_top_k=3, sparse_top_k=5), {"offset": 3}, "at least 6"),
        (query_for(MMR), {"offset": 31}, "MMR chooses 31 and 10 hits of 40 candidates"),
        (query_for(MMR), {"offset": 1, "mmr_prefetch_k": 10}, "larger mmr_prefetch_k"),
    ],
    ids=label,
)
async def test_a_page_beyond_the_candidates_is_refused(
    unconnected, coloured, query, options, message
):
    with pytest.raises(QueryError, match=message):
        await coloured(unconnected).query(query, **options)


@pytest.mark.parametrize("offset", [-1, 16_384, True, 1.5, "1", None])
async def test_a_bad_offset_is_refused(unconnected, coloured, offset):
    with pytest.raises(QueryError, match=f"offset is {offset!r}; it must be an integer in 0"):
        await coloured(unconnected).query(query_for(DEFAULT), offset=offset)


def grouped(expected, limit, size=1, strict=False):
    """The best of each kind, the kind with the best first."""
    groups = {}
    for node_id in sorted(expected, key=expected.__getitem__, reverse=True):
        groups.setdefault(BY_ID[node_id].metadata["kind"], []).append(node_id)
    kept = [group[:size] for group in groups.values() if not strict or len(group) >= size]
    return [node_id for group in kept[:limit] for node_id in group]


GROUPINGS = [
    (3, {}),
    (10, {}),
    (2, {"group_size": 3}),
    (3, {"group_size": 2, "strict_group_size": False}),
]


@lite
@pytest.mark.parametrize(("limit", "options"), GROUPINGS, ids=label)
@pytest.mark.parametrize("mode", [DEFAULT, SPARSE, HYBRID])
async def test_groups(either, coloured, mode, limit, options):
    query = query_for(mode, similarity_top_k=N, sparse_top_k=N, hybrid_top_k=limit)
    if mode == DEFAULT:
        query.similarity_top_k = limit
        metric, distances = either.dense(query)
        expected = {i: similar(metric, distance) for i, distance in distances.items()}
    elif mode == SPARSE:
        query.sparse_top_k = limit
        expected = either.sparse(query)[1]
    else:
        expected = either.hybrid(query, weighted, (0.5, 0.75))
        options = {**options, "milvus_ranker": WeightedRanker(0.5, 0.75)}
    result = await coloured(either.store).query(query, group_by_field="kind", **options)
    assert result.ids == grouped(expected, limit, options.get("group_size", 1))
    scores = [expected[node_id] for node_id in result.ids]
    assert result.similarities == pytest.approx(scores, abs=FULL_PRECISION)


@lite
async def test_groups_that_are_not_full_are_left_out(encoded, coloured):
    """Of the nodes that pass the filter, three are essays and one is a poem."""
    query = query_for(
        DEFAULT, node_ids=["node-0", "node-4", "node-8", "node-1"], similarity_top_k=4
    )
    store = coloured(encoded.store)
    options = {"group_by_field": "kind", "group_size": 2}
    found = await store.query(query, **options)
    assert sorted(node.metadata["kind"] for node in found.nodes) == ["essay", "essay", "poem"]
    found = await store.query(query, strict_group_size=True, **options)
    assert [node.metadata["kind"] for node in found.nodes] == ["essay", "essay"]


@lite
@pytest.mark.parametrize(
    ("mode", "kwargs", "options"),
    [
        (HYBRID, {"alpha": 0.5}, {}),
        (HYBRID, {}, {"milvus_ranker": rrf_here(60)}),
        (MMR, {"alpha": 0.5}, {"mmr_over": "hybrid"}),
    ],
    ids=["alpha", "callable", "mmr"],
)
async def test_groups_are_refused_where_milvus_does_not_rank(
    either, coloured, mode, kwargs, options
):
    with pytest.raises(QueryError, match="group_by_field: a hybrid search groups where Milvus"):
        await coloured(either.store).query(
            query_for(mode, **kwargs), group_by_field="kind", **options
        )


@lite
async def test_an_unknown_field_to_group_by_surfaces_with_the_server_s_reason(either, coloured):
    with pytest.raises(ServerError, match="no_such_field"):
        await coloured(either.store).query(query_for(DEFAULT), group_by_field="no_such_field")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"group_size": 2}, "group_size has no effect without group_by_field; pass both"),
        ({"strict_group_size": True}, "strict_group_size has no effect without group_by_field"),
        ({"group_by_field": ""}, "group_by_field is ''; it must be the name of a field"),
        ({"group_by_field": ["kind"]}, "group_by_field is"),
        ({"group_by_field": "kind", "group_size": 0}, "group_size is 0; it must be an integer"),
        ({"group_by_field": "kind", "group_size": True}, "group_size is True"),
        ({"group_by_field": "kind", "group_size": 1.5}, r"group_size is 1\.5"),
    ],
    ids=label,
)
async def test_a_bad_group_size_is_refused(unconnected, coloured, options, message):
    with pytest.raises(QueryError, match=message):
        await coloured(unconnected).query(query_for(DEFAULT), **options)


async def check_threshold(store, query, **options):
    everything = await store.query(query, **options)
    assert len(everything.ids) == 10
    for threshold in (everything.similarities[4], np.float32(-1e9), 1e9):
        result = await store.query(query, score_threshold=threshold, **options)
        kept = [score >= threshold for score in everything.similarities]
        assert result.ids == [i for i, keep in zip(everything.ids, kept, strict=True) if keep]
        assert [node.node_id for node in result.nodes] == result.ids
        assert all(score >= threshold for score in result.similarities)
    assert result.ids == []


async def test_a_threshold_is_of_similarity_for_every_metric(dense, coloured):
    await check_threshold(coloured(dense.store), query_for(DEFAULT))
    await check_threshold(coloured(dense.store), query_for(alpha=1.0))


@lite
@pytest.mark.parametrize(
    ("mode", "alpha", "options"),
    [
        (SPARSE, None, {}),
        (TEXT_SEARCH, None, {}),
        (HYBRID, None, {}),
        (HYBRID, None, {"milvus_ranker": WeightedRanker(0.5, 1.0)}),
        (HYBRID, None, {"milvus_ranker": rrf_here(60)}),
        (HYBRID, 0.25, {}),
        (HYBRID, 0.0, {}),
    ],
)
async def test_a_threshold_of_sparse_and_hybrid_search(either, coloured, mode, alpha, options):
    await check_threshold(coloured(either.store), query_for(mode, alpha=alpha), **options)


async def test_mmr_chooses_among_what_is_similar_enough(dense, coloured):
    store = coloured(dense.store)
    least = (await store.query(query_for(DEFAULT))).similarities[5]
    query = query_for(MMR, mmr_threshold=0.4)
    result = await store.query(query, score_threshold=least)
    nearest = (await store.query(query_for(DEFAULT, similarity_top_k=6))).ids
    assert set(result.ids) == set(nearest)


@pytest.mark.parametrize("threshold", [math.nan, math.inf, "0.5", True, [0.5]])
async def test_a_bad_threshold_is_refused(unconnected, coloured, threshold):
    message = re.escape(f"score_threshold is {threshold!r}; it must be a number")
    with pytest.raises(QueryError, match=message):
        await coloured(unconnected).query(query_for(DEFAULT), score_threshold=threshold)


# Search parameters


def within(leg, near, far):
    """The ids between two places of a ranking, and the distances that bound them."""
    distances, ids = leg[1], best(leg, N)

    def between(one, other):
        return (distances[ids[one]] + distances[ids[other]]) / 2

    return ids[near:far], between(near - 1, near), between(far - 1, far)


@pytest.mark.parametrize("nested", [False, True], ids=["flat", "nested"])
async def test_a_range_of_distances(dense, coloured, nested):
    ids, near, far = within(dense.dense(query_for()), 2, 7)
    config = {"radius": far, "range_filter": near}
    result = await coloured(dense.store).query(
        query_for(DEFAULT), milvus_search_config={"params": config} if nested else config
    )
    assert result.ids == ids


@lite
@pytest.mark.parametrize("mode", [SPARSE, TEXT_SEARCH])
async def test_a_range_of_sparse_scores(either, coloured, mode):
    """Of BM25 in the sense of a server, though Milvus Lite gives them a minus."""
    ids, near, far = within(either.sparse(query_for()), 2, 7)
    result = await coloured(either.store).query(
        query_for(mode), sparse_search_config={"radius": far, "range_filter": near}
    )
    assert result.ids == ids


@lite
@pytest.mark.parametrize("alpha", [0, 0.5, 1])
async def test_ranges_of_both_legs(encoded, coloured, alpha):
    query = query_for(alpha=alpha)
    dense_ids, dense_near, dense_far = within(encoded.dense(query), 2, 7)
    sparse_ids, sparse_near, sparse_far = within(encoded.sparse(query), 3, 9)
    result = await coloured(encoded.store).query(
        query,
        milvus_search_config={"radius": dense_far, "range_filter": dense_near},
        sparse_search_config={"radius": sparse_far, "range_filter": sparse_near},
    )
    expected = {0: set(sparse_ids), 0.5: {*dense_ids, *sparse_ids}, 1: set(dense_ids)}[alpha]
    assert set(result.ids) <= expected
    assert len(result.ids) == min(10, len(expected))


@lite
async def test_ranges_of_legs_that_milvus_fuses_are_refused_on_lite(encoded, coloured):
    with pytest.raises(QueryError, match=r"\['radius'\].*Milvus Lite .* ignores them.*pass alpha"):
        await coloured(encoded.store).query(query_for(), sparse_search_config={"radius": 2.0})


@lite
@pytest.mark.parametrize(
    ("mode", "alpha"), [(SPARSE, None), (TEXT_SEARCH, None), (HYBRID, None), (HYBRID, 0.5)]
)
async def test_a_sparse_parameter_that_milvus_refuses(encoded, coloured, mode, alpha):
    with pytest.raises(ServerError, match=r"failed.*only drop_ratio_search=0 is supported"):
        await coloured(encoded.store).query(
            query_for(mode, alpha=alpha), sparse_search_config={"drop_ratio_search": 0.2}
        )


@lite
@pytest.mark.parametrize("mode", [SPARSE, HYBRID])
async def test_a_sparse_parameter_that_milvus_takes(encoded, coloured, mode):
    store = coloured(encoded.store)
    result = await store.query(
        query_for(mode), sparse_search_config={"params": {"drop_ratio_search": 0.0}}
    )
    assert_same(result, await store.query(query_for(mode)))


@lite
@pytest.mark.parametrize("ef", [None, 1])
@pytest.mark.parametrize("name", [None, "filters", "node_ids"])
async def test_an_approximate_leg_finds_enough(hnsw, coloured, ef, name):
    """Milvus Lite itself searches `ef` rows, and filters them afterwards."""
    config = {} if ef is None else {"milvus_search_config": {"ef": ef}}
    store, weights = coloured(hnsw.store), (0.5, 0.75)
    query, options, nodes = query_for(), {}, NODES
    if name is not None:
        query, options, nodes = restricted(name, HYBRID)
    legs = hnsw.legs(query, nodes)
    result = await store.query(query, milvus_ranker=WeightedRanker(*weights), **options, **config)
    assert_best(result, weighted(legs, [10, 10], weights), 10)
    query.alpha = 0.25
    result = await store.query(query, **options, **config)
    assert_best(result, relative(legs, [10, 10], (0.25, 0.75)), 10)
    query.alpha = 1
    result = await store.query(query, **options, **config)
    assert_best(result, legs[0][1], 10)


@lite
async def test_parameters_of_the_dense_leg_are_not_those_of_the_sparse_one(encoded, coloured):
    config = {"drop_ratio_search": 0.2}
    store = coloured(encoded.store)
    await store.query(query_for(SPARSE), milvus_search_config=config)
    await store.query(query_for(DEFAULT), sparse_search_config=config)


@lite
@pytest.mark.parametrize("config", [[1], "ef=4", 3, ""])
async def test_bad_sparse_parameters_are_refused_and_named(encoded, coloured, config):
    with pytest.raises(QueryError, match="sparse_search_config"):
        await coloured(encoded.store).query(query_for(SPARSE), sparse_search_config=config)


# Encoders


class PublishedBase(ABC):
    """As in the published plugin: the default of the asynchronous methods blocks."""

    @abstractmethod
    def encode_queries(self, queries): ...

    async def async_encode_queries(self, queries):
        return self.encode_queries(queries)

    @abstractmethod
    def encode_documents(self, documents): ...

    async def async_encode_documents(self, documents):
        return self.encode_documents(documents)


class Published(PublishedBase):
    def __init__(self):
        self.calls = []

    encode_queries = BagOfWords.encode_queries
    encode_documents = BagOfWords.encode_documents


class Asynchronous(BagOfWords):
    async def async_encode_queries(self, queries):
        await asyncio.sleep(0)
        return self.encode_queries(queries)

    async def async_encode_documents(self, documents):
        await asyncio.sleep(0)
        return self.encode_documents(documents)


class OfCore(BaseSparseEmbedding):
    """LlamaIndex' own interface, which encodes queries one by one."""

    _calls: list = PrivateAttr(default_factory=list)

    @property
    def calls(self):
        return self._calls

    def _get_query_embedding(self, query):
        self.calls.append([query])
        return encode_query(query)

    async def _aget_query_embedding(self, query):
        return self._get_query_embedding(query)

    def _get_text_embedding(self, text):
        return self._get_text_embeddings([text])[0]

    async def _aget_text_embedding(self, text):
        return self._get_text_embedding(text)

    def _get_text_embeddings(self, texts):
        self.calls.append(list(texts))
        return [encode_document(text) for text in texts]

    async def _aget_text_embeddings(self, texts):
        return self._get_text_embeddings(texts)


def of_class(cls, **kwargs):
    def make():
        encoder = cls(**kwargs)
        return encoder, encoder.calls

    return make


def functions():
    encoder = BagOfWords()
    return (encoder.encode_queries, encoder.encode_documents), encoder.calls


def coroutine_functions():
    encoder = BagOfWords()

    async def queries(texts):
        return encoder.encode_queries(texts)

    async def documents(texts):
        return encoder.encode_documents(texts)

    return (queries, documents), encoder.calls


FORMS = {
    "subclass": of_class(BagOfWords),
    "asynchronous subclass": of_class(Asynchronous),
    "published": of_class(Published),
    "core": of_class(OfCore, embed_batch_size=1000),
    "functions": functions,
    "coroutine functions": coroutine_functions,
}


@pytest.fixture(scope="module")
def scratch(make_shared_store):
    """A store whose collection is emptied for each test: faster than one for each."""
    store = make_shared_store(
        collection_name=collection_name("scratch"),
        similarity_metric="COSINE",
        enable_sparse=True,
        sparse_embedding_function=BagOfWords(),
    )
    return store.connect()


@pytest.fixture
def make_encoded(scratch, reopen):
    """Makes stores with an encoder, on one empty collection."""
    scratch.clear()

    def make(encoder, **kwargs):
        given = {
            "collection_name": scratch.collection_name,
            "similarity_metric": "COSINE",
            "enable_sparse": True,
            "sparse_embedding_function": encoder,
        }
        return reopen(**{**given, **kwargs})

    return make


async def ids_in(store):
    return sorted(node.node_id for node in await store.get_nodes(filters=EVERYTHING))


@lite
@pytest.mark.parametrize("form", list(FORMS))
async def test_every_form_of_encoder(make_encoded, coloured, form):
    """Called once for all nodes of an add, and for all queries of a `query_many`."""
    encoder, calls = FORMS[form]()
    store = coloured(make_encoded(encoder))
    assert await store.add(NODES) == list(BY_ID)
    assert calls == [[node.text for node in NODES]]
    calls.clear()

    texts = [TEXT, "hazel", "daisy grass"]
    modes = [SPARSE, TEXT_SEARCH, HYBRID]
    queries = [query_for(mode, query_str=text) for mode, text in zip(modes, texts, strict=True)]
    results = await store.query_many(queries, milvus_ranker=WeightedRanker(0.5, 0.75))
    assert sorted(text for call in calls for text in call) == sorted(texts)
    assert len(calls) == (3 if form == "core" else 1)

    setup = Setup(store.store, "COSINE", False)
    for query, result in zip(queries, results, strict=True):
        expected = setup.sparse(query)[1]
        if query.mode == HYBRID:
            expected = setup.hybrid(query, weighted, (0.5, 0.75))
        assert_best(result, expected, 10)


@lite
async def test_many_nodes_are_encoded_in_batches(make_encoded, coloured, colour):
    encoder = BagOfWords()
    nodes = make_nodes(250)
    for i, node in enumerate(nodes):
        node.text = f"{WORDS[i % 8]} {WORDS[i % 7]} {i}"
    await coloured(make_encoded(encoder)).add(nodes)
    assert [text for call in encoder.calls for text in call] == [node.text for node in nodes]
    assert len(encoder.calls) == (1 if colour == "sync" else 3)


class SlowBagOfWords(BagOfWords):
    """Answers once so many calls of a store wait for it, however slowly they come."""

    def wait_for(self, store, calls):
        self.are_there = lambda: store.stats()["encode"].calls >= calls

    def encode_queries(self, queries):
        wait_until(self.are_there)
        return super().encode_queries(queries)

    def encode_documents(self, documents):
        wait_until(self.are_there)
        return super().encode_documents(documents)


@lite
async def test_single_adds_and_queries_share_calls_of_the_encoder(make_encoded):
    encoder = SlowBagOfWords()
    store = make_encoded(encoder)
    nodes = [node.model_copy() for node in NODES]
    encoder.wait_for(store, N)
    await asyncio.gather(*(store.async_add([node]) for node in nodes))
    assert store.stats()["encode"].calls == N
    assert store.stats()["encode"].rpcs == len(encoder.calls) <= 5
    encoder.calls.clear()

    texts = [f"{WORDS[i % 8]} {WORDS[i % 3]}" for i in range(60)]
    queries = [query_for(SPARSE, query_str=text) for text in texts]
    encoder.wait_for(store, N + 60)
    results = await asyncio.gather(*(store.aquery(query) for query in queries))
    for text, result in zip(texts, results, strict=True):
        assert_best(result, inner_products(text), 10)
    assert store.stats()["encode"].calls == N + 60
    assert len(encoder.calls) <= 5
    assert sorted(text for call in encoder.calls for text in call) == sorted(texts)


@lite
@pytest.mark.parametrize(("mode", "alpha"), [(DEFAULT, None), (HYBRID, 1), (MMR, None)], ids=label)
async def test_what_needs_no_encoding_is_not_encoded(make_encoded, coloured, mode, alpha):
    encoder = BagOfWords()
    store = coloured(make_encoded(encoder))
    await store.add([])
    assert encoder.calls == []
    await store.add(NODES[:5])
    encoder.calls.clear()
    assert len((await store.query(query_for(mode, alpha=alpha))).ids) == 5
    await store.query(query_for(SPARSE, doc_ids=[]))
    await store.query_many([])
    assert encoder.calls == []


class Failing(BagOfWords):
    """Does with texts that have the word "poison" what it was made for."""

    def __init__(self, fail):
        super().__init__()
        self.fail = fail

    def encode_queries(self, queries):
        vectors = super().encode_queries(queries)
        return self.fail(queries, vectors) if any("poison" in t for t in queries) else vectors

    def encode_documents(self, documents):
        vectors = super().encode_documents(documents)
        return self.fail(documents, vectors) if any("poison" in t for t in documents) else vectors


def raise_error(texts, vectors):
    raise KeyError("its own")


def too_few(texts, vectors):
    return vectors[1:]


def too_many(texts, vectors):
    return [*vectors, {1: 1.0}]


def no_list(texts, vectors):
    return None


def replacing(value):
    def replace(texts, vectors):
        return [
            value if "poison" in text else vector
            for text, vector in zip(texts, vectors, strict=True)
        ]

    return replace


def with_poison(nodes, numbers):
    copies = [node.model_copy() for node in nodes]
    for i in numbers:
        copies[i].text = f"apple poison {i}"
    return copies


FAILURES = {
    "raises": (raise_error, KeyError, KeyError, "its own"),
    "too few": (too_few, EncoderError, EncoderError, "encode_.* returned a list of"),
    "too many": (too_many, EncoderError, EncoderError, "encode_.* returned a list of"),
    "no list": (no_list, EncoderError, EncoderError, "encode_.* returned None"),
    "all zeros": (replacing({3: 0.0}), NodeError, QueryError, "is all zeros"),
}


@lite
@pytest.mark.parametrize("failure", list(FAILURES))
async def test_an_encoder_fails_for_its_own_caller_alone(make_encoded, failure):
    fail, of_add, of_query, message = FAILURES[failure]
    store = make_encoded(Failing(fail))
    bad = [3, 17, 18]
    nodes = with_poison(NODES[:30], bad)
    outcomes = await asyncio.gather(
        *(store.async_add([node]) for node in nodes), return_exceptions=True
    )
    good = [node.node_id for i, node in enumerate(nodes) if i not in bad]
    assert [outcome for outcome in outcomes if isinstance(outcome, list)] == [[i] for i in good]
    for i in bad:
        assert isinstance(outcomes[i], of_add)
        assert re.search(message, str(outcomes[i]))
    assert await ids_in(Awaited(store)) == sorted(good)

    texts = ["poison" if i in bad else TEXT for i in range(30)]
    outcomes = await asyncio.gather(
        *(store.aquery(query_for(HYBRID, query_str=text)) for text in texts),
        return_exceptions=True,
    )
    for i, outcome in enumerate(outcomes):
        if i in bad:
            assert isinstance(outcome, of_query)
            assert re.search(message, str(outcome))
        else:
            assert len(outcome.ids) == 10


class Awaited:
    """A store for helpers that take one in any colour."""

    def __init__(self, store):
        self.get_nodes = store.aget_nodes


MALFORMED = [
    ({}, "is all zeros"),
    ({1: 0.0}, "is all zeros"),
    ({-1: 1.0}, "has the index -1, which is not in"),
    ({2**32: 1.0}, "has the index 4294967296, which is not in"),
    ({"apple": 1.0}, "has the index 'apple', which is no integer"),
    ({1: math.nan}, "has nan at index 1, which is no finite 32-bit number"),
    ({1: 1e39}, r"has 1e\+39 at index 1, which is no finite 32-bit number"),
    ({1: "1"}, "has '1' at index 1"),
    ([(1, 1.0), (1, 2.0)], "has the index 1 twice"),
    ([1.0, 2.0], "is a list of 2"),
    (None, "is None"),
]


@lite
@pytest.mark.parametrize(("vector", "message"), MALFORMED, ids=label)
async def test_a_malformed_vector_is_an_error_that_names_it(
    make_encoded, coloured, vector, message
):
    store = coloured(make_encoded(Failing(replacing(vector))))
    nodes = with_poison(NODES[:4], [1, 3])
    with pytest.raises(
        NodeError, match=f"Nothing was written.*its sparse embedding {message}"
    ) as e:
        await store.add(nodes)
    assert [node_id for node_id, _ in e.value.problems] == ["node-1", "node-3"]
    assert await ids_in(store) == []

    await store.add(NODES[:4])
    for mode, alpha in ((SPARSE, None), (HYBRID, None), (HYBRID, 0)):
        query = query_for(mode, query_str="poison", alpha=alpha)
        with pytest.raises(QueryError, match=f"the sparse embedding of query_str {message}"):
            await store.query(query)
    assert len((await store.query(query_for())).ids) == 4


@lite
@pytest.mark.parametrize("failure", ["raises", "too few", "too many", "no list"])
async def test_an_encoder_that_fails_leaves_nothing_written(make_encoded, coloured, failure):
    fail, error, _, message = FAILURES[failure]
    store = coloured(make_encoded(Failing(fail)))
    with pytest.raises(error, match=message):
        await store.add(with_poison(NODES, [39]))
    assert await ids_in(store) == []
    with pytest.raises(error, match=message):
        await store.query_many([query_for(), query_for(SPARSE, query_str="poison")])
    await store.add(NODES)
    assert len((await store.query(query_for())).ids) == 10


class Slow(BagOfWords):
    def encode_queries(self, queries):
        time.sleep(0.3)
        return BagOfWords.encode_queries(self, queries)

    def encode_documents(self, documents):
        time.sleep(0.3)
        return BagOfWords.encode_documents(self, documents)


class SlowAsPublished(Published):
    encode_queries = Slow.encode_queries
    encode_documents = Slow.encode_documents


@lite
@pytest.mark.parametrize(
    "encoder",
    [Slow(), SlowAsPublished(), (Slow().encode_queries, Slow().encode_documents)],
    ids=["subclass", "published", "functions"],
)
async def test_a_slow_encoder_does_not_hold_the_loop(make_encoded, heartbeat, encoder):
    store = await make_encoded(encoder).aconnect()
    async with heartbeat() as stall:
        await store.async_add(NODES[:10])
        assert len((await store.aquery(query_for())).ids) == 10
    assert stall.net_ms < 150


@lite
async def test_a_caller_that_leaves_does_not_disturb_the_others(make_encoded):
    store = make_encoded(Slow())
    await store.async_add(NODES)
    tasks = [asyncio.create_task(store.aquery(query_for(SPARSE))) for _ in range(10)]
    await asyncio.sleep(0.05)
    for task in tasks[::2]:
        task.cancel()
    outcomes = await asyncio.gather(*tasks, return_exceptions=True)
    assert all(isinstance(outcome, asyncio.CancelledError) for outcome in outcomes[::2])
    for outcome in outcomes[1::2]:
        assert_best(outcome, inner_products(TEXT), 10)


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
            "sparse_embedding_field is 'embedding', the name of embedding_field already",
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


@lite
async def test_an_index_type_of_the_sparse_field_that_milvus_refuses(make_store, coloured):
    store = make_store(
        enable_sparse=True,
        sparse_embedding_function=BagOfWords(),
        sparse_index_config={"index_type": "NO_SUCH_INDEX"},
    )
    with pytest.raises(ServerError, match="NO_SUCH_INDEX"):
        await coloured(store).connect()


# Coalescing


def many_queries(count, **kwargs):
    vectors = [node.embedding for node in make_nodes(count, seed=3)]
    texts = [f"{WORDS[i % 8]} {WORDS[(i // 8) % 8]} {WORDS[i % 3]}" for i in range(count)]
    return [
        query_for(query_embedding=vector, query_str=text, **kwargs)
        for vector, text in zip(vectors, texts, strict=True)
    ]


def assert_identical(results, expected):
    assert [result.ids for result in results] == [one.ids for one in expected]
    for result, one in zip(results, expected, strict=True):
        assert result.similarities == pytest.approx(one.similarities, abs=FULL_PRECISION)
        assert result.nodes == one.nodes


def another(setup, make):
    """A store on the same collection, whose statistics begin at zero."""
    store = setup.store
    return make(
        collection_name=store.collection_name,
        similarity_metric=setup.metric,
        enable_sparse=True,
        sparse_embedding_function=None if setup.full_text else BagOfWords(),
    )


@lite
async def test_concurrent_hybrid_queries_share_rpcs(either, reopen):
    queries = many_queries(100)
    alone = [await either.store.aquery(query) for query in queries]
    store = another(either, reopen)
    results = await asyncio.gather(*(store.aquery(query) for query in queries))
    assert_identical(results, alone)
    assert len({tuple(result.ids) for result in results}) > 50

    stats = store.stats()
    assert stats["hybrid"].calls == stats["hybrid"].items == 100
    assert stats["hybrid"].rpcs <= 10
    assert "search" not in stats
    if not either.full_text:
        assert stats["encode"].rpcs <= 10


@lite
async def test_without_coalescing_each_hybrid_query_is_an_rpc(on_encoded, encoded):
    store = on_encoded(coalesce=False)
    queries = many_queries(10)
    results = await asyncio.gather(*(store.aquery(query) for query in queries))
    assert_identical(results, [await encoded.store.aquery(query) for query in queries])
    assert store.stats()["hybrid"].rpcs == store.stats()["encode"].rpcs == 10


@lite
async def test_the_legs_of_concurrent_queries_share_rpcs_where_alpha_weighs(either, reopen):
    queries = many_queries(50, alpha=0.3)
    alone = [await either.store.aquery(query) for query in queries]
    store = another(either, reopen)
    results = await asyncio.gather(*(store.aquery(query) for query in queries))
    assert_identical(results, alone)
    stats = store.stats()
    assert stats["search"].calls == 100
    assert stats["search"].rpcs <= 8


VARIATIONS = [
    ({}, {}),
    ({}, {"milvus_ranker": RRFRanker(1)}),
    ({}, {"milvus_ranker": WeightedRanker(0.9, 0.1)}),
    ({}, {"milvus_ranker": WeightedRanker(0.1, 0.9)}),
    ({}, {"milvus_ranker": WeightedRanker(0.1, 0.9, norm_score=False)}),
    ({}, {"milvus_ranker": rerank(reranker="rrf", k=2)}),
    ({}, {"milvus_ranker": rerank(reranker="weighted", weights=[0.2, 0.8])}),
    ({"alpha": 0.25}, {}),
    ({"alpha": 0.75}, {}),
    ({"alpha": 0}, {}),
    ({"alpha": 1}, {}),
    ({"similarity_top_k": 7}, {}),
    ({"hybrid_top_k": 3}, {}),
    ({"sparse_top_k": 4, "similarity_top_k": 4}, {}),
    ({"filters": filters(("kind", "==", "poem"))}, {}),
    ({"filters": filters(("kind", "==", "play"))}, {}),
    ({"doc_ids": ["doc-1", "doc-2", "doc-3"]}, {}),
    ({"hybrid_top_k": 8}, {"offset": 2}),
    ({}, {"group_by_field": "kind"}),
    ({}, {"score_threshold": 0.02}),
    ({"output_fields": ["embedding"]}, {}),
]


@lite
async def test_queries_that_differ_do_not_mix(either):
    """Each gets what it gets alone, and no two kinds of query get the same."""
    queries = [
        (query_for(query_embedding=QUERIES[i % 8], **kwargs), options)
        for i in range(3)
        for kwargs, options in VARIATIONS
    ]
    alone = [await either.store.aquery(query, **options) for query, options in queries]
    together = (either.store.aquery(query, **options) for query, options in queries)
    assert_identical(await asyncio.gather(*together), alone)
    first = alone[: len(VARIATIONS)]
    answers = {(*r.ids, *np.round(r.similarities, 6), r.nodes[0].embedding is None) for r in first}
    assert len(answers) == len(VARIATIONS)


@lite
async def test_queries_of_all_modes_at_once(either):
    modes = [DEFAULT, SPARSE, TEXT_SEARCH, HYBRID, MMR]
    queries = [query_for(modes[i % 5], query_embedding=QUERIES[i % 8]) for i in range(50)]
    alone = [await either.store.aquery(query) for query in queries]
    assert_identical(
        await asyncio.gather(*(either.store.aquery(query) for query in queries)), alone
    )


@lite
async def test_query_many_of_all_modes(either, coloured):
    modes = [DEFAULT, SPARSE, TEXT_SEARCH, HYBRID, MMR]
    queries = [
        query_for(
            modes[i % 5], query_embedding=QUERIES[i % 8], alpha=[None, 0, 0.5, 1][i % 4], **kwargs
        )
        for i in range(40)
        for kwargs in [{"doc_ids": []} if i % 11 == 3 else {}]
    ]
    store = coloured(either.store)
    alone = [await store.query(query, mmr_over="hybrid") for query in queries]
    assert_identical(await store.query_many(queries, mmr_over="hybrid"), alone)
    assert [len(one.ids) for one in alone].count(0) == 4
    assert await store.query_many([], mmr_over="hybrid") == []


@lite
async def test_query_many_with_a_bad_query_asks_nothing(make_encoded, coloured):
    encoder = BagOfWords()
    store = coloured(make_encoded(encoder))
    await store.add(NODES[:5])
    encoder.calls.clear()
    with pytest.raises(QueryError, match="needs query_str"):
        await store.query_many([query_for(), query_for(SPARSE, query_str=""), query_for()])
    assert encoder.calls == []
    assert not store.store.stats().get("hybrid")


@lite
async def test_a_bad_query_fails_alone(either):
    bad = [
        query_for(query_embedding=[1.0] * (DIM + 1)),
        query_for(query_str=" "),
        query_for(alpha=0.5, hybrid_top_k=16_385),
    ]
    queries = many_queries(30)
    queries[5], queries[15], queries[25] = bad
    outcomes = await asyncio.gather(
        *(either.store.aquery(query) for query in queries), return_exceptions=True
    )
    failed = [i for i, outcome in enumerate(outcomes) if isinstance(outcome, QueryError)]
    assert failed == [5, 15, 25]
    assert {len(o.ids) for i, o in enumerate(outcomes) if i not in failed} == {10}


class OutOfService(BagOfWords):
    """Fails as a service that is away does, with an exception of its own."""

    def __init__(self):
        super().__init__()
        self.asked = 0

    async def async_encode_queries(self, queries):
        self.asked += 1
        raise RuntimeError("503 Service Unavailable")


@lite
@pytest.mark.parametrize("together", [True, False])
async def test_a_service_that_is_away_is_not_asked_for_each_text(make_encoded, together):
    encoder = OutOfService()
    store = make_encoded(encoder)
    texts = [f"{TEXT} {i}" for i in range(1_000 if together else 50)]
    queries = [query_for(query_str=text) for text in texts]
    calls = [store.aquery_many(queries)] if together else map(store.aquery, queries)
    outcomes = await asyncio.gather(*calls, return_exceptions=True)
    assert {str(outcome) for outcome in outcomes} == {"503 Service Unavailable"}
    await asyncio.sleep(0.1)
    # Those that come while one is under way share the next; on a busy machine it is not the last.
    assert encoder.asked <= 10


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


# What changes is seen


@pytest.fixture(params=["encoder", "bm25"])
def changing(make_store, request):
    return make_store(
        enable_sparse=True,
        upsert_mode=True,
        similarity_metric="COSINE",
        sparse_embedding_function=BagOfWords() if request.param == "encoder" else None,
    )


@lite
@pytest.mark.parametrize("force_flush", [False, True])
async def test_what_is_written_again_is_found_by_its_new_words(changing, coloured, force_flush):
    store = coloured(changing)
    texts = ["apple birch", "birch cedar", "cedar daisy"]
    nodes = make_nodes(3)
    for node, text in zip(nodes, texts, strict=True):
        node.text = text
    await store.add(nodes, force_flush=force_flush)

    async def found(word, **kwargs):
        result = await store.query(query_for(SPARSE, query_str=word, **kwargs))
        return sorted(result.ids)

    assert await found("birch") == ["node-0", "node-1"]
    nodes[0].text = "elder daisy"
    await store.add([nodes[0]], force_flush=force_flush)
    assert await found("birch") == ["node-1"]
    assert await found("apple") == []
    assert await found("daisy") == ["node-0", "node-2"]
    result = await store.query(query_for(query_str="elder"))
    assert sorted(result.ids) == ["node-0", "node-1", "node-2"]
    assert {node.text for node in result.nodes} == {"elder daisy", "birch cedar", "cedar daisy"}

    await store.delete_nodes(["node-1"])
    assert await found("birch") == []
    assert await found("cedar") == ["node-2"]
    for alpha in (None, 0, 0.5, 1):
        query = query_for(query_str="cedar daisy", alpha=alpha)
        assert sorted((await store.query(query)).ids) == ["node-0", "node-2"]
    await store.delete("doc-0")
    assert await found("daisy") == []
    assert (await store.query(query_for(query_str="daisy"))).ids == []


COPIES = {
    "pickle": lambda store: pickle.loads(pickle.dumps(store)),
    "copy": copy.copy,
    "deepcopy": copy.deepcopy,
    "model_copy": lambda store: store.model_copy(),
    "from_dict": lambda store: MilvusVectorStore.from_dict(
        store.to_dict(), sparse_embedding_function=store.sparse_embedding_function
    ),
    "from_json": lambda store: MilvusVectorStore.from_json(
        store.to_json(), sparse_embedding_function=store.sparse_embedding_function
    ),
}


@lite
@pytest.mark.parametrize(
    ("how", "ranker"),
    [
        *((how, ("WeightedRanker", {"weights": [0.5, 0.75]})) for how in COPIES),
        # An object cannot be written as JSON.
        *((how, (WeightedRanker(0.5, 0.75), {})) for how in COPIES if "from" not in how),
    ],
    ids=lambda value: value if isinstance(value, str) else type(value[0]).__name__,
)
async def test_a_copy_of_a_store_answers_as_the_store(encoded, coloured, how, ranker):
    given = dict(zip(("hybrid_ranker", "hybrid_ranker_params"), ranker, strict=True))
    original = encoded.store.model_copy(update=given)
    store = COPIES[how](original)
    try:
        for query in (query_for(), query_for(SPARSE), query_for(alpha=0.25)):
            expected = await coloured(original).query(query)
            assert_identical([await coloured(store).query(query)], [expected])
        assert store.hybrid_ranker_params == ranker[1]
    finally:
        await coloured(store).close()
        await coloured(original).close()


@lite
def test_an_encoder_and_its_state_are_not_written(encoded):
    for dump in (encoded.store.to_json(), repr(encoded.store.to_dict()), repr(encoded.store)):
        assert "object at" not in dump
        assert "vocabulary" not in dump


@lite
def test_a_store_rebuilt_without_its_encoder_says_so(encoded):
    with pytest.raises(ConfigurationError, match="function is a value of type str"):
        MilvusVectorStore.from_dict(encoded.store.to_dict())
    given = encoded.store.sparse_embedding_function
    store = MilvusVectorStore.from_dict(encoded.store.to_dict(), sparse_embedding_function=given)
    store.close()


@pytest.mark.parametrize("ranker", [rrf_here(60), rerank(reranker="rrf"), RRFRanker(5)], ids=type)
def test_a_ranker_that_is_lost_is_refused_rather_than_replaced(ranker):
    store = MilvusVectorStore(uri="http://127.0.0.1:1", hybrid_ranker=ranker)
    with pytest.raises(ConfigurationError, match="hybrid_ranker is"):
        MilvusVectorStore.from_dict(store.to_dict())
    again = MilvusVectorStore.from_dict(store.to_dict(), hybrid_ranker=ranker)
    assert again.hybrid_ranker is ranker


async def test_the_analyzer_of_a_query_is_sent_as_milvus_reads_it(recorder, make_store, coloured):
    """Beside the parameters of the index, among which it would be ignored."""
    store = make_store(uri=recorder.uri)
    await coloured(store).connect()
    config = {"analyzer_name": "english", "ef": 64}
    await coloured(store).query(query_for(DEFAULT), milvus_search_config=config)
    [search] = [call for call in recorder.calls if call.method == "Search"]
    request = SearchRequest.FromString(search.body)
    sent = {pair.key: pair.value for pair in request.search_params}
    assert sent["analyzer_name"] == "english"
    assert json.loads(sent["params"])["ef"] == 64


@lite
async def test_the_nodes_of_one_query_are_made_in_slices(make_store, monkeypatch):
    store = make_store()
    await store.async_add(make_nodes(300))
    ticks, seen = 0, []
    node_of = queries.node_of

    def slow_node_of(hit):
        seen.append(ticks)
        time.sleep(0.001)
        return node_of(hit)

    async def tick():
        nonlocal ticks
        while True:
            ticks += 1
            await asyncio.sleep(0)

    monkeypatch.setattr(queries, "node_of", slow_node_of)
    ticking = asyncio.ensure_future(tick())
    result = await store.aquery(query_for(DEFAULT, similarity_top_k=300))
    ticking.cancel()
    assert len(result.ids) == len(seen) == 300
    assert len(set(seen)) > 30
