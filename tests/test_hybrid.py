"""Sparse, full-text and hybrid queries, compared with the same computed here from the same data."""

from __future__ import annotations

import asyncio
import copy
import math
import pickle
import re
import time
import zlib
from abc import ABC, abstractmethod
from collections import Counter
from contextlib import suppress

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

from llama_index_milvus_async import (
    CollectionError,
    ConfigurationError,
    MilvusVectorStore,
    NodeError,
    QueryError,
    ServerError,
)
from llama_index_milvus_async._expressions import Dialect
from llama_index_milvus_async._schema import MAX_VARCHAR_BYTES
from llama_index_milvus_async.errors import EncoderError
from llama_index_milvus_async.sparse import BaseSparseEmbeddingFunction, BM25BuiltInFunction
from tests.fixtures.stores import DIM, collection_name, make_nodes

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
    if metric == "L2":
        found = ((vectors - query) ** 2).sum(axis=1)
    else:
        found = vectors @ query
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

    def hybrid(self, query, fuse=weighted, *arguments, offset=0, nodes=NODES):
        """Fused of as many candidates as are documented."""
        limit = (query.hybrid_top_k or query.similarity_top_k) + offset
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
    store.add(NODES)
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
def on_encoded(encoded, make_shared_store):
    """Makes further stores on the collection of `encoded`."""

    def make(**kwargs):
        given = {
            "collection_name": encoded.store.collection_name,
            "similarity_metric": "COSINE",
            "enable_sparse": True,
            "sparse_embedding_function": BagOfWords(),
        }
        return make_shared_store(**{**given, **kwargs})

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
def fused_here(monkeypatch):
    """Makes searches of stores that are ready take Milvus for one without hybrid search."""

    def switch():
        monkeypatch.setattr(Dialect, "has_several_vectors", property(lambda self: False))

    return switch


def filters(*triples):
    return MetadataFilters(
        filters=[MetadataFilter(key=k, operator=o, value=v) for k, o, v in triples]
    )


def test_the_corpus_is_unambiguous():
    """Ties would be broken here in one way and in Milvus in another."""
    for text in (TEXT, *WORDS):
        for scores in (inner_products(text), bm25_scores(text)):
            ordered = sorted(scores.values())
            assert min(np.diff(ordered)) > 10 * FULL_PRECISION
            assert 5 < len(ordered) < N
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
async def test_mmr_over_hybrid(setup, coloured, threshold):
    """Of all nodes as candidates, so that the ties of RRF do not matter."""
    query = query_for(MMR, mmr_threshold=threshold)
    result = await coloured(setup.store).query(query, mmr_over="hybrid", mmr_prefetch_k=N)
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


@lite
@pytest.mark.parametrize("mode", [SPARSE, TEXT_SEARCH, HYBRID, MMR])
@pytest.mark.parametrize("text", ["", "  \n", None], ids=repr)
async def test_a_missing_text_is_refused(either, coloured, mode, text):
    with pytest.raises(QueryError, match=f"mode {mode.name} needs query_str, and it is missing"):
        await coloured(either.store).query(query_for(mode, query_str=text), mmr_over="hybrid")


@lite
@pytest.mark.parametrize("mode", [DEFAULT, HYBRID, MMR])
@pytest.mark.parametrize("embedding", [None, []], ids=repr)
async def test_a_missing_embedding_is_refused(either, coloured, mode, embedding):
    with pytest.raises(QueryError, match=f"mode {mode.name} needs query_embedding"):
        await coloured(either.store).query(query_for(mode, query_embedding=embedding))


@pytest.mark.parametrize(
    "mode",
    [VectorStoreQueryMode.SEMANTIC_HYBRID, *map(VectorStoreQueryMode, ("svm", "logistic_regression",
    "linear_regression"))],
)
async def test_an_unsupported_mode_is_refused_with_those_supported(dense, coloured, mode):
    message = (
        f"mode .*{mode.name}.* is not supported; supported are "
        "DEFAULT, SPARSE, TEXT_SEARCH, HYBRID, MMR$"
    )
    with pytest.raises(QueryError, match=message):
        await coloured(dense.store).query(query_for(mode))


# alpha, and the numbers of hits


@lite
@pytest.mark.parametrize("alpha", [0.25, 0.5, 0.9])
async def test_alpha_weighs(setup, coloured, alpha):
    query = query_for(alpha=alpha)
    result = await coloured(setup.store).query(query)
    assert_best(result, setup.hybrid(query, weighted, (alpha, 1 - alpha)), 10)


@lite
@pytest.mark.parametrize("alpha", [0, 0.0])
async def test_alpha_0_is_sparse_alone(setup, coloured, alpha):
    query = query_for(alpha=alpha, query_embedding=None)
    metric, scores = setup.sparse(query)
    expected = {node_id: normal(metric, score) for node_id, score in scores.items()}
    assert_best(await coloured(setup.store).query(query), expected, 10)


@lite
@pytest.mark.parametrize("alpha", [1, 1.0])
async def test_alpha_1_is_dense_alone(setup, coloured, alpha):
    query = query_for(alpha=alpha, query_str=None)
    metric, scores = setup.dense(query)
    expected = {node_id: normal(metric, score) for node_id, score in scores.items()}
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
async def test_alpha_weighs_the_candidates_of_mmr(setup, coloured):
    query = query_for(MMR, similarity_top_k=4, alpha=0.25)
    candidates = setup.hybrid(query_for(similarity_top_k=12), weighted, (0.25, 0.75))
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
async def test_a_ranker_of_the_query_goes_before_alpha(either, coloured):
    query = query_for(alpha=0.25)
    result = await coloured(either.store).query(query, milvus_ranker=WeightedRanker(1.0, 0.5))
    assert_best(result, either.hybrid(query, weighted, (1.0, 0.5)), 10)


@pytest.mark.parametrize("mode", [HYBRID, DEFAULT])
@pytest.mark.parametrize("alpha", [-0.1, 1.1, math.nan, math.inf, "0.5", True, [0.5]])
async def test_a_bad_alpha_is_refused(dense, coloured, mode, alpha):
    query = query_for(mode)
    query.alpha = alpha
    with pytest.raises(QueryError, match=re.escape(f"alpha is {alpha!r}; it must be a number in")):
        await coloured(dense.store).query(query)


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
    ids=str,
)
@pytest.mark.parametrize("offset", [0, 3])
@pytest.mark.parametrize("here", [False, True], ids=["fused by Milvus", "fused here"])
async def test_numbers_of_hits(either, coloured, fused_here, top_ks, offset, here):
    if here:
        fused_here()
    query = query_for(**top_ks)
    result = await coloured(either.store).query(
        query, milvus_ranker=WeightedRanker(0.6, 0.4), offset=offset
    )
    limit = query.hybrid_top_k or query.similarity_top_k
    expected = either.hybrid(query, weighted, (0.6, 0.4), offset=offset)
    assert_best(result, expected, limit, offset)


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
    ids=str,
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
async def test_a_bad_top_k_is_refused_and_named(dense, coloured, name, top_k):
    query = query_for()
    setattr(query, name, top_k)
    with pytest.raises(QueryError, match=f"{name} is {top_k!r}"):
        await coloured(dense.store).query(query)


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
@pytest.mark.parametrize("alpha", [0.0, 0.25, 1.0])
@pytest.mark.parametrize("here", [False, True], ids=["fused by Milvus", "fused here"])
async def test_every_leg_is_restricted(either, coloured, fused_here, name, alpha, here):
    if here:
        fused_here()
    query, options, nodes = restricted(name, HYBRID, alpha=alpha, similarity_top_k=6)
    result = await coloured(either.store).query(query, **options)
    legs = either.legs(query, nodes)
    if alpha in (0, 1):
        legs = [legs[1 - int(alpha)]]
    weights = (1.0,) if len(legs) == 1 else (alpha, 1 - alpha)
    assert_best(result, weighted(legs, [6] * len(legs), weights), 6)


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
    with pytest.raises(ServerError, match="hybrid.*failed"):
        await coloured(either.store).query(query_for(), string_expr="year >")
