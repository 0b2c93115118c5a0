"""What every operation works with."""

from __future__ import annotations

import logging
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

from llama_index.core.schema import BaseNode

from .._concurrency.once import Once
from .._retrieval.options import StoreOptions
from .._translation.first_nodes import DimensionReader
from .._transport.backend import Backend
from .._wire.status import is_overload
from ..errors import (
    CollectionError,
    FilterError,
    MilvusVectorStoreError,
    NodeError,
    PartialWriteError,
    QueryError,
    RowError,
    ServerError,
)
from .setup import FirstNodes, Missing, Ready, collection_gone
from .sparse_encoders import SparseEncoder

logger = logging.getLogger(__name__)

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Context:
    """The collection of a store, seen over one backend.

    Attributes:
        backend: Where requests go.
        setup: Sets the collection up, once for the store.
        upsert: Whether `add` replaces rows of the same id.
        batch_size: Most rows of one insert.
        encoder: Encodes texts as sparse vectors, where the store and not Milvus does.
        options: What reads ask for where they name nothing.
        first: What the first nodes of the collection decide.
    """

    backend: Backend
    setup: Once[Ready | Missing]
    upsert: bool
    batch_size: int
    encoder: SparseEncoder | None
    options: StoreOptions
    first: FirstNodes

    async def with_ready(self, operation: Callable[[Ready], Awaitable[T]], *, missing: T) -> T:
        """Run an operation on the collection, which is set up where that has not happened yet.

        Args:
            operation: The operation; see `_run`.
            missing: What it returns where there is no collection, and nodes decide its dimensions:
                what it would return for an empty one.

        Raises:
            CollectionError: The collection is gone, or does not fit the store any more.
        """
        ready = await self.backend.once(self.setup)
        if isinstance(ready, Ready):
            return await self._run(ready, operation)
        if not self.first.warned:
            self.first.warned = True
            logger.warning(
                "there is no collection %r, so that nothing is found in it: the first nodes that "
                "are added make it, with their dimension. Is the name misspelt?",
                ready.settings.collection_name,
            )
        return missing

    async def with_ready_for(
        self, nodes: Sequence[BaseNode], operation: Callable[[Ready], Awaitable[T]]
    ) -> T:
        """Run an operation that writes nodes, which decide the dimensions of a new collection.

        Args:
            nodes: The nodes, all that are to be written.
            operation: The operation; see `_run`.

        Raises:
            CollectionError: The collection is gone, or does not fit the store any more.
            NodeError: The nodes have no dimension in common.
        """
        found = await self.backend.once(self.setup)
        if not isinstance(found, Ready):
            reader = DimensionReader(found.settings)
            await self.backend.convert(nodes, reader.read)
            found = await self._create(reader.dimensions())
        return await self._run(found, operation)

    async def _create(self, dimensions: Mapping[str, int]) -> Ready:
        """Have the collection made with dimensions; of adds at the same time, those of one."""
        try:
            while True:
                self.first.dimensions = dimensions
                found = await self.backend.once(self.setup)
                # Setting up may have begun, or another add ended, before it saw them.
                if isinstance(found, Ready):
                    return found
        finally:
            if self.first.dimensions is dimensions:
                self.first.dimensions = None

    async def _run(self, ready: Ready, operation: Callable[[Ready], Awaitable[T]]) -> T:
        """Run an operation on the collection.

        The collection may have been made anew elsewhere, or altered, since it was set up. Where an
        operation is refused, by our own checks or by Milvus, the collection is looked at again;
        if it has changed, it is set up again, and the operation runs a second time.

        Args:
            ready: The collection.
            operation: The operation. It is repeated only where it has not written anything.

        Raises:
            CollectionError: The collection is gone, or does not fit the store any more.
        """
        try:
            return await operation(ready)
        except MilvusVectorStoreError as error:
            if not _may_be_stale(error) or await self._is_current(ready):
                raise
        self.setup.forget(ready)
        logger.info("collection %r has changed; it is set up again", ready.layout.collection_name)
        again = await self.backend.once(self.setup)
        if not isinstance(again, Ready):
            raise collection_gone(ready.layout.collection_name)
        return await operation(again)

    async def _is_current(self, ready: Ready) -> bool:
        try:
            return await ready.is_current(self.backend)
        except ServerError:
            # The error of the operation says more than that of looking again.
            return True

    async def encode(self, texts: Sequence[str], *, queries: bool) -> Sequence[Any]:
        """Encode texts as sparse vectors.

        Raises:
            CollectionError: The store has no encoder.
            EncoderError: The encoder returned something else than vectors.
        """
        if self.encoder is None:
            raise CollectionError(
                "the collection's sparse vectors are computed on this side, and the store has no "
                "sparse_embedding_function; pass the one that they were computed with"
            )
        return await self.backend.encode(self.encoder, texts, queries=queries)


def _may_be_stale(error: MilvusVectorStoreError) -> bool:
    """Whether an operation was refused, for which an old layout may be the reason.

    Which one it is nobody tells: servers have no code of their own for a field that is not there,
    or for another dimension.
    """
    if isinstance(error, PartialWriteError):
        return not error.written and not error.unknown
    if isinstance(error, ServerError):
        # No second question to a server that has too much to do already.
        return error.is_answer and not is_overload(error)
    return isinstance(error, (CollectionError, FilterError, NodeError, QueryError, RowError))
