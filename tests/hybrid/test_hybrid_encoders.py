"""Functions that encode texts as sparse vectors: their forms, batches and failures."""

from __future__ import annotations

import asyncio
import math
import re
import time
from abc import ABC, abstractmethod

import pytest
from llama_index.core.base.embeddings.base_sparse import BaseSparseEmbedding
from llama_index.core.bridge.pydantic import PrivateAttr
from pymilvus import WeightedRanker

from llama_index_milvus_async import (
    NodeError,
    QueryError,
)
from llama_index_milvus_async.errors import EncoderError
from tests.fixtures.labels import label
from tests.fixtures.stores import make_nodes
from tests.fixtures.waiting import wait_until
from tests.hybrid.corpus import (
    BY_ID,
    DEFAULT,
    HYBRID,
    MMR,
    NODES,
    SPARSE,
    TEXT,
    TEXT_SEARCH,
    WORDS,
    BagOfWords,
    N,
    Setup,
    assert_best,
    encode_document,
    encode_query,
    ids_in,
    inner_products,
    lite,
    query_for,
    weighted,
)


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
    """LlamaIndex's own interface, which encodes queries one by one."""

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


@lite
@pytest.mark.parametrize("form", list(FORMS))
async def test_every_form_of_encoder(make_encoded, coloured, form):
    """Called once for all nodes of an add, and for all queries of a `query_many`."""
    encoder, calls = FORMS[form]()
    store = coloured(make_encoded(encoder, hybrid_ranker=WeightedRanker(0.5, 0.75)))
    assert await store.add(NODES) == list(BY_ID)
    assert calls == [[node.text for node in NODES]]
    calls.clear()

    texts = [TEXT, "hazel", "daisy grass"]
    modes = [SPARSE, TEXT_SEARCH, HYBRID]
    queries = [query_for(mode, query_str=text) for mode, text in zip(modes, texts, strict=True)]
    results = await store.query_many(queries)
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
    "malformed": (replacing({-1: 1.0}), NodeError, QueryError, "has the index -1"),
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
    ({-1: 1.0}, "has the index -1, which is not in"),
    ({2**32: 1.0}, "has the index 4294967296, which is not in"),
    ({"apple": 1.0}, "has the index 'apple', which is not an integer"),
    ({1: math.nan}, "has nan at index 1, which is not a finite 32-bit number"),
    ({1: 1e39}, r"has 1e\+39 at index 1, which is not a finite 32-bit number"),
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
@pytest.mark.parametrize("vector", [{}, {1: 0.0}], ids=label)
async def test_only_a_question_may_be_without_weights(make_encoded, coloured, vector):
    store = coloured(make_encoded(Failing(replacing(vector))))
    with pytest.raises(NodeError, match=r"Nothing was written.*its sparse embedding is all zeros"):
        await store.add(with_poison(NODES[:4], [1]))
    await store.add(NODES[:4])
    queries = [query_for(SPARSE, query_str=text) for text in ("poison", TEXT, "poison")]
    found = [len(result.ids) for result in await store.query_many(queries)]
    assert found == [0, len(inner_products(TEXT, NODES[:4])), 0]


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
    seen = []
    while not seen or seen[-1].net_ms >= 150:
        assert len(seen) < 3, f"the loop was held too long in every run: {seen}"
        async with heartbeat() as stall:
            await store.async_add(NODES[:10])
            assert len((await store.aquery(query_for())).ids) == 10
        seen.append(stall)


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
