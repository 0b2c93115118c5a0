"""The nodes of the hybrid tests, who encodes them, and the right answers, computed here."""

from __future__ import annotations

import math
import re
import zlib
from collections import Counter

import numpy as np
import pytest
from llama_index.core.schema import NodeWithScore
from llama_index.core.vector_stores.types import (
    MetadataFilter,
    MetadataFilters,
    VectorStoreQuery,
    VectorStoreQueryMode,
)
from pymilvus import DataType, Function, FunctionType

from llama_index_milvus_async.sparse import BaseSparseEmbeddingFunction
from tests.fixtures.stores import collection_name, make_nodes

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
        limits = [query.similarity_top_k, query.sparse_top_k or query.similarity_top_k]
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


def filters(*triples):
    return MetadataFilters(
        filters=[MetadataFilter(key=k, operator=o, value=v) for k, o, v in triples]
    )


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


def rerank(**params):
    return Function("rerank", FunctionType.RERANK, [], params=params)


async def ids_in(store):
    return sorted(node.node_id for node in await store.get_nodes(filters=EVERYTHING))


def assert_identical(results, expected):
    assert [result.ids for result in results] == [one.ids for one in expected]
    for result, one in zip(results, expected, strict=True):
        assert result.similarities == pytest.approx(one.similarities, abs=FULL_PRECISION)
        assert result.nodes == one.nodes
