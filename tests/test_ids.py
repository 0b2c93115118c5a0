"""Documents that are read again: the ways of docs/ids.md by which nothing is there twice."""

from __future__ import annotations

from collections import Counter
from typing import Any

import pytest
from llama_index.core import Document, StorageContext, VectorStoreIndex
from llama_index.core.ingestion import DocstoreStrategy, IngestionPipeline
from llama_index.core.node_parser import SentenceSplitter
from llama_index.core.storage.docstore import SimpleDocumentStore
from llama_index.core.vector_stores.types import (
    MetadataFilter,
    MetadataFilters,
    VectorStoreQuery,
)

from llama_index_milvus_async import MilvusVectorStore
from tests.fixtures.words import WordEmbedding

MODEL = WordEmbedding()
TEXTS = ["The Queen made tarts. " * 40, "The Knave stole them. " * 40, "Light has colours. " * 40]
#: Of 100 tokens: several passages a document.
SPLITTER = {"chunk_size": 100, "chunk_overlap": 0}


@pytest.fixture(scope="module")
def store(make_shared_store) -> MilvusVectorStore:
    """One collection for the tests of this module; ids and metadata name the test."""
    return make_shared_store(dim=len(MODEL.get_text_embedding("a")))


class Library:
    """The documents of a test, and an index over them, called in the colour of the test."""

    def __init__(self, store: MilvusVectorStore, colour: str, name: str) -> None:
        self.store, self.colour, self.name = store, colour, name
        self.context = StorageContext.from_defaults(vector_store=store)

    def documents(self, *texts: str) -> list[Document]:
        return [
            Document(id_=f"{self.name}-{i}", text=text, metadata={"test": self.name})
            for i, text in enumerate(texts or TEXTS)
        ]

    def index(self, *, split: bool = True, **splitter: Any) -> VectorStoreIndex:
        """An index as in a new start of the application, with the docstore of the last one."""
        return VectorStoreIndex(
            [],
            storage_context=self.context,
            embed_model=MODEL,
            transformations=[SentenceSplitter(**SPLITTER, **splitter)] if split else [MODEL],
            use_async=self.colour == "async",
        )

    async def call(self, target, name, *args, **kwargs):
        if self.colour == "async":
            prefix = "" if name.startswith("async") else "a"
            return await getattr(target, prefix + name)(*args, **kwargs)
        return getattr(target, name)(*args, **kwargs)

    async def rows(self) -> Counter[str]:
        """How many nodes each document has; a document that was added whole is its own."""
        mine = MetadataFilters(filters=[MetadataFilter(key="test", value=self.name)])
        nodes = await self.store.aget_nodes(filters=mine)
        return Counter((node.ref_doc_id or node.node_id).removeprefix(self.name) for node in nodes)

    async def texts(self) -> list[str]:
        mine = MetadataFilters(filters=[MetadataFilter(key="test", value=self.name)])
        return sorted(node.get_content() for node in await self.store.aget_nodes(filters=mine))


@pytest.fixture
def library(store, colour, request) -> Library:
    return Library(store, colour, request.node.name)


def by_document(number: int, document: Document) -> str:
    return f"{document.node_id}#{number}"


async def test_ids_of_documents_alone_do_not_help(library):
    """The splitter gives passages random ids. What the documentation says of it is so."""
    for _ in range(3):
        await library.call(library.index(), "insert", library.documents()[0])
    (passages,) = (await library.rows()).values()
    index = library.index()
    await library.call(index, "delete_ref_doc", library.documents()[0].id_)
    await library.call(index, "insert", library.documents()[0])
    assert 3 * (await library.rows())["-0"] == passages


async def test_passages_with_ids_of_their_own_are_there_once(library):
    expected = None
    for _ in range(3):
        index = library.index(id_func=by_document)
        for document in library.documents():
            await library.call(index, "insert", document)
        expected = expected or await library.rows()
    assert await library.rows() == expected
    assert all(count > 1 for count in expected.values())


async def test_refreshed_documents_are_there_once(library):
    index = library.index()
    assert await library.call(index, "refresh_ref_docs", library.documents()) == [True] * 3
    expected = await library.rows()
    # A new index over the same docstore: what has not changed is left alone.
    index = library.index()
    assert await library.call(index, "refresh_ref_docs", library.documents()) == [False] * 3
    changed = library.documents(TEXTS[0], "changed", TEXTS[2])
    assert await library.call(index, "refresh_ref_docs", changed) == [False, True, False]
    assert await library.rows() == {**expected, "-1": 1}


async def test_whole_documents_are_replaced_and_deleted(library):
    """Documents without a splitter: the node is the document, and has no source."""
    index = library.index(split=False)
    documents = library.documents("one", "two", "three")
    assert await library.call(index, "refresh_ref_docs", documents) == [True] * 3
    await library.call(index, "refresh_ref_docs", library.documents("new", "two", "three"))
    assert await library.texts() == ["new", "three", "two"]
    await library.call(index, "update_ref_doc", library.documents("newer")[0])
    # A start that has forgotten the documents: the same id is the same node.
    library.context = StorageContext.from_defaults(vector_store=library.store)
    index = library.index(split=False)
    await library.call(index, "refresh_ref_docs", library.documents("newest"))
    assert await library.texts() == ["newest", "three", "two"]
    await library.call(index, "delete_ref_doc", documents[1].id_)
    assert await library.rows() == {"-0": 1, "-2": 1}


def embedded(text: str) -> list[float]:
    return MODEL.get_text_embedding(text)


@pytest.mark.parametrize("split", [True, False], ids=["split", "whole"])
async def test_a_pipeline_with_a_docstore_replaces_what_has_changed(library, split):
    splitter = [SentenceSplitter(**SPLITTER)] if split else []
    pipeline = IngestionPipeline(
        transformations=[*splitter, MODEL],
        vector_store=library.store,
        docstore=SimpleDocumentStore(),
        docstore_strategy=DocstoreStrategy.UPSERTS,
        disable_cache=True,
    )
    await library.call(pipeline, "run", documents=library.documents())
    expected = await library.rows()
    assert await library.call(pipeline, "run", documents=library.documents()) == []
    changed = library.documents(TEXTS[0], "changed", TEXTS[2])
    await library.call(pipeline, "run", documents=changed)
    assert await library.rows() == {**expected, "-1": 1}
    query = VectorStoreQuery(query_embedding=embedded("changed"), similarity_top_k=3)
    query.filters = MetadataFilters(filters=[MetadataFilter(key="test", value=library.name)])
    found = await library.store.aquery(query)
    assert len(found.ids) == 3
    assert found.nodes[0].get_content() == "changed"
