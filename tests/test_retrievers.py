"""LlamaIndex's retrievers on the store: auto, fusion, recursive, auto-merging, sentence windows."""

from __future__ import annotations

import asyncio
import json
import re

import numpy as np
import pytest
from llama_index.core import Document, StorageContext, SummaryIndex, VectorStoreIndex
from llama_index.core.base.llms.types import CompletionResponse
from llama_index.core.llms import MockLLM
from llama_index.core.llms.callbacks import llm_completion_callback
from llama_index.core.node_parser import (
    HierarchicalNodeParser,
    SentenceWindowNodeParser,
    TextSplitter,
    get_leaf_nodes,
)
from llama_index.core.postprocessor import MetadataReplacementPostProcessor
from llama_index.core.query_engine import RetrieverQueryEngine
from llama_index.core.retrievers import (
    AutoMergingRetriever,
    QueryFusionRetriever,
    RecursiveRetriever,
    VectorIndexAutoRetriever,
)
from llama_index.core.schema import IndexNode, TextNode
from llama_index.core.storage.docstore import SimpleDocumentStore
from llama_index.core.vector_stores.types import (
    FilterOperator,
    MetadataFilter,
    MetadataFilters,
    MetadataInfo,
    VectorStoreInfo,
    VectorStoreQuery,
    VectorStoreQueryMode,
)
from pymilvus import RRFRanker

from llama_index_milvus_async import QueryError
from tests.fixtures.labels import label
from tests.fixtures.words import DIM, WordEmbedding

lite = pytest.mark.engines("lite")

FULL_PRECISION = 1e-5  # Milvus computes in 32 bits
TEXTS = {
    "bread": "Knead the dough for ten minutes. The loaf is done when its crust sounds hollow. "
    "Rye makes the bread sour.",
    "lighthouse": "The keeper lit the lamp at dusk. Its beam warned ships of the rocks. "
    "Fog hid the tower.",
    "chess": "The bishop moves along the diagonals. The rook moves along ranks and files. "
    "A pawn may become a queen.",
    "tea": "Pour boiling water over the leaves. Wait for three minutes. Green tea wants "
    "cooler water.",
}
YEARS = {"bread": 1900, "lighthouse": 1850, "chess": 1600, "tea": 1700}
QUESTION = "Which piece moves along the diagonals?"
WATER = "boiling water"


class SentencePerNode(TextSplitter):
    def split_text(self, text):
        return sentences(text)


class ParagraphPerNode(TextSplitter):
    def split_text(self, text):
        return [paragraph.strip() for paragraph in text.split("\n\n")]


class CountingEmbedding(WordEmbedding):
    """Counts the queries that were embedded."""

    queries: int = 0

    def _get_query_embedding(self, query):
        self.queries += 1
        return super()._get_query_embedding(query)

    async def _aget_query_embedding(self, query):
        self.queries += 1
        return await super()._aget_query_embedding(query)


class FixedLLM(MockLLM):
    """Answers the same, whatever the prompt."""

    answer: str = ""

    @llm_completion_callback()
    def complete(self, prompt, formatted=False, **kwargs):
        return CompletionResponse(text=self.answer)


def fixed_llm(answer):
    llm = FixedLLM()
    llm.answer = answer if isinstance(answer, str) else json.dumps(answer)
    return llm


def sentences(text):
    return [sentence.strip() for sentence in re.findall(r"[^.]+\.", text)]


def make_documents():
    return [
        Document(id_=name, text=text, metadata={"topic": name, "year": YEARS[name]})
        for name, text in TEXTS.items()
    ]


def similarities(question):
    """Text to cosine similarity of every sentence of the corpus, best first."""
    model = WordEmbedding()
    query = np.array(model.get_query_embedding(question))
    chunks = [node.get_content("embed") for node in SentencePerNode()(make_documents())]
    scores = {text: float(np.array(model.get_text_embedding(text)) @ query) for text in chunks}
    return dict(sorted(scores.items(), key=lambda item: -item[1]))


async def retrieve(colour, retriever, question):
    if colour == "sync":
        return retriever.retrieve(question)
    return await retriever.aretrieve(question)


def texts(nodes):
    return [node.get_content() for node in nodes]


def topics(nodes):
    return [node.metadata["topic"] for node in nodes]


def scores(nodes):
    return [node.score for node in nodes]


@pytest.fixture(scope="module")
def shared(make_shared_store, engine):
    return make_shared_store(dim=DIM, similarity_metric="COSINE", enable_sparse=engine.is_lite)


def index_of(store, nodes=(), **kwargs):
    return VectorStoreIndex(
        list(nodes),
        storage_context=StorageContext.from_defaults(vector_store=store),
        embed_model=CountingEmbedding(),
        **kwargs,
    )


@pytest.fixture
def empty(shared):
    """A store without nodes; its collection is that of every test."""
    shared.clear()
    return shared


@pytest.fixture(scope="module")
def filled(make_shared_store, engine):
    """A store with the sentences of the corpus; nothing is written to it."""
    store = make_shared_store(dim=DIM, similarity_metric="COSINE", enable_sparse=engine.is_lite)
    index_of(store, SentencePerNode()(make_documents()))
    return store


@pytest.fixture
def index(filled):
    return VectorStoreIndex.from_vector_store(filled, embed_model=CountingEmbedding())


# Modes


async def test_the_default_mode_is_dense(index, colour):
    nodes = await retrieve(colour, index.as_retriever(similarity_top_k=5), QUESTION)
    best = list(similarities(QUESTION).items())[:5]
    assert [node.node.get_content("embed") for node in nodes] == [text for text, _ in best]
    assert scores(nodes) == pytest.approx([score for _, score in best], abs=FULL_PRECISION)


@lite
@pytest.mark.parametrize("mode", ["text_search", "sparse"])
async def test_full_text_finds_what_has_the_words(index, colour, mode):
    retriever = index.as_retriever(similarity_top_k=10, vector_store_query_mode=mode)
    nodes = await retrieve(colour, retriever, WATER)
    assert texts(nodes)[0] == "Pour boiling water over the leaves."
    assert set(texts(nodes)) == {
        "Pour boiling water over the leaves.",
        "Green tea wants cooler water.",
    }
    assert scores(nodes) == sorted(scores(nodes), reverse=True)
    assert index._embed_model.queries == 0


@lite
@pytest.mark.parametrize("mode", ["text_search", "sparse"])
async def test_sparse_top_k_is_the_number_of_hits(index, colour, mode):
    kwargs = {"vector_store_query_mode": mode, "similarity_top_k": 10}
    retriever = index.as_retriever(**kwargs, sparse_top_k=1)
    assert texts(await retrieve(colour, retriever, WATER)) == [
        "Pour boiling water over the leaves."
    ]
    retriever = index.as_retriever(**{**kwargs, "similarity_top_k": 1}, sparse_top_k=2)
    assert len(await retrieve(colour, retriever, WATER)) == 2


@lite
async def test_alpha_one_is_dense_and_zero_is_sparse(index, colour):
    kwargs = {"similarity_top_k": 5, "vector_store_query_mode": "hybrid"}
    dense = await retrieve(colour, index.as_retriever(similarity_top_k=5), WATER)
    nodes = await retrieve(colour, index.as_retriever(**kwargs, alpha=1.0), WATER)
    assert texts(nodes) == texts(dense)
    sparse = index.as_retriever(similarity_top_k=5, vector_store_query_mode="text_search")
    nodes = await retrieve(colour, index.as_retriever(**kwargs, alpha=0.0), WATER)
    assert texts(nodes) == texts(await retrieve(colour, sparse, WATER))


@lite
@pytest.mark.parametrize(
    "kwargs",
    [
        {"alpha": 0.5},
        {"alpha": 0.9, "sparse_top_k": 5},
        {"hybrid_top_k": 3},
        {"vector_store_kwargs": {"milvus_ranker": RRFRanker(10)}},
        {"vector_store_kwargs": {"string_expr": "year < 1800"}, "alpha": 0.5},
        {"filters": MetadataFilters(filters=[MetadataFilter(key="topic", value="chess")])},
        {"doc_ids": ["chess", "tea"], "sparse_top_k": 2, "hybrid_top_k": 4, "alpha": 0.3},
    ],
    ids=label,
)
async def test_hybrid_arguments_reach_the_store(index, filled, colour, kwargs):
    retriever = index.as_retriever(similarity_top_k=6, vector_store_query_mode="hybrid", **kwargs)
    nodes = await retrieve(colour, retriever, QUESTION)
    store_kwargs = kwargs.get("vector_store_kwargs", {})
    expected = filled.query(
        VectorStoreQuery(
            query_str=QUESTION,
            query_embedding=WordEmbedding().get_query_embedding(QUESTION),
            mode=VectorStoreQueryMode.HYBRID,
            similarity_top_k=6,
            **{key: value for key, value in kwargs.items() if key != "vector_store_kwargs"},
        ),
        **store_kwargs,
    )
    assert [node.node_id for node in nodes] == expected.ids
    assert scores(nodes) == pytest.approx(expected.similarities)
    assert len(nodes) == (kwargs.get("hybrid_top_k") or (3 if "filters" in kwargs else 6))
    assert index._embed_model.queries == 1


@pytest.mark.parametrize("threshold", [0.1, 1.0])
async def test_mmr_and_its_threshold(index, colour, threshold):
    retriever = index.as_retriever(
        similarity_top_k=3,
        vector_store_query_mode="mmr",
        vector_store_kwargs={"mmr_threshold": threshold, "mmr_prefetch_k": 12},
    )
    nodes = await retrieve(colour, retriever, QUESTION)
    best = list(similarities(QUESTION))
    assert nodes[0].node.get_content("embed") == best[0]
    found = [node.node.get_content("embed") for node in nodes]
    assert (found == best[:3]) == (threshold == 1.0)


@lite
async def test_modes_with_an_encoder_on_this_side(make_store, colour):
    words = {}

    def encode(batch):
        counts = [re.findall(r"\w+", text.lower()) for text in batch]
        return [
            {words.setdefault(word, len(words)): float(each.count(word)) for word in each}
            for each in counts
        ]

    store = make_store(dim=DIM, enable_sparse=True, sparse_embedding_function=(encode, encode))
    index = index_of(store, SentencePerNode()(make_documents()))
    for mode in ("sparse", "text_search", "hybrid"):
        retriever = index.as_retriever(
            similarity_top_k=3, vector_store_query_mode=mode, sparse_top_k=3
        )
        assert texts(await retrieve(colour, retriever, WATER))[0].startswith("Pour boiling")


@lite
@pytest.mark.parametrize("mode", ["default", "text_search", "sparse", "hybrid", "mmr"])
async def test_a_query_engine_in_each_mode(index, colour, mode):
    engine = index.as_query_engine(
        llm=MockLLM(), use_async=True, similarity_top_k=2, vector_store_query_mode=mode
    )
    question = "the bishop moves along the diagonals"
    answer = engine.query(question) if colour == "sync" else await engine.aquery(question)
    assert "The bishop moves along the diagonals." in str(answer)
    assert answer.source_nodes[0].get_content() == "The bishop moves along the diagonals."


@lite
async def test_retrievers_of_all_modes_at_once(index):
    modes = ["default", "text_search", "sparse", "hybrid", "mmr"]
    retrievers = [index.as_retriever(vector_store_query_mode=mode) for mode in modes]
    alone = [texts(await retriever.aretrieve(WATER)) for retriever in retrievers]
    found = await asyncio.gather(
        *(retriever.aretrieve(WATER) for retriever in retrievers for _ in range(4))
    )
    assert [texts(nodes) for nodes in found] == [each for each in alone for _ in range(4)]


@pytest.mark.parametrize("mode", ["text_search", "sparse", "hybrid"])
async def test_a_mode_without_sparse_embeddings_says_what_enables_it(
    index, filled, make_shared_store, engine, colour, mode
):
    if engine.is_lite:
        store = make_shared_store(
            collection_name=filled.collection_name, dim=DIM, similarity_metric="COSINE"
        )
        index = VectorStoreIndex.from_vector_store(store, embed_model=WordEmbedding())
    retriever = index.as_retriever(vector_store_query_mode=mode)
    with pytest.raises(QueryError, match="enable_sparse=True"):
        await retrieve(colour, retriever, QUESTION)


@pytest.mark.parametrize("mode", ["default", "hybrid", "mmr"])
async def test_an_empty_question_says_what_to_do(index, colour, mode):
    """LlamaIndex makes no embedding of an empty text."""
    retriever = index.as_retriever(vector_store_query_mode=mode)
    message = r"^the question is empty \(query_str is ''\): ask something, or read nodes"
    with pytest.raises(QueryError, match=message):
        await retrieve(colour, retriever, "")


@pytest.mark.parametrize("mode", ["semantic_hybrid", "svm", "linear_regression"])
async def test_an_unsupported_mode_names_those_supported(index, colour, mode):
    retriever = index.as_retriever(vector_store_query_mode=mode)
    with pytest.raises(QueryError, match="supported are DEFAULT, SPARSE, TEXT_SEARCH, HYBRID, MMR"):
        await retrieve(colour, retriever, QUESTION)


# Auto retriever

INFO = VectorStoreInfo(
    content_info="short texts",
    metadata_info=[
        MetadataInfo(name="topic", type="str", description="what it is about"),
        MetadataInfo(name="year", type="int", description="when it was written"),
    ],
)


def auto(index, answer, **kwargs):
    return VectorIndexAutoRetriever(
        index, vector_store_info=INFO, llm=fixed_llm(answer), similarity_top_k=12, **kwargs
    )


def condition(key, operator, value):
    return {"key": key, "operator": operator, "value": value}


@pytest.mark.parametrize(
    ("filters", "expected"),
    [
        ([], [*TEXTS]),
        ([condition("topic", "==", "tea")], ["tea"]),
        ([condition("topic", "!=", "tea")], ["bread", "lighthouse", "chess"]),
        ([condition("topic", "in", ["tea", "bread"])], ["tea", "bread"]),
        ([condition("year", ">=", 1700), condition("year", "<", 1900)], ["tea", "lighthouse"]),
        ([condition("topic", "==", "tea"), condition("year", ">", 1800)], []),
        ([condition("nothing", "==", "x")], []),
    ],
    ids=label,
)
async def test_filters_of_the_model_apply(index, colour, filters, expected):
    retriever = auto(index, {"query": QUESTION, "filters": filters})
    nodes = await retrieve(colour, retriever, "what the user asked")
    assert sorted(topics(nodes)) == sorted(3 * expected)
    order = list(similarities(QUESTION))
    found = [order.index(node.node.get_content("embed")) for node in nodes]
    assert found == sorted(found)


async def test_the_model_s_top_k_applies(index, colour):
    retriever = auto(index, {"query": QUESTION, "filters": [], "top_k": 2})
    assert len(await retrieve(colour, retriever, "anything")) == 2


async def test_a_question_about_metadata_alone_is_answered_by_the_filters(index, colour):
    retriever = auto(index, {"query": "", "filters": [condition("topic", "==", "tea")]})
    nodes = await retrieve(colour, retriever, "all about tea")
    assert topics(nodes) == ["tea"] * 3
    assert {node.score for node in nodes} == {None}


async def test_extra_filters_apply_beside_the_model_s(index, colour):
    extra = MetadataFilters(
        filters=[MetadataFilter(key="year", operator=FilterOperator.LT, value=1800)]
    )
    answer = {"query": QUESTION, "filters": [condition("topic", "in", ["tea", "bread"])]}
    nodes = await retrieve(colour, auto(index, answer, extra_filters=extra), "anything")
    assert topics(nodes) == ["tea"] * 3


async def test_an_empty_query_takes_the_default_vector(index, colour):
    answer = {"query": "", "filters": [condition("topic", "==", "tea")]}
    retriever = auto(
        index,
        answer,
        default_empty_query_vector=WordEmbedding().get_query_embedding("three minutes"),
        empty_query_top_k=2,
    )
    nodes = await retrieve(colour, retriever, "about tea")
    assert topics(nodes) == ["tea"] * 2
    assert index._embed_model.queries == 0


async def test_an_answer_that_cannot_be_read_is_a_plain_query(index, colour):
    retriever = auto(index, {"query": QUESTION, "filters": "none"})
    nodes = await retrieve(colour, retriever, QUESTION)
    assert texts(nodes)[0] == "The bishop moves along the diagonals."
    assert len(nodes) == 12


@lite
@pytest.mark.parametrize("mode", ["text_search", "hybrid"])
async def test_the_auto_retriever_in_other_modes(index, colour, mode):
    answer = {"query": WATER, "filters": [condition("year", "<", 1800)]}
    retriever = auto(index, answer, vector_store_query_mode=mode, sparse_top_k=1)
    nodes = await retrieve(colour, retriever, "anything")
    assert texts(nodes)[0] == "Pour boiling water over the leaves."
    assert set(topics(nodes)) <= {"tea", "chess"}


# Fusion


def reciprocal_ranks(*rankings):
    """What `QueryFusionRetriever` computes; its ranks count from 0."""
    fused = {}
    for ranking in rankings:
        for rank, text in enumerate(ranking):
            fused[text] = fused.get(text, 0.0) + 1 / (60 + rank)
    return sorted(fused.values(), reverse=True), fused


@lite
@pytest.mark.parametrize("use_async", [True, False])
async def test_dense_and_full_text_are_fused(index, colour, use_async):
    question = "green water along the tower"
    retrievers = [
        index.as_retriever(similarity_top_k=6),
        index.as_retriever(similarity_top_k=6, vector_store_query_mode="text_search"),
    ]
    fusion = QueryFusionRetriever(
        retrievers,
        llm=MockLLM(),
        num_queries=1,
        use_async=use_async,
        similarity_top_k=5,
        mode="reciprocal_rerank",
    )
    nodes = await retrieve(colour, fusion, question)
    alone = [texts(await retriever.aretrieve(question)) for retriever in retrievers]
    assert alone[0] != alone[1]
    best, fused = reciprocal_ranks(*alone)
    assert scores(nodes) == pytest.approx(best[:5])
    assert [fused[text] for text in texts(nodes)] == pytest.approx(best[:5])


@pytest.mark.parametrize("use_async", [True, False])
@pytest.mark.parametrize(
    "mode", ["reciprocal_rerank", "relative_score", "dist_based_score", "simple"]
)
async def test_two_filtered_retrievers_are_fused(index, colour, use_async, mode):
    retrievers = [index.as_retriever(similarity_top_k=3, doc_ids=[name]) for name in TEXTS]
    fusion = QueryFusionRetriever(
        retrievers,
        llm=MockLLM(),
        num_queries=1,
        use_async=use_async,
        similarity_top_k=12,
        mode=mode,
    )
    nodes = await retrieve(colour, fusion, QUESTION)
    assert sorted(topics(nodes)) == sorted(name for name in TEXTS for _ in range(3))
    assert scores(nodes) == sorted(scores(nodes), reverse=True)
    if mode == "simple":
        assert texts(nodes)[0] == "The bishop moves along the diagonals."


@pytest.mark.parametrize("use_async", [True, False])
async def test_generated_queries_are_asked_as_well(index, colour, use_async):
    fusion = QueryFusionRetriever(
        [index.as_retriever(similarity_top_k=1)],
        llm=fixed_llm("Who lit the lamp at dusk?\nKnead the dough"),
        num_queries=3,
        use_async=use_async,
        similarity_top_k=3,
    )
    nodes = await retrieve(colour, fusion, QUESTION)
    assert sorted(topics(nodes)) == ["bread", "chess", "lighthouse"]


async def test_fusion_under_a_query_engine_many_at_once(index):
    fusion = QueryFusionRetriever(
        [index.as_retriever(similarity_top_k=2), index.as_retriever(similarity_top_k=1)],
        llm=MockLLM(),
        num_queries=1,
        similarity_top_k=1,
    )
    engine = RetrieverQueryEngine.from_args(fusion, llm=MockLLM())
    questions = ["Who lit the lamp at dusk?", QUESTION, "Knead the dough"] * 5
    answers = await asyncio.gather(*(engine.aquery(question) for question in questions))
    assert [topics(answer.source_nodes)[0] for answer in answers] == [
        "lighthouse",
        "chess",
        "bread",
    ] * 5


# Recursive


def summaries():
    return [
        IndexNode(id_=f"about-{name}", text=f"About {name}: {text}", index_id=name)
        for name, text in TEXTS.items()
    ]


def under(name):
    """An index in memory over the sentences of one document."""
    return VectorStoreIndex(
        [TextNode(text=text, metadata={"topic": name}) for text in sentences(TEXTS[name])],
        embed_model=WordEmbedding(),
    )


async def test_index_nodes_lead_to_other_retrievers(empty, colour):
    index = index_of(empty, summaries())
    retriever = RecursiveRetriever(
        "root",
        retriever_dict={
            "root": index.as_retriever(similarity_top_k=1),
            **{name: under(name).as_retriever(similarity_top_k=1) for name in TEXTS},
        },
    )
    nodes = await retrieve(colour, retriever, QUESTION)
    assert texts(nodes) == ["The bishop moves along the diagonals."]


async def test_index_nodes_lead_to_nodes_and_query_engines(empty, colour):
    index = index_of(empty, summaries())
    targets = {"chess": TextNode(id_="whole", text=TEXTS["chess"])}
    others = [name for name in TEXTS if name != "chess"]
    retriever = RecursiveRetriever(
        "root",
        retriever_dict={"root": index.as_retriever(similarity_top_k=4)},
        node_dict=targets,
        query_engine_dict={name: under(name).as_query_engine(llm=MockLLM()) for name in others},
    )
    nodes = await retrieve(colour, retriever, QUESTION)
    assert len(nodes) == 4
    assert nodes[0].node == targets["chess"]
    assert all(QUESTION in text for text in texts(nodes)[1:])


async def test_small_chunks_lead_to_the_larger_one_that_has_them(empty, colour):
    parents = {name: TextNode(id_=name, text=text) for name, text in TEXTS.items()}
    chunks = [
        IndexNode(id_=f"{name}-{i}", text=sentence, index_id=name)
        for name, text in TEXTS.items()
        for i, sentence in enumerate(sentences(text))
    ]
    index = index_of(empty, chunks)
    retriever = RecursiveRetriever(
        "root",
        retriever_dict={"root": index.as_retriever(similarity_top_k=3)},
        node_dict=parents,
    )
    nodes = await retrieve(colour, retriever, QUESTION)
    assert nodes[0].node == parents["chess"]
    ids = [node.node_id for node in nodes]
    assert len(ids) == len(set(ids))


async def test_an_index_node_comes_back_as_one(empty, colour):
    index = index_of(empty, summaries())
    nodes = await retrieve(colour, index.as_retriever(similarity_top_k=4), QUESTION)
    assert {type(node.node) for node in nodes} == {IndexNode}
    assert (nodes[0].node.index_id, nodes[0].node_id) == ("chess", "about-chess")


async def test_objects_of_an_index_are_followed(empty, colour):
    """The object itself is not stored; the index keeps it."""
    objects = [
        IndexNode(
            id_=f"about-{name}",
            text=f"About {name}: {text}",
            index_id=name,
            obj=under(name).as_retriever(similarity_top_k=1),
        )
        for name, text in TEXTS.items()
    ]
    index = VectorStoreIndex(
        objects=objects,
        storage_context=StorageContext.from_defaults(vector_store=empty),
        embed_model=WordEmbedding(),
    )
    nodes = await retrieve(colour, index.as_retriever(similarity_top_k=1), QUESTION)
    assert texts(nodes) == ["The bishop moves along the diagonals."]


# Auto-merging

PAGES = {
    "games": f"{TEXTS['chess']}\n\n{TEXTS['tea']}",
    "coast": f"{TEXTS['lighthouse']}\n\n{TEXTS['bread']}",
}


def make_hierarchy(store):
    parser = HierarchicalNodeParser.from_defaults(
        node_parser_ids=["paragraph", "sentence"],
        node_parser_map={"paragraph": ParagraphPerNode(), "sentence": SentencePerNode()},
    )
    nodes = parser.get_nodes_from_documents(
        [Document(id_=name, text=text) for name, text in PAGES.items()]
    )
    docstore = SimpleDocumentStore()
    docstore.add_documents(nodes)
    context = StorageContext.from_defaults(vector_store=store, docstore=docstore)
    index = VectorStoreIndex(
        get_leaf_nodes(nodes), storage_context=context, embed_model=WordEmbedding()
    )
    return index, context


async def test_sentences_of_a_paragraph_are_merged(empty, colour):
    index, context = make_hierarchy(empty)
    retriever = AutoMergingRetriever(index.as_retriever(similarity_top_k=2), context)
    nodes = await retrieve(colour, retriever, "The bishop and the rook: both moves along")
    # Two of three sentences are more than half of their paragraph.
    assert texts(nodes) == [TEXTS["chess"]]


async def test_a_single_sentence_is_not_merged(empty, colour):
    index, context = make_hierarchy(empty)
    retriever = AutoMergingRetriever(index.as_retriever(similarity_top_k=1), context)
    nodes = await retrieve(colour, retriever, QUESTION)
    assert texts(nodes) == ["The bishop moves along the diagonals."]


async def test_everything_is_merged_to_the_paragraphs(empty, colour):
    index, context = make_hierarchy(empty)
    retriever = AutoMergingRetriever(index.as_retriever(similarity_top_k=12), context)
    nodes = await retrieve(colour, retriever, QUESTION)
    assert sorted(texts(nodes)) == sorted(TEXTS.values())
    assert scores(nodes) == sorted(scores(nodes), reverse=True)


@lite
async def test_merging_over_a_hybrid_search(empty, colour):
    index, context = make_hierarchy(empty)
    base = index.as_retriever(similarity_top_k=2, sparse_top_k=2, vector_store_query_mode="hybrid")
    nodes = await retrieve(colour, AutoMergingRetriever(base, context), "boiling green water tea")
    assert texts(nodes) == [TEXTS["tea"]]


async def test_only_leaves_are_stored_with_their_parents_ids(empty, colour):
    index, context = make_hierarchy(empty)
    nodes = await retrieve(colour, index.as_retriever(similarity_top_k=12), QUESTION)
    assert len(nodes) == 12
    for node in nodes:
        original = context.docstore.get_document(node.node_id)
        assert node.node.parent_node == original.parent_node
        assert node.node.relationships == original.relationships


# Sentence windows


def make_windows(store, window_size=1):
    parser = SentenceWindowNodeParser.from_defaults(
        sentence_splitter=sentences, window_size=window_size
    )
    return index_of(store, parser.get_nodes_from_documents(make_documents()))


async def test_a_sentence_is_replaced_by_its_window(empty, colour):
    index = make_windows(empty)
    nodes = await retrieve(colour, index.as_retriever(similarity_top_k=1), "the loaf and its crust")
    assert texts(nodes) == ["The loaf is done when its crust sounds hollow."]
    replaced = MetadataReplacementPostProcessor("window").postprocess_nodes(nodes)
    assert texts(replaced) == [TEXTS["bread"]]


async def test_windows_end_with_the_document(empty, colour):
    index = make_windows(empty)
    nodes = await retrieve(colour, index.as_retriever(similarity_top_k=1), "boiling water leaves")
    replaced = MetadataReplacementPostProcessor("window").postprocess_nodes(nodes)
    assert texts(replaced) == ["Pour boiling water over the leaves. Wait for three minutes."]


async def test_a_query_engine_answers_from_the_windows(empty, colour):
    index = make_windows(empty)
    engine = index.as_query_engine(
        llm=MockLLM(),
        use_async=True,
        similarity_top_k=1,
        node_postprocessors=[MetadataReplacementPostProcessor("window")],
    )
    answer = engine.query(QUESTION) if colour == "sync" else await engine.aquery(QUESTION)
    assert "The rook moves along ranks and files." in str(answer)
    assert texts(answer.source_nodes) == [
        "The bishop moves along the diagonals. The rook moves along ranks and files."
    ]


@lite
async def test_windows_of_a_full_text_search_match_the_sentence_alone(empty, colour):
    index = make_windows(empty)
    retriever = index.as_retriever(similarity_top_k=5, vector_store_query_mode="text_search")
    nodes = await retrieve(colour, retriever, "crust")
    replaced = MetadataReplacementPostProcessor("window").postprocess_nodes(nodes)
    # The words of a window are metadata, and no text of their neighbours.
    assert texts(replaced) == [TEXTS["bread"]]


# Beside other indexes


async def test_a_summary_index_over_nodes_that_were_read_from_the_store(filled, colour):
    everything = MetadataFilters(filters=[])
    nodes = filled.get_nodes(filters=everything)
    retriever = SummaryIndex(nodes).as_retriever()
    assert sorted(texts(await retrieve(colour, retriever, QUESTION))) == sorted(
        sentence for text in TEXTS.values() for sentence in sentences(text)
    )
