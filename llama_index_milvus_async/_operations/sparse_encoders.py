"""Encoders of sparse embeddings on this side: one interface to all that a store accepts."""

from __future__ import annotations

import inspect
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

from llama_index.core.base.embeddings.base_sparse import BaseSparseEmbedding

from .._concurrency.drivers import acall, call, is_asynchronous
from .._translation.sparse_vectors import describe_type, is_sequence
from ..errors import ConfigurationError, EncoderError


class SparseEncoder:
    """One interface to whatever encodes texts on this side; see `of`."""

    def __init__(self, queries: _Side, documents: _Side) -> None:
        self._queries = queries
        self._documents = documents

    @classmethod
    def of(cls, value: Any) -> SparseEncoder:
        """Wrap an encoder.

        Args:
            value: An object with `encode_queries` and `encode_documents`, with or without their
                async counterparts; LlamaIndex's `BaseSparseEmbedding`; or a pair of functions or
                coroutine functions, the first for queries and the second for documents.

        Raises:
            ConfigurationError: It is none of these.
        """
        if isinstance(value, BaseSparseEmbedding):
            return cls(_core_queries(value), _core_documents(value))
        methods = [getattr(value, name, None) for name in ("encode_queries", "encode_documents")]
        if not isinstance(value, type) and all(map(callable, methods)):
            return cls(_method(value, "encode_queries"), _method(value, "encode_documents"))
        if isinstance(value, (tuple, list)) and len(value) == 2 and all(map(callable, value)):
            return cls(*(_function(_name_of(function), function) for function in value))
        raise ConfigurationError(
            f"sparse_embedding_function is {describe_type(value)}; it must be a function of Milvus "
            "such as BM25BuiltInFunction(), an object with encode_queries and encode_documents "
            "such as a BaseSparseEmbeddingFunction, a BaseSparseEmbedding of LlamaIndex, or a pair "
            "of functions (encode_queries, encode_documents)"
        )

    def encode(self, texts: Sequence[str], *, queries: bool) -> list[Any]:
        """Encode texts, by one call of the encoder. Blocks.

        An encoder that is asynchronous only runs on an event loop of its own, in a thread, so that
        this also works where a loop is running.

        Args:
            texts: The texts; without any, the encoder is not called.
            queries: Whether they are of queries, not of documents.

        Returns:
            One vector for each text as the encoder returned it, for `sparse_vector` to check.

        Raises:
            EncoderError: The encoder returned something else.
            Exception: What the encoder raises.
        """
        return self._side(queries).encode(list(texts)) if texts else []

    async def aencode(self, texts: Sequence[str], *, queries: bool) -> list[Any]:
        """Encode texts as `encode` does, without blocking the event loop.

        The encoder's own async method is awaited; one that has none runs in a thread.
        """
        return await self._side(queries).aencode(list(texts)) if texts else []

    def _side(self, queries: bool) -> _Side:
        return self._queries if queries else self._documents


@dataclass(frozen=True)
class _Side:
    """How the texts of queries, or those of documents, are encoded: sync, async, or both."""

    name: str
    blocking: Callable[[list[str]], Any] | None
    asynchronous: Callable[[list[str]], Awaitable[Any]] | None

    def encode(self, texts: list[str]) -> list[Any]:
        if self.blocking is None:
            vectors: list[Any] = call(self.aencode, texts)
            return vectors
        return check_vectors(self.blocking(list(texts)), len(texts), self.name)

    async def aencode(self, texts: list[str]) -> list[Any]:
        if self.asynchronous is None:
            vectors: list[Any] = await acall(self.encode, texts)
            return vectors
        return check_vectors(await self.asynchronous(list(texts)), len(texts), self.name)


def check_vectors(vectors: Any, count: int, what: str) -> list[Any]:
    """Check that an encoder returned as many vectors as it was given texts.

    Args:
        vectors: What it returned: a sequence of vectors, or a scipy sparse matrix with a row for
            each, as the functions of `pymilvus[model]` return. The vectors themselves are not
            looked at.
        count: The number of texts.
        what: The encoder's name.

    Returns:
        The vectors.

    Raises:
        EncoderError: It did not.
    """
    found = describe_type(vectors)
    if hasattr(vectors, "tocsr") and len(vectors.shape) == 2:
        if vectors.shape[0] == count:
            return list(vectors.tocsr())
        found = f"a sparse matrix of shape {vectors.shape}"
    elif is_sequence(vectors) and len(vectors) == count:
        return list(vectors)
    elif inspect.iscoroutine(vectors):
        vectors.close()  # else Python warns that nobody awaited it
        found = 'a coroutine, without being an "async def"'
    raise EncoderError(
        f"{what} returned {found}; it must return a list of {count} sparse embeddings, one for "
        "each text"
    )


def _function(
    name: str,
    function: Callable[[list[str]], Any],
    twin: Callable[[list[str]], Awaitable[Any]] | None = None,
) -> _Side:
    """A function and, where there is one, its async counterpart."""
    if is_asynchronous(function):
        return _Side(name, None, twin or function)
    return _Side(name, function, twin)


def _method(encoder: Any, name: str) -> _Side:
    twin = _async_twin(encoder, f"async_{name}", name)
    return _function(f"{type(encoder).__name__}.{name}", getattr(encoder, name), twin)


def _async_twin(encoder: Any, name: str, blocking: str) -> Callable[..., Awaitable[Any]] | None:
    """An encoder's async method, if it is more than the default of its base class.

    The default of the upstream plugin's base class calls the sync method on the event loop.
    Such a class is recognized by its sync method, which is still abstract.
    """
    twin: Callable[..., Awaitable[Any]] | None = getattr(encoder, name, None)
    if name not in getattr(encoder, "__dict__", {}):
        for defining in type(encoder).__mro__:
            if name in vars(defining):
                is_default = getattr(vars(defining).get(blocking), "__isabstractmethod__", False)
                return None if is_default else twin
    return twin  # of the object itself, not of its class


# Every `BaseSparseEmbedding` has async methods, for they are abstract; those of models on
# this machine, such as `FastEmbedSparseEmbedding`, just call the blocking ones. Nothing tells these
# from real ones, so that the blocking ones are called, in a thread.
def _core_queries(embedding: BaseSparseEmbedding) -> _Side:
    # It has no method for several queries, other than one that adds them up.
    name = f"{type(embedding).__name__}.get_query_embedding"
    return _Side(name, partial(_encode_each, embedding), None)


def _core_documents(embedding: BaseSparseEmbedding) -> _Side:
    name = f"{type(embedding).__name__}.get_text_embedding_batch"
    return _Side(name, embedding.get_text_embedding_batch, None)


def _encode_each(embedding: BaseSparseEmbedding, queries: list[str]) -> list[Any]:
    return [embedding.get_query_embedding(query) for query in queries]


def _name_of(function: Any) -> str:
    return str(getattr(function, "__qualname__", type(function).__name__))
