"""The store under LlamaIndex's own indexes, retrievers, query engines and pipelines."""

from __future__ import annotations

import asyncio
import json
import re
from concurrent.futures import ThreadPoolExecutor

import pytest
from llama_index.core import (
    Document,
    StorageContext,
    VectorStoreIndex,
    load_index_from_storage,
)
from llama_index.core.ingestion import DocstoreStrategy, IngestionPipeline
from llama_index.core.llms import MockLLM
from llama_index.core.node_parser import TextSplitter
from llama_index.core.schema import TextNode
from llama_index.core.storage.docstore import SimpleDocumentStore
from llama_index.core.vector_stores.types import (
    FilterOperator,
    MetadataFilter,
    MetadataFilters,
)

from llama_index_milvus_async import QueryError
from tests.fixtures.stores import collection_name
from tests.fixtures.words import DIM, WordEmbedding

TEXTS = {
    "bread": "Knead the dough for ten minutes. The loaf is done when its crust sounds hollow.",
    "lighthouse": "The keeper lit the lamp at dusk. Its beam warned ships of the rocks.",
    "chess": "The bishop moves along the diagonals. The rook moves along ranks and files.",
}
QUESTIONS = {
    "When does the crust of the loaf sound hollow?": "bread",
    "Who lit the lamp at dusk?": "lighthouse",
    "Which piece moves along the diagonals?": "chess",
}
QUESTION_ABOUT_CHESS = "Which piece moves along the diagonals?"
CHUNKS = 2 * len(TEXTS)


class SentencePerNode(TextSplitter):
    def split_text(self, text):
        return [sentence.strip() for sentence in re.findall(r"[^.]+\.", text)]


@pytest.fixture(scope="module")
def shared(make_shared_store):
    # The default level: what this process wrote or deleted has to be seen at once.
    return make_shared_store(dim=DIM, similarity_metric="COSINE", consistency_level="Session")


@pytest.fixture
def store(shared):
    """An empty store; its collection is that of every test."""
    shared.clear()
    return shared


def make_documents(**texts):
    return [
        Document(id_=name, text=text, metadata={"topic": name, "length": len(text)})
        for name, text in (texts or TEXTS).items()
    ]


def index_of(store, documents=(), **kwargs):
    return VectorStoreIndex.from_documents(
        list(documents),
        storage_context=StorageContext.from_defaults(vector_store=store),
        embed_model=WordEmbedding(),
        transformations=[SentencePerNode()],
        **kwargs,
    )


async def call(colour, target, name, *args, **kwargs):
    """Calls a method of LlamaIndex, or its async counterpart."""
    if colour == "sync":
        return getattr(target, name)(*args, **kwargs)
    return await getattr(target, f"a{name}")(*args, **kwargs)


def stored(store):
    """Document id to texts, of all that is in the collection."""
    texts = {}
    for node in store.get_nodes(filters=MetadataFilters(filters=[])):
        texts.setdefault(node.ref_doc_id, []).append(node.get_content())
    return {doc_id: sorted(chunks) for doc_id, chunks in texts.items()}


def chunks_of(**texts):
    """What `stored` returns for these documents."""
    split = SentencePerNode().split_text
    return {name: sorted(split(text)) for name, text in (texts or TEXTS).items()}


def topics(nodes):
    return [node.metadata["topic"] for node in nodes]


# Building an index


@pytest.mark.parametrize("use_async", [True, False])
async def test_an_index_is_built_inside_a_running_loop(store, colour, use_async):
    # What LlamaIndex does not know it hands on to the store.
    index = index_of(store, make_documents(), use_async=use_async, llm=None, verbose=True)
    assert stored(store) == chunks_of()
    retriever = index.as_retriever(similarity_top_k=2)
    for question, topic in QUESTIONS.items():
        nodes = await call(colour, retriever, "retrieve", question)
        assert nodes[0].metadata["topic"] == topic
        assert nodes[0].score > nodes[1].score


async def test_many_indexes_are_built_at_once_from_threads(store):
    documents = make_documents()

    def build(document):
        index_of(store, [document], use_async=True)

    await asyncio.gather(*(asyncio.to_thread(build, document) for document in documents))
    assert stored(store) == chunks_of()


async def test_an_index_over_a_store_that_was_filled_before(store, colour):
    index_of(store, make_documents())
    index = VectorStoreIndex.from_vector_store(store, embed_model=WordEmbedding())
    nodes = await call(colour, index.as_retriever(), "retrieve", QUESTION_ABOUT_CHESS)
    assert topics(nodes) == ["chess", "chess"]


async def test_more_nodes_than_a_batch_and_their_relationships_arrive(store, colour):
    long = " ".join(f"Sentence number {i} of a longer text." for i in range(150))
    index = index_of(store)
    await call(colour, index, "insert", Document(id_="long", text=long))
    nodes = store.get_nodes(filters=MetadataFilters(filters=[]))
    by_id = {node.node_id: node for node in nodes}
    node = next(node for node in nodes if node.prev_node is None)
    texts = [node.get_content()]
    while node.next_node is not None:
        node = by_id[node.next_node.node_id]
        texts.append(node.get_content())
    assert " ".join(texts) == long
    assert len(texts) == len(nodes) == 150


# Retrieving


@pytest.fixture
def index(store):
    return index_of(store, make_documents())


async def test_a_query_engine_answers_from_the_passages(index, colour):
    engine = index.as_query_engine(llm=MockLLM(), use_async=True, similarity_top_k=1)
    answer = await call(colour, engine, "query", QUESTION_ABOUT_CHESS)
    assert "The bishop moves along the diagonals." in str(answer)
    assert topics(answer.source_nodes) == ["chess"]


async def test_questions_are_answered_at_once(index):
    engine = index.as_query_engine(llm=MockLLM(), use_async=True, similarity_top_k=1)
    answers = await asyncio.gather(*(engine.aquery(question) for question in QUESTIONS))
    assert [topics(answer.source_nodes) for answer in answers] == [[t] for t in QUESTIONS.values()]


async def test_filters_pass_through_the_retriever(index, colour):
    filters = MetadataFilters(
        filters=[
            MetadataFilter(key="topic", operator=FilterOperator.IN, value=["bread", "lighthouse"]),
            MetadataFilter(
                key="length", operator=FilterOperator.GT, value=len(TEXTS["lighthouse"])
            ),
        ]
    )
    retriever = index.as_retriever(similarity_top_k=CHUNKS, filters=filters)
    nodes = await call(colour, retriever, "retrieve", QUESTION_ABOUT_CHESS)
    assert topics(nodes) == ["bread", "bread"]


async def test_documents_pass_through_the_retriever(index, colour):
    retriever = index.as_retriever(similarity_top_k=CHUNKS, doc_ids=["bread", "chess"])
    nodes = await call(colour, retriever, "retrieve", QUESTION_ABOUT_CHESS)
    assert sorted(topics(nodes)) == ["bread", "bread", "chess", "chess"]


async def test_keyword_arguments_of_the_store_pass_through_the_retriever(index, colour):
    retriever = index.as_retriever(
        similarity_top_k=CHUNKS, vector_store_kwargs={"string_expr": 'topic == "bread"'}
    )
    nodes = await call(colour, retriever, "retrieve", QUESTION_ABOUT_CHESS)
    assert topics(nodes) == ["bread", "bread"]


async def test_mmr_through_the_retriever_avoids_what_it_has_found(store, colour):
    twins = {f"chess-{i}": chunks_of()["chess"][0] for i in range(3)}
    index = index_of(store, make_documents(**twins, bread=TEXTS["bread"]))
    kwargs = {"similarity_top_k": 2, "vector_store_query_mode": "mmr"}
    alike = index.as_retriever(**kwargs, vector_store_kwargs={"mmr_threshold": 1.0})
    different = index.as_retriever(**kwargs, vector_store_kwargs={"mmr_threshold": 0.1})
    found = topics(await call(colour, alike, "retrieve", QUESTION_ABOUT_CHESS))
    assert all(topic.startswith("chess") for topic in found)
    found = topics(await call(colour, different, "retrieve", QUESTION_ABOUT_CHESS))
    assert found[0].startswith("chess")
    assert found[1] == "bread"


async def test_a_mode_that_the_store_is_not_made_for_is_no_dense_search(index, colour):
    retriever = index.as_retriever(vector_store_query_mode="hybrid")
    with pytest.raises(QueryError, match="pass enable_sparse=True"):
        await call(colour, retriever, "retrieve", QUESTION_ABOUT_CHESS)


def test_one_retriever_serves_several_threads(index, colour):
    retriever = index.as_retriever(similarity_top_k=1)

    def ask(question):
        return topics(asyncio.run(call(colour, retriever, "retrieve", question)))

    with ThreadPoolExecutor(4) as threads:
        answers = list(threads.map(ask, [*QUESTIONS] * 4))
    assert answers == [[topic] for topic in [*QUESTIONS.values()] * 4]


# Changing an index

NEW_TEXT = "The bishop was called alfil. It leapt over one square."
TEA = "Pour boiling water over the leaves. Wait for three minutes."


async def test_a_document_is_inserted(index, store, colour):
    (document,) = make_documents(tea=TEA)
    await call(colour, index, "insert", document)
    nodes = await call(
        colour, index.as_retriever(similarity_top_k=1), "retrieve", "boiling water over leaves"
    )
    assert topics(nodes) == ["tea"]
    assert stored(store) == chunks_of(**TEXTS, tea=TEA)


async def test_nodes_are_inserted_and_deleted(index, store, colour):
    nodes = [TextNode(id_=f"extra {i}", text=f"extra text {i}") for i in range(3)]
    await call(colour, index, "insert_nodes", nodes)
    assert stored(store)[None] == ["extra text 0", "extra text 1", "extra text 2"]
    await call(colour, index, "delete_nodes", ["extra 0", "extra 2"])
    assert stored(store) == chunks_of() | {None: ["extra text 1"]}


async def test_a_document_is_deleted_with_all_its_nodes_and_no_other(index, store, colour):
    await call(colour, index, "delete_ref_doc", "bread", delete_from_docstore=True)
    assert stored(store) == chunks_of(lighthouse=TEXTS["lighthouse"], chess=TEXTS["chess"])
    nodes = await call(colour, index.as_retriever(), "retrieve", "the crust of the loaf")
    assert "bread" not in topics(nodes)


async def test_a_document_that_is_not_there_is_deleted_without_effect(index, store, colour):
    await call(colour, index, "delete_ref_doc", "brea")
    assert stored(store) == chunks_of()


async def test_a_document_is_updated(index, store, colour):
    await call(colour, index, "update_ref_doc", *make_documents(chess=NEW_TEXT))
    assert stored(store) == chunks_of(**(TEXTS | {"chess": NEW_TEXT}))


async def test_documents_are_refreshed_where_they_differ(index, store, colour):
    documents = make_documents(bread=TEXTS["bread"], chess=NEW_TEXT, tea=TEA)
    refreshed = await call(colour, index, "refresh_ref_docs", documents)
    assert refreshed == [False, True, True]
    # What is no longer among the documents stays.
    assert stored(store) == chunks_of(**(TEXTS | {"chess": NEW_TEXT, "tea": TEA}))


async def test_an_index_persisted_beside_the_store_is_loaded_and_used(
    index, store, colour, tmp_path
):
    index.storage_context.persist(str(tmp_path))
    loaded = load_index_from_storage(
        StorageContext.from_defaults(vector_store=store, persist_dir=str(tmp_path)),
        embed_model=WordEmbedding(),
        transformations=[SentencePerNode()],
    )
    nodes = await call(colour, loaded.as_retriever(), "retrieve", QUESTION_ABOUT_CHESS)
    assert topics(nodes) == ["chess", "chess"]
    documents = make_documents(**(TEXTS | {"chess": NEW_TEXT}))
    assert await call(colour, loaded, "refresh_ref_docs", documents) == [False, False, True]
    assert stored(store) == chunks_of(**(TEXTS | {"chess": NEW_TEXT}))


# Pipelines


def make_pipeline(store, strategy):
    return IngestionPipeline(
        transformations=[SentencePerNode(), WordEmbedding()],
        vector_store=store,
        docstore=SimpleDocumentStore(),
        docstore_strategy=strategy,
    )


@pytest.mark.parametrize("strategy", list(DocstoreStrategy))
async def test_a_pipeline_writes_documents_once(store, colour, strategy):
    pipeline = make_pipeline(store, strategy)
    assert len(await call(colour, pipeline, "run", documents=make_documents())) == CHUNKS
    assert await call(colour, pipeline, "run", documents=make_documents()) == []
    assert stored(store) == chunks_of()


async def test_a_pipeline_with_upserts_replaces_a_changed_document(store, colour):
    pipeline = make_pipeline(store, DocstoreStrategy.UPSERTS)
    await call(colour, pipeline, "run", documents=make_documents())
    await call(colour, pipeline, "run", documents=make_documents(chess=NEW_TEXT))
    assert stored(store) == chunks_of(**(TEXTS | {"chess": NEW_TEXT}))


async def test_a_pipeline_with_upserts_and_delete_removes_what_is_gone(store, colour):
    pipeline = make_pipeline(store, DocstoreStrategy.UPSERTS_AND_DELETE)
    await call(colour, pipeline, "run", documents=make_documents())
    kept = {"bread": TEXTS["bread"], "chess": NEW_TEXT}
    await call(colour, pipeline, "run", documents=make_documents(**kept))
    assert stored(store) == chunks_of(**kept)


async def test_a_pipeline_with_duplicates_only_keeps_both_versions(store, colour):
    pipeline = make_pipeline(store, DocstoreStrategy.DUPLICATES_ONLY)
    await call(colour, pipeline, "run", documents=make_documents())
    await call(colour, pipeline, "run", documents=make_documents(chess=NEW_TEXT))
    both = sorted(chunks_of()["chess"] + chunks_of(chess=NEW_TEXT)["chess"])
    assert stored(store) == chunks_of() | {"chess": both}


async def test_an_index_over_what_a_pipeline_wrote(store, colour):
    pipeline = make_pipeline(store, DocstoreStrategy.UPSERTS)
    await call(colour, pipeline, "run", documents=make_documents())
    index = VectorStoreIndex.from_vector_store(store, embed_model=WordEmbedding())
    nodes = await call(colour, index.as_retriever(), "retrieve", QUESTION_ABOUT_CHESS)
    assert topics(nodes) == ["chess", "chess"]


# Scripts: processes of their own, because what they do to event loops is not to be undone

PROLOGUE = """
import asyncio, json, sys
from llama_index.core import Document, StorageContext, VectorStoreIndex
from llama_index.core.llms import MockLLM
from llama_index_milvus_async import MilvusVectorStore
from tests.fixtures.words import DIM, WordEmbedding

given = json.loads(sys.argv[1])
store = MilvusVectorStore(**given["store"], dim=DIM, similarity_metric="COSINE")
documents = [Document(id_=k, text=v, metadata={"topic": k}) for k, v in given["texts"].items()]


def build():
    context = StorageContext.from_defaults(vector_store=store)
    return VectorStoreIndex.from_documents(
        documents, context, embed_model=WordEmbedding(), use_async=True
    )


def topics(nodes):
    return [node.metadata["topic"] for node in nodes]


found = []
"""

PLAIN_SCRIPT = """
index = build()
retriever = index.as_retriever(similarity_top_k=1)
for question in given["questions"]:
    found += topics(retriever.retrieve(question))
for question in given["questions"]:
    found += topics(asyncio.run(retriever.aretrieve(question)))
engine = index.as_query_engine(llm=MockLLM(), use_async=True, similarity_top_k=1)
for question in given["questions"]:
    found += topics(asyncio.run(engine.aquery(question)).source_nodes)
"""

NESTED_SCRIPT = """
import nest_asyncio

nest_asyncio.apply()


async def main():
    index = build()
    retriever = index.as_retriever(similarity_top_k=1)
    for question in given["questions"]:
        found.extend(topics(retriever.retrieve(question)))
    for question in given["questions"]:
        found.extend(topics(await retriever.aretrieve(question)))
    for question in given["questions"]:
        # A cell of a notebook that was written as a script.
        found.extend(topics(asyncio.run(retriever.aretrieve(question))))


asyncio.run(main())
"""

RUNNING_LOOP_SCRIPT = """
async def main():
    index = build()
    retriever = index.as_retriever(similarity_top_k=1)
    for question in given["questions"]:
        found.extend(topics(retriever.retrieve(question)))
    for question in given["questions"]:
        found.extend(topics(await retriever.aretrieve(question)))
    engine = index.as_query_engine(llm=MockLLM(), use_async=True, similarity_top_k=1)
    answers = await asyncio.gather(*(engine.aquery(q) for q in given["questions"]))
    found.extend(topic for answer in answers for topic in topics(answer.source_nodes))


asyncio.run(main())
"""

COMPLAINTS = ("never awaited", "never retrieved", "was destroyed", "Event loop is closed")


@pytest.mark.parametrize(
    "script",
    [
        pytest.param(PLAIN_SCRIPT, id="plain"),
        pytest.param(RUNNING_LOOP_SCRIPT, id="running-loop"),
        pytest.param(NESTED_SCRIPT, id="nest_asyncio"),
    ],
)
def test_a_script_builds_an_index_and_asks_it(engine, raw, python_with_package, tmp_path, script):
    path = tmp_path / "script.py"
    path.write_text(PROLOGUE + script + "print(json.dumps(found))\n")
    name = collection_name("script")
    given = {
        "store": {"uri": engine.uri, "token": engine.token, "collection_name": name},
        "texts": TEXTS,
        "questions": [*QUESTIONS],
    }
    try:
        run = python_with_package.run(path, json.dumps(given))
    finally:
        if raw.has_collection(name):
            raw.drop_collection(name)
    assert not [complaint for complaint in COMPLAINTS if complaint in run.stderr], run.stderr
    assert json.loads(run.stdout.splitlines()[-1]) == [*QUESTIONS.values()] * 3
