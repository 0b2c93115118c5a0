"""What every operation works with."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from .._concurrency.once import Once
from .._retrieval.options import StoreOptions
from .._transport.backend import Backend
from ..errors import CollectionError
from .setup import Ready
from .sparse_encoders import SparseEncoder


@dataclass(frozen=True)
class Context:
    """The collection of a store, seen over one backend.

    Attributes:
        backend: Where requests go.
        setup: Sets the collection up, once for the store.
        upsert: Whether `add` replaces rows of the same id.
        batch_size: Most rows of one insert.
        encoder: Encodes texts as sparse vectors, where the store and not Milvus does.
        options: What reads ask for where they name nothing.
    """

    backend: Backend
    setup: Once[Ready]
    upsert: bool
    batch_size: int
    encoder: SparseEncoder | None
    options: StoreOptions

    async def ready(self) -> Ready:
        """Set the collection up where that has not happened yet."""
        return await self.backend.once(self.setup)

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
