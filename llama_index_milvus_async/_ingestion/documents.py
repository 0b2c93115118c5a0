"""Which documents are ingested, and whose rows they replace."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from llama_index.core.ingestion import DocstoreStrategy
from llama_index.core.schema import BaseNode, Document
from llama_index.core.storage.docstore.types import BaseDocumentStore

from .._concurrency.drivers import gather_or_cancel
from ..store import MilvusVectorStore

logger = logging.getLogger(__name__)


@dataclass(eq=False)
class Group:
    """Documents that are transformed together.

    Attributes:
        read: How many were read.
        documents: Those of them that are ingested.
        hashes: What the docstore is to remember of these.
        stale: Ids of the documents whose rows have to be deleted first.
        written: Ids of nodes that are written.
        replacing: Held by the batch that deletes them.
    """

    read: int
    documents: list[BaseNode]
    hashes: dict[str, str] = field(default_factory=dict)
    stale: list[str] = field(default_factory=list)
    written: list[str] = field(default_factory=list)
    replacing: asyncio.Lock = field(default_factory=asyncio.Lock)

    @property
    def replaced_ids(self) -> set[str]:
        """Ids of the documents that replace an earlier version of themselves."""
        return {each.id_ for each in self.documents if isinstance(each, Document)}


class Documents:
    """Decides which documents are ingested; `docstore` remembers those that are.

    Args:
        store: Where their rows are.
        docstore: LlamaIndex's store of documents, of which the hashes are used.
        strategy: What a document is compared by, as in LlamaIndex's `IngestionPipeline`.
        arguments: Keyword arguments of `adelete`.
    """

    def __init__(
        self,
        store: MilvusVectorStore,
        docstore: BaseDocumentStore | None,
        strategy: DocstoreStrategy,
        arguments: dict[str, Any],
    ) -> None:
        self._store = store
        self._docstore = docstore
        self._strategy = strategy
        self._arguments = arguments
        #: Hashes of the ids of documents that may have rows; `None` where the collection had some.
        self._may_have_rows: set[int] | None = None
        self._hashes: set[str] = set()
        self._seen: set[str] = set()

    async def begin(self) -> None:
        """Look what there is."""
        # To delete costs as much as to write, and a first load has nothing to delete.
        if not await self._store.acount(consistency_level="Strong"):
            self._may_have_rows = set()
        elif self._docstore is not None and self._strategy == DocstoreStrategy.DUPLICATES_ONLY:
            self._hashes = set(await self._docstore.aget_all_document_hashes())

    async def choose(self, documents: Sequence[BaseNode]) -> Group:
        """Leave out what has not changed since it was ingested."""
        if self._docstore is None:
            group = Group(len(documents), list(documents))
        else:
            group = await self._changed(self._docstore, documents)
        if self._strategy != DocstoreStrategy.DUPLICATES_ONLY:
            group.stale = [each for each in group.replaced_ids if self._is_stale(each)]
        return group

    async def _changed(self, docstore: BaseDocumentStore, documents: Sequence[BaseNode]) -> Group:
        hashes = await asyncio.to_thread(lambda: [document.hash for document in documents])
        group = Group(len(documents), [])
        if self._strategy == DocstoreStrategy.DUPLICATES_ONLY:
            known = [self._known_text(each) for each in hashes]
        else:
            known = await gather_or_cancel(self._known(docstore, each.id_) for each in documents)
        for document, now, before in zip(documents, hashes, known, strict=True):
            if now != before:
                group.documents.append(document)
                group.hashes[document.id_] = now
        if self._strategy == DocstoreStrategy.UPSERTS_AND_DELETE:
            self._seen.update(document.id_ for document in documents)
        return group

    def _known_text(self, text_hash: str) -> str | None:
        if text_hash in self._hashes:
            return text_hash
        self._hashes.add(text_hash)
        return None

    async def _known(self, docstore: BaseDocumentStore, document_id: str) -> str | None:
        # Where the collection was cleared or dropped, what the docstore remembers is not there.
        if self._may_have_rows is not None and hash(document_id) not in self._may_have_rows:
            return None
        return await docstore.aget_document_hash(document_id)

    def _is_stale(self, document_id: str) -> bool:
        if self._may_have_rows is None:
            return True
        key = hash(document_id)
        was_there = key in self._may_have_rows
        self._may_have_rows.add(key)
        return was_there

    async def delete_stale(self, group: Group) -> None:
        """Delete the rows that documents have, right before they get new ones."""
        if not group.stale:
            return
        async with group.replacing:
            if group.stale:
                await self._store.adelete(group.stale, **self._arguments)
                group.stale = []

    async def remember(self, group: Group) -> None:
        """Note that all rows of documents are written."""
        if self._docstore is not None and group.hashes:
            await self._docstore.aset_document_hashes(group.hashes)

    async def delete_missing(self) -> int:
        """Delete the documents that the source no longer has; returns how many."""
        if self._docstore is None or self._strategy != DocstoreStrategy.UPSERTS_AND_DELETE:
            return 0
        hashes = await self._docstore.aget_all_document_hashes()
        missing = sorted(set(hashes.values()) - self._seen)
        if missing and not self._seen:
            logger.warning(
                "the source was empty; the %d documents of the docstore are kept, because an empty "
                "source is more often a mistake than the wish to delete everything",
                len(missing),
            )
            return 0
        await self._store.adelete(missing, **self._arguments)
        for document_id in missing:
            await self._docstore.adelete_document(document_id, raise_error=False)
        return len(missing)
