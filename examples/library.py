"""Documents in a store, in passages of a size that the embedding model reads.

`fastapi_service.py` serves them. A document that is put again replaces the former one, and is never
missing in between.
"""

from __future__ import annotations

import asyncio
from typing import Annotated, Any, Literal
from weakref import WeakValueDictionary

from llama_index.core.node_parser import SentenceSplitter
from llama_index.core.schema import NodeRelationship, RelatedNodeInfo, TextNode
from llama_index.core.vector_stores.types import VectorStoreQuery, VectorStoreQueryMode
from pydantic import BaseModel, Field

from examples.shared import CHUNK_OVERLAP, CHUNK_SIZE
from llama_index_milvus_async import CoalescingEmbedding, MilvusVectorStore

Text = Annotated[str, Field(min_length=1, max_length=1_000_000, pattern=r"\S")]
DocumentId = Annotated[str, Field(min_length=1, max_length=500)]
Mode = Literal["default", "mmr", "text_search", "sparse", "hybrid"]


class Document(BaseModel):
    """What a client stores; a document with the same id is replaced."""

    id: DocumentId
    text: Text
    metadata: dict[str, Any] = {}


class Stored(BaseModel):
    """The answer to a document."""

    id: str
    passages: int


class Found(BaseModel):
    """A passage that a search has found."""

    document: str | None
    score: float
    text: str
    metadata: dict[str, Any]


class Library:
    """Documents in a store, in passages of a size that the embedding model reads."""

    def __init__(self, store: MilvusVectorStore, embed_model: CoalescingEmbedding) -> None:
        self.store = store
        self.embed_model = embed_model
        self._splitter = SentenceSplitter(chunk_size=CHUNK_SIZE, chunk_overlap=CHUNK_OVERLAP)
        self._locks: WeakValueDictionary[str, asyncio.Lock] = WeakValueDictionary()

    async def put(self, document: Document) -> int:
        """Store a document in place of a former one of its id; returns the number of passages.

        The former one stays where this one is refused, and is never missing in between.
        """
        texts = await asyncio.to_thread(self._splitter.split_text, document.text)
        embeddings = await self.embed_model.aget_text_embedding_batch(texts)
        source = RelatedNodeInfo(node_id=document.id, metadata={"passages": len(texts)})
        nodes = [
            TextNode(
                id_=_passage_id(document.id, number),
                text=text,
                embedding=embedding,
                metadata=document.metadata,
                relationships={NodeRelationship.SOURCE: source},
            )
            for number, (text, embedding) in enumerate(zip(texts, embeddings, strict=True))
        ]
        async with self._lock(document.id):
            former = await self.store.aget_nodes([_passage_id(document.id, 0)])
            await self.store.async_add(nodes)
            if former and former[0].source_node is not None:
                count = former[0].source_node.metadata.get("passages", 0)
                surplus = range(len(nodes), count)
                await self.store.adelete_nodes([_passage_id(document.id, n) for n in surplus])
        return len(nodes)

    async def delete(self, document_id: str) -> None:
        """Delete a document. One that is not there is not an error."""
        async with self._lock(document_id):
            await self.store.adelete(document_id)

    async def search(self, text: str, top_k: int, mode: Mode) -> list[Found]:
        """Find the passages nearest to a text, best first."""
        embedding = None
        if mode not in ("text_search", "sparse"):
            embedding = await self.embed_model.aget_query_embedding(text)
        query = VectorStoreQuery(
            query_str=text,
            query_embedding=embedding,
            mode=VectorStoreQueryMode(mode),
            similarity_top_k=top_k,
            sparse_top_k=top_k,
            hybrid_top_k=top_k,
        )
        result = await self.store.aquery(query)
        return [
            Found(document=n.ref_doc_id, score=score, text=n.get_content(), metadata=n.metadata)
            for n, score in zip(result.nodes or [], result.similarities or [], strict=True)
        ]

    def _lock(self, document_id: str) -> asyncio.Lock:
        """Versions of a document are written one after the other, or their passages would mix."""
        return self._locks.setdefault(document_id, asyncio.Lock())


def _passage_id(document_id: str, number: int) -> str:
    return f"{document_id}#{number}"
